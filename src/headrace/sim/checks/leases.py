"""What holds for deliveries and settlements of queues: I9, I10, order by key, dead letters.

Times are those of clients: a delivery may arrive long after it was sent, and after things that happened later. Attempts and epochs do not have that
weakness: within an epoch each grant of a place has an attempt of its own unless the one before never reached an application; over epochs the count
goes on. So what is said here about order is said of attempts wherever it can be.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from headrace.sim.checks.seen import TERMINAL, Place, Seen, Violation, place_text
from headrace.sim.history import Arrival, Delivery, Settle

EPSILON_S = 0.002
"""Deadlines are kept in whole milliseconds."""
LOOKS: Final = ("describe", "inspect")
"""Verbs that change nothing."""


def sound_places(seen: Seen) -> Iterator[tuple[Place, list[Arrival]]]:
    for place, arrivals in seen.arrivals.items():
        if seen.sound(place[0], place[1]):
            yield place, arrivals


def unexplained(seen: Seen) -> Iterator[Violation]:
    """I9: a second attempt needs a reason: a retry, a lease that may have run out, a consumer that left or lost its connection."""
    lease_s = {name: _shortest_lease(seen, name) for name in seen.specs if seen.is_queue(name)}
    gone = {name: _departure(seen, name) for name in lease_s}
    for place, arrivals in sound_places(seen):
        name = place[0]
        limits = [spec.max_deliveries for spec in seen.queue_specs(name)]
        for arrival in arrivals:
            if all(limits) and limits and arrival.attempt > max(limits):
                yield Violation("I9", f"{place_text(place)}: attempt {arrival.attempt} {arrival.at:.4f} s, the most are {max(limits)}")
            if arrival.attempt < 1:
                yield Violation("I9", f"{place_text(place)}: attempt {arrival.attempt} {arrival.at:.4f} s")
            if arrival.attempt < 2:
                continue
            if any(s.action == "retry" and s.at <= arrival.at for s in seen.settles.get(place, ())):
                continue
            if arrival.at - _posted(seen, place) >= lease_s.get(name, 0.0) - EPSILON_S or gone.get(name, arrival.at + 1) <= arrival.at:
                continue
            yield Violation(
                "I9",
                f"{place_text(place)}: attempt {arrival.attempt} arrived at consumer {arrival.consumer} {arrival.at:.4f} s, and nobody retried it, "
                f"no lease can have run out, no consumer was gone: {_story(seen, place)}",
            )


def _shortest_lease(seen: Seen, name: str) -> float:
    leases = [spec.lease_ms for spec in seen.queue_specs(name)]
    leases += [a.lease_ms for a in seen.attached.values() if a.name == name and a.lease_ms]
    return min(leases, default=0) / 1000


def _departure(seen: Seen, name: str) -> float:
    """When a consumer of a queue was first gone, or partitions were taken from one."""
    found: list[float] = []
    clients: dict[str, float] = {}
    for a in seen.attached.values():
        if a.name == name:
            clients[a.client] = min(a.at, clients.get(a.client, a.at))
            found.append(a.at if a.group else min(a.leaving, a.until))
    found += [link.at for link in seen.history.links if not link.up and link.client in clients and link.at >= clients[link.client]]
    found += [v.at for v in seen.verbs(name, "purge_leased")]
    return min(found, default=float("inf"))


def _posted(seen: Seen, place: Place) -> float:
    """The earliest time at which it can have been granted."""
    for delivery in seen.deliveries.get(place, ()):
        publish = seen.publishes.get(delivery.id)
        return publish.at if publish is not None else 0.0
    return 0.0


def _story(seen: Seen, place: Place) -> str:
    rows = [(a.at, f"attempt {a.attempt} of epoch {a.epoch} arrived at consumer {a.consumer} {a.at:.4f} s") for a in seen.arrivals.get(place, ())]
    rows += [(s.at, repr(s)) for s in seen.settles.get(place, ())]
    ids = [d.id for d in seen.deliveries.get(place, ())]
    publish = seen.publishes.get(ids[0]) if ids else None
    return "; ".join([repr(publish), *(text for _, text in sorted(rows))])


def _given_again(seen: Seen, d: Delivery) -> bool:
    """Whether that attempt of an auto-acked message arrived in an older epoch too: what a crash took back is sent again, and both are handed out."""
    return any(a.attempt == d.attempt and a.epoch < d.epoch for a in seen.arrivals.get((d.name, d.partition, d.offset), ()))


def leased_twice(seen: Seen) -> Iterator[Violation]:
    """I10: within an epoch no attempt is handed to an application twice; what is done does not come again."""
    for place, deliveries in seen.deliveries.items():
        if not seen.sound(place[0], place[1]):
            continue
        grants: dict[tuple[int, int], Delivery] = {}
        for d in deliveries:
            first = grants.setdefault((d.epoch, d.attempt), d)
            if first is not d and not (d.auto_ack and _given_again(seen, d)):
                yield Violation(
                    "I10",
                    f"{place_text(place)}: attempt {d.attempt} of epoch {d.epoch} was handed to consumer {first.consumer} {first.at:.4f} s and to "
                    f"consumer {d.consumer} {d.at:.4f} s: {_story(seen, place)}",
                )
        settles = seen.settles.get(place, ())
        certain = [s for s in settles if s.result == "done" and s.action in TERMINAL]
        if len({s.consumer for s in certain}) > 1:
            yield Violation("I10", f"{place_text(place)} was settled by more than one consumer: {_story(seen, place)}")
        for s in settles:
            if s.result == "done":
                yield from _after(seen, place, s, deliveries)


def _after(seen: Seen, place: Place, settle: Settle, deliveries: list[Delivery]) -> Iterator[Violation]:
    """What may not come once a settlement was confirmed."""
    epoch = next((d.epoch for d in deliveries if d.consumer == settle.consumer and d.attempt == settle.attempt), 0)
    who = seen.attached.get(settle.consumer)
    # Sent, or sent again, to a broker that had lost this grant in a crash, it settles the one before, which was durable.
    certain = who is None or not (seen.without_link(who.client, settle.at) or seen.broken_between(who.client, settle.at, settle.told_at))
    # Granted before it was settled, these may still be on their way over another connection.
    granted = settle.leased.attempt if settle.leased is not None and settle.leased.epoch == epoch else settle.attempt
    arrivals = seen.arrivals.get(place, ())
    granted = max([granted, *(a.attempt for a in arrivals if a.epoch == epoch and a.at <= settle.told_at)])
    for a in arrivals:
        if a.at <= settle.told_at:
            continue
        if settle.action in TERMINAL and (a.attempt > max(settle.attempt, granted) or a.epoch > epoch):
            yield Violation(
                "I10", f"{place_text(place)} came again {a.at:.4f} s (attempt {a.attempt}, epoch {a.epoch}) after {settle!r}: {_story(seen, place)}"
            )
            return
        if settle.action == "retry" and a.epoch > epoch and a.attempt < settle.attempt + certain:
            yield Violation("I9", f"{place_text(place)}: attempt {a.attempt} {a.at:.4f} s after {settle!r}: {_story(seen, place)}")
            return


def settled_for_others(seen: Seen) -> Iterator[Violation]:
    """I10: while one consumer certainly has a message, nobody else's settlement or extension of it counts.

    "Certainly" is what the broker's own lease says when the settlement is sent, and that nothing can have ended it early until the answer came: its
    holder neither settled, left, nor lost a connection, no operator took it away. Who has a lease by an attempt is told by where that one arrived.
    """
    for place, settles in seen.settles.items():
        if not seen.sound(place[0], place[1]):
            continue
        for s in settles:
            if s.result != "done" or s.leased is None or s.told_at >= s.leased.until - EPSILON_S:
                continue
            holders = [a for a in seen.arrivals.get(place, ()) if (a.attempt, a.epoch) == (s.leased.attempt, s.leased.epoch)]
            if len(holders) == 1 and holders[0].consumer != s.consumer and _keeps(seen, place, holders[0], s):
                had = f"{place_text(place)}: consumer {holders[0].consumer} had it"
                yield Violation("I10", f"{had}, and yet it counted: {s!r}: {_story(seen, place)}")


def _keeps(seen: Seen, place: Place, holder: Arrival, settle: Settle) -> bool:
    """Whether the lease of that arrival cannot have ended early before ``settle``, of another consumer, was answered."""
    who, other = seen.attached.get(holder.consumer), seen.attached.get(settle.consumer)
    if who is None or other is None or who.group or other.group or holder.at > settle.at or who.leaving <= settle.told_at:
        return False
    if seen.broken_between(who.client, holder.at, who.until) or seen.broken_between(other.client, settle.at, settle.told_at):
        return False
    if any(s.consumer == holder.consumer and s.at <= settle.told_at for s in seen.settles.get(place, ())):
        return False
    verbs = (v for v in seen.history.verbs if v.name == place[0] and v.verb not in LOOKS)
    return not any(v.at <= settle.told_at and v.told_at >= holder.at for v in verbs)


def key_order(seen: Seen) -> Iterator[Violation]:
    """Of a key's messages in a queue ordered by key, one is delivered only when those before it are through, retries included."""
    lines: dict[tuple[str, int, str], list[int]] = {}
    ordered = {name: None for name in seen.specs if any(spec.ordered_by_key for spec in seen.queue_specs(name))}
    for place, deliveries in seen.deliveries.items():
        publish = seen.publishes.get(deliveries[0].id)
        if place[0] not in ordered or publish is None or publish.key is None or publish.name != place[0] or not seen.sound(place[0], place[1]):
            continue
        if not publish.delay_ms and not publish.priority:
            lines.setdefault((place[0], place[1], publish.key), []).append(place[2])
    for (name, partition, key), offsets in lines.items():
        offsets.sort()
        for low, high in pairwise(offsets):
            yield from _overtaken(seen, key, (name, partition, low), (name, partition, high))


def _overtaken(seen: Seen, key: str, low: Place, high: Place) -> Iterator[Violation]:
    first: dict[int, Arrival] = {}
    for a in seen.arrivals.get(high, ()):
        if a.epoch not in first or a.at < first[a.epoch].at:
            first[a.epoch] = a
    for a in seen.arrivals.get(low, ()):
        later = first.get(a.epoch)
        if later is None or a.at <= later.at or a.auto_ack:  # acked when it was sent, it is through before it arrives
            continue
        before = max((b.attempt for b in seen.arrivals[low] if b.at <= later.at), default=0)
        limit = max((spec.max_deliveries for spec in seen.queue_specs(low[0])), default=0)
        # what its consumer settled before it arrived there, of an earlier attempt, may have ended this one
        through = any(s.consumer == a.consumer and s.action in TERMINAL and s.at <= a.at for s in seen.settles.get(low, ()))
        # its lease ran out while it was on its way, and it was too old by then to be given again
        through = through or later.at - _posted(seen, low) >= _lifetime_s(seen, low) - EPSILON_S
        if a.attempt > before and a.attempt != limit and not through:
            yield Violation(
                "key order",
                f"key {key!r}: {place_text(high)} arrived at consumer {later.consumer} {later.at:.4f} s, before {place_text(low)} was through, which "
                f"came (attempt {a.attempt}) {a.at:.4f} s: {_story(seen, low)} | {_story(seen, high)}",
            )
            return


def _lifetime_s(seen: Seen, place: Place) -> float:
    """How long a message may be there at least, before it expires."""
    limits = [ms for spec in seen.queue_specs(place[0]) for ms in (spec.ttl_ms, spec.max_age_ms)]
    limits += [seen.publishes[d.id].ttl_ms for d in seen.deliveries.get(place, ())[:1] if d.id in seen.publishes]
    return min((ms for ms in limits if ms), default=float("inf")) / 1000


def dead_letters(seen: Seen) -> Iterator[Violation]:
    """What died is among the dead letters once for each of its copies that died, and for a reason that there was."""
    graves: dict[tuple[str, int], list[Delivery]] = {}
    for deliveries in seen.deliveries.values():
        first = deliveries[0]
        if first.reason and seen.sound(first.name, first.partition) and first.id in seen.publishes:
            graves.setdefault((first.name, first.id), []).append(first)
    for (name, id), found in graves.items():
        publish = seen.publishes[id]
        if publish.name == name or seen.verbs(name, "redrive", "move"):
            continue
        sources = [p for p in seen.copies.get(id, {}) if p[0] != name]
        # what died, and was not confirmed when its queue was made anew, is sent again to the new one
        lives = len(seen.verbs(publish.name, "recreate"))
        most = max(1, len(sources)) + lives if publish.idempotent and not any(seen.damage) else 1 << 30
        if len(found) > most:
            yield Violation("dead letters", f"{len(found)} times in {name!r}, from {len(sources)} copies: {seen.describe(id)}")
        for d in found:
            if not _reasonable(seen, d, publish.ttl_ms):
                yield Violation(
                    "dead letters", f"{d.name}/{d.partition}/{d.offset} says it died of {d.reason!r} in {d.origin!r}, where nothing dies of that: "
                    f"{seen.describe(id)}",
                )  # fmt: skip


def _reasonable(seen: Seen, d: Delivery, ttl_ms: int) -> bool:
    specs = seen.queue_specs(d.origin)
    if d.reason == "rejected":
        return any(s.action == "reject" and s.id == d.id for place in seen.copies.get(d.id, {}) for s in seen.settles.get(place, ()))
    if d.reason == "max-deliveries":
        return any(spec.max_deliveries for spec in specs)
    if d.reason == "expired":
        return bool(ttl_ms) or any(spec.ttl_ms or spec.max_age_ms for spec in specs)
    return d.reason == "overflow" and any(spec.overflow == "dead_letter_oldest" for spec in specs)


def lost_at_a_restart(seen: Seen) -> Iterator[Violation]:
    """Leases and delivery counts survive a restart, if they are durable: something published after them was delivered before it."""
    newest: dict[tuple[str, int, int], float] = {}
    for d in seen.history.deliveries:
        publish = seen.publishes.get(d.id)
        if publish is not None and publish.name == d.name:
            key = (d.name, d.partition, d.epoch)
            newest[key] = max(publish.at, newest.get(key, 0.0))
    for place, deliveries in seen.deliveries.items():
        if not seen.sound(place[0], place[1]) or seen.verbs(place[0], "purge_leased"):
            continue
        for d in deliveries:
            later = [a for a in seen.arrivals.get(place, ()) if a.epoch > d.epoch]
            if not later or d.auto_ack or newest.get((d.name, d.partition, d.epoch), 0.0) <= d.at:
                continue
            beaten = any(a.attempt > d.attempt and a.epoch == d.epoch for a in seen.arrivals.get(place, ()))
            for a in later:
                if a.attempt < d.attempt or (a.attempt == d.attempt and a.consumer != d.consumer and not beaten):
                    text = f"attempt {a.attempt} of epoch {a.epoch}, attempt {d.attempt} of epoch {d.epoch} was durable"
                    yield Violation("I9", f"{place_text(place)}: {text}: {_story(seen, place)}")
                    return
