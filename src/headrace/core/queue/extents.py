"""Where the bytes lie: sizes and append times of a partition's messages, kept per chunk (what came in one tick).

A chunk's bytes spread evenly over its messages, so the size of a range is the difference of a function of position: sizes of disjoint parts add up
exactly, in whatever order they are asked for. Chunks that would not change that function are joined. 24 bytes a chunk.

I1: starts ascend; before[i] = bytes of all messages below starts[i]; append times never fall back (a wall clock that does is held).
"""

from array import array
from bisect import bisect_right

TIME_GRAIN_MS = 1000
"""Without age limits chunks of equal density that came within this time of the first are joined."""
FORGET_CHUNKS_MIN = 1024


class Extents:
    """Sizes and append times by offset; see the module's head."""

    __slots__ = ("_newest_before", "_newest_start", "before", "end", "starts", "total", "walls")

    def __init__(self) -> None:
        self.starts = array("Q")
        self.before = array("Q")
        self.walls = array("q")
        self.end = 0
        self.total = 0
        # the newest chunk's entries again: almost every question is about it
        self._newest_start = 0
        self._newest_before = 0

    def add(self, first: int, count: int, nbytes: int, wall_ms: int, *, grain_ms: int) -> None:
        """Appends a chunk; a gap before ``first`` has no bytes."""
        starts = self.starts
        if starts:
            last_wall = self.walls[-1]
            if wall_ms < last_wall:
                wall_ms = last_wall
            if first > self.end:
                self._append(self.end, wall_ms)
            elif wall_ms - last_wall <= grain_ms and (self.total - self._newest_before) * count == nbytes * (self.end - self._newest_start):
                self.end = first + count
                self.total += nbytes
                return
        self._append(first, wall_ms)
        self.end = first + count
        self.total += nbytes

    def _append(self, first: int, wall_ms: int) -> None:
        self._newest_start, self._newest_before = first, self.total
        self.starts.append(first)
        self.before.append(self.total)
        self.walls.append(wall_ms)

    def below(self, offset: int) -> int:
        """Bytes of all messages below ``offset`` (which is not below what was forgotten)."""
        if offset >= self.end:
            return self.total
        starts = self.starts
        i = bisect_right(starts, offset) - 1
        if i < 0:
            return self.before[0]
        start, before = starts[i], self.before[i]
        if i + 1 < len(starts):
            return before + (offset - start) * (self.before[i + 1] - before) // (starts[i + 1] - start)
        return before + (offset - start) * (self.total - before) // (self.end - start)

    def size(self, first: int, end: int) -> int:
        """Bytes of ``[first, end)``."""
        start = self._newest_start
        count = self.end - start
        if first < start or end > self.end or not count:
            return self.below(end) - self.below(first)
        nbytes = self.total - self._newest_before
        return (end - start) * nbytes // count - (first - start) * nbytes // count

    def fit(self, first: int, nbytes: int) -> int:
        """The largest end for which ``[first, end)`` has at most ``nbytes``."""
        base = self.below(first) + nbytes
        if base >= self.total:
            return self.end
        i = bisect_right(self.before, base) - 1
        start, before = self.starts[i], self.before[i]
        stop, after = (self.starts[i + 1], self.before[i + 1]) if i + 1 < len(self.starts) else (self.end, self.total)
        # the largest k with k * (after - before) // (stop - start) <= base - before
        k = ((base - before + 1) * (stop - start) - 1) // (after - before)
        return max(first, min(start + k, stop))

    def chunk(self, offset: int) -> tuple[int, int]:
        """End of the chunk that holds ``offset`` (below ``end``), and its append time."""
        i = max(0, bisect_right(self.starts, offset) - 1)
        return (self.starts[i + 1] if i + 1 < len(self.starts) else self.end), self.walls[i]

    def forget(self, floor: int) -> None:
        """Drops chunks wholly below ``floor``; amortised O(1)."""
        starts = self.starts
        if len(starts) > FORGET_CHUNKS_MIN and starts[FORGET_CHUNKS_MIN] <= floor:
            keep = bisect_right(starts, floor) - 1
            if 2 * keep >= len(starts):
                del starts[:keep], self.before[:keep], self.walls[:keep]

    def kept(self, floor: int) -> list[tuple[int, int, int]]:
        """(first, bytes below it, append time) of the chunks that reach beyond ``floor``, and of the newest in any case: what comes may join it."""
        i = max(0, bisect_right(self.starts, floor) - 1)
        return list(zip(self.starts[i:], self.before[i:], self.walls[i:], strict=True))

    @classmethod
    def of(cls, chunks: list[tuple[int, int, int]], end: int, total: int) -> "Extents":
        """The table that ``kept`` told of."""
        extents = cls()
        extents.end, extents.total = end, total
        for first, before, wall_ms in chunks:
            extents.starts.append(first)
            extents.before.append(before)
            extents.walls.append(wall_ms)
            extents._newest_start, extents._newest_before = first, before
        return extents
