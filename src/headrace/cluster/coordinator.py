"""The consensus store as the broker sees it: small documents, each with a version, changed only by compare-and-swap.

It holds metadata (catalogue, assignments, settings), never a message or an ack. One contract, several implementations:
``local`` (the data directory of a lone broker), ``memory`` (deterministic), and etcd in a cluster.
Keys are text paths such as ``names/orders``; ranges are by prefix, in key order, paged.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec

RANGE_KEYS_MAX = 1000
TRANSACTION_OPERATIONS_MAX = 128
VALUE_BYTES_MAX = 1024 * 1024


class Document(msgspec.Struct, frozen=True):
    """A value with the version under which it is compared (1 = just created; 0 never occurs)."""

    key: str
    value: bytes
    version: int


class Change(msgspec.Struct, frozen=True):
    """One change seen by a watch; ``document`` is None for a deletion."""

    key: str
    document: Document | None
    revision: int


class Page(msgspec.Struct, frozen=True):
    """Part of a range. ``more``: ask again with ``after`` = the last key."""

    documents: tuple[Document, ...]
    more: bool
    revision: int


class Registration(Protocol):
    """A broker's lease on its own presence."""

    @property
    def alive(self) -> bool: ...

    async def release(self) -> None: ...


class Coordinator(Protocol):
    """See the module's head. All methods may raise ``Unavailable`` (definite for reads, ``UnknownOutcome`` for a transaction whose answer was
    lost)."""

    async def get(self, key: str) -> Document | None: ...

    async def range(self, prefix: str, *, after: str = "", limit: int = RANGE_KEYS_MAX) -> Page: ...

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None]) -> bool:
        """Writes all of ``puts`` (None deletes) in one step if every key of ``expected`` has that version now (0 = absent). Durable when it returns
        True."""
        ...

    async def register(self, key: str, value: bytes, *, ttl_ms: int) -> Registration: ...

    def watch(self, prefix: str, *, from_revision: int = 0) -> AsyncIterator[Sequence[Change]]: ...

    async def close(self) -> None: ...
