"""Election with accepted loss: the one way by which a replica that may lack confirmed messages becomes owner.

Owns what an operator must have been shown and must accept, and the record that permits the others to cut their journals below a high watermark
(``Forced``). Never part of a plan: only an operator's word starts it.

It is refused while somebody who holds everything is alive, and if the partition has changed since the operator looked.
"""

import msgspec
from msgspec.structs import replace

from headrace.core.control.changes import Change, changed
from headrace.core.control.draft import Draft
from headrace.core.control.picture import Picture, Stored
from headrace.model.cluster import COPIES_MAX, FORCED_MAX, Assignment, BrokerId, Forced
from headrace.model.errors import Conflict, NotFound
from headrace.model.ids import Epoch, Index, PartitionId


class Tail(msgspec.Struct, frozen=True):
    """The end of one replica's journal as it reported it, and the highest epoch it has promised."""

    broker: BrokerId
    epoch: Epoch
    index: Index
    promised: Epoch


class Risk(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown before loss is accepted."""

    partition: PartitionId
    version: int
    """Of the assignment that was looked at; the acceptance must name it."""
    chosen: BrokerId
    given_up: tuple[BrokerId, ...]
    """Members whose confirmed messages may be lost: nobody could ask them."""
    reason: str


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's word: this loss, at this version."""

    version: int
    chosen: BrokerId
    accepted_by: str


def risk(picture: Picture, partition: PartitionId, chosen: BrokerId, tails: tuple[Tail, ...]) -> Risk:
    """What electing ``chosen`` may cost. ``NotFound`` or ``Conflict`` (nothing was changed) where it is impossible or needless."""
    draft = Draft(picture)
    a = _find(draft, partition).assignment
    _check(draft, a, chosen, tails)
    given_up = tuple(b for b in (a.replicas if a.level == "majority_durable" else (*a.isr, *a.elr) or (a.owner,)) if b != chosen)
    tail = next(t for t in tails if t.broker == chosen)
    unseen = [b for b in given_up if all(t.broker != b for t in tails)]
    beyond = [t for t in tails if t.broker != chosen and (t.epoch, t.index) > (tail.epoch, tail.index)]
    reason = f"{draft.broker(chosen).name} holds {draft.label(a)} up to entry {tail.index} of epoch {tail.epoch}"
    if unseen:
        reason += f"; whatever only {draft.names(unseen)} holds beyond that is lost, confirmed messages too"
    for t in sorted(beyond, key=lambda t: t.broker):
        reason += f"; {draft.broker(t.broker).name} holds entries up to {t.index} of epoch {t.epoch}, which would be set aside"
    return Risk(partition=partition, version=a.version, chosen=chosen, given_up=given_up, reason=reason)


def force(picture: Picture, shown: Risk, acceptance: Acceptance, tails: tuple[Tail, ...]) -> Change:
    """The election as a change. ``Conflict`` if it is needless, or not what was accepted."""
    draft = Draft(picture)
    stored = _find(draft, shown.partition)
    a = stored.assignment
    if not a.version == shown.version == acceptance.version or shown.chosen != acceptance.chosen:
        what = f"{draft.label(a)} has changed since its risk was shown (version {shown.version}, now {a.version})"
        raise Conflict(what, hint="look again, then accept")
    _check(draft, a, shown.chosen, tails)
    chosen = shown.chosen
    tail = next(t for t in tails if t.broker == chosen)
    epoch = Epoch(max(a.epoch, *(t.promised for t in tails)) + 1)
    forced = Forced(epoch=epoch, base=tail.index, base_epoch=tail.epoch, accepted_by=acceptance.accepted_by, without=shown.given_up)
    replicas = a.replicas if chosen in a.replicas else (*a.replicas, chosen)[-COPIES_MAX:]
    learners = tuple(b for b in a.learners if b != chosen)
    if a.level == "majority_durable":
        learners = (*learners, *(b for b in replicas if b != chosen))[:COPIES_MAX]
        replicas = (chosen,)
    new = replace(
        a,
        owner=chosen,
        epoch=epoch,
        incarnation=draft.broker(chosen).seen.incarnation,
        replicas=replicas,
        isr=(chosen,) if a.level == "replica_durable" else (),
        elr=(),
        learners=learners,
        leaving=tuple(b for b in a.leaving if b in replicas and b != chosen),
        preferred=a.preferred if a.preferred in (*replicas, *learners) else chosen,
        forced=(*a.forced, forced)[-FORCED_MAX:],
    )
    reason = f"{draft.broker(chosen).name} owns {draft.label(a)} from epoch {epoch} because {acceptance.accepted_by} accepted loss: {shown.reason}"
    return changed(a, new, act="force", stored_version=stored.stored_version, reason=reason)


def _find(draft: Draft, partition: PartitionId) -> Stored:
    for stored in draft.stored:
        if stored.assignment.partition == partition:
            return stored
    raise NotFound(f"partition {partition} has no assignment", hint="look at `headrace topology`")


def _check(draft: Draft, a: Assignment, chosen: BrokerId, tails: tuple[Tail, ...]) -> None:
    if chosen not in a.copies:
        raise Conflict(f"{chosen} holds no copy of {draft.label(a)}", hint=f"choose one of {', '.join(a.copies)}")
    broker = draft.broker(chosen)
    if not broker.alive or all(t.broker != chosen for t in tails):
        raise Conflict(f"{broker.name} cannot be asked what it holds: {broker.reason}", hint="choose a live replica that answers")
    if a.partition in broker.seen.unfit:
        raise Conflict(f"{broker.name} calls its copy of {draft.label(a)} damaged", hint="repair it first: `headrace quarantine repair`")
    able = [b for b in a.electable if draft.in_sync(a, b)]
    needless = len(able) >= a.recovery_quorum if a.level == "majority_durable" else bool(able)
    if needless:
        raise Conflict(f"{draft.names(able)} can serve {draft.label(a)} without loss", hint="wait for the controller, or repair what keeps it")
