"""A cursor against a set of acked offsets: it stands at the first one that is not acked, and nowhere else."""

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.stream.cursor import Cursor
from headrace.core.stream.durable import decode_rows, encode_rows
from tests.property.effort import effort

PARTS = st.floats(0, 1)


class CursorAgainstASet(RuleBasedStateMachine):
    """``done``: all that need not be read again, one offset at a time. ``limit``: the high watermark, ``tail``: what was sent beyond it."""

    @initialize(limit=st.integers(0, 30), at=PARTS)
    def begin(self, limit: int, at: float) -> None:
        self.limit = self.tail = limit
        self.start = 0
        place = round(limit * at)
        self.cursor = Cursor("c", place, 0)
        self.done = set(range(place))

    @property
    def place(self) -> int:
        """Where it must stand."""
        return next(offset for offset in range(self.limit + 1) if offset == self.limit or offset not in self.done)

    @rule(first=st.integers(0, 60), count=st.integers(1, 12))
    def acks(self, first: int, count: int) -> None:
        first, end = min(first, self.tail), min(first + count, self.tail)
        if first < end:
            assert self.cursor.settle(first, end, self.limit) or set(range(first, end)) <= self.done
            self.done |= set(range(first, end))

    @rule(ahead=st.integers(0, 3), count=st.integers(1, 6))
    def acks_near(self, ahead: int, count: int) -> None:
        self.acks(self.cursor.next_offset + ahead, count)

    @rule(count=st.integers(1, 10))
    def more_is_appended(self, count: int) -> None:
        self.tail += count

    @rule(part=PARTS)
    def more_is_committed(self, part: float) -> None:
        self.limit += round((self.tail - self.limit) * part)
        before = self.cursor.next_offset
        assert self.cursor.advance(self.limit) == (self.cursor.next_offset != before)

    @rule(part=PARTS)
    def retention_passes(self, part: float) -> None:
        to = self.start + round((self.limit - self.start) * part)
        self.start = to
        if to > self.cursor.next_offset:
            self.cursor.forward(to, self.limit)
            self.done |= set(range(to))

    @rule(part=PARTS)
    def is_set(self, part: float) -> None:
        to = self.start + round((self.limit - self.start) * part)
        self.cursor.place(to)
        self.done = set(range(to))

    @precondition(lambda self: self.tail > self.start)
    @rule(part=PARTS)
    def records_are_taken_back(self, part: float) -> None:
        offset = self.start + round((self.tail - self.start) * part)
        touched = any(o >= offset for o in self.done)
        self.limit, self.tail = min(self.limit, offset), offset
        assert self.cursor.retract(offset) == touched
        self.done = {o for o in self.done if o < offset}

    def copied(self) -> Cursor:
        [payload] = encode_rows([self.cursor.row(self.limit)])
        [row] = decode_rows(payload)
        copy = Cursor("c", 0, 0)
        copy.load(row)
        copy.check(self.limit)
        return copy

    @rule()
    def comes_back(self) -> None:
        """What lies beyond the high watermark is not durable, nor are acks of it."""
        self.cursor = self.copied()
        self.done = {o for o in self.done if o < self.limit}
        self.tail = self.limit

    @invariant()
    def stands_where_it_must(self) -> None:
        if not hasattr(self, "cursor"):
            return
        cursor = self.cursor
        cursor.check(self.limit)
        assert cursor.next_offset == self.place
        above = [o for first, end in cursor.above.ranges() for o in range(first, end)]
        assert above == sorted(o for o in self.done if o >= self.place)
        assert cursor.acked_above == len(above)
        for to in (self.limit, self.tail):
            missing = [o for first, end in cursor.unacked(to) for o in range(first, end)]
            assert missing == [o for o in range(self.place, to) if o not in self.done]
        row = cursor.row(self.limit)
        durable = [o for first, count in row.acked_above for o in range(first, first + count)]
        assert (row.next_offset, durable) == (self.place, [o for o in above if o < self.limit])


CursorAgainstASet.TestCase.settings = effort(50)
TestCursorAgainstASet = CursorAgainstASet.TestCase
