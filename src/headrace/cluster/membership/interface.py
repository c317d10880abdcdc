"""Who is in the cluster and seems to live: the contract of membership, and its values.

Implementations: ``gossip`` (SWIM over UDP, by the package kinship), ``headrace.sim.membership`` (SWIM over the simulated network). Members are known
by their broker id; a restart is another ``run`` of the same id.

What is said here is a suggestion: two brokers may see different things for a while, somebody cut off sees all others dead, and a secret admits to the
cluster but does not prove who one is. Nothing is elected, moved or deleted by it alone; whoever acts on "dead" looks for himself first
(``Transport.probe``).

I1 events of one member come in order; a broker gets none of itself but ``Claimed``. I2 nothing is missed: who cannot keep up gets ``Reread`` in place
of what was dropped, and reads ``members`` again. I3 a life that was seen dead or left is not seen alive again by an older run.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Literal, Protocol, TypeAlias

import msgspec

from headrace.model.cluster import BrokerId
from headrace.model.config import Address
from headrace.model.errors import Invalid

State = Literal["alive", "suspect", "dead", "left"]
"""left: it said goodbye."""

META_BYTES_MAX = 400
"""Keys and values of one member's metadata together."""
EVENTS_MAX = 1024
"""Kept for a reader that is behind."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A broker as gossip sees it."""

    id: BrokerId
    address: str
    """Where its probes go."""
    state: State
    run: int
    """Grows with every start of it."""
    meta: Mapping[str, str]
    """What it says of itself, ``incarnation`` among it."""

    @property
    def incarnation(self) -> str:
        return self.meta.get("incarnation", "")


class Changed(msgspec.Struct, frozen=True):
    """``member`` is new, or its state, run or metadata changed."""

    member: Member
    before: Member | None


class Claimed(msgspec.Struct, frozen=True):
    """Another process, at ``address``, goes by the id of ``member``, and both live."""

    member: Member
    address: str


class Reread(msgspec.Struct, frozen=True):
    """Events were dropped; ``members`` says how things stand."""


Event: TypeAlias = Changed | Claimed | Reread


class Membership(Protocol):
    """Made and used on one loop."""

    async def start(self) -> None:
        """Opens the sockets and looks for the seeds. That none answers is no error: it is tried again for as long as it runs.
        ``Unavailable`` if the address cannot be used or no name of a seed is known."""

    @property
    def address(self) -> Address:
        """As others see it."""

    def members(self) -> tuple[Member, ...]:
        """All that are known, this broker and the dead of late among them, by id. Cheap."""

    def member(self, id: BrokerId) -> Member | None: ...

    def events(self) -> AsyncIterator[Event]:
        """From the call on; ends when membership is closed."""

    async def join(self, seeds: tuple[Address, ...]) -> int:
        """Looks for more; how many answered."""

    async def say(self, **meta: str) -> None:
        """Adds to what this broker says of itself; "" takes a key away. ``Invalid`` above ``META_BYTES_MAX``."""

    async def add_secret(self, secret: bytes) -> None:
        """Understands those who use it. Each of the three steps of a rotation is done on every broker before the next."""

    async def use_secret(self, id: bytes) -> None: ...

    async def remove_secret(self, id: bytes) -> None:
        """``Conflict`` for the one in use."""

    def counters(self) -> Mapping[str, int]:
        """Probes, suspicions, what could not be understood: names as in the metrics."""

    async def leave(self) -> None:
        """Says goodbye, so that nobody waits for it, and closes."""

    async def close(self) -> None:
        """Without a word, as a crash."""


def check_meta(meta: Mapping[str, str]) -> None:
    nbytes = sum(len(key.encode()) + len(value.encode()) + 4 for key, value in meta.items())
    if nbytes > META_BYTES_MAX:
        raise Invalid(f"what this broker says of itself has {nbytes} bytes; at most {META_BYTES_MAX} fit", hint="shorten its name, rack or addresses")
