"""Who serves a partition: first assignments, replacing the dead, handing over from those that go, going back to the preferred owner.

Owns the one rule that keeps confirmed messages: a new owner is a member recorded as in sync (isr, then elr), for majority_durable any replica while
enough of them live to recover, for local_durable nobody else ever. Knows no loads beyond the number of partitions a broker serves.

Of several candidates: isr before elr, those that stay before those that go, those settled before those just back, the preferred one, the one that
serves the fewest. A broker that is just back is taken only where no other may serve.
"""

from msgspec.structs import replace

from headrace.core.control.draft import Draft
from headrace.core.control.picture import Item
from headrace.model.cluster import NOBODY, REASON_CHARACTERS_MAX, Assignment, BrokerId, with_isr
from headrace.model.ids import Epoch, PartitionId

NEW_PER_PLAN_MAX = 1024


def take_over(draft: Draft) -> None:
    """Replaces every owner that is dead, where it may be replaced."""
    for stored in draft.untouched():
        a = stored.assignment
        owner = draft.broker(a.owner)
        if owner.state != "dead":
            if draft.lacks_majority(a):
                _unavailable(draft, a, "too many of its replicas are dead")
            continue
        chosen = _best(draft, a)
        if chosen is None:
            _unavailable(draft, a, f"its owner {owner.name} is dead ({owner.reason})")
            continue
        why = f"{owner.name} is dead ({owner.reason})"
        draft.change(stored, elected(draft, a, chosen), act="takeover", reason=_sentence(draft, a, chosen, why))


def hand_over(draft: Draft) -> None:
    """Moves ownership off brokers that go or whose copy is damaged, while they live."""
    for stored in draft.untouched():
        a = stored.assignment
        owner = draft.broker(a.owner)
        unfit = a.partition in owner.seen.unfit
        if owner.state == "dead":
            continue
        if unfit:
            why = f"{owner.name} calls its copy damaged"
        elif owner.draining:
            why = f"{owner.name} drains"
        elif a.owner in draft.emptied:
            why = f"{owner.name} is being emptied"
        elif a.owner in a.leaving and not a.learners:
            why = f"{owner.name} gives up its copy"
        else:
            continue
        chosen = _best(draft, a, staying_only=True)
        if chosen is not None:
            draft.change(stored, elected(draft, a, chosen), act="handover", reason=_sentence(draft, a, chosen, why))
        elif unfit:
            _unavailable(draft, a, why)
        elif a.level == "local_durable" and a.owner in draft.emptied:
            what = f"{draft.label(a)} stays on {owner.name}"
            draft.find("stays", a.partition, f"{what}: a local_durable partition is never served elsewhere; alter it first")
        elif a.level != "local_durable":
            draft.find("stays", a.partition, f"{draft.label(a)} stays on {owner.name} although {why}: no other live replica is in sync", a.electable)


def assign_new(draft: Draft) -> None:
    """Places the partitions that have no assignment yet."""
    known = {s.assignment.partition for s in draft.stored}
    new = [(i, n, p) for i in draft.items for n, p in enumerate(i.partitions) if p not in known and p not in draft.picture.deleted]
    new = new[:NEW_PER_PLAN_MAX]
    books = draft.books
    for item, number, partition in new:
        replicas: list[BrokerId] = []
        preference = books.order(item.id, number)
        for _ in range(min(item.factor, len(books.open))):
            chosen = books.choose(item.name, preference, replicas, first=not replicas)
            if chosen is None:
                break
            replicas.append(chosen)
        if replicas:
            _create(draft, item, number, partition, replicas)
        elif not books.open:
            draft.find("unavailable", partition, f"partition {number} of {item.name} has no owner: no live broker may be given anything")
        else:
            draft.find("refused", partition, f"partition {number} of {item.name} has no owner: {refusal(draft)}")


def restore_preferred(draft: Draft) -> None:
    """Gives partitions back to their preferred owners, a few at a time, and only to those against whom nothing has spoken for a while."""
    left = draft.handovers_left() if draft.settings.rebalance else 0
    for stored in draft.untouched():
        a = stored.assignment
        if not left:
            return
        if a.preferred in (NOBODY, a.owner) or a.preferred in a.leaving or not draft.served(a) or not draft.in_sync(a, a.preferred):
            continue
        preferred = draft.broker(a.preferred)
        back = not preferred.seen.returned or preferred.at_home_ms >= draft.settings.preferred_after_ms
        if not draft.is_open(preferred) or not preferred.steady or not back or a.preferred in a.elr:
            continue
        why = f"it is the preferred owner and in sync, in place of {draft.broker(a.owner).name}"
        draft.change(stored, elected(draft, a, a.preferred), act="restore", reason=_sentence(draft, a, a.preferred, why))
        left -= 1


def elected(draft: Draft, a: Assignment, chosen: BrokerId) -> Assignment:
    """``a`` with its next owner, in the next epoch: the isr loses the dead and the damaged, who stay electable below the floor unless damaged."""
    new = replace(a, owner=chosen, epoch=Epoch(a.epoch + 1), incarnation=draft.broker(chosen).seen.incarnation)
    if a.level != "replica_durable":
        return new
    assert chosen in a.electable
    unfit = {b for b in a.replicas if a.partition in draft.broker(b).seen.unfit}
    stay = [b for b in a.isr if b not in unfit and draft.broker(b).state != "dead"]
    new = with_isr(new, [*stay, chosen])
    return replace(new, elr=tuple(b for b in new.elr if b not in unfit))


def refusal(draft: Draft) -> str:
    """Why no broker can take one more copy."""
    cap = draft.settings.copies_per_broker_max
    if cap and draft.books.open and not any(draft.books.under_cap(b) for b in draft.books.open):
        return f"all {len(draft.books.open)} brokers that may be given something are at the cap of {cap} copies; raise it or add a broker"
    return f"each of the {len(draft.books.open)} brokers that may be given something has a copy or is at its cap"


def _best(draft: Draft, a: Assignment, *, staying_only: bool = False) -> BrokerId | None:
    """The candidate to follow the owner. ``staying_only``: not one that goes itself."""
    alive = [b for b in a.replicas if draft.broker(b).state != "dead"]
    if a.level == "majority_durable" and len(alive) < a.recovery_quorum:
        return None
    ranked: list[tuple[tuple[int, ...], BrokerId]] = []
    for position, id in enumerate(a.electable):
        broker = draft.broker(id)
        goes = broker.draining or id in draft.emptied or id in a.leaving
        if id == a.owner or not draft.in_sync(a, id) or (goes and staying_only):
            continue
        ranked.append(((id in a.elr, goes, not broker.settled, id != a.preferred, draft.owned[id], position), id))
    return min(ranked)[1] if ranked else None


def _sentence(draft: Draft, a: Assignment, chosen: BrokerId, why: str) -> str:
    holds = "was among the last in sync" if chosen in a.elr else "is a replica" if a.level == "majority_durable" else "is in sync"
    tail = "" if why.startswith("it is") else f" and {draft.broker(chosen).name} {holds}"
    return f"{draft.broker(chosen).name} owns {draft.label(a)} from epoch {a.epoch + 1} because {why}{tail}"


def _unavailable(draft: Draft, a: Assignment, why: str) -> None:
    """Says whom the partition waits for."""
    fit = tuple(b for b in a.electable if a.partition not in draft.broker(b).seen.unfit)
    waits_for = tuple(b for b in fit if not draft.broker(b).alive)
    if a.level == "local_durable":
        rest = f"a local_durable partition is never served elsewhere, so it waits for {draft.names((a.owner,))}"
    elif a.level == "majority_durable":
        alive = sum(1 for b in a.replicas if draft.broker(b).state != "dead")
        needed = max(a.k, a.recovery_quorum)
        rest = f"{alive} of its {len(a.replicas)} replicas live and {needed} are needed, so it waits for one of {draft.names(waits_for)}"
    else:
        behind = [b for b in a.copies if b not in a.electable and draft.broker(b).alive]
        rest = f"no live replica is in sync, so it waits for one of {draft.names(waits_for)}"
        rest += f" ({draft.names(behind)} may lack confirmed messages)" if behind else ""
    draft.find("unavailable", a.partition, f"{draft.label(a)} is unavailable: {why}; {rest}", waits_for)


def _create(draft: Draft, item: Item, number: int, partition: PartitionId, replicas: list[BrokerId]) -> None:
    owner = draft.broker(replicas[0])
    others = f", copied by {draft.names(replicas[1:])}" if replicas[1:] else ""
    reason = f"partition {number} of {item.name} is new and {owner.name} owns it{others}"
    if len(replicas) < item.factor:
        reason += f", {len(replicas)} of {item.factor} copies for want of brokers"
    draft.create(
        Assignment(
            partition=partition,
            item=item.name,
            generation=draft.picture.generation,
            owner=owner.id,
            incarnation=owner.seen.incarnation,
            level=item.level,
            floor=item.floor,
            replicas=tuple(replicas),
            isr=tuple(replicas) if item.level == "replica_durable" else (),
            preferred=owner.id,
            reason=reason[:REASON_CHARACTERS_MAX],
        ),
        reason,
    )


def is_pinned(a: Assignment, broker: BrokerId) -> bool:
    """Whether ``broker``'s copy can go nowhere else."""
    return a.level == "local_durable" and broker == a.owner


def deleted(draft: Draft) -> None:
    """Removes assignments of what was deleted; what is merely absent from the catalogue is kept and reported."""
    for stored in draft.stored:
        a = stored.assignment
        if a.partition in draft.picture.deleted:
            draft.remove(stored, f"partition {a.partition} of {a.item} was deleted")
        elif a.partition not in draft.number:
            what = f"partition {a.partition} of {a.item}"
            draft.find("unknown", a.partition, f"{what} is in no catalogue and no deletion of it is recorded; it is kept as it is")

