"""What an entry says of a frame that was recognised by its shape is what it says of one that was looked at whole."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.broker.lane import Lane, Turn, lane_append, lane_publish
from headrace.core.dedup import ProducerTable
from headrace.wire import ingress
from headrace.wire.entry import blob_at, runs
from tests.unit.wire.made import frame

WALL_MS = 1_700_000_000_000
LIMIT = 1 << 20


class Kept:
    """A store that keeps the payloads."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def append(self, pid: int, epoch: int, index: int, kind: int, payload: Sequence[bytes], nbytes: int, base: int, count: int) -> None:
        self.payloads.append(b"".join(payload))


def entry(run: ingress.Run, blob: bytes, *, after: int) -> bytes:
    """Of a partition that has ``after`` records already."""
    store = Kept()
    lane = Lane(Turn(lambda: None, LIMIT), store, ProducerTable(), 1)
    lane.levels, lane.active, lane.next_offset = [2] * 8, True, after
    sink: Any = SimpleNamespace(in_flight_bytes=0)
    assert lane_publish(lane, sink, run.channel, 2, run, blob, 0.0)
    lane_append(lane, WALL_MS)
    return store.payloads[0]


@pytest.mark.parametrize("producer", [{}, {"producer_id": 7, "producer_epoch": 1}])
def test_entries_of_like_frames(producer: dict[str, Any]) -> None:
    numbers = (0, 5, 2**31 - 1)
    frames = [frame(channel=n, correlation=n, key_slot=9, sequence=sequence if producer else -1, **producer) for n, sequence in enumerate(numbers)]
    data = b"".join(frames)
    first = ingress.scan_run(data, 0, len(data), LIMIT)
    shape = ingress.shape_of(data, 0, first)
    assert shape is not None
    for n, sequence in enumerate(numbers):
        at = n * len(frames[0])
        alike, whole = ingress.scan_alike(shape, data, at, len(data)), ingress.scan_run(data, at, len(data), LIMIT)
        assert alike is not None
        assert alike.shape is shape
        payload = entry(alike, frames[n], after=n)
        assert payload == entry(whole, frames[n], after=n)
        [row] = runs(payload)
        assert (row.first_sequence, row.key_slot, row.nbytes) == (sequence if producer else -1, 9, len(frames[0]))
        assert payload[blob_at(payload) :] == frames[n]
