"""What holds inside a broker that has come to rest: I15, I17, I18, and what it told about itself.

Looks at the live broker; changes nothing. Partitions that still have something under way (only then is a run at rest) are passed over.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from headrace.broker.broker import Broker
from headrace.broker.partition import Partition
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.core.queue.leases import STALE_DEADLINES_MIN
from headrace.core.queue.snapshots import Snapshot
from headrace.core.stream.cursor import Cursor
from headrace.sim.checks.seen import Seen, Violation
from headrace.sim.world import SimBroker

RANGES_MAX = 64
"""Ranges that an emptied partition may keep of anything."""


def told_figures(seen: Seen) -> Iterator[Violation]:
    """I15 as an operator sees it."""
    for verb in seen.history.verbs:
        if verb.verb != "describe" or verb.outcome != "done" or not seen.is_queue(verb.name):
            continue
        for row in verb.rows:
            if row.state in ("serving", "paused") and row.ready + row.leased + row.delayed + row.settled != row.high_watermark:
                yield Violation(
                    "I15", f"{verb.name}/{row.partition} {verb.told_at:.4f} s: {row.ready} ready + {row.leased} leased + {row.delayed} delayed + "
                    f"{row.settled} settled is not {row.high_watermark}",
                )  # fmt: skip


def inside(seen: Seen, brokers: Sequence[SimBroker]) -> Iterator[Violation]:
    """Everything at rest of every broker that serves."""
    for broker in brokers:
        if broker.serving and broker.running is not None:
            live = broker.running.broker
            if seen.history.finished is not None:
                yield from _bounded(broker.name, live, damaged=bool(seen.damage))
            for pid in sorted(live.partitions):
                partition = live.partitions[pid]
                if not partition.quarantined and partition.barred is None:
                    yield from _partition(seen, live, partition)


def _partition(seen: Seen, broker: Broker, partition: Partition) -> Iterator[Violation]:
    where = f"{partition.item.name}/{partition.number}"
    if isinstance(partition, QueuePartition):
        machine = partition.machine
        try:
            machine.check()
        except AssertionError as e:
            yield Violation("I15", f"{where}: the machine contradicts itself: {e!r} {machine.view()}")
        total = machine.ready_count + machine.leased_count + machine.delayed_count + machine.settled_count
        if total != partition.high_watermark:
            yield Violation("I15", f"{where}: {machine.view()} adds up to {total}, the high watermark is {partition.high_watermark}")
        waits = seen.damage and machine.holding.mask  # for a partition that is isolated
        if seen.history.finished is not None and not waits:
            yield from _emptied(where, partition, damaged=bool(seen.damage))
    if partition.in_flight or partition.dirty or partition._gathered or broker.store.pending_bytes or not broker.durable:
        return
    if seen.history.finished is not None and partition.high_watermark != partition.next_offset:
        yield Violation("I16", f"{where}: {partition.next_offset - partition.high_watermark} records are given offsets and never committed")
    yield from _rebuilt(where, broker, partition)


def _emptied(where: str, partition: QueuePartition, *, damaged: bool) -> Iterator[Violation]:
    """I17 of a queue that was drained: it remembers next to nothing."""
    machine = partition.machine
    state = machine._state
    sizes = {
        "ranges ready": sum(len(level) for level in state.levels),
        "ranges delayed": len(state.delayed),
        "ranges leased": sum(len(held) for held in state.leases.maps()),
        "delivery counts": len(state.attempts),
        "priorities": len(state.priorities),
        "expiries": len(state.expiries),
        "transfers": 0 if damaged else len(state.transfers.pending),
        "keys looked at": len(state.lookahead.known) if state.lookahead is not None else 0,
    }
    for what, size in sizes.items():
        if size:
            yield Violation("I17", f"{where} is empty and keeps {size} {what}: {machine.view()}")
    bounds = {  # what waits for a damaged target is still there, and all behind it
        "deadlines": (len(state.leases._line) + len(state.leases._heap), 2 * STALE_DEADLINES_MIN + RANGES_MAX),
        "tokens": (len(state.leases.holders), len(partition.subscriptions)),
        "reserved messages": (machine._admission.count, 0),
        "chunks of times": (0 if state.transfers.pending else len(state.extents.kept(state.floor())), RANGES_MAX),
    }
    for what, (size, most) in bounds.items():
        if size > most:
            yield Violation("I17", f"{where} is empty and keeps {size} {what}, at most {most} are needed")


def _bounded(name: str, broker: Broker, *, damaged: bool) -> Iterator[Violation]:
    """I17 of a broker whose clients are gone or idle. ``damaged``: something is isolated, for which others may wait."""
    sizes = {
        "transfers under way": 0 if damaged else len(broker.outbox._queued),
        "jobs that run": 0 if damaged else len(broker.outbox._tasks),
        "held connections": len(broker._held),
        "sessions": max(0, len(broker.sessions) - len(broker.sinks) - 32),
    }
    sessions = broker.sessions.values()
    owned = {s.id for session in sessions for s in (*session.channels.values(), *session.subscriptions.values())}
    sizes["subscriptions of no session"] = len({i for p in broker.partitions.values() for i in p.subscription_ids()} - owned)
    for what, size in sizes.items():
        if size:
            yield Violation("I17", f"broker {name} is at rest and keeps {size} {what}")


class _Shadow:
    """Stands for the broker while a partition is rebuilt beside the live one: nothing that it asks for happens."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def mark(self, partition: Partition) -> None:
        pass

    schedule = mark


def _rebuilt(where: str, broker: Broker, partition: Partition) -> Iterator[Violation]:
    """I18: checkpoint and tail make what the broker has."""
    shadow: Any = _Shadow(broker)
    try:
        again = type(partition)(shadow, partition.item, partition.number, partition.pid)
        again.recover(broker.store.replay(partition.pid), broker.now_ms, broker.wall_ms)
    except Exception as e:
        yield Violation("I18", f"{where} cannot be rebuilt from its log: {e!r}")
        return
    if again.last_index != partition.last_index or again.next_offset != partition.next_offset:
        yield Violation(
            "I18", f"{where}: its log ends at index {again.last_index}, offset {again.next_offset}; it is at {partition.last_index}, "
            f"{partition.next_offset}",
        )  # fmt: skip
        return
    before, after = _state(partition), _state(again)
    for field, value in before.items():
        if after.get(field) != value:
            yield Violation("I18", f"{where}: {field} is {value!r}; rebuilt from the log it is {after.get(field)!r}")


def _state(partition: Partition) -> dict[str, Any]:
    """What must be the same, by name."""
    kept: dict[str, Any] = {"producers": _producers(partition)}
    if isinstance(partition, QueuePartition):
        snapshot = msgspec.msgpack.decode(partition.machine.snapshot(), type=Snapshot)
        for field in ("end", "nbytes", "ready", "delayed", "leases", "attempts", "priorities", "expiries", "next_number", "transfers"):
            kept[field] = getattr(snapshot, field)
        kept["attempts"] = [(first, end, count) for first, end, count, _ in snapshot.attempts]
        kept["leases"] = [(first, end, token, attempt) for first, end, token, attempt, _, _ in snapshot.leases]
    elif isinstance(partition, StreamPartition):
        machine = partition.machine
        # below what is still stored nothing can be read: compaction may have dropped all of it, which the live machine need not know
        start = max(machine.start_offset, min(partition.store.first_offset(partition.pid), machine.end))
        kept["start"], kept["end"] = start, machine.end
        kept["cursors"] = {name: _books(cursor, start) for name, cursor in sorted(machine.cursors.items())}
    return kept


def _books(cursor: Cursor, start: int) -> tuple[int, list[tuple[int, int]]]:
    """Where a cursor stands once it was moved to ``start``, as it goes on over what was acked from there, and what is acked above."""
    at = max(start, cursor.next_offset)
    for first, end in cursor.above.ranges():
        if first <= at < end:
            at = end
    return at, [(first, end) for first, end in cursor.above.ranges() if first > at]


def _producers(partition: Partition) -> list[Any]:
    _, rows = msgspec.msgpack.decode(partition.producers.snapshot())
    return sorted([row[0], row[1], row[2], row[4]] for row in rows)
