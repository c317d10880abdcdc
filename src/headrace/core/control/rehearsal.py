"""The dry run: which changes a picture would lead to, one plan after the other, if nothing else happened.

Owns the simplest picture of an owner that obeys (learners catch up, who should leave leaves, who lives returns to the isr) and of a coordinator that
accepts every change. Decides nothing itself: what it shows is what ``planning`` decides, reasons included.
"""

from msgspec.structs import replace

from headrace.core.control.changes import Change
from headrace.core.control.liveness import judged
from headrace.core.control.picture import Picture, Stored
from headrace.core.control.planning import plan
from headrace.model.cluster import Assignment, BrokerId, with_isr, with_learner_promoted, without_replica

ROUNDS_MAX = 10_000


def rehearse(picture: Picture, *, rounds_max: int = ROUNDS_MAX) -> tuple[tuple[Change, ...], Picture]:
    """All changes in order until there are none, at most ``rounds_max`` plans of them, and the picture they end in."""
    changes: list[Change] = []
    for _ in range(rounds_max):
        made = plan(picture).changes
        changes += made
        after = obeyed(applied(picture, made))
        if after == picture:
            break
        picture = after
    return tuple(changes), picture


def applied(picture: Picture, changes: tuple[Change, ...]) -> Picture:
    """The picture after the coordinator took ``changes``; those decided on another version fail."""
    stored = {s.assignment.partition: s for s in picture.stored}
    for change in changes:
        before = stored.get(change.partition)
        if change.stored_version != (before.stored_version if before else 0):
            continue
        if change.assignment is None:
            stored.pop(change.partition, None)
        else:
            stored[change.partition] = Stored(change.assignment, change.stored_version + 1)
    return replace(picture, stored=tuple(stored[p] for p in sorted(stored)))


def obeyed(picture: Picture) -> Picture:
    """The picture after every live owner did what its assignment asks."""
    brokers, _ = judged(picture)
    alive = frozenset(b.id for b in brokers.values() if b.alive)
    after: list[Stored] = []
    for stored in picture.stored:
        new = as_owner(stored.assignment, alive)
        after.append(stored if new == stored.assignment else Stored(new, stored.stored_version + 1))
    return replace(picture, stored=tuple(after))


def as_owner(a: Assignment, alive: frozenset[BrokerId]) -> Assignment:
    """What the owner of ``a`` makes of it when all who live hold everything; ``a`` itself if it is dead or has nothing to change."""
    if a.owner not in alive:
        return a
    new = a
    if a.level == "replica_durable":
        new = with_isr(new, [b for b in a.replicas if b in alive])
    for learner in a.learners:
        if learner in alive:
            new = with_learner_promoted(new, learner)
    for broker in a.leaving:
        if not new.learners and broker != a.owner and may_go(new, broker):
            new = without_replica(new, broker)
    return new if new == a else replace(new, version=a.version + 1, reason="the owner did what was asked")


def may_go(a: Assignment, broker: BrokerId) -> bool:
    """Whether the owner may take ``broker`` out now: the rest still reaches the floor, and nobody of the elr goes."""
    if a.level != "replica_durable" or broker not in (*a.isr, *a.elr):
        return True
    return broker in a.isr and len(a.isr) - 1 >= min(a.floor, len(a.replicas) - 1)
