"""Which epoch wrote which entries of a journal, as (epoch, first index) of each run, and where two journals begin to differ.

Owns only this arithmetic. Rests on one property that the machines keep: two journals that hold an entry of the same epoch at the same index hold
the same entries up to there, as far as they go back.

H1 Epochs and first indexes of the runs grow strictly. H2 The first run begins where the history does: at ``start``, or it is empty. H3
``base_epoch`` is the epoch of the entry before ``start`` (0 = there is none) and is not above that of the first run.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

Run = tuple[int, int]
"""(epoch, index of its first entry)."""
RUNS_MAX = 4096
"""In a message. A journal is cut into checkpoints long before it has so many owners."""


class EpochHistory:
    """See the module's head."""

    __slots__ = ("base_epoch", "runs", "start")

    def __init__(self, start: int = 1, base_epoch: int = 0, runs: Sequence[Run] = ()) -> None:
        self.start = start
        self.base_epoch = base_epoch
        self.runs: list[Run] = list(runs)

    @property
    def last_epoch(self) -> int:
        """Epoch of the last entry (of the one before ``start``, if none is held)."""
        return self.runs[-1][0] if self.runs else self.base_epoch

    def epoch_at(self, index: int) -> int:
        """Epoch of the entry at ``index``, of the last one for what lies beyond; -1 for what lies before ``start - 1``."""
        if self.runs and index >= self.runs[-1][1]:
            return self.runs[-1][0]
        if index < self.start:
            return self.base_epoch if index == self.start - 1 else -1
        at = bisect_right(self.runs, index, key=_first)
        return self.runs[at - 1][0] if at else self.base_epoch

    def append(self, epoch: int, first: int) -> None:
        """Entries of ``epoch`` follow from ``first`` on."""
        if not self.runs or self.runs[-1][0] != epoch:
            assert epoch >= self.last_epoch and first >= self.start
            self.runs.append((epoch, first))

    def truncate(self, end: int) -> None:
        """Nothing is held from ``end`` on any more."""
        while self.runs and self.runs[-1][1] >= end:
            self.runs.pop()

    def trim(self, start: int) -> None:
        """Nothing is held below ``start`` any more."""
        if start <= self.start:
            return
        self.base_epoch = self.epoch_at(start - 1)
        kept = bisect_right(self.runs, start, key=_first)
        runs = self.runs[kept:]
        if kept:
            runs.insert(0, (self.runs[kept - 1][0], start))
        self.runs = runs
        self.start = start

    def between(self, first: int, end: int) -> tuple[Run, ...]:
        """The runs of the entries ``[first, end)``, the first of them beginning at ``first``."""
        if first >= end:
            return ()
        if self.runs and first >= self.runs[-1][1]:
            return ((self.runs[-1][0], first),)
        at = bisect_right(self.runs, first, key=_first)
        found = [(self.epoch_at(first), first)]
        for run in self.runs[at:]:
            if run[1] >= end:
                break
            found.append(run)
        return tuple(found)

    def whole(self) -> tuple[int, int, tuple[Run, ...]]:
        """(start, base epoch, runs) of it all; of its end, if there are more runs than a message takes."""
        if len(self.runs) <= RUNS_MAX:
            return self.start, self.base_epoch, tuple(self.runs)
        runs = self.runs[-RUNS_MAX:]
        return runs[0][1], self.runs[-RUNS_MAX - 1][0], tuple(runs)

    def divergence(self, end: int, other: "EpochHistory", other_end: int) -> int | None:
        """Exclusive end of what two journals share, this one up to ``end``, the other one up to ``other_end``; None if they have no epoch in
        common."""
        mine, others = self._spans(end), dict(other._spans(other_end))
        for epoch, stop in reversed(mine):
            if epoch in others:
                return min(stop, others[epoch])
        return None

    def _spans(self, end: int) -> list[tuple[int, int]]:
        """(epoch, exclusive end) of each run, that of the entry before the start included."""
        spans = [(self.base_epoch, self.start)] if not self.runs or self.runs[0][0] != self.base_epoch else []
        runs = self.runs
        for at, (epoch, _) in enumerate(runs):
            spans.append((epoch, runs[at + 1][1] if at + 1 < len(runs) else end))
        return spans

    def check(self, end: int) -> None:
        """Asserts H1 to H3 for a journal that ends at ``end``."""
        assert sound(self.runs, start=self.start, base_epoch=self.base_epoch, end=end), (self.start, self.base_epoch, self.runs, end)


def sound(runs: Sequence[Run], *, start: int, base_epoch: int, end: int) -> bool:
    """Whether ``runs`` can be the history of a journal ``[start, end)``."""
    if start < 1 or end < start or base_epoch < 0 or len(runs) > RUNS_MAX:
        return False
    if start == end:
        return not runs
    if not runs or runs[0][1] != start or runs[0][0] < max(1, base_epoch):
        return False
    return runs[-1][1] < end and all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(runs))


def _first(run: Run) -> int:
    return run[1]
