"""The payload of a ``records`` entry: its head, a table of its runs, then the frames as they arrived.

A run is what one publisher sent in one read: consecutive frames of one channel with equal envelopes. The table (52 bytes a run, not a message) lets
replay rebuild
producers, delays and expiry without opening a frame, and lets a delivery find a message's bytes by arithmetic where a run's frames are of one size.

    head: base_offset u64, record_count u32, frame_count u32, wall_ms i64, runs u32, 4 zero bytes
    run:  producer_id i64, producer_epoch i16, priority u8, compressed u8 (1: any batch is, 2: compacted),
          first_sequence i32, record_count u32, frame_count u32, nbytes u32,
          frame_bytes u32 (0 = mixed), not_before_ms i64, expires_at_ms i64, key_slot u16, 2 zero bytes
"""

from struct import Struct
from typing import NamedTuple

from headrace.wire import ingress
from headrace.wire.journal import RECORDS_HEAD

COMPACTED = 2
"""In a run's ``compressed``: compaction took records out, so its frames hold fewer than they span."""
RUN = Struct(">qhBBiIIIIqqHxx")
assert RUN.size == 52 and RECORDS_HEAD.size == 32


class RunMeta(NamedTuple):
    """One row of an entry's run table. ``first_sequence`` is -1 without a producer; times are wall clock, 0 = none."""

    producer_id: int
    producer_epoch: int
    priority: int
    compressed: int
    first_sequence: int
    record_count: int
    frame_count: int
    nbytes: int
    frame_bytes: int
    not_before_ms: int
    expires_at_ms: int
    key_slot: int


def blob_at(payload: bytes | memoryview) -> int:
    """Where an entry's frames begin."""
    return RECORDS_HEAD.size + int(RECORDS_HEAD.unpack_from(payload)[4]) * RUN.size


def runs(payload: bytes | memoryview) -> list[RunMeta]:
    """The run table of an entry."""
    count = RECORDS_HEAD.unpack_from(payload)[4]
    return [RunMeta._make(r) for r in RUN.iter_unpack(payload[RECORDS_HEAD.size : RECORDS_HEAD.size + count * RUN.size])]


def compacted(payload: bytes | memoryview) -> bool:
    """Whether an entry spans offsets whose records are gone."""
    return any(run.compressed & COMPACTED for run in runs(payload))


class Slice(NamedTuple):
    """Whole frames that cover a range of records. ``base_offset`` is that of the first record in ``blob``."""

    base_offset: int
    blob: bytes | memoryview


def cut(payload: bytes, base_offset: int, record_count: int, first: int, end: int) -> Slice:
    """The frames of an entry that hold the records [first, end), by arithmetic where possible. The range must meet the entry."""
    at = blob_at(payload)
    if first <= base_offset and end >= base_offset + record_count:
        return Slice(base_offset, memoryview(payload)[at:])
    low, high = max(first, base_offset) - base_offset, min(end, base_offset + record_count) - base_offset
    begin, begin_record, stop = -1, 0, -1
    records = 0
    for run in runs(payload):
        if begin < 0 and low < records + run.record_count:
            position, skipped = _within(payload, at, run, low - records)
            begin, begin_record = position, records + skipped
        if begin >= 0 and high <= records + run.record_count:
            position, skipped = _within(payload, at, run, high - records - 1)
            stop = position + 4 + int.from_bytes(payload[position : position + 4], "big")
            break
        records += run.record_count
        at += run.nbytes
    return Slice(base_offset + begin_record, memoryview(payload)[begin:stop])


def _within(payload: bytes, at: int, run: RunMeta, record: int) -> tuple[int, int]:
    """(position of the frame that holds the run's record number ``record``, number of that frame's first record within the run)."""
    if run.frame_bytes and run.record_count == run.frame_count:
        return at + record * run.frame_bytes, record
    position, first = ingress.split(memoryview(payload)[at : at + run.nbytes], record)
    return at + position, first
