"""What gathers for the next flush of the log: entries of all partitions as they come, and the bytes and places that follow from them.

Owns the order of rows and entries and the entries' headers. Does no I/O and reads no clock; which flush takes how much is the log's to say. One of
the hot modules: everything here costs once per partition and tick.

I1 Entries of one partition stay in the order in which they were appended. I2 A slot is one row of the directory: entries of one partition, dense in
index, that lie together; a marker has a slot of its own.
"""

from typing import Final, NamedTuple

from crc32c import crc32c

from headrace.model.errors import Invalid, SyncFailed
from headrace.storage.walformat import ENTRY_BYTES, ENTRY_LEAD, ENTRY_REST, MARKERS, PROMISE, ROW, Located, Row

Buffer = bytes | bytearray | memoryview

SLOT_BYTES_MAX: Final = 1 << 20
"""A partition's entries in one row: past it a new row begins behind the other partitions', so that a flood cannot keep them out of a flush."""
_RECORDS: Final = 1
_rest = ENTRY_REST.pack
_lead = ENTRY_LEAD.pack
_row = ROW.pack
_entry_bytes: Final[int] = ENTRY_BYTES


class Slot:
    """Entries of one partition that will lie together: one row of the directory. Most have one entry, so that one is not a list."""

    __slots__ = ("epoch", "first", "head", "kind", "last", "length", "marker", "more", "nbytes", "pid", "pieces")

    def __init__(self, pid: int, epoch: int, index: int, kind: int, length: int, head: bytes, marker: int) -> None:
        self.pid = pid
        self.epoch = epoch
        self.first: int = index
        self.last: int = index
        self.kind = kind
        self.marker = marker
        self.length = length
        self.nbytes: int = length
        self.head = head
        self.pieces: list[Buffer] = [head]
        self.more: list[tuple[int, int, int, int, bytes]] | None = None
        """The entries after the first: (epoch, index, kind, length, head)."""

    def row(self) -> Row:
        if self.marker == PROMISE:
            return self.pid, self.epoch, self.epoch, self.nbytes, PROMISE
        return self.pid, self.first, self.last, self.nbytes, self.marker


class Laid(NamedTuple):
    """Slots laid out for one flush."""

    located: Located
    rows: list[Row]
    heads: bytes
    """The entries' headers, for the flush's own checksum."""
    directory: bytes
    pieces: list[Buffer]
    nbytes: int


class Gathering:
    """See the module's head."""

    __slots__ = ("_entry_bytes_max", "_open", "error", "nbytes", "slots")

    def __init__(self, entry_bytes_max: int) -> None:
        self._entry_bytes_max = entry_bytes_max
        self._open: dict[int, Slot] = {}
        self.error: SyncFailed | None = None
        """Why nothing is taken any more."""
        self.slots: list[Slot] = []
        self.nbytes: int = 0
        """Of what was appended and not laid out yet."""

    def append(self, pid: int, epoch: int, index: int, kind: int, payload: bytes) -> None:
        """Takes one entry; its payload is kept, not copied. ``SyncFailed`` once the log has failed, ``Invalid`` if the entry is larger than a file
        can take."""
        if self.error is not None:
            raise self.error
        rest: bytes = _rest(pid, epoch, index, kind, 0)
        nbytes: int = len(payload)
        head: bytes = _lead(nbytes, crc32c(payload, crc32c(rest))) + rest
        length: int = _entry_bytes + nbytes
        marker: int = 0 if kind == _RECORDS or kind not in MARKERS else kind
        slot = self._open.get(pid)
        if slot is None or slot.last + 1 != index or slot.marker or marker or slot.nbytes + length > SLOT_BYTES_MAX:
            if length > self._entry_bytes_max:
                raise Invalid(f"an entry of {length} bytes does not fit in a log file, which takes {self._entry_bytes_max}")
            slot = Slot(pid, epoch, index, kind, length, head, marker)
            self._open[pid] = slot
            self.slots.append(slot)
        else:
            slot.last = index
            slot.nbytes += length
            slot.pieces.append(head)
            if slot.more is None:
                slot.more = [(epoch, index, kind, length, head)]
            else:
                slot.more.append((epoch, index, kind, length, head))
        slot.pieces.append(payload)
        self.nbytes += length

    def holds(self, pid: int) -> bool:
        """Whether entries of that partition wait here."""
        return pid in self._open

    def take(self, bytes_max: int, rows_max: int) -> list[Slot]:
        """The oldest slots that fit in one flush: at least one, if there is any."""
        slots = self.slots
        if self.nbytes <= bytes_max and len(slots) <= rows_max:
            self.slots = []
            self._open = {}
            return slots
        total = 0
        at = 0
        for slot in slots:
            total += slot.nbytes
            if at and (total > bytes_max or at >= rows_max):
                break
            at += 1
        taken = slots[:at]
        self.slots = slots[at:]
        for slot in taken:
            if self._open.get(slot.pid) is slot:
                del self._open[slot.pid]
        return taken

    def give_back(self, slots: list[Slot]) -> None:
        """Slots that were taken and cannot be written yet are the oldest again."""
        self.slots = slots + self.slots
        self._open = {slot.pid: slot for slot in self.slots}

    def clear(self) -> list[Row]:
        """Forgets everything; returns the rows of what it was."""
        rows = [slot.row() for slot in self.slots]
        self.slots, self._open, self.nbytes = [], {}, 0
        return rows

    def lay(self, slots: list[Slot], file_id: int, start: int) -> Laid:
        """The slots' entries back to back from ``start`` on; they are no longer counted here."""
        pids: list[int] = []
        epochs: list[int] = []
        indexes: list[int] = []
        kinds: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        heads: list[bytes] = []
        rows: list[Row] = []
        packed: list[bytes] = []
        pieces: list[Buffer] = []
        at: int = start
        for slot in slots:
            pid = slot.pid
            row = slot.row()
            rows.append(row)
            packed.append(_row(row[0], row[1], row[2], row[3], row[4]))
            pieces.extend(slot.pieces)
            pids.append(pid)
            epochs.append(slot.epoch)
            indexes.append(slot.first)
            kinds.append(slot.kind)
            positions.append(at)
            lengths.append(slot.length)
            heads.append(slot.head)
            at += slot.length
            if slot.more is not None:
                for epoch, index, kind, length, head in slot.more:
                    pids.append(pid)
                    epochs.append(epoch)
                    indexes.append(index)
                    kinds.append(kind)
                    positions.append(at)
                    lengths.append(length)
                    heads.append(head)
                    at += length
        self.nbytes -= at - start
        located = Located(file_id, pids, epochs, indexes, kinds, positions, lengths)
        return Laid(located, rows, b"".join(heads), b"".join(packed), pieces, at - start)
