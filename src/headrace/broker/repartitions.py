"""Repartitions under way: who asks which partition what, and when a change goes on. What is decided is ``core.repartition``'s.

The catalogue says that there is a change and how far it is; what a partition holds, and since when, stands in its own journal. So nothing is kept
here that a restart would lose: every change of the catalogue, and the start, begins to look after it again.

Invariants: P1 a partition takes publishes of one routing version alone, and notes that version in its journal before the first of them. P2 transfers
that were begun before the change have arrived before publishes go to other partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from headrace.broker.catalogue import Item
from headrace.broker.lane import Confirms, all_flushed, lane_append
from headrace.broker.partition import Partition
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.subscription import QueueSubscription
from headrace.core import filters
from headrace.core.repartition import slots
from headrace.core.repartition.change import Stands, next_phase, waits_for
from headrace.core.repartition.holding import EVERYBODY
from headrace.log import get_logger
from headrace.model.errors import Damaged, HeadraceError, Refused, StaleRouting
from headrace.model.routing import RETIRED_KEPT_MS, Change
from headrace.wire import control
from headrace.wire.journal import Reason

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

SOON_S: Final = 0.01
LATER_S: Final = 0.25
"""A change is looked at again so soon after something has moved, and at least so often."""
_log = get_logger("repartition")


class Repartitions:
    """See the module's head."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._arriving: dict[str, set[tuple[int, int]]] = {}
        """By name of an announced change: (partition, number) of the transfers to it that were begun before."""

    def resume(self) -> None:
        """Takes up what was under way when the broker stopped; its transfers are known by now."""
        for name in self.broker.catalogue.changing:
            item = self.broker.catalogue.find(name)
            if item is not None:
                self.changed(item)
        self.broker.catalogue.changing.clear()

    async def begin(self, name: str, count: int, *, force: bool) -> Item:
        """Gives a queue ``count`` partitions; returns once that is recorded."""
        if self.broker.cluster is not None:
            hint = "move its messages to a queue with more partitions (`headrace queue move`), or repartition it before its broker joins others"
            raise Refused("queues of a cluster are not repartitioned yet", hint=hint)
        return await self.broker.catalogue.repartition(name, count, force=force)

    # ------------------------------------------------------------ what the catalogue says

    def changed(self, item: Item) -> None:
        """The catalogue's item has changed: all in one turn, so that no publish sees one partition before the change and another after it."""
        if item.kind != "queue" or self.broker.cluster is not None:
            return
        if item.change is None and not self._strangers(item):
            return
        if item.change is not None:
            for number in range(len(item.partitions)):
                partition = self.broker.loading.partition(item, number)
                if isinstance(partition, QueuePartition):
                    partition.cut_over()
            self._note_arriving(item, item.change)
            if item.name not in self._tasks:
                task = self._tasks[item.name] = self.broker.spawn(self._lead(item.name))
                task.add_done_callback(lambda _: self._tasks.pop(item.name, None))
        self.broker.groups.repartitioned(item)
        for subscription in self._strangers(item):
            subscription.item = item
            if not subscription.asked.partitions:
                self._attach(subscription, item)

    def _strangers(self, item: Item) -> list[QueueSubscription]:
        """Subscriptions that do not know the partitions of today."""
        queues = [p for p in self.broker.loading.of(item) if isinstance(p, QueuePartition)]
        found = dict.fromkeys(subscription for partition in queues for subscription in partition.subscriptions.values())
        return [subscription for subscription in found if subscription.item.partitions != item.partitions]

    def _attach(self, subscription: QueueSubscription, item: Item) -> None:
        """A consumer of the whole queue is one of its new partitions, too."""
        asked = subscription.asked
        assert item.queue is not None
        before = next(iter(subscription.consumers.values()), None)
        token = before.owner_token if before is not None else self.broker.ambient.bits(64)
        for number in range(len(item.partitions)):
            partition = self.broker.loading.partition(item, number)
            if number in subscription.partitions or not isinstance(partition, QueuePartition):
                continue
            partition.attach(
                subscription,
                lease_ms=asked.lease_ms or item.queue.lease_ms,
                auto_ack=asked.auto_ack,
                filter=filters.compile(asked.filter) if asked.filter is not None else None,
                owner_token=token,
            )
            if subscription.sink is None or subscription.sink.blocked:
                partition.machine.suspend(subscription.id)

    # ------------------------------------------------------------ transfers

    def _note_arriving(self, item: Item, change: Change) -> None:
        if change.phase == "announced" and item.name not in self._arriving:
            self._arriving[item.name] = set(self._on_the_way(item.name))
        elif change.phase != "announced":
            self._arriving.pop(item.name, None)

    def _on_the_way(self, name: str) -> Iterable[tuple[int, int]]:
        for partition in self.broker.partitions.values():
            if isinstance(partition, QueuePartition):
                yield from ((partition.pid, transfer.number) for transfer in partition.machine.pending_transfers() if transfer.target == name)

    def may_arrive(self, name: str, source: int, number: int) -> bool:
        """Whether a transfer may be published to that queue now: one that was begun after a repartition was announced waits for the new routing."""
        arriving = self._arriving.get(name)
        return arriving is None or (source, number) in arriving

    # ------------------------------------------------------------ leading a change

    async def _lead(self, name: str) -> None:
        while True:
            item = self.broker.catalogue.find(name)
            if item is None or item.change is None:
                self._arriving.pop(name, None)
                return
            moved = False
            try:
                moved = await self._step(item, item.change)
            except HeadraceError as e:
                _log.warning("the repartition of %r goes on later: %s", name, e)
            await asyncio.sleep(SOON_S if moved else LATER_S)

    async def _step(self, item: Item, change: Change) -> bool:
        """Does what can be done now; whether something has moved."""
        broker = self.broker
        moved = False
        if change.phase == "draining":
            moved = await self._free(item, change)
        if broker.catalogue.find(item.name) != item:
            return True
        if change.phase == "draining" and change.force:
            self._give_away(item, change)
        phase = next_phase(self.stands(item, change))
        if phase == change.phase:
            return moved
        if phase == "done":
            await self._settle(item, change)
        else:
            await broker.catalogue.advance(item, phase)
            _log.info("repartition of %r from %d to %d partitions: %s", item.name, change.before, change.after, phase)
        return True

    def _partitions(self, item: Item) -> list[QueuePartition]:
        return [p for n in range(len(item.partitions)) if isinstance(p := self.broker.loading.partition(item, n), QueuePartition)]

    def stands(self, item: Item, change: Change) -> Stands:
        """How a change stands, as far as this broker's partitions go."""
        on_the_way = set(self._on_the_way(item.name)) if change.phase == "announced" else set()
        partitions = self._partitions(item)
        uncut = [p for p in partitions if change.phase != "announced" and p.machine.holding.version < item.routing_version]
        shrinks = change.after < change.before
        return Stands(
            phase=change.phase,
            arriving=len(self._arriving.get(item.name, set()) & on_the_way),
            uncut=0 if change.force else len(uncut),
            holding=sum(slots.count(p.machine.holding.mask) for p in partitions),
            retiring=sum(p.left() for p in partitions[change.after :]),
            kept_ms=max(0, change.since_ms + RETIRED_KEPT_MS - self.broker.wall_ms) if shrinks and change.phase == "draining" else 0,
            force=change.force,
        )

    def view(self, item: Item) -> control.RoutingInfo | None:
        """What is shown of a change."""
        change = item.change
        if change is None or self.broker.cluster is not None:
            return None
        stands = self.stands(item, change)
        return control.RoutingInfo(
            before=change.before, after=change.after, phase=change.phase, since_ms=change.since_ms, waits_for=waits_for(stands),
            holding=stands.holding, force=change.force,
        )  # fmt: skip

    async def _free(self, item: Item, change: Change) -> bool:
        """Asks old partitions what they have in hand of the key slots that are held for them."""
        version = item.routing_version
        partitions = {p.number: p for p in self._partitions(item)}  # not looked for again: the queue may be deleted meanwhile
        asking = [p for p in partitions.values() if p.machine.holding.version == version and p.machine.holding.waiting]
        if change.force:
            for partition in asking:
                partition.slots_freed(version, EVERYBODY, 0)
            return bool(asking)
        moved = False
        for source in sorted({source for p in asking for source in p.machine.holding.waiting}):
            try:
                behind = await partitions[source].slots_behind(version)
            except Damaged:
                continue
            for partition in asking:
                if partition.barred is None and partition.machine.holding.news(source, behind):
                    partition.slots_freed(version, source, behind)
                    moved = True
        return moved

    def _give_away(self, item: Item, change: Change) -> None:
        """What is ready in partitions that are given up moves into the others, each message once."""
        for partition in self._partitions(item)[change.after :]:
            machine = partition.machine
            if machine.ready_count and not machine.pending_transfers() and not partition.quarantined:
                ready = [(peek.offset, 1) for peek in machine.peek("ready", limit=MOVED_AT_ONCE)]
                machine.start_transfer(item.name, Reason.MOVED, ready, self.broker.wall_ms, {})
                self.broker.mark(partition)

    async def _settle(self, item: Item, change: Change) -> None:
        broker = self.broker
        # that nothing is held any more is durable before the catalogue says so
        await asyncio.gather(*(p.settled_down() for p in self._partitions(item) if not p.quarantined and p.barred is None))
        retired = [p for pid in item.partitions[change.after :] if (p := broker.partitions.get(pid)) is not None]
        gone = await broker.catalogue.settle(item)
        _log.info("repartition of %r from %d to %d partitions: done", item.name, change.before, change.after)
        error = StaleRouting(f"this partition of {item.name!r} was given up: it has {change.after} partitions", hint="subscribe to the whole queue")
        for partition in retired:
            self._dismiss(partition, error)
        if gone is not None:
            await broker.deletions.erase(gone)

    def _dismiss(self, partition: Partition, error: HeadraceError) -> None:
        """Takes an empty partition that the queue does not have any more from those who use it."""
        broker = self.broker
        if isinstance(partition, QueuePartition):
            for subscription in list(partition.subscriptions.values()):
                partition.detach(subscription, broker.now_ms, broker.wall_ms)
                subscription.partitions.pop(partition.number, None)
                if not subscription.partitions:
                    broker.sessions.end(subscription, error)
        if partition.gathered:
            lane_append(partition, broker.wall_ms)
        partition.barred = error
        partition.append_journal()
        broker.loading.forget(partition)
        confirms = Confirms(broker.counters, broker.turn, broker.precise_ms)
        all_flushed({partition.pid: partition}, [(partition.pid, partition.last_index)], broker.now_ms, confirms)


MOVED_AT_ONCE: Final = 500
"""Messages of one transfer out of a partition that is given up."""
