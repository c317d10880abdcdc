"""How long to wait before the next attempt to connect: exponential with full jitter in its upper half, without end.

Pure: the random number comes in. Invariant: every delay lies in [first/2, last].
"""


class Backoff:
    """50 ms, doubling to 5 s; ``reset`` after a connection that said hello."""

    __slots__ = ("_first_s", "_last_s", "_next_s", "attempts")

    def __init__(self, first_s: float = 0.05, last_s: float = 5.0) -> None:
        assert 0 < first_s <= last_s
        self._first_s = first_s
        self._last_s = last_s
        self._next_s = first_s
        self.attempts = 0

    def next_s(self, fraction: float) -> float:
        """Seconds to wait, given a random ``fraction`` in [0, 1)."""
        step = self._next_s
        self._next_s = min(step * 2, self._last_s)
        self.attempts += 1
        return step * (0.5 + fraction / 2)

    def reset(self) -> None:
        self._next_s = self._first_s
        self.attempts = 0
