"""RecordBatch version 2, byte for byte Kafka's, and the PUBLISH frames that carry it.

Owns how records become bytes and back; knows no channel, partition or time of its own. Arbitrary bytes give records or ``Malformed`` / ``TooLarge``,
nothing else. A compacted batch may hold fewer records than it spans offsets: its last offset delta says how many offsets it takes.
Source: Kafka's message format documentation; varints are zigzag, base 128, as in Protocol Buffers.
"""

from collections.abc import Iterator, Sequence
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Final, NamedTuple

import msgspec
from crc32c import crc32c

from headrace.model import limits
from headrace.model.errors import Invalid, Malformed
from headrace.wire.compression import CODECS, Codec, compress, expand
from headrace.wire.frames import BATCH, BATCH_CRC_FROM, ENVELOPE, Op

HEADERS_MAX: Final = 1 << 16
TIMESTAMP_MAX: Final = 1 << 62
"""Timestamps and their deltas lie in -TIMESTAMP_MAX..TIMESTAMP_MAX, so that no sum leaves an i64."""

_BODY: Final = Struct(">hiqqqhii")  # the part of a batch's header that its checksum covers
_START: Final = Struct(">qiibI")  # the part before
_FRAME_START: Final = Struct(">IBBHIqqBBHqiibI")  # envelope and the part before
# envelope | batch length, magic, crc, attributes, last offset delta, base timestamp, max timestamp, record count
_STORED: Final = Struct(">IBBHIqqBBH8xi4xbIhiqq14xi")
_FRAME_MIN: Final = ENVELOPE.size + BATCH.size
_COVERED_AT: Final = ENVELOPE.size + BATCH_CRC_FROM
_RECORDS_AT: Final = BATCH.size - BATCH_CRC_FROM  # within what the checksum covers
_LOG_APPEND_TIME: Final = 8
assert _STORED.size == _FRAME_MIN and _START.size + _BODY.size == BATCH.size


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


# ---------------------------------------------------------------- encoding


def _varint(n: int) -> bytes:
    n = n << 1 if n >= 0 else ((-n) << 1) - 1
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
    key, value, headers = record.key, record.value, record.headers
    parts = [
        b"\x00",
        _SMALL[timestamp_delta] if 0 <= timestamp_delta < 4096 else _varint(timestamp_delta),
        _size(offset_delta),
        *((_NULL,) if key is None else (_size(len(key)), key)),
        *((_NULL,) if value is None else (_size(len(value)), value)),
        _size(len(headers)),
    ]
    for name, content in headers:
        raw = name.encode()
        parts += (_size(len(raw)), raw, _size(len(content)), content)
    body = b"".join(parts)
    return _size(len(body)) + body


def encode_batch(
    records: Sequence[Record],
    *,
    base_timestamp_ms: int,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    codec: Codec = "none",
    last_offset_delta: int | None = None,
) -> bytes:
    """A batch. Offsets are dense from 0 whatever ``offset_delta`` says, unless ``last_offset_delta`` is given: then the records keep their own
    (compaction) and there may be none. Raises ``Invalid`` for values that the format cannot hold."""
    count = len(records)
    try:
        if last_offset_delta is not None:
            payload = b"".join([_record(r, r.timestamp_ms - base_timestamp_ms, r.offset_delta) for r in records])
            latest = max([r.timestamp_ms for r in records], default=base_timestamp_ms)
        elif count == 1:
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
        last = count - 1 if last_offset_delta is None else last_offset_delta
        body = _BODY.pack(attributes, last, base_timestamp_ms, latest, producer_id, producer_epoch, base_sequence, count) + payload
        return _START.pack(0, 9 + len(body), -1, 2, crc32c(body)) + body
    except (StructError, ValueError) as e:
        raise Invalid(f"these records make no batch: {e}") from None


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


def encode_publish_one(
    record: Record,
    *,
    channel: int,
    correlation: int,
    flags: int,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    not_before_ms: int = 0,
    expires_at_ms: int = 0,
    priority: int = 0,
    key_slot: int = 0,
) -> bytes:
    """A PUBLISH frame of one uncompressed record: the same bytes as ``encode_publish(encode_batch([record]))``, in one go."""
    key, value, stamp = record.key, record.value, record.timestamp_ms
    if record.headers:
        payload = _record(record, 0, 0)
    else:
        payload = (
            (b"\x00\x00\x00\x01" if key is None else b"\x00\x00\x00" + _size(len(key)) + key)
            + (_NULL if value is None else _size(len(value)) + value)
            + b"\x00"
        )
        payload = _size(len(payload)) + payload
    body = _BODY.pack(0, 0, stamp, stamp, producer_id, producer_epoch, base_sequence, 1) + payload
    size = len(body)
    return (
        _FRAME_START.pack(
            49 + size, 1, flags, channel, correlation, not_before_ms, expires_at_ms, priority, 0, key_slot, 0, 9 + size, -1, 2, crc32c(body)
        )
        + body
    )  # fmt: skip


# ---------------------------------------------------------------- decoding


def batch_info(data: bytes | memoryview, pos: int = 0) -> BatchInfo:
    """The header of the batch at ``pos``, lengths checked against the data."""
    if len(data) - pos < BATCH.size:
        raise Malformed(f"{len(data) - pos} bytes hold no batch header")
    info = BatchInfo._make(BATCH.unpack_from(data, pos))
    if info.length < BATCH.size - 12 or pos + 12 + info.length > len(data):
        raise Malformed(f"a batch of {info.length} bytes does not fit the {len(data) - pos} that are there")
    _check(info.magic, info.attributes, info.record_count, info.last_offset_delta, info.base_timestamp_ms)
    return info


def decode_batch(data: bytes | memoryview, pos: int = 0, *, decompressed_bytes_max: int = limits.DECOMPRESSED_BYTES_MAX) -> list[Record]:
    """The records of the batch at ``pos``, its checksum verified. Raises ``Malformed``, and ``TooLarge`` if it expands to more than allowed."""
    info = batch_info(data, pos)
    covered = bytes(data[pos + BATCH_CRC_FROM : pos + 12 + info.length])
    if crc32c(covered) != info.crc:
        raise Malformed("a batch does not match its CRC-32C")
    return _open(
        covered, info.attributes, info.record_count, info.last_offset_delta, info.base_timestamp_ms, info.max_timestamp_ms, decompressed_bytes_max
    )


def iter_records(
    blob: bytes | memoryview,
    base_offset: int,
    *,
    first: int | None = None,
    end: int | None = None,
    decompressed_bytes_max: int = limits.DECOMPRESSED_BYTES_MAX,
) -> Iterator[tuple[int, Record, Envelope]]:
    """(offset, record, envelope) of stored PUBLISH frames whose first record is ``base_offset``, those in [first, end) only. Each batch is opened
    once, if it is needed, and its checksum verified. Raises ``Malformed`` and ``TooLarge`` as ``decode_batch``."""
    pos, size = 0, len(blob)
    offset = base_offset
    low = base_offset if first is None else first
    high = 1 << 64 if end is None else end
    stored, new = _STORED.unpack_from, tuple.__new__
    while pos < size and offset < high:
        if size - pos < _FRAME_MIN:
            raise Malformed("stored frames end within a frame")
        fields = stored(blob, pos)
        length, magic, crc, attributes, last_delta, base_ms, latest_ms, count = fields[10:]
        stop = pos + 4 + fields[0]
        if stop - pos < _FRAME_MIN or stop > size or length != stop - pos - 44:
            raise Malformed("a stored frame does not fit its blob")
        if count == 1 and not (attributes or last_delta) and magic == 2 and -TIMESTAMP_MAX <= base_ms <= TIMESTAMP_MAX:
            if offset >= low:
                covered = bytes(blob[pos + _COVERED_AT : stop])
                if crc32c(covered) != crc:
                    raise Malformed("a batch does not match its CRC-32C")
                yield offset, _single(covered, base_ms), new(Envelope, fields[:10])
        elif offset + last_delta >= low:
            _check(magic, attributes, count, last_delta, base_ms)
            covered = bytes(blob[pos + _COVERED_AT : stop])
            if crc32c(covered) != crc:
                raise Malformed("a batch does not match its CRC-32C")
            envelope = new(Envelope, fields[:10])
            for record in _open(covered, attributes, count, last_delta, base_ms, latest_ms, decompressed_bytes_max):
                at = offset + record.offset_delta
                if low <= at < high:
                    yield at, record, envelope
        elif last_delta < 0:
            raise Malformed("a stored batch spans no offset")
        offset += last_delta + 1
        pos = stop


def _check(magic: int, attributes: int, count: int, last_delta: int, base_ms: int) -> None:
    if magic != 2:
        raise Malformed(f"a batch of format {magic}; only RecordBatch version 2 is understood")
    if not 0 <= count <= limits.BATCH_RECORDS_MAX or last_delta < 0 or last_delta < count - 1:
        raise Malformed(f"a batch of {count} records with last offset delta {last_delta}")
    if attributes & 7 > 4:
        raise Malformed(f"batch attributes {attributes:#x} name no known codec")
    if not -TIMESTAMP_MAX <= base_ms <= TIMESTAMP_MAX:
        raise Malformed(f"a batch of timestamp {base_ms}")


def _open(covered: bytes, attributes: int, count: int, last_delta: int, base_ms: int, latest_ms: int, bytes_max: int) -> list[Record]:
    """The records in what a batch's checksum covers."""
    codec = attributes & 7
    data, at = covered, _RECORDS_AT
    if codec:
        data, at = expand(codec, covered[_RECORDS_AT:], bytes_max), 0
    try:
        records, at = _records(data, at, count, last_delta, base_ms)
    except (IndexError, UnicodeDecodeError) as e:
        raise Malformed(f"a record cannot be read: {e}") from None
    if at != len(data):
        raise Malformed(f"{len(data) - at} bytes after the last record of a batch")
    if attributes & _LOG_APPEND_TIME:
        return [msgspec.structs.replace(r, timestamp_ms=latest_ms) for r in records]
    return records


def _single(covered: bytes, base_ms: int) -> Record:
    """The one record of an uncompressed batch, without headers and at the base timestamp in one step; anything else the general way."""
    try:
        n, at = covered[_RECORDS_AT], _RECORDS_AT + 1
        if n >= 0x80:
            n, at = _long(covered, _RECORDS_AT)
        # attributes, timestamp delta and offset delta are 0, and so is the number of headers, the last byte
        if at + (n >> 1) == len(covered) and not n & 1 and covered[at : at + 3] == b"\x00\x00\x00" and not covered[-1]:
            key: bytes | None = None
            n = covered[at + 3]
            at += 4
            if n != 1:
                if n >= 0x80:
                    n, at = _long(covered, at - 1)
                key = covered[at : at + (n >> 1)]
                at += n >> 1
            if not n & 1 or n == 1:
                n = covered[at]
                at += 1
                if n >= 0x80:
                    n, at = _long(covered, at - 1)
                if not n & 1 and at + (n >> 1) + 1 == len(covered):
                    return Record(key, covered[at:-1], (), base_ms, 0)
    except IndexError:
        pass
    return _open(covered, 0, 1, 0, base_ms, base_ms, 0)[0]


def _records(data: bytes, at: int, count: int, last_delta: int, base_ms: int) -> tuple[list[Record], int]:
    """Parses ``count`` records from ``at`` on. Varints of one byte (nearly all) are read in place; IndexError: the bytes end too soon."""
    found: list[Record] = []
    end = len(data)
    previous = -1
    for _ in range(count):
        n = data[at]
        at += 1
        if n >= 0x80:
            n, at = _long(data, at - 1)
        stop = at + (n >> 1)
        if n & 1 or stop > end:
            raise Malformed("a record passes the end of its batch")
        stamp, n = base_ms, data[at + 1]  # the byte before holds attributes, of which none exist
        at += 2
        if n:
            if n >= 0x80:
                n, at = _long(data, at - 1)
                if n >> 1 > TIMESTAMP_MAX:
                    raise Malformed("a record's timestamp is out of bounds")
            stamp += (n >> 1) ^ -(n & 1)
        n = data[at]
        at += 1
        if n >= 0x80:
            n, at = _long(data, at - 1)
        delta = n >> 1
        if n & 1 or not previous < delta <= last_delta:
            raise Malformed(f"offset delta {(n >> 1) ^ -(n & 1)} after {previous} in a batch that ends at {last_delta}")
        previous = delta
        key: bytes | None = None
        n = data[at]
        at += 1
        if n >= 0x80:
            n, at = _long(data, at - 1)
        if not n & 1:
            n >>= 1
            key = data[at : at + n]
            at += n
        elif n != 1:
            raise Malformed("a key of negative length")
        value: bytes | None = None
        n = data[at]
        at += 1
        if n >= 0x80:
            n, at = _long(data, at - 1)
        if not n & 1:
            n >>= 1
            value = data[at : at + n]
            at += n
        elif n != 1:
            raise Malformed("a value of negative length")
        if data[at]:
            headers, at = _headers(data, at, stop)
            if at != stop:
                raise Malformed("a record's fields do not fill its length")
            found.append(Record(key, value, headers, stamp, delta))
        else:
            at += 1
            if at != stop:
                raise Malformed("a record's fields do not fill its length")
            found.append(Record(key, value, (), stamp, delta))
    return found, at


def _headers(data: bytes, at: int, stop: int) -> tuple[tuple[tuple[str, bytes], ...], int]:
    n, at = _long(data, at)
    if n & 1 or n >> 1 > HEADERS_MAX:
        raise Malformed("a record's number of headers is out of bounds")
    found = []
    for _ in range(n >> 1):
        n = data[at]
        at += 1
        if n >= 0x80:
            n, at = _long(data, at - 1)
        name_end = at + (n >> 1)
        if n & 1 or name_end > stop:
            raise Malformed("a header's name passes the end of its record")
        name = data[at:name_end].decode()
        n = data[name_end]
        at = name_end + 1
        if n >= 0x80:
            n, at = _long(data, name_end)
        if n == 1:  # Kafka's null value
            n = 0
        value_end = at + (n >> 1)
        if n & 1 or value_end > stop:
            raise Malformed("a header's value passes the end of its record")
        found.append((name, data[at:value_end]))
        at = value_end
    return tuple(found), at


def _long(data: bytes, at: int) -> tuple[int, int]:
    """(a varint still in zigzag, position behind it)."""
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
