"""What holds of times and of order among what is ready: delays, back-off, expiry, extended leases, pauses, priorities.

A broker's times begin when it hears of something and end before a client hears of it, so only one side of each can be checked from outside: nothing
comes too early; and nothing comes too late to a consumer that was not there before it was too late. Where a broker's clock was set, nothing is said.
"""

from collections.abc import Iterator
from itertools import pairwise

from headrace.sim.checks.seen import Place, Seen, Violation, place_text
from headrace.sim.history import CONFIRMED, DONE, Arrival, Publish, Settle, Verb
from headrace.wire.frames import Level

EPSILON_S = 0.003
"""Times are whole milliseconds on the wire and in the journal."""


def own_places(seen: Seen) -> Iterator[tuple[Place, Publish, list[Arrival]]]:
    """Places of messages where they were published (not where they were moved to), with their arrivals."""
    for id, copies in seen.copies.items():
        publish = seen.publishes.get(id)
        for place in copies:
            if publish is None or place[0] != publish.name or place not in seen.arrivals or not seen.sound(place[0], place[1]):
                continue
            if seen.kept(publish) or any(delivery.id == id for delivery in seen.deliveries.get(place, ())):  # else another has its place
                yield place, publish, seen.arrivals[place]


def too_early(seen: Seen) -> Iterator[Violation]:
    """What is delayed comes when it is due: published with a delay, or returned with one."""
    if seen.jumped:
        return
    for place, publish, arrivals in own_places(seen):
        first = min(arrivals, key=_at)
        if publish.delay_ms and first.at < publish.at + publish.delay_ms / 1000 - EPSILON_S and not seen.target(publish.name):
            yield Violation("delay", f"{place_text(place)} came {first.at:.4f} s, its delay is {publish.delay_ms} ms: {publish!r}")
    for place, settles in seen.settles.items():
        if not seen.sound(place[0], place[1]):
            continue
        for s in settles:
            if s.action != "retry" or s.result != "done":
                continue
            delay_ms = s.delay_ms if s.delay_ms >= 0 else _backoff_ms(seen, place[0], s.attempt)
            for a in seen.arrivals.get(place, ()):
                if a.attempt == s.attempt + 1 and s.told_at <= a.at < s.at + delay_ms / 1000 - EPSILON_S:
                    yield Violation("delay", f"{place_text(place)} came {a.at:.4f} s (attempt {a.attempt}), its delay is {delay_ms} ms: {s!r}")


def _at(arrival: Arrival) -> float:
    return arrival.at


def _backoff_ms(seen: Seen, name: str, attempt: int) -> int:
    steps = [spec.backoff_ms for spec in seen.queue_specs(name)]
    return min(s[min(attempt, len(s)) - 1] if s else 0 for s in steps)


def _life_s(seen: Seen, publish: Publish, *, least: bool) -> float:
    """How long it may be delivered, in the queue it was published to; the least or the most over all settings it had."""
    lives = []
    for spec in seen.queue_specs(publish.name):
        own = publish.ttl_ms or spec.ttl_ms
        ages = [ms for ms in (own, spec.max_age_ms) if ms]
        lives.append(min(ages) / 1000 if ages else float("inf"))
    return (min if least else max)(lives, default=float("inf"))


def expiry(seen: Seen) -> Iterator[Violation]:
    """Nobody who comes after a message expired is given it; nothing is said to have expired before its time."""
    if seen.jumped:
        return
    for place, publish, arrivals in own_places(seen):
        life = _life_s(seen, publish, least=False)
        if life == float("inf") or publish.outcome != CONFIRMED or not publish.promised or seen.target(publish.name):
            continue  # of one without a confirm nobody knows when it arrived
        for a in arrivals:
            came = seen.attached[a.consumer].at
            if came > publish.told_at + life + EPSILON_S:
                yield Violation(
                    "expiry", f"{place_text(place)} expired {publish.told_at + life:.4f} s at the latest; consumer {a.consumer}, which came "
                    f"{came:.4f} s, was given it {a.at:.4f} s: {publish!r}",
                )  # fmt: skip
    for deliveries in seen.deliveries.values():
        d = deliveries[0]
        owner = seen.publishes.get(d.id)
        if d.reason != "expired" or owner is None or d.origin != owner.name or not seen.sound(d.name, d.partition):
            continue
        if d.at < owner.at + _life_s(seen, owner, least=True) - EPSILON_S:
            yield Violation("expiry", f"{d.name}/{d.partition}/{d.offset} is said {d.at:.4f} s to have expired before its time: {owner!r}")


def extended(seen: Seen) -> Iterator[Violation]:
    """A lease that was extended lasts, as long as its consumer is there and does not give the message back."""
    for place, settles in seen.settles.items():
        if not seen.sound(place[0], place[1]) or seen.verbs(place[0], "purge_leased"):
            continue
        for s in settles:
            if s.action == "extend" and s.result == "done":
                yield from _taken_early(seen, place, s)


def _taken_early(seen: Seen, place: Place, settle: Settle) -> Iterator[Violation]:
    who = seen.attached[settle.consumer]
    lease_ms = who.lease_ms or min((spec.lease_ms for spec in seen.queue_specs(place[0])), default=0)
    until = settle.at + lease_ms / 1000 - EPSILON_S
    for a in seen.arrivals.get(place, ()):
        if a.attempt <= settle.attempt or not settle.told_at < a.at < until or a.epoch != _epoch(seen, place, settle):
            continue
        gave_back = any(s.action == "retry" and s.at <= a.at for s in seen.settles[place])
        if a.consumer == settle.consumer:  # may have been its own lease of that attempt, granted before and on its way from a slow disk
            continue
        if not gave_back and not who.group and who.leaving > a.at and not seen.broken_between(who.client, settle.at, a.at):
            yield Violation("I10", f"{place_text(place)}: attempt {a.attempt} came {a.at:.4f} s, the lease of {lease_ms} ms was kept by {settle!r}")


def _epoch(seen: Seen, place: Place, settle: Settle) -> int:
    return next((d.epoch for d in seen.deliveries.get(place, ()) if d.consumer == settle.consumer and d.attempt == settle.attempt), 0)


def paused(seen: Seen) -> Iterator[Violation]:
    """What is published to a paused queue stays there, and who comes to one is given nothing."""
    asked = [v for v in seen.history.verbs if v.verb == "pause" and v.rows is not None]
    pauses = [(v.name, *v.rows) for v in asked if not any(_resumed(other, v) for other in asked)]
    if not pauses:
        return
    for place, arrivals in seen.arrivals.items():
        if not seen.sound(place[0], place[1]):
            continue
        given = seen.deliveries.get(place)
        publish = seen.publishes.get(given[0].id) if given else None
        for a in arrivals:
            who = seen.attached[a.consumer]
            # what comes on a connection was granted on it: who lost the one before is as good as new
            since = max(who.at, seen.last_break(who.client, a.at), publish.at if publish is not None else 0.0)
            for name, begun, ended in pauses:
                if name == place[0] and begun <= since and a.at < ended:
                    yield Violation("pause", f"{place_text(place)} came to consumer {a.consumer} {a.at:.4f} s, paused {begun:.4f} s to {ended:.4f} s")


def _resumed(other: Verb, pause: Verb) -> bool:
    """Whether the queue may have been resumed within that pause by who had paused it too."""
    begun, ended = pause.rows
    return other is not pause and other.name == pause.name and other.rows[1] < ended and (other.outcome != DONE or other.told_at > begun)


def ready_order(seen: Seen) -> Iterator[Violation]:
    """A consumer that comes to a queue gets what is ready by priority and then by age."""
    keyed = {name: None for name in seen.specs if any(spec.ordered_by_key for spec in seen.queue_specs(name)) or seen.verbs(name, "repartition")}
    lines: dict[tuple[int, str, int, int], list[tuple[int, int, int, int]]] = {}
    for place, publish, arrivals in own_places(seen):
        if place[0] in keyed or publish.outcome != CONFIRMED or publish.delay_ms or len(arrivals) > 1 or seen.target(place[0]):
            continue
        if publish.promised < Level.LOCAL:
            continue  # it may have been ready only later, once it was committed
        a = arrivals[0]
        who = seen.attached[a.consumer]
        if who.kind == "final" and a.attempt == 1 and publish.told_at < who.at:
            order = seen.arrival_order[a]
            lines.setdefault((a.consumer, place[0], place[1], a.epoch), []).append((order, place[2], publish.priority, publish.id))
    for (consumer, name, partition, _), rows in lines.items():
        rows.sort()
        for (_, low, below, first), (_, high, above, second) in pairwise(rows):
            if (-below, low) > (-above, high):
                yield Violation(
                    "order", f"{name}/{partition}: consumer {consumer} was given message {first} (offset {low}, priority {below}) before message "
                    f"{second} (offset {high}, priority {above}); both were ready when it came",
                )  # fmt: skip
