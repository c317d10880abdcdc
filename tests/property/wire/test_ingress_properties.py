"""Runs against a plain reading of the rules; hostile bytes; bit flips."""

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.errors import HeadraceError, Malformed
from headrace.wire import ingress
from tests.unit.wire.made import frame, neighbours

LIMIT = 200
RECORD = b"\x10\x00\x00\x00\x01\x04hi\x00"


@st.composite
def reads(draw: st.DrawFn) -> list[tuple[bytes, bool]]:
    """Frames of one read, each with whether it is good: mostly what a publisher sends, with changes strewn in."""
    made = []
    correlation = draw(st.sampled_from([0, 7, 0xFFFFFFFE]))
    sequence = draw(st.sampled_from([0, 5, 0x7FFFFFFD]))
    numbered = draw(st.booleans())
    base: dict[str, Any] = {"producer_id": 4, "producer_epoch": 1} if numbered else {}
    for _ in range(draw(st.integers(1, 12))):
        count = draw(st.sampled_from([1, 1, 1, 1, 2, 3]))
        one: dict[str, Any] = {**base, "correlation": correlation, "count": count, "records": RECORD * count}
        if numbered:
            one["sequence"] = sequence
        good = True
        match draw(st.integers(0, 11)):
            case 0:
                one.update(draw(st.sampled_from([{"flags": 2}, {"channel": 9}, {"priority": 4}, {"key_slot": 77}, {"expires_at_ms": 5}])))
            case 1:
                one.update(correlation=draw(st.integers(0, 3)))
            case 2 if numbered:
                one.update(sequence=draw(st.integers(0, 3)))
            case 3:
                one.update(attributes=draw(st.sampled_from([1, 2, 3, 4, 8])))
            case 4:
                good = False
                one.update(draw(st.sampled_from([{"crc_off": 1}, {"magic": 3}, {"reserved": 1}, {"records": b"x" * (LIMIT + 1)}, {"flags": 5}])))
        made.append((frame(**one), good))
        correlation = (one["correlation"] + 1) % (1 << 32)
        sequence = (one.get("sequence", sequence) + count) % (1 << 31)
    return made


@given(reads())
def test_runs_are_the_longest_that_the_rules_allow(made: list[tuple[bytes, bool]]) -> None:
    data = b"".join([f for f, _ in made])
    starts = [sum([len(f) for f, _ in made[:i]]) for i in range(len(made) + 1)]
    expected: list[tuple[int, int, bool]] = []
    i = 0
    while i < len(made):
        j = i + 1
        if made[i][1]:
            while j < len(made) and made[j][1] and neighbours(data, starts[j - 1], starts[j]):
                j += 1
        expected.append((starts[i], starts[j], made[i][1]))
        i = j
    found = []
    pos = 0
    while pos < len(data):
        run = ingress.scan_run(data, pos, len(data), LIMIT)
        found.append((pos, run.next_pos, run.error is None))
        if run.error is None:
            spans = [(length, n) for _, length, n in ingress.walk(data[pos : run.next_pos])]
            assert run.frame_count == len(spans)
            assert run.record_count == sum([n for _, n in spans])
            assert run.nbytes == run.next_pos - pos == sum([length for length, _ in spans])
            assert run.frame_bytes == (spans[0][0] if len({length for length, _ in spans}) == 1 else 0)
        pos = run.next_pos
    assert found == expected


@given(st.binary(max_size=300), st.integers(0, 300))
def test_arbitrary_bytes_give_a_run_or_an_error(tail: bytes, length: int) -> None:
    data = length.to_bytes(4, "big") + b"\x01" + tail
    run = ingress.scan_run(data, 0, len(data), LIMIT)
    assert isinstance(run.error, HeadraceError)
    assert 0 < run.next_pos <= len(data)
    with suppress(Malformed):
        assert sum([n for _, n, _ in ingress.walk(data)]) == len(data)


@settings(max_examples=300)
@given(st.integers(0, 8 * 102 - 1), st.sampled_from([1, 3, 9]))
def test_a_flipped_bit_is_always_detected(bit: int, frames: int) -> None:
    """The frame is refused; or its envelope (which the batch's checksum does not cover, only the entry's does) says something else."""
    good = [frame(correlation=i, producer_id=1, producer_epoch=0, sequence=i) for i in range(frames)]
    at = frames // 2
    broken = bytearray(good[at])
    broken[bit // 8] ^= 1 << bit % 8
    data = b"".join([*good[:at], bytes(broken), *good[at + 1 :]])
    first = ingress.scan_run(data, 0, len(data), LIMIT)
    byte = bit // 8
    if 32 <= byte < 40 or 44 <= byte < 48:  # base offset and leader epoch of the batch mean nothing here
        assert (first.error, first.next_pos) == (None, len(data))
        return
    if at:
        assert (first.error, first.frame_count) == (None, at)
    run = ingress.scan_run(data, at * len(good[0]), len(data), LIMIT)
    if 5 <= byte < 32 and run.error is None:
        said = (run.flags, run.channel, run.first_correlation, run.not_before_ms, run.expires_at_ms, run.priority, run.key_slot)
        assert said != (7, 3, at, 0, 0, 0, 0)
        assert run.frame_count == 1
    else:
        assert run.error is not None
