"""Who must hold an entry before it is committed: (members, k), from an assignment.

Owns this arithmetic, nothing that changes. A commit quorum is k members, a recovery quorum n - k + 1 of the recorded ones: any two share a broker.

C1 k + recovery quorum > members, for each level. C2 Nothing is committed while a replica_durable partition has fewer in-sync replicas than its
floor, or keeps an elr: those in it hold everything only because nothing was committed without them.
"""

from collections.abc import Callable, Sequence

import msgspec

from headrace.model.cluster import Assignment, BrokerId

NEVER = -1
"""As an end: nothing may be committed."""


class Configuration(msgspec.Struct, frozen=True):
    """A commit quorum."""

    members: tuple[BrokerId, ...]
    k: int
    frozen: bool
    """Below the floor: the high watermark stays where it is."""

    def held(self, held: Callable[[BrokerId], int]) -> int:
        """Exclusive end of what ``k`` members hold durably, the floor aside."""
        if self.k == len(self.members):
            return min(map(held, self.members))
        return sorted(map(held, self.members), reverse=True)[self.k - 1]

    def committed(self, held: Callable[[BrokerId], int]) -> int:
        """As ``held``; ``NEVER`` below the floor."""
        return NEVER if self.frozen else self.held(held)


def configuration(assignment: Assignment) -> Configuration:
    """The commit quorum that ``assignment`` records."""
    members = assignment.members
    frozen = assignment.level == "replica_durable" and (len(members) < assignment.floor or bool(assignment.elr))
    return Configuration(members, assignment.k, frozen)


def committed(configurations: Sequence[Configuration], held: Callable[[BrokerId], int]) -> int:
    """Exclusive end of what is committed when ALL of these are required, as while a change of members is in flight."""
    if len(configurations) == 1:
        return configurations[0].committed(held)
    return min(c.committed(held) for c in configurations)


def recorded(assignment: Assignment) -> tuple[BrokerId, ...]:
    """Those whose answers a new owner counts: isr and elr, or the members where there is no isr."""
    if assignment.level == "replica_durable":
        return assignment.isr + assignment.elr
    return assignment.members


def majority(assignment: Assignment, held: Callable[[BrokerId], int]) -> int:
    """Exclusive end of what more than half of the replicas hold durably."""
    replicas = assignment.replicas
    return sorted(map(held, replicas), reverse=True)[len(replicas) // 2]


def only_fewer(old: Assignment, new: Assignment) -> bool:
    """Whether ``new`` only takes members out of an isr: those that stay hold all that is committed, known to the owner already or not."""
    if old.level != new.level or old.level != "replica_durable":
        return False
    return set(new.isr) <= set(old.isr) and set(new.elr) <= {*old.isr, *old.elr}
