"""A metrics snapshot in the Prometheus text format: ``headrace_*``, seconds and bytes as base units, cardinality bounded by the snapshot."""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from headrace.broker.metrics import COUNTERS, HISTOGRAMS, NameMetrics, Snapshot

BOUNDS_US: Final = tuple(1 << e for e in range(6, 25))
"""64 microseconds to 16.8 seconds, by powers of two: bounds of the histograms' own buckets, so nothing is interpolated."""

GAUGES: Final = {
    "up": "1 while the broker serves",
    "uptime_seconds": "Seconds since the start",
    "connections": "Open client connections",
    "sessions": "Sessions, also those that wait for their client to come back",
    "queues": "Declared queues",
    "streams": "Declared streams",
    "loaded_partitions": "Partitions in memory",
    "quarantined_partitions": "Partitions isolated because of damage",
    "pending_bytes": "Bytes appended, not yet synced",
    "wal_bytes": "Size of the write-ahead log",
    "segment_bytes": "Size of segments and archives",
    "cache_bytes": "Size of the tail cache",
    "disk_free_bytes": "Free space on the data directory's disk",
    "memory_bytes": "Resident memory",
    "publishes_refused": "1 while publishes are refused (disk nearly full, draining, failed)",
    "publishers_held": "1 while publishers are held back by the log",
    "mqtt_connections": "Open MQTT connections",
    "mqtt_sessions": "MQTT sessions, also of clients that are away",
    "mqtt_subscriptions": "MQTT subscriptions",
    "mqtt_retained_messages": "Retained MQTT messages",
    "mqtt_retained_bytes": "Their bytes, which are kept in memory",
}
TOTALS: Final = {
    "mqtt_received": "MQTT publishes that clients sent",
    "mqtt_sent": "MQTT publishes that were sent to clients",
    "mqtt_dropped": "MQTT messages for which an inbox or a connection had no room",
}
_BOTH: Final = (
    ("bytes", "Bytes of unsettled messages, or of retained records"),
    ("consumers", "Attached subscriptions"),
    ("publishers", "Open publishers"),
)
_QUEUE: Final = (
    ("ready", "Messages ready for delivery"),
    ("leased", "Messages that a consumer holds"),
    ("delayed", "Messages that wait for their time"),
)
_STREAM: Final = (("records", "Retained records"), ("lag", "Largest lag of a cursor, in records"))


class _Snapshots(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterator[Family]:
        counters = self.snapshot.counters
        for counter in COUNTERS:
            yield CounterMetricFamily(f"headrace_{counter.name}", counter.help, value=getattr(counters, counter.name))
        for histogram in HISTOGRAMS:
            values = getattr(counters, histogram.name)
            buckets = [(repr(us / 1e6), float(n)) for us, n in zip(BOUNDS_US, values.cumulative(BOUNDS_US), strict=True)]
            family = HistogramMetricFamily(f"headrace_{histogram.name}_seconds", histogram.help)
            family.add_metric([], [*buckets, ("+Inf", float(values.count))], sum_value=values.sum_us / 1e6)
            yield family
        for name, value in self.snapshot.gauges.items():
            yield GaugeMetricFamily(f"headrace_{name}", GAUGES.get(name, name.replace("_", " ")), value=value)
        for name, total in self.snapshot.totals.items():
            yield CounterMetricFamily(f"headrace_{name}", TOTALS.get(name, name.replace("_", " ")), value=total)
        for kind, gauges in (("queue", (*_QUEUE, *_BOTH)), ("stream", (*_STREAM, *_BOTH))):
            yield from _named(kind, gauges, [n for n in self.snapshot.names if n.kind == kind])


def _named(kind: str, gauges: Iterable[tuple[str, str]], names: list[NameMetrics]) -> Iterator[Family]:
    for field, text in gauges:
        gauge = GaugeMetricFamily(f"headrace_{kind}_{field}", f"{text}, per {kind}", labels=[kind])
        for n in names:
            gauge.add_metric([n.name], getattr(n, field))
        yield gauge
    oldest = GaugeMetricFamily(f"headrace_{kind}_oldest_age_seconds", "Age of the oldest unsettled message or retained record", labels=[kind])
    for n in names:
        oldest.add_metric([n.name], n.oldest_ms / 1000)
    yield oldest
    for field in ("published", "delivered", "settled") if kind == "queue" else ("published", "delivered"):
        counter = CounterMetricFamily(f"headrace_{kind}_{field}", f"Records {field} since this {kind} was loaded", labels=[kind])
        for n in names:
            counter.add_metric([n.name], getattr(n, field))
        yield counter


def exposition(snapshot: Snapshot) -> bytes:
    """The whole text of /metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshots(snapshot))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return generate_latest(registry)
