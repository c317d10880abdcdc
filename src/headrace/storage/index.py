"""Where a partition's entries are: those in the log as a compact table, those moved out by references to segments. One object per partition in use.

Owns positions and counts only, no payload. Does no I/O. A partition without entries in the log and not in use has no object at all.

I1 Row k of the table is the entry with index ``first_index + k``; a hole (size 0) is an entry that was lost. I2 Neither offsets nor times fall from
row to row: what is no records entry, or a hole, stands where the records before it end, and has none. I3 References lie below everything in the
table, in index and in offset."""

import sys
from array import array
from bisect import bisect_right
from typing import Final, NamedTuple

from librt.strings import BytesWriter, write_i64_le

from headrace.storage.cache import Tail
from headrace.storage.entry import Appended
from headrace.storage.keys import NOTHING_MOVED, Moved, SegmentRef

POSITION_BITS: Final = 32
POSITION_MASK: Final = (1 << POSITION_BITS) - 1
HOLES_MAX: Final = 1 << 20
_WIDTH: Final[int] = 5
"""A row: place, size, base offset, record count, wall_ms."""
FRESH_BYTES: Final = 24 * 8 * _WIDTH
"""Of rows that gather before they are brought into the table."""

Row = tuple[int, int, int]
"""place, size, index."""


Columns = tuple["array[int]", "array[int]", "array[int]", "array[int]", "array[int]"]
"""Places, sizes, base offsets, record counts, times."""


class Rows(NamedTuple):
    """A copy of the oldest rows, for a thread to work on."""

    first_index: int
    columns: Columns


class Part:
    """See the module's head. A row's place packs file id and position."""

    __slots__ = (
        "checkpoint_epoch",
        "checkpoint_floor",
        "checkpoint_index",
        "checkpoint_next",
        "dead_rows",
        "durable_index",
        "first_index",
        "floor",
        "fresh",
        "last_epoch",
        "last_index",
        "live_bytes",
        "log_end",
        "moved",
        "newest",
        "next_offset",
        "noted_file",
        "obeyed",
        "oldest",
        "pid",
        "promised",
        "rows",
        "settled_floor",
        "slot",
        "table",
        "tail",
        "wake_at_ms",
        "wall_ms",
    )

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.moved: Moved = NOTHING_MOVED
        self.checkpoint_epoch = 0
        self.checkpoint_index = 0
        self.checkpoint_floor = 0
        self.checkpoint_next = 0
        self.wake_at_ms = 0
        self.last_epoch = 0
        self.last_index = 0
        self.durable_index = 0
        self.promised = 0
        self.obeyed: tuple[int, int] = (0, 0)
        """(generation, version) of the document that a replica had obeyed when it promised."""
        self.next_offset = 0
        self.floor = 0
        self.settled_floor = 0
        """The floor as far as what moved it is durable: data below it may be erased."""
        self.first_index = 1
        self.table: array[int] = array("q")
        """The rows but those in ``fresh``: ``whole`` has them all."""
        self.fresh: BytesWriter | None = None
        """The newest rows, as they landed: written one by one, they cost a fifth of what the table would take."""
        self.rows: int = 0
        self.log_end: int = -1
        """Offset after the last record in the rows; -1 = none is known."""
        self.wall_ms: int = 0
        """Of the last row, 0 = there is none."""
        self.dead_rows: int = 0
        """How many of the first rows end at or below the floor."""
        self.live_bytes: int = 0
        """Of the records entries in the other rows."""
        self.slot: Appended | None = None
        """Its entries that gather for the next flush: the newest of its slots, until that has landed."""
        self.noted_file: int = -1
        """The newest log file that is known to hold something of it."""
        self.tail = Tail()
        self.oldest: Appended | None = None
        """Of the records entries that are appended and not durable: each names the one that follows it."""
        self.newest: Appended | None = None

    # ------------------------------------------------------------ the log's table

    def whole(self) -> "array[int]":
        """The table with all its rows."""
        fresh = self.fresh
        if fresh is not None:
            self.fresh = None
            if sys.byteorder == "big":
                rows = array("q", fresh.getvalue())
                rows.byteswap()
                self.table.extend(rows)
            else:
                self.table.frombytes(fresh.getvalue())
        return self.table

    def _write(self, place: int, size: int, base: int, count: int, wall_ms: int) -> None:
        """One more row."""
        fresh = self.fresh
        if fresh is None:
            fresh = self.fresh = BytesWriter()
        write_i64_le(fresh, place)
        write_i64_le(fresh, size)
        write_i64_le(fresh, base)
        write_i64_le(fresh, count)
        write_i64_le(fresh, wall_ms)
        self.rows += 1
        self.log_end = base + count
        if len(fresh) >= FRESH_BYTES:
            self.whole()

    def add(self, place: int, size: int, index: int) -> None:
        """One more durable entry in the log that is no records entry. An index that was there before discards from there on; one too far ahead leaves
        holes."""
        self._go_on_at(index)
        self._append(place, size)

    def add_records(self, place: int, size: int, index: int, base: int, count: int, wall_ms: int) -> None:
        """As ``add``, for a records entry."""
        if index != self.first_index + self.rows:
            self._go_on_at(index)
        if wall_ms < self.wall_ms:
            wall_ms = self.wall_ms  # the clock went back: times are searched by bisection
        else:
            self.wall_ms = wall_ms
        self._write(place, size, base, count, wall_ms)
        if base + count > self.floor:
            self.live_bytes += size
        elif self.dead_rows == self.rows - 1:
            self.dead_rows = self.rows

    def _go_on_at(self, index: int) -> None:
        """Makes ``index`` that of the next row."""
        missing = index - self.first_index - self.rows
        if missing < 0:
            self.discard(index)
        if missing > HOLES_MAX:
            self.drop_rows(self.rows)
        if not self.rows:
            self.first_index = index
        elif missing > 0:
            place = self.place(self.rows - 1)
            for _ in range(missing):
                self._append(place, 0)

    def _append(self, place: int, size: int) -> None:
        end = self.log_end
        self._write(place, size, end, 0, self.wall_ms)
        if end <= self.floor and self.dead_rows == self.rows - 1:
            self.dead_rows = self.rows

    def discard(self, index: int) -> None:
        """Forgets all rows at or above ``index``."""
        keep = max(0, index - self.first_index)
        if keep >= self.rows:
            return
        self.live_bytes -= self._record_bytes(max(keep, self.dead_rows), self.rows)
        del self.whole()[keep * _WIDTH :]
        self.rows = keep
        self.log_end = self.end_of(keep)
        self.dead_rows = min(self.dead_rows, keep)
        self.wall_ms = self.table[-1] if keep else 0

    def drop_rows(self, count: int) -> None:
        """Forgets the first rows: they were moved out of the log."""
        if count <= 0:
            return
        self.live_bytes -= self._record_bytes(self.dead_rows, min(count, self.rows))
        del self.whole()[: count * _WIDTH]
        self.rows = max(0, self.rows - count)
        self.dead_rows = max(0, self.dead_rows - count)
        self.first_index += count
        if not self.rows:
            self.wall_ms = 0
            self.log_end = -1

    def _record_bytes(self, first: int, end: int) -> int:
        """Of the records entries in rows ``first`` to ``end``."""
        table, total = self.whole(), 0
        for at in range(first * _WIDTH, end * _WIDTH, _WIDTH):
            if table[at + 3]:
                total += table[at + 1]
        return total

    def copy(self, rows: int) -> Rows:
        """A copy of the first rows."""
        table = self.whole()[: rows * _WIDTH]
        return Rows(self.first_index, (table[0::_WIDTH], table[1::_WIDTH], table[2::_WIDTH], table[3::_WIDTH], table[4::_WIDTH]))

    def rows_up_to_file(self, file_id: int) -> int:
        """How many of the first rows lie in log files up to this one."""
        return self._first_at(0, (file_id + 1) << POSITION_BITS, 0)

    def _first_at(self, column: int, least: int, row: int) -> int:
        """The first row from ``row`` on with at least ``least`` in a column that never falls."""
        table, end = self.whole(), self.rows
        while row < end:
            middle = (row + end) // 2
            if table[middle * _WIDTH + column] < least:
                row = middle + 1
            else:
                end = middle
        return row

    def place(self, row: int) -> int:
        found: int = self.whole()[row * _WIDTH]
        return found

    def size(self, row: int) -> int:
        """0: the entry was lost."""
        found: int = self.whole()[row * _WIDTH + 1]
        return found

    def base(self, row: int) -> int:
        found: int = self.whole()[row * _WIDTH + 2]
        return found

    def count(self, row: int) -> int:
        """0: it is no records entry."""
        found: int = self.whole()[row * _WIDTH + 3]
        return found

    def row(self, row: int) -> Row:
        at, table = row * _WIDTH, self.whole()
        return table[at], table[at + 1], self.first_index + row

    def rows_from(self, row: int) -> list[Row]:
        """All rows from that one on, without holes."""
        return [self.row(k) for k in range(row, self.rows) if self.size(k)]

    def records_row(self, offset: int) -> int:
        """The first row that ends above ``offset``."""
        table = self.whole()
        row, end = 0, self.rows
        while row < end:
            middle = (row + end) // 2
            at = middle * _WIDTH
            if table[at + 2] + table[at + 3] <= offset:
                row = middle + 1
            else:
                end = middle
        return row

    def row_of_time(self, wall_ms: int, row: int) -> int:
        """The first row from ``row`` on that is of that time or later."""
        return self._first_at(4, wall_ms, row)

    def end_in_log(self) -> int:
        """Offset after the last record in the log; -1 = none is known."""
        return self.log_end

    def end_in_log_below(self, index: int) -> int:
        """As ``end_in_log`` for entries below an index."""
        return self.end_of(min(index - self.first_index, self.rows))

    def end_of(self, rows: int) -> int:
        """As ``end_in_log`` for the first rows."""
        at, table = (rows - 1) * _WIDTH, self.whole()
        return table[at + 2] + table[at + 3] if rows > 0 else -1

    # ------------------------------------------------------------ floor, sizes

    def set_floor(self, offset: int) -> None:
        """Lower offsets are dead."""
        self.floor = offset
        table, row = self.whole(), self.dead_rows
        while row < self.rows:
            at = row * _WIDTH
            count: int = table[at + 3]
            if table[at + 2] + count > offset:
                break
            if count:
                self.live_bytes -= table[at + 1]
            row += 1
        self.dead_rows = row

    def first_offset(self) -> int:
        """The lowest offset stored at or above the floor."""
        for ref in self.moved.refs:
            if ref.end_offset > self.floor and ref.end_offset > ref.first_offset:
                return max(self.floor, ref.first_offset)
        for row in range(self.dead_rows, self.rows):
            if self.count(row):
                return max(self.floor, self.base(row))
        if self.oldest is not None:
            return max(self.floor, self.oldest.base_offset)
        return self.next_offset

    def stored_bytes(self) -> int:
        """Live bytes in log and segments, about."""
        return self.live_bytes + sum(live_bytes(ref, self.floor) for ref in self.moved.refs)

    def ref_at(self, offset: int) -> int:
        """Number of the first reference with records that end above ``offset``; ``len(refs)`` = none."""
        refs = self.moved.refs
        at = bisect_right(refs, offset, key=_end_offset)
        while at < len(refs) and refs[at].end_offset == refs[at].first_offset:
            at += 1
        return at

    @property
    def tail_index(self) -> int:
        """The highest index of entries in segments that no checkpoint covers."""
        return max((ref.tail_index for ref in self.moved.refs), default=0)

    @property
    def forgettable(self) -> bool:
        """Whether everything it knows can be read again from the small state."""
        held = self.rows or self.oldest is not None or self.tail.head < len(self.tail.entries) or self.promised > self.moved.promised
        return not held and self.last_index <= self.checkpoint_index


def _end_offset(ref: SegmentRef) -> int:
    return ref.end_offset


def live_bytes(ref: SegmentRef, floor: int) -> int:
    """Bytes of a reference that are still needed, taking records as of equal size."""
    if ref.tail_index:
        return ref.nbytes
    if floor <= ref.first_offset:
        return ref.nbytes
    if floor >= ref.end_offset:
        return 0
    return ref.nbytes * (ref.end_offset - floor) // (ref.end_offset - ref.first_offset)
