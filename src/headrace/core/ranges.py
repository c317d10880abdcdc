"""Sets and maps of offset ranges whose cost follows the number of ranges, never the number of offsets.

It owns only the arithmetic; what a range means is its user's business. Ranges are half-open ``[first, end)``.

Layout: ranges lie sorted in blocks of at most ``BLOCK_RANGES``, each three parallel lists (starts, ends, values), so that a change in the middle
of 100,000 ranges moves a few hundred list slots and finding a place is two bisections.

I1: ranges are disjoint, non-empty and ascending. I2: no block is empty, and ``_heads[i]`` is the first start of block i.
I3: ``count`` is the number of offsets in all ranges. Neighbours of equal value are joined where they meet inside a block; iteration joins them
everywhere.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")

BLOCK_RANGES = 512


class RangeMap(Generic[V]):
    """A map from ranges of offsets to values; values are compared with ``==`` when neighbours may be joined."""

    __slots__ = ("_blocks", "_heads", "_limit", "count")

    def __init__(self, *, block_ranges: int = BLOCK_RANGES) -> None:
        self._limit = block_ranges
        self._heads: list[int] = []
        self._blocks: list[tuple[list[int], list[int], list[V]]] = []
        self.count = 0

    def __bool__(self) -> bool:
        return bool(self._heads)

    def __len__(self) -> int:
        """Number of ranges kept (adjacent blocks may hold two that touch)."""
        return sum(len(block[0]) for block in self._blocks)

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        """All ranges ascending, touching ones of equal value joined. The map must not change meanwhile."""
        held: tuple[int, int, V] | None = None
        for starts, ends, values in self._blocks:
            for first, end, value in zip(starts, ends, values, strict=True):
                if held is not None:
                    if held[1] == first and held[2] == value:
                        held = (held[0], end, value)
                        continue
                    yield held
                held = (first, end, value)
        if held is not None:
            yield held

    @property
    def first(self) -> int:
        """Lowest offset held, -1 if empty."""
        return self._heads[0] if self._heads else -1

    @property
    def end(self) -> int:
        """One past the highest offset held, -1 if empty."""
        return self._blocks[-1][1][-1] if self._blocks else -1

    def clear(self) -> None:
        """Forgets all ranges."""
        self._heads.clear()
        self._blocks.clear()
        self.count = 0

    def put(self, first: int, end: int, value: V) -> None:
        """Maps ``[first, end)`` to ``value``, replacing what was there. O(log n); O(1) at the tail."""
        if first >= end:
            return
        heads, blocks = self._heads, self._blocks
        if not heads:
            heads.append(first)
            blocks.append(([first], [end], [value]))
            self.count += end - first
            return
        starts, ends, values = blocks[-1]
        last = ends[-1]
        if last <= first:
            self.count += end - first
            if last == first and values[-1] == value:
                ends[-1] = end
            elif len(starts) < self._limit:
                starts.append(first)
                ends.append(end)
                values.append(value)
            else:
                heads.append(first)
                blocks.append(([first], [end], [value]))
            return
        at = max(0, bisect_right(heads, first) - 1)
        starts, ends, values = blocks[at]
        i = bisect_right(starts, first)
        following = starts[i] if i < len(starts) else heads[at + 1] if at + 1 < len(heads) else end
        if following < end or (i and ends[i - 1] > first):
            self.cut(first, end)
            self.put(first, end, value)
            return
        self.count += end - first
        joins_right = i < len(starts) and starts[i] == end and values[i] == value
        if i and ends[i - 1] == first and values[i - 1] == value:
            if joins_right:
                ends[i - 1] = ends[i]
                del starts[i], ends[i], values[i]
            else:
                ends[i - 1] = end
            return
        if joins_right:
            starts[i] = first
        else:
            starts.insert(i, first)
            ends.insert(i, end)
            values.insert(i, value)
            if len(starts) > self._limit:
                self._split(at)
        if i == 0:
            heads[at] = first

    def _split(self, at: int) -> None:
        starts, ends, values = self._blocks[at]
        half = len(starts) // 2
        self._blocks.insert(at + 1, (starts[half:], ends[half:], values[half:]))
        self._heads.insert(at + 1, starts[half])
        del starts[half:], ends[half:], values[half:]

    def cut(self, first: int, end: int) -> list[tuple[int, int, V]]:
        """Removes ``[first, end)`` and returns what was held of it, ascending and clipped. O(log n + pieces)."""
        heads = self._heads
        if not heads or first >= end:
            return []
        at = max(0, bisect_right(heads, first) - 1) if len(heads) > 1 else 0
        starts, ends, values = self._blocks[at]
        i = bisect_right(starts, first)
        if i and ends[i - 1] > first:
            i -= 1
        elif i == len(starts):
            return self._cut_across(at + 1, first, end)
        start, stop = starts[i], ends[i]
        if start >= end:
            return []
        if stop < end and (i + 1 < len(starts) or at + 1 < len(heads)):
            return self._cut_across(at, first, end)
        # one range is touched: by far the most frequent case
        value = values[i]
        if start < first:
            ends[i] = first
            if stop > end:
                starts.insert(i + 1, end)
                ends.insert(i + 1, stop)
                values.insert(i + 1, value)
                if len(starts) > self._limit:
                    self._split(at)
                stop = end
            start = first
        elif stop > end:
            starts[i] = stop = end
            if i == 0:
                heads[at] = end
        else:
            del starts[i], ends[i], values[i]
            if i == 0:
                if starts:
                    heads[at] = starts[0]
                else:
                    del heads[at], self._blocks[at]
        self.count -= stop - start
        return [(start, stop, value)]

    def _cut_across(self, at: int, first: int, end: int) -> list[tuple[int, int, V]]:
        heads, blocks = self._heads, self._blocks
        pieces: list[tuple[int, int, V]] = []
        while at < len(heads) and heads[at] < end:
            starts, ends, _ = blocks[at]
            low = bisect_right(starts, first)
            if low and ends[low - 1] > first:
                low -= 1
            high = bisect_left(starts, end, low)
            if low < high:
                self._cut_many(pieces, at, low, high, first, end)
            if starts:
                heads[at] = starts[0]
                at += 1
            else:
                del heads[at], blocks[at]
        return pieces

    def _cut_many(self, pieces: list[tuple[int, int, V]], at: int, low: int, high: int, first: int, end: int) -> None:
        starts, ends, values = self._blocks[at]
        found = len(pieces)
        pieces.extend(zip(starts[low:high], ends[low:high], values[low:high], strict=True))
        start, stop, value = pieces[found]
        keep_starts: list[int] = []
        keep_ends: list[int] = []
        keep_values: list[V] = []
        if start < first:
            pieces[found] = (first, stop, value)
            keep_starts.append(start)
            keep_ends.append(first)
            keep_values.append(value)
        start, stop, value = pieces[-1]
        if stop > end:
            pieces[-1] = (start, end, value)
            keep_starts.append(end)
            keep_ends.append(stop)
            keep_values.append(value)
        starts[low:high], ends[low:high], values[low:high] = keep_starts, keep_ends, keep_values
        self.count -= sum(stop - start for start, stop, _ in pieces[found:])

    def pieces(self, first: int, end: int, limit: int = 1 << 62) -> list[tuple[int, int, V]]:
        """What is held of ``[first, end)``, ascending and clipped, at most ``limit`` pieces; changes nothing."""
        heads, found = self._heads, list[tuple[int, int, V]]()
        if not heads or first >= end:
            return found
        for at in range(max(0, bisect_right(heads, first) - 1), len(heads)):
            if heads[at] >= end or len(found) >= limit:
                break
            starts, ends, values = self._blocks[at]
            low = bisect_right(starts, first)
            if low and ends[low - 1] > first:
                low -= 1
            for i in range(low, min(bisect_left(starts, end, low), low + limit - len(found))):
                found.append((max(starts[i], first), min(ends[i], end), values[i]))
        return found

    def take(self, limit: int) -> tuple[int, int, V]:
        """Removes up to ``limit`` (at least 1) offsets from the front of the first range and returns them; the map must not be empty."""
        starts, ends, values = self._blocks[0]
        first, end, value = starts[0], ends[0], values[0]
        if end - first > limit:
            end = first + limit
            starts[0] = self._heads[0] = end
        else:
            del starts[0], ends[0], values[0]
            if starts:
                self._heads[0] = starts[0]
            else:
                del self._heads[0], self._blocks[0]
        self.count -= end - first
        return first, end, value

    def find(self, offset: int) -> tuple[int, int, V] | None:
        """The whole range that holds ``offset``."""
        at = bisect_right(self._heads, offset) - 1
        if at < 0:
            return None
        starts, ends, values = self._blocks[at]
        i = bisect_right(starts, offset) - 1
        return (starts[i], ends[i], values[i]) if ends[i] > offset else None

    def __contains__(self, offset: int) -> bool:
        return self.find(offset) is not None

    def check(self) -> None:
        """Asserts I1-I3."""
        assert len(self._heads) == len(self._blocks)
        before, count = -1, 0
        for head, (starts, ends, values) in zip(self._heads, self._blocks, strict=True):
            assert 0 < len(starts) == len(ends) == len(values) <= self._limit
            assert head == starts[0]
            for first, end in zip(starts, ends, strict=True):
                assert before <= first < end
                before, count = end, count + end - first
        assert count == self.count


class RangeSet(RangeMap[bool]):
    """A set of offsets kept as ranges."""

    __slots__ = ()

    def add(self, first: int, end: int) -> None:
        """Adds ``[first, end)``."""
        self.put(first, end, True)

    def ranges(self) -> list[tuple[int, int]]:
        """All ranges, touching ones joined."""
        return [(first, end) for first, end, _ in self]


def gaps(pieces: list[tuple[int, int, V]], first: int, end: int) -> list[tuple[int, int]]:
    """What of ``[first, end)`` the ascending ``pieces`` leave uncovered."""
    missing = []
    for start, stop, _ in pieces:
        if first < start:
            missing.append((first, start))
        first = stop
    if first < end:
        missing.append((first, end))
    return missing
