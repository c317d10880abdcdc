"""Compaction of a stream partition at work: reads it through in small slices, asks the pure machine what may go, has the store rewrite what is
sealed.

A slice is one small read; between slices the loop gets its turn by a timer. Offsets stay as they are: a frame whose records are gone still spans
theirs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.broker.reading import unpacked
from headrace.core.compaction import Compaction, Row, worthwhile
from headrace.core.ranges import RangeSet
from headrace.log import get_logger
from headrace.model.errors import Malformed, StorageError, SyncFailed
from headrace.wire.batch import batch_info, decode_batch, encode_batch
from headrace.wire.compression import CODECS
from headrace.wire.entry import COMPACTED, RUN, blob_at, runs
from headrace.wire.frames import ENVELOPE
from headrace.wire.ingress import walk
from headrace.wire.journal import RECORDS_HEAD

if TYPE_CHECKING:
    from headrace.broker.stream_partition import StreamPartition

SLICE_BYTES = 32 * 1024
PAUSE_S = 0.001
RECORDS_MIN = 1000
"""Below this many records nothing is gained."""
_log = get_logger("compaction")


def due(partition: StreamPartition) -> bool:
    """Whether a run is worth its reading."""
    start, end = partition.machine.start_offset, partition.high_watermark
    return end - start >= RECORDS_MIN and worthwhile(start, partition.clean_end, end)


async def run(partition: StreamPartition) -> int:
    """One whole run; how many records it dropped. What the disk does not let it do is left for a later run."""
    try:
        return await _run(partition)
    except SyncFailed:
        raise
    except (OSError, StorageError) as e:
        _log.warning("partition %d of %r could not be compacted and will be later: %s", partition.number, partition.item.name, e)
        return 0


async def _run(partition: StreamPartition) -> int:
    store = partition.store
    compaction = Compaction(
        start=partition.machine.start_offset,
        clean_end=partition.clean_end,
        end=partition.high_watermark,
        wall_ms=partition.broker.wall_ms,
        tombstone_ms=partition.spec.tombstone_ms,
    )
    gone = RangeSet()
    while (wants := compaction.wants()) is not None:
        first, end = wants
        entries = await store.read(partition.pid, first, SLICE_BYTES, end)
        rows, reached = [], end if not entries else first
        for entry in entries:
            payload = memoryview(entry.payload)
            wall_ms = RECORDS_HEAD.unpack_from(payload)[3]
            for offset, record, _ in unpacked(entry, first, end):
                rows.append(Row(offset, record.key, record.value is None, wall_ms))
            reached = min(end, entry.base_offset + entry.record_count)
        for low, high in compaction.feed(rows, reached):
            gone.add(low, high)
        await asyncio.sleep(PAUSE_S)
        if partition.barred is not None:
            return 0
    if gone:
        await store.compact(partition.pid, lambda payload, base: kept(payload, base, gone))
        _log.info("compacted partition %d of %r: %d records gone", partition.number, partition.item.name, gone.count)
    partition.clean_end = compaction.clean_end
    return gone.count


def kept(payload: bytes, base_offset: int, gone: RangeSet) -> bytes | None:
    """A records entry without the records in ``gone``: the same object if none of them is in it, None if nothing stays."""
    base, records, frames, wall_ms, count = RECORDS_HEAD.unpack_from(payload)
    if not gone.pieces(base, base + records):
        return payload
    table, blobs, left, offset, at = [], [], 0, base, blob_at(payload)
    for run_ in runs(payload):
        parts = []
        for pos, size, span in walk(payload[at : at + run_.nbytes]):
            frame = payload[at + pos : at + pos + size]
            info = batch_info(frame, ENVELOPE.size)
            try:
                stay = [r for r in decode_batch(frame, ENVELOPE.size) if offset + r.offset_delta not in gone]
            except Malformed:  # its publisher's nonsense: none of it has a key, all of it stays
                parts.append(frame)
                left += span
                offset += span
                continue
            left += len(stay)
            if len(stay) < info.record_count:
                batch = encode_batch(
                    stay,
                    base_timestamp_ms=info.base_timestamp_ms,
                    producer_id=info.producer_id,
                    producer_epoch=info.producer_epoch,
                    base_sequence=info.base_sequence,
                    codec=CODECS[info.attributes & 7] if stay else "none",
                    last_offset_delta=span - 1,
                )
                frame = (28 + len(batch)).to_bytes(4, "big") + frame[4 : ENVELOPE.size] + batch
            parts.append(frame)
            offset += span
        at += run_.nbytes
        blobs += parts
        table.append(RUN.pack(*run_._replace(nbytes=sum(map(len, parts)), frame_bytes=0, compressed=run_.compressed | COMPACTED)))
    if not left:
        return None
    return RECORDS_HEAD.pack(base, records, frames, wall_ms, count) + b"".join(table) + b"".join(blobs)
