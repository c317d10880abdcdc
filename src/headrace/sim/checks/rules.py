"""What holds of limits, purges and tiers, and of what deletions leave: the settings of queues and streams that nothing else judges.

Limits show for certain only at whoever comes last: a *final* consumer empties a queue when nobody else is there, so what it is given was in the queue
when it came, and nothing is published any more.
"""

from collections.abc import Iterator, Sequence

from headrace.sim.checks.messages import passes
from headrace.sim.checks.seen import Place, Seen, Violation, place_text
from headrace.sim.checks.streams import finals, kept_whole
from headrace.sim.history import CONFIRMED, REFUSED, Attached, Publish, Read
from headrace.sim.world import SimBroker
from headrace.storage import keys
from headrace.storage.system import SYSTEM_PID
from headrace.wire.frames import Level


def last_given(seen: Seen) -> Iterator[tuple[Attached, int, dict[Place, Publish]]]:
    """(consumer, partition, what it was given that was certainly there when it came, in offset order) of each that came last."""
    found: dict[tuple[int, int], dict[Place, Publish]] = {}
    for place, deliveries in seen.deliveries.items():
        publish = seen.publishes.get(deliveries[0].id)
        last = next((d for d in deliveries if seen.attached[d.consumer].kind == "final"), None)
        if last is None or publish is None or not seen.sound(place[0], place[1]) or seen.target(place[0]) or publish.outcome != CONFIRMED:
            continue
        if publish.told_at < seen.attached[last.consumer].at:
            found.setdefault((last.consumer, place[1]), {})[place] = publish
    for (consumer, partition), places in found.items():
        yield seen.attached[consumer], partition, dict(sorted(places.items()))


def limits(seen: Seen) -> Iterator[Violation]:
    """A queue that refuses beyond its limit holds no more."""
    for who, partition, there in last_given(seen):
        specs = seen.queue_specs(who.name)
        where = f"{who.name}/{partition}"
        if all(spec.overflow == "refuse" and spec.max_messages for spec in specs) and len(there) > max(spec.max_messages for spec in specs):
            yield Violation("limit", f"{where} held {len(there)} messages {who.at:.4f} s, the most are {max(spec.max_messages for spec in specs)}")


def overflowed(seen: Seen) -> Iterator[Violation]:
    """Where all was published before anybody came, what a queue gave up to make room is older than all that it kept."""
    for name in seen.specs:
        specs = seen.queue_specs(name)
        if not specs or any(s.overflow == "refuse" or s.ttl_ms or s.max_age_ms or s.max_deliveries for s in specs) or seen.target(name):
            continue
        posted = [p for p in seen.publishes.values() if p.name == name]
        users = [a for a in seen.attached.values() if a.name == name]
        came = min((a.at for a in users), default=0.0)
        verbs = seen.verbs(name, "purge", "purge_leased", "move", "alter", "repartition")
        if any(a.auto_ack for a in users) or verbs or seen.history.emptied is None:
            continue
        if any(p.outcome not in (CONFIRMED, REFUSED) or p.told_at >= came or p.delay_ms for p in posted):
            continue
        stored = sorted((p for p in posted if seen.kept(p) and p.offset >= 0 and seen.sound(name, p.partition)), key=lambda p: p.offset)
        oldest: dict[int, int] = {}
        for p in stored:
            if (name, p.partition, p.offset) in seen.arrivals:
                oldest.setdefault(p.partition, p.offset)
            elif p.partition in oldest and not p.ttl_ms:
                where = f"{name}/{p.partition}"
                yield Violation("limit", f"{where}/{p.offset} was dropped to make room, and {where}/{oldest[p.partition]} was not: {p!r}")
                break


def purged(seen: Seen) -> Iterator[Violation]:
    """What lay in a queue, ready or delayed, when a purge was asked for is not delivered any more."""
    for place, arrivals in seen.arrivals.items():
        verbs = [v for v in seen.verbs(place[0], "purge", "purge_leased") if v.outcome == "done"]
        given = seen.deliveries.get(place)
        publish = seen.publishes.get(given[0].id) if given and verbs and seen.sound(place[0], place[1]) and not seen.target(place[0]) else None
        if publish is None or publish.name != place[0] or not seen.kept(publish):
            continue
        first = min(arrivals, key=lambda arrival: arrival.at)
        came = seen.attached[first.consumer].at
        for verb in verbs:
            due = publish.at + publish.delay_ms / 1000
            waited = bool(publish.delay_ms) and not seen.jumped and due > verb.told_at  # so it was on its way to nobody
            # confirmed as accepted, it may not have been committed yet, and so not be in the queue
            there = publish.told_at < verb.at and publish.promised >= Level.LOCAL and (came > verb.told_at or waited)
            if there and first.attempt == 1 and not seen.any_broken(publish.at, first.at):
                yield Violation("purge", f"{place_text(place)} arrived {first.at:.4f} s, after {verb!r}: {publish!r}")
                break


def tiers(seen: Seen) -> Iterator[Violation]:
    """I5: of a durable stream nobody is shown what may be taken back."""
    for r in seen.history.reads:
        specs = seen.stream_specs(r.name)
        if r.speculative and specs and all(spec.tier == "durable" for spec in specs):
            yield Violation("I5", f"{r.name}/{r.partition}/{r.offset} was read {r.at:.4f} s before it was durable, from a durable stream")


def skipped(seen: Seen) -> Iterator[Violation]:
    """I1: who goes on with a cursor finds between earliest and there nothing that its filter passes and nobody with that cursor was given."""
    there = finals(seen)
    given: dict[tuple[str, str, int], dict[int, None]] = {}
    firsts: dict[tuple[int, int], Read] = {}
    cursors = {a.number: a for a in seen.attached.values() if a.cursor and not a.group and a.name not in seen.volatile}
    moved = {(e.name, e.partition): None for e in seen.history.events if e.what == "moved"}
    for r in seen.history.reads:
        who = cursors.get(r.reader)
        if who is None or seen.verbs(r.name, "set_cursor", "trim") or not kept_whole(seen, r.name):
            continue
        mine = given.setdefault((r.name, who.cursor, r.partition), {})
        if (r.reader, r.partition) not in firsts and seen.sound(r.name, r.partition) and (r.name, r.partition) not in moved:
            firsts[r.reader, r.partition] = r
            for offset, id in there.get((r.name, r.partition), {}).items():
                publish = seen.publishes.get(id)
                if offset < r.offset and offset not in mine and publish is not None and (not who.filter or passes(who.filter, publish.mark)):
                    text = f"was first given {r.offset} {r.at:.4f} s, nobody with that cursor was ever given {offset}: {publish!r}"
                    yield Violation("cursor", f"{r.name}/{r.partition}: reader {r.reader} with cursor {who.cursor!r} {text}")
                    return
        mine[r.offset] = None


def leftovers(seen: Seen, brokers: Sequence[SimBroker]) -> Iterator[Violation]:
    """I17: nothing is stored of partitions that no name has any more."""
    for broker in brokers:
        if not broker.serving or broker.running is None or seen.history.finished is None or seen.damage or broker.config.broker.storage != "disk":
            continue
        live = broker.running.broker
        if any(seen.verbs(name, "repartition") for name in seen.specs) and list(live.repartitions._tasks):
            continue  # partitions that were given up may be on their way out
        named = {pid: name for name in seen.specs if (item := live.catalogue.find(name)) is not None for pid in item.partitions}
        state = live.store.state
        stored = [keys.number_of(prefix, key) for prefix in (keys.MOVED, keys.CHECKPOINT, keys.WAKE) for key, _ in state.scan(prefix)]
        for pid in sorted({*stored, *live.store.partitions()} - {SYSTEM_PID, *named}):
            yield Violation("I17", f"broker {broker.name} keeps partition {pid}, which nothing names: {named}")
