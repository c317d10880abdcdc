"""One stream partition at work: the stream machine, its readers, and the bytes they are sent.

The machine says which reader may have what from where; this module reads and sends it. A reader at the tail is served from memory in the tick that
committed the
records; one behind reads ahead from disk in a task of its own, so it never holds up the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from headrace.broker import compacting
from headrace.broker.catalogue import Item
from headrace.broker.partition import Partition
from headrace.broker.reading import Parcel, Reading, parcels, unpacked
from headrace.core.filters import Compiled
from headrace.core.stream import Moved, Read, StreamMachine
from headrace.model import limits
from headrace.model.errors import Damaged, Fenced, HeadraceError
from headrace.model.specs import StreamSpec
from headrace.storage.api import StoredEntry
from headrace.wire import control
from headrace.wire.entry import compacted
from headrace.wire.frames import DeliverFlag, Level
from headrace.wire.journal import RECORDS_HEAD, Kind

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.subscription import StreamSubscription


class StreamPartition(Partition):
    """See the module's head."""

    def __init__(self, broker: Broker, item: Item, number: int, pid: int) -> None:
        super().__init__(broker, item, number, pid)
        assert item.stream is not None
        self.spec: StreamSpec = item.stream
        self.machine = StreamMachine(item.stream)
        self.message_bytes_max = item.stream.max_message_bytes
        self.settings_changed()
        self.limited = self.copy is not None  # whether it may publish a copy is asked each time
        self.tells_appended = item.stream.tier != "durable"
        self.subscriptions: dict[int, StreamSubscription] = {}
        self._filters: dict[int, Compiled] = {}
        self._readings: dict[int, Reading] = {}
        self._far: dict[int, asyncio.Task[None]] = {}
        self.clean_end = 0
        """Up to where it was compacted, in this incarnation."""
        self._compacting: asyncio.Task[int] | None = None

    def configure(self, item: Item) -> None:
        assert item.stream is not None
        self.item, self.spec = item, item.stream
        self.message_bytes_max = item.stream.max_message_bytes
        self.machine.configure(item.stream)
        self.settings_changed()
        self.broker.mark(self)

    # ------------------------------------------------------------ log

    def own_level(self) -> int:
        return self.level_here() if self.spec.tier != "ephemeral" else Level.ACCEPTED

    def admit(self, count: int, nbytes: int, *, whole: bool = False) -> HeadraceError | None:
        return None

    def appended(self, base: int, count: int, nbytes: int, wall_ms: int) -> None:
        self.machine.appended(base + count)
        self.broker.mark(self)

    def committed(
        self, base: int, count: int, nbytes: int, wall_ms: int, metas: Sequence[tuple[int, int, int, int, int, int]] | None, now_ms: int
    ) -> None:
        self.machine.committed(base + count, nbytes, wall_ms)
        if self.subscriptions:
            self.broker.mark(self)

    def restore(self, state: dict[str, Any], now_ms: int, wall_ms: int) -> None:
        if "machine" in state:
            self.machine.restore(1, state["machine"])

    def snapshot(self) -> dict[str, Any]:
        return {"machine": self.machine.snapshot()}

    def replay(self, kind: Kind, payload: bytes, now_ms: int, wall_ms: int) -> None:
        self.machine.replay(kind, payload)

    def recovered(self, now_ms: int, wall_ms: int) -> None:
        self.machine.committed(self.next_offset, 0, wall_ms)
        first = self.store.first_offset(self.pid)
        if first > self.machine.start_offset:
            self.machine.trim(first, journal=False)

    def take_journal(self) -> Sequence[tuple[Kind, bytes]]:
        return self.machine.take_journal(self.broker.wall_ms)

    def floor(self) -> int:
        return self.machine.start_offset

    def wake_at_ms(self) -> int:
        ages = self.spec.retention_ms and self.machine.start_offset < self.high_watermark
        return self.broker.wall_ms if ages or self._compacting is not None else 0

    def oldest_ms(self) -> int:
        entries = self.store.cached(self.pid, self.machine.start_offset, 1, self.machine.start_offset + 1)
        return max(0, self.broker.wall_ms - int(RECORDS_HEAD.unpack_from(entries[0].payload)[3])) if entries else 0

    def attached(self) -> int:
        return len(self.subscriptions)

    def subscription_ids(self) -> Iterable[int]:
        return self.subscriptions

    # ------------------------------------------------------------ readers

    def open_reader(
        self,
        subscription: StreamSubscription,
        *,
        position: int,
        cursor: str,
        auto_commit: bool,
        messages: int,
        nbytes: int,
        filter: Compiled | None,
        generation: int,
        resume: bool,
    ) -> None:
        """Starts to read at ``position``; ``resume``: the client still holds what lies between its cursor and there."""
        self.activate()
        opened = self.machine.open_reader(
            subscription.id,
            position=position,
            messages=messages,
            nbytes=nbytes,
            cursor=cursor,
            auto_commit=auto_commit,
            filter=filter is not None or self.spec.compaction,  # it may have to look further than its window for a record
            generation=generation,
            resume=resume,
        )
        fenced = self.subscriptions.get(opened.superseded)
        if fenced is not None and fenced.sink is not None and not fenced.group:
            message = f"another reader took the cursor {cursor!r} of {self.item.name!r}; its acks count from now on"
            fenced.sink.event(control.SubscriptionClosed(channel=fenced.channel, code=Fenced.code, message=message))
            self.broker.touch(fenced.sink)
            self.broker.sessions.drop(fenced)
        self.subscriptions[subscription.id] = subscription
        subscription.partitions[self.number] = self
        self._readings[subscription.id] = Reading(self.store, self.pid)
        if filter is not None:
            self._filters[subscription.id] = filter
        self.broker.mark(self)

    def close_reader(self, subscription: StreamSubscription) -> None:
        id = subscription.id
        self.machine.close_reader(id)
        self.subscriptions.pop(id, None)
        self._readings.pop(id, None)
        self._filters.pop(id, None)
        self.broker.mark(self)

    def ack(
        self, subscription: StreamSubscription, ranges: Sequence[tuple[int, int]], *, up_to: bool, epoch: int, correlation: int, confirm: bool
    ) -> None:
        """Moves the reader's cursor over what is contiguously acked; stale ranges are answered at once, the rest once committed if asked."""
        stale = self.machine.ack(subscription.id, ranges, up_to, epoch=epoch or None, wall_ms=self.broker.wall_ms)
        count = max(0, sum(c for _, c in ranges) - sum(c for _, c in stale))
        self.settled_count += count
        self.broker.mark(self)
        if confirm or stale:

            def answer() -> None:
                if subscription.sink is not None:
                    subscription.sink.settled(subscription.channel, correlation, count, stale)
                    self.broker.touch(subscription.sink)

            if confirm:
                self.when_committed(answer)
            else:
                answer()

    def credit(self, subscription: StreamSubscription, messages: int, nbytes: int) -> None:
        self.machine.credit(subscription.id, messages, nbytes)
        self.broker.mark(self)

    def start_at(self, start: str, cursor: str, wall_ms: int) -> int:
        """The offset a ``start`` text means here now; raises ``Invalid``."""
        return self.machine.resolve_start(start, cursor, lambda at: self.store.offset_for_time(self.pid, at))

    def moved_start(self, offset: int) -> None:
        """Everything below ``offset`` is gone: readers and cursors behind it go on there and are told."""
        for moved in self.machine.trim(offset):
            subscription = self.subscriptions.get(moved.reader_id)
            if subscription is not None and subscription.sink is not None:
                subscription.sink.event(
                    control.CursorMoved(channel=subscription.channel, partition=self.number, from_offset=moved.from_offset, to_offset=moved.to_offset)
                )
                self.broker.touch(subscription.sink)
        self.store.set_floor(self.pid, self.machine.start_offset)
        self.broker.mark(self)

    def set_cursor(self, cursor: str, offset: int) -> None:
        """Places a durable cursor; its reader goes there too and is told."""
        self.activate()
        self._tell_moved(self.machine.set_cursor(cursor, offset, self.broker.wall_ms))
        self.broker.mark(self)

    def _tell_moved(self, moves: Sequence[Moved]) -> None:
        for moved in moves:
            subscription = self.subscriptions.get(moved.reader_id)
            if subscription is not None and subscription.sink is not None:
                subscription.sink.event(
                    control.CursorMoved(channel=subscription.channel, partition=self.number, from_offset=moved.from_offset, to_offset=moved.to_offset)
                )
                self.broker.touch(subscription.sink)

    def housekeep(self, wall_ms: int) -> None:
        """Applies retention, whole segments at a time, and begins a compaction where one is due."""
        if self.quarantined or self.barred is not None:
            return
        spec = self.spec
        if spec.compaction and self._compacting is None and compacting.due(self):
            self._compacting = self.broker.spawn(compacting.run(self))
            self._compacting.add_done_callback(self._compacted)
        if not (spec.retention_ms or spec.retention_bytes or spec.retention_records):
            return
        start = self.store.retain(
            self.pid, wall_ms=wall_ms, age_ms=spec.retention_ms, bytes_max=spec.retention_bytes, records_max=spec.retention_records
        )
        if start > self.machine.start_offset:
            self.moved_start(min(start, self.high_watermark))

    def _compacted(self, task: asyncio.Task[int]) -> None:
        self._compacting = None
        for reading in self._readings.values():
            reading.forget()

    # ------------------------------------------------------------ each tick

    def serve(self, now_ms: int, wall_ms: int) -> None:
        if not self.subscriptions or not self.epoch_kept or self.quarantined:
            return
        for read in self.machine.due():
            id = read.reader_id
            if id in self._far:
                continue
            subscription = self.subscriptions[id]
            if subscription.sink is None or subscription.sink.blocked:
                continue
            entries = self._readings[id].near(read.from_offset, read.end)
            if entries:
                self._emit(subscription, read, entries)
            else:
                self._far[id] = self.broker.spawn(self._read(subscription, read))

    async def _read(self, subscription: StreamSubscription, read: Read) -> None:
        id = subscription.id
        try:
            reading = self._readings.get(id)
            if reading is None:
                return
            entries = await reading.far(read.from_offset, read.end)
            if id in self.subscriptions and self.machine.valid(read):
                if entries:
                    self._emit(subscription, read, entries)
                elif self.store.first_offset(self.pid) > read.from_offset:
                    self.moved_start(min(self.store.first_offset(self.pid), self.high_watermark))
                else:
                    self.machine.sent(id, read.end, 0, 0)  # compacted away
        except Damaged:
            pass
        finally:
            self._far.pop(id, None)
            self.broker.mark(self)

    def _emit(self, subscription: StreamSubscription, read: Read, entries: Sequence[StoredEntry]) -> None:
        sink = subscription.sink
        if sink is None:
            return
        first, end = read.from_offset, read.end
        compiled = self._filters.get(subscription.id)
        reached, messages, size = first, 0, 0
        high_watermark = self.high_watermark
        bytes_max = min(limits.READ_CHUNK_BYTES, self.broker.entry_bytes_max, max(1, read.max_bytes))
        picking = compiled is not None or (self.spec.compaction and any(compacted(entry.payload) for entry in entries))
        if not picking:
            end = min(end, first + read.max_messages)
        found = self._matching(entries, first, end, compiled, read.max_messages) if picking else parcels(entries, first, end, bytes_max)
        selected: list[tuple[int, int]] | None = [] if picking or self.spec.compaction else None
        for parcel in found:
            if size and size + parcel.nbytes > read.max_bytes:
                break
            reached = parcel.first + parcel.count
            flags = DeliverFlag.SPECULATIVE if reached > high_watermark else 0
            sink.deliver(
                subscription.channel, self.number, self.epoch, parcel.first, parcel.count, 0, parcel.base_offset, parcel.blobs, parcel.nbytes, flags
            )
            messages += parcel.count
            size += parcel.nbytes
            if selected is not None:
                selected.append((parcel.first, parcel.count))
        else:
            if messages < read.max_messages or not picking:
                last = entries[-1]
                reached = max(reached, min(end, last.base_offset + last.record_count))
        self.delivered += messages
        self.broker.counters.delivered += messages
        self.broker.counters.delivered_bytes += size
        self.machine.sent(subscription.id, reached, messages, size, selected)
        self.broker.touch(sink)
        self.broker.mark(self)

    @staticmethod
    def _matching(entries: Sequence[StoredEntry], first: int, end: int, compiled: Compiled | None, count_max: int) -> list[Parcel]:
        """Parcels of only those records that are there and that the filter lets through, contiguous ones together, at most ``count_max`` records."""
        found: list[Parcel] = []
        count = 0
        for entry in entries:
            low = high = -1
            for offset, record, _ in unpacked(entry, first, end):
                if compiled is not None and not compiled.match(record.key, record.headers):
                    continue
                if count == count_max:
                    break
                count += 1
                if offset == high:
                    high += 1
                    continue
                if low >= 0:
                    found += parcels([entry], low, high)
                low, high = offset, offset + 1
            if low >= 0:
                found += parcels([entry], low, high)
        return found
