"""Reading one file of the write-ahead log: its sound heads and directories, and the entries of a flush as far as they can be trusted.

Owns the window over a file and the order of trust: lengths proven by the flush's checksum first, else the bounds that a directory gives. Does not
know what follows from damage: that is recovery's.
"""

from typing import Final

from crc32c import crc32c

from headrace.storage.files import Files, Handle
from headrace.storage.walformat import (
    BLOCK,
    DATA_START,
    ENTRY,
    ENTRY_BYTES,
    HEAD_BYTES,
    HEADER_BLOCK,
    MARKERS,
    PROMISE,
    ROW,
    FileHeader,
    FlushHead,
    Row,
    decode_head,
    decode_rows,
    needle,
)

WINDOW_BYTES: Final = 1 << 20


class Source:
    """A log file being read through a window."""

    __slots__ = ("_at", "_files", "_window", "file_id", "handle", "header", "scarred", "seed", "size")

    def __init__(self, files: Files, file_id: int, handle: Handle) -> None:
        self._files = files
        self.file_id = file_id
        self.handle = handle
        self.size = files.size(handle)
        self.header: FileHeader | None = None
        self.seed = 0
        self.scarred = False
        self._at = 0
        self._window = memoryview(b"")

    def view(self, position: int, length: int) -> memoryview:
        """Those bytes; fewer at the end of the file."""
        at = position - self._at
        if at < 0 or at + length > len(self._window):
            self._window = memoryview(self.pread(position, max(length, WINDOW_BYTES)))
            self._at = position
            at = 0
        return self._window[at : at + length]

    def pread(self, position: int, length: int) -> bytes:
        """Those bytes, fewer at the end of the file; what the disk refuses to give reads as zeros."""
        length = min(length, self.size - position)
        if length <= 0:
            return b""
        try:
            return self._files.pread(self.handle, length, position)
        except OSError:
            self.scarred = True
            return b"".join([self._block(at, min(HEADER_BLOCK, position + length - at)) for at in range(position, position + length, HEADER_BLOCK)])

    def _block(self, position: int, length: int) -> bytes:
        try:
            return self._files.pread(self.handle, length, position)
        except OSError:
            return bytes(length)

    def head(self, position: int) -> FlushHead | None:
        return decode_head(self.view(position, HEAD_BYTES), 0, self.seed, file_id=self.file_id, position=position)

    def search(self, position: int, stop: int) -> FlushHead | None:
        """The first sound head from ``position`` (a multiple of 512) on that begins before ``stop``."""
        sought = needle(self.file_id)
        while position < stop:
            chunk = self.pread(position, min(WINDOW_BYTES, stop - position))
            if not chunk:
                return None
            begins = chunk[::BLOCK]
            block = begins.find(sought[:1])
            while block >= 0:
                at = block * BLOCK
                if chunk[at : at + len(sought)] == sought and (head := self.head(position + at)) is not None:
                    return head
                block = begins.find(sought[:1], block + 1)
            position += WINDOW_BYTES
        return None

    def last_head(self) -> FlushHead | None:
        """The last sound head in the file."""
        sought = needle(self.file_id)
        for position in range(DATA_START + (self.size - DATA_START) // WINDOW_BYTES * WINDOW_BYTES, DATA_START - 1, -WINDOW_BYTES):
            chunk = self.pread(position, WINDOW_BYTES)
            begins = chunk[::BLOCK]
            block = begins.rfind(sought[:1])
            while block >= 0:
                at = block * BLOCK
                if chunk[at : at + len(sought)] == sought and (head := self.head(position + at)) is not None:
                    return head
                block = begins.rfind(sought[:1], 0, block)
        return None

    def rows(self, head: FlushHead) -> list[Row] | None:
        """A flush's own directory; None if it is damaged."""
        return decode_rows(self.view(head.rows_at, head.rows * ROW.size), head.rows_crc, self.seed)

    def previous_rows(self, head: FlushHead) -> list[Row] | None:
        """The directory of the flush before, as repeated in this one; None if it is damaged or not known."""
        if not head.previous_file_id:
            return None
        return decode_rows(self.view(head.previous_rows_at, head.previous_rows * ROW.size), head.previous_rows_crc, self.seed)


class Read:
    """Entries of one flush; ``bad``: numbers of those whose payload does not match (a marker among them has an empty payload)."""

    __slots__ = ("bad", "entries", "payloads")

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, int, int, int, int]] = []
        """(partition, epoch, index, kind, position, length)."""
        self.payloads: list[memoryview] = []
        self.bad: set[int] = set()


def walk(body: memoryview, base: int, head: FlushHead, seed: int) -> Read | None:
    """All entries of a flush, whose lengths are proven by the checksum over their headers; None if it does not match."""
    if len(body) < head.entry_bytes:
        return None
    read = Read()
    entries, payloads = read.entries, read.payloads
    at, end = 0, len(body)
    unpack = ENTRY.unpack_from
    heads_crc = seed
    while at < end:
        inner = at + ENTRY_BYTES
        if inner > end:
            return None
        length, crc, pid, epoch, index, kind, _flags = unpack(body, at)
        stop = inner + length
        if stop > end:
            return None
        heads_crc = crc32c(body[at:inner], heads_crc)
        payload = body[inner:stop]
        if crc32c(body[at + 8 : stop]) != crc:
            read.bad.add(len(entries))
            if kind in MARKERS:
                payload = payload[:0]
        entries.append((pid, epoch, index, kind, base + at, stop - at))
        payloads.append(payload)
        at = stop
    return read if heads_crc == head.body_crc else None


def section(data: memoryview, base: int, row: Row) -> Read:
    """The sound entries at the begin of a row's bytes, as far as they are what the row says."""
    pid, first, last, nbytes, marker = row
    read = Read()
    at = 0
    expected = first
    while at + ENTRY_BYTES <= len(data):
        length, crc, of, epoch, index, kind, _flags = ENTRY.unpack_from(data, at)
        stop = at + ENTRY_BYTES + length
        if stop > len(data) or of != pid or crc32c(data[at + 8 : stop]) != crc:
            break
        if marker:
            if kind != marker or stop != nbytes:
                break
        elif kind in MARKERS or index != expected or (index == last) != (stop == nbytes):
            break
        read.entries.append((pid, epoch, index, kind, base + at, stop - at))
        read.payloads.append(data[at + ENTRY_BYTES : stop])
        expected += 1
        at = stop
    if marker and not read.entries:
        epoch, index = (first, 0) if marker == PROMISE else (0, first)
        read.entries.append((pid, epoch, index, marker, base, nbytes))
        read.payloads.append(data[:0])
    return read
