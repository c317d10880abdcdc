"""Publishes as they arrive: from a read's bytes to runs of frames, the hot loop of the broker.

Owns: what makes a PUBLISH frame valid, and which neighbours may be treated as one (a *run*: one slice, one entry, one confirm). It opens no record,
copies no payload and knows neither channels nor partitions. Invariants: every frame of a run was checked whole (structure, bounds, CRC-32C); a run is
contiguous in the bytes given; a bad frame is never part of a run that holds good ones. Nothing here raises on hostile bytes.

Speed: equal-sized frames, the usual case, are compared by chained C iterators: what arrives (one struct per frame) against what the first frame says
must arrive. The interpreter runs no instruction per frame. Other frames take a plain loop. The module is written so that mypyc can compile it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress, count, repeat, starmap
from operator import ne
from struct import Struct
from typing import TYPE_CHECKING, Final

from crc32c import crc32c
from librt.strings import read_i16_be, read_i32_be, read_i64_be

from headrace.model.errors import HeadraceError, Invalid, Malformed, TooLarge
from headrace.model.limits import BATCH_RECORDS_MAX, DELAY_MS_MAX, PRIORITY_MAX

if TYPE_CHECKING:
    from mypy_extensions import i16, i32, i64

Buffer = bytes | bytearray | memoryview

_OP_PUBLISH: Final = 0x01
_STAMPED: Final = 0x80
_LEVEL_MASK: Final = 0x07
_LEVELS: Final = 0b10011111  # bit n: level n exists
_ENVELOPE_SIZE: Final = 32
_MIN: Final = 93  # envelope and batch header
_CRC_FROM: Final = 53  # what the batch's checksum covers, up to the frame's end
_RECORD_MIN: Final = 7  # bytes of the smallest record
_CODEC_MAX: Final = 4
_LOG_APPEND_TIME: Final = 8  # timestamp type, the one other attribute allowed
_U32: Final = 0xFFFFFFFF
_SEQUENCE_MASK: Final = 0x7FFFFFFF
_SHAPES_MAX: Final = 1024

# length, op, flags, channel, correlation, not_before, expires_at, priority, reserved, key slot | batch length, magic, crc, attributes, last delta,
# producer id, producer epoch, sequence, records
_FIRST: Final = Struct(">IBBHIqqBBH8xi4xbIhi16xqhii")
# length, op+flags+channel, correlation, times+priority+reserved+slot | batch length, magic, crc, attributes, last delta, producer id+epoch, sequence,
# records
_NEXT: Final = Struct(">III20s8xi4xbIhi16x10sii")
_SPAN: Final = Struct(">I51xi30x")  # length, last offset delta; as long as _MIN
_ALIKE_BYTES_MAX: Final = 4096
_TIMES: Final = Struct(">qq")
assert _FIRST.size == _NEXT.size == _SPAN.size + 4 == _MIN

_sum: Final = crc32c
_first: Final = _FIRST.unpack_from
_next: Final = _NEXT.unpack_from
_span: Final = _SPAN.unpack_from
_shapes: dict[int, tuple[Struct, Struct]] = {}


class Run:
    """Consecutive PUBLISH frames that are one for all that follows. With ``error`` set it is one bad frame, of which only ``channel``, ``flags`` and
    ``first_correlation`` may be used."""

    __slots__ = (
        "channel", "compressed", "error", "expires_at_ms", "first_correlation", "first_sequence", "flags", "frame_bytes", "frame_count", "key_slot",
        "nbytes", "next_pos", "not_before_ms", "priority", "producer_epoch", "producer_id", "record_count", "shape",
    )  # fmt: skip

    def __init__(self) -> None:
        self.next_pos: int = 0
        self.channel: int = 0
        self.flags: int = 0
        self.first_correlation: int = 0
        self.frame_count: int = 1
        self.record_count: int = 0
        self.producer_id: int = -1
        self.producer_epoch: int = -1
        self.first_sequence: int = -1
        """-1 without a producer."""
        self.not_before_ms: int = 0
        """Relative, as are ``expires_at_ms``; 0 = none."""
        self.expires_at_ms: int = 0
        self.priority: int = 0
        self.key_slot: int = 0
        self.compressed: bool = False
        """Whether any batch of it is compressed."""
        self.frame_bytes: int = 0
        """Size of each frame if all are of one size, else 0."""
        self.nbytes: int = 0
        self.shape: Shape | None = None
        """That it was recognised by, if it is a lone frame like the one before it."""
        self.error: HeadraceError | None = None


def scan_run(data: bytes, pos: int, end: int, message_bytes_max: int, stamped: bool = False) -> Run:
    """The longest run of valid PUBLISH frames that begins at ``pos``, where a whole one stands (its length field was checked by the framing).

    Shared by a run's frames: opcode, flags, channel, times, priority, key slot, producer id and epoch; correlation ids grow by one (mod 2^32),
    sequences by the record count (mod 2^31). A bad frame ends the run before it; if it is the first, ``error`` says why and ``next_pos`` lies behind.
    ``stamped`` allows the flag that only the broker sets. Cost: one checksum a frame, O(bytes).
    """
    run = Run()
    if end - pos < _MIN:
        return _bad(run, data, pos, end, Malformed(f"a PUBLISH frame has at least {_MIN} bytes, this one has {end - pos}"))
    (
        length, op, flags, channel, correlation, not_before_ms, expires_at_ms, priority, reserved, key_slot,
        batch_length, magic, crc, attributes, last_delta, producer_id, producer_epoch, sequence, records,
    ) = _first(data, pos)  # fmt: skip
    size: int = length + 4
    at: int = pos + size
    idempotent: bool = producer_id >= 0
    view = memoryview(data)
    if (
        size < _MIN or at > end or batch_length != size - 44 or batch_length > message_bytes_max + 49
        or op != _OP_PUBLISH or flags & 0x78 or (flags & _STAMPED and not stamped) or not _LEVELS >> (flags & _LEVEL_MASK) & 1
        or priority > PRIORITY_MAX or reserved
        or not 0 <= not_before_ms <= DELAY_MS_MAX or not 0 <= expires_at_ms <= DELAY_MS_MAX
        or magic != 2 or not 0 <= attributes & ~_LOG_APPEND_TIME <= _CODEC_MAX
        or not 1 <= records <= BATCH_RECORDS_MAX or last_delta != records - 1 or (attributes & 7 == 0 and records * _RECORD_MIN > size - _MIN)
        or producer_id < -1 or (idempotent and (producer_epoch < 0 or sequence < 0))
        or _sum(view[pos + _CRC_FROM : at]) != crc
    ):  # fmt: skip
        return _bad(run, data, pos, end, _why(data, pos, end, message_bytes_max, stamped))
    run.channel = channel
    run.flags = flags
    run.first_correlation = correlation
    run.not_before_ms = not_before_ms
    run.expires_at_ms = expires_at_ms
    run.priority = priority
    run.key_slot = key_slot
    if idempotent:
        run.producer_id = producer_id
        run.producer_epoch = producer_epoch
        run.first_sequence = sequence
    frames: int = 1
    total: int = records
    compressed: bool = attributes & 7 != 0
    frame_bytes: int = size

    if at + 8 > end or data[at + 7] != data[pos + 7] or data[at + 6] != data[pos + 6]:  # of another channel
        end = at
    elif at + size <= end and data[at : at + 8] == data[pos : pos + 8]:
        frames = _equal_frames(view, pos, end, size, correlation, sequence if idempotent else -1, records)
        total = frames * records
        at = pos + frames * size
    if at + _MIN <= end:
        same_head: int = (op << 24) | (flags << 16) | channel
        same_rest: bytes = data[pos + 12 : pos + 32]
        same_producer: bytes = data[pos + 75 : pos + 85]
        batch_length_max: int = message_bytes_max + 49
        due_correlation: int = (correlation + frames) & _U32
        due_sequence: int = (sequence + total) & _SEQUENCE_MASK
        while at + _MIN <= end:
            length, head, correlation, rest, batch_length, magic, crc, attributes, last_delta, producer, sequence, records = _next(data, at)
            size = length + 4
            following: int = at + size
            if (
                head != same_head or correlation != due_correlation or rest != same_rest or producer != same_producer
                or (idempotent and sequence != due_sequence)
                or following > end or size < _MIN or batch_length != size - 44 or batch_length > batch_length_max
                or magic != 2 or not 0 <= attributes & ~_LOG_APPEND_TIME <= _CODEC_MAX
                or not 1 <= records <= BATCH_RECORDS_MAX or last_delta != records - 1 or (attributes & 7 == 0 and records * _RECORD_MIN > size - _MIN)
                or total + records > _U32
                or _sum(view[at + _CRC_FROM : following]) != crc
            ):  # fmt: skip
                break
            frames += 1
            total += records
            due_correlation = (due_correlation + 1) & _U32
            due_sequence = (due_sequence + records) & _SEQUENCE_MASK
            if attributes & 7:
                compressed = True
            if size != frame_bytes:
                frame_bytes = 0
            at = following
    run.frame_count = frames
    run.record_count = total
    run.compressed = compressed
    run.frame_bytes = frame_bytes
    run.nbytes = at - pos
    run.next_pos = at
    return run


class Shape:
    """What a valid frame that stood alone has in common with others like it, of whatever channel: all but channel, correlation id, checksum, sequence
    and what the batch holds. Kept as the numbers that stand in such frames, so that comparing makes no object."""

    __slots__ = (
        "after", "attributes", "batch_length", "before", "epoch", "expires_at", "head", "key_slot", "last_delta", "not_before", "priority",
        "producer", "producer_epoch", "producer_id", "records", "size", "slot",
    )  # fmt: skip

    def __init__(self, data: bytes, pos: int, run: Run) -> None:
        """``run``: the one frame at ``pos``, not compressed, without times and priority."""
        self.size: int = run.nbytes
        self.head: i64 = read_i64_be(data, pos) >> 16
        """Length, op and flags."""
        self.not_before: i64 = read_i64_be(data, pos + 12)
        self.expires_at: i64 = read_i64_be(data, pos + 20)
        self.priority: i64 = read_i64_be(data, pos + 28)
        """With what is reserved and the key slot."""
        self.slot: i64 = read_i64_be(data, pos + 36)
        self.batch_length: i64 = read_i64_be(data, pos + 41)
        """Up to the magic, which is the byte before the checksum."""
        self.attributes: i32 = read_i32_be(data, pos + 53)
        self.last_delta: i16 = read_i16_be(data, pos + 57)
        self.producer: i64 = read_i64_be(data, pos + 75)
        self.epoch: i16 = read_i16_be(data, pos + 83)
        self.records: int = run.record_count
        self.producer_id: int = run.producer_id
        self.producer_epoch: int = run.producer_epoch
        self.key_slot: int = run.key_slot
        self.before: bytes = b""
        """What an entry says of such a frame before and after its sequence; kept by who writes entries, once there is one."""
        self.after: bytes = b""


def shape_of(data: bytes, pos: int, run: Run) -> Shape | None:
    """What frames like ``run``'s, which stood at ``pos``, are recognised by. None: not worth it, since it holds several, or has what is rare."""
    if run.frame_count != 1 or run.compressed or run.not_before_ms or run.expires_at_ms or run.priority or run.nbytes > _ALIKE_BYTES_MAX:
        return None
    return Shape(data, pos, run)


def scan_alike(shape: Shape, data: bytes, pos: int, end: int) -> Run | None:
    """As ``scan_run`` for a lone frame of that shape followed by one of another channel. None: it is no such frame, and nothing is said of it."""
    at: int = pos + shape.size
    if at > end:
        return None
    start: i64 = pos
    head = read_i64_be(data, start)
    channel: int = head & 0xFFFF
    sequence: int = read_i32_be(data, start + 85)
    records: int = read_i32_be(data, start + 89)
    if (
        head >> 16 != shape.head or records != shape.records
        or read_i64_be(data, start + 12) != shape.not_before or read_i64_be(data, start + 20) != shape.expires_at
        or read_i64_be(data, start + 28) != shape.priority or read_i64_be(data, start + 36) != shape.slot
        or read_i64_be(data, start + 41) != shape.batch_length
        or read_i32_be(data, start + 53) != shape.attributes or read_i16_be(data, start + 57) != shape.last_delta
        or read_i64_be(data, start + 75) != shape.producer or read_i16_be(data, start + 83) != shape.epoch
        or (sequence < 0 <= shape.producer_id)
        or (at + 8 <= end and (data[at + 7] | data[at + 6] << 8) == channel)
    ):  # fmt: skip
        return None
    checksum: int = _sum(data[pos + _CRC_FROM : at])
    if checksum != read_i64_be(data, start + 45) & _U32:
        return None
    run = Run()
    run.next_pos = at
    run.channel = channel
    run.flags = data[pos + 5]
    run.first_correlation = read_i64_be(data, start + 4) & _U32
    run.record_count = records
    if shape.producer_id >= 0:
        run.producer_id = shape.producer_id
        run.producer_epoch = shape.producer_epoch
        run.first_sequence = sequence
    run.key_slot = shape.key_slot
    run.frame_bytes = shape.size
    run.nbytes = shape.size
    run.shape = shape
    return run


def absolute(run_bytes: bytes, wall_ms: int) -> bytes:
    """A run with its relative times made wall-clock times (0 stays 0). Costs nothing if it has none."""
    not_before_ms, expires_at_ms = _TIMES.unpack_from(run_bytes, 12)
    if not (not_before_ms or expires_at_ms):
        return run_bytes
    times = _TIMES.pack(not_before_ms and wall_ms + not_before_ms, expires_at_ms and wall_ms + expires_at_ms)
    out = bytearray(run_bytes)
    pos = 0
    end = len(run_bytes)
    while pos < end:
        out[pos + 12 : pos + 28] = times
        pos += 4 + int.from_bytes(run_bytes[pos : pos + 4], "big")
    return bytes(out)


def walk(blob: Buffer, pos: int = 0) -> Iterator[tuple[int, int, int]]:
    """(position, bytes of the whole frame, offsets it spans) of each stored PUBLISH frame from ``pos`` on. A frame spans its last offset delta + 1
    offsets: its record count, unless compaction took some. Raises ``Malformed`` where the frames do not add up."""
    end = len(blob)
    while pos < end:
        if end - pos < _MIN:
            raise Malformed(f"stored frames end in {end - pos} bytes that are no frame")
        length, last_delta = _span(blob, pos)
        size: int = length + 4
        if size < _MIN or pos + size > end or last_delta < 0:
            raise Malformed(f"stored frame at byte {pos} has an impossible length or count ({size} bytes, last offset delta {last_delta})")
        yield pos, size, last_delta + 1
        pos += size


def split(blob: Buffer, record_index: int) -> tuple[int, int]:
    """(byte position of the frame that holds record number ``record_index``, number of that frame's first record). O(frames before it); raises
    ``Malformed`` if the blob has fewer records."""
    first = 0
    for pos, _, span in walk(blob):
        if record_index < first + span:
            return pos, first
        first += span
    raise Malformed(f"record {record_index} was asked of frames that hold {first}")


def _equal_frames(view: memoryview, pos: int, end: int, size: int, correlation: int, sequence: int, records: int) -> int:
    """How many frames from ``pos`` on are valid and differ from the first, a valid one, only in what grows (ids, sequences) and in payload.

    Two iterators are compared: the frames' fields as they are, and as they must be. The first difference ends it.
    """
    shape = _shapes.get(size)
    if shape is None:
        if len(_shapes) >= _SHAPES_MAX:
            _shapes.clear()
        # length+op+flags+channel, correlation, all up to the magic, crc, attributes+last delta, producer id+epoch, sequence+records
        shape = _shapes[size] = (Struct(f">QI37sI6s16x10sQ{size - _MIN}x"), Struct(f">{_CRC_FROM}x{size - _CRC_FROM}s"))
    fields, covered = shape
    frames_max = min((end - pos) // size, _U32 - correlation + 1, _U32 // records)
    step = 0
    if sequence >= 0:
        frames_max = min(frames_max, (_SEQUENCE_MASK - sequence) // records + 1)
        step = records << 32
    part = view[pos : pos + frames_max * size]
    head, _, rest, _, shape_of_batch, producer, numbers = fields.unpack_from(part)
    as_they_must_be = zip(
        repeat(head),
        count(correlation),
        repeat(rest),
        starmap(crc32c, covered.iter_unpack(part)),
        repeat(shape_of_batch),
        repeat(producer),
        count(numbers, step),
        strict=False,
    )
    differs = map(ne, fields.iter_unpack(part), as_they_must_be)
    return next(compress(count(), differs), frames_max)


def _bad(run: Run, data: bytes, pos: int, end: int, error: HeadraceError) -> Run:
    run.error = error
    if end - pos >= 12:
        run.flags = data[pos + 5]
        run.channel = (data[pos + 6] << 8) | data[pos + 7]
        run.first_correlation = int.from_bytes(data[pos + 8 : pos + 12], "big")
        run.next_pos = min(pos + 4 + int.from_bytes(data[pos : pos + 4], "big"), end)
    else:
        run.next_pos = end
    run.nbytes = run.next_pos - pos
    return run


def _why(data: bytes, pos: int, end: int, message_bytes_max: int, stamped: bool) -> HeadraceError:
    """What is wrong with a frame that ``scan_run`` refused, in the order of its bytes."""
    (
        length, op, flags, _, _, not_before_ms, expires_at_ms, priority, reserved, _,
        batch_length, magic, _, attributes, last_delta, producer_id, producer_epoch, sequence, records,
    ) = _first(data, pos)  # fmt: skip
    size: int = length + 4
    if size < _MIN:
        return Malformed(f"a PUBLISH frame has at least {_MIN} bytes, this one has {size}")
    if pos + size > end:
        return Malformed(f"the frame says {size} bytes, {end - pos} are there")
    if op != _OP_PUBLISH:
        return Malformed(f"opcode {op:#04x} is not PUBLISH")
    if flags & _STAMPED and not stamped:
        return Malformed("flag STAMPED is the broker's own")
    if flags & 0x78 or not _LEVELS >> (flags & _LEVEL_MASK) & 1:
        return Malformed(f"flags {flags:#04x} hold an unknown level or flag")
    if not (0 <= not_before_ms <= DELAY_MS_MAX and 0 <= expires_at_ms <= DELAY_MS_MAX):
        return Invalid(f"not_before and expires_at are relative and lie in 0..{DELAY_MS_MAX} ms; these are {not_before_ms} and {expires_at_ms}")
    if priority > PRIORITY_MAX:
        return Invalid(f"priority lies in 0..{PRIORITY_MAX}, is {priority}")
    if reserved:
        return Malformed("the reserved byte of the envelope is not 0")
    if magic != 2:
        return Malformed(f"the batch has magic {magic}; only RecordBatch v2 is spoken")
    if batch_length != size - 44:
        return Malformed(f"the batch says {batch_length + 12} bytes, its frame holds {size - _ENVELOPE_SIZE}")
    if batch_length > message_bytes_max + 49:
        return TooLarge(f"the batch has {batch_length - 49} bytes of records, the limit is {message_bytes_max}")
    if not 0 <= attributes & ~_LOG_APPEND_TIME <= _CODEC_MAX:
        return Malformed(f"batch attributes {attributes:#x}: only a compression codec (0-4) and the timestamp type may be set")
    if not 1 <= records <= BATCH_RECORDS_MAX:
        return Malformed(f"a batch has 1..{BATCH_RECORDS_MAX} records, this one says {records}")
    if last_delta != records - 1 or (attributes & 7 == 0 and records * _RECORD_MIN > size - _MIN):
        return Malformed(f"a batch of {records} records with last offset delta {last_delta} cannot have {size - _MIN} bytes of records")
    if producer_id < -1 or (producer_id >= 0 and (producer_epoch < 0 or sequence < 0)):
        return Malformed(f"producer id {producer_id}, epoch {producer_epoch} and sequence {sequence} do not go together")
    return Malformed("the batch does not match its CRC-32C: it was damaged on its way")
