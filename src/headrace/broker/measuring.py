"""The figures of a broker at this moment, read from what it has; nothing is kept here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.broker.metrics import NameMetrics, Snapshot, bounded
from headrace.broker.partition import Partition
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition

if TYPE_CHECKING:
    from headrace.broker.broker import Broker


def measured(broker: Broker) -> Snapshot:
    """Counters, gauges and the figures of the busiest names, for /metrics and the overview."""
    by_item: dict[str, list[Partition]] = {}
    for partition in broker.partitions.values():
        if broker.cluster is not None and partition.barred is not None:
            continue  # who serves it counts it
        by_item.setdefault(partition.item.name, []).append(partition)
    stats = broker.store.stats()
    gauges = {
        "connections": float(len(broker.sinks)),
        "sessions": float(len(broker.sessions)),
        "queues": float(broker.catalogue.queues),
        "streams": float(broker.catalogue.streams),
        "loaded_partitions": float(len(broker.partitions)),
        "quarantined_partitions": float(len(broker.store.damaged())),
        **stats,
    }
    totals: dict[str, int] = {}
    for figures in [told() for told in broker.figures]:
        gauges |= figures.gauges
        totals |= figures.totals
    names = [_of_name(partitions) for partitions in by_item.values()]
    return Snapshot(counters=broker.counters, gauges=gauges, totals=totals, names=bounded(names, broker.config.metrics.names_max))


def _of_name(partitions: list[Partition]) -> NameMetrics:
    item = partitions[0].item
    queues = [p.machine for p in partitions if isinstance(p, QueuePartition)]
    streams = [p for p in partitions if isinstance(p, StreamPartition)]
    return NameMetrics(
        name=item.name,
        kind=item.kind,
        published=sum(p.published for p in partitions),
        delivered=sum(p.delivered for p in partitions),
        settled=sum(p.settled_count for p in partitions),
        ready=sum(m.ready_count for m in queues),
        leased=sum(m.leased_count for m in queues),
        delayed=sum(m.delayed_count for m in queues),
        records=sum(p.high_watermark - p.machine.start_offset for p in streams),
        bytes=sum(m.bytes for m in queues),
        consumers=max((p.attached() for p in partitions), default=0),
        publishers=sum(p.publishers for p in partitions),
        oldest_ms=max((p.oldest_ms() for p in partitions), default=0),
        lag=max((p.high_watermark - c.next_offset for p in streams for c in p.machine.cursors.values()), default=0),
    )
