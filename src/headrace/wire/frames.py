"""Native frames: the opcodes and the packed layouts of the hot ones. All integers are big-endian.

Source: docs/protocol.md. A connection opens with the 8-byte ``PREAMBLE`` from the client, then frames both ways.
A frame is ``length u32 | opcode u8 | flags u8 | channel u16 | correlation u32 | body``; ``length`` counts what follows it.

PUBLISH is the only frame that is stored as it arrived (with its flags, channel and correlation id): an entry on disk
is a run of them, and a DELIVER carries such runs verbatim.
"""

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

PREAMBLE: Final = b"HDRACE\r\n"
VERSION_MIN: Final = 1
VERSION_MAX: Final = 1


class Op(IntEnum):
    """Opcode of a frame."""

    PUBLISH = 0x01
    CONFIRM = 0x02
    PUBLISH_ERROR = 0x03
    DELIVER = 0x10
    SETTLE = 0x11
    SETTLED = 0x12
    CREDIT = 0x13
    EXTEND = 0x14
    FETCH = 0x15
    FETCH_END = 0x16
    PING = 0x20
    PONG = 0x21
    REQUEST = 0x30
    REPLY = 0x31
    ERROR = 0x32
    EVENT = 0x33


class Level(IntEnum):
    """Confirm level of a publish, in the low three bits of its flags. ``QUEUE`` = the queue's or stream's own level."""

    NONE = 0
    ACCEPTED = 1
    LOCAL = 2
    MAJORITY = 3
    REPLICA = 4
    QUEUE = 7


class PublishFlag(IntFlag):
    """Flags of PUBLISH beside the level."""

    LEVEL_MASK = 0x07
    STAMPED = 0x80
    """Set only by the broker: headers named ``headrace.*`` in this batch are its own. Refused from clients."""


class Settle(IntEnum):
    """Action of a SETTLE, in the low two bits of its flags."""

    ACK = 0
    RETRY = 1
    REJECT = 2


class SettleFlag(IntFlag):
    ACTION_MASK = 0x03
    CONFIRM = 0x04
    """Answer with SETTLED once the settlement is committed (without it only stale ranges are answered)."""
    UP_TO = 0x08
    """Each range means: everything this subscription holds of that partition below first + count."""
    DELAY = 0x10
    """``delay_ms`` is given (else the queue's back-off decides)."""
    DROP = 0x20
    """With REJECT: drop instead of dead-lettering."""


class DeliverFlag(IntFlag):
    REDELIVERED = 0x01
    SPECULATIVE = 0x02
    AUTO_ACK = 0x04
    DEAD_LETTER = 0x08
    """Delivered by a FETCH."""


HEADER: Final = Struct(">IBBHI")
"""length, opcode, flags, channel, correlation."""

ENVELOPE: Final = Struct(">IBBHIqqBBH")
"""PUBLISH up to its batch: the header, then not_before_ms i64, expires_at_ms i64, priority u8, reserved u8 (0), key slot u16.

On the client's wire the two times are relative to arrival (0 = none); in storage and in DELIVER they are wall-clock milliseconds.
"""

CONFIRM: Final = Struct(">IBBHIIBBHQ")
"""header (channel; correlation = the first id confirmed), count u32 of frames, level u8, duplicate u8 (1: stored before), reserved u16, base offset
u64 of the first frame's first record; the others follow densely."""

PUBLISH_ERROR: Final = Struct(">IBBHIIHH")
"""header (channel; correlation = the first id refused), count u32, error code u16, reserved u16; then the message in UTF-8."""

DELIVER: Final = Struct(">IBBHIIIHHQQ")
"""header (channel = subscription; correlation = records selected), partition u32 (number within the queue or stream), epoch u32,
attempt u16 (1 = first delivery; 0 = a stream's), reserved u16, first_offset u64 of the selected records, base_offset u64 of the first record in the
blob; then the blob: stored PUBLISH frames."""

SETTLE: Final = Struct(">IBBHIIII")
"""header (channel = subscription; correlation for the answer), partition u32, epoch u32, delay_ms u32; then ranges."""

RANGE: Final = Struct(">QI")
"""first offset u64, count u32."""

SETTLED: Final = Struct(">IBBHIII")
"""header (channel, correlation of the SETTLE or EXTEND), records settled u32, records stale u32; then the stale ranges."""

CREDIT: Final = Struct(">IBBHIii")
"""header (channel = subscription), messages i32 and bytes i32 added to the window."""

EXTEND: Final = Struct(">IBBHIIII")
"""header (channel, correlation), partition u32, epoch u32, lease_ms u32 from now; then ranges."""

FETCH: Final = Struct(">IBBHIIII")
"""header (channel, correlation), messages u32, bytes u32, wait_ms u32. Answered by DELIVERs and one FETCH_END."""

FETCH_END: Final = Struct(">IBBHII")
"""header (channel, correlation of the FETCH), records delivered u32."""

BATCH: Final = Struct(">qiibIhiqqqhii")
"""RecordBatch v2 up to its records: base offset i64, length i32 (from the epoch field on), leader epoch i32, magic i8 (2), crc u32 (CRC-32C from
attributes on),
attributes i16, last offset delta i32, base timestamp i64, max timestamp i64, producer id i64, producer epoch i16, base sequence i32, record count
i32."""

assert HEADER.size == 12 and ENVELOPE.size == 32 and BATCH.size == 61 and CONFIRM.size == 28 and DELIVER.size == 40

BATCH_CRC_AT: Final = 17
BATCH_CRC_FROM: Final = 21
PUBLISH_MIN: Final = ENVELOPE.size + BATCH.size


def frame(op: int, body: bytes = b"", *, flags: int = 0, channel: int = 0, correlation: int = 0) -> bytes:
    """One whole frame."""
    return HEADER.pack(8 + len(body), op, flags, channel, correlation) + body
