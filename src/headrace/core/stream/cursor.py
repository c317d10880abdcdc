"""A cursor: how far a named subscriber of one stream partition has come, durably.

Owns the next offset to read and the acked ranges above it. Knows neither readers nor the journal; the high watermark comes in as ``limit``.

Invariants: C1 ``next_offset`` moves only over records that are all acked, never over a gap. C2 it never passes ``limit``. C3 every range in
``above`` lies above ``next_offset``, or begins at it because the limit holds the cursor back.
"""

from headrace.core.ranges import RangeSet, gaps
from headrace.model import limits
from headrace.wire.journal import CursorEntry

_END = 1 << 64


class Cursor:
    """See the module's head. ``wall_ms`` is when it last changed; ``reader_id`` who moves it now (-1 = nobody)."""

    __slots__ = ("above", "generation", "name", "next_offset", "reader_id", "wall_ms")

    def __init__(self, name: str, next_offset: int, wall_ms: int) -> None:
        self.name = name
        self.next_offset = next_offset
        self.above = RangeSet()
        self.wall_ms = wall_ms
        self.generation = 0
        self.reader_id = -1

    @property
    def acked_above(self) -> int:
        """Number of records acked above ``next_offset``."""
        return self.above.count

    def fits(self, first: int, end: int) -> bool:
        """Whether acking [first, end) keeps the number of ranges above within ``CURSOR_RANGES_MAX``."""
        if len(self.above) < limits.CURSOR_RANGES_MAX or first <= self.next_offset:
            return True
        return (first - 1) in self.above or end in self.above

    def settle(self, first: int, end: int, limit: int) -> bool:
        """Takes [first, end) as acked and moves on as far as C1 and C2 allow; whether anything changed. O(log ranges), O(1) in order."""
        here = self.next_offset
        if end <= here:
            return False
        if first <= here and end <= limit and not self.above:
            self.next_offset = end
            return True
        self.above.add(max(first, here), end)
        self.advance(limit)
        return True

    def advance(self, limit: int) -> bool:
        """Moves over what is acked right above, up to ``limit``; whether it moved."""
        above, before = self.above, self.next_offset
        while above and above.first <= self.next_offset < limit:
            self.next_offset = above.take(limit - self.next_offset)[1]
        return self.next_offset != before

    def forward(self, to: int, limit: int) -> None:
        """Retention: everything below ``to`` is gone."""
        self.next_offset = to
        self.above.cut(0, to)
        self.advance(limit)

    def place(self, to: int) -> None:
        """Sets it by command; what was acked above is forgotten, so it is read again."""
        self.next_offset = to
        self.above.clear()

    def retract(self, offset: int) -> bool:
        """Records from ``offset`` on were taken back; whether that touched this cursor."""
        lost = self.above.cut(offset, _END)
        touched = bool(lost) or self.next_offset > offset
        self.next_offset = min(self.next_offset, offset)
        return touched

    def unacked(self, to: int) -> list[tuple[int, int]]:
        """The ranges of [next_offset, to) that are not acked."""
        return gaps(self.above.pieces(self.next_offset, to), self.next_offset, to)

    def row(self, limit: int) -> CursorEntry:
        """The durable form: only what lies below the high watermark ``limit``."""
        above = self.above.ranges() if self.above else []
        return CursorEntry(self.name, self.next_offset, [(first, min(end, limit) - first) for first, end in above if first < limit], self.wall_ms)

    def load(self, row: CursorEntry) -> None:
        """Takes over a durable form."""
        self.next_offset, self.wall_ms = row.next_offset, row.wall_ms
        self.above.clear()
        for first, count in row.acked_above:
            self.above.add(max(first, self.next_offset), first + count)

    def check(self, limit: int) -> None:
        """Asserts C2 and C3."""
        self.above.check()
        assert 0 <= self.next_offset <= limit, f"cursor {self.name!r} at {self.next_offset} is past the high watermark {limit}"
        if self.above:
            assert self.above.first > self.next_offset or self.next_offset == limit, f"cursor {self.name!r} stands before an acked range"
