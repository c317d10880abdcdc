"""What goes between brokers for their replicas: many partitions' messages in one frame a peer and turn. All integers are big-endian.

Owns the bytes of the body of a BATCH of ``Service.REPLICAS`` and of entries within it. Does not know what the messages are: their heads are opaque
here, their fields are ``core.replica.messages``'.

    body:  version u8, 3 zero bytes, acknowledgements u32, messages u32, then those rows, then those messages
    row:   partition u64, epoch u32, session u32, end u64: everything below ``end`` is durable
    message: partition u64, head bytes u32, entry bytes u32, head, entries
    entry: payload length u32, crc u32, partition u64, epoch u32, index u64, kind u8, flags u8, 2 zero bytes, payload

I1 An entry is the same bytes as in the log and in segments; ``crc`` (CRC-32C) covers all of it from the partition on, so it is proven from the disk
of one broker to that of another. I2 Acknowledgements are cumulative: of one partition and session only the last one counts, so a frame has one.
"""

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct, error
from typing import Final, NamedTuple

from crc32c import crc32c

from headrace.model.errors import Malformed
from headrace.wire.journal import RECORDS_HEAD, Kind

VERSION: Final = 1
HEAD: Final = Struct(">B3xII")
ROW: Final = Struct(">QIIQ")
ITEM: Final = Struct(">QII")
ENTRY: Final = Struct(">IIQIQBBxx")
_RECORDS: Final = int(Kind.RECORDS)

Row = tuple[int, int, int, int]
"""partition, epoch, session, end."""


class Item(NamedTuple):
    """A message of one partition: its head, and its entries back to back."""

    pid: int
    head: bytes
    entries: Sequence[bytes] = ()
    """To be sent: pieces. As received: one piece, or none."""


class Entry(NamedTuple):
    """An entry of another broker's log, as it lies there."""

    epoch: int
    index: int  # type: ignore[assignment]  # the journal's word; tuple.index is not used
    kind: int
    payload: bytes
    base_offset: int
    """-1 but for records."""
    record_count: int


Piece = tuple[Entry, bytes]
"""An entry, and all of it as it lies in the log."""


def encode(rows: Sequence[Row], items: Iterable[Item]) -> list[bytes]:
    """The pieces of a body; entries are not copied."""
    pieces = [b"", *(ROW.pack(*row) for row in rows)]
    count = 0
    for pid, head, entries in items:
        pieces.append(ITEM.pack(pid, len(head), sum(map(len, entries))) + head)
        pieces += entries
        count += 1
    pieces[0] = HEAD.pack(VERSION, len(rows), count)
    return pieces


def decode(body: bytes) -> tuple[list[Row], list[Item]]:
    """``Malformed`` for anything that ``encode`` does not make. Entries are not looked at."""
    try:
        version, row_count, item_count = HEAD.unpack_from(body)
        if version != VERSION:
            raise Malformed(f"a frame of replicas has version {version}, this broker knows {VERSION}")
        at = HEAD.size + row_count * ROW.size
        if at > len(body) or body[1:4] != b"\0\0\0":
            raise Malformed(f"{row_count} acknowledgements do not fit in a frame of {len(body)} bytes")
        rows: list[Row] = list(ROW.iter_unpack(body[HEAD.size : at]))
        items: list[Item] = []
        for _ in range(item_count):
            pid, head_bytes, entry_bytes = ITEM.unpack_from(body, at)
            at += ITEM.size
            middle, end = at + head_bytes, at + head_bytes + entry_bytes
            if end > len(body):
                raise Malformed(f"a message of {head_bytes} and {entry_bytes} bytes does not fit in its frame")
            items.append(Item(pid, body[at:middle], (body[middle:end],) if entry_bytes else ()))
            at = end
    except error as e:
        raise Malformed(f"a frame of replicas is cut off: {e}") from None
    if at != len(body):
        raise Malformed(f"a frame of replicas has {len(body) - at} bytes too many")
    return rows, items


def entries(blob: bytes, pid: int) -> list[Entry]:
    """The entries in ``blob``, each proven by its checksum; ``Malformed`` if one is not that partition's, or damaged."""
    return [entry for entry, _, _ in _walk(blob, pid)]


def pieces(blob: bytes, pid: int) -> list[Piece]:
    """As ``entries``, each with its bytes."""
    return [(entry, blob[at:end]) for entry, at, end in _walk(blob, pid)]


def _walk(blob: bytes, pid: int) -> Iterator[tuple[Entry, int, int]]:
    """Each entry, where it begins and where it ends."""
    at, size = 0, len(blob)
    view = memoryview(blob)
    while at < size:
        if at + ENTRY.size > size:
            raise Malformed("an entry is cut off")
        length, crc, of, epoch, index, kind, flags = ENTRY.unpack_from(blob, at)
        end = at + ENTRY.size + length
        if end > size:
            raise Malformed(f"an entry of {length} bytes does not fit in what was sent")
        if of != pid or crc32c(view[at + 8 : end]) != crc:
            raise Malformed(f"the entry sent for index {index} of partition {pid} does not match its checksum")
        if flags or blob[at + 30 : at + 32] != b"\0\0":
            raise Malformed(f"the entry at index {index} of partition {pid} has flags that this broker does not know")
        payload = blob[at + ENTRY.size : end]
        base, count = -1, 0
        if kind == _RECORDS:
            if length < RECORDS_HEAD.size:
                raise Malformed(f"a records entry of {length} bytes has no head")
            base, count = RECORDS_HEAD.unpack_from(payload)[:2]
        yield Entry(epoch, index, kind, payload, base, count), at, end
        at = end
