"""What a restart may not do to leases: they are kept under session and token, and each lasts its whole duration from the start (I9)."""

from collections.abc import Iterator

from headrace.sim.checks.seen import Place, Seen, Violation, place_text
from headrace.sim.history import Arrival, Delivery

EPSILON_S = 0.003
LATE_S = 1.0
"""By so much a client may hear later of a broken connection than the broker."""


def ended(seen: Seen) -> Iterator[Violation]:
    """Of a lease that was durable when its broker was killed the next attempt comes only when it has run out anew, or somebody gave it up."""
    if seen.cut or seen.jumped:
        return
    newest: dict[tuple[str, int, int], float] = {}
    for d in seen.history.deliveries:
        publish = seen.publishes.get(d.id)
        if publish is not None and publish.name == d.name:
            key = (d.name, d.partition, d.epoch)
            newest[key] = max(publish.at, newest.get(key, 0.0))
    for place, deliveries in seen.deliveries.items():
        name, partition, _ = place
        if not seen.sound(name, partition) or seen.verbs(name, "purge_leased"):
            continue
        for d in deliveries:
            if not d.auto_ack and newest.get((name, partition, d.epoch), 0.0) > d.at:  # what is journalled in order was durable with the later one
                yield from _taken(seen, place, d)


def _taken(seen: Seen, place: Place, d: Delivery) -> Iterator[Violation]:
    who, publish = seen.attached[d.consumer], seen.publishes.get(d.id)
    found = next(((at, born) for (_, at), (born, _) in zip(seen.lives, seen.lives[1:], strict=False) if born > d.at), None)
    if found is None or publish is None or who.group:
        return
    killed, born = found
    lease_s = (who.lease_ms or min((spec.lease_ms for spec in seen.queue_specs(place[0])), default=0)) / 1000 - EPSILON_S
    if not d.at < killed < publish.at + lease_s or seen.breaks(who.client, d.at, killed):
        return  # it stopped by itself; or the lease may have ended before
    for a in seen.arrivals.get(place, ()):
        if a.epoch <= d.epoch or a.attempt <= d.attempt or a.at >= born + lease_s or who.leaving <= a.at:
            continue
        if not _given_up(seen, place, a, who.client, killed):
            text = f"attempt {a.attempt} came {a.at:.4f} s, {a.at - born:.4f} s after a restart; attempt {d.attempt}, delivered {d.at:.4f} s to"
            yield Violation("I9", f"{place_text(place)}: {text} consumer {d.consumer}, was leased for {lease_s:.3f} s: {seen.describe(d.id)}")
            return


def _given_up(seen: Seen, place: Place, a: Arrival, client: str, killed: float) -> bool:
    """Whether its consumer, or its connection once it was there again, ended the lease."""
    if any(s.action == "retry" and s.at <= a.at for s in seen.settles.get(place, ())):
        return True
    return seen.breaks(client, killed, a.at + LATE_S) > 1
