"""Segment files: entries that outlive the log. One format for a partition's own segments and for archives shared by several partitions.

Owns the bytes: writing whole files, finding an entry by offset or time, verifying, walking a damaged file. Does not know which file is still needed.
A file is written once, synced, and never changed. All integers are big-endian.

    file:    header, sections' entries, per section: rows block, checkpoint block; table, trailer
    header:  magic 8s, version u16, 6 zero bytes, file number u64, wall_ms i64, crc u32, zeros up to 64 bytes
    entries: as in the log, byte for byte (``walformat``), one partition after the other, ascending in index
    rows:    crc u32, then per ~64 KiB of entries: offset u64, wall_ms i64, index u64, position u64 of the entry that begins the step
    checkpoint: crc u32, length u32, then the checkpoint as in the small state (``keys.pack_checkpoint``)
    table:   SECTIONs, ascending by partition, then index
    trailer: magic 8s, file number u64, table position u64, sections u32, table crc u32, crc u32 of the trailer

I1 An entry's checksum covers its partition and index, so a misread never passes for another's. I2 Damage to an entry concerns only its partition;
rows that do not match are rebuilt by walking the section; a damaged table only matters when the small state is lost, and is rebuilt by walking the
file."""

import contextlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

from crc32c import crc32c

from headrace.model import limits
from headrace.model.errors import Damaged, UnsupportedVersion
from headrace.storage.api import StoredEntry
from headrace.storage.files import Buffer, Files, Handle
from headrace.storage.keys import SegmentRef
from headrace.storage.walformat import ENTRY, ENTRY_BYTES
from headrace.wire.journal import RECORDS_HEAD, Kind

VERSION: Final = 1
STEP_BYTES: Final = 64 * 1024
WRITE_BYTES: Final = 1024 * 1024
SYNC_BYTES: Final = 1024 * 1024
"""Synced in steps, so that a flush of the log never waits behind a whole segment."""

MAGIC: Final = b"HDRSEG\r\n"
TRAILER_MAGIC: Final = b"HDRSEND\n"
HEADER: Final = Struct(">8sH6xQq")
HEADER_BYTES: Final = 64
SECTION: Final = Struct(">QQQQQQQQqqQQIQI")
ROW: Final = Struct(">QqQQ")
TRAILER: Final = Struct(">8sQQII")
_CRC: Final = Struct(">I")
_BLOB: Final = Struct(">II")
TRAILER_BYTES: Final = TRAILER.size + _CRC.size
_RECORDS: Final = int(Kind.RECORDS)
assert HEADER.size + _CRC.size <= HEADER_BYTES and ROW.size == 32


class Section(NamedTuple):
    """A row of the table: a reference and where the checkpoint's copy stands (0 = none)."""

    pid: int
    ref: SegmentRef
    checkpoint_at: int
    checkpoint_bytes: int


def path_of(directory: str, number: int) -> str:
    return f"{directory}/segment-{number:016x}.seg"


def number_of(name: str) -> int | None:
    """The number in a file's name; None if it is no segment's."""
    if len(name) != 28 or not name.startswith("segment-") or not name.endswith(".seg"):
        return None
    try:
        number = int(name[8:24], 16)
    except ValueError:
        return None
    return number if f"segment-{number:016x}.seg" == name else None


# ------------------------------------------------------------ writing


class SegmentWriter:
    """Writes one file, section after section. ``finish`` syncs it; the caller syncs the directory. After an ``OSError``: ``abandon``."""

    _first_index: int
    _last_index: int
    _tail_index: int
    _start: int
    _entries: int
    _first_offset: int
    _end_offset: int
    _records: int
    _first_wall: int
    _last_wall: int
    _next_row: int
    _rows: bytearray

    def __init__(self, files: Files, directory: str, number: int, wall_ms: int) -> None:
        self.number = number
        self.path = path_of(directory, number)
        self._files = files
        self._handle: Handle = files.create(self.path)
        raw = HEADER.pack(MAGIC, VERSION, number, wall_ms)
        self._pieces: list[Buffer] = [(raw + _CRC.pack(crc32c(raw))).ljust(HEADER_BYTES, b"\0")]
        self._gathered = HEADER_BYTES
        self._written = 0
        self._synced = 0
        self._position = HEADER_BYTES
        self._sections: list[tuple[int, int, int, list[int], bytes, bytearray]] = []
        self._pid = -1

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._position

    def begin(self, pid: int, *, first_index: int, last_index: int, end_offset: int, tail_index: int = 0) -> None:
        """Opens the section that stands for the journal's entries ``[first_index, last_index]``; ``end_offset`` counts if it holds no records."""
        assert not self._sections or self._sections[-1][0] <= pid, "sections are sorted by partition, then index"
        self._pid = pid
        self._first_index, self._last_index, self._tail_index = first_index, last_index, tail_index
        self._start = self._position
        self._entries = 0
        self._first_offset = self._end_offset = end_offset
        self._records = 0
        self._first_wall = self._last_wall = 0
        self._next_row = 0
        self._rows = bytearray()

    def add(self, raw: Buffer, index: int, base: int, count: int, wall_ms: int) -> None:
        """One entry, verified by the caller; ``base`` -1 = it holds no records."""
        size = len(raw)
        if base >= 0:
            if not self._records:
                self._first_offset, self._first_wall = base, wall_ms
            self._records += 1
            self._end_offset = base + count
            self._last_wall = max(self._last_wall, wall_ms)
        if self._position >= self._next_row:
            self._rows += ROW.pack(base if base >= 0 else self._end_offset, self._last_wall, index, self._position)
            self._next_row = self._position + STEP_BYTES
        self._entries += 1
        self._position += size
        self._pieces.append(raw)
        self._gathered += size
        if self._gathered >= WRITE_BYTES:
            self._write()

    def cut(self, last_index: int, *, tail_index: int) -> None:
        """The open section stands for less than ``begin`` said: the rest goes to another file."""
        self._last_index, self._tail_index = last_index, tail_index

    def end(self, checkpoint: bytes = b"") -> None:
        """Closes the section; ``checkpoint`` is kept beside it for the day when the small state is lost."""
        row = [self._first_index, self._last_index, self._first_offset, self._end_offset, self._entries, self._start, self._position - self._start]
        row += [self._first_wall, self._last_wall, self._tail_index]
        self._sections.append((self._pid, len(self._rows) // ROW.size, 0, row, checkpoint, self._rows))

    def finish(self) -> list[Section]:
        """Writes footer and trailer and syncs; what was written, in order."""
        sections: list[Section] = []
        table = bytearray()
        for pid, rows, _, row, checkpoint, raw_rows in self._sections:
            rows_at = self._position
            self._put(_CRC.pack(crc32c(raw_rows)) + bytes(raw_rows))
            at = 0
            if checkpoint:
                at = self._position
                self._put(_BLOB.pack(crc32c(checkpoint), len(checkpoint)) + checkpoint)
            table += SECTION.pack(pid, *row, rows_at, rows, at, len(checkpoint))
            sections.append(Section(pid, _ref(self.number, row, rows_at, rows), at, len(checkpoint)))
        trailer = TRAILER.pack(TRAILER_MAGIC, self.number, self._position, len(sections), crc32c(table))
        self._put(bytes(table) + trailer + _CRC.pack(crc32c(trailer)))
        self._write()
        self._files.fsync(self._handle)
        self._files.close(self._handle)
        return sections

    def abandon(self) -> None:
        """Removes the unfinished file, as far as the disk lets us; what stays is found to be incomplete at the next start."""
        with contextlib.suppress(OSError, KeyError):
            self._files.close(self._handle)
        with contextlib.suppress(OSError):
            self._files.unlink(self.path)

    def _put(self, data: bytes) -> None:
        self._pieces.append(data)
        self._position += len(data)
        self._gathered += len(data)

    def _write(self) -> None:
        self._files.pwrite(self._handle, b"".join(self._pieces), self._written)
        self._written += self._gathered
        self._pieces, self._gathered = [], 0
        if self._written - self._synced >= SYNC_BYTES:
            self._files.fsync(self._handle)
            self._synced = self._written


def _ref(number: int, row: Sequence[int], rows_at: int, rows: int) -> SegmentRef:
    first_index, last_index, first_offset, end_offset, entries, position, nbytes, first_wall, last_wall, tail_index = row
    return SegmentRef(
        number, first_index, last_index, first_offset, end_offset, entries, position, nbytes, first_wall, last_wall, rows_at, rows, tail_index
    )


# ------------------------------------------------------------ reading


class Rows(NamedTuple):
    """The sparse index of a section, as columns."""

    offsets: "array[int]"
    walls: "array[int]"
    positions: "array[int]"


def load_rows(files: Files, handle: Handle, pid: int, ref: SegmentRef) -> Rows:
    """The section's sparse index; rebuilt by walking the section if it is damaged."""
    raw = files.pread(handle, _CRC.size + ref.rows * ROW.size, ref.rows_at)
    body = raw[_CRC.size :]
    if len(body) == ref.rows * ROW.size and _CRC.unpack_from(raw)[0] == crc32c(body):
        columns = list(zip(*ROW.iter_unpack(body), strict=True)) or [(), (), (), ()]
        return Rows(array("Q", columns[0]), array("q", columns[1]), array("Q", columns[3]))
    rows = Rows(array("Q"), array("q"), array("Q"))
    following, wall = 0, 0
    end_offset = ref.first_offset
    for position, entry in walk(files, handle, pid, ref):
        if entry.base_offset >= 0:
            end_offset = entry.base_offset + entry.record_count
            wall = max(wall, RECORDS_HEAD.unpack_from(entry.payload)[3])
        if position >= following:
            rows.offsets.append(entry.base_offset if entry.base_offset >= 0 else end_offset)
            rows.walls.append(wall)
            rows.positions.append(position)
            following = position + STEP_BYTES
    return rows


def read_from(
    files: Files, handle: Handle, pid: int, ref: SegmentRef, rows: Rows, offset: int, bytes_max: int, end_offset: int
) -> list[StoredEntry]:
    """Records entries of the section from the one that ends above ``offset`` on: at least one if there is one; ``Damaged``."""
    at = bisect_right(rows.offsets, offset) - 1
    position = rows.positions[at] if at >= 0 else ref.position
    end = ref.position + ref.nbytes
    found: list[StoredEntry] = []
    left = bytes_max
    for entry in _entries(files, handle, pid, ref, position, end, min(max(bytes_max, STEP_BYTES), limits.READ_CHUNK_BYTES)):
        if entry.kind != _RECORDS or entry.base_offset + entry.record_count <= offset:
            continue
        left -= len(entry.payload)
        if found and (left < 0 or entry.base_offset >= end_offset):
            break
        found.append(entry)
    return found


def offset_at(files: Files, handle: Handle, pid: int, ref: SegmentRef, rows: Rows, wall_ms: int) -> int:
    """The base offset of the section's first records entry appended at or after ``wall_ms``; the end if there is none."""
    at = max(0, bisect_right(rows.walls, wall_ms - 1) - 1)
    position = rows.positions[at] if at < len(rows.positions) else ref.position
    for entry in _entries(files, handle, pid, ref, position, ref.position + ref.nbytes, STEP_BYTES):
        if entry.kind == _RECORDS and RECORDS_HEAD.unpack_from(entry.payload)[3] >= wall_ms:
            return entry.base_offset
    return ref.end_offset


def entries_after(files: Files, handle: Handle, pid: int, ref: SegmentRef, index: int) -> list[StoredEntry]:
    """All entries of the section above a journal index; ``Damaged``."""
    found = _entries(files, handle, pid, ref, ref.position, ref.position + ref.nbytes, limits.READ_CHUNK_BYTES)
    return [entry for entry in found if entry.index > index]


def every_entry(files: Files, handle: Handle, pid: int, ref: SegmentRef) -> Iterator[StoredEntry]:
    """All entries of the section, verified; ``Damaged``."""
    return _entries(files, handle, pid, ref, ref.position, ref.position + ref.nbytes, limits.READ_CHUNK_BYTES)


def stored_positions(files: Files, handle: Handle, ref: SegmentRef) -> list[int]:
    """Positions of the sparse index as stored, unverified: places to try after damage."""
    raw = files.pread(handle, ref.rows * ROW.size, ref.rows_at + _CRC.size)
    return [row[3] for row in ROW.iter_unpack(raw[: len(raw) // ROW.size * ROW.size])]


def _entries(files: Files, handle: Handle, pid: int, ref: SegmentRef, position: int, end: int, chunk: int) -> Iterator[StoredEntry]:
    """Verified entries from ``position`` (where one begins) on, read in chunks."""
    data = b""
    at = 0
    unpack, lead = ENTRY.unpack_from, ENTRY_BYTES
    while position < end:
        if len(data) - at < lead:
            data, at = files.pread(handle, min(chunk, end - position), position), 0
            if len(data) < lead:
                raise Damaged(f"segment {ref.file} is cut off at {position + len(data)}")
        length, crc, of, epoch, index, kind, _flags = unpack(data, at)
        stop = at + lead + length
        if position + lead + length > end or of != pid or not ref.first_index <= index <= ref.last_index:
            raise Damaged(f"segment {ref.file}: the entry at {position} is damaged")
        if stop > len(data):
            data, at = files.pread(handle, min(max(chunk, lead + length), end - position), position), 0
            stop = lead + length
        view = memoryview(data)[at + 8 : stop]
        if len(view) != stop - at - 8 or crc32c(view) != crc:
            raise Damaged(f"segment {ref.file}: the entry at {position} does not match its checksum")
        position += stop - at
        payload = data[at + lead : stop]
        at = stop
        if kind == _RECORDS and length >= RECORDS_HEAD.size:
            base, count = RECORDS_HEAD.unpack_from(payload)[:2]
            yield StoredEntry(epoch, index, kind, base, count, payload)
        else:
            yield StoredEntry(epoch, index, kind, -1, 0, payload)


# ------------------------------------------------------------ walking what may be damaged


def walk(
    files: Files, handle: Handle, pid: int, ref: SegmentRef, *, bad: list[tuple[int, int]] | None = None, resync: Sequence[int] = ()
) -> Iterator[tuple[int, StoredEntry]]:
    """(position, entry) of every sound entry of the section. What lies between is added to ``bad`` as (position, bytes); without it, ``Damaged``.

    After damage it goes on where the damaged entry's length says, if a sound entry follows there, else at the next of ``resync`` (positions from the
    sparse index), else nowhere: payloads are never searched.
    """
    end = ref.position + ref.nbytes
    position = ref.position
    while position < end:
        entry, size = _one(files, handle, pid, ref, position, end)
        if entry is not None:
            yield position, entry
            position += size
            continue
        if bad is None:
            raise Damaged(f"segment {ref.file}: the entry at {position} is damaged")
        going_on = end
        if position + size == end or (size and _one(files, handle, pid, ref, position + size, end)[0] is not None):
            going_on = position + size
        else:
            for candidate in resync:
                if position < candidate < end and _one(files, handle, pid, ref, candidate, end)[0] is not None:
                    going_on = candidate
                    break
        bad.append((position, going_on - position))
        position = going_on


def _one(files: Files, handle: Handle, pid: int, ref: SegmentRef, position: int, end: int) -> tuple[StoredEntry | None, int]:
    """The entry at ``position`` (None: not sound) and the size it claims (0: not plausible)."""
    head = files.pread(handle, ENTRY_BYTES, position)
    if len(head) < ENTRY_BYTES:
        return None, 0
    length = ENTRY.unpack_from(head)[0]
    if position + ENTRY_BYTES + length > end:
        return None, 0
    try:
        for entry in _entries(files, handle, pid, ref, position, position + ENTRY_BYTES + length, ENTRY_BYTES + length):
            return entry, ENTRY_BYTES + length
    except Damaged:
        pass
    return None, ENTRY_BYTES + length


def read_table(files: Files, handle: Handle, number: int) -> list[Section] | None:
    """The sections of a file; None if it is not complete or its footer is damaged. ``UnsupportedVersion`` for a later format."""
    header = files.pread(handle, HEADER_BYTES, 0)
    if len(header) == HEADER_BYTES and _CRC.unpack_from(header, HEADER.size)[0] == crc32c(header[: HEADER.size]):
        magic, version, _number, _wall = HEADER.unpack_from(header)
        if magic == MAGIC and version != VERSION:
            raise UnsupportedVersion(f"segment {number} has format {version}, this broker knows {VERSION}", hint="start the version that wrote it")
    size = files.size(handle)
    raw = files.pread(handle, TRAILER_BYTES, max(0, size - TRAILER_BYTES))
    if len(raw) < TRAILER_BYTES or _CRC.unpack_from(raw, TRAILER.size)[0] != crc32c(raw[: TRAILER.size]):
        return None
    magic, of, table_at, count, crc = TRAILER.unpack_from(raw)
    table = files.pread(handle, count * SECTION.size, table_at)
    if magic != TRAILER_MAGIC or of != number or len(table) != count * SECTION.size or crc32c(table) != crc:
        return None
    found = []
    for pid, *row, rows_at, rows, checkpoint_at, checkpoint_bytes in SECTION.iter_unpack(table):
        found.append(Section(pid, _ref(number, row, rows_at, rows), checkpoint_at, checkpoint_bytes))
    return found


def read_checkpoint(files: Files, handle: Handle, section: Section) -> bytes | None:
    """The copy of a checkpoint; None if there is none or it is damaged."""
    if not section.checkpoint_at:
        return None
    raw = files.pread(handle, _BLOB.size + section.checkpoint_bytes, section.checkpoint_at)
    if len(raw) != _BLOB.size + section.checkpoint_bytes or _BLOB.unpack_from(raw) != (crc32c(raw[_BLOB.size :]), section.checkpoint_bytes):
        return None
    return raw[_BLOB.size :]


def sections_by_walking(files: Files, handle: Handle, number: int) -> list[Section]:
    """What a file without a sound footer holds, as far as its entries can be followed from the begin: dense sections, without checkpoints."""
    size = files.size(handle)
    position = HEADER_BYTES
    found: dict[int, list[int]] = {}
    while position + ENTRY_BYTES <= size:
        raw = files.pread(handle, ENTRY_BYTES, position)
        length, crc, pid, _epoch, index, kind, _flags = ENTRY.unpack_from(raw)
        whole = files.pread(handle, ENTRY_BYTES + length, position) if position + ENTRY_BYTES + length <= size else b""
        if not whole or crc32c(memoryview(whole)[8:]) != crc:
            break
        row = found.setdefault(pid, [index, index, 0, 0, 0, position, 0, 0, 0, 0])
        row[1] = index
        row[4] += 1
        row[6] += len(whole)
        if kind == _RECORDS and length >= RECORDS_HEAD.size:
            base, count, _frames, wall, _runs = RECORDS_HEAD.unpack_from(whole, ENTRY_BYTES)
            if not row[3]:
                row[2], row[7] = base, wall
            row[3], row[8] = base + count, max(row[8], wall)
        else:
            row[9] = index
        position += len(whole)
    return [Section(pid, _ref(number, row, 0, 0), 0, 0) for pid, row in sorted(found.items())]
