"""Counters and latency histograms of one broker: plain integers, incremented once per run, range or tick, never per message.

Owns their names and the snapshot that the admin interface shows. Knows neither Prometheus nor HTTP, and reads no clock: times come in.
Invariants: counters only grow; a histogram's counts add up to its ``count``; a snapshot has at most ``names_max`` names and one ``_other``.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

SAMPLES: Final = 120
"""Seconds of history that are kept for the overview page."""
RATE_SAMPLES: Final = 5
"""Seconds over which a rate is measured."""
OTHER: Final = "_other"

_EXPONENT_MAX: Final = 25
_BUCKETS: Final = 4 * _EXPONENT_MAX + 8
_VALUE_MAX: Final = (8 << _EXPONENT_MAX) - 1


class Histogram:
    """Latencies in microseconds, four buckets to each power of two (at most 25 % wide), up to 268 s; more is counted in the last bucket."""

    __slots__ = ("count", "counts", "sum_us")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.count = 0
        self.sum_us = 0

    def observe(self, us: int, count: int = 1) -> None:
        """``count`` times the value ``us`` (below 0 counts as 0). Cost: a fraction of a microsecond."""
        us = 0 if us < 0 else _VALUE_MAX if us > _VALUE_MAX else us
        self.count += count
        self.sum_us += us * count
        if us >= 8:
            exponent = us.bit_length() - 3
            us = 4 * exponent + (us >> exponent)
        self.counts[us] += count

    def percentile(self, share: float) -> int:
        """Upper bound of the bucket that holds the value at ``share`` (0..1) of all; 0 if there is none."""
        wanted = share * self.count
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return upper_bound_us(index)
        return 0

    def cumulative(self, bounds_us: Sequence[int]) -> list[int]:
        """How many values were at most each bound, of ascending powers of two."""
        result: list[int] = []
        index = seen = 0
        for bound in bounds_us:
            while index < _BUCKETS and upper_bound_us(index) <= bound:
                seen += self.counts[index]
                index += 1
            result.append(seen)
        return result


def upper_bound_us(index: int) -> int:
    """Exclusive upper bound of a histogram's bucket."""
    if index < 8:
        return index + 1
    exponent = (index - 4) // 4
    return (index - 4 * exponent + 1) << exponent


class Metric(msgspec.Struct, frozen=True):
    """A series: its name without the prefix ``headrace_`` and what it says."""

    name: str
    help: str


COUNTERS: Final = (
    Metric("published", "Records taken for append"),
    Metric("published_bytes", "Bytes of publish frames taken for append"),
    Metric("confirmed_records", "Records confirmed to publishers"),
    Metric("refused", "Records refused before anything was stored"),
    Metric("duplicates", "Records of idempotent publishers that were already stored"),
    Metric("delivered", "Records delivered to consumers and readers"),
    Metric("delivered_bytes", "Bytes delivered to consumers and readers"),
    Metric("redelivered", "Queue messages delivered again"),
    Metric("settled", "Queue messages acked"),
    Metric("retried", "Queue messages returned for another delivery"),
    Metric("lease_expired", "Leases that ran out"),
    Metric("dead_lettered", "Queue messages moved to a dead-letter queue"),
    Metric("dropped", "Queue messages dropped: expired, rejected without a dead-letter queue, overflowed or purged"),
    Metric("stale_settles", "Settlements of messages that the consumer no longer leased"),
    Metric("bytes_in", "Bytes read from client connections"),
    Metric("bytes_out", "Bytes written to client connections"),
    Metric("connections_opened", "Client connections taken"),
    Metric("connections_refused", "Client connections refused by a limit"),
    Metric("protocol_errors", "Connections closed because of malformed bytes"),
    Metric("ticks", "Ticks of the broker"),
    Metric("flushes", "Writes and syncs of the log"),
    Metric("flushed_bytes", "Bytes written to the log"),
)
"""Every counter of ``Counters``."""

HISTOGRAMS: Final = (
    Metric("confirm_latency", "From a publish frame's arrival to its confirm"),
    Metric("flush_latency", "One write and sync of the log"),
    Metric("deliver_latency", "From append to delivery of messages that a consumer waited for"),
    Metric("settle_latency", "From delivery to settlement"),
    Metric("tick_duration", "One tick of the broker"),
)
"""Every histogram of ``Counters``."""

RATES: Final = ("published", "confirmed_records", "delivered", "settled", "bytes_in", "bytes_out")
"""Counters whose rates are kept."""


class Counters:
    """All counters and histograms of a broker, and its rates over the last seconds. Whoever does the work adds to the fields directly."""

    __slots__ = (
        "_rates", "_samples", "bytes_in", "bytes_out", "confirm_latency", "confirmed_records", "connections_opened", "connections_refused",
        "dead_lettered", "deliver_latency", "delivered", "delivered_bytes", "dropped", "duplicates", "flush_latency", "flushed_bytes", "flushes",
        "lease_expired", "protocol_errors", "published", "published_bytes", "redelivered", "refused", "retried", "settle_latency", "settled",
        "stale_settles", "tick_duration", "ticks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.published = self.published_bytes = self.confirmed_records = self.refused = self.duplicates = 0
        self.delivered = self.delivered_bytes = self.redelivered = 0
        self.settled = self.retried = self.lease_expired = self.dead_lettered = self.dropped = self.stale_settles = 0
        self.bytes_in = self.bytes_out = 0
        self.connections_opened = self.connections_refused = self.protocol_errors = 0
        self.ticks = self.flushes = self.flushed_bytes = 0
        self.confirm_latency = Histogram()
        self.flush_latency = Histogram()
        self.deliver_latency = Histogram()
        self.settle_latency = Histogram()
        self.tick_duration = Histogram()
        self._samples: deque[tuple[int, tuple[int, ...]]] = deque(maxlen=RATE_SAMPLES + 1)
        self._rates: deque[tuple[float, ...]] = deque(maxlen=SAMPLES)

    def confirmed(self, ms: float, records: int) -> None:
        """``records`` were confirmed ``ms`` after they arrived."""
        self.confirmed_records += records
        self.confirm_latency.observe(int(ms * 1000), records)

    def flushed(self, us: int, nbytes: int) -> None:
        """One flush took ``us`` and wrote ``nbytes``."""
        self.flushes += 1
        self.flushed_bytes += nbytes
        self.flush_latency.observe(us)

    def sample(self, now_ms: int) -> None:
        """Notes the counters' values for the rates; called about once a second."""
        values = tuple([getattr(self, name) for name in RATES])
        if self._samples:
            then, before = self._samples[-1]
            seconds = max(1, now_ms - then) / 1000
            self._rates.append(tuple([(a - b) / seconds for a, b in zip(values, before, strict=True)]))
        self._samples.append((now_ms, values))

    def rate(self, name: str) -> float:
        """How much a counter of ``RATES`` grew per second over the last seconds, as of the last sample."""
        if len(self._samples) < 2:
            return 0.0
        at = RATES.index(name)
        (then, before), (now, after) = self._samples[0], self._samples[-1]
        return (after[at] - before[at]) * 1000 / max(1, now - then)

    def history(self) -> dict[str, list[float]]:
        """For each of ``RATES`` its value in each of the last seconds, oldest first."""
        return {name: [round(sample[at], 1) for sample in self._rates] for at, name in enumerate(RATES)}


class NameMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one queue or stream that is loaded: totals since it was loaded, and gauges."""

    name: str
    kind: str
    published: int = 0
    delivered: int = 0
    settled: int = 0
    """Queues: in all, since it was loaded."""
    ready: int = 0
    leased: int = 0
    delayed: int = 0
    records: int = 0
    """Streams: retained records."""
    bytes: int = 0
    consumers: int = 0
    publishers: int = 0
    oldest_ms: int = 0
    lag: int = 0
    """Streams: the largest lag of its cursors."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway adds to a snapshot."""

    gauges: dict[str, float]
    totals: dict[str, int]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What ``broker.metrics()`` answers: everything that /metrics and the overview page show beside the verbs' replies."""

    counters: Counters
    gauges: dict[str, float] = {}
    """Further values by name, for instance ``connections``, ``wal_bytes``, ``disk_free_bytes``; their help stands in ``admin.exposition``."""
    totals: dict[str, int] = {}
    """Further counters by name, likewise."""
    names: tuple[NameMetrics, ...] = ()
    """At most ``names_max`` and ``_other``."""


def bounded(names: Iterable[NameMetrics], names_max: int) -> tuple[NameMetrics, ...]:
    """The ``names_max`` busiest of ``names`` (most published and delivered; in order of name), and all others of a kind added up as ``_other``."""
    ranked = sorted(names, key=lambda n: (-(n.published + n.delivered), n.name))
    kept, rest = ranked[:names_max], ranked[names_max:]
    kept.sort(key=lambda n: (n.kind, n.name))
    for kind in ("queue", "stream"):
        others = [n for n in rest if n.kind == kind]
        if others:
            totals = {field: sum(getattr(n, field) for n in others) for field in _ADDED}
            largest = {field: max(getattr(n, field) for n in others) for field in ("oldest_ms", "lag")}
            kept.append(NameMetrics(name=OTHER, kind=kind, **totals, **largest))
    return tuple(kept)


_ADDED: Final = ("published", "delivered", "settled", "ready", "leased", "delayed", "records", "bytes", "consumers", "publishers")
