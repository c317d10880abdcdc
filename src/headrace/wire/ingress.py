"""Parsing published frames in bulk: the longest run of consecutive PUBLISH frames with equal envelopes, checked batch by batch.

The hottest loop of the broker, written so that mypyc can compile it; pure Python is the fallback. It reads a batch's header and checksum, never its records.

Invariants: a run holds only whole frames whose CRC-32C is right; within a run correlation ids grow by one, sequences by the record count; hostile bytes give an error, never an exception.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final

from crc32c import crc32c

from headrace.model.errors import HeadraceError, Malformed, TooLarge
from headrace.model.limits import BATCH_RECORDS_MAX, DELAY_MS_MAX
from headrace.wire.frames import ENVELOPE, Op

_LAYOUT: Final = ">IBBHIqqBBH8xi4xbIhi16xqhii"
_PREFIX: Final = 93
_FRAME: Final = Struct(_LAYOUT)
_CRC_FROM: Final = 53
_STAMPED: Final = 0x80
_PUBLISH: Final = int(Op.PUBLISH)
_SAME_SIZE: dict[int, Struct] = {}
_SAME_SIZE_MAX: Final = 4096
_LENGTHS: Final = Struct(">I")
_COUNT: Final = Struct(">i")
_TIMES: Final = Struct(">qq")
_COUNT_AT: Final = _PREFIX - 4
_LAST_DELTA_AT: Final = 32 + 23
assert _FRAME.size == _PREFIX


class Run:
    """What ``scan_run`` found. ``next_pos`` is where the run ends; with ``error`` it is one bad frame that is to be refused."""

    __slots__ = (
        "channel", "compressed", "error", "expires_at_ms", "first_correlation", "first_sequence", "flags", "frame_bytes", "frame_count", "key_slot",
        "nbytes", "next_pos", "not_before_ms", "priority", "producer_epoch", "producer_id", "record_count",
    )  # fmt: skip

    def __init__(self) -> None:
        self.next_pos: int = 0
        self.channel: int = 0
        self.flags: int = 0
        self.first_correlation: int = 0
        self.frame_count: int = 0
        self.record_count: int = 0
        self.producer_id: int = -1
        self.producer_epoch: int = -1
        self.first_sequence: int = -1
        self.not_before_ms: int = 0
        self.expires_at_ms: int = 0
        self.priority: int = 0
        self.key_slot: int = 0
        self.compressed: int = 0
        self.frame_bytes: int = 0
        self.nbytes: int = 0
        self.error: HeadraceError | None = None


def scan_run(data: bytes, pos: int, end: int, message_bytes_max: int, stamped: bool = False) -> Run:
    """The longest run of good frames from ``pos`` on, which holds a whole PUBLISH frame header of a whole frame.

    ``message_bytes_max`` bounds a batch (its 61 bytes of header beside); ``stamped`` allows the flag that only the broker sets.
    """
    run = Run()
    length = int.from_bytes(data[pos : pos + 4], "big")
    size = length + 4
    run.next_pos = min(pos + size, end)
    run.frame_count = 1
    if size < _PREFIX:
        run.channel = int.from_bytes(data[pos + 6 : pos + 8], "big")
        run.first_correlation = int.from_bytes(data[pos + 8 : pos + 12], "big")
        run.error = Malformed(f"a publish frame of {size} bytes is shorter than its envelope and batch header")
        return run
    (_, _, flags, channel, correlation, not_before, expires_at, priority, reserved, key_slot, batch_length, magic, crc, attributes, last_delta, producer, epoch, sequence, count) = (
        _FRAME.unpack_from(data, pos)
    )
    run.channel, run.flags, run.first_correlation = channel, flags, correlation
    run.record_count = max(count, 1)
    run.error = _wrong(
        size, flags, not_before, expires_at, priority, reserved, batch_length, magic, attributes, last_delta, producer, sequence, count, message_bytes_max, stamped
    )
    if run.error is not None:
        return run
    if crc32c(data[pos + _CRC_FROM : pos + size]) != crc:
        run.error = Malformed("a batch does not match its CRC-32C")
        return run
    run.producer_id, run.producer_epoch, run.first_sequence = producer, epoch, sequence
    run.not_before_ms, run.expires_at_ms, run.priority, run.key_slot = not_before, expires_at, priority, key_slot
    run.compressed = attributes & 7
    records = count
    frames = 1
    at = pos + size
    frame_bytes = size
    times = (not_before, expires_at)
    while end - at >= _PREFIX:
        next_size = int.from_bytes(data[at : at + 4], "big") + 4
        if next_size < _PREFIX or at + next_size > end:
            break
        same = _SAME_SIZE.get(next_size)
        if same is None:
            if len(_SAME_SIZE) >= _SAME_SIZE_MAX:
                _SAME_SIZE.clear()
            same = _SAME_SIZE[next_size] = Struct(f"{_LAYOUT}{next_size - _PREFIX}x")
        began = at
        stop = at + (end - at) // next_size * next_size
        expected_length = next_size - 4
        expected_batch = next_size - 44
        for (
            f_length, f_op, f_flags, f_channel, f_correlation, f_not_before, f_expires, f_priority, f_reserved, f_slot, f_batch, f_magic, f_crc, f_attributes,
            f_last, f_producer, f_epoch, f_sequence, f_count,
        ) in same.iter_unpack(memoryview(data)[at:stop]):  # fmt: skip
            if (
                f_length != expected_length
                or f_op != _PUBLISH
                or f_flags != flags
                or f_channel != channel
                or f_correlation != (correlation + frames) & 0xFFFFFFFF
                or f_priority != priority
                or f_slot != key_slot
                or f_batch != expected_batch
                or f_magic != 2
                or f_attributes & ~8 != attributes & ~8
                or f_producer != producer
                or f_count < 1
                or f_count > BATCH_RECORDS_MAX
                or f_last != f_count - 1
                or f_reserved
                or (f_not_before, f_expires) != times
            ):
                break
            if producer >= 0 and (f_epoch != epoch or f_sequence != (sequence + records) & 0x7FFFFFFF):
                break
            if crc32c(data[at + _CRC_FROM : at + next_size]) != f_crc:
                break
            at += next_size
            frames += 1
            records += f_count
        if at == began:
            break
        if next_size != frame_bytes:
            frame_bytes = 0
    run.next_pos = at
    run.frame_count = frames
    run.record_count = records
    run.frame_bytes = frame_bytes
    run.nbytes = at - pos
    return run


def _wrong(
    size: int,
    flags: int,
    not_before: int,
    expires_at: int,
    priority: int,
    reserved: int,
    batch_length: int,
    magic: int,
    attributes: int,
    last_delta: int,
    producer: int,
    sequence: int,
    count: int,
    message_bytes_max: int,
    stamped: bool,
) -> HeadraceError | None:
    """Why a frame whose fields these are is refused, or None."""
    if size - ENVELOPE.size - 61 > message_bytes_max:
        return TooLarge(f"a batch of {size - ENVELOPE.size} bytes; at most {message_bytes_max} are allowed")
    if magic != 2:
        return Malformed(f"a batch of format {magic}; only RecordBatch version 2 is understood")
    if batch_length != size - 44:
        return Malformed(f"a batch says it has {batch_length} bytes after its length field, the frame holds {size - 44}")
    if not 1 <= count <= BATCH_RECORDS_MAX or last_delta != count - 1:
        return Malformed(f"a batch of {count} records with last offset delta {last_delta}")
    if attributes & ~0x0F or attributes & 7 > 4:
        return Malformed(f"batch attributes {attributes:#x}: only a codec (0-4) and the timestamp type are allowed")
    if producer < -1 or (producer >= 0 and sequence < 0):
        return Malformed(f"producer {producer} with sequence {sequence}")
    if priority > 9 or reserved:
        return Malformed(f"priority {priority} (0-9) and reserved byte {reserved} (0)")
    if not 0 <= not_before <= DELAY_MS_MAX or not 0 <= expires_at <= DELAY_MS_MAX:
        return Malformed(f"delay {not_before} ms and time to live {expires_at} ms lie in 0..{DELAY_MS_MAX}")
    if flags & 0x78 or (flags & _STAMPED and not stamped):
        return Malformed(f"publish flags {flags:#04x} are not for clients")
    return None


def walk(blob: bytes | memoryview, pos: int = 0) -> Iterator[tuple[int, int, int]]:
    """(position, bytes, offsets spanned) of each stored frame from ``pos`` on."""
    end = len(blob)
    while pos < end:
        size = _LENGTHS.unpack_from(blob, pos)[0] + 4
        yield pos, size, _COUNT.unpack_from(blob, pos + _LAST_DELTA_AT)[0] + 1
        pos += size


def split(blob: bytes | memoryview, record: int) -> tuple[int, int]:
    """(position of the frame that holds record number ``record``, number of that frame's first record)."""
    first = 0
    for pos, _, count in walk(blob):
        if first <= record < first + count:
            return pos, first
        first += count
    raise Malformed(f"these frames hold {first} records, number {record} was looked for")


def absolute(blob: bytes, wall_ms: int) -> bytes:
    """A run whose relative times (not_before, expires_at; 0 = none) are made wall-clock ones."""
    made = bytearray(blob)
    not_before, expires_at = _TIMES.unpack_from(blob, 12)
    times = _TIMES.pack(wall_ms + not_before if not_before else 0, wall_ms + expires_at if expires_at else 0)
    for pos, _, _ in walk(blob):
        made[pos + 12 : pos + 28] = times
    return bytes(made)
