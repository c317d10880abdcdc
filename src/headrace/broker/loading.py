"""Which partitions of a broker are in memory: each is loaded at first use and only here; in a cluster it is there as long as this broker serves it.

Owns how a partition's runtime is made, and what is said where it is served by another broker. When one that nobody uses leaves memory
``housekeeping`` decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from headrace.broker.catalogue import OWN, Item
from headrace.broker.partition import Partition
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.model.errors import Damaged, Elsewhere, Unavailable

if TYPE_CHECKING:
    from headrace.broker.broker import Broker


class Loading:
    """See the module's head. What is loaded stands in ``broker.partitions``, by its id."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def partition(self, item: Item, number: int) -> Partition:
        """The runtime of one partition, loaded at first use. In a cluster: if it is served here; else raises what says who does."""
        broker, pid = self._broker, item.partitions[number]
        partition, cluster = broker.partitions.get(pid), broker.cluster
        if cluster is not None:
            if partition is None:
                if cluster.dormant.owned(pid):
                    cluster.take_up(pid)
                    raise Unavailable(f"partition {number} of {item.name!r} is used for the first time and begins to serve", hint="try again")
                raise Elsewhere(f"partition {number} of {item.name!r} is not served here", hint=cluster.where(pid), detail=cluster.detail(pid))
            if partition.barred is not None:
                raise partition.barred
            return partition
        if partition is None:
            partition = (QueuePartition if item.kind == "queue" else StreamPartition)(broker, item, number, pid)
            damage = broker.store.damaged().get(pid)
            if damage is not None:
                partition.quarantined = damage.why
            else:
                try:
                    stored = broker.store.replay(pid)
                except Damaged as e:  # found just now
                    partition.quarantined = str(e)
                else:
                    partition.recover(stored, broker.now_ms, broker.wall_ms)
            partition.used_ms = broker.now_ms
            broker.partitions[pid] = partition
            broker.groups.found(partition)
            if isinstance(partition, QueuePartition):
                partition.cut_over()
        return partition

    def served(self, item: Item) -> list[Partition]:
        """Those that this broker serves: all, or in a cluster at least one; else raises what says who does."""
        if self._broker.cluster is None:
            return [self.partition(item, n) for n in range(len(item.partitions))]
        found = [p for p in self.of(item) if p.barred is None]
        return found or [self.partition(item, 0)]

    async def awake(self, item: Item, numbers: Iterable[int] | None = None) -> None:
        """Before partitions (None: all) are used; in a cluster those that are this broker's and were not used yet begin to serve."""
        if self._broker.cluster is not None:
            await self._broker.cluster.awake(item, numbers)

    def is_idle(self, pid: int) -> bool:
        """Whether it is this broker's to serve, and not in memory since nobody uses it."""
        return pid not in self._broker.partitions and (self._broker.cluster is None or self._broker.cluster.dormant.owned(pid))

    def make(self, pid: int, name: str, *, keep: bool = True) -> QueuePartition | StreamPartition | None:
        """The runtime of a copied partition, without any state; None: there is no such queue or stream (any more, or yet). ``keep``: it is found by
        its id from now on."""
        item = self._broker.catalogue.find(name)
        if item is None or pid not in item.partitions:
            return None
        number = item.partitions.index(pid)
        made: Any
        if name.startswith(OWN):
            maker = self._broker.makers.get(name)
            made = None if maker is None else maker(item, number)
        else:
            made = (QueuePartition if item.kind == "queue" else StreamPartition)(self._broker, item, number, pid)
        if made is not None and keep:
            self._broker.partitions[pid] = made
        found: QueuePartition | StreamPartition | None = made
        return found

    def of(self, item: Item) -> list[Partition]:
        """Those of its partitions that are in memory."""
        return [p for pid in item.partitions if (p := self._broker.partitions.get(pid)) is not None]

    def forget(self, partition: Partition) -> None:
        """Takes a partition out of memory (deleted, or to be loaded again)."""
        self._broker.partitions.pop(partition.pid, None)
        partition.deadline_ms = None
        self._broker.groups.lost(partition)
        self._broker.outbox.lost(partition)

    async def wake(self) -> None:
        """Loads what has timers or unfinished transfers; everything else waits for its first use."""
        wanted = set(self._broker.store.partitions())
        if not wanted:
            return
        after = ""
        while True:
            items, more = await self._broker.catalogue.page(after=after)
            for item in items:
                for number, pid in enumerate(item.partitions):
                    if pid in wanted:
                        self._broker.mark(self.partition(item, number))
            if not more:
                return
            after = items[-1].name
            await asyncio.sleep(0)
