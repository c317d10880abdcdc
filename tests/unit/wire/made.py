"""Publish frames made field by field, independent of the encoder, and a plain reading of what a run is."""

from collections.abc import Iterator
from struct import Struct

from crc32c import crc32c

from headrace.wire.frames import BATCH, ENVELOPE

_COVERED = Struct(">hiqqqhii")


def frame(
    *,
    records: bytes = b"\x10\x00\x00\x00\x01\x04hi\x00",
    op: int = 1,
    flags: int = 7,
    channel: int = 3,
    correlation: int = 0,
    not_before_ms: int = 0,
    expires_at_ms: int = 0,
    priority: int = 0,
    reserved: int = 0,
    key_slot: int = 0,
    magic: int = 2,
    attributes: int = 0,
    last_delta: int | None = None,
    producer_id: int = -1,
    producer_epoch: int = -1,
    sequence: int = -1,
    count: int = 1,
    length_off: int = 0,
    batch_length_off: int = 0,
    crc_off: int = 0,
) -> bytes:
    covered = _COVERED.pack(attributes, count - 1 if last_delta is None else last_delta, 1, 1, producer_id, producer_epoch, sequence, count) + records
    batch = Struct(">qiibI").pack(0, len(covered) + 9 + batch_length_off, -1, magic, (crc32c(covered) + crc_off) & 0xFFFFFFFF) + covered
    envelope = ENVELOPE.pack(
        28 + len(batch) + length_off, op, flags, channel, correlation, not_before_ms, expires_at_ms, priority, reserved, key_slot
    )
    return envelope + batch


def fields(data: bytes, pos: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Envelope and batch header of the frame at ``pos``."""
    return ENVELOPE.unpack_from(data, pos), BATCH.unpack_from(data, pos + ENVELOPE.size)


def neighbours(data: bytes, one: int, other: int) -> bool:
    """Whether two valid frames may be in one run, the second right behind the first, told one rule at a time."""
    a, b = fields(data, one)
    c, d = fields(data, other)
    return (
        a[1:4] == c[1:4]
        and c[4] == (a[4] + 1) % (1 << 32)
        and a[5:] == c[5:]
        and b[9:11] == d[9:11]
        and (b[9] < 0 or d[11] == (b[11] + b[12]) % (1 << 31))
    )


def positions(data: bytes) -> Iterator[int]:
    pos = 0
    while pos < len(data):
        yield pos
        pos += 4 + int.from_bytes(data[pos : pos + 4], "big")
