"""What holds for messages of queues and records of streams alike: I1 and its excuses, I2, I3, I4, I11.

A queue promises that a message it confirmed, or once delivered, is there until something ends it: an ack, a rejection without a queue for it, its
expiry, a limit, a purge, the last attempt, or delivery to somebody who acks automatically. So each needs an end that a client or the settings can
account for. What only a purge can account for is counted against what the purge said.
"""

from collections.abc import Iterator
from itertools import pairwise

from headrace.sim.checks.seen import LOCAL, TERMINAL, Place, Seen, Violation, place_text
from headrace.sim.history import CONFIRMED, NOBODY, REFUSED, Publish, Read

EPSILON_S = 0.003
"""Times are whole milliseconds in the journal."""


def lost(seen: Seen) -> Iterator[Violation]:
    """I1, for queues."""
    purged: dict[str, list[int]] = {}
    for id in seen.stored:
        publish = seen.publishes.get(id)
        if publish is None or _ended(seen, id):
            continue
        excuse = _excuse(seen, publish)
        if excuse.startswith("purge "):
            purged.setdefault(excuse[6:], []).append(id)
        elif not excuse:
            yield Violation("I1", f"lost: {seen.describe(id)}; nothing accounts for its end")
    for names, ids in sorted(purged.items()):
        verbs = [verb for name in names.split() for verb in seen.verbs(name, "purge", "purge_leased")]
        if all(v.outcome == "done" and not seen.any_broken(v.at, v.told_at) for v in verbs):
            count = sum(v.count for v in verbs)
            if len(ids) > count:
                yield Violation("I1", f"{len(ids)} messages are gone and purges of {names} dropped {count}: such as {seen.describe(ids[0])}")


def _ended(seen: Seen, id: int) -> bool:
    for place in seen.copies.get(id, {}):
        if any(d.auto_ack for d in seen.deliveries.get(place, ())):
            return True
        for settle in seen.settles.get(place, ()):
            if settle.action not in TERMINAL or not seen.may_have_settled(settle):
                continue
            if settle.action != "reject" or not all(spec.dead_letter for spec in seen.queue_specs(place[0])):
                return True
    return False


def _excuse(seen: Seen, publish: Publish) -> str:
    """Why it may be gone although nobody settled it, "" = it may not."""
    purges: list[str] = []
    for name in seen.reach(publish.name):
        if name in seen.volatile or name in seen.damaged_names or not seen.is_queue(name):
            return "left"
        for spec in seen.queue_specs(name):
            limits = [ms for ms in (publish.ttl_ms if name == publish.name else 0, spec.ttl_ms, spec.max_age_ms) if ms]
            if limits and not spec.dead_letter and (seen.jumped or seen.emptied - publish.at >= min(limits) / 1000 - EPSILON_S):
                return "expired"
            if spec.overflow == "drop_oldest" and (spec.max_messages or spec.max_bytes):
                return "limits"
            if spec.max_deliveries and not spec.dead_letter:
                attempts = [a.attempt for place in seen.copies.get(publish.id, {}) if place[0] == name for a in seen.arrivals.get(place, ())]
                if max(attempts, default=0) >= spec.max_deliveries or seen.any_broken(publish.at, seen.end):
                    return "attempts"
        if any(a.auto_ack and a.name == name and a.until >= publish.at for a in seen.attached.values()):
            return "auto-ack"
        if any(v.told_at >= publish.at for v in seen.verbs(name, "purge", "purge_leased")):
            purges.append(name)
    return f"purge {' '.join(purges)}" if purges else ""


def from_nowhere(seen: Seen) -> Iterator[Violation]:
    """I2: everything anybody was given was published, was not refused, is where it may be, and is what its filter asks for."""
    for d in seen.history.deliveries:
        where = f"consumer {d.consumer} was given {d.name}/{d.partition}/{d.offset} {d.at:.4f} s"
        yield from _given(seen, d.id, d.name, d.consumer, where)
    for r in seen.history.reads:
        where = f"reader {r.reader} was given {r.name}/{r.partition}/{r.offset} {r.at:.4f} s"
        yield from _given(seen, r.id, r.name, r.reader, where)
    for at, name, text in seen.history.strange:
        yield Violation("strange", f"{at:.4f} s {name}: {text}")


def _given(seen: Seen, id: int, name: str, subscription: int, where: str) -> Iterator[Violation]:
    publish = seen.publishes.get(id) if id != NOBODY else None
    if publish is None:
        yield Violation("I2", f"{where}: nobody published that (id {id})")
        return
    if publish.outcome == REFUSED:
        yield Violation("I2", f"{where}, which was definitely refused: {publish!r}")
    if name not in seen.reach(publish.name):
        yield Violation("I2", f"{where}, which nothing brings there: {publish!r}")
    attached = seen.attached.get(subscription)
    if attached is not None and attached.filter and not passes(attached.filter, publish.mark):
        yield Violation("I2", f"{where} by the filter {attached.filter!r}, its mark is {publish.mark!r}: {publish!r}")


def passes(filter: str, mark: str) -> bool:
    """Whether a message with that mark passes one of the filters that plans use."""
    return not mark if filter.startswith("not exists") else filter.rsplit(" ", 1)[1] == mark


def one_value(seen: Seen) -> Iterator[Violation]:
    """I3: one value for each place, whoever says so. Of tiers that may take records back: within an epoch."""
    held: dict[tuple[str, int, int, int], tuple[int, str]] = {}

    def say(place: Place, epoch: int, id: int, text: str) -> Iterator[Violation]:
        before = held.setdefault((*place, epoch), (id, text))
        if before[0] != id:
            yield Violation("I3", f"{place_text(place)} held message {before[0]} ({before[1]}) and message {id} ({text}): {seen.describe(id)}")

    for p in seen.publishes.values():
        if p.offset >= 0 and seen.sound(p.name, p.partition) and (seen.is_queue(p.name) or settled_tier(seen, p.name)) and seen.kept(p):
            yield from say((p.name, p.partition, p.offset), 0, p.id, f"confirmed {p.told_at:.4f} s")
    for d in seen.history.deliveries:
        if seen.sound(d.name, d.partition):
            yield from say((d.name, d.partition, d.offset), 0, d.id, f"delivered {d.at:.4f} s in epoch {d.epoch}")
    for r in seen.history.reads:
        if seen.sound(r.name, r.partition):
            certain = settled_tier(seen, r.name) and not r.speculative
            yield from say((r.name, r.partition, r.offset), 0 if certain else r.epoch, r.id, f"read {r.at:.4f} s in epoch {r.epoch}")


def too_soon(seen: Seen) -> Iterator[Violation]:
    """I13: what is confirmed as durable is durable when the confirm comes; I5, I7: so is what is shown as certain, and the epoch
    under which something comes."""
    for p in seen.publishes.values():
        if p.outcome == CONFIRMED and p.promised >= LOCAL and p.offset >= p.watermark and seen.sound(p.name, p.partition):
            yield Violation("I13", f"confirmed as durable while its partition was durable up to {p.watermark} only: {p!r}")
    for a in seen.history.arrivals:
        if not a.kept and seen.sound(a.name, a.partition):
            where = f"{a.name}/{a.partition}/{a.first}"
            yield Violation("I7", f"{where} came {a.at:.4f} s to consumer {a.consumer} under epoch {a.epoch}, which was not durable yet")
    for r in seen.history.reads:
        if r.offset >= r.watermark and not r.speculative and settled_tier(seen, r.name) and seen.sound(r.name, r.partition):
            where = f"{r.name}/{r.partition}/{r.offset}"
            yield Violation("I5", f"reader {r.reader} was shown {where} as certain {r.at:.4f} s, which was durable up to {r.watermark} only")


def settled_tier(seen: Seen, name: str) -> bool:
    """Whether what a stream confirms and shows as certain stays."""
    return all(spec.tier != "ephemeral" for spec in seen.stream_specs(name))


def out_of_order(seen: Seen) -> Iterator[Violation]:
    """I4: offsets of one publisher in one partition follow the order in which it posted. The first place counts, where there are several."""
    lanes: dict[tuple[int, str, int, str | None], list[tuple[int, int, int]]] = {}
    places: dict[tuple[int, int], int] = {}
    targets = {name: None for name in seen.specs if seen.target(name)}
    for id, copies in seen.copies.items():
        publish = seen.publishes.get(id)
        if publish is None:
            continue
        # where messages come back to, as dead letters redriven, only the confirm says which place was the first; and what is sent again without a
        # sequence may be stored each time, so that a copy may stand before what was sent earlier
        moved = publish.name in targets or not publish.idempotent
        for name, partition, offset in copies:
            if name == publish.name and (not moved or (partition, offset) == (publish.partition, publish.offset)):
                _first(places, (id, partition), offset)
    for r in seen.history.reads:
        read = seen.publishes.get(r.id)
        if settled_tier(seen, r.name) and not r.speculative and read is not None:
            if read.idempotent or (r.partition, r.offset) == (read.partition, read.offset):
                _first(places, (r.id, r.partition), r.offset)
    for (id, partition), offset in places.items():
        publish = seen.publishes.get(id)
        if publish is not None and seen.sound(publish.name, partition) and (seen.is_queue(publish.name) or settled_tier(seen, publish.name)):
            if publish.outcome == "confirmed" and not seen.kept(publish):
                continue
            key: str | None = ""
            # what is routed anew keeps the order of each key alone
            if any(v.verb == "repartition" and v.name == publish.name for v in seen.history.verbs):
                key = publish.key
                if key is None:
                    continue
            lanes.setdefault((publish.publisher, publish.name, partition, key), []).append((publish.sequence, offset, id))
    for (publisher, name, partition, _), rows in lanes.items():
        rows.sort()
        for (before, low, first), (after, high, second) in pairwise(rows):
            if high <= low:
                yield Violation(
                    "I4",
                    f"{name}/{partition}: publisher {publisher} posted number {before} (message {first}) before {after} (message {second}), stored "
                    f"at {low} and {high}: {seen.describe(first)} | {seen.describe(second)}",
                )


def _first(places: dict[tuple[int, int], int], key: tuple[int, int], offset: int) -> None:
    before = places.get(key)
    if before is None or offset < before:
        places[key] = offset


def stored_twice(seen: Seen) -> Iterator[Violation]:
    """I11: an idempotent publish is stored once; and however often a message is moved about, one copy of it at most is ever done with."""
    done: dict[int, list[Place]] = {}
    for place, settles in seen.settles.items():
        if any(s.action == "ack" and s.result == "done" for s in settles):
            done.setdefault(settles[0].id, []).append(place)
    for id, publish in seen.publishes.items():
        if not publish.idempotent:
            continue
        copies = [p for p in seen.copies.get(id, {}) if seen.sound(p[0], p[1])]
        there = [p for p in copies if p[0] == publish.name]
        if len(there) > 1 and not seen.target(publish.name) and len(copies) == len(seen.copies[id]):
            yield Violation("I11", f"stored {len(there)} times, at {', '.join(map(place_text, there))}: {seen.describe(id)}")
        acked = [p for p in done.get(id, ()) if p in copies]
        if len(acked) > 1 and len(copies) == len(seen.copies[id]):
            yield Violation("I11", f"acked at {' and at '.join(map(place_text, acked))}: {seen.describe(id)}")
    read: dict[tuple[str, int, int], dict[tuple[int, int], Read]] = {}
    for r in seen.history.reads:
        if settled_tier(seen, r.name) and not r.speculative and seen.sound(r.name, r.partition):
            read.setdefault((r.name, r.id, 0), {})[r.partition, r.offset] = r
    for (name, id, _), found in read.items():
        owner = seen.publishes.get(id)
        if len(found) > 1 and owner is not None and owner.idempotent and owner.name == name:
            yield Violation("I11", f"read at {len(found)} places of {name!r}, {', '.join(f'{p}/{o}' for p, o in sorted(found))}: {owner!r}")
