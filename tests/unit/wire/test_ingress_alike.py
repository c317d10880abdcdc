"""A frame that is recognised by the shape of an earlier one is what ``scan_run`` says it is; any other is not recognised."""

from typing import Any

import pytest

from headrace.model.limits import MESSAGE_BYTES_MAX
from headrace.wire import ingress
from tests.unit.wire.made import frame

FIELDS = sorted(name for name in dir(ingress.Run) if not name.startswith("_") and name not in ("error", "shape"))
PRODUCER: dict[str, Any] = {"producer_id": 7, "producer_epoch": 1}


def shape(data: bytes, end: int) -> ingress.Shape | None:
    return ingress.shape_of(data, 0, ingress.scan_run(data, 0, end, MESSAGE_BYTES_MAX))


@pytest.mark.parametrize("producer", [{}, PRODUCER])
@pytest.mark.parametrize("behind", [b"", b"\0\0\0", frame(channel=9), frame(channel=9)[:20]])
def test_a_frame_of_another_channel_is_recognised(producer: dict[str, Any], behind: bytes) -> None:
    first = frame(channel=3, correlation=5, key_slot=2, sequence=4 if producer else -1, **producer)
    second = frame(channel=600, correlation=1 << 31, key_slot=2, sequence=0 if producer else -1, **producer)
    data = first + second + behind
    known = shape(data, len(first))
    assert known is not None
    found = ingress.scan_alike(known, data, len(first), len(data))
    expected = ingress.scan_run(data, len(first), len(data), MESSAGE_BYTES_MAX)
    assert found is not None
    assert found.error is None
    assert {f: getattr(found, f) for f in FIELDS} == {f: getattr(expected, f) for f in FIELDS}


@pytest.mark.parametrize("changed", [
    {"flags": 2}, {"not_before_ms": 1}, {"expires_at_ms": 1}, {"priority": 1}, {"key_slot": 1}, {"producer_id": 8}, {"producer_epoch": 2},
    {"sequence": -1}, {"records": b"\x12\x00\x00\x00\x01\x06hi!\x00"},
])  # fmt: skip
def test_what_differs_is_not_recognised(changed: dict[str, Any]) -> None:
    first = frame(channel=3, sequence=0, **PRODUCER)
    other = frame(**{**PRODUCER, "channel": 4, "sequence": 0, **changed})
    known = shape(first, len(first))
    assert known is not None
    assert ingress.scan_alike(known, first + other, len(first), len(first) + len(other)) is None


def test_damage_a_run_and_an_end_are_left_to_the_scan() -> None:
    first = frame(channel=3)
    known = shape(first, len(first))
    assert known is not None
    for at in range(len(first)):
        damaged = bytearray(frame(channel=3))
        damaged[at] ^= 1
        found = ingress.scan_alike(known, bytes(damaged), 0, len(damaged))
        expected = ingress.scan_run(bytes(damaged), 0, len(damaged), MESSAGE_BYTES_MAX)
        if found is not None:
            assert expected.error is None
            assert (found.channel, found.first_correlation) == (expected.channel, expected.first_correlation)
    run = frame(channel=3, correlation=0) + frame(channel=3, correlation=1)
    assert ingress.scan_alike(known, run, 0, len(run)) is None
    assert ingress.scan_alike(known, first, 0, len(first) - 1) is None


@pytest.mark.parametrize("rare", [{"not_before_ms": 5}, {"expires_at_ms": 5}, {"priority": 2}])
def test_what_is_rare_makes_no_shape(rare: dict[str, Any]) -> None:
    data = frame(**rare)
    assert shape(data, len(data)) is None
