"""Latencies as counts in log-linear steps: 1.6 % error, constant memory, mergeable over processes.

Owns the counting of how often which latency came. Does not know what was measured.
"""

STEP_BITS = 6
STEPS = 1 << STEP_BITS


class Histogram:
    """Counts of latencies in nanoseconds, 64 steps an octave."""

    __slots__ = ("count", "counts", "max_ns", "sum_ns")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.count = 0
        self.max_ns = 0
        self.sum_ns = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Counts ``count`` events that all took ``ns``."""
        ns = max(ns, 1)
        octave = ns.bit_length() - 1
        step = octave << STEP_BITS | (ns >> octave - STEP_BITS) & STEPS - 1 if octave > STEP_BITS else ns
        self.counts[step] = self.counts.get(step, 0) + count
        self.count += count
        self.sum_ns += ns * count
        self.max_ns = max(self.max_ns, ns)

    def merge(self, other: "Histogram") -> None:
        """Takes over what another histogram counted."""
        for step, count in other.counts.items():
            self.counts[step] = self.counts.get(step, 0) + count
        self.count += other.count
        self.sum_ns += other.sum_ns
        self.max_ns = max(self.max_ns, other.max_ns)

    def clear(self) -> None:
        """Forgets everything: the warm-up is over."""
        self.__init__()  # type: ignore[misc]

    def quantile_us(self, q: float) -> float:
        """The latency in microseconds that a fraction ``q`` of the events did not exceed (0 without events)."""
        want, seen = q * self.count, 0
        for step in sorted(self.counts):
            seen += self.counts[step]
            if seen >= want:
                return _value_ns(step) / 1e3
        return 0.0

    def summary(self) -> dict[str, float]:
        """The figures that every result shows, in microseconds."""
        if not self.count:
            return {}
        figures = {f"p{name}_us": self.quantile_us(q) for name, q in (("50", 0.5), ("90", 0.9), ("99", 0.99), ("999", 0.999))}
        return {name: round(value, 1) for name, value in figures.items()} | {
            "max_us": round(self.max_ns / 1e3, 1),
            "mean_us": round(self.sum_ns / self.count / 1e3, 1),
            "latency_count": self.count,
        }


def _value_ns(step: int) -> int:
    octave = step >> STEP_BITS
    if octave <= STEP_BITS:
        return step
    return (STEPS + (step & STEPS - 1)) << octave - STEP_BITS
