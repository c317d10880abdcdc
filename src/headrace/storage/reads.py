"""Reading stored entries: finds them by the index, reads them in large pieces, verifies every one.

Owns the plan of a read. What is planned on the loop is carried out on a thread; where a file went in between, the read is planned anew.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, Protocol

from crc32c import crc32c

from headrace.model import limits
from headrace.model.errors import Damaged, NotFound
from headrace.storage import segments
from headrace.storage.api import StoredEntry
from headrace.storage.ground import Ground
from headrace.storage.index import POSITION_BITS, POSITION_MASK, Part, Row, Rows
from headrace.storage.keys import SegmentRef
from headrace.storage.walformat import ENTRY, ENTRY_BYTES
from headrace.wire.journal import RECORDS_HEAD, Kind

_GAP_BYTES: Final = 4096
"""Other partitions' bytes worth reading over rather than reading twice."""
_PLANS_MAX: Final = 20
_RECORDS: Final = int(Kind.RECORDS)


class LogBytes(Protocol):
    """Where the log's bytes come from."""

    def pread(self, file_id: int, position: int, length: int) -> bytes:
        """Unverified, from any thread. ``OSError``, or ``NotFound`` if the file is gone."""


class DamagedEntry(Damaged):
    """An entry in the log that was sound when it was written."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def _pieces(wal: LogBytes, rows: Sequence[Row], bad: list[int] | None) -> Iterator[tuple[memoryview, int, Sequence[Row]]]:
    """(bytes, their position, rows in them) of neighbours in one file, read together."""
    at, count = 0, len(rows)
    while at < count:
        place, size, _ = rows[at]
        file_id, start = place >> POSITION_BITS, place & POSITION_MASK
        stop = start + size
        upto = at + 1
        while upto < count:
            place, size, _ = rows[upto]
            position = place & POSITION_MASK
            if place >> POSITION_BITS != file_id or not stop <= position <= stop + _GAP_BYTES or position + size - start > limits.READ_CHUNK_BYTES:
                break
            stop = position + size
            upto += 1
        try:
            data = memoryview(wal.pread(file_id, start, stop - start))
        except OSError as e:
            if bad is None:
                raise DamagedEntry(f"log file {file_id} cannot be read at {start}: {e}", rows[at][2]) from e
            data = memoryview(b"")
        yield data, start, rows[at:upto]
        at = upto


def raw_entries(wal: LogBytes, pid: int, rows: Sequence[Row], *, bad: list[int] | None = None) -> Iterator[tuple[int, memoryview]]:
    """(index, whole entry) of each row, verified; neighbours are read together. A bad one is added to ``bad``; without it, ``DamagedEntry``.

    From any thread. ``NotFound`` if a log file is gone.
    """
    unpack, head = ENTRY.unpack_from, ENTRY_BYTES
    for data, start, held in _pieces(wal, rows, bad):
        for place, size, index in held:
            begin = (place & POSITION_MASK) - start
            raw = data[begin : begin + size]
            if len(raw) == size and size >= head:
                length, crc, of, _epoch, number, _kind, _flags = unpack(raw)
                if of == pid and number == index and length == size - head and crc32c(raw[8:]) == crc:
                    yield index, raw
                    continue
            _not_sound(place, index, bad)


def stored_entries(wal: LogBytes, pid: int, rows: Sequence[Row]) -> list[StoredEntry]:
    """The entries of rows as values, as ``raw_entries``."""
    found: list[StoredEntry] = []
    unpack, unpack_records, head, records_head = ENTRY.unpack_from, RECORDS_HEAD.unpack_from, ENTRY_BYTES, RECORDS_HEAD.size
    for data, start, held in _pieces(wal, rows, None):
        for place, size, index in held:
            begin = (place & POSITION_MASK) - start
            end = begin + size
            if end > len(data) or size < head:
                _not_sound(place, index, None)
            length, crc, of, epoch, number, kind, _flags = unpack(data, begin)
            if of != pid or number != index or length != size - head or crc32c(data[begin + 8 : end]) != crc:
                _not_sound(place, index, None)
            payload = bytes(data[begin + head : end])
            if kind == _RECORDS and length >= records_head:
                base, count, _, _, _ = unpack_records(payload)
                found.append(StoredEntry(epoch, index, kind, base, count, payload))
            else:
                found.append(StoredEntry(epoch, index, kind, -1, 0, payload))
    return found


def _not_sound(place: int, index: int, bad: list[int] | None) -> None:
    if bad is None:
        raise DamagedEntry(f"log file {place >> POSITION_BITS}: the entry at {place & POSITION_MASK} does not match its checksum", index)
    bad.append(index)


def record_rows(part: Part, offset: int, bytes_max: int, end_offset: int) -> list[Row]:
    """The log's rows of records entries from the one that ends above ``offset`` on: at least one if there is one."""
    rows: list[Row] = []
    for k in range(part.records_row(offset), part.rows):
        if part.count(k):
            bytes_max -= part.size(k)
            if rows and (bytes_max < 0 or part.base(k) >= end_offset):
                break
            rows.append(part.row(k))
    return rows


def rows_after(part: Part, index: int) -> list[Row]:
    """The log's rows of all entries above an index. Holes end it: what follows one cannot be replayed."""
    rows: list[Row] = []
    for k in range(max(0, index + 1 - part.first_index), part.rows):
        if not part.size(k):
            break
        rows.append(part.row(k))
    return rows


def rows_of(rows: Rows, after: int, floor: int) -> Iterator[tuple[Row, int, int, int]]:
    """What of the copied rows is to be kept: records above ``floor``, everything above index ``after``: (row, base offset or -1, count, wall_ms)."""
    for index, (place, size, base, count, wall) in enumerate(zip(*rows.columns, strict=True), rows.first_index):
        if count:
            if index > after or base + count > floor:
                yield (place, size, index), base, count, wall
        elif size and index > after:
            yield (place, size, index), -1, 0, 0


def bytes_of(rows: Rows, after: int, floor: int) -> tuple[int, int]:
    """(entries, bytes) of ``rows_of``."""
    _, sizes, bases, counts, _ = rows.columns
    if bases and 0 not in counts and bases[0] + counts[0] > floor:
        return len(sizes), sum(sizes)
    entries = nbytes = 0
    for row, *_ in rows_of(rows, after, floor):
        entries += 1
        nbytes += row[1]
    return entries, nbytes


class Reader:
    """Reads for the store."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def read(self, pid: int, offset: int, bytes_max: int, end_offset: int) -> list[StoredEntry]:
        """See ``api.Store.read``; damage isolates the partition."""
        ground = self._ground
        for _ in range(_PLANS_MAX):
            if pid in ground.damaged:
                raise Damaged(f"partition {pid} is quarantined: {ground.damaged[pid].why}")
            part = ground.part(pid)
            found = part.tail.find(offset, bytes_max, end_offset)
            if found is not None:
                return found
            try:
                at = part.ref_at(offset)
                if at < len(part.moved.refs):
                    ref = part.moved.refs[at]
                    found = await ground.on(ground.reader, partial(self._from_segment, pid, ref, offset, bytes_max, end_offset))
                    if found:
                        return found
                    if ref not in part.moved.refs:
                        continue
                    offset = ref.end_offset  # the rest of this section was compacted away
                    if offset >= end_offset:
                        return []
                    continue
                rows = record_rows(part, offset, bytes_max, end_offset)
                if not rows:
                    return []
                return await ground.on(ground.reader, partial(stored_entries, ground.wal, pid, rows))
            except NotFound:
                continue
            except Damaged as e:
                ground.isolate(pid, str(e), self._before(part, e, offset), offset, 1 if isinstance(e, DamagedEntry) else -1)
                raise
        raise Damaged(f"partition {pid}: the place of offset {offset} kept changing")

    def _from_segment(self, pid: int, ref: SegmentRef, offset: int, bytes_max: int, end_offset: int) -> list[StoredEntry]:
        files = self._ground.segments
        with files.opened(ref.file) as handle:
            return segments.read_from(files.files, handle, pid, ref, files.rows(handle, pid, ref), offset, bytes_max, end_offset)

    @staticmethod
    def _before(part: Part, error: Damaged, offset: int) -> int:
        if isinstance(error, DamagedEntry):
            return error.index - 1
        at = part.ref_at(offset)
        return part.moved.refs[at].first_index - 1 if at < len(part.moved.refs) else part.moved.moved_to

    def offset_for_time(self, pid: int, wall_ms: int) -> int:
        """See ``api.Store.offset_for_time``: at most one small read."""
        ground = self._ground
        part = ground.part(pid)
        for ref in part.moved.refs:
            if ref.end_offset > max(part.floor, ref.first_offset) and ref.last_wall_ms >= wall_ms:
                if ref.first_wall_ms >= wall_ms:
                    return max(part.floor, ref.first_offset)
                try:
                    with ground.segments.opened(ref.file) as handle:
                        rows = ground.segments.rows(handle, pid, ref)
                        return max(part.floor, segments.offset_at(ground.files, handle, pid, ref, rows, wall_ms))
                except (Damaged, NotFound, OSError) as e:
                    ground.isolate(pid, str(e), ref.first_index - 1, ref.first_offset, -1, ref.file)
                    return max(part.floor, ref.first_offset)
        for row in range(part.row_of_time(wall_ms, part.dead_rows), part.rows):
            if part.count(row):
                return max(part.floor, part.base(row))
        entry = part.oldest
        while entry is not None:
            if entry.wall_ms >= wall_ms:
                return max(part.floor, entry.base_offset)
            entry = entry.following
        return part.next_offset

    def entries_after(self, part: Part, index: int) -> list[StoredEntry]:
        """All entries above an index, from segments and log, on the calling thread. ``Damaged`` isolates the partition."""
        ground = self._ground
        kept = ground.recovered.take(part.pid, index, part.last_index) if part.tail_index <= index else None
        if kept is not None:
            return kept
        found: list[StoredEntry] = []
        try:
            for ref in part.moved.refs:
                if ref.tail_index > index:
                    with ground.segments.opened(ref.file) as handle:
                        found += segments.entries_after(ground.files, handle, part.pid, ref, index)
            last = max(index, part.moved.moved_to)
            found += stored_entries(ground.wal, part.pid, rows_after(part, last))
        except (Damaged, NotFound) as e:
            ground.isolate(part.pid, str(e), found[-1].index if found else index, part.next_offset, -1)
            raise Damaged(f"partition {part.pid} cannot be read: {e}") from e
        return found




