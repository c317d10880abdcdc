"""Hot frames beside PUBLISH: built and parsed, with their bounds. Used by the broker's gateway and by the client.

Builders take values that are right; parsers take any bytes and raise only ``Malformed`` or ``TooLarge``. ``pos``..``stop`` is one whole frame.
"""

from collections.abc import Sequence

import msgspec

from headrace.model import limits
from headrace.model.errors import HeadraceError, Malformed, TooLarge, from_wire
from headrace.wire import control
from headrace.wire.frames import CONFIRM, CREDIT, DELIVER, EXTEND, FETCH, FETCH_END, HEADER, PUBLISH_ERROR, RANGE, SETTLE, SETTLED, Op

Range = tuple[int, int]
_SETTLE_FLAGS = 0x3F
_OFFSET_END = 1 << 63
"""Offsets are stored as i64 in a batch's header, so none reaches this."""


# ---------------------------------------------------------------- what the broker sends


def confirm(channel: int, first: int, count: int, level: int, base_offset: int, duplicate: bool = False) -> bytes:
    """``count`` frames from correlation id ``first`` on are stored from ``base_offset`` on."""
    return CONFIRM.pack(CONFIRM.size - 4, Op.CONFIRM, 0, channel, first, count, level, duplicate, 0, base_offset)


def publish_error(channel: int, first: int, count: int, error: HeadraceError) -> bytes:
    """``count`` frames from correlation id ``first`` on were refused."""
    text = str(error).encode("utf-8", "replace")[:4096]
    return PUBLISH_ERROR.pack(PUBLISH_ERROR.size - 4 + len(text), Op.PUBLISH_ERROR, 0, channel, first, count, error.code, 0) + text


def deliver_header(
    channel: int, count: int, *, partition: int, epoch: int, attempt: int, first_offset: int, base_offset: int, blob_bytes: int, flags: int = 0
) -> bytes:
    """What stands before a delivery's ``blob_bytes`` bytes of stored frames."""
    return DELIVER.pack(DELIVER.size - 4 + blob_bytes, Op.DELIVER, flags, channel, count, partition, epoch, attempt, 0, first_offset, base_offset)


def settled(channel: int, correlation: int, count: int, stale: Sequence[Range]) -> bytes:
    """Answer to a settlement or extension."""
    ranges = b"".join([RANGE.pack(first, min(n, 0xFFFFFFFF)) for first, n in stale[: limits.SETTLE_RANGES_MAX]])
    records = min(sum([n for _, n in stale]), 0xFFFFFFFF)
    return SETTLED.pack(SETTLED.size - 4 + len(ranges), Op.SETTLED, 0, channel, correlation, min(count, 0xFFFFFFFF), records) + ranges


def fetch_end(channel: int, correlation: int, count: int) -> bytes:
    """A pull request is complete."""
    return FETCH_END.pack(FETCH_END.size - 4, Op.FETCH_END, 0, channel, correlation, count)


def failure(correlation: int, error: HeadraceError) -> bytes:
    """An ERROR frame (correlation 0: the connection itself failed and is closed)."""
    body = control.encode(control.Failure(code=error.code, message=str(error), hint=error.hint, detail=dict(error.detail)))
    return HEADER.pack(8 + len(body), Op.ERROR, 0, 0, correlation) + body


# ---------------------------------------------------------------- what a client sends


def settle(
    channel: int, ranges: Sequence[Range], *, partition: int, epoch: int = 0, flags: int = 0, delay_ms: int = 0, correlation: int = 0
) -> bytes:
    """A settlement of ranges (first, count) with ``flags`` = action and SettleFlags."""
    body = b"".join([RANGE.pack(first, n) for first, n in ranges])
    return SETTLE.pack(SETTLE.size - 4 + len(body), Op.SETTLE, flags, channel, correlation, partition, epoch, delay_ms) + body


def extend(channel: int, ranges: Sequence[Range], *, partition: int, epoch: int = 0, lease_ms: int, correlation: int = 0) -> bytes:
    """Leases of ranges run ``lease_ms`` from now."""
    body = b"".join([RANGE.pack(first, n) for first, n in ranges])
    return EXTEND.pack(EXTEND.size - 4 + len(body), Op.EXTEND, 0, channel, correlation, partition, epoch, lease_ms) + body


def credit(channel: int, messages: int, nbytes: int) -> bytes:
    """Adds to a subscription's window."""
    return CREDIT.pack(CREDIT.size - 4, Op.CREDIT, 0, channel, 0, messages, nbytes)


def fetch(channel: int, correlation: int, *, messages: int, nbytes: int, wait_ms: int) -> bytes:
    """Asks a pull subscription for messages."""
    return FETCH.pack(FETCH.size - 4, Op.FETCH, 0, channel, correlation, messages, nbytes, wait_ms)


# ---------------------------------------------------------------- parsed


class SettleFrame(msgspec.Struct, frozen=True):
    flags: int
    channel: int
    correlation: int
    partition: int
    epoch: int
    delay_ms: int
    ranges: list[Range]


class ExtendFrame(msgspec.Struct, frozen=True):
    channel: int
    correlation: int
    partition: int
    epoch: int
    lease_ms: int
    ranges: list[Range]


class CreditFrame(msgspec.Struct, frozen=True):
    channel: int
    messages: int
    nbytes: int


class FetchFrame(msgspec.Struct, frozen=True):
    channel: int
    correlation: int
    messages: int
    nbytes: int
    wait_ms: int


class ConfirmFrame(msgspec.Struct, frozen=True):
    channel: int
    first: int
    count: int
    level: int
    duplicate: bool
    base_offset: int


class PublishErrorFrame(msgspec.Struct, frozen=True):
    channel: int
    first: int
    count: int
    error: HeadraceError


class DeliverFrame(msgspec.Struct, frozen=True):
    """The blob lies at ``blob_at``..``stop`` of the data that was parsed."""

    flags: int
    channel: int
    count: int
    partition: int
    epoch: int
    attempt: int
    first_offset: int
    base_offset: int
    blob_at: int


class SettledFrame(msgspec.Struct, frozen=True):
    channel: int
    correlation: int
    count: int
    stale_count: int
    stale: list[Range]


class FetchEndFrame(msgspec.Struct, frozen=True):
    channel: int
    correlation: int
    count: int


def parse_settle(data: bytes, pos: int, stop: int) -> SettleFrame:
    if stop - pos < SETTLE.size:
        raise Malformed(f"a settle frame of {stop - pos} bytes")
    _, _, flags, channel, correlation, partition, epoch, delay_ms = SETTLE.unpack_from(data, pos)
    if flags > _SETTLE_FLAGS or flags & 3 == 3:
        raise Malformed(f"settle flags {flags:#04x} hold an unknown action or flag")
    return SettleFrame(flags, channel, correlation, partition, epoch, delay_ms, _ranges(data, pos + SETTLE.size, stop))


def parse_extend(data: bytes, pos: int, stop: int) -> ExtendFrame:
    if stop - pos < EXTEND.size:
        raise Malformed(f"an extend frame of {stop - pos} bytes")
    _, _, _, channel, correlation, partition, epoch, lease_ms = EXTEND.unpack_from(data, pos)
    return ExtendFrame(channel, correlation, partition, epoch, lease_ms, _ranges(data, pos + EXTEND.size, stop))


def parse_credit(data: bytes, pos: int, stop: int) -> CreditFrame:
    if stop - pos != CREDIT.size:
        raise Malformed(f"a credit frame of {stop - pos} bytes")
    _, _, _, channel, _, messages, nbytes = CREDIT.unpack_from(data, pos)
    return CreditFrame(channel, messages, nbytes)


def parse_fetch(data: bytes, pos: int, stop: int) -> FetchFrame:
    if stop - pos != FETCH.size:
        raise Malformed(f"a fetch frame of {stop - pos} bytes")
    _, _, _, channel, correlation, messages, nbytes, wait_ms = FETCH.unpack_from(data, pos)
    return FetchFrame(channel, correlation, messages, nbytes, wait_ms)


def parse_confirm(data: bytes, pos: int, stop: int) -> ConfirmFrame:
    if stop - pos != CONFIRM.size:
        raise Malformed(f"a confirm frame of {stop - pos} bytes")
    _, _, _, channel, first, count, level, duplicate, _, base_offset = CONFIRM.unpack_from(data, pos)
    return ConfirmFrame(channel, first, count, level, bool(duplicate), base_offset)


def parse_publish_error(data: bytes, pos: int, stop: int) -> PublishErrorFrame:
    if stop - pos < PUBLISH_ERROR.size:
        raise Malformed(f"a publish error frame of {stop - pos} bytes")
    _, _, _, channel, first, count, code, _ = PUBLISH_ERROR.unpack_from(data, pos)
    return PublishErrorFrame(channel, first, count, from_wire(code, data[pos + PUBLISH_ERROR.size : stop].decode("utf-8", "replace")))


def parse_deliver(data: bytes, pos: int, stop: int) -> DeliverFrame:
    if stop - pos < DELIVER.size:
        raise Malformed(f"a deliver frame of {stop - pos} bytes")
    _, _, flags, channel, count, partition, epoch, attempt, _, first_offset, base_offset = DELIVER.unpack_from(data, pos)
    return DeliverFrame(flags, channel, count, partition, epoch, attempt, first_offset, base_offset, pos + DELIVER.size)


def parse_settled(data: bytes, pos: int, stop: int) -> SettledFrame:
    if stop - pos < SETTLED.size:
        raise Malformed(f"a settled frame of {stop - pos} bytes")
    _, _, _, channel, correlation, count, stale = SETTLED.unpack_from(data, pos)
    return SettledFrame(channel, correlation, count, stale, _ranges(data, pos + SETTLED.size, stop))


def parse_fetch_end(data: bytes, pos: int, stop: int) -> FetchEndFrame:
    if stop - pos != FETCH_END.size:
        raise Malformed(f"a fetch end frame of {stop - pos} bytes")
    _, _, _, channel, correlation, count = FETCH_END.unpack_from(data, pos)
    return FetchEndFrame(channel, correlation, count)


def parse_failure(data: bytes, pos: int, stop: int) -> HeadraceError:
    """The error that an ERROR frame names."""
    try:
        body = control.decode_failure(data[pos + HEADER.size : stop])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"an error frame cannot be read: {e}") from None
    return from_wire(body.code, body.message, body.hint)


def _ranges(data: bytes, at: int, stop: int) -> list[Range]:
    if (stop - at) % RANGE.size:
        raise Malformed(f"{stop - at} bytes of ranges; a range has {RANGE.size}")
    if (stop - at) // RANGE.size > limits.SETTLE_RANGES_MAX:
        raise TooLarge(f"{(stop - at) // RANGE.size} ranges in one frame; at most {limits.SETTLE_RANGES_MAX} are allowed")
    ranges: list[Range] = list(RANGE.iter_unpack(memoryview(data)[at:stop]))
    for first, count in ranges:
        if first + count > _OFFSET_END:
            raise Malformed(f"a range of {count} from offset {first} on passes the largest offset, {_OFFSET_END - 1}")
    return ranges
