"""Frames of replicas: there and back; arbitrary and damaged bytes are refused, never anything worse."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import Malformed
from headrace.wire import replication as wire
from headrace.wire.journal import Kind
from tests.golden.make_replication import entry
from tests.property.effort import effort

u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)
rows = st.lists(st.tuples(u64, u32, u32, u64), max_size=5)
items = st.lists(st.builds(wire.Item, u64, st.binary(max_size=30), st.lists(st.binary(min_size=1, max_size=40), max_size=3)), max_size=5)
made = st.builds(entry, u32, u64, st.binary(max_size=80), st.sampled_from([Kind.SETTLEMENT, Kind.EPOCH_START]))


@given(rows, items)
@effort(200)
def test_there_and_back(rows: list[wire.Row], items: list[wire.Item]) -> None:
    got, found = wire.decode(b"".join(wire.encode(rows, items)))
    assert got == rows
    assert [(i.pid, i.head, b"".join(i.entries)) for i in found] == [(i.pid, i.head, b"".join(i.entries)) for i in items]


@given(st.binary(max_size=200) | st.builds(lambda r, i, b: b"".join(wire.encode(r, i))[:-1] + b, rows, items, st.binary(max_size=3)))
@effort(300)
def test_anything_is_refused_or_is_a_frame(body: bytes) -> None:
    with suppress(Malformed):
        rows, items = wire.decode(body)
        assert b"".join(wire.encode(rows, items)) == body
        for item in items:
            for blob in item.entries:
                with suppress(Malformed):
                    wire.entries(blob, item.pid)


@given(st.lists(made, min_size=1, max_size=4), st.data())
@effort(200)
def test_no_damaged_entry_is_taken(whole: list[bytes], data: st.DataObject) -> None:
    blob = b"".join(whole)
    assert len(wire.entries(blob, 9)) == len(whole)
    at = data.draw(st.integers(0, len(blob) - 1))
    hurt = blob[:at] + bytes([blob[at] ^ data.draw(st.integers(1, 255))]) + blob[at + 1 :]
    with suppress(Malformed):
        wire.entries(hurt, 9)
        raise AssertionError("damaged entries were taken")
