"""The durable half of a stream partition: the log's bounds and the cursors, with their journal and snapshot.

Owns what survives a restart. Knows no reader: ``machine.StreamMachine`` builds on it.

Invariants: L1 start_offset <= end <= tail. L2 every change of a cursor is in the next ``take_journal``, once. L3 replaying the journal after a
snapshot gives the same cursors as replaying all of it.
"""

from headrace.core.stream.cursor import Cursor
from headrace.core.stream.durable import decode_rows, decode_snapshot, encode_rows, encode_snapshot, encode_start, start_in
from headrace.model import limits
from headrace.model.errors import Damaged, LimitExceeded
from headrace.model.specs import check_name
from headrace.wire.journal import CursorEntry, Kind

SNAPSHOT_VERSION = 1


class Ledger:
    """See the module's head."""

    def __init__(self) -> None:
        self.start_offset = 0
        self.end = 0
        """High watermark: everything below is committed."""
        self.tail = 0
        """End of what was appended; beyond ``end`` it may be taken back."""
        self.nbytes = 0
        self.epoch = 0
        self.cursors: dict[str, Cursor] = {}
        self._wall_ms = 0
        self._dirty: dict[str, None] = {}
        self._held_back: dict[str, Cursor] = {}
        """Cursors with acks at or above the high watermark: they go on when it moves."""
        self._trimmed = False

    def lag(self, cursor: Cursor) -> int:
        """Committed records that this cursor's reader has not acked."""
        above = sum(stop - start for start, stop, _ in cursor.above.pieces(0, self.end)) if cursor.above else 0
        return max(0, self.end - cursor.next_offset - above)

    def _new_cursor(self, name: str, offset: int) -> Cursor:
        check_name(name)
        if len(self.cursors) >= limits.CURSORS_PER_PARTITION_MAX:
            raise LimitExceeded(
                f"this partition has {len(self.cursors)} cursors, the most that are allowed",
                hint="delete those that nobody uses (`headrace stream cursors list`)",
            )
        cursor = self.cursors[name] = Cursor(name, 0, self._wall_ms)
        self._set(cursor, offset)
        return cursor

    def _set(self, cursor: Cursor, offset: int) -> None:
        cursor.place(min(offset, self.end))
        if offset > self.end:
            cursor.settle(self.end, offset, self.end)
        self._went_on(cursor, True)

    def _went_on(self, cursor: Cursor, changed: bool) -> None:
        if changed:
            self._dirty[cursor.name] = None
        if cursor.above and cursor.above.end > self.end:
            self._held_back[cursor.name] = cursor
        elif self._held_back:
            self._held_back.pop(cursor.name, None)

    # ------------------------------------------------------------ the journal

    def take_journal(self, wall_ms: int = 0) -> list[tuple[Kind, bytes]]:
        """What changed since the last call, one row a cursor however often it moved; stamps those cursors with ``wall_ms``."""
        if not self._dirty and not self._trimmed:
            return []
        self._wall_ms = max(self._wall_ms, wall_ms)
        entries: list[tuple[Kind, bytes]] = []
        if self._trimmed:
            entries.append((Kind.CONFIG, encode_start(self.start_offset)))
            self._trimmed = False
        rows: list[CursorEntry] = []
        for name in self._dirty:
            cursor = self.cursors.get(name)
            if cursor is None:
                rows.append(CursorEntry(name, -1, [], self._wall_ms))
            else:
                cursor.wall_ms = self._wall_ms
                rows.append(cursor.row(self.end))
        self._dirty.clear()
        entries += [(Kind.CURSOR, payload) for payload in encode_rows(rows)]
        return entries

    def replay(self, kind: Kind, payload: bytes) -> None:
        """Applies an entry of this machine's journal, without effects; other kinds mean nothing here (records come with ``committed``)."""
        if kind == Kind.CONFIG:
            start = start_in(payload)
            if start is not None:
                self.start_offset = max(self.start_offset, start)
                self.end = max(self.end, start)
                self.tail = max(self.tail, self.end)
        elif kind == Kind.CURSOR:
            for row in decode_rows(payload):
                self._load(row)

    def _load(self, row: CursorEntry) -> None:
        self._wall_ms = max(self._wall_ms, row.wall_ms)
        if row.next_offset < 0:
            self.cursors.pop(row.name, None)
            return
        cursor = self.cursors.get(row.name)
        if cursor is None:
            cursor = self.cursors[row.name] = Cursor(row.name, row.next_offset, row.wall_ms)
        cursor.load(row)

    def snapshot(self) -> bytes:
        """The durable state: bounds and cursors, not readers."""
        bounds = (self.start_offset, self.end, self.nbytes, self.epoch, self._wall_ms)
        return encode_snapshot(bounds, [c.row(self.end) for c in self.cursors.values()])

    def restore(self, version: int, data: bytes) -> None:
        """Takes over a snapshot; raises ``Damaged``."""
        if version != SNAPSHOT_VERSION:
            raise Damaged(f"a stream's snapshot of version {version} cannot be read here; this release reads {SNAPSHOT_VERSION}")
        bounds, rows = decode_snapshot(data)
        self.start_offset, self.end, self.nbytes, self.epoch, self._wall_ms = bounds
        self.tail = self.end
        for stale in (self.cursors, self._dirty, self._held_back):
            stale.clear()
        self._trimmed = False
        for row in rows:
            self._load(row)
