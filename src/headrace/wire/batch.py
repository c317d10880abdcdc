"""RecordBatch version 2, byte for byte Kafka's, and the PUBLISH frames that carry it.

Owns how records become bytes and back. Knows no channel, partition or time of its own. Arbitrary bytes give records or ``Malformed`` / ``TooLarge``, nothing else.
A compacted batch may hold fewer records than it spans offsets: its last offset delta says how many offsets it takes.
Source: Kafka's message format documentation; varints are zigzag base 128 as in Protocol Buffers.
"""

from collections.abc import Iterator, Sequence
from struct import Struct, error as StructError
from typing import Final, NamedTuple

import msgspec
from crc32c import crc32c

from headrace.model import limits
from headrace.model.errors import Malformed
from headrace.wire.compression import CODECS, Codec, compress, expand
from headrace.wire.frames import BATCH, ENVELOPE, Op

HEADERS_MAX: Final = 1 << 16
_BODY: Final = Struct(">hiqqqhii")
_START: Final = Struct(">qiibI")
_PUBLISH: Final = Struct(">IBBHIqqBBHqiibIhiqqqhii")
assert _PUBLISH.size == 93
_publish = _PUBLISH.pack
_body = _BODY.pack


class Record(msgspec.Struct, frozen=True):
    """One message: what the user gave. ``headers`` keep their order and duplicates."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int = 0
    offset_delta: int = 0


class Envelope(NamedTuple):
    """What stands before a stored batch."""

    length: int
    opcode: int
    flags: int
    channel: int
    correlation: int
    not_before_ms: int
    expires_at_ms: int
    priority: int
    reserved: int
    key_slot: int


class BatchInfo(NamedTuple):
    """The fields of a batch's header."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int


def _varint(n: int) -> bytes:
    """Zigzag varint."""
    n = n << 1 if n >= 0 else ((-n) << 1) - 1
    if n < 0x80:
        return bytes((n,))
    if n < 0x4000:
        return bytes((n & 0x7F | 0x80, n >> 7))
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


_SMALL: Final = tuple(_varint(n) for n in range(4096))
_NULL: Final = _varint(-1)


def _size(n: int) -> bytes:
    return _SMALL[n] if n < 4096 else _varint(n)


def _record(record: Record, timestamp_delta: int, offset_delta: int) -> bytes:
    key, value = record.key, record.value
    body = (
        b"\x00"
        + (_SMALL[timestamp_delta] if 0 <= timestamp_delta < 4096 else _varint(timestamp_delta))
        + _size(offset_delta)
        + (_NULL if key is None else _size(len(key)) + key)
        + (_NULL if value is None else _size(len(value)) + value)
    )
    if record.headers:
        parts = [body, _size(len(record.headers))]
        for name, content in record.headers:
            raw = name.encode()
            parts += (_size(len(raw)), raw, _size(len(content)), content)
        body = b"".join(parts)
    else:
        body += b"\x00"
    return _size(len(body)) + body


def encode_batch(
    records: Sequence[Record],
    *,
    base_timestamp_ms: int,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    codec: Codec = "none",
) -> bytes:
    """A batch of at least one record; offsets are dense from 0 whatever ``offset_delta`` says."""
    count = len(records)
    if count == 1:
        record = records[0]
        latest = record.timestamp_ms
        payload = _record(record, latest - base_timestamp_ms, 0)
    else:
        payload = b"".join([_record(r, r.timestamp_ms - base_timestamp_ms, i) for i, r in enumerate(records)])
        latest = max([r.timestamp_ms for r in records])
    attributes = 0
    if codec != "none":
        attributes = CODECS.index(codec)
        payload = compress(attributes, payload)
    return _seal(attributes, count - 1, base_timestamp_ms, latest, producer_id, producer_epoch, base_sequence, count, payload)


def _seal(attributes: int, last_delta: int, first_ms: int, latest_ms: int, producer: int, epoch: int, sequence: int, count: int, payload: bytes) -> bytes:
    body = _body(attributes, last_delta, first_ms, latest_ms, producer, epoch, sequence, count) + payload
    return _START.pack(0, 9 + len(body), -1, 2, crc32c(body)) + body


def encode_publish(
    batch: bytes,
    *,
    channel: int,
    correlation: int,
    flags: int,
    not_before_ms: int = 0,
    expires_at_ms: int = 0,
    priority: int = 0,
    key_slot: int = 0,
) -> bytes:
    """A PUBLISH frame around ``batch``."""
    return ENVELOPE.pack(28 + len(batch), Op.PUBLISH, flags, channel, correlation, not_before_ms, expires_at_ms, priority, 0, key_slot) + batch


def batch_info(data: bytes | memoryview, pos: int = 0) -> BatchInfo:
    """The header of the batch at ``pos``, lengths checked against the data."""
    if len(data) - pos < BATCH.size:
        raise Malformed(f"{len(data) - pos} bytes hold no batch header")
    info = BatchInfo._make(BATCH.unpack_from(data, pos))
    if info.magic != 2:
        raise Malformed(f"a batch of format {info.magic}; only RecordBatch version 2 is understood")
    if info.length < BATCH.size - 12 or pos + 12 + info.length > len(data):
        raise Malformed(f"a batch of {info.length} bytes does not fit the {len(data) - pos} that are there")
    if info.record_count < 0 or info.record_count > limits.BATCH_RECORDS_MAX or info.last_offset_delta < info.record_count - 1:
        raise Malformed(f"a batch of {info.record_count} records with last offset delta {info.last_offset_delta}")
    return info


def decode_batch(data: bytes | memoryview, pos: int = 0, *, decompressed_bytes_max: int = limits.DECOMPRESSED_BYTES_MAX, verify: bool = True) -> list[Record]:
    """The records of the batch at ``pos``."""
    info = batch_info(data, pos)
    stop = pos + 12 + info.length
    if verify and crc32c(data[pos + 21 : stop]) != info.crc:
        raise Malformed("a batch does not match its CRC-32C")
    payload = bytes(data[pos + BATCH.size : stop])
    codec = info.attributes & 7
    if codec:
        payload = expand(codec, payload, decompressed_bytes_max)
    try:
        records, end = _records(payload, info.record_count, info.base_timestamp_ms)
    except (IndexError, UnicodeDecodeError, OverflowError) as e:
        raise Malformed(f"a record cannot be read: {e}") from None
    if end != len(payload):
        raise Malformed(f"{len(payload) - end} bytes after the last record of a batch")
    return records


def _records(data: bytes, count: int, base_ms: int) -> tuple[list[Record], int]:
    """Parses ``count`` records; an IndexError means that the bytes end too soon."""
    found: list[Record] = []
    add = found.append
    at = 0
    for _ in range(count):
        n = data[at]
        if n < 0x80:
            at += 1
        else:
            n, at = _long(data, at)
        size = n >> 1
        if n & 1:
            raise Malformed("a record of negative length")
        stop = at + size
        if stop > len(data):
            raise Malformed("a record passes the end of its batch")
        at += 1
        n = data[at]
        if n < 0x80:
            at += 1
        else:
            n, at = _long(data, at)
        stamp = base_ms + ((n >> 1) ^ -(n & 1))
        n = data[at]
        if n < 0x80:
            at += 1
        else:
            n, at = _long(data, at)
        delta = (n >> 1) ^ -(n & 1)
        n = data[at]
        if n < 0x80:
            at += 1
        else:
            n, at = _long(data, at)
        key: bytes | None = None
        if not n & 1:
            n >>= 1
            key = data[at : at + n]
            at += n
        n = data[at]
        if n < 0x80:
            at += 1
        else:
            n, at = _long(data, at)
        value: bytes | None = None
        if not n & 1:
            n >>= 1
            value = data[at : at + n]
            at += n
        n = data[at]
        at += 1
        headers: tuple[tuple[str, bytes], ...] = ()
        if n:
            headers, at = _headers(data, at - 1, stop)
        if at != stop:
            raise Malformed("a record's fields do not fill its length")
        add(Record(key, value, headers, stamp, delta))
    return found, at


def _headers(data: bytes, at: int, stop: int) -> tuple[tuple[tuple[str, bytes], ...], int]:
    n, at = _long(data, at)
    if n & 1 or n >> 1 > HEADERS_MAX:
        raise Malformed("a record's number of headers is out of bounds")
    found = []
    for _ in range(n >> 1):
        n, at = _long(data, at)
        if n & 1 or at + (n >> 1) > stop:
            raise Malformed("a header's name passes the end of its record")
        name = data[at : at + (n >> 1)].decode()
        at += n >> 1
        n, at = _long(data, at)
        if n & 1:
            n = 0
        if at + (n >> 1) > stop:
            raise Malformed("a header's value passes the end of its record")
        found.append((name, data[at : at + (n >> 1)]))
        at += n >> 1
    return tuple(found), at


def _long(data: bytes, at: int) -> tuple[int, int]:
    """A varint, not yet unzigzagged."""
    n = shift = 0
    while True:
        b = data[at]
        at += 1
        n |= (b & 0x7F) << shift
        if b < 0x80:
            return n, at
        shift += 7
        if shift > 63:
            raise Malformed("a varint of more than 10 bytes")


def iter_records(
    blob: bytes | memoryview,
    base_offset: int,
    *,
    first: int | None = None,
    end: int | None = None,
    decompressed_bytes_max: int = limits.DECOMPRESSED_BYTES_MAX,
) -> Iterator[tuple[int, Record, Envelope]]:
    """(offset, record, envelope) of stored PUBLISH frames whose first record is ``base_offset``, those in [first, end) only. Each batch is opened once, if it is needed."""
    pos, size = 0, len(blob)
    offset = base_offset
    low = base_offset if first is None else first
    high = 1 << 63 if end is None else end
    while pos < size and offset < high:
        try:
            envelope = Envelope._make(ENVELOPE.unpack_from(blob, pos))
            last_delta = BATCH.unpack_from(blob, pos + ENVELOPE.size)[6]
        except StructError:
            raise Malformed("stored frames end within a frame") from None
        stop = pos + 4 + envelope.length
        if envelope.length < 28 + BATCH.size or stop > size or last_delta < 0:
            raise Malformed("a stored frame does not fit its blob")
        if offset + last_delta >= low:
            for record in decode_batch(blob[pos + ENVELOPE.size : stop], decompressed_bytes_max=decompressed_bytes_max):
                at = offset + record.offset_delta
                if low <= at < high:
                    yield at, record, envelope
        offset += last_delta + 1
        pos = stop
