"""Opening the records of deliveries, each batch once.

A batch is opaque to the broker: a queue that shares a large one out among many consumers sends it whole for every few messages of it. So the last
few batches that were opened are kept. Pure.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from headrace.wire.batch import Record, decode_batch, iter_records
from headrace.wire.frames import BATCH, ENVELOPE

Item = tuple[int, Record, Any]
"""Offset, record, and the envelope where the wire layer gave it."""

KEPT_MAX: Final = 8
_LAST_DELTA: Final = 6
_CRC: Final = slice(ENVELOPE.size + 17, ENVELOPE.size + 21)


class Opener:
    """The batches that one subscription opened last."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, bytes, int], list[Record]] = {}

    def records(self, partition: int, blob: bytes, base: int, first: int, end: int) -> Iterator[Item]:
        """The records of [first, end) in a blob whose first record is ``base``; lazily."""
        if len(blob) < ENVELOPE.size + BATCH.size or int.from_bytes(blob[:4], "big") + 4 != len(blob):
            return iter_records(blob, base, first=first, end=end)
        last_delta = BATCH.unpack_from(blob, ENVELOPE.size)[_LAST_DELTA]
        if last_delta <= 0 or (first == base and end > base + last_delta):
            return iter_records(blob, base, first=first, end=end)
        key = (partition, base, blob[_CRC], len(blob))
        records = self._kept.get(key)
        if records is None:
            if len(self._kept) >= KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            records = self._kept[key] = decode_batch(blob, ENVELOPE.size)
        return _of(records, base, first, end)


def _of(records: list[Record], base: int, first: int, end: int) -> Iterator[Item]:
    if records and records[-1].offset_delta != len(records) - 1:  # compaction took some out
        yield from ((base + r.offset_delta, r, None) for r in records if first <= base + r.offset_delta < end)
        return
    for record in islice(records, max(0, first - base), end - base):
        yield base + record.offset_delta, record, None
