"""When each connected broker was last heard of: what the machines of all partitions look at.

Owns nothing; asks the transport.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from headrace.model.cluster import BrokerId

_NEVER: Final = 0


class Heard(Mapping[BrokerId, int]):
    """When the last frame of each broker came, of whatever partition, or when it surely ran last, as ``when`` says."""

    def __init__(self, when: Callable[[BrokerId], int], links: Mapping[BrokerId, str]) -> None:
        self._when = when
        self._links = links

    def __getitem__(self, broker: BrokerId) -> int:
        at_ms = self._when(broker)
        if at_ms == _NEVER:
            raise KeyError(broker)
        return at_ms

    def __iter__(self) -> Iterator[BrokerId]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)
