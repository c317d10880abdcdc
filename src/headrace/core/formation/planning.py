"""From the committed config to the cluster, one step at a time: who is enrolled, seated, promoted, drained, removed, and what that waits for.

Owns the order of the steps and when a change of the consensus members is safe. Everything follows from the charter, the members and what is known
now, so whoever leads the consensus can go on where another stopped, and a dry run is the same function on a charter that has not been committed.

P1 a directory is enrolled before it has a seat, and a seat is added as a learner, one at a time, and promoted once its own status answers; a
learner that is silent gives way. P2 of two directories of one name the old one's seat is gone before the new one has any. P3 a voter is taken out
only if the voters that remain and answer are a majority of those that remain. P4 a voter that answers is not taken out while one that is to come can
be brought in.
"""

from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec.structs import replace

from headrace.core.formation.effects import Consensus, ConsensusMember
from headrace.core.formation.messages import Hello
from headrace.core.formation.records import GONE_MAX, Charter, Enrolled, Gone
from headrace.model.formation import mark

Kind = Literal[
    "unseat", "replace", "reseat", "yield", "enrol", "seat", "add_learner", "catch_up", "promote", "demote", "release", "drain", "remove", "strike"
]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step; ``blocked`` says what it waits for, "" = it can be done now. ``charter``: what to commit for it."""

    kind: Kind
    name: str
    seat: int = 0
    blocked: str = ""
    on: tuple[str, ...] = ()
    charter: Charter | None = None

    def __str__(self) -> str:
        return f"{_SENTENCES[self.kind].format(name=self.name)}{': waits, ' + self.blocked if self.blocked else ''}"


_AFTER_ENROLMENT: tuple[Kind, ...] = ("seat", "add_learner", "catch_up", "promote")
_SENTENCES: dict[Kind, str] = {
    "unseat": "take the consensus member of a former {name} out",
    "replace": "replace {name}, whose directory is a new one",
    "reseat": "give {name} another seat, it never took its first",
    "yield": "let others learn before {name}, which does not answer",
    "enrol": "enrol {name}",
    "seat": "give {name} a seat",
    "add_learner": "add {name} as a learner",
    "catch_up": "let {name} catch up",
    "promote": "promote {name} to voter",
    "demote": "take the consensus member of {name} out, it becomes an observer",
    "release": "note that {name} has no seat any more",
    "drain": "drain {name}",
    "remove": "take the consensus member of {name} out",
    "strike": "remove {name} and tell it",
}


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is made from."""

    charter: Charter
    consensus: Consensus
    hello: Callable[[str], Hello | None]
    """The standing of a reachable peer, also of this broker itself."""
    heard: tuple[str, ...] = ()
    """Everyone who is reachable."""
    drained: frozenset[str] = frozenset()
    offers: bool = True
    """This broker holds the bootstrap record and can still give it to voters that have not accepted it."""


def steps(picture: Picture) -> tuple[Step, ...]:
    """What is left to do, in order. The first that is not blocked is to be done; empty = the cluster is as declared."""
    if picture.charter.reset:
        return ()
    plan = _Plan(picture)
    plan.former()
    plan.replaced()
    plan.newcomers()
    plan.seats()
    plan.demoted()
    plan.removed()
    return tuple(plan.found)


def unsafe(picture: Picture, name: str) -> str:
    """Why the vote of ``name`` must not be taken away now, "" = it may be, or there is none."""
    plan = _Plan(picture)
    return next((why for n, seat in plan.members if n == name and (why := plan.unsafe(n, seat)[0])), "")


class _Plan:
    """One plan that is being made."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.charter = picture.charter
        self.config = picture.charter.config
        self.members = {(m.name, m.seat): m for m in picture.consensus.members}
        self.seated = {m.name for m in picture.consensus.members}
        self.found: list[Step] = []
        self.arriving: list[str] = []
        """Voters to come that nothing but time keeps out."""

    def add(self, kind: Kind, name: str, *, seat: int = 0, blocked: str = "", on: tuple[str, ...] = (), charter: Charter | None = None) -> None:
        self.found.append(Step(kind=kind, name=name, seat=seat, blocked=blocked, on=on, charter=charter))

    def write(self, entry: Enrolled | None, *, without: str = "", gone: Gone | None = None) -> Charter:
        """The charter with one entry changed."""
        names = {without, entry.name if entry is not None else ""}
        roster = [e for e in self.charter.roster if e.name not in names]
        if entry is not None:
            roster.append(entry)
        left = (*self.charter.gone, gone)[-GONE_MAX:] if gone is not None else self.charter.gone
        return replace(
            self.charter, revision=self.charter.revision + 1, roster=tuple(sorted(roster, key=lambda e: e.name)), gone=left
        )

    def answers(self, member: ConsensusMember) -> bool:
        hello = self.picture.hello(member.name)
        return hello is not None and hello.seat == member.seat

    def unsafe(self, name: str, seat: int) -> tuple[str, tuple[str, ...]]:
        """Why that member must not be taken out now, and who keeps it so."""
        member = self.members.get((name, seat))
        if member is None or member.learner:
            return "", ()
        rest = [m for m in self.members.values() if not m.learner and m is not member]
        if not rest:
            return "it is the last voter", ()
        silent = tuple(m.name for m in rest if not self.answers(m))
        if len(rest) - len(silent) < len(rest) // 2 + 1:
            return f"the quorum would be lost: {', '.join(silent)} of the remaining voters do not answer", silent
        return "", ()

    # ------------------------------------------------------------ in

    def former(self) -> None:
        """Members of the consensus that nobody holds any more."""
        for member in self.picture.consensus.members:
            enrolled = self.charter.enrolled(member.name)
            if enrolled is None or enrolled.seat != member.seat:
                blocked, on = self.unsafe(member.name, member.seat)
                self.add("unseat", member.name, seat=member.seat, blocked=blocked, on=on)

    def replaced(self) -> None:
        """Known names with a new directory, or one that never took its seat."""
        charter = self.charter
        for enrolled in charter.roster:
            hello = self.picture.hello(enrolled.name)
            if hello is None or (self.config.member(enrolled.name) is None and self.config.undeclared == "closed"):
                continue
            if hello.incarnation == enrolled.incarnation:
                if hello.condition == "fresh" and enrolled.seat == 1 and self._cannot_accept(hello):  # so its member has never run
                    blocked, on = self.unsafe(enrolled.name, enrolled.seat)
                    self.add("reseat", enrolled.name, blocked=blocked, on=on, charter=self.write(replace(enrolled, seat=0)))
            elif self._may_come(hello):
                gone = Gone(
                    name=enrolled.name, incarnation=enrolled.incarnation, version=self.config.version, replaced=True, address=enrolled.address
                )
                self.add(
                    "replace", enrolled.name, charter=self.write(replace(enrolled, incarnation=hello.incarnation, seat=0), gone=gone)
                )  # fmt: skip

    def _cannot_accept(self, hello: Hello) -> bool:
        return not self.picture.offers or hello.version > self.charter.born[0]

    def _may_come(self, hello: Hello) -> bool:
        return not self._kept_out(hello)

    def _kept_out(self, hello: Hello) -> str:
        """Why a directory is not enrolled."""
        if self.charter.has_gone(hello.incarnation) is not None:
            return "this directory was removed"
        if hello.condition == "formed" and hello.cluster_id == self.charter.cluster_id:
            return ""
        if hello.condition != "fresh":
            return f"it holds data of cluster {hello.cluster_id}" if hello.cluster_id else f"its directory is {hello.condition}"
        if (hello.version, hello.hash) != mark(self.config):
            return "it does not hold this config yet" if hello.version <= self.config.version else f"it proposes version {hello.version}"
        return ""

    def newcomers(self) -> None:
        """Names that are not enrolled, voters first."""
        wanted = sorted(self.config.members, key=lambda m: (m.role != "voter", m.name))
        for member in wanted:
            if self.charter.enrolled(member.name) is not None:
                continue
            hello = self.picture.hello(member.name)
            blocked = "it is not reachable" if hello is None else self._kept_out(hello)
            entry = None
            if hello is not None and not blocked:
                entry = Enrolled(name=member.name, incarnation=hello.incarnation, address=member.address)
            self.add(
                "enrol", member.name, blocked=blocked, on=(member.name,) if blocked else (), charter=self.write(entry) if entry is not None else None
            )
            if member.role == "voter":
                for kind in _AFTER_ENROLMENT:
                    self.add(kind, member.name, blocked="it is not enrolled yet", on=(member.name,))
                if not blocked:
                    self.arriving.append(member.name)
        if self.config.undeclared == "open":
            for name in self.picture.heard:
                hello = self.picture.hello(name)
                if self.config.member(name) is None and self.charter.enrolled(name) is None and hello is not None and not self._kept_out(hello):
                    self.add(
                        "enrol", name, charter=self.write(Enrolled(name=name, incarnation=hello.incarnation, address=hello.address))
                    )  # fmt: skip

    def seats(self) -> None:
        """Voters that are enrolled and do not vote yet."""
        learning = next((m.name for m in self.picture.consensus.members if m.learner), "")
        stuck = self.charter.enrolled(learning) if learning and self.picture.hello(learning) is None else None
        unseated = [n for n in self.config.voters if n not in self.seated and self.picture.hello(n) is not None]
        waiting = [n for n in unseated if self.charter.enrolled(n) is not None]
        if stuck is not None and stuck.seat and waiting:
            self.add("yield", learning, charter=self.write(replace(stuck, seat=0)))
        for name in self.config.voters:
            enrolled = self.charter.enrolled(name)
            if enrolled is None:
                continue
            member = self.members.get((name, enrolled.seat)) if enrolled.seat else None
            if member is not None and not member.learner:
                continue
            hello = self.picture.hello(name)
            here = hello is not None and hello.incarnation == enrolled.incarnation
            if here:
                self.arriving.append(name)
            absent: tuple[str, tuple[str, ...]] = ("", ()) if here else ("it is not reachable", (name,))
            if enrolled.seat == 0:
                blocked, on = ("its former member is still there", (name,)) if name in self.seated else absent
                self.add("seat", name, blocked=blocked, on=on, charter=self.write(replace(enrolled, seat=self.charter.revision + 1)))
                for kind in _AFTER_ENROLMENT[1:]:
                    self.add(kind, name, blocked="it has no seat yet", on=(name,))
            elif member is None:
                blocked, on = (f"after {learning}", (learning,)) if learning else absent
                if name in self.seated:
                    blocked, on = "its former member is still there", (name,)
                self.add("add_learner", name, seat=enrolled.seat, blocked=blocked, on=on)
                for kind in _AFTER_ENROLMENT[2:]:
                    self.add(kind, name, seat=enrolled.seat, blocked="it is not a learner yet", on=(name,))
            else:
                ready = hello is not None and hello.seat == enrolled.seat and hello.caught_up
                if not ready:
                    self.add("catch_up", name, seat=enrolled.seat, blocked="its own member does not answer yet", on=(name,))
                self.add("promote", name, seat=enrolled.seat, blocked="" if ready else "it has not caught up", on=() if ready else (name,))

    # ------------------------------------------------------------ out

    def _ordered(self, names: list[str]) -> list[str]:
        """The one that leads comes last: whoever follows it goes on."""
        return sorted(names, key=lambda n: (n == self.picture.consensus.leader, n))

    def _out(self, name: str, seat: int) -> tuple[str, tuple[str, ...]]:
        blocked, on = self.unsafe(name, seat)
        member = self.members.get((name, seat))
        if not blocked and member is not None and not member.learner and self.answers(member):
            coming = tuple(n for n in self.arriving if n != name)
            if coming:
                return f"after {', '.join(coming)}", coming
        return blocked, on

    def demoted(self) -> None:
        """Members whose role is observer now."""
        kept = {m.name for m in self.config.members if m.role == "observer"}
        if self.config.undeclared == "open":
            kept |= {e.name for e in self.charter.roster if self.config.member(e.name) is None}
        for name in self._ordered([e.name for e in self.charter.roster if e.name in kept and e.seat]):
            enrolled = self.charter.enrolled(name)
            assert enrolled is not None
            if (name, enrolled.seat) in self.members:
                blocked, on = self._out(name, enrolled.seat)
                self.add("demote", name, seat=enrolled.seat, blocked=blocked, on=on)
                self.add("release", name, blocked="its member is still there", on=(name,))
            else:
                self.add("release", name, charter=self.write(replace(enrolled, seat=0)))

    def removed(self) -> None:
        """Members that the config does not list any more."""
        if self.config.undeclared == "open":
            return
        for name in self._ordered([e.name for e in self.charter.roster if self.config.member(e.name) is None]):
            enrolled = self.charter.enrolled(name)
            assert enrolled is not None
            gone = Gone(name=name, incarnation=enrolled.incarnation, version=self.config.version, address=enrolled.address)
            drained = name in self.picture.drained
            if not drained:
                self.add("drain", name)
            if (name, enrolled.seat) in self.members:
                blocked, on = self._out(name, enrolled.seat) if drained else ("it is not drained yet", (name,))
                self.add("remove", name, seat=enrolled.seat, blocked=blocked, on=on)
                self.add("strike", name, blocked="its member is still there", on=(name,))
            else:
                self.add(
                    "strike", name, blocked="" if drained else "it is not drained yet", charter=self.write(None, without=name, gone=gone)
                )  # fmt: skip
