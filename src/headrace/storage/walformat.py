"""The write-ahead log's bytes: file headers, flushes with their directories, entries. Pure: bytes in, values out. All integers are big-endian.

A file is ``[header block 4 KiB][the same again][flush][flush]...``; flushes begin at multiples of 512 bytes and follow each other without a gap.

    header: magic 8s, version u16, 6 zero bytes, file_bytes u64, file_id u64, salt u64, previous_id u64, previous_end u64, previous_salt u64,
            previous_seq u64, oldest_id u64, wall_ms i64, crc u32; zeros up to 4 KiB
    flush:  head, directory, the previous flush's directory, entries, zeros up to a multiple of 512
    head:   magic 8s, file_id u64, position u64, seq u64, total_bytes u32, entry_bytes u32, body_crc u32, rows_crc u32, rows u32,
            previous_rows u32, previous_rows_crc u32, previous_total u32, previous_entries_at u32, flags u32, previous_file_id u64,
            previous_position u64, oldest_id u64, wall_ms i64, crc u32
    row:    partition u64, first_index u64, last_index u64, nbytes u32, marker u32 (the kind, if its only entry is a marker; of a PROMISE
            both indexes are its epoch: what a marker says is never lost while a directory is left)
    entry:  payload length u32, crc u32, partition u64, epoch u32, index u64, kind u8, flags u8, 2 zero bytes; payload

I1 Every checksum but an entry's is seeded with the file's random salt and a flush names its file and position, so bytes of an earlier use of a
recycled file never look valid. I2 A header's salt stands in two blocks and in the next file's header: no single damaged block hides a file.
I3 A row's entries lie together, dense from ``first_index`` to ``last_index``, rows in order: with a directory (own, or the copy in the next flush)
each partition's bytes are found without trusting a length inside them. I4 ``body_crc`` covers the entries' headers, each header its payload by the
entry's own checksum: payloads are summed once. I5 An entry is the same bytes on disk, between brokers and in segments. I6 An entry is never
searched for: payloads can forge it.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

import msgspec
from crc32c import crc32c

from headrace.model.errors import Damaged, UnsupportedVersion
from headrace.wire.journal import Kind

VERSION: Final = 1
BLOCK: Final = 512
HEADER_BLOCK: Final = 4096
DATA_START: Final = 2 * HEADER_BLOCK

FILE_MAGIC: Final = b"HDRWAL\r\n"
FLUSH_MAGIC: Final = b"\xf5HDRFLU\n"

FILE: Final = Struct(">8sH6xQQQQQQQQq")
HEAD: Final = Struct(">8sQQQIIIIIIIIIIQQQq")
ROW: Final = Struct(">QQQII")
ENTRY: Final = Struct(">IIQIQBBxx")
ENTRY_LEAD: Final = Struct(">II")
ENTRY_REST: Final = Struct(">QIQBBxx")
_KNOWN: Final = Struct(">8sQQ")
_CRC: Final = Struct(">I")

HEAD_BYTES: Final = HEAD.size + _CRC.size
ENTRY_BYTES: Final = ENTRY.size
assert ENTRY_BYTES == 32 and ROW.size == 32 and HEAD_BYTES <= BLOCK and ENTRY_LEAD.size + ENTRY_REST.size == ENTRY_BYTES

CLOSING: Final = 1
"""Flag: no entries of its own; it proves that the flush before it was complete."""

MARKERS: Final = frozenset({int(Kind.TRUNCATE), int(Kind.PROMISE)})
"""Kinds that take no index of their own. TRUNCATE stands at the index from which on it discards; PROMISE carries only its epoch."""
TRUNCATE: Final = int(Kind.TRUNCATE)
PROMISE: Final = int(Kind.PROMISE)

Row = tuple[int, int, int, int, int]
"""partition, first index, last index, bytes, marker kind or 0."""


class FileHeader(NamedTuple):
    """What a file says of itself and of the file before it (``previous_id`` 0: there is none)."""

    file_bytes: int
    file_id: int
    salt: int
    previous_id: int
    previous_end: int
    """Where the previous file's valid flushes end: what lies beyond was cut, for ever."""
    previous_salt: int
    previous_seq: int
    """Number of the last flush before this file."""
    oldest_id: int
    """The oldest file that was not retired when this one began."""
    wall_ms: int


class FlushHead(NamedTuple):
    """The fixed part of a flush. ``previous_*`` describe the flush before it, whose directory is repeated here (file id 0: there is none, or it is
    not known)."""

    file_id: int
    position: int
    seq: int
    total_bytes: int
    entry_bytes: int
    body_crc: int
    rows_crc: int
    rows: int
    previous_rows: int
    previous_rows_crc: int
    previous_total: int
    previous_entries_at: int
    flags: int
    previous_file_id: int
    previous_position: int
    oldest_id: int
    wall_ms: int

    @property
    def entries_at(self) -> int:
        """Where the entries begin, from the flush's own begin."""
        return HEAD_BYTES + (self.rows + self.previous_rows) * ROW.size

    @property
    def end(self) -> int:
        """Where the next flush begins."""
        return self.position + self.total_bytes

    @property
    def rows_at(self) -> int:
        """Where the directory begins, in the file."""
        return self.position + HEAD_BYTES

    @property
    def previous_rows_at(self) -> int:
        """Where the repeated directory begins, in the file."""
        return self.position + HEAD_BYTES + self.rows * ROW.size


class Previous(NamedTuple):
    """What the next flush repeats of the one before it."""

    file_id: int
    position: int
    total_bytes: int
    entries_at: int
    rows: bytes


NO_PREVIOUS: Final = Previous(0, 0, 0, 0, b"")


class Located(NamedTuple):
    """Where entries lie, as parallel columns in file order. ``positions`` are those of the entries' headers, ``lengths`` count header and payload."""

    file_id: int
    pids: list[int]
    epochs: list[int]
    indexes: list[int]
    kinds: list[int]
    positions: list[int]
    lengths: list[int]


class Entry(msgspec.Struct, frozen=True):
    """A verified entry; ``payload`` is a view into what was given."""

    pid: int
    epoch: int
    index: int
    kind: int
    payload: memoryview


def seed_of(salt: int) -> int:
    """The start value of a file's checksums."""
    return crc32c(salt.to_bytes(8, "big"))


def padded(nbytes: int) -> int:
    """The next multiple of 512."""
    return (nbytes + BLOCK - 1) & -BLOCK


def encode_header(header: FileHeader) -> bytes:
    """Both header blocks: the first 8 KiB of a file."""
    raw = FILE.pack(FILE_MAGIC, VERSION, *header)
    block = (raw + _CRC.pack(crc32c(raw))).ljust(HEADER_BLOCK, b"\0")
    return block + block


def decode_header(block: bytes | memoryview) -> FileHeader | None:
    """The header in a block; None if its checksum does not match. ``UnsupportedVersion`` if it is sound but of a later format."""
    if len(block) < FILE.size + _CRC.size:
        return None
    magic, version, *rest = FILE.unpack_from(block)
    if magic != FILE_MAGIC or _CRC.unpack_from(block, FILE.size)[0] != crc32c(block[: FILE.size]):
        return None
    if version != VERSION:
        raise UnsupportedVersion(f"the write-ahead log has format {version}, this broker knows {VERSION}", hint="start the version that wrote it")
    return FileHeader(*rest)


def encode_head(
    seed: int,
    *,
    file_id: int,
    position: int,
    seq: int,
    rows: bytes,
    entry_bytes: int,
    entry_heads: bytes,
    previous: Previous,
    flags: int,
    oldest_id: int,
    wall_ms: int,
) -> tuple[bytes, int, int]:
    """(head with both directories, length of the zeros after the entries, total bytes of the flush)."""
    used = HEAD_BYTES + len(rows) + len(previous.rows) + entry_bytes
    total = padded(used)
    raw = HEAD.pack(
        FLUSH_MAGIC,
        file_id,
        position,
        seq,
        total,
        entry_bytes,
        crc32c(entry_heads, seed),
        crc32c(rows, seed),
        len(rows) // ROW.size,
        len(previous.rows) // ROW.size,
        crc32c(previous.rows, seed),
        previous.total_bytes,
        previous.entries_at,
        flags,
        previous.file_id,
        previous.position,
        oldest_id,
        wall_ms,
    )
    return b"".join((raw, _CRC.pack(crc32c(raw, seed)), rows, previous.rows)), total - used, total


def decode_head(data: bytes | memoryview, at: int, seed: int, *, file_id: int, position: int) -> FlushHead | None:
    """The head at ``data[at:]`` if it is one of this file at this position, by its salted checksum; else None.

    Magic, file and position are summed as they should be, not as they stand there: damage to them alone hides no flush.
    """
    if len(data) - at < HEAD_BYTES:
        return None
    rest = data[at + _KNOWN.size : at + HEAD.size]
    if _CRC.unpack_from(data, at + HEAD.size)[0] != crc32c(rest, crc32c(_KNOWN.pack(FLUSH_MAGIC, file_id, position), seed)):
        return None
    head = FlushHead(file_id, position, *HEAD.unpack_from(data, at)[3:])
    return head if head.total_bytes == padded(head.entries_at + head.entry_bytes) else None


def needle(file_id: int) -> bytes:
    """The bytes with which every flush of a file begins: found by ``find`` when a chain is broken; then ``decode_head`` judges."""
    return FLUSH_MAGIC + file_id.to_bytes(8, "big")


def decode_rows(data: bytes | memoryview, crc: int, seed: int) -> list[Row] | None:
    """A directory; None if its checksum does not match."""
    if crc32c(data, seed) != crc:
        return None
    return list(ROW.iter_unpack(data))


def encode_entry(pid: int, epoch: int, index: int, kind: int, payload: Sequence[bytes | memoryview], nbytes: int) -> bytes:
    """The 32-byte header of an entry whose payload is these pieces (``nbytes`` together)."""
    rest = ENTRY_REST.pack(pid, epoch, index, kind, 0)
    crc = crc32c(rest)
    for piece in payload:
        crc = crc32c(piece, crc)
    return ENTRY_LEAD.pack(nbytes, crc) + rest


def decode_entry(data: bytes | memoryview, at: int = 0) -> Entry:
    """The entry at ``data[at:]``; ``Damaged`` unless it is whole and its checksum matches. Its end is ``at + 32 + len(payload)``."""
    if len(data) - at < ENTRY_BYTES:
        raise Damaged("an entry is cut off within its header")
    length, crc, pid, epoch, index, kind, _flags = ENTRY.unpack_from(data, at)
    end = at + ENTRY_BYTES + length
    view = memoryview(data)
    if end > len(view):
        raise Damaged("an entry is cut off, or its length is damaged")
    if crc32c(view[at + 8 : end]) != crc:
        raise Damaged("an entry does not match its checksum")
    return Entry(pid, epoch, index, kind, view[at + ENTRY_BYTES : end])
