"""The verbs about queues and streams, carried out for those of their partitions that this broker serves.

Owns what each verb does to one partition and what is said of it. Does not know who else serves some: ``verbs`` and ``everywhere`` see to that, and
the answers of several brokers are put together by ``joining``. Whoever does not serve a partition that is asked about raises ``Elsewhere`` first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from headrace.broker import peek
from headrace.broker.catalogue import Item
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.core.dedup import Duplicate
from headrace.core.repartition import slots
from headrace.model.errors import HeadraceError, Invalid, Refused
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

LIST_AT_ONCE: Final = 100
"""Names described before others have a turn."""
FIGURES_S: Final = 0.5
"""So long a list waits for partitions that begin to serve."""


class Parts:
    """``call`` carries out one request for some partitions; it raises ``HeadraceError`` and nothing else on purpose."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._table: dict[type, Callable[[Any, Sequence[int]], Awaitable[control.Reply]]] = {
            control.Describe: self._describe,
            control.Inspect: self._inspect,
            control.Purge: self._purge,
            control.Resolve: self._resolve,
            control.OffsetForTime: self._offset_for_time,
            control.Trim: self._trim,
            control.CursorsList: self._cursors_list,
            control.CursorSet: self._cursor_set,
            control.CursorDelete: self._cursor_delete,
            control.TransferStatus: self._transfer_status,
            control.ForceElection: self._force_election,
        }

    async def call(self, request: control.Request, numbers: Sequence[int]) -> control.Reply:
        """Carries out ``request`` for those partitions, all of which are to be served here."""
        handler = self._table.get(type(request))
        if handler is None:
            raise Refused(f"{type(request).__name__} is not about partitions")
        item = self.broker.catalogue.find(getattr(request, "name", ""))
        if item is not None:
            await self.broker.loading.awake(item, numbers)
        return await handler(request, numbers)

    async def _force_election(self, r: control.ForceElection, numbers: Sequence[int]) -> control.Reply:
        assert self.broker.cluster is not None
        return await self.broker.cluster.electing.here(r)

    async def figures(self, names: Sequence[str]) -> control.Listing:
        """What is here of those queues and streams."""
        rows = []
        for at in range(0, len(names), LIST_AT_ONCE):
            found = [item for name in names[at : at + LIST_AT_ONCE] if (item := self.broker.catalogue.find(name)) is not None]
            await self._awake_held(found)
            rows += [self.info(item) for item in found]
            await asyncio.sleep(0)
        return control.Listing(items=tuple(rows))

    async def _awake_held(self, items: Sequence[Item]) -> None:
        """In a cluster those begin that hold something and were not used yet: what they hold is counted by their machines alone."""
        broker = self.broker
        if broker.cluster is None:
            return
        is_idle, log_bytes = broker.loading.is_idle, broker.store.log_bytes
        idle = {item.name: [n for n, pid in enumerate(item.partitions) if is_idle(pid) and log_bytes(pid)] for item in items}
        wanted = [asyncio.ensure_future(broker.loading.awake(item, idle[item.name])) for item in items if idle[item.name]]
        if wanted:
            _, late = await asyncio.wait(wanted, timeout=FIGURES_S)
            for each in late:
                each.cancel()

    # ------------------------------------------------------------ queues and streams

    async def _describe(self, r: control.Describe, numbers: Sequence[int]) -> control.Reply:
        return self.info(self.broker.catalogue.get(r.name), numbers)

    def info(self, item: Item, numbers: Sequence[int] | None = None) -> control.Info:
        """Settings and figures; with ``numbers`` those partitions one by one. A lone broker opens those, and any that holds something."""
        broker = self.broker
        rows: list[control.PartitionInfo] = []
        totals: dict[str, Any] = dict.fromkeys(("ready", "leased", "delayed", "settled", "records", "bytes", "consumers", "publishers"), 0)
        damaged = broker.store.damaged()
        consumers: set[int] = set()
        for number in range(len(item.partitions)) if numbers is None else numbers:
            pid = item.partitions[number]
            loaded = broker.partitions.get(pid)
            if loaded is None and broker.cluster is None and pid not in damaged and (numbers is not None or broker.store.log_bytes(pid)):
                loaded = broker.loading.partition(item, number)
            if pid in damaged or (loaded is not None and loaded.quarantined):
                why = damaged[pid].why if pid in damaged else loaded.quarantined if loaded is not None else ""
                rows.append(control.PartitionInfo(partition=number, id=pid, epoch=0, state="quarantined", why=why))
                continue
            if loaded is None:
                rows.append(control.PartitionInfo(partition=number, id=pid, epoch=0, state="idle" if broker.loading.is_idle(pid) else "unavailable"))
                continue
            if loaded.barred is not None:
                rows.append(control.PartitionInfo(partition=number, id=pid, epoch=loaded.epoch, state="unavailable", why=str(loaded.barred)))
                continue
            totals["publishers"] += loaded.publishers
            consumers.update(loaded.subscription_ids())
            if isinstance(loaded, QueuePartition):
                m = loaded.machine
                row = control.PartitionInfo(
                    partition=number,
                    id=pid,
                    epoch=loaded.epoch,
                    state="paused" if item.paused else "serving",
                    start_offset=m.floor,
                    high_watermark=loaded.high_watermark,
                    next_offset=loaded.next_offset,
                    ready=m.ready_count,
                    leased=m.leased_count,
                    delayed=m.delayed_count,
                    settled=m.settled_count,
                    bytes=m.bytes,
                    consumers=loaded.attached(),
                    oldest_ms=loaded.oldest_ms(),
                    held=m.held_count,
                    holding=slots.count(m.holding.mask),
                    retiring=item.change is not None and item.change.phase != "announced" and number >= item.change.after,
                )
                for field in ("ready", "leased", "delayed", "settled", "bytes"):
                    totals[field] += getattr(row, field)
                totals["records"] += m.ready_count + m.leased_count + m.delayed_count
            else:
                assert isinstance(loaded, StreamPartition)
                start, end = loaded.machine.start_offset, loaded.high_watermark
                row = control.PartitionInfo(
                    partition=number,
                    id=pid,
                    epoch=loaded.epoch,
                    state="serving",
                    start_offset=start,
                    high_watermark=end,
                    next_offset=loaded.next_offset,
                    bytes=broker.store.log_bytes(pid),
                    consumers=loaded.attached(),
                    oldest_ms=loaded.oldest_ms(),
                )
                totals["records"] += end - start
                totals["bytes"] += row.bytes
            rows.append(row)
        totals["consumers"] = len(consumers)
        rates = [sum(p.rates[i] for p in broker.loading.of(item)) for i in range(3)]
        return control.Info(
            name=item.name,
            kind=item.kind,
            id=item.id,
            spec=msgspec.structs.asdict(item.spec),
            routing_version=item.routing_version,
            paused=item.paused,
            publish_rate=rates[0],
            deliver_rate=rates[1],
            settle_rate=rates[2],
            partitions=tuple(rows) if numbers is not None else (),
            oldest_ms=max((r.oldest_ms for r in rows), default=0),
            routing=broker.repartitions.view(item) if numbers is not None else None,
            attention=tuple(f"partition {r.partition} is quarantined: {r.why}" for r in rows if r.state == "quarantined"),
            **totals,
        )

    async def _resolve(self, r: control.Resolve, numbers: Sequence[int]) -> control.Reply:
        item = self.broker.catalogue.get(r.name)
        verdict = self.broker.loading.partition(item, numbers[0]).producers.resolve(r.producer_id, r.producer_epoch, r.sequence)
        if isinstance(verdict, Duplicate):
            return control.Resolved(outcome="stored", offset=verdict.base_offset)
        return control.Resolved(outcome="unknown" if isinstance(verdict, HeadraceError) else "never")

    # ------------------------------------------------------------ queues

    def _queue_partitions(self, name: str, numbers: Sequence[int]) -> list[QueuePartition]:
        item = self.broker.catalogue.get(name, "queue")
        return [p for n in numbers if isinstance(p := self.broker.loading.partition(item, n), QueuePartition)]

    async def _inspect(self, r: control.Inspect, numbers: Sequence[int]) -> control.Reply:
        return await peek.inspect(self._queue_partitions(r.name, numbers), r)

    async def _purge(self, r: control.Purge, numbers: Sequence[int]) -> control.Reply:
        broker = self.broker
        count = 0
        partitions = self._queue_partitions(r.name, numbers)
        for partition in partitions:
            partition.activate()
        for partition in partitions:
            count += partition.machine.purge(r.leased, now_ms=broker.now_ms, wall_ms=broker.wall_ms)
        await asyncio.gather(*(p.settled_down() for p in partitions))
        return control.Done(count=count)

    async def _transfer_status(self, r: control.TransferStatus, numbers: Sequence[int]) -> control.Reply:
        return self.broker.outbox.progress(r.id, cancel=r.cancel)

    # ------------------------------------------------------------ streams

    def _stream_partitions(self, name: str, numbers: Sequence[int]) -> list[StreamPartition]:
        item = self.broker.catalogue.get(name, "stream")
        return [p for n in numbers if isinstance(p := self.broker.loading.partition(item, n), StreamPartition)]

    async def _offset_for_time(self, r: control.OffsetForTime, numbers: Sequence[int]) -> control.Reply:
        partitions = self._stream_partitions(r.name, numbers)
        return control.Offsets(offsets={p.number: self.broker.store.offset_for_time(p.pid, r.timestamp_ms) for p in partitions})

    async def _trim(self, r: control.Trim, numbers: Sequence[int]) -> control.Reply:
        if (r.offset < 0) == (r.before_ms < 0):
            raise Invalid("say either offset or before_ms")
        count = 0
        partitions = self._stream_partitions(r.name, numbers)
        for partition in partitions:
            partition.activate()
        for partition in partitions:
            to = r.offset if r.offset >= 0 else self.broker.store.offset_for_time(partition.pid, r.before_ms)
            before = partition.machine.start_offset
            partition.moved_start(min(to, partition.high_watermark))
            count += partition.machine.start_offset - before
        await asyncio.gather(*(p.settled_down() for p in partitions))
        return control.Done(count=count)

    async def _cursors_list(self, r: control.CursorsList, numbers: Sequence[int]) -> control.Reply:
        rows = []
        for partition in self._stream_partitions(r.name, numbers):
            for name, cursor in sorted(partition.machine.cursors.items()):
                rows.append(
                    control.CursorInfo(
                        cursor=name,
                        partition=partition.number,
                        offset=cursor.next_offset,
                        lag=max(0, partition.high_watermark - cursor.next_offset),
                        updated_ms=cursor.wall_ms,
                    )
                )
        return control.Cursors(cursors=tuple(rows))

    async def _cursor_set(self, r: control.CursorSet, numbers: Sequence[int]) -> control.Reply:
        if not r.cursor:
            raise Invalid("name the cursor")
        partitions = self._stream_partitions(r.name, numbers)
        to = [(p, p.start_at(r.to, r.cursor, self.broker.wall_ms)) for p in partitions]
        for partition, offset in to:
            partition.set_cursor(r.cursor, offset)
        await asyncio.gather(*(p.settled_down() for p, _ in to))
        return control.Offsets(offsets={p.number: offset for p, offset in to})

    async def _cursor_delete(self, r: control.CursorDelete, numbers: Sequence[int]) -> control.Reply:
        partitions = self._stream_partitions(r.name, numbers)
        for partition in partitions:
            partition.activate()
        count = sum(p.machine.delete_cursor(r.cursor) for p in partitions)
        await asyncio.gather(*(p.settled_down() for p in partitions))
        return control.Done(count=count)
