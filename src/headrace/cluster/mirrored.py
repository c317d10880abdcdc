"""The coordinator's documents with the ones that a broker follows at hand: what a name means must be known at once, on every broker.

Owns that what was written here is seen here when the write returns, as far as that takes a bounded time. Documents that are not followed are asked
for as ever.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from headrace.cluster.control.mirror import Mirror
from headrace.cluster.coordinator import RANGE_KEYS_MAX, Coordinator, Document, Page

SHOWN_S: Final = 2.0


class Documents(Protocol):
    """What the catalogue needs of a coordinator. ``cluster.local`` has it too."""

    def peek(self, key: str) -> Document | None:
        """The document as far as it is known here, at once."""

    async def get(self, key: str) -> Document | None: ...

    async def range(self, prefix: str, *, after: str = "", limit: int = RANGE_KEYS_MAX, revision: int = 0) -> Page: ...

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None]) -> bool: ...


class Mirrored:
    """See the module's head. Implements ``Documents``."""

    def __init__(self, coordinator: Coordinator, mirror: Mirror) -> None:
        self._coordinator = coordinator
        self._mirror = mirror

    def peek(self, key: str) -> Document | None:
        return self._mirror.get(key)

    async def get(self, key: str) -> Document | None:
        return await self._coordinator.get(key)

    async def range(self, prefix: str, *, after: str = "", limit: int = RANGE_KEYS_MAX, revision: int = 0) -> Page:
        return await self._coordinator.range(prefix, after=after, limit=limit, revision=revision)

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None]) -> bool:
        """Whichever way it went, what is recorded now is seen here too."""
        done = await self._coordinator.transact(expected, puts)
        followed = {key: version for key, version in expected.items() if key in puts and self._mirror.follows(key)}
        await self._mirror.moved(followed, timeout_s=SHOWN_S)
        return done
