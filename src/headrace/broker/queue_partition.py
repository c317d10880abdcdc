"""One queue partition at work: the queue machine, its consumers, and the bytes they are sent.

The machine decides who gets which offsets; this module finds their frames and hands them to sinks, in the order of the grants.
Invariant: while a read from disk is under way, every later grant waits behind it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from headrace.broker.catalogue import Item
from headrace.broker.lane import lane_append
from headrace.broker.partition import Partition
from headrace.broker.reading import Reading, parcels, unpacked
from headrace.core.filters import Compiled
from headrace.core.queue import Consumer, Grant, QueueMachine, Settled
from headrace.core.repartition import slots
from headrace.core.repartition.behind import Behind
from headrace.core.repartition.holding import EVERYBODY
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.errors import Damaged, HeadraceError
from headrace.model.specs import QueueSpec
from headrace.storage.api import StoredEntry
from headrace.wire.entry import runs
from headrace.wire.frames import DeliverFlag, PublishFlag
from headrace.wire.journal import Kind, Reason

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.subscription import QueueSubscription

_log = get_logger("broker")


class QueuePartition(Partition):
    """See the module's head."""

    def __init__(self, broker: Broker, item: Item, number: int, pid: int) -> None:
        super().__init__(broker, item, number, pid)
        assert item.queue is not None
        self.spec: QueueSpec = item.queue
        self._machine = QueueMachine(item.queue)
        self._machine.pause(item.paused)
        self._floor = 0
        self.behind: Behind | None = None
        """What is in hand of key slots from before the newest routing version, once somebody asked."""
        self.subscriptions: dict[int, QueueSubscription] = {}
        self._take_settings(item.queue)
        self.reading = Reading(broker.store, pid)
        self._waiting: deque[tuple[Grant, int]] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._opener: asyncio.Task[None] | None = None

    def configure(self, item: Item) -> None:
        assert item.queue is not None
        self.item, self.spec, self.routing = item, item.queue, item.routing_version
        self.machine.configure(item.queue)
        self.machine.pause(item.paused)
        self._take_settings(item.queue)
        self.cut_over()
        self.broker.mark(self)

    # ------------------------------------------------------------ repartition

    def cut_over(self) -> None:
        """Notes in its journal, before anything of it, that the catalogue's routing version begins here."""
        item, change = self.item, self.item.change
        if change is None and self._machine.holding.mask and not self.quarantined:
            # it was forced while this partition was isolated: nobody else would ever say that it need not wait
            self.slots_freed(self.machine.holding.version, EVERYBODY, 0)
        if change is None or change.phase == "announced" or self.machine.holding.version >= item.routing_version or self.quarantined:
            return
        if self.gathered:
            lane_append(self, self.broker.wall_ms)
        self.activate()
        self.behind = None
        self.machine.begin_routing(item.routing_version, number=self.number, before=change.before, after=change.after, cut=self.next_offset)
        self.append_journal()
        self._look_what_is_held()

    def slots_freed(self, version: int, source: int, behind: int) -> None:
        """Partition ``source`` has no more than these key slots in hand."""
        if self.machine.let_go(version, source, behind):
            self._look_what_is_held()
            self.broker.mark(self)

    def _look_what_is_held(self) -> None:
        self.slotted = bool(self._machine.holding.mask)

    async def slots_behind(self, version: int) -> int:
        """The key slots of which messages from before that version are in hand here; all of them while that is not known."""
        if self.machine.holding.version != version or self.quarantined or self.barred is not None:
            return slots.ALL
        cut = self.machine.holding.cut
        await self.settled_down()
        if self.machine.end < cut:
            return slots.ALL
        if self.behind is None:
            found, at = Behind(), self.machine.floor
            while at < cut:
                entries = await self.store.read(self.pid, at, limits.READ_CHUNK_BYTES, cut)
                if not entries:
                    break
                for entry in entries:
                    first = entry.base_offset
                    for run in runs(entry.payload):
                        found.add(run.key_slot, range(max(first, at), min(first + run.record_count, cut)))
                        first += run.record_count
                at = max(at + 1, entries[-1].base_offset + entries[-1].record_count)
            if self.machine.holding.version != version:
                return slots.ALL
            self.behind = found
        return self.behind.slots(self.machine.stand)

    def left(self) -> int:
        """Messages that are neither settled nor, if they leave for another queue, there."""
        machine = self.machine
        moving = sum(transfer.count for transfer in machine.pending_transfers())
        return machine.end - machine.settled_count + moving + self.next_offset - machine.end

    def _take_settings(self, spec: QueueSpec) -> None:
        self.message_bytes_max = spec.max_message_bytes
        self.bounded = bool(spec.max_messages or spec.max_bytes)
        self.limited = self.bounded or self.copy is not None  # whether it may publish a copy is asked each time
        self._eager = bool(self.bounded or spec.ttl_ms or spec.max_age_ms)
        self._look_who_consumes()
        self.settings_changed()

    def _look_who_consumes(self) -> None:
        """What is committed at the end of the queue is not told to the machine while nobody consumes."""
        self.lazy = not (self.subscriptions or self._eager)

    @property
    def machine(self) -> QueueMachine:
        """The queue's state, with everything that is committed."""
        if self.lazy_count:
            self._apply_lazy()
        return self._machine

    def _apply_lazy(self) -> None:
        count, nbytes = self.lazy_count, self.lazy_bytes
        self.lazy_count = self.lazy_bytes = 0
        self._machine.enqueue(self.high_watermark - count, count, nbytes, wall_ms=self.lazy_wall_ms, now_ms=self.broker.now_ms)

    # ------------------------------------------------------------ log

    def own_level(self) -> int:
        return self.level_here()

    def admit(self, count: int, nbytes: int, *, whole: bool = False) -> HeadraceError | None:
        if not self.bounded:
            return None
        return self.machine.admit(count, nbytes, self.broker.wall_ms, whole=whole)

    def appended(self, base: int, count: int, nbytes: int, wall_ms: int) -> None:
        pass

    def committed(
        self, base: int, count: int, nbytes: int, wall_ms: int, metas: Sequence[tuple[int, int, int, int, int, int]] | None, now_ms: int
    ) -> None:
        if self.lazy and metas is None:
            self.lazy_count += count
            self.lazy_bytes += nbytes
            self.lazy_wall_ms = wall_ms
            return
        if self.lazy_count:  # the high watermark is past ``base`` already
            lazy, self.lazy_count = self.lazy_count, 0
            self._machine.enqueue(base - lazy, lazy, self.lazy_bytes, wall_ms=self.lazy_wall_ms, now_ms=now_ms)
            self.lazy_bytes = 0
        if metas is None:
            self._machine.enqueue(base, count, nbytes, wall_ms=wall_ms, now_ms=now_ms)
        else:
            for records, size, not_before, expires_at, priority, key_slot in metas:
                self._machine.enqueue(
                    base, records, size, not_before_ms=not_before, expires_at_ms=expires_at, priority=priority, key_slot=key_slot,
                    wall_ms=wall_ms, now_ms=now_ms,
                )  # fmt: skip
                base += records
        self.broker.mark(self)

    def restore(self, state: dict[str, Any], now_ms: int, wall_ms: int) -> None:
        if "machine" in state:
            self.machine.restore(1, state["machine"], now_ms=now_ms, wall_ms=wall_ms)
            self._look_what_is_held()

    def snapshot(self) -> dict[str, Any]:
        return {"machine": self.machine.snapshot()}

    def replay(self, kind: Kind, payload: bytes, now_ms: int, wall_ms: int) -> None:
        self.machine.replay(kind, payload, now_ms=now_ms, wall_ms=wall_ms)
        if kind == Kind.ROUTING:
            self._look_what_is_held()

    def recovered(self, now_ms: int, wall_ms: int) -> None:
        self.broker.mark(self)

    def take_journal(self) -> Sequence[tuple[Kind, bytes]]:
        return self.machine.take_journal()

    def floor(self) -> int:
        return self.machine.floor

    def wake_at_ms(self) -> int:
        due = self.machine.next_deadline_ms(self.broker.now_ms, self.broker.wall_ms)
        if self.machine.pending_transfers():
            return self.broker.wall_ms
        return 0 if due is None else self.broker.wall_ms + max(0, due - self.broker.now_ms)

    def oldest_ms(self) -> int:
        at = self.machine.oldest_wall_ms
        return max(0, self.broker.wall_ms - at) if at else 0

    def attached(self) -> int:
        return len(self.subscriptions)

    def subscription_ids(self) -> Iterable[int]:
        return self.subscriptions

    # ------------------------------------------------------------ each tick

    def serve(self, now_ms: int, wall_ms: int) -> None:
        machine = self.machine
        due = machine.next_deadline_ms(now_ms, wall_ms)
        if due is not None and due <= now_ms:
            machine.tick(now_ms, wall_ms)
        if self.subscriptions and self.epoch_kept and not self.quarantined:
            wants = machine.wants()
            if wants is not None and self._opener is None:
                self._open(wants)
            for grant in machine.grant(now_ms, wall_ms):
                self._send(grant)
        for transfer in machine.take_transfers():
            if transfer.reason not in (Reason.MOVED, Reason.REDRIVEN):
                self.broker.counters.dead_lettered += transfer.count
            self.broker.outbox.start(self, transfer)
        floor = machine.floor
        if floor != self._floor:
            self._floor = floor
            self.floor_moved(floor)
        due = machine.next_deadline_ms(now_ms, wall_ms)
        if due != self.deadline_ms:
            self.deadline_ms = due
            if due is not None:
                self.broker.wake_at(due, self)

    # ------------------------------------------------------------ consumers

    def attach(self, subscription: QueueSubscription, *, lease_ms: int, auto_ack: bool, filter: Compiled | None, owner_token: int) -> None:
        """Makes a subscription a consumer here; while this is quarantined it simply gets nothing of it."""
        if not self.quarantined:
            self.activate()
        consumer = Consumer(
            subscription.id, owner_token=owner_token, credit=subscription.credit, lease_ms=lease_ms, auto_ack=auto_ack, filter=filter,
            member=subscription.member,
            replenish=not subscription.asked.pull,
        )  # fmt: skip
        subscription.consumers[self.number] = consumer
        subscription.partitions[self.number] = self
        self.subscriptions[subscription.id] = subscription
        self._look_who_consumes()
        self.machine.attach(consumer)
        self.broker.mark(self)

    def detach(self, subscription: QueueSubscription, now_ms: int, wall_ms: int) -> None:
        """Returns what it leases and forgets it."""
        self.subscriptions.pop(subscription.id, None)
        self._look_who_consumes()
        subscription.consumers.pop(self.number, None)
        self.machine.detach(subscription.id, now_ms, wall_ms)
        self.broker.mark(self)

    def settle(
        self,
        subscription: QueueSubscription,
        action: int,
        ranges: Sequence[tuple[int, int]],
        *,
        up_to: bool,
        delay_ms: int | None,
        drop: bool,
        correlation: int,
        confirm: bool,
    ) -> None:
        """Applies a settlement; stale ranges are answered at once, the rest once committed if asked."""
        broker = self.broker
        settled = self.machine.settle(
            subscription.id, action, ranges, up_to=up_to, delay_ms=delay_ms, drop=drop, now_ms=broker.now_ms, wall_ms=broker.wall_ms
        )
        self.settled_count += settled.count
        counters = broker.counters
        if action == 0:
            counters.settled += settled.count
        elif action == 1:
            counters.retried += settled.count
        if settled.stale:
            counters.stale_settles += sum(n for _, n in settled.stale)
        self._answer(subscription, settled, correlation, confirm)
        if len(subscription.partitions) > 1:
            subscription.wake()
        else:
            broker.mark(self)

    def extend(self, subscription: QueueSubscription, ranges: Sequence[tuple[int, int]], lease_ms: int, correlation: int) -> None:
        settled = self.machine.extend(subscription.id, ranges, lease_ms, self.broker.now_ms)
        self._answer(subscription, settled, correlation, True)
        self.broker.mark(self)

    def _answer(self, subscription: QueueSubscription, settled: Settled, correlation: int, confirm: bool) -> None:
        if confirm:

            def answer() -> None:
                sink = subscription.sink
                if sink is not None:
                    sink.settled(subscription.channel, correlation, settled.count, settled.stale)
                    self.broker.touch(sink)

            self.broker.mark(self)
            self.when_committed(answer)
        elif settled.stale and subscription.sink is not None:
            subscription.sink.settled(subscription.channel, correlation, settled.count, settled.stale)
            self.broker.touch(subscription.sink)

    # ------------------------------------------------------------ sending

    def _send(self, grant: Grant) -> None:
        if not self._waiting:
            first, end = grant.first, grant.first + grant.count
            while first < end:
                entries = self.reading.near(first, end)
                if not entries:
                    grant = Grant(grant.consumer_id, first, end - first, grant.attempt, grant.auto_ack)
                    break
                first = self._emit(grant, entries, first, end)
            else:
                return
        subscription = self.subscriptions.get(grant.consumer_id)
        if subscription is not None and subscription.sink is not None and subscription.sink.blocked and not grant.auto_ack:
            self._take_back(subscription, [(grant.first, grant.count)])  # as what was granted before it, perhaps: it must not overtake that
            return
        self._waiting.append((grant, subscription.connection if subscription is not None else -1))
        if self._reader is None:
            self._reader = self.broker.spawn(self._read())

    def let_go(self) -> None:
        """It is isolated: its consumers get nothing of it any more, and what they hold of it does not count in their windows, which other partitions
        use as well."""
        broker = self.broker
        for subscription in self.subscriptions.values():
            self.machine.detach(subscription.id, broker.now_ms, broker.wall_ms)
            for other in subscription.partitions.values():
                broker.mark(other)

    def sending_to(self, subscription_id: int) -> bool:
        """Whether messages for that subscription are being read or looked for right now."""
        return self._opener is not None or any(grant.consumer_id == subscription_id for grant, _ in self._waiting)

    async def _read(self) -> None:
        """Sends what waits for the disk, grant after grant."""
        try:
            while self._waiting:
                grant, connection = self._waiting[0]
                first, end = grant.first, grant.first + grant.count
                while first < end:
                    if not self._wanted(grant, connection, first, end):
                        break
                    entries = self.reading.near(first, end) or await self.reading.far(first, end, ahead=self.high_watermark)
                    if not entries:
                        self._lost(first, end)
                        break
                    first = self._emit_late(grant, connection, entries, first, end)
                self._waiting.popleft()
                self.broker.mark(self)
        except Damaged:
            self._waiting.clear()
        finally:
            self._reader = None

    def _wanted(self, grant: Grant, connection: int, first: int, end: int) -> bool:
        """Whether anything of a grant that waited is still to be sent."""
        subscription = self.subscriptions.get(grant.consumer_id)
        if subscription is None or subscription.connection != connection:
            return False
        return grant.auto_ack or bool(self.machine.leased(grant.consumer_id, grant.attempt, first, end))

    def _emit_late(self, grant: Grant, connection: int, entries: Sequence[StoredEntry], first: int, end: int) -> int:
        """As ``_emit`` after reading took a while: what is not leased so any more, or was granted to an earlier connection, is not sent."""
        subscription = self.subscriptions.get(grant.consumer_id)
        if subscription is None or subscription.connection != connection:
            return end
        if grant.auto_ack:
            return self._emit(grant, entries, first, end)
        end = min(end, max(first + 1, entries[-1].base_offset + entries[-1].record_count))
        for start, stop in self.machine.leased(grant.consumer_id, grant.attempt, first, end):
            self._emit(grant, entries, start, stop)
        return end

    def _emit(self, grant: Grant, entries: Sequence[StoredEntry], first: int, end: int) -> int:
        """Delivers what ``entries`` hold of [first, end) and says where it stopped."""
        subscription = self.subscriptions.get(grant.consumer_id)
        sink = subscription.sink if subscription is not None else None
        if sink is not None and sink.blocked and subscription is not None and not grant.auto_ack:
            # Its socket filled up since: what was granted and not sent goes back, so that no peer makes the broker hold more than one buffer for it.
            self._take_back(subscription, [(first, end - first), *self._behind(subscription)])
            return end
        flags = DeliverFlag.AUTO_ACK if grant.auto_ack else 0
        if grant.attempt > 1:
            flags |= DeliverFlag.REDELIVERED
        reached = first
        counters = self.broker.counters
        for parcel in parcels(entries, first, end, min(limits.READ_CHUNK_BYTES, self.broker.entry_bytes_max)):
            if parcel.first > reached:
                self._lost(reached, parcel.first)
            reached = parcel.first + parcel.count
            if sink is not None and subscription is not None:
                sink.deliver(
                    subscription.channel,
                    self.number,
                    self.epoch,
                    parcel.first,
                    parcel.count,
                    grant.attempt,
                    parcel.base_offset,
                    parcel.blobs,
                    parcel.nbytes,
                    flags,
                )
                self.delivered += parcel.count
                counters.delivered += parcel.count
                counters.delivered_bytes += parcel.nbytes
                if grant.attempt > 1:
                    counters.redelivered += parcel.count
                if subscription.fetches:
                    subscription.delivered(parcel.count)
        if sink is not None:
            self.broker.touch(sink)
        return reached

    def _behind(self, subscription: QueueSubscription) -> list[tuple[int, int]]:
        """What waits for it behind the first that waits, which waits no more: were there room again, it would overtake what goes back now."""
        behind: list[tuple[int, int]] = []
        if self._waiting:
            first, *others = self._waiting
            self._waiting = deque([first])
            for waits in others:
                grant, connection = waits
                if grant.consumer_id == subscription.id and connection == subscription.connection and not grant.auto_ack:
                    behind.append((grant.first, grant.count))
                else:
                    self._waiting.append(waits)
        return behind

    def _take_back(self, subscription: QueueSubscription, ranges: list[tuple[int, int]]) -> None:
        count = self.machine.take_back(subscription.id, ranges, self.broker.now_ms, self.broker.wall_ms)
        if subscription.asked.pull:
            subscription.credit.messages += count
        self.broker.mark(self)

    def _lost(self, first: int, end: int) -> None:
        """Settles messages that are stored nowhere: a repair has left a gap there."""
        count = self.machine.drop_unreadable(first, end - first, self.broker.now_ms, self.broker.wall_ms)
        if count:
            _log.warning(
                "partition %d of %r: %d messages from offset %d on are lost; a repair left them out", self.number, self.item.name, count, first
            )

    # ------------------------------------------------------------ opening records for filters and key order

    def _open(self, wants: tuple[int, int]) -> None:
        first, count = wants
        entries = self.reading.near(first, first + count)
        if entries:
            self._opened(entries, first, first + count)
            self.broker.mark(self)
        else:
            self._opener = self.broker.spawn(self._open_far(first, first + count))

    async def _open_far(self, first: int, end: int) -> None:
        try:
            entries = await self.reading.far(first, end, ahead=self.high_watermark)
            if entries:
                self._opened(entries, first, end)
            else:
                self._lost(first, end)
        except Damaged:
            pass
        finally:
            self._opener = None
            self.broker.mark(self)

    def _opened(self, entries: Sequence[StoredEntry], first: int, end: int) -> None:
        self.machine.opened(_keys_and_headers(entries, first, end))
        for entry in entries:
            if entry.base_offset > first:
                self._lost(first, min(end, entry.base_offset))
            first = entry.base_offset + entry.record_count


def _keys_and_headers(entries: Sequence[StoredEntry], first: int, end: int) -> list[tuple[int, bytes | None, Sequence[tuple[str, bytes]]]]:
    return [
        (offset, record.key, record.headers)
        for entry in entries
        for offset, record, _ in unpacked(entry, first, end)
    ]


def stamped(flags: int) -> bool:
    """Whether a stored frame's ``headrace.*`` headers are the broker's own."""
    return bool(flags & PublishFlag.STAMPED)
