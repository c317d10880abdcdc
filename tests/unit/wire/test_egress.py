"""Hot frames: built, parsed, bounded."""

from collections.abc import Callable
from struct import Struct
from typing import Any

import pytest

from headrace.model import limits
from headrace.model.errors import Malformed, QueueFull, TooLarge
from headrace.wire import egress
from headrace.wire.frames import DELIVER, HEADER, PUBLISH_ERROR, RANGE, Op, Settle, SettleFlag


def whole(data: bytes) -> None:
    assert int.from_bytes(data[:4], "big") == len(data) - 4


def test_confirm() -> None:
    data = egress.confirm(3, 7, 100, 2, 1 << 40, True)
    whole(data)
    assert egress.parse_confirm(data, 0, len(data)) == egress.ConfirmFrame(3, 7, 100, 2, True, 1 << 40)


def test_publish_error() -> None:
    data = egress.publish_error(3, 7, 2, QueueFull("voll: größer"))
    whole(data)
    frame = egress.parse_publish_error(data, 0, len(data))
    assert (frame.channel, frame.first, frame.count, type(frame.error), str(frame.error)) == (3, 7, 2, QueueFull, "voll: größer")
    long = egress.publish_error(1, 1, 1, QueueFull("ö" * 9000))
    assert len(long) < 5000
    assert str(egress.parse_publish_error(long, 0, len(long)).error).startswith("öö")


def test_deliver() -> None:
    head = egress.deliver_header(3, 5, partition=1, epoch=9, attempt=2, first_offset=102, base_offset=100, blob_bytes=4, flags=1)
    data = b"xx" + head + b"blob"
    assert int.from_bytes(head[:4], "big") == len(head) + 4 - 4
    frame = egress.parse_deliver(data, 2, len(data))
    assert frame == egress.DeliverFrame(1, 3, 5, 1, 9, 2, 102, 100, 2 + DELIVER.size)
    assert data[frame.blob_at :] == b"blob"


def test_settle() -> None:
    ranges = [(5, 1), (7, 0xFFFFFFFF), ((1 << 63) - 1, 1)]
    flags = Settle.RETRY | SettleFlag.DELAY | SettleFlag.CONFIRM
    data = egress.settle(3, ranges, partition=1, epoch=9, flags=flags, delay_ms=5000, correlation=77)
    whole(data)
    assert egress.parse_settle(data, 0, len(data)) == egress.SettleFrame(flags, 3, 77, 1, 9, 5000, ranges)


@pytest.mark.parametrize("flags", [0x03, 0x07, 0x40, 0x80, 0xFF])
def test_unknown_settle_flags(flags: int) -> None:
    data = egress.settle(3, [(5, 1)], partition=1, flags=flags)
    with pytest.raises(Malformed, match="flags"):
        egress.parse_settle(data, 0, len(data))


def test_extend() -> None:
    data = egress.extend(3, [(5, 2)], partition=1, epoch=9, lease_ms=1000, correlation=4)
    whole(data)
    assert egress.parse_extend(data, 0, len(data)) == egress.ExtendFrame(3, 4, 1, 9, 1000, [(5, 2)])


def test_settled() -> None:
    data = egress.settled(3, 4, 10, [(5, 2), (9, 1)])
    whole(data)
    assert egress.parse_settled(data, 0, len(data)) == egress.SettledFrame(3, 4, 10, 3, [(5, 2), (9, 1)])


def test_settled_stays_within_its_bounds() -> None:
    data = egress.settled(3, 4, 1 << 40, [(i * 2, 1 << 40) for i in range(limits.SETTLE_RANGES_MAX + 5)])
    frame = egress.parse_settled(data, 0, len(data))
    assert (frame.count, frame.stale_count, len(frame.stale), frame.stale[0]) == (0xFFFFFFFF, 0xFFFFFFFF, limits.SETTLE_RANGES_MAX, (0, 0xFFFFFFFF))


def test_credit_fetch_and_its_end() -> None:
    data = egress.credit(3, 100, -5)
    whole(data)
    assert egress.parse_credit(data, 0, len(data)) == egress.CreditFrame(3, 100, -5)
    data = egress.fetch(3, 4, messages=10, nbytes=1000, wait_ms=50)
    whole(data)
    assert egress.parse_fetch(data, 0, len(data)) == egress.FetchFrame(3, 4, 10, 1000, 50)
    data = egress.fetch_end(3, 4, 10)
    whole(data)
    assert egress.parse_fetch_end(data, 0, len(data)) == egress.FetchEndFrame(3, 4, 10)


def test_failure() -> None:
    data = egress.failure(9, QueueFull("full", hint="wait"))
    whole(data)
    assert HEADER.unpack_from(data)[1:] == (Op.ERROR, 0, 0, 9)
    error = egress.parse_failure(data, 0, len(data))
    assert (type(error), str(error), error.hint) == (QueueFull, "full", "wait")
    with pytest.raises(Malformed):
        egress.parse_failure(HEADER.pack(8, Op.ERROR, 0, 0, 1) + b"\xc1", 0, 13)


PARSERS: list[tuple[Callable[[bytes, int, int], Any], bytes, bool]] = [
    (egress.parse_confirm, egress.confirm(1, 1, 1, 1, 1), False),
    (egress.parse_publish_error, egress.publish_error(1, 1, 1, QueueFull(""))[: PUBLISH_ERROR.size], True),
    (egress.parse_deliver, egress.deliver_header(1, 1, partition=0, epoch=1, attempt=1, first_offset=0, base_offset=0, blob_bytes=0), True),
    (egress.parse_settle, egress.settle(1, [], partition=0), True),
    (egress.parse_extend, egress.extend(1, [], partition=0, lease_ms=1), True),
    (egress.parse_settled, egress.settled(1, 1, 1, []), True),
    (egress.parse_credit, egress.credit(1, 1, 1), False),
    (egress.parse_fetch, egress.fetch(1, 1, messages=1, nbytes=1, wait_ms=1), False),
    (egress.parse_fetch_end, egress.fetch_end(1, 1, 1), False),
]


@pytest.mark.parametrize(("parse", "shortest", "open_end"), PARSERS)
def test_lengths(parse: Callable[[bytes, int, int], Any], shortest: bytes, open_end: bool) -> None:
    parse(shortest, 0, len(shortest))
    for cut in range(len(shortest)):
        with pytest.raises(Malformed):
            parse(shortest, 0, cut)
    if not open_end:
        with pytest.raises(Malformed):
            parse(shortest + b"\x00", 0, len(shortest) + 1)


@pytest.mark.parametrize("make", [
    lambda r: (egress.parse_settle, egress.settle(1, r, partition=0)),
    lambda r: (egress.parse_extend, egress.extend(1, r, partition=0, lease_ms=1)),
])  # fmt: skip
def test_ranges_are_bounded(make: Callable[[Any], tuple[Callable[[bytes, int, int], Any], bytes]]) -> None:
    parse, data = make([(0, 1)] * limits.SETTLE_RANGES_MAX)
    assert len(parse(data, 0, len(data)).ranges) == limits.SETTLE_RANGES_MAX
    parse, data = make([(0, 1)] * (limits.SETTLE_RANGES_MAX + 1))
    with pytest.raises(TooLarge, match="ranges"):
        parse(data, 0, len(data))
    for bad in ((1 << 63, 1), ((1 << 64) - 1, 0xFFFFFFFF), ((1 << 63) - 1, 2)):
        parse, data = make([(0, 1), bad])
        with pytest.raises(Malformed, match="passes the largest offset"):
            parse(data, 0, len(data))
    parse, data = make([(0, 1)])
    with pytest.raises(Malformed, match="a range has 12"):
        parse(data[:-1], 0, len(data) - 1)


def test_a_range_is_twelve_bytes() -> None:
    assert Struct(">QI").size == RANGE.size == 12
