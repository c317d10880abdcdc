"""How many copies a partition has: missing ones are made, copies of brokers that are gone for good are made elsewhere, surplus ones are given up.

Owns the course of a copy: a learner is named here, together with the replica it comes for; the owner makes it a replica once it holds everything,
then takes the other out. So at no time are there fewer copies than before. Only where the owner serves: nobody can catch up otherwise.

Invariant: replicas that stay and learners are as many as wanted, once there are brokers enough; each such change brings the count closer.
"""

from msgspec.structs import replace

from headrace.core.control.changes import Kind
from headrace.core.control.draft import Draft
from headrace.core.control.ownership import is_pinned, refusal
from headrace.core.control.picture import Stored
from headrace.core.control.placement import collisions, staying
from headrace.model.cluster import COPIES_MAX, NOBODY, Assignment, BrokerId


def mend(draft: Draft) -> None:
    """Brings every served partition closer to its number of copies; those with the fewest live copies go first."""
    served = [s for s in draft.untouched() if draft.served(s.assignment)]
    for stored in sorted(served, key=lambda s: sum(1 for b in s.assignment.replicas if draft.broker(b).alive)):
        a = stored.assignment
        wanted = draft.number[a.partition][0].factor
        if any(draft.broker(b).state == "dead" or b in draft.emptied for b in a.learners):
            _drop(draft, stored, wanted)
            continue
        sound = [b for b in a.replicas if b not in a.leaving and not is_gone(draft, a, b)]
        count = len(sound) + len(a.learners)
        if count < wanted:
            _make(draft, stored, sound, wanted - count)
        elif len(staying(a)) > wanted and not a.learners:
            _give_up(draft, stored)


def is_gone(draft: Draft, a: Assignment, broker: BrokerId) -> bool:
    """Whether the copy on ``broker`` does not count any more: lost for so long, or about to be taken away."""
    return (draft.broker(broker).lost or broker in draft.emptied) and not is_pinned(a, broker)


def _drop(draft: Draft, stored: Stored, wanted: int) -> None:
    """Gives up learners that will not arrive; who should have left for them stays if it is needed."""
    a = stored.assignment
    dropped = [b for b in a.learners if draft.broker(b).state == "dead" or b in draft.emptied]
    learners = tuple(b for b in a.learners if b not in dropped)
    missing = max(0, wanted - (len(a.replicas) - len(a.leaving) + len(learners)))
    kept = [b for b in a.leaving if not is_gone(draft, a, b)][:missing]
    preferred = NOBODY if a.preferred in dropped else a.preferred
    reason = f"{draft.label(a)} is not copied to {draft.names(dropped)} any more: {draft.broker(dropped[0]).reason}"
    if dropped[0] in draft.emptied:
        reason = f"{draft.label(a)} is not copied to {draft.names(dropped)} any more, which is to be emptied"
    new = replace(a, learners=learners, leaving=tuple(b for b in a.leaving if b not in kept), preferred=preferred)
    draft.change(stored, new, act="drop", reason=reason)


def _make(draft: Draft, stored: Stored, sound: list[BrokerId], need: int) -> None:
    a = stored.assignment
    back = [b for b in a.leaving if not is_gone(draft, a, b)][:need]
    if back and not a.learners:
        reason = f"{draft.label(a)} stays on {draft.names(back)}: it would have too few copies otherwise"
        draft.change(stored, replace(a, leaving=tuple(b for b in a.leaving if b not in back)), act="keep", reason=reason)
        return
    item, number = draft.number[a.partition]
    preference = draft.books.order(item.id, number)
    learners: list[BrokerId] = []
    room = COPIES_MAX - len(a.replicas) - len(a.learners)
    for _ in range(min(need, max(0, room))):
        taken = [*a.copies, *learners]
        chosen = draft.books.choose(a.item, preference, taken, beside=[*sound, *a.learners, *learners])
        if chosen is None:
            break
        learners.append(chosen)
    gone = [b for b in a.replicas if b not in a.leaving and is_gone(draft, a, b)]
    if len(learners) < need:
        kind: Kind = "stays" if any(b in draft.emptied for b in gone) else "under_replicated"
        have = len(sound) + len(a.learners) + len(learners)
        draft.find(kind, a.partition, f"{draft.label(a)} has {have} of {item.factor} copies: {refusal(draft)}", tuple(gone))
    if not learners or draft.moves_left() == 0:
        return
    replaced = gone[: len(learners)]
    names = f"{draft.names(learners)} {'copies' if len(learners) == 1 else 'copy'}"
    gone_are = f"{draft.names(replaced)} {'is' if len(replaced) == 1 else 'are'}"
    if replaced and replaced[0] in draft.emptied:
        reason = f"{names} {draft.label(a)} because {gone_are} being emptied"
    elif replaced:
        reason = f"{names} {draft.label(a)} because {gone_are} dead ({draft.broker(replaced[0]).reason})"
    else:
        reason = f"{names} {draft.label(a)}, which has {len(sound) + len(a.learners)} of {item.factor} copies"
    new = replace(a, learners=(*a.learners, *learners), leaving=(*a.leaving, *replaced))
    if a.preferred in replaced:
        new = replace(new, preferred=learners[replaced.index(a.preferred)])
    draft.change(stored, new, act="copy", reason=reason)


def _give_up(draft: Draft, stored: Stored) -> None:
    """Asks the copy that is missed least to leave: never the owner, and no member without whom the partition could not commit."""
    a = stored.assignment
    places = draft.books.places
    ranked: list[tuple[tuple[bool | int, ...], BrokerId]] = []
    for position, id in enumerate(a.replicas):
        if id == a.owner or id in a.leaving or not may_leave(draft, a, id):
            continue
        broker = draft.broker(id)
        spread = collisions(places[b] for b in staying(a) if b != id)
        kept = (not is_gone(draft, a, id), not broker.lost, broker.state != "dead", *spread, id == a.preferred, -draft.books.copies[id], -position)
        ranked.append((kept, id))
    if ranked:
        victim = min(ranked)[1]
        reason = f"{draft.broker(victim).name} gives up its copy of {draft.label(a)}, which has more than it needs"
        preferred = a.owner if victim == a.preferred else a.preferred
        draft.change(stored, replace(a, leaving=(*a.leaving, victim), preferred=preferred), act="leave", reason=reason)


def may_leave(draft: Draft, a: Assignment, broker: BrokerId) -> bool:
    """Whether the members without ``broker`` could still commit and recover."""
    if a.level == "majority_durable":
        rest = [b for b in a.replicas if b not in (broker, *a.leaving)]
        return sum(1 for b in rest if draft.broker(b).alive) > len(rest) // 2
    if a.level == "replica_durable":
        isr = [b for b in a.isr if b not in (broker, *a.leaving)]
        return broker not in a.elr and (broker not in a.isr or len(isr) >= min(a.floor, len(a.isr)))
    return True
