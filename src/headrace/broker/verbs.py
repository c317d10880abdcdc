"""The control verbs that need no connection: one table from request type to handler, used by every gateway and the admin interface."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from headrace import __version__
from headrace.broker import peek, survey
from headrace.broker.catalogue import Item
from headrace.broker.lane import Confirms, all_flushed, lane_append
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.core.dedup import Duplicate
from headrace.model import limits
from headrace.model.errors import Conflict, Damaged, HeadraceError, Invalid, NotFound, Refused, Unavailable
from headrace.wire import control, ingress

if TYPE_CHECKING:
    from headrace.broker.broker import Broker


LIST_AT_ONCE = 100
"""Names described before others have a turn."""


class Verbs:
    """``call`` carries out one request; it raises ``HeadraceError`` and nothing else on purpose."""

    def __init__(self, broker: Broker, drain: Callable[[int, str], None]) -> None:
        self.broker = broker
        self._drain = drain
        self._table: dict[type, Callable[[Any], Awaitable[control.Reply]]] = {
            control.DeclareQueue: self._declare_queue,
            control.AlterQueue: self._alter_queue,
            control.DeclareStream: self._declare_stream,
            control.AlterStream: self._alter_stream,
            control.Delete: self._delete,
            control.List: self._list,
            control.Describe: self._describe,
            control.Inspect: self._inspect,
            control.Purge: self._purge,
            control.Pause: self._pause,
            control.Move: self._move,
            control.Redrive: self._redrive,
            control.TransferStatus: self._transfer_status,
            control.OffsetForTime: self._offset_for_time,
            control.Trim: self._trim,
            control.CursorsList: self._cursors_list,
            control.CursorSet: self._cursor_set,
            control.CursorDelete: self._cursor_delete,
            control.Status: self._status,
            control.Drain: self._drain_broker,
            control.QuarantineList: self._quarantine_list,
            control.QuarantineRepair: self._quarantine_repair,
            control.Topology: self._topology,
            control.ClusterTopology: self._cluster_topology,
            control.ConnectionsList: self._connections,
            control.Resolve: self._resolve,
        }

    async def call(self, request: control.Request) -> control.Reply:
        handler = self._table.get(type(request))
        if handler is None:
            raise Refused(f"{type(request).__name__} needs a connection of the native protocol")
        self.broker.refresh()
        return await handler(request)

    # ------------------------------------------------------------ catalogue

    async def _declare_queue(self, r: control.DeclareQueue) -> control.Reply:
        spec = self.broker.replicated(r.name, self.broker.config.queue_spec(r.spec, r.given), r.given)
        return self._info(await self.broker.catalogue.declare(r.name, spec))

    async def _declare_stream(self, r: control.DeclareStream) -> control.Reply:
        spec = self.broker.replicated(r.name, self.broker.config.stream_spec(r.spec, r.given), r.given)
        return self._info(await self.broker.catalogue.declare(r.name, spec))

    async def _alter_queue(self, r: control.AlterQueue) -> control.Reply:
        return self._info(await self.broker.catalogue.alter(r.name, "queue", r.changes))

    async def _alter_stream(self, r: control.AlterStream) -> control.Reply:
        return self._info(await self.broker.catalogue.alter(r.name, "stream", r.changes))

    async def _delete(self, r: control.Delete) -> control.Reply:
        broker = self.broker
        item = broker.catalogue.get(r.name, r.kind)
        if r.if_empty and item.kind == "queue":
            waiting = sum(p.machine.ready_count + p.machine.leased_count + p.machine.delayed_count for p in self._queue_partitions(item))
            if waiting:
                raise Conflict(f"queue {r.name!r} holds {waiting} messages", hint="purge it, or delete it without the condition")
        item = await broker.catalogue.delete(r.name, r.kind)
        if broker.cluster is not None:
            return control.Done(count=1)  # every broker hears of it and erases what it has
        gone = broker.end_subscriptions(item)
        for partition in broker.loaded(item):
            if partition.gathered:
                lane_append(partition, broker.wall_ms)
            partition.barred = gone
            partition.append_journal()
            broker.forget(partition)
            # nobody is told of its flushes any more: who waits for one need not, as all of it is gone by now
            confirms = Confirms(broker.counters, broker.turn, broker.precise_ms)
            all_flushed({partition.pid: partition}, [(partition.pid, partition.last_index)], broker.now_ms, confirms)
        await broker.erase(item)
        return control.Done(count=1)

    async def _list(self, r: control.List) -> control.Reply:
        if r.kind not in ("", "queue", "stream"):
            raise Invalid("kind is queue, stream or empty")
        items, more = await self.broker.catalogue.page(kind=r.kind, pattern=r.pattern, after=r.after, limit=min(max(1, r.limit), 10_000))
        rows = []
        for at in range(0, len(items), LIST_AT_ONCE):
            rows += [self._info(item, load=False) for item in items[at : at + LIST_AT_ONCE]]
            await asyncio.sleep(0)
        return control.Listing(items=tuple(rows), more=more)

    async def _describe(self, r: control.Describe) -> control.Reply:
        return self._info(self.broker.catalogue.get(r.name), load=True, partitions=True)

    def _info(self, item: Item, *, load: bool = False, partitions: bool = False) -> control.Info:
        """Settings and figures; partitions that are not loaded are opened only when asked."""
        broker = self.broker
        rows: list[control.PartitionInfo] = []
        totals = dict.fromkeys(("ready", "leased", "delayed", "settled", "records", "bytes", "consumers", "publishers"), 0)
        damaged = broker.store.damaged()
        consumers: set[int] = set()
        for number, pid in enumerate(item.partitions):
            loaded = broker.partition(item, number) if load and broker.cluster is None else broker.partitions.get(pid)
            if pid in damaged or (loaded is not None and loaded.quarantined):
                why = damaged[pid].why if pid in damaged else loaded.quarantined if loaded is not None else ""
                rows.append(control.PartitionInfo(partition=number, id=pid, epoch=0, state="quarantined", why=why))
                continue
            if loaded is None:
                rows.append(control.PartitionInfo(partition=number, id=pid, epoch=0, state="idle" if broker.cluster is None else "elsewhere"))
                continue
            if loaded.barred is not None:
                rows.append(control.PartitionInfo(partition=number, id=pid, epoch=loaded.epoch, state="elsewhere", why=str(loaded.barred)))
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
        rates = [sum(p.rates[i] for p in broker.loaded(item)) for i in range(3)]
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
            partitions=tuple(rows) if partitions or load else (),
            oldest_ms=max((r.oldest_ms for r in rows), default=0),
            attention=tuple(f"partition {r.partition} is quarantined: {r.why}" for r in rows if r.state == "quarantined"),
            **totals,
        )

    # ------------------------------------------------------------ queues

    def _queue_partitions(self, item: Item, number: int = -1) -> list[QueuePartition]:
        if number >= len(item.partitions):
            raise NotFound(f"{item.name!r} has partitions 0..{len(item.partitions) - 1}, not {number}")
        numbers = range(len(item.partitions)) if number < 0 else [number]
        return [p for n in numbers if isinstance(p := self.broker.partition(item, n), QueuePartition)]

    async def _inspect(self, r: control.Inspect) -> control.Reply:
        item = self.broker.catalogue.get(r.name, "queue")
        return await peek.inspect(self._queue_partitions(item, r.partition), r)

    async def _purge(self, r: control.Purge) -> control.Reply:
        broker = self.broker
        count = 0
        partitions = self._queue_partitions(broker.catalogue.get(r.name, "queue"), r.partition)
        for partition in partitions:
            partition.activate()
            count += partition.machine.purge(r.leased, now_ms=broker.now_ms, wall_ms=broker.wall_ms)
        await asyncio.gather(*(p.settled_down() for p in partitions))
        return control.Done(count=count)

    async def _pause(self, r: control.Pause) -> control.Reply:
        self.broker.catalogue.get(r.name, "queue")
        await self.broker.catalogue.pause(r.name, r.paused)
        return control.Done(count=1)

    async def _move(self, r: control.Move) -> control.Reply:
        item = self.broker.catalogue.get(r.name, "queue")
        target = self.broker.catalogue.get(r.to)
        if target.name == item.name:
            raise Invalid("a queue cannot be moved to itself")
        return self.broker.outbox.begin_job(item, r.to, "moved", r.filter, r.limit, r.rate)

    async def _redrive(self, r: control.Redrive) -> control.Reply:
        item = self.broker.catalogue.get(r.name, "queue")
        if r.to:
            self.broker.catalogue.get(r.to)
        return self.broker.outbox.begin_job(item, r.to, "redriven", r.filter, r.limit, r.rate)

    async def _transfer_status(self, r: control.TransferStatus) -> control.Reply:
        return self.broker.outbox.progress(r.id, cancel=r.cancel)

    async def _resolve(self, r: control.Resolve) -> control.Reply:
        item = self.broker.catalogue.get(r.name)
        if not 0 <= r.partition < len(item.partitions):
            raise NotFound(f"{item.name!r} has no partition {r.partition}")
        verdict = self.broker.partition(item, r.partition).producers.resolve(r.producer_id, r.producer_epoch, r.sequence)
        if isinstance(verdict, Duplicate):
            return control.Resolved(outcome="stored", offset=verdict.base_offset)
        return control.Resolved(outcome="unknown" if isinstance(verdict, HeadraceError) else "never")

    # ------------------------------------------------------------ streams

    def _stream_partitions(self, name: str, number: int = -1) -> list[StreamPartition]:
        item = self.broker.catalogue.get(name, "stream")
        if number >= len(item.partitions):
            raise NotFound(f"{item.name!r} has partitions 0..{len(item.partitions) - 1}, not {number}")
        numbers = range(len(item.partitions)) if number < 0 else [number]
        return [p for n in numbers if isinstance(p := self.broker.partition(item, n), StreamPartition)]

    async def _offset_for_time(self, r: control.OffsetForTime) -> control.Reply:
        return control.Offsets(offsets={p.number: self.broker.store.offset_for_time(p.pid, r.timestamp_ms) for p in self._stream_partitions(r.name)})

    async def _trim(self, r: control.Trim) -> control.Reply:
        if (r.offset < 0) == (r.before_ms < 0):
            raise Invalid("say either offset or before_ms")
        if r.offset >= 0 and r.partition < 0 and len(self._stream_partitions(r.name)) > 1:
            raise Invalid("an offset belongs to one partition: name it")
        count = 0
        partitions = self._stream_partitions(r.name, r.partition)
        for partition in partitions:
            partition.activate()
            to = r.offset if r.offset >= 0 else self.broker.store.offset_for_time(partition.pid, r.before_ms)
            before = partition.machine.start_offset
            partition.moved_start(min(to, partition.high_watermark))
            count += partition.machine.start_offset - before
        await asyncio.gather(*(p.settled_down() for p in partitions))
        return control.Done(count=count)

    async def _cursors_list(self, r: control.CursorsList) -> control.Reply:
        rows = []
        for partition in self._stream_partitions(r.name):
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

    async def _cursor_set(self, r: control.CursorSet) -> control.Reply:
        if not r.cursor:
            raise Invalid("name the cursor")
        partitions = self._stream_partitions(r.name, r.partition)
        to = [(p, p.start_at(r.to, r.cursor, self.broker.wall_ms)) for p in partitions]
        for partition, offset in to:
            partition.set_cursor(r.cursor, offset)
        await asyncio.gather(*(p.settled_down() for p, _ in to))
        return control.Offsets(offsets={p.number: offset for p, offset in to})

    async def _cursor_delete(self, r: control.CursorDelete) -> control.Reply:
        partitions = self._stream_partitions(r.name)
        count = sum(p.machine.delete_cursor(r.cursor) for p in partitions)
        if not count:
            raise NotFound(f"stream {r.name!r} has no cursor {r.cursor!r}", hint="`headrace stream cursors list` shows them")
        await asyncio.gather(*(p.settled_down() for p in partitions))
        return control.Done(count=count)

    # ------------------------------------------------------------ broker

    async def _status(self, r: control.Status) -> control.Reply:
        return self.status()

    def status(self) -> control.BrokerStatus:
        """The broker's state and figures now."""
        broker = self.broker
        stats = broker.store.stats()
        rate = broker.counters.rate
        return control.BrokerStatus(
            broker=broker.config.broker.name or broker.id,
            incarnation=broker.incarnation,
            release=__version__,
            state=broker.state,
            uptime_ms=broker.now_ms - broker.started_ms,
            mode="standalone" if broker.cluster is None else "coordinated",
            storage=broker.config.broker.storage,
            compiled=compiled(),
            listeners=broker.listeners,
            connections=len(broker.sinks),
            sessions=len(broker.sessions),
            queues=broker.catalogue.queues,
            streams=broker.catalogue.streams,
            loaded_partitions=len(broker.partitions),
            publish_rate=rate("published"),
            deliver_rate=rate("delivered"),
            settle_rate=rate("settled"),
            bytes_in_rate=rate("bytes_in"),
            bytes_out_rate=rate("bytes_out"),
            wal_bytes=int(stats.get("wal_bytes", 0)),
            disk_free_bytes=int(stats.get("disk_free_bytes", 0)),
            memory_bytes=resident_bytes(),
            flush_p50_us=int(stats.get("flush_p50_us", 0)),
            flush_p99_us=int(stats.get("flush_p99_us", 0)),
            attention=tuple(self.attention()),
        )

    def attention(self) -> list[str]:
        """What an operator should look at, a sentence each with what to do."""
        broker = self.broker
        found = []
        if broker.store_error is not None:
            found.append(f"storage failed: {broker.store_error}; look at the disk, then start the broker again")
        if broker.disk_nearly_full:
            found.append("the disk is nearly full: publishes are refused; free space on the data directory's disk")
        if broker.pressure_on:
            found.append("the log is at its size limit: publishers are held back until older files are free")
        if broker.state == "draining":
            found.append("this broker is draining")
        for pid, damage in list(broker.store.damaged().items())[:20]:
            found.append(f"partition {pid} is quarantined ({damage.why}); see `headrace quarantine list`")
        return found + broker.outbox.attention()

    async def _drain_broker(self, r: control.Drain) -> control.Reply:
        if not 0 <= r.grace_ms <= 3_600_000:
            raise Invalid("grace_ms lies in 0..3600000")
        self._drain(r.grace_ms, r.message)
        return control.Done(count=len(self.broker.sinks), detail={"grace_ms": r.grace_ms})

    async def _owners(self, wanted: set[int]) -> dict[int, tuple[str, int]]:
        """Name and number of those partitions."""
        found: dict[int, tuple[str, int]] = {}
        after = ""
        while len(found) < len(wanted):
            items, more = await self.broker.catalogue.page(after=after)
            for item in items:
                for number, pid in enumerate(item.partitions):
                    if pid in wanted:
                        found[pid] = (item.name, number)
            if not more:
                break
            after = items[-1].name
        return found

    async def _quarantine_list(self, r: control.QuarantineList) -> control.Reply:
        damaged = self.broker.store.damaged()
        owners = await self._owners(set(damaged))
        return control.Quarantine(
            items=tuple(
                control.QuarantineItem(
                    name=owners.get(pid, ("?", 0))[0],
                    partition=owners.get(pid, ("?", 0))[1],
                    id=pid,
                    why=d.why,
                    since_ms=d.since_ms,
                    last_valid_index=d.last_valid_index,
                    last_valid_offset=d.last_valid_offset,
                    lost_entries_max=d.lost_entries_max,
                )
                for pid, d in sorted(damaged.items())
            )
        )

    async def _quarantine_repair(self, r: control.QuarantineRepair) -> control.Reply:
        broker = self.broker
        item = broker.catalogue.get(r.name)
        damaged = broker.store.damaged()
        pids = [pid for n, pid in enumerate(item.partitions) if pid in damaged and r.partition in (-1, n)]
        if not pids:
            raise NotFound(f"no partition of {r.name!r} is quarantined", hint="`headrace quarantine list` shows those that are")
        detail: dict[str, Any] = {}
        for pid in pids:
            if broker.cluster is not None and not r.dry_run:
                await broker.cluster.renew(pid)  # nothing is cut that others may count on
                detail[str(item.partitions.index(pid))] = {"why": damaged[pid].why}
                continue
            damage = await broker.store.repair(pid, dry_run=r.dry_run)
            detail[str(item.partitions.index(pid))] = {
                "why": damage.why,
                "last_valid_index": damage.last_valid_index,
                "last_valid_offset": damage.last_valid_offset,
                "lost_entries_max": damage.lost_entries_max,
            }
            if not r.dry_run:
                old = broker.partitions.get(pid)
                if isinstance(old, QueuePartition | StreamPartition):
                    again = "subscribe again; the Python client does so by itself"
                    broker.end_readers(old, Unavailable(f"partition {old.number} of {old.item.name!r} was repaired", hint=again))
                    broker.forget(old)
                with contextlib.suppress(Damaged):
                    broker.mark(broker.partition(item, item.partitions.index(pid)))
        return control.Done(count=len(pids), detail=detail)

    async def _topology(self, r: control.Topology) -> control.Reply:
        broker = self.broker
        if broker.cluster is not None:
            return broker.cluster.topology(r.names[:1000])
        name = broker.config.broker.name or broker.id
        rows = []
        for asked in r.names[:1000]:
            item = broker.catalogue.find(asked)
            if item is not None:
                for number, pid in enumerate(item.partitions):
                    loaded = broker.partitions.get(pid)
                    rows.append(
                        control.PartitionOwner(
                            name=asked,
                            partition=number,
                            owner=name,
                            epoch=loaded.epoch if loaded else 0,
                            routing_version=item.routing_version,
                            id=pid,
                        )
                    )
        return control.TopologyInfo(brokers={name: (broker.listeners.get("url", ""),)}, partitions=tuple(rows))

    async def _cluster_topology(self, r: control.ClusterTopology) -> control.Reply:
        broker = self.broker
        return await (survey.alone(broker, r) if broker.cluster is None else broker.cluster.survey.topology(r))

    async def _connections(self, r: control.ConnectionsList) -> control.Reply:
        return control.Connections(connections=tuple(c.info() for c in list(self.broker.sinks.values())[: limits.CONNECTIONS_MAX]))


def compiled() -> bool:
    """Whether the hot modules run as compiled extensions."""
    return not (ingress.__file__ or "").endswith(".py")


def resident_bytes() -> int:
    """This process's resident memory, 0 where it cannot be read."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
