"""Finding the stored frames of a range of offsets: the tail cache first, then a read-ahead window, then the disk.

Owns one partition's read-ahead window (at most ``READ_CHUNK_BYTES``). ``near`` answers at once or not at all; ``far`` waits for the disk.
"""

from collections.abc import Iterator, Sequence

from headrace.model import limits
from headrace.model.errors import Malformed
from headrace.storage.api import Store, StoredEntry
from headrace.wire.batch import Envelope, Record, iter_records
from headrace.wire.entry import blob_at, cut
from headrace.wire.frames import ENVELOPE
from headrace.wire.ingress import walk


class Reading:
    """Reads of one partition. A caller serialises its own ``far`` reads."""

    __slots__ = ("_pid", "_store", "_window", "_window_end", "_window_first")

    def __init__(self, store: Store, pid: int) -> None:
        self._store = store
        self._pid = pid
        self._window: Sequence[StoredEntry] = ()
        self._window_first = self._window_end = 0

    def near(self, first: int, end: int, bytes_max: int = limits.READ_CHUNK_BYTES) -> Sequence[StoredEntry] | None:
        """Entries that meet [first, end), from memory, up to about ``bytes_max``; None when the first is not in memory."""
        if self._window_first <= first < self._window_end:
            return [e for e in self._window if e.base_offset < end and e.base_offset + e.record_count > first]
        return self._store.cached(self._pid, first, bytes_max, end)

    async def far(self, first: int, end: int, bytes_max: int = limits.READ_CHUNK_BYTES, *, ahead: int = 0) -> Sequence[StoredEntry]:
        """As ``near``, from disk where needed; what was read beyond, up to offset ``ahead``, is kept for the next call. Empty: nothing is stored
        there any more."""
        entries = await self._store.read(self._pid, first, bytes_max, max(end, ahead))
        if entries:
            self._window = entries
            self._window_first, self._window_end = entries[0].base_offset, entries[-1].base_offset + entries[-1].record_count
        return [e for e in entries if e.base_offset < end and e.base_offset + e.record_count > first]

    def forget(self) -> None:
        """Drops the window (the partition was cut, or nobody reads)."""
        self._window = ()
        self._window_first = self._window_end = 0


class Parcel:
    """Consecutive frames for one DELIVER: ``count`` messages from ``first``; ``base_offset`` is the first record in ``blobs``."""

    __slots__ = ("base_offset", "blobs", "count", "first", "nbytes")

    def __init__(self, first: int, count: int, base_offset: int, blob: bytes | memoryview) -> None:
        self.first = first
        self.count = count
        self.base_offset = base_offset
        self.blobs: list[bytes | memoryview] = [blob]
        self.nbytes = len(blob)


def parcels(entries: Sequence[StoredEntry], first: int, end: int, bytes_max: int = limits.READ_CHUNK_BYTES) -> list[Parcel]:
    """Packs the selected range into as few deliveries as the size bound allows: one entry at least each, gaps between entries split them."""
    found: list[Parcel] = []
    last: Parcel | None = None
    expected = -1
    for entry in entries:
        base, count = entry.base_offset, entry.record_count
        low, high = max(first, base), min(end, base + count)
        if low >= high:
            continue
        piece = cut(entry.payload, base, count, low, high)
        if (
            last is not None
            and expected == base == piece.base_offset
            and last.nbytes + len(piece.blob) <= bytes_max
            and last.first + last.count == low
        ):
            last.blobs.append(piece.blob)
            last.nbytes += len(piece.blob)
            last.count += high - low
        else:
            last = Parcel(low, high - low, piece.base_offset, piece.blob)
            found.append(last)
        expected = base + count if high == base + count else -1
    return found


def unpacked(entry: StoredEntry, first: int, end: int) -> Iterator[tuple[int, Record, Envelope]]:
    """(offset, record, envelope) of what ``entry`` holds of [first, end).

    A batch is stored as its publisher sent it, its records unopened, so its checksum may be right and its records nonsense. Each offset of such a
    batch gives a record without key and headers, the first with the batch's own bytes as its value: one publisher's nonsense stops nobody else.
    """
    blob = memoryview(entry.payload)[blob_at(entry.payload) :]
    reached = first
    try:
        for offset, record, envelope in iter_records(blob, entry.base_offset, first=first, end=end):
            yield offset, record, envelope
            reached = offset + 1
        return
    except Malformed:
        pass
    base = entry.base_offset
    for pos, size, span in walk(blob):
        low, high = max(base, reached), min(base + span, end)
        if low < high:
            frame = blob[pos : pos + size]
            try:
                found = list(iter_records(frame, base, first=low, end=high))
            except Malformed:
                envelope = Envelope._make(ENVELOPE.unpack_from(frame))
                found = [(at, Record(key=None, value=b"" if at > base else bytes(frame[ENVELOPE.size :])), envelope) for at in range(low, high)]
            yield from found
        base += span
