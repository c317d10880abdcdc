"""The lives of brokers as gossip shows them, and which of them counts.

Every start of a broker is a member of its own in gossip: an id that is bound to the address of one process would keep a broker out that comes back
at another (a restarted container) until everybody has forgotten the first. Here they are put together again by the broker's id: of several lives a
living one counts before a gone one, then the later.

Owns that choice and what is remembered. Does not know gossip, time or loops. I3 of ``interface`` is kept here.
"""

from typing import Final

import msgspec

from headrace.cluster.membership.interface import Member
from headrace.model.cluster import BrokerId

GONE_MAX: Final = 2048
"""Lives that ended and are remembered; of the brokers that are only among them the longest gone are forgotten first."""


class Life(msgspec.Struct, frozen=True):
    """One member of gossip."""

    name: str
    """Its name there, unique to this life."""
    member: Member


def living(member: Member) -> bool:
    return member.state in ("alive", "suspect")


class Lives:
    def __init__(self) -> None:
        self._lives: dict[str, Life] = {}
        """By name; the gone in the order in which they went, among the living."""
        self._current: dict[BrokerId, Life] = {}

    def current(self) -> dict[BrokerId, Member]:
        return {id: life.member for id, life in self._current.items()}

    def member(self, id: BrokerId) -> Member | None:
        life = self._current.get(id)
        return None if life is None else life.member

    def names(self) -> list[str]:
        """Of lives that are not over."""
        return [name for name, life in self._lives.items() if living(life.member)]

    def get(self, name: str) -> Life | None:
        return self._lives.get(name)

    def alive(self, id: BrokerId) -> list[Life]:
        """All lives of it that are alive, the earliest first: several for a moment while one has just been killed."""
        return sorted((life for life in self._lives.values() if life.member.id == id and life.member.state == "alive"), key=_order)

    def take(self, life: Life) -> tuple[Member | None, Member | None]:
        """Something about a life is new. What counted for its broker before, and what counts now."""
        id = life.member.id
        before = self._current.get(id)
        self._lives.pop(life.name, None)
        self._lives[life.name] = life
        self._current[id] = max((known for known in self._lives.values() if known.member.id == id), key=_order)
        self._forget()
        return None if before is None else before.member, self._current[id].member

    def _forget(self) -> None:
        gone = [life for life in self._lives.values() if not living(life.member)]
        for life in gone[: max(0, len(gone) - GONE_MAX)]:
            del self._lives[life.name]
            if self._current[life.member.id] is life:
                del self._current[life.member.id]


def _order(life: Life) -> tuple[bool, int, str]:
    return living(life.member), life.member.run, life.name
