"""The control verbs that need no connection: one table from request type to handler, used by every gateway and the admin interface."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headrace import __version__
from headrace.broker import everywhere, survey
from headrace.broker.catalogue import Item
from headrace.broker.joining import joined, numbered
from headrace.broker.lane import Confirms, all_flushed, lane_append
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.model import limits
from headrace.model.errors import Conflict, Damaged, Invalid, NotFound, Refused, Unavailable
from headrace.wire import control, ingress
from headrace.wire.control.mqtt import MqttRequest

if TYPE_CHECKING:
    from headrace.broker.broker import Broker


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
            control.Repartition: self._repartition,
            control.Move: self._move,
            control.Redrive: self._redrive,
            control.TransferStatus: self._transfer_status,
            control.OffsetForTime: self._of_stream,
            control.Trim: self._trim,
            control.CursorsList: self._of_stream,
            control.CursorSet: self._of_stream,
            control.CursorDelete: self._cursor_delete,
            control.Status: self._status,
            control.Drain: self._drain_broker,
            control.QuarantineList: self._quarantine_list,
            control.QuarantineRepair: self._quarantine_repair,
            control.Topology: self._topology,
            control.ClusterTopology: self._cluster_topology,
            control.ForceElection: self._force_election,
            control.ConnectionsList: self._connections,
            control.Resolve: self._resolve,
        }

    def add(self, handlers: Mapping[type, Callable[[Any], Awaitable[control.Reply]]]) -> None:
        """Has requests of those types carried out by a gateway."""
        self._table.update(handlers)

    async def call(self, request: control.Request) -> control.Reply:
        handler = self._table.get(type(request))
        if handler is None and isinstance(request, MqttRequest):
            raise Refused("this broker serves no MQTT", hint="start it with --mqtt HOST:PORT; its log says why not, if it was")
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
        changes = dict(r.changes)
        count = changes.pop("partitions", None)
        if count is None:
            return self._info(await self.broker.catalogue.alter(r.name, "queue", changes))
        if type(count) is not int:
            raise Invalid(f"partitions is a number, not {count!r}")
        item = await self.broker.catalogue.alter(r.name, "queue", changes) if changes else self.broker.catalogue.get(r.name, "queue")
        if count != item.spec.partitions:
            item = await self.broker.repartitions.begin(r.name, count, force=False)
        return self._info(item)

    async def _repartition(self, r: control.Repartition) -> control.Reply:
        return await everywhere.describe(self.broker, await self.broker.repartitions.begin(r.name, r.partitions, force=r.force))

    async def _alter_stream(self, r: control.AlterStream) -> control.Reply:
        return self._info(await self.broker.catalogue.alter(r.name, "stream", r.changes))

    async def _delete(self, r: control.Delete) -> control.Reply:
        broker = self.broker
        item = broker.catalogue.get(r.name, r.kind)
        if r.if_empty and item.kind == "queue":
            held = await self._ask_all(control.Describe(name=r.name), item, range(len(item.partitions)))
            assert isinstance(held, control.Info)
            waiting = held.ready + held.leased + held.delayed
            if waiting:
                raise Conflict(f"queue {r.name!r} holds {waiting} messages", hint="purge it, or delete it without the condition")
        item = await broker.catalogue.delete(r.name, r.kind)
        if broker.cluster is not None:
            return control.Done(count=1)  # every broker hears of it and erases what it has
        gone = broker.sessions.end_all(item)
        for partition in broker.loading.of(item):
            if partition.gathered:
                lane_append(partition, broker.wall_ms)
            partition.barred = gone
            partition.append_journal()
            broker.loading.forget(partition)
            # nobody is told of its flushes any more: who waits for one need not, as all of it is gone by now
            confirms = Confirms(broker.counters, broker.turn, broker.precise_ms)
            all_flushed({partition.pid: partition}, [(partition.pid, partition.last_index)], broker.now_ms, confirms)
        await broker.deletions.erase(item)
        return control.Done(count=1)

    async def _list(self, r: control.List) -> control.Reply:
        if r.kind not in ("", "queue", "stream"):
            raise Invalid("kind is queue, stream or empty")
        items, more = await self.broker.catalogue.page(kind=r.kind, pattern=r.pattern, after=r.after, limit=min(max(1, r.limit), 10_000))
        return control.Listing(items=await everywhere.figures(self.broker, items), more=more)

    async def _describe(self, r: control.Describe) -> control.Reply:
        return await everywhere.describe(self.broker, self.broker.catalogue.get(r.name))

    def _info(self, item: Item) -> control.Info:
        return self.broker.parts.info(item)

    # ------------------------------------------------------------ partitions, wherever they are served

    async def _everywhere(self, r: Any, kind: str = "") -> control.Reply:
        """Has a verb carried out by everybody who serves what it is about."""
        item = self.broker.catalogue.get(r.name, kind)
        return await self._ask_all(r, item, numbered(item, getattr(r, "partition", -1)))

    async def _ask_all(self, r: Any, item: Item, numbers: Sequence[int]) -> control.Reply:
        return joined(r, await everywhere.call(self.broker, item, r, numbers))

    async def _inspect(self, r: control.Inspect) -> control.Reply:
        item = self.broker.catalogue.get(r.name, "queue")
        numbers = numbered(item, r.partition)
        if r.after >= 0 and len(numbers) > 1:
            raise Invalid("after is an offset of one partition: name the partition")
        return await self._ask_all(r, item, numbers)

    async def _purge(self, r: control.Purge) -> control.Reply:
        return await self._everywhere(r, "queue")

    async def _pause(self, r: control.Pause) -> control.Reply:
        self.broker.catalogue.get(r.name, "queue")
        await self.broker.catalogue.pause(r.name, r.paused)
        return control.Done(count=1)

    async def _move(self, r: control.Move) -> control.Reply:
        item = self.broker.catalogue.get(r.name, "queue")
        target = self.broker.catalogue.get(r.to)
        if target.name == item.name:
            raise Invalid("a queue cannot be moved to itself")
        return await self.broker.outbox.begin_job(item, r.to, "moved", r.filter, r.limit, r.rate)

    async def _redrive(self, r: control.Redrive) -> control.Reply:
        item = self.broker.catalogue.get(r.name, "queue")
        if r.to:
            self.broker.catalogue.get(r.to)
        return await self.broker.outbox.begin_job(item, r.to, "redriven", r.filter, r.limit, r.rate)

    async def _transfer_status(self, r: control.TransferStatus) -> control.Reply:
        try:
            return self.broker.outbox.progress(r.id, cancel=r.cancel)
        except NotFound as e:
            return await everywhere.find(self.broker, r, e)

    async def _resolve(self, r: control.Resolve) -> control.Reply:
        item = self.broker.catalogue.get(r.name)
        if not 0 <= r.partition < len(item.partitions):
            raise NotFound(f"{item.name!r} has no partition {r.partition}")
        return await self._ask_all(r, item, [r.partition])

    async def _of_stream(self, r: Any) -> control.Reply:
        return await self._everywhere(r, "stream")

    async def _trim(self, r: control.Trim) -> control.Reply:
        item = self.broker.catalogue.get(r.name, "stream")
        numbers = numbered(item, r.partition)
        if (r.offset < 0) == (r.before_ms < 0):
            raise Invalid("say either offset or before_ms")
        if r.offset >= 0 and len(numbers) > 1:
            raise Invalid("an offset belongs to one partition: name it")
        return await self._ask_all(r, item, numbers)

    async def _cursor_delete(self, r: control.CursorDelete) -> control.Reply:
        done = await self._everywhere(r, "stream")
        if isinstance(done, control.Done) and not done.count:
            raise NotFound(f"stream {r.name!r} has no cursor {r.cursor!r}", hint="`headrace stream cursors list` shows them")
        return done

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
            old = broker.partitions.get(pid)
            if old is not None and not r.dry_run:
                old.active = False  # it appends nothing any more, neither to what is being cut nor to what takes its place
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
                    broker.sessions.end_readers(old, Unavailable(f"partition {old.number} of {old.item.name!r} was repaired", hint=again))
                    broker.loading.forget(old)
                with contextlib.suppress(Damaged):
                    repaired = broker.loading.partition(item, item.partitions.index(pid))
                    broker.mark(repaired)
                    broker.groups.repaired(repaired)
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

    async def _force_election(self, r: control.ForceElection) -> control.Reply:
        if self.broker.cluster is None:
            raise Refused("this broker is alone: it serves all its partitions", hint="for damaged ones: headrace quarantine list")
        return await self.broker.cluster.electing.ask(r)

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
