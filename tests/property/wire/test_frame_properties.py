"""Hot frames, journal payloads and control messages: there and back; arbitrary bytes."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.model.errors import BY_CODE, Malformed, from_wire
from headrace.wire import control, egress, journal

u16, u32, u64 = (st.integers(0, (1 << n) - 1) for n in (16, 32, 64))
i32 = st.integers(-(1 << 31), (1 << 31) - 1)
ranges = st.lists(st.tuples(st.integers(0, 1 << 62), u32), max_size=5)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)

PARSERS: list[Callable[[bytes, int, int], Any]] = [
    egress.parse_confirm, egress.parse_publish_error, egress.parse_deliver, egress.parse_settle, egress.parse_extend, egress.parse_settled,
    egress.parse_credit, egress.parse_fetch, egress.parse_fetch_end, egress.parse_failure,
]  # fmt: skip
UNPACKERS: list[Callable[[bytes], Any]] = [
    journal.unpack_records_head, journal.unpack_leases, journal.unpack_settlements, journal.unpack_cursors, journal.unpack_transfer,
]  # fmt: skip


@given(u16, u32, u32, st.integers(0, 7), u64, st.booleans())
def test_confirm(channel: int, first: int, count: int, level: int, base: int, duplicate: bool) -> None:
    data = egress.confirm(channel, first, count, level, base, duplicate)
    assert egress.parse_confirm(data, 0, len(data)) == egress.ConfirmFrame(channel, first, count, level, duplicate, base)


@given(u16, u32, u32, st.sampled_from(sorted(BY_CODE)), text)
def test_publish_error(channel: int, first: int, count: int, code: int, message: str) -> None:
    data = egress.publish_error(channel, first, count, from_wire(code, message or "x"))
    found = egress.parse_publish_error(data, 0, len(data))
    assert (found.channel, found.first, found.count, type(found.error), str(found.error)) == (channel, first, count, BY_CODE[code], message or "x")


@given(u16, u32, u32, u32, u16, u64, u64, st.integers(0, 255))
def test_deliver(channel: int, count: int, partition: int, epoch: int, attempt: int, first: int, base: int, flags: int) -> None:
    data = egress.deliver_header(
        channel, count, partition=partition, epoch=epoch, attempt=attempt, first_offset=first, base_offset=base, blob_bytes=0, flags=flags
    )
    assert egress.parse_deliver(data, 0, len(data)) == egress.DeliverFrame(flags, channel, count, partition, epoch, attempt, first, base, len(data))


@given(u16, ranges, u32, u32, st.integers(0, 63).filter(lambda flags: flags & 3 != 3), st.integers(0, 1 << 31), u32)
def test_settle_extend_settled(channel: int, found: list[tuple[int, int]], partition: int, epoch: int, flags: int, ms: int, correlation: int) -> None:
    data = egress.settle(channel, found, partition=partition, epoch=epoch, flags=flags, delay_ms=ms, correlation=correlation)
    assert egress.parse_settle(data, 0, len(data)) == egress.SettleFrame(flags, channel, correlation, partition, epoch, ms, found)
    data = egress.extend(channel, found, partition=partition, epoch=epoch, lease_ms=ms, correlation=correlation)
    assert egress.parse_extend(data, 0, len(data)) == egress.ExtendFrame(channel, correlation, partition, epoch, ms, found)
    data = egress.settled(channel, correlation, ms, found)
    total = min(sum([n for _, n in found]), 0xFFFFFFFF)
    assert egress.parse_settled(data, 0, len(data)) == egress.SettledFrame(channel, correlation, ms, total, found)


@given(u16, i32, i32, u32, u32, u32, u32)
def test_credit_fetch(channel: int, messages: int, nbytes: int, correlation: int, wanted: int, wanted_bytes: int, wait: int) -> None:
    data = egress.credit(channel, messages, nbytes)
    assert egress.parse_credit(data, 0, len(data)) == egress.CreditFrame(channel, messages, nbytes)
    data = egress.fetch(channel, correlation, messages=wanted, nbytes=wanted_bytes, wait_ms=wait)
    assert egress.parse_fetch(data, 0, len(data)) == egress.FetchFrame(channel, correlation, wanted, wanted_bytes, wait)


@given(st.binary(max_size=120), st.sampled_from(PARSERS))
def test_arbitrary_frames(data: bytes, parse: Callable[[bytes, int, int], Any]) -> None:
    with suppress(Malformed):
        parse(data, 0, len(data))


@given(st.binary(max_size=120), st.sampled_from(UNPACKERS))
@example(b"\x91\xa1\x80", journal.unpack_transfer)
@example(b"\x91\x92\xa1\x80\x00", journal.unpack_cursors)
def test_arbitrary_payloads(data: bytes, unpack: Callable[[bytes], Any]) -> None:
    with suppress(Malformed):
        unpack(data)


@given(st.lists(st.tuples(u64, u32, u16, u32, u64)), st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), u16, u32, u64, i32)))
def test_leases_and_settlements(leases: list[Any], settlements: list[Any]) -> None:
    assert journal.unpack_leases(journal.pack_leases(leases)) == leases
    assert journal.unpack_settlements(journal.pack_settlements(settlements)) == settlements


@given(st.lists(st.builds(journal.CursorEntry, text, st.integers(-1, 1 << 63), st.lists(st.tuples(u64, u32), max_size=3), u64), max_size=3))
def test_cursors(cursors: list[journal.CursorEntry]) -> None:
    assert journal.unpack_cursors(journal.pack_cursors(cursors)) == cursors


@given(st.binary(max_size=120) | st.just(b"\x81\xa1t" * 3000), st.sampled_from(["request", "reply", "event", "failure"]))
def test_arbitrary_control_messages(data: bytes, what: str) -> None:
    with suppress(msgspec.DecodeError, RecursionError):
        getattr(control, f"decode_{what}")(data)


def test_every_control_message_is_in_one_union_and_has_its_own_tag() -> None:
    known = [*get_args(control.Request), *get_args(control.Reply), *get_args(control.Event), control.Failure]
    assert len(known) == len(set(known))
    assert set(known) == set(control.Message.__subclasses__())
    assert len({m.__struct_config__.tag for m in known}) == len(known)
