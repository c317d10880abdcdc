"""The consensus store as the formation uses it: a member of one's own that is started and stopped, others' that are followed, what is seen in it.

Implementations: ``voting`` (etcd as a child of brokers that vote), ``external`` (an etcd that runs anyway).
"""

from typing import Any, Protocol, TypeAlias

import msgspec

from headrace.cluster.coordinator import Coordinator
from headrace.core.formation.effects import AddLearner, Commit, Consensus, Follow, Promote, Remove, StartConsensus
from headrace.core.formation.records import Charter

Request: TypeAlias = Commit | AddLearner | Promote | Remove

CHARTER_KEY = "formation/charter"


class Seen(msgspec.Struct, frozen=True):
    """One look. ``charter`` counts if ``read``: a majority has answered, and None says that there is none."""

    consensus: Consensus
    read: bool = False
    charter: Charter | None = None


class Place(Protocol):
    """Used by one task at a time, ``look`` beside it. What cannot be done at once (no program, no quorum) is tried again by itself until it is told
    otherwise, and ``trouble`` says why."""

    trouble: str

    @property
    def coordinator(self) -> Coordinator | None:
        """A client of what is used now."""

    def found(self) -> int:
        """The seat whose data lies here, 0 = none. Before anything is started; blocks."""

    async def start(self, effect: StartConsensus) -> None: ...

    async def stop(self, *, drop: bool) -> None:
        """Returns once it has ended; ``drop``: and its data is out of the way."""

    async def follow(self, effect: Follow) -> None: ...

    async def carry_out(self, request: Request) -> None:
        """Returns if it was done; ``HeadraceError`` if not, or if nobody knows."""

    async def look(self) -> Seen | None:
        """None while nothing is used. Never raises; takes a bounded time."""

    async def forget(self) -> None:
        """The data was set aside: what was used is no more."""

    async def close(self) -> None:
        """Stops the member too."""

    def view(self) -> dict[str, Any]: ...
