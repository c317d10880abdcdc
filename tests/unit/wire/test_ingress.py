"""Runs of publish frames: what belongs together, what is refused and why."""

from typing import Any

import pytest

from headrace.model.errors import Invalid, Malformed, TooLarge
from headrace.model.limits import BATCH_RECORDS_MAX, DELAY_MS_MAX, MESSAGE_BYTES_MAX
from headrace.wire import ingress
from headrace.wire.frames import BATCH, ENVELOPE
from tests.unit.wire.made import fields, frame, positions

RECORD = b"\x10\x00\x00\x00\x01\x04hi\x00"


def scan(data: bytes, pos: int = 0, limit: int = MESSAGE_BYTES_MAX) -> ingress.Run:
    return ingress.scan_run(data, pos, len(data), limit)


def many(n: int, **changed: Any) -> list[bytes]:
    return [frame(correlation=i, **changed) for i in range(n)]


def test_equal_frames_are_one_run() -> None:
    frames = [frame(correlation=40 + i, producer_id=9, producer_epoch=2, sequence=7 + i, key_slot=5, priority=3) for i in range(100)]
    data = b"".join(frames)
    run = scan(data)
    assert run.error is None
    assert (run.channel, run.flags, run.first_correlation, run.frame_count, run.record_count) == (3, 7, 40, 100, 100)
    assert (run.producer_id, run.producer_epoch, run.first_sequence) == (9, 2, 7)
    assert (run.priority, run.key_slot, run.not_before_ms, run.expires_at_ms, run.compressed) == (3, 5, 0, 0, False)
    assert (run.next_pos, run.nbytes, run.frame_bytes) == (len(data), len(data), len(frames[0]))


def test_a_single_frame_is_a_run() -> None:
    data = frame(not_before_ms=5, expires_at_ms=DELAY_MS_MAX)
    run = scan(data)
    assert (run.error, run.frame_count, run.record_count, run.next_pos, run.frame_bytes) == (None, 1, 1, len(data), len(data))
    assert (run.not_before_ms, run.expires_at_ms, run.producer_id, run.first_sequence) == (5, DELAY_MS_MAX, -1, -1)


def test_frames_of_mixed_size_are_one_run_without_a_frame_size() -> None:
    sizes = [frame(correlation=i, records=RECORD * (1 + i % 3), count=1 + i % 3, producer_id=1, producer_epoch=0, sequence=s)
             for i, s in enumerate([0, 1, 3, 6, 7, 9, 12])]  # fmt: skip
    run = scan(b"".join(sizes))
    assert (run.frame_count, run.record_count, run.frame_bytes, run.error) == (7, 13, 0, None)


@pytest.mark.parametrize("change", [
    {"flags": 2}, {"channel": 4}, {"correlation": 9}, {"correlation": 2}, {"not_before_ms": 1}, {"expires_at_ms": 1}, {"priority": 1},
    {"key_slot": 1}, {"producer_id": 8}, {"producer_epoch": 1}, {"sequence": 9}, {"sequence": 2},
])  # fmt: skip
@pytest.mark.parametrize("equal_size", [True, False])
def test_another_envelope_or_producer_ends_the_run(change: dict[str, int], equal_size: bool) -> None:
    same: dict[str, Any] = {"producer_id": 7, "producer_epoch": 0}
    first = [frame(correlation=i, sequence=i, **same) for i in range(3)]
    records = RECORD if equal_size else b"\x12\x00\x00\x00\x01\x06hi!\x00"
    other = frame(**{**same, "correlation": 3, "sequence": 3, "records": records, **change})
    data = b"".join([*first, other])
    run = scan(data)
    assert (run.frame_count, run.next_pos) == (3, sum(map(len, first)))
    rest = scan(data, run.next_pos)
    assert (rest.error, rest.frame_count, rest.next_pos) == (None, 1, len(data))


def test_sequences_of_unnumbered_producers_do_not_matter() -> None:
    data = b"".join([frame(correlation=i, sequence=s) for i, s in enumerate([-1, -1, 5, 0, -1])])
    run = scan(data)
    assert (run.frame_count, run.first_sequence) == (5, -1)


@pytest.mark.parametrize("wide", [False, True])
def test_correlation_ids_and_sequences_wrap(wide: bool) -> None:
    n = 3 if wide else 1
    frames = []
    for i in range(8):
        count = n if i != 6 else n + 1  # another size behind the wrap
        frames.append(frame(
            correlation=(0xFFFFFFFD + i) % (1 << 32), producer_id=1, producer_epoch=0, sequence=(0x7FFFFFFF - 2 * n + i * n) % (1 << 31),
            records=RECORD * count, count=count,
        ))  # fmt: skip
    run = scan(b"".join(frames[:7]))
    assert (run.frame_count, run.record_count, run.error) == (7, 7 * n + 1, None)


@pytest.mark.parametrize(("change", "kind", "says"), [
    ({"op": 2}, Malformed, "opcode"),
    ({"flags": 0x87}, Malformed, "STAMPED"),
    ({"flags": 0x0F}, Malformed, "flags"),
    ({"flags": 5}, Malformed, "level"),
    ({"flags": 6}, Malformed, "level"),
    ({"not_before_ms": -1}, Invalid, "not_before"),
    ({"expires_at_ms": DELAY_MS_MAX + 1}, Invalid, "expires_at"),
    ({"priority": 10}, Invalid, "priority"),
    ({"reserved": 1}, Malformed, "reserved"),
    ({"magic": 1}, Malformed, "magic"),
    ({"batch_length_off": 1}, Malformed, "its frame holds"),
    ({"batch_length_off": -1}, Malformed, "its frame holds"),
    ({"attributes": 5}, Malformed, "attributes"),
    ({"attributes": 0x10}, Malformed, "attributes"),
    ({"attributes": 0x20}, Malformed, "attributes"),
    ({"attributes": -1}, Malformed, "attributes"),
    ({"count": 0}, Malformed, "records"),
    ({"count": BATCH_RECORDS_MAX + 1}, Malformed, "records"),
    ({"last_delta": 1}, Malformed, "last offset delta"),
    ({"count": 2}, Malformed, "cannot have"),
    ({"producer_id": -2}, Malformed, "do not go together"),
    ({"producer_id": 1, "producer_epoch": -1, "sequence": 0}, Malformed, "do not go together"),
    ({"producer_id": 1, "producer_epoch": 0}, Malformed, "do not go together"),
    ({"crc_off": 1}, Malformed, "CRC-32C"),
    ({"records": b"x" * 1000}, TooLarge, "limit is 999"),
])  # fmt: skip
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_bad_frame_is_refused_alone(change: dict[str, Any], kind: type[Exception], says: str, at: int) -> None:
    good = many(6)
    frames = [*good[:at], frame(**{"correlation": at, **change}), *good[at + 1 :]]
    data = b"".join(frames)
    pos = 0
    if at:
        run = scan(data, limit=999)
        assert (run.error, run.frame_count) == (None, at)
        pos = run.next_pos
    bad = scan(data, pos, limit=999)
    assert type(bad.error) is kind
    assert says in str(bad.error)
    assert (bad.frame_count, bad.channel, bad.first_correlation, bad.next_pos) == (1, 3, at, pos + len(frames[at]))
    rest = scan(data, bad.next_pos, limit=999)
    assert (rest.error, rest.frame_count) == (None, 5 - at)


def test_the_largest_message_is_taken() -> None:
    assert scan(frame(records=b"x" * 1000), limit=1000).error is None


def test_stamped_frames_are_the_brokers_own() -> None:
    data = frame(flags=0x87)
    run = ingress.scan_run(data, 0, len(data), 1000, True)
    assert (run.error, run.flags) == (None, 0x87)


@pytest.mark.parametrize("length", range(12, 93))
def test_short_frames_are_refused_and_passed(length: int) -> None:
    short = (length - 4).to_bytes(4, "big") + b"\x01\x07\x00\x09\x00\x00\x00\x05" + b"\x00" * (length - 12)
    for data in (short, short + frame()):
        run = scan(data)
        assert isinstance(run.error, Malformed)
        assert (run.channel, run.first_correlation, run.next_pos) == (9, 5, length)


def test_a_partial_frame_ends_the_run() -> None:
    data = b"".join(many(4))
    size = len(data) // 4
    for cut in range(1, size):
        run = ingress.scan_run(data, 0, len(data) - cut, MESSAGE_BYTES_MAX)
        assert (run.frame_count, run.next_pos, run.error) == (3, 3 * size, None)


def test_frames_in_the_midst_of_a_read() -> None:
    frames = many(5)
    data = b"junk" + b"".join(frames) + b"junk"
    run = ingress.scan_run(data, 4, len(data) - 4, 1000)
    assert (run.frame_count, run.next_pos) == (5, len(data) - 4)


def test_any_compressed_batch_marks_the_run() -> None:
    plain, packed = frame(correlation=0), frame(correlation=1, attributes=4)
    assert scan(plain + packed).compressed
    assert scan(plain + packed).frame_count == 2
    assert not scan(plain).compressed


def test_claims_of_compressed_batches_stay_below_a_u32() -> None:
    frames = [frame(correlation=i, attributes=4, count=BATCH_RECORDS_MAX) for i in range(4097)]
    run = scan(b"".join(frames))
    assert (run.frame_count, run.record_count) == (4095, 4095 * BATCH_RECORDS_MAX)


def test_times_become_absolute_in_every_frame() -> None:
    data = b"".join([frame(correlation=i, not_before_ms=10, records=RECORD * (1 + i % 2), count=1 + i % 2) for i in range(5)])
    done = ingress.absolute(data, 1_000_000)
    for pos in positions(done):
        assert fields(done, pos)[0][5:7] == (1_000_010, 0)
        assert fields(done, pos)[1] == fields(data, pos)[1]
    assert fields(ingress.absolute(frame(expires_at_ms=7), 10**12), 0)[0][5:7] == (0, 10**12 + 7)


def test_a_run_without_times_is_not_copied() -> None:
    data = b"".join(many(3))
    assert ingress.absolute(data, 5) is data


def test_walk_and_split() -> None:
    frames = [frame(correlation=i, records=RECORD * n, count=n) for i, n in enumerate([1, 3, 2])]
    blob = b"".join(frames)
    starts = [0, len(frames[0]), len(frames[0] + frames[1])]
    assert list(ingress.walk(blob)) == [(at, len(f), n) for at, f, n in zip(starts, frames, [1, 3, 2], strict=True)]
    assert list(ingress.walk(memoryview(blob), starts[2])) == [(starts[2], len(frames[2]), 2)]
    assert [ingress.split(blob, i) for i in range(6)] == [
        (starts[0], 0), (starts[1], 1), (starts[1], 1), (starts[1], 1), (starts[2], 4), (starts[2], 4),
    ]  # fmt: skip
    with pytest.raises(Malformed, match="record 6"):
        ingress.split(blob, 6)


def test_a_compacted_batch_spans_the_offsets_it_had() -> None:
    assert list(ingress.walk(frame(last_delta=9, count=1))) == [(0, ENVELOPE.size + BATCH.size + len(RECORD), 10)]


@pytest.mark.parametrize("blob", [b"x", frame()[:-1], frame()[:40], frame(length_off=1), frame(last_delta=-1), frame() + b"\x00" * 93])
def test_stored_frames_that_do_not_add_up(blob: bytes) -> None:
    with pytest.raises(Malformed):
        list(ingress.walk(blob))
