"""The broker: one event loop, one store, the partitions that are in use, and the tick that drives them.

A tick appends what every partition gathered, grants, journals, starts a flush and writes to each connection once. It runs when something was marked,
never by a timer of its own.
Invariants: work per tick, not per message; after a failed sync nothing is confirmed any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from headrace.ambient import ambient
from headrace.broker.catalogue import OWN, Catalogue, Item
from headrace.broker.deadlines import Deadlines
from headrace.broker.deletions import Deletions
from headrace.broker.groups import Groups
from headrace.broker.housekeeping import housekeep
from headrace.broker.lane import Confirms, Lane, Turn, all_flushed
from headrace.broker.loading import Loading
from headrace.broker.measuring import measured
from headrace.broker.metrics import Counters, Figures, Snapshot
from headrace.broker.outbox import Outbox
from headrace.broker.partition import Partition
from headrace.broker.parts import Parts
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.repartitions import Repartitions
from headrace.broker.sessions import Sessions
from headrace.broker.sink import Written
from headrace.broker.stream_partition import StreamPartition
from headrace.broker.subscription import QueueSubscription
from headrace.cluster.local import LocalCoordinator
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.config import Config
from headrace.model.errors import (
    Fenced,
    HeadraceError,
    StorageError,
    SyncFailed,
)  # fmt: skip
from headrace.model.specs import QueueSpec, S, Spec, replicated
from headrace.storage.api import Checkpoint, Flushed, Store
from headrace.storage.memory import MemoryStore
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.cluster import Cluster, Means
    from headrace.cluster.mirrored import Documents

AT_ONCE_BYTES_MAX = 4096
"""A read of at most so much, of a connection that seems to be alone, is worked off at once and not in the loop's next turn."""
CROWD_MS = 0.15
CROWD_TICKS = 64
"""Two connections that are read within one tick, or one so soon after the other was worked off, share their flushes for so many ticks."""
ENTRY_BYTES_MAX = 8 * 1024 * 1024
ID_KEY = b"broker/id"
"""Small state: the id of the broker whose data these are."""
_log = get_logger("broker")


class Held(Protocol):
    """A connection that stopped reading until the log catches up."""

    def release(self) -> None: ...


MakeStore = Callable[[Config, asyncio.AbstractEventLoop], Store]


def _make_store(config: Config, loop: asyncio.AbstractEventLoop) -> Store:
    if config.broker.storage != "disk":
        return MemoryStore(config, loop)
    from headrace.storage.store import DiskStore  # lmdb only where there is a disk

    return DiskStore(Path(config.broker.data_dir), config, loop)


def _make_cluster(broker: Broker, means: Means) -> Cluster:
    from headrace.broker.cluster import Cluster  # a lone broker needs none of it

    return Cluster(broker, means)


class Broker:
    """See the module's head. ``start`` before anything else; ``stop`` ends it cleanly."""

    def __init__(self, config: Config, *, make_store: MakeStore | None = None, means: Means | None = None) -> None:
        """``make_store``: another store than the one ``config`` names, for a simulator. ``means``: of coordinated mode; None: it is alone."""
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.ambient = ambient()
        self.id = ""
        self.entry_bytes_max = min(ENTRY_BYTES_MAX, config.storage.flush_bytes_max, config.limits.frame_bytes_max)
        """What one entry gathers in a tick, so that a frame holds what it delivers; a single frame may be larger."""
        self.incarnation = self.ambient.token(16)
        self.started_ms = 0
        self.state = "starting"
        self.failed = asyncio.Event()
        self.durable = config.broker.storage == "disk"
        self.store: Store = (make_store or _make_store)(config, self.loop)
        self.now_ms = 0
        self.wall_ms = 0
        self.precise_ms = 0.0
        """As ``now_ms`` with a fraction, for latencies."""
        self.refresh()
        self.cluster: Cluster | None = _make_cluster(self, means) if means is not None else None
        self.partitions: dict[int, Partition] = {}
        self.sessions = Sessions(self)
        self.sinks: dict[int, Any] = {}
        """Open connections by id, kept by the gateways."""
        self.all_gone = asyncio.Event()
        """Set by the gateways when the last connection ends."""
        self.counters = Counters()
        self.draining = False
        self.disk_nearly_full = False
        self.store_error: HeadraceError | None = None
        self.pressure_on = False
        self.tick_bytes = 0
        self.listeners: dict[str, str] = {}
        self.catalogue_watchers: list[Callable[[Item, str], None]] = []
        """Told of each change of the catalogue: "declared", "altered" or "deleted"."""
        self.figures: list[Callable[[], Figures]] = []
        """What gateways add to the metrics."""
        self.makers: dict[str, Callable[[Item, int], Any]] = {}
        """What makes the partitions of items that are the brokers' own, by the item's name; kept by the gateways."""
        self.loading = Loading(self)
        self.outbox = Outbox(self)
        self.groups = Groups(self)
        self.parts = Parts(self)
        self.repartitions = Repartitions(self)
        self.deletions = Deletions(self)
        self._deadlines = Deadlines(self)
        self.wake_at = self._deadlines.add
        """``wake_at(due_ms, partition)``: it wants a tick at that monotonic time."""
        self._crowd = 0
        self._reader: object = None
        self._read = False
        """Whether a connection was read since the last tick."""
        self._flushing = False
        self._ticked_ms = 0.0
        self.turn = Turn(self._begin_tick, self.entry_bytes_max)
        self._held: list[Held] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._stopping = False

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Recovers the store and makes the broker ready to serve."""
        if self.cluster is not None:
            self.cluster.reserve()
        await self.store.open(self)
        try:
            await self._begin(self.cluster.node_id if self.cluster is not None else "")
        except (Exception, asyncio.CancelledError):
            with contextlib.suppress(StorageError):
                await self.store.close()
            raise
        self.refresh()
        self.started_ms = self.now_ms
        self.state = "serving"
        self.spawn(housekeep(self))
        self.repartitions.resume()

    async def _begin(self, node_id: str) -> None:
        known = self.store.state.get(ID_KEY)
        self.id = known.decode() if known else node_id or self.ambient.token(8)
        if node_id and self.id != node_id:
            raise StorageError(
                f"the store is of broker {self.id}, its directory is {node_id}'s", hint="a store is never moved into another broker's directory"
            )
        if not known:
            await self.store.commit_state({ID_KEY: self.id.encode()})
        self.owners: dict[int, tuple[str, int]] = {}
        if self.cluster is not None:
            await self.cluster.start()
        else:
            self.catalogue = self.make_catalogue(LocalCoordinator(self.store.state, self.store.commit_state))
            await self.catalogue.open()
            await self.deletions.finish()
            await self.loading.wake()

    def make_catalogue(self, documents: Documents, known: Callable[[], bool] | None = None) -> Catalogue:
        return Catalogue(
            documents,
            new_id=lambda: self.ambient.token(16),
            wall_ms=lambda: self.wall_ms,
            undeclared=self._undeclared,
            changed=self._catalogue_changed,
            known=known,
        )

    async def drain(self, grace_ms: int, message: str) -> None:
        """Tells every client, refuses new publishes after the grace, and waits until what was accepted is durable."""
        if self.draining or self.state == "draining":
            return
        self.state = "draining"
        _log.info("draining: clients have %d ms, then publishes are refused", grace_ms)
        for connection in list(self.sinks.values()):
            connection.event(control.GoingAway(grace_ms=grace_ms, message=message))
            connection.flush()
        if self.cluster is not None:
            await self.cluster.drain(grace_ms)
        if self.sinks:
            self.all_gone.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_ms / 1000):
                    await self.all_gone.wait()
        self.draining = True
        self._update_refusing()

    async def stop(self) -> None:
        """Closes the store cleanly; what is not durable by then was never confirmed."""
        if self._stopping:
            return
        self._stopping = True
        self.state = "stopped" if self.store_error is None else "failed"
        self.refresh()
        for session in list(self.sessions.values()):
            for subscription in list(session.channels.values()):
                if isinstance(subscription, QueueSubscription):
                    subscription.suspend()
        self._tick()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._deadlines.stop()
        if self.cluster is not None:
            await self.cluster.stop()
        await self.store.close()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs ``work`` beside the tick; it ends with the broker, and an error in it is logged."""
        task = self.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, SyncFailed):
            self._fail(error)
        elif error is not None:
            _log.error("a background task failed", exc_info=error)

    # ------------------------------------------------------------ time and the tick

    def refresh(self) -> None:
        """Reads the clocks; everything in a tick sees the same time."""
        self.precise_ms = self.ambient.monotonic() * 1000
        self.now_ms = int(self.precise_ms)
        self.wall_ms = self.ambient.wall_ns() // 1_000_000

    def mark(self, partition: Partition) -> None:
        """``partition`` is to be looked at in this tick: something was settled, attached, committed, became due."""
        partition.poked = True
        if not partition.dirty:
            self.turn.schedule(partition)

    def touch(self, sink: Written) -> None:
        """``sink`` was written to; it is flushed at the end of this tick."""
        if not sink.dirty:
            self.turn.touch(sink)

    def tick_soon(self) -> None:
        """A tick is wanted even if no partition has anything to do (a connection waits for the next one)."""
        self.turn.soon()

    def _begin_tick(self) -> None:
        self.loop.call_soon(self._tick)

    def _partition_failed(self, lane: Lane, error: Exception) -> None:
        """A mistake in one partition must not stop the others; a failed log stops all."""
        if isinstance(error, Fenced) and self.cluster is not None:
            return  # its epoch has ended in this turn, and it is told so at the end of it
        if isinstance(error, StorageError):
            self._fail(error)
            return
        assert isinstance(lane, Partition)
        lane.quarantined = f"the broker failed on it and serves it again after a restart: {error!r}"
        _log.error("partition %d of %r failed and is isolated", lane.number, lane.item.name, exc_info=error)

    def begin_read(self, connection: object, nbytes: int) -> bool:
        """``connection`` is about to handle what was read; whether it has to call ``end_read`` after it.

        A lone message is appended, flushed and confirmed there and then: the loop's next turn would only delay it. Where several connections are
        read at a time they wait for the tick, since one flush for all of them is worth more.
        """
        if connection is not self._reader:
            if self._read or self.precise_ms - self._ticked_ms < CROWD_MS:
                self._crowd = CROWD_TICKS
            self._reader = connection
        self._read = True
        if nbytes > AT_ONCE_BYTES_MAX or self._crowd or self.turn.scheduled or self.store.pending_bytes:
            return False
        self.turn.scheduled = True
        return True

    def end_read(self) -> None:
        """What was read is handled."""
        turn = self.turn
        turn.scheduled = False
        if turn.dirty or turn.sinks:
            self._tick()

    def _tick(self) -> None:
        self.refresh()
        turn, counters = self.turn, self.counters
        turn.scheduled = True
        turn.step(self.now_ms, self.wall_ms, self._partition_failed)
        if turn.published:
            counters.published += turn.published
            counters.published_bytes += turn.published_bytes
            turn.published = turn.published_bytes = 0
        if self.store_error is None:
            self._flushing = True
            try:
                self.store.flush()
            finally:
                self._flushing = False
        sinks, turn.sinks = turn.sinks, []
        for sink in sinks:
            sink.dirty = False
            sink.flush()
        self.tick_bytes = 0
        turn.scheduled = False
        counters.ticks += 1
        self._read = False
        if self._crowd:
            self._crowd -= 1
        self._ticked_ms = self.ambient.monotonic() * 1000
        counters.tick_duration.observe(int((self._ticked_ms - self.precise_ms) * 1000))
        if turn.dirty or turn.sinks:
            turn.soon()
        if self._held and not self.overloaded():
            held, self._held = self._held, []
            for connection in held:
                connection.release()

    def overloaded(self) -> bool:
        """The log is behind: whoever publishes waits."""
        return self.pressure_on or self.store.pending_bytes > limits.PENDING_BYTES_MAX or self.tick_bytes > limits.TICK_BYTES_MAX

    def hold(self, connection: Held) -> None:
        """``connection`` has stopped reading and wants to be released once the log has caught up (at the earliest in the next tick)."""
        self._held.append(connection)
        self.tick_soon()

    # ------------------------------------------------------------ what the store says

    def checkpoint(self, pid: int) -> Checkpoint | None:
        if self.cluster is not None:
            copy = self.cluster.copies.get(pid)
            return None if copy is None else copy.checkpoint()
        partition = self.partitions.get(pid)
        return None if partition is None or partition.quarantined else partition.checkpoint()

    def flushed(self, result: Flushed) -> None:
        if result.error is not None:
            self._fail(SyncFailed(f"writing the log failed: {result.error}"))
            return
        self.refresh()
        self.counters.flushes += 1
        if self.cluster is None:  # else the replicas were told, and say what is committed
            all_flushed(self.partitions, result.partitions, self.now_ms, Confirms(self.counters, self.turn, self.precise_ms))
        if self.turn.dirty or not self._flushing:  # else the tick that flushed goes on with what was written to sinks
            self._tick()

    def pressure(self, on: bool) -> None:
        if on != self.pressure_on:
            _log.info("publishers are %s", "held back: the log has reached its size limit" if on else "released: the log has room again")
        self.pressure_on = on
        self.tick_soon()

    def disk(self, nearly_full: bool) -> None:
        if nearly_full != self.disk_nearly_full:
            _log.log(
                40 if nearly_full else 20,
                "the disk is nearly full: publishes are refused" if nearly_full else "the disk has room again: publishes are taken",
            )
        self.disk_nearly_full = nearly_full
        self._update_refusing()

    def quarantined(self, pid: int, why: str) -> None:
        _log.error("partition %d is quarantined: %s", pid, why)
        if self.cluster is not None:
            self.cluster.damaged(pid, why)
        partition = self.partitions.get(pid)
        if partition is not None:
            partition.quarantined = why
            if isinstance(partition, StreamPartition):
                for subscription in list(partition.subscriptions.values()):
                    self.sessions.isolate(subscription, partition, why)
            elif isinstance(partition, QueuePartition) and self.cluster is None:  # else who owns it is replaced
                partition.let_go()

    def _fail(self, error: HeadraceError) -> None:
        """A failed write or sync is never retried: nothing is confirmed any more and the process is to end."""
        if self.store_error is not None:
            return
        _log.error("storage failed, the broker stops confirming and goes down: %s", error)
        self.store_error = error
        self.state = "failed"
        self._update_refusing()
        if self.cluster is not None:
            self.cluster.failed(error)
        for partition in self.partitions.values():
            partition.failed(error)
        for connection in list(self.sinks.values()):
            connection.close(error)
        self.failed.set()

    @property
    def refusing(self) -> bool:
        """Whether nothing may be published at all for now."""
        return self.turn.refusing

    def _update_refusing(self) -> None:
        self.turn.refusing = self.draining or self.disk_nearly_full or self.store_error is not None

    # ------------------------------------------------------------ the catalogue

    def _undeclared(self, name: str, kind: str) -> Spec | None:
        found = self.config.undeclared_spec(name)
        if found is None or (kind and isinstance(found[0], QueueSpec) != (kind == "queue")):
            return None
        spec, given = found
        return self.replicated(name, spec, given)

    def replicated(self, name: str, spec: S, given: Collection[str]) -> S:
        """``spec``, in a cluster with its defaults for copies where nothing else was asked for."""
        if self.cluster is None:
            return spec
        item = self.catalogue.find(name)
        return replicated(spec, given, self.cluster.members, item.spec if item is not None else None)

    def _catalogue_changed(self, item: Item, change: str) -> None:
        if self.cluster is not None:
            if change == "deleted":
                self.cluster.deleted(item, self.sessions.end_all(item))
            else:
                self.cluster.declared(item)
        if item.name.startswith(OWN):
            return
        if change == "altered":
            for partition in self.loading.of(item):
                partition.configure(item)
            self.repartitions.changed(item)
        for watcher in self.catalogue_watchers:
            watcher(item, change)
        event = control.CatalogueChanged(name=item.name, kind=item.kind, change=change)
        for connection in self.sinks.values():
            if "catalogue" in connection.pushes:
                connection.event(event)
                self.touch(connection)

    def metrics(self) -> Snapshot:
        """Counters, gauges and the figures of the busiest names, for /metrics and the overview."""
        return measured(self)
