"""One partition of a stream: what its readers may read now, and how far its cursors have come.

Owns the log's bounds (start, high watermark, tail), the cursors (durable, journalled) and the readers (volatile). Knows no record, no disk and
no connection: the runtime reads what ``due`` says and reports it with ``sent``. Credit has no lease: an ack gives it back, or CREDIT does.

Cost: readers at the tail wait together and move to the due ones together when it grows; one without credit is in neither group.

Invariants: S1 0 <= start_offset <= end <= tail. S2 nobody is due past ``visible_end``: the high watermark, or the tail for the speculative and
ephemeral tiers. S3 no cursor passes the high watermark; it moves only over contiguously acked (or filtered out) records. S4 a cursor has at
most one reader that moves it; a reader of an older generation cannot take it, one of no group (generation 0) only while nobody moves it. S5
after snapshot and replay of the rest the cursors are what replay of everything makes them.

The verbs of the hot path (committed, appended, due, sent, credit, ack) never raise; those of the control path raise what ``model.errors``
refuses with. Restoring and replaying damaged bytes raises ``Damaged`` or ``Malformed``.
"""

from collections.abc import Callable, Sequence
from typing import Any

from headrace.core.stream.ledger import Ledger
from headrace.core.stream.reader import CREDIT_BYTES_MAX, CREDIT_MAX, Moved, Opened, Read, Reader, RetentionWish, Retraction
from headrace.core.stream.start import resolve
from headrace.model import limits
from headrace.model.errors import Fenced, LimitExceeded
from headrace.model.specs import StreamSpec


class StreamMachine(Ledger):
    """See the module's head."""

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.spec = spec
        self.readers: dict[int, Reader] = {}
        self.sent_count = 0
        self.acked_count = 0
        self._early = spec.tier != "durable"
        self._ready: dict[int, Reader] = {}
        self._at_tail: dict[int, Reader] = {}

    def configure(self, spec: StreamSpec) -> None:
        """Takes over altered settings."""
        self.spec = spec

    # ------------------------------------------------------------ the log

    @property
    def visible_end(self) -> int:
        """Exclusive end of what readers may be sent (S2)."""
        return self.tail if self._early else self.end

    def appended(self, end: int) -> None:
        """Records below ``end`` are in the log, not yet committed: readers of speculative and ephemeral streams may have them."""
        if end > self.tail:
            self.tail = end
            if self._early:
                self._grown()

    def committed(self, end: int, nbytes: int, wall_ms: int) -> None:
        """Records below ``end`` are committed; ``nbytes`` came with those that are new."""
        self._wall_ms = max(self._wall_ms, wall_ms)
        if end <= self.end:
            return
        self.end = end
        self.nbytes += nbytes
        grown = end > self.tail
        self.tail = max(self.tail, end)
        if grown or not self._early:
            self._grown()
        if self._held_back:
            for cursor in list(self._held_back.values()):
                cursor.advance(end)
                self._went_on(cursor, True)

    def _grown(self) -> None:
        if self._at_tail:
            self._ready.update(self._at_tail)
            self._at_tail.clear()

    def trim(self, offset: int, *, journal: bool = True) -> list[Moved]:
        """Gives up everything below ``offset`` (at most up to the high watermark); says who stood behind it and goes on there.

        ``journal=False`` when the log itself says so (recovery), so that nothing needs to be written for it.
        """
        start = min(offset, self.end)
        if start <= self.start_offset:
            return []
        self.nbytes = self.nbytes * (self.end - start) // (self.end - self.start_offset)
        self.start_offset = start
        self._trimmed = self._trimmed or journal
        moved: list[Moved] = []
        forwarded: dict[str, int] = {}
        """Cursors that had a gap in what is gone: they pass what was acked right above it, and their readers with them."""
        for name, cursor in self.cursors.items():
            if cursor.next_offset < start:
                moved.append(Moved(-1, name, cursor.next_offset, start))
                cursor.forward(start, self.end)
                forwarded[name] = cursor.next_offset
                self._dirty[name] = None
        for reader in self.readers.values():
            if reader.position < start:
                moved.append(Moved(reader.id, "", reader.position, start))
                reader.jump(forwarded.get(reader.cursor.name, start) if reader.cursor is not None else start)
            if reader.held and reader.held.first < start:
                reader.release(0, start)
            self._place(reader)
        return moved

    def retract(self, offset: int, epoch: int) -> list[Retraction]:
        """The new ``epoch`` took back everything from ``offset`` on: readers that were sent some of it go back there and are told."""
        self.epoch = max(self.epoch, epoch)
        if offset >= self.tail:
            return []
        self.tail = max(0, offset)
        if self.tail < self.end:
            kept = max(0, self.tail - self.start_offset)
            self.nbytes = self.nbytes * kept // max(1, self.end - self.start_offset)
            self.end = self.tail
            if self.start_offset > self.end:
                self.start_offset = self.end
                self._trimmed = True
        for name, cursor in self.cursors.items():
            if cursor.retract(self.tail):
                self._went_on(cursor, True)
                self._dirty[name] = None
        told: list[Retraction] = []
        for reader in self.readers.values():
            if reader.position > self.tail:
                reader.retracted(self.tail, epoch)
                told.append(Retraction(reader.id, self.tail, epoch))
            else:
                reader.jump(reader.position)
            self._place(reader)
        return told

    @property
    def generation(self) -> int:
        """The highest generation under which a cursor was ever taken here: a group that begins anew must begin above it."""
        return max((cursor.generation for cursor in self.cursors.values()), default=0)

    def retention(self, wall_ms: int) -> RetentionWish:
        """What the settings allow to go now; the store decides in whole segments and reports with ``trim``."""
        spec = self.spec
        before_wall = max(0, wall_ms - spec.retention_ms) if spec.retention_ms else 0
        before_offset = max(self.start_offset, self.end - spec.retention_records) if spec.retention_records else self.start_offset
        return RetentionWish(spec.retention_ms, spec.retention_bytes, spec.retention_records, before_wall, before_offset)

    def resolve_start(self, start: str, cursor: str = "", lookup: Callable[[int], int] | None = None) -> int:
        """The offset that a ``SubscribeStream.start`` means here and now; raises ``Invalid``.

        cursor: that cursor's next offset (one that does not exist yet begins at the earliest record, so that nothing is missed); offset:N below
        the window means its start; timestamp:MS is found by ``lookup`` (first offset appended at or after it); last:N counts back from the end.
        """
        known = self.cursors.get(cursor)
        at = None if not cursor else self.start_offset if known is None else known.next_offset
        return resolve(start, first=self.start_offset, end=self.visible_end, cursor_offset=at, lookup=lookup)

    # ------------------------------------------------------------ readers

    def open_reader(
        self,
        reader_id: int,
        *,
        position: int,
        messages: int,
        nbytes: int,
        cursor: str = "",
        auto_commit: bool = False,
        filter: bool = False,
        generation: int = 0,
        resume: bool = False,
    ) -> Opened:
        """Starts a reader at ``position`` with a window of ``messages`` and ``nbytes``; raises ``Invalid``, ``LimitExceeded`` or ``Fenced``.

        With a cursor, the cursor is created at or set to ``position``, unless ``resume``: then the client still holds what lies between the two,
        which stays unacked, counts against the window and keeps the cursor where it is. The newest reader of a cursor moves it; the one before
        is named in ``Opened.superseded``.
        """
        self.close_reader(reader_id)
        if len(self.readers) >= limits.READERS_PER_PARTITION_MAX:
            raise LimitExceeded(f"this partition has {len(self.readers)} readers, the most that are allowed")
        position = max(self.start_offset, min(position, self.visible_end))
        reader = Reader(
            reader_id,
            position,
            max(0, min(messages, CREDIT_MAX)),
            max(0, min(nbytes, CREDIT_BYTES_MAX)),
            fifo=auto_commit or not cursor,
            filtered=filter,
            generation=generation,
        )
        superseded = self._attach(reader, cursor, resume=resume) if cursor else -1
        self.readers[reader_id] = reader
        self._place(reader)
        return Opened(reader.position, superseded)

    def _attach(self, reader: Reader, name: str, *, resume: bool) -> int:
        cursor = self.cursors.get(name)
        if cursor is not None and reader.generation < cursor.generation and (reader.generation or cursor.reader_id >= 0):
            raise Fenced(f"cursor {name!r} belongs to generation {cursor.generation} of its group, this reader is of generation {reader.generation}")
        if cursor is None:
            cursor = self._new_cursor(name, reader.position)
        elif resume:
            for first, end in cursor.unacked(reader.position):
                reader.hold(first, end)
        elif reader.position != cursor.next_offset:
            self._set(cursor, reader.position)
        superseded = cursor.reader_id
        before = self.readers.get(superseded)
        if before is not None:
            before.cursor, before.fenced = None, True
        cursor.reader_id, cursor.generation = reader.id, max(cursor.generation, reader.generation)
        reader.cursor = cursor
        return superseded if before is not None else -1

    def close_reader(self, reader_id: int) -> None:
        """Ends a reader; its cursor stays where it is, what it held is read again by the next."""
        reader = self.readers.pop(reader_id, None)
        if reader is None:
            return
        self._ready.pop(reader_id, None)
        self._at_tail.pop(reader_id, None)
        if reader.cursor is not None:
            reader.cursor.reader_id = -1

    def position(self, reader_id: int) -> int:
        """The next offset that reader will be sent, -1 if there is no such reader."""
        reader = self.readers.get(reader_id)
        return -1 if reader is None else reader.position

    def park(self, reader_id: int, parked: bool = True) -> None:
        """Takes a reader out of ``due`` (its socket is full, its read is under way) and back in."""
        reader = self.readers.get(reader_id)
        if reader is not None and reader.parked != parked:
            reader.parked = parked
            self._place(reader)

    def due(self, limit: int = limits.READS_PER_TICK_MAX) -> list[Read]:
        """What to read and send now, at most ``limit`` readers, in order of offset so that readers of the same records come together.

        A reader stays due until ``sent`` or ``park``; with more than ``limit`` due ones they take turns.
        """
        ready = self._ready
        if not ready:
            return []
        turn = list(ready.values())
        if len(turn) > limit:
            del turn[limit:]
            for reader in turn:
                ready[reader.id] = ready.pop(reader.id)
        end = self.visible_end
        reads = []
        for reader in turn:
            at, messages = reader.position, reader.messages
            span = messages if not reader.filtered else max(messages, FILTERED_SPAN)
            reads.append(Read(reader.id, at, self._stop(reader, min(end, at + span)), messages, reader.nbytes, reader.ticket))
        if len(reads) > 1:
            reads.sort(key=_from_offset)
        return reads

    def valid(self, read: Read) -> bool:
        """Whether ``read`` still stands: false once its reader was closed, moved or retracted, or was sent something since."""
        reader = self.readers.get(read.reader_id)
        return reader is not None and reader.ticket == read.ticket and reader.position == read.from_offset

    def sent(self, reader_id: int, next_offset: int, messages: int, nbytes: int, selected: Sequence[tuple[int, int]] | None = None) -> bool:
        """The reader was sent ``messages`` records of [position, next_offset); false if it did not stand before them (then nothing changes).

        ``selected``: with a filter the ranges (first, count) that were sent; the others count as acked. Without: all, or none if ``messages`` is 0.
        """
        reader = self.readers.get(reader_id)
        if reader is None:
            return False
        first = reader.position
        end = self._stop(reader, min(next_offset, self.visible_end))
        if end <= first:
            return False
        if selected is None:
            selected = [(first, end - first)] if messages > 0 else []
        reader.position = end
        reader.nbytes -= nbytes
        cursor = reader.cursor
        behind = cursor is not None and cursor.next_offset <= end
        held, at = reader.held.count, first
        for start, count in selected:
            start, stop = max(start, at), min(start + count, end)
            if start < stop:
                self._skipped(reader, at, start)
                reader.hold(start, stop)
                at = stop
        self._skipped(reader, at, end)
        if behind and cursor is not None and cursor.next_offset > end:
            reader.position = cursor.next_offset  # the filter closed the gap before what an earlier reader had acked
        if reader.held:
            reader.held_bytes += nbytes
        self.sent_count += reader.held.count - held
        self._place(reader)
        return True

    def credit(self, reader_id: int, messages: int, nbytes: int) -> None:
        """CREDIT: adds to the window. Where acks are not used (automatic commit, or no cursor) it also settles as many of the oldest held records."""
        reader = self.readers.get(reader_id)
        if reader is None:
            return
        reader.grant(messages, nbytes)
        if reader.fifo and messages > 0:
            left = min(messages, reader.held.count)
            while left:
                first, end, _ = reader.held.take(left)
                left -= end - first
                reader.give_back(end - first, credit=False)
                self._acked(reader, first, end)
        self._place(reader)

    def ack(
        self, reader_id: int, ranges: Sequence[tuple[int, int]], up_to: bool = False, *, epoch: int | None = None, wall_ms: int = 0
    ) -> list[tuple[int, int]]:
        """Settles what the reader holds of ``ranges`` (first, count), with ``up_to`` everything below the end of each; gives the credit back.

        Returns the stale ranges: never sent to this reader, taken back by a newer epoch than ``epoch``, or (they stay held) one range too many
        above the cursor. What was acked before is no error. A reader that lost its cursor to another gets everything back as stale.
        """
        self._wall_ms = max(self._wall_ms, wall_ms)
        reader = self.readers.get(reader_id)
        if reader is None:
            return list(ranges)
        bound = reader.position
        if epoch is not None and reader.retractions:
            bound = min(bound, reader.acks_below(epoch))
        stale: list[tuple[int, int]] = list(ranges[limits.SETTLE_RANGES_MAX :])
        for first, count in ranges[: limits.SETTLE_RANGES_MAX]:
            end = first + count
            if count <= 0:
                continue
            if up_to:
                self._settle(reader, 0, min(end, bound), stale)
                continue
            if end > bound:
                stale.append((max(first, bound), end - max(first, bound)))
                end = bound
            if first < end:
                self._settle(reader, first, end, stale)
        self._place(reader)
        return list(ranges) if reader.fenced else stale

    def _settle(self, reader: Reader, first: int, end: int, stale: list[tuple[int, int]]) -> None:
        """Takes [first, end) out of what ``reader`` holds, as far as the bounds on ranges allow."""
        held, cursor = reader.held, reader.cursor
        if (cursor is not None and cursor.above) or len(held) >= limits.CURSOR_RANGES_MAX:
            for start, stop, _ in held.pieces(first, end):
                splits = (start - 1) in held and stop in held and len(held) >= limits.SETTLE_RANGES_MAX
                if splits or (cursor is not None and not cursor.fits(start, stop)):
                    stale.append((start, stop - start))
                    continue
                held.cut(start, stop)
                reader.give_back(stop - start, credit=True)
                self._acked(reader, start, stop)
            return
        for start, stop, _ in held.cut(first, end):
            self._acked(reader, start, stop)
            reader.give_back(stop - start, credit=True)

    def _acked(self, reader: Reader, first: int, end: int) -> None:
        self.acked_count += end - first
        self._skipped(reader, first, end)

    def _skipped(self, reader: Reader, first: int, end: int) -> None:
        """The cursor need not wait for [first, end) any more."""
        cursor = reader.cursor
        if cursor is not None and first < end:
            self._went_on(cursor, cursor.settle(first, end, self.end))

    def _stop(self, reader: Reader, end: int) -> int:
        """Where a read that starts at the reader's position must end: before what an earlier reader of its cursor acked."""
        cursor = reader.cursor
        if cursor is not None and cursor.above and cursor.above.end > reader.position:
            ahead = cursor.above.pieces(reader.position, end, 1)
            if ahead:
                return ahead[0][0]
        return end

    def _place(self, reader: Reader) -> None:
        """Puts the reader where it belongs: due, waiting at the tail, or (without credit) nowhere."""
        cursor = reader.cursor
        if cursor is not None and cursor.above and cursor.above.end > reader.position:
            while (found := cursor.above.find(reader.position)) is not None and found[1] <= self.visible_end:
                reader.position = found[1]
        if not reader.may_read():
            self._ready.pop(reader.id, None)
            self._at_tail.pop(reader.id, None)
        elif reader.position < self.visible_end:
            self._ready[reader.id] = reader
            self._at_tail.pop(reader.id, None)
        else:
            self._at_tail[reader.id] = reader
            self._ready.pop(reader.id, None)

    # ------------------------------------------------------------ cursors

    def set_cursor(self, name: str, offset: int, wall_ms: int = 0) -> list[Moved]:
        """Sets or creates a cursor; its reader goes there too and is named. Raises ``Invalid`` or ``LimitExceeded``."""
        self._wall_ms = max(self._wall_ms, wall_ms)
        offset = max(self.start_offset, min(offset, self.end))
        cursor = self.cursors.get(name)
        if cursor is None:
            self._new_cursor(name, offset)
            return []
        before = cursor.next_offset
        self._set(cursor, offset)
        reader = self.readers.get(cursor.reader_id)
        moved = [Moved(-1, name, before, offset)] if before != offset else []
        if reader is not None:
            moved.append(Moved(reader.id, "", reader.position, offset))
            reader.release(0, 1 << 64)
            reader.jump(offset)
            self._place(reader)
        return moved

    def delete_cursor(self, name: str) -> bool:
        """Forgets a cursor; whether it was there. A reader of it reads on without."""
        cursor = self.cursors.pop(name, None)
        if cursor is None:
            return False
        self._held_back.pop(name, None)
        self._dirty[name] = None
        reader = self.readers.get(cursor.reader_id)
        if reader is not None:
            reader.cursor, reader.fenced = None, True
        return True

    # ------------------------------------------------------------ shape of a machine

    def next_deadline_ms(self) -> int | None:
        """Nothing here waits for time: retention is asked for, credit has no lease."""
        return None

    def view(self) -> dict[str, Any]:
        """What admin shows."""
        return {
            "start_offset": self.start_offset,
            "end": self.end,
            "tail": self.tail,
            "bytes": self.nbytes,
            "epoch": self.epoch,
            "readers": [
                {
                    "id": r.id,
                    "position": r.position,
                    "cursor": r.cursor.name if r.cursor else "",
                    "generation": r.generation,
                    "credit_messages": r.messages,
                    "credit_bytes": r.nbytes,
                    "held": r.held.count,
                    "lag": self.visible_end - r.position,
                    "waits_for": "" if r.id in self._ready else "records" if r.id in self._at_tail else "the socket" if r.parked else "credit",
                }
                for r in self.readers.values()
            ],
            "cursors": [
                {
                    "cursor": n,
                    "offset": c.next_offset,
                    "acked_above": c.acked_above,
                    "lag": self.lag(c),
                    "updated_ms": c.wall_ms,
                    "reader": c.reader_id,
                }
                for n, c in sorted(self.cursors.items())
            ],
        }

    def restore(self, version: int, data: bytes) -> None:
        """Takes over a snapshot, without readers; raises ``Damaged``."""
        super().restore(version, data)
        for volatile in (self.readers, self._ready, self._at_tail):
            volatile.clear()

    def check(self) -> None:
        """Asserts S1-S4 and the invariants of every cursor and reader."""
        assert 0 <= self.start_offset <= self.end <= self.tail, (self.start_offset, self.end, self.tail)
        assert self.nbytes >= 0
        visible = self.visible_end
        for name, cursor in self.cursors.items():
            assert name == cursor.name
            cursor.check(self.end)
            assert cursor.next_offset >= self.start_offset, f"cursor {name!r} is behind the window"
            if cursor.above and cursor.above.end > self.end:
                assert name in self._held_back
            if cursor.reader_id >= 0:
                assert self.readers[cursor.reader_id].cursor is cursor
        for id, reader in self.readers.items():
            reader.check()
            assert id == reader.id
            assert self.start_offset <= reader.position <= visible
            assert reader.cursor is None or reader.cursor.reader_id == id
            assert (id in self._ready) == (reader.may_read() and reader.position < visible)
            assert (id in self._at_tail) == (reader.may_read() and reader.position == visible)
            if reader.cursor is not None:
                for first, end, _ in reader.held:
                    assert not reader.cursor.above.pieces(first, end), f"reader {id} holds what its cursor has as acked"
        assert all(id in self.readers for id in (*self._ready, *self._at_tail))


FILTERED_SPAN = 4096
"""A filtered reader is due over at least so many offsets however few it has credit for: most may not match."""


def _from_offset(read: Read) -> int:
    return read.from_offset
