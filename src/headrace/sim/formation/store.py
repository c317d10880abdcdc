"""A model of the consensus store: members with logs, learners, a leader wherever a majority of the voters can meet, writes that hold at once.

Owns who leads, what is committed, and the ledger of everything that ever was. A member's log outlives its broker and goes with a wiped directory. As
in the real one a leader's log is at least as new as those of a majority; whoever counts a vote of a member that lost its log breaks the ledger.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from headrace.core.formation.effects import Consensus, ConsensusMember, StartConsensus
from headrace.core.formation.records import Charter
from headrace.sim.formation.violation import Violation

Membership = tuple[ConsensusMember, ...]
Entry = Membership | Charter


class Member:
    """One consensus directory; ``running`` while its broker has started it."""

    __slots__ = ("log", "name", "running", "seat", "token")

    def __init__(self, name: str, start: StartConsensus, log: list[Entry]) -> None:
        self.name = name
        self.seat = start.seat
        self.token = start.token
        self.log = log
        self.running = True

    @property
    def membership(self) -> Membership:
        return next((e for e in reversed(self.log) if not isinstance(e, Charter)), ())

    @property
    def charter(self) -> Charter | None:
        return next((e for e in reversed(self.log) if isinstance(e, Charter)), None)


class Led(NamedTuple):
    """A leader with those it reaches."""

    leader: Member
    reached: list[Member]


class Store:
    """See the module's head. ``members`` are all directories that there are, ``linked`` says who can talk."""

    def __init__(self, members: Callable[[], Iterable[Member]], linked: Callable[[str, str], bool]) -> None:
        self._members = members
        self._linked = linked
        self.ledgers: dict[str, list[Entry]] = {}
        """By token: everything that was committed."""

    def led(self, token: str, asker: str) -> Led | None:
        """The leader that ``asker`` reaches."""
        running = [m for m in self._members() if m.running and m.token == token]
        best: Led | None = None
        for candidate in running:
            if candidate.name != asker and not self._linked(asker, candidate.name):
                continue
            membership = candidate.membership
            voters = {(m.name, m.seat) for m in membership if not m.learner}
            if (candidate.name, candidate.seat) not in voters:
                continue
            reached = [m for m in running if m is candidate or self._linked(candidate.name, m.name)]
            length = len(candidate.log)
            votes = sum(1 for m in reached if (m.name, m.seat) in voters and len(m.log) <= length)
            if votes >= len(voters) // 2 + 1 and (best is None or length > len(best.leader.log)):
                best = Led(candidate, reached)
        if best is not None:
            self._replicate(token, best)
        return best

    def _replicate(self, token: str, led: Led) -> None:
        leader = led.leader
        ledger = self.ledgers.setdefault(token, list(leader.log))
        if leader.log != ledger:
            raise Violation("store", f"{leader.name} leads {token} with {len(leader.log)} entries, {len(ledger)} were committed")
        places = {(m.name, m.seat) for m in leader.membership}
        for member in led.reached:
            if (member.name, member.seat) in places and len(member.log) < len(leader.log):
                member.log = list(leader.log)
        fresh = [m for m in leader.membership if not m.started and any((r.name, r.seat) == (m.name, m.seat) for r in led.reached)]
        if fresh:
            self._append(token, led, tuple(ConsensusMember(m.name, m.seat, m.learner, m.started or m in fresh) for m in leader.membership))

    def _append(self, token: str, led: Led, entry: Entry) -> None:
        places = {(m.name, m.seat) for m in led.leader.membership}  # also of one that it takes out: it was part of the majority
        led.leader.log.append(entry)
        self.ledgers[token].append(entry)
        places |= {(m.name, m.seat) for m in led.leader.membership}
        for member in led.reached:
            if member is not led.leader and (member.name, member.seat) in places:
                member.log = list(led.leader.log)

    def seen(self, token: str, asker: str, own: Member | None) -> tuple[Consensus, Charter | None]:
        """How it looks from a broker, and the charter if there is a leader."""
        running = own is not None and own.running
        led = self.led(token, asker)
        if led is None:
            return Consensus(running=running), None
        leader = led.leader
        membership = leader.membership
        if own is not None and not any((m.name, m.seat) == (own.name, own.seat) for m in membership):
            return Consensus(running=running), None
        caught = own is not None and len(own.log) == len(leader.log)
        return Consensus(running=running, leader=leader.name, caught_up=caught, members=membership), leader.charter

    # ------------------------------------------------------------ writes; each returns a fault, "" = done

    def commit(self, token: str, asker: str, expected: int, charter: Charter) -> str:
        led = self.led(token, asker)
        if led is None:
            return "no leader"
        current = led.leader.charter
        if (current.revision if current is not None else 0) != expected:
            return "another revision"
        self._append(token, led, charter)
        return ""

    def add(self, token: str, asker: str, name: str, seat: int) -> str:
        led = self.led(token, asker)
        if led is None:
            return "no leader"
        membership = led.leader.membership
        if any(m.name == name for m in membership):
            return "a member of that address is there"
        if any(m.learner for m in membership):
            return "too many learners"
        self._append(token, led, (*membership, ConsensusMember(name, seat, True, False)))
        return ""

    def promote(self, token: str, asker: str, name: str, seat: int) -> str:
        led = self.led(token, asker)
        if led is None:
            return "no leader"
        membership = led.leader.membership
        if not any((m.name, m.seat) == (name, seat) and m.learner for m in membership):
            return "no such learner"
        if not any((m.name, m.seat) == (name, seat) for m in led.reached):
            return "it has not caught up"
        self._append(
            token, led, tuple(ConsensusMember(m.name, m.seat, m.learner and (m.name, m.seat) != (name, seat), m.started) for m in membership)
        )
        return ""

    def remove(self, token: str, asker: str, name: str, seat: int) -> str:
        led = self.led(token, asker)
        if led is None:
            return "no leader"
        membership = led.leader.membership
        if not any((m.name, m.seat) == (name, seat) for m in membership):
            return "no such member"
        self._append(token, led, tuple(m for m in membership if (m.name, m.seat) != (name, seat)))
        return ""
