"""What holds of queues that were repartitioned: the order of a key over partitions."""

from collections.abc import Iterator
from itertools import pairwise

from headrace.sim.checks.seen import TERMINAL, Place, Seen, Violation, place_text
from headrace.sim.history import Publish


def repartitioned(seen: Seen) -> list[str]:
    """Queues whose partitions may have changed."""
    return [name for name in seen.specs if seen.verbs(name, "repartition")]


def key_order(seen: Seen) -> Iterator[Violation]:
    """A message is delivered only when what its publisher sent before it under its key, to another partition, was settled, or waited for its time."""
    for name in repartitioned(seen):
        forced = any(verb.what[1] for verb in seen.verbs(name, "repartition"))
        lives = any(
            s.ttl_ms or s.max_age_ms or s.max_deliveries or s.max_messages or s.max_bytes or (s.backoff_ms and not s.ordered_by_key)
            for s in seen.queue_specs(name)
        )
        if forced or lives or name in seen.volatile or name in seen.damaged_names or seen.target(name):
            continue
        if seen.verbs(name, "purge", "purge_leased", "move", "redrive"):
            continue
        lines: dict[tuple[int, str], list[tuple[Publish, Place]]] = {}
        for publish in seen.publishes.values():
            places = [*seen.copies.get(publish.id, {})]
            if publish.name == name and publish.key is not None and publish.idempotent and len(places) == 1:
                lines.setdefault((publish.publisher, publish.key), []).append((publish, places[0]))
        for line in lines.values():
            line.sort(key=lambda row: row[0].sequence)
            for (before, low), (after, high) in pairwise(line):
                # what nobody was ever given ended otherwise, as by delivery to somebody who acks automatically and lost the connection
                if low[1] != high[1] and high in seen.arrivals and low in seen.arrivals and not (before.delay_ms or before.ttl_ms):
                    came = min(arrival.at for arrival in seen.arrivals[high])
                    if not _through(seen, low, came):
                        yield Violation(
                            "key order", f"key {after.key!r}: {place_text(high)} arrived {came:.4f} s, while {place_text(low)}, sent before it to "
                            f"another partition, was in hand: {seen.describe(before.id)} | {seen.describe(after.id)}",
                        )  # fmt: skip


def _through(seen: Seen, place: Place, at: float) -> bool:
    """Whether it may have been settled by then, or put off."""
    ordered = all(spec.ordered_by_key for spec in seen.queue_specs(place[0]))
    return any(arrival.auto_ack for arrival in seen.arrivals.get(place, ())) or any(
        settle.at <= at and (settle.action in TERMINAL or (settle.action == "retry" and settle.delay_ms != 0 and not ordered))
        for settle in seen.settles.get(place, ())
    )
