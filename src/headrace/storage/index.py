"""Where a partition's entries are: those in the log as compact columns, those moved out by references to segments. One object per partition in use.

Owns positions and counts only, no payload. Does no I/O. A partition without entries in the log and not in use has no object at all.

I1 Row k of the log columns is the entry with index ``first_index + k``; a hole (size 0) is an entry that was lost. I2 The records columns are
ascending in index and offset, and each names a row. I3 References lie below everything in the log columns, in index and in offset."""

from array import array
from bisect import bisect_left, bisect_right
from typing import Final, NamedTuple

from headrace.storage.cache import Tail
from headrace.storage.entry import Appended
from headrace.storage.keys import NOTHING_MOVED, Moved, SegmentRef
from headrace.wire.journal import Kind

POSITION_BITS: Final = 32
POSITION_MASK: Final = (1 << POSITION_BITS) - 1
HOLES_MAX: Final = 1 << 20
_RECORDS: Final = int(Kind.RECORDS)


class Columns(NamedTuple):
    """A copy of the oldest rows, for a thread to work on."""

    first_index: int
    places: "array[int]"
    sizes: "array[int]"
    kinds: bytes
    records: "array[int]"
    bases: "array[int]"
    counts: "array[int]"
    walls: "array[int]"


class Part:
    """See the module's head. ``places`` packs file id and position of each row; ``records`` holds the index of each records entry."""

    __slots__ = (
        "bases",
        "checkpoint_epoch",
        "checkpoint_floor",
        "checkpoint_index",
        "checkpoint_next",
        "counts",
        "dead_rows",
        "durable_index",
        "first_index",
        "floor",
        "kinds",
        "last_epoch",
        "last_index",
        "live_bytes",
        "moved",
        "next_offset",
        "noted_file",
        "obeyed",
        "pid",
        "places",
        "promised",
        "records",
        "settled_floor",
        "sizes",
        "slot",
        "tail",
        "unflushed",
        "wake_at_ms",
        "walls",
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
        self.places: array[int] = array("Q")
        self.sizes: array[int] = array("I")
        self.kinds = bytearray()
        self.records: array[int] = array("Q")
        self.bases: array[int] = array("Q")
        self.counts: array[int] = array("I")
        self.walls: array[int] = array("q")
        self.dead_rows = 0
        """How many of the first records entries lie below the floor."""
        self.live_bytes = 0
        """Of the other records entries in the log."""
        self.slot: Appended | None = None
        """Its entries that gather for the next flush: the newest of its slots, until that has landed."""
        self.noted_file: int = -1
        """The newest log file that is known to hold something of it."""
        self.tail = Tail()
        self.unflushed: list[Appended] = []
        """Records entries that are appended and not durable."""

    # ------------------------------------------------------------ the log's columns

    def add(self, place: int, size: int, index: int, kind: int) -> None:
        """One more durable entry in the log. An index that was there before discards from there on; one too far ahead leaves holes."""
        expected = self.first_index + len(self.sizes)
        if index != expected:
            if not self.sizes:
                self.first_index = index
            elif index < expected:
                self.discard(index)
                if not self.sizes:
                    self.first_index = index
            else:
                missing = index - expected
                if missing > HOLES_MAX:
                    self.drop_rows(len(self.sizes))
                    self.first_index = index
                else:
                    self.places.extend([self.places[-1]] * missing)
                    self.sizes.extend([0] * missing)
                    self.kinds.extend(bytes(missing))
        self.places.append(place)
        self.sizes.append(size)
        self.kinds.append(kind)

    def add_records(self, place: int, size: int, index: int, base: int, count: int, wall_ms: int) -> None:
        """As ``add``, for a records entry."""
        if index == self.first_index + len(self.sizes):
            self.places.append(place)
            self.sizes.append(size)
            self.kinds.append(_RECORDS)
        else:
            self.add(place, size, index, _RECORDS)
        walls = self.walls
        if walls and wall_ms < walls[-1]:
            wall_ms = walls[-1]  # the clock went back: times are searched by bisection
        self.records.append(index)
        self.bases.append(base)
        self.counts.append(count)
        walls.append(wall_ms)
        if base + count > self.floor:
            self.live_bytes += size
        elif self.dead_rows == len(self.records) - 1:
            self.dead_rows += 1

    def discard(self, index: int) -> None:
        """Forgets all rows at or above ``index``."""
        keep = max(0, index - self.first_index)
        at = bisect_left(self.records, index)
        for k in range(max(at, self.dead_rows), len(self.records)):
            self.live_bytes -= self.sizes[self.records[k] - self.first_index]
        for column in (self.records, self.bases, self.counts, self.walls):
            del column[at:]
        self.dead_rows = min(self.dead_rows, at)
        del self.places[keep:]
        del self.sizes[keep:]
        del self.kinds[keep:]

    def rows_up_to_file(self, file_id: int) -> int:
        """How many of the first rows lie in log files up to this one."""
        return bisect_left(self.places, (file_id + 1) << POSITION_BITS)

    def drop_rows(self, count: int) -> None:
        """Forgets the first rows: they were moved out of the log."""
        if count <= 0:
            return
        index = self.first_index + count
        at = bisect_left(self.records, index)
        for k in range(self.dead_rows, at):
            self.live_bytes -= self.sizes[self.records[k] - self.first_index]
        for column in (self.records, self.bases, self.counts, self.walls):
            del column[:at]
        self.dead_rows = max(0, self.dead_rows - at)
        del self.places[:count]
        del self.sizes[:count]
        del self.kinds[:count]
        self.first_index = index

    def columns(self, rows: int) -> Columns:
        """A copy of the first rows."""
        at = bisect_left(self.records, self.first_index + rows)
        return Columns(
            self.first_index,
            self.places[:rows],
            self.sizes[:rows],
            bytes(self.kinds[:rows]),
            self.records[:at],
            self.bases[:at],
            self.counts[:at],
            self.walls[:at],
        )

    def records_row(self, offset: int) -> int:
        """Number of the first records entry in the log that ends above ``offset``."""
        at = bisect_right(self.bases, offset)
        if at and self.bases[at - 1] + self.counts[at - 1] > offset:
            at -= 1
        return at

    def end_in_log(self) -> int:
        """Offset after the last record in the log; -1 = there is none."""
        return self.bases[-1] + self.counts[-1] if self.bases else -1

    def end_in_log_below(self, index: int) -> int:
        """As ``end_in_log`` for entries below an index."""
        at = bisect_left(self.records, index)
        return self.bases[at - 1] + self.counts[at - 1] if at else -1

    # ------------------------------------------------------------ floor, sizes

    def set_floor(self, offset: int) -> None:
        """Lower offsets are dead."""
        self.floor = offset
        bases, counts, records, sizes = self.bases, self.counts, self.records, self.sizes
        at, first = self.dead_rows, self.first_index
        while at < len(bases) and bases[at] + counts[at] <= offset:
            self.live_bytes -= sizes[records[at] - first]
            at += 1
        self.dead_rows = at

    def first_offset(self) -> int:
        """The lowest offset stored at or above the floor."""
        for ref in self.moved.refs:
            if ref.end_offset > self.floor and ref.end_offset > ref.first_offset:
                return max(self.floor, ref.first_offset)
        if self.dead_rows < len(self.bases):
            return max(self.floor, self.bases[self.dead_rows])
        if self.unflushed:
            return max(self.floor, self.unflushed[0].base_offset)
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
        held = self.sizes or self.unflushed or self.tail.head < len(self.tail.entries) or self.promised > self.moved.promised
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
