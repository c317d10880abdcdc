"""What holds inside a broker at any moment, looked at now and then while a run goes on: I15, limits, and snapshots that leave nothing out (I18).

Looks at live state between two callbacks, where it must be whole; changes nothing.
"""

from collections.abc import Iterator, Sequence, Set
from typing import Any

from headrace.broker.queue_partition import QueuePartition
from headrace.core.queue import snapshots
from headrace.core.queue.state import State
from headrace.model.errors import Damaged
from headrace.sim.checks.seen import Violation
from headrace.sim.world import SimBroker


def alive(brokers: Sequence[SimBroker], free: Set[str] = frozenset()) -> Iterator[Violation]:
    """Everything that is wrong now. ``free``: names whose limit may be passed (altered ones, and those to which messages are moved)."""
    for broker in brokers:
        if not broker.serving or broker.running is None:
            continue
        live = broker.running.broker
        for source, _ in live.outbox._queued:
            if live.partitions.get(source.pid) is not source and source.barred is None and not source.quarantined:
                yield Violation("I15", f"{source.item.name}/{source.number} {live.now_ms / 1000:.3f} s: gives messages away and is not what serves")
        for pid in sorted(live.partitions):
            partition = live.partitions[pid]
            if isinstance(partition, QueuePartition) and not partition.quarantined and partition.barred is None and not partition.lazy_count:
                yield from _queue(f"{partition.item.name}/{partition.number} {live.now_ms / 1000:.3f} s", partition, partition.item.name in free)


def _queue(where: str, partition: QueuePartition, free: bool) -> Iterator[Violation]:
    machine, spec = partition._machine, partition.spec
    try:
        machine.check()
    except AssertionError as e:
        yield Violation("I15", f"{where}: the machine contradicts itself: {e!r} {machine.view()}")
        return
    total = machine.ready_count + machine.leased_count + machine.delayed_count + machine.settled_count
    if total != partition.high_watermark:
        yield Violation("I15", f"{where}: {machine.view()} adds up to {total}, the high watermark is {partition.high_watermark}")
    unsettled = total - machine.settled_count
    if spec.max_messages and spec.overflow == "refuse" and unsettled > spec.max_messages and not free:
        yield Violation("limit", f"{where}: {unsettled} messages, the most are {spec.max_messages}")
    yield from whole(where, machine._state)


def whole(where: str, state: State) -> Iterator[Violation]:
    """I18: a snapshot has all that it is made from."""
    try:
        again = snapshots.restore(state.spec, snapshots.VERSION, snapshots.snapshot(state))
    except Damaged as e:
        yield Violation("I18", f"{where}: its snapshot cannot be restored: {e}")
        return
    before, after = _books(state), _books(again)
    for book, rows in before.items():
        if rows != after[book]:
            yield Violation("I18", f"{where}: {book} is {rows!r}; from its own snapshot it is {after[book]!r}")


def _books(state: State) -> dict[str, Any]:
    leases = [(first, end, lease.owner_token, lease.attempt, lease.lease_ms, lease.first_failed_ms) for first, end, lease in state.leases]
    return {
        "end": state.end,
        "ready": [(priority, list(level.ranges())) for priority, level in enumerate(state.levels) if level],
        "delayed": list(state.delayed),
        "leased": sorted(offset_terms for lease in leases for offset_terms in ((offset, *lease[2:]) for offset in range(lease[0], lease[1]))),
        "attempts": list(state.attempts),
        "priorities": list(state.priorities),
        "expiries": list(state.expiries),
        "transfers": sorted(state.transfers.pending),
    }
