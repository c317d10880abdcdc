"""What gathers for the next flush of the log: entries of all partitions as they come, and the bytes and places that follow from them.

Owns the order of rows and entries and the entries' headers. Does no I/O and reads no clock; which flush takes how much is the log's to say. One of
the hot modules: everything here costs once per partition and tick.

I1 Entries of one partition stay in the order in which they were appended. I2 A slot is one row of the directory: entries of one partition, dense in
index, that lie together; a marker has a slot of its own. A slot is its first entry, which has the others; most have one, so none is a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from crc32c import crc32c
from librt.strings import BytesWriter, write_i32_be, write_i64_be

from headrace.model.errors import Invalid, SyncFailed
from headrace.storage.entry import Appended
from headrace.storage.walformat import ENTRY_BYTES, ENTRY_LEAD, ENTRY_REST, MARKERS, PROMISE, ROW, Row

if TYPE_CHECKING:
    from mypy_extensions import i64

Buffer = bytes | bytearray | memoryview

SLOT_BYTES_MAX: Final = 1 << 20
"""A partition's entries in one row: past it a new row begins behind the other partitions', so that a flood cannot keep them out of a flush."""
JOIN_BYTES_MAX: Final = 4096
"""Entries that are smaller on average are copied together: the thread that writes them would have to look at each."""
_RECORDS: Final = 1
_sum: Final = crc32c
_row: Final = ROW.pack
_entry_bytes: Final[int] = ENTRY_BYTES
assert (ENTRY_LEAD.format, ENTRY_REST.format, ROW.format) == (">II", ">QIQBBxx", ">QQQII"), "neighbours are written as one number"


def row_of(slot: Appended) -> Row:
    """The slot as the directory names it."""
    if slot.marker == PROMISE:
        return slot.pid, slot.epoch, slot.epoch, slot.slot_bytes, PROMISE
    return slot.pid, slot.index, slot.last, slot.slot_bytes, slot.marker


def bytes_of(slots: list[Appended]) -> int:
    """Of the slots' entries, with their headers."""
    total: int = 0
    for slot in slots:
        total += slot.slot_bytes
    return total


class Laid(NamedTuple):
    """Slots laid out for one flush; each entry's ``position`` is set."""

    heads: bytes
    """The entries' headers, for the flush's own checksum."""
    directory: bytes
    pieces: list[Buffer]
    nbytes: int
    entry_count: int


class Gathering:
    """See the module's head."""

    __slots__ = ("_entry_bytes_max", "_open", "error", "nbytes", "slots")

    def __init__(self, entry_bytes_max: int) -> None:
        self._entry_bytes_max = entry_bytes_max
        self._open: dict[int, Appended] = {}
        """The newest slot of each partition whose entries come by ``append``; others keep theirs."""
        self.error: SyncFailed | None = None
        """Why nothing is taken any more."""
        self.slots: list[Appended] = []
        self.nbytes: int = 0
        """Of what was appended and not laid out yet."""

    def append(self, pid: int, epoch: int, index: int, kind: int, payload: bytes) -> None:
        """Takes one entry of which nobody but the log wants to know."""
        self._open[pid] = self.add(Appended(pid, epoch, index, kind, -1, 0, 0, payload), self._open.get(pid))

    def add(self, entry: Appended, slot: Appended | None) -> Appended:
        """Takes one entry and returns the slot it is in; ``slot``: the one that was returned for this partition before. The payload is kept, not
        copied. ``SyncFailed`` once the log has failed, ``Invalid`` if the entry is larger than a file can take."""
        if self.error is not None:
            raise self.error
        pid, index, kind, payload = entry.pid, entry.index, entry.kind, entry.payload
        nbytes: int = len(payload)
        length: int = _entry_bytes + nbytes
        rest = BytesWriter()
        write_i64_be(rest, pid)
        write_i32_be(rest, entry.epoch)
        write_i64_be(rest, index)
        write_i32_be(rest, kind << 24)
        entry.rest = rest.getvalue()
        checksum: int = _sum(payload, _sum(entry.rest))
        entry.lead = nbytes << 32 | checksum
        entry.length = length
        marker: int = 0 if kind == _RECORDS or kind not in MARKERS else kind
        if slot is None or not slot.open or slot.last + 1 != index or slot.marker or marker or slot.slot_bytes + length > SLOT_BYTES_MAX:
            if length > self._entry_bytes_max:
                raise Invalid(f"an entry of {length} bytes does not fit in a log file, which takes {self._entry_bytes_max}")
            self.nbytes += length
            entry.marker = marker
            entry.slot_bytes = length
            entry.open = True
            self.slots.append(entry)
            return entry
        self.nbytes += length
        slot.last = index
        slot.slot_bytes += length
        if slot.more is None:
            slot.more = [entry]
        else:
            slot.more.append(entry)
        return slot

    def holds(self, pid: int) -> bool:
        """Whether entries of that partition wait here."""
        return any(slot.pid == pid for slot in self.slots)

    def take(self, bytes_max: int, rows_max: int) -> list[Appended]:
        """The oldest slots that fit in one flush: at least one, if there is any."""
        slots = self.slots
        if self.nbytes <= bytes_max and len(slots) <= rows_max:
            self.slots = []
            for slot in slots:
                slot.open = False
            return slots
        total = 0
        at = 0
        for slot in slots:
            total += slot.slot_bytes
            if at and (total > bytes_max or at >= rows_max):
                break
            at += 1
        taken = slots[:at]
        self.slots = slots[at:]
        for slot in taken:
            slot.open = False
        return taken

    def give_back(self, slots: list[Appended]) -> None:
        """Slots that were taken and cannot be written yet are the oldest again."""
        for slot in slots:
            slot.open = True
        self.slots = slots + self.slots

    def clear(self) -> list[Appended]:
        """Forgets everything; returns what it was."""
        slots = self.slots
        self.slots, self.nbytes = [], 0
        return slots

    def lay(self, slots: list[Appended], start: int) -> Laid:
        """The slots' entries back to back from ``start`` on; they are no longer counted here."""
        total: int = 0
        count: int = len(slots)
        for slot in slots:
            total += slot.slot_bytes
            if slot.more is not None:
                count += len(slot.more)
        heads = BytesWriter()
        rows = BytesWriter()
        joined: BytesWriter | None = BytesWriter() if total < count * JOIN_BYTES_MAX else None
        pieces: list[Buffer] = []
        at: int = start
        for slot in slots:
            if slot.marker:
                rows.write(_row(*row_of(slot)))
            else:
                write_i64_be(rows, slot.pid)
                write_i64_be(rows, slot.index)
                write_i64_be(rows, slot.last)
                write_i64_be(rows, slot.slot_bytes << 32)
            _lay_entry(slot, at, heads, joined, pieces)
            at += slot.length
            if slot.more is not None:
                for entry in slot.more:
                    _lay_entry(entry, at, heads, joined, pieces)
                    at += entry.length
        self.nbytes -= total
        if joined is not None:
            pieces.append(joined.getvalue())
        return Laid(heads.getvalue(), rows.getvalue(), pieces, total, count)


def header_of(entry: Appended) -> bytes:
    """As it lies in the log before the payload, from the moment in which the entry was appended until it has landed."""
    head = BytesWriter()
    lead: i64 = entry.lead
    write_i64_be(head, lead)
    head.write(entry.rest)
    return head.getvalue()


def _lay_entry(entry: Appended, at: int, heads: BytesWriter, joined: BytesWriter | None, pieces: list[Buffer]) -> None:
    entry.position = at
    lead: i64 = entry.lead
    rest = entry.rest
    write_i64_be(heads, lead)
    heads.write(rest)
    if joined is not None:
        write_i64_be(joined, lead)
        joined.write(rest)
        joined.write(entry.payload)
    else:
        pieces.append(header_of(entry))
        pieces.append(entry.payload)
