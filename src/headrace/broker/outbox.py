"""Moving messages between queues so that each arrives once: dead letters, move, redrive.

The source partition journals a transfer (number, ranges, reason, target, time); the outbox publishes its messages to the target under a producer id
derived from (source partition, number, time) with sequences from 0, and journals completion once the target has committed. A crash at any point
repeats the publish, which the target's producer table recognises. The messages stay readable in the source until then. Numbers come again after a
repair that had to cut the journal, hence the time.

Jobs (move, redrive) are made of transfers of at most ``CHUNK`` messages, at a rate, with progress. The broker that was asked runs the job; each chunk
is taken by whoever serves its partition. A job ends with its broker, what was taken is moved all the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from headrace.broker import everywhere, forwarding
from headrace.broker.catalogue import Item
from headrace.broker.partition import Partition
from headrace.broker.queue_partition import QueuePartition, stamped
from headrace.broker.reading import unpacked
from headrace.broker.stamping import ORIGIN, stamp
from headrace.core import filters
from headrace.core.partitioner import partition_for
from headrace.core.queue import Transfer
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.errors import (
    Damaged,
    Elsewhere,
    HeadraceError,
    Invalid,
    NotConnected,
    NotFound,
    QueueFull,
    Unavailable,
    UnknownOutcome,
)
from headrace.model.specs import QueueSpec
from headrace.wire import control
from headrace.wire.batch import Record, encode_batch, encode_publish
from headrace.wire.frames import Level, PublishFlag
from headrace.wire.ingress import Run
from headrace.wire.journal import Reason

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

CHUNK = 500
CHUNK_MS = 15_000
ARRIVES_S = 3.0
"""So long what was taken is waited for before its job is told that it waits; twice that is less than ``CHUNK_MS``."""
JOB_BITS = 52
"""Of the ids of jobs in a cluster, so that each is known by its own; a lone broker counts."""
BATCH_BYTES_MAX = 1024 * 1024
JOBS_KEPT = 100
RETRY_S = (0.05, 0.2, 1.0, 5.0)
_log = get_logger("outbox")


class Job(msgspec.Struct):
    """A move or redrive under way."""

    id: int
    done: int = 0
    total: int = 0
    state: str = "running"
    why: str = ""

    def progress(self) -> control.Progress:
        return control.Progress(id=self.id, done=self.done, total=self.total, state=self.state, why=self.why)


class _Way(NamedTuple):
    """What one partition gives to one target."""

    waiting: deque[Transfer]
    gone: asyncio.Event
    """Set when the partition is not served here any more: nothing of it is tried again."""


class Outbox:
    """Publishes transfers and runs jobs."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._batch_bytes = min(BATCH_BYTES_MAX, broker.entry_bytes_max // 2)
        self._jobs: dict[int, Job] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._next_job = 1
        self._stuck: dict[tuple[int, int], str] = {}
        self._queued: dict[tuple[QueuePartition, str], _Way] = {}
        self._done: dict[tuple[int, int], asyncio.Event] = {}
        """Set when the transfer (source partition, number) has ended, for the job that waits for it."""

    # ------------------------------------------------------------ transfers

    def start(self, source: QueuePartition, transfer: Transfer) -> None:
        """Publishes one transfer in the background, after those of the same source to the same target that came before it."""
        way = self._queued.get((source, transfer.target))
        if way is None:
            way = self._queued[source, transfer.target] = _Way(deque(), asyncio.Event())
            way.waiting.append(transfer)
            self.broker.spawn(self._work(source, transfer.target, way))
        else:
            way.waiting.append(transfer)

    async def _work(self, source: QueuePartition, target: str, way: _Way) -> None:
        try:
            while way.waiting:
                await self._carry(source, way.waiting[0], way.gone)
                way.waiting.popleft()
        finally:
            del self._queued[source, target]

    async def _carry(self, source: QueuePartition, transfer: Transfer, gone: asyncio.Event) -> None:
        """Repeats until the target has it; what the target refuses for good stays here and is said in ``attention``."""
        key = (source.pid, transfer.number)
        try:
            await self._insist(source, transfer, gone)
        finally:
            waiting = self._done.pop(key, None)
            if waiting is not None:
                waiting.set()

    async def _insist(self, source: QueuePartition, transfer: Transfer, gone: asyncio.Event) -> None:
        attempt = 0
        key = (source.pid, transfer.number)
        try:
            while _gives(source):
                try:
                    if source.in_flight or source.dirty:
                        await source.settled_down()
                    await self._publish(source, transfer)
                    break
                except Damaged:
                    return
                except HeadraceError as e:
                    self._stuck[key] = f"{transfer.reason.name.lower()} messages of {source.item.name!r} wait for {transfer.target!r}: {e}"
                    if attempt == len(RETRY_S):
                        _log.warning("%s", self._stuck[key])
                    with suppress(TimeoutError):
                        async with asyncio.timeout(RETRY_S[min(attempt, len(RETRY_S) - 1)]):
                            await gone.wait()
                    attempt += 1
        finally:
            self._stuck.pop(key, None)
        if _gives(source):
            source.machine.transfer_done(transfer.number)
            self.broker.mark(source)

    async def _publish(self, source: QueuePartition, transfer: Transfer) -> None:
        broker = self.broker
        try:
            target = broker.catalogue.get(transfer.target)
        except NotFound:
            # A dead-letter queue is declared by being named in its queue's settings; a job's target was checked when it began and must exist.
            if transfer.reason in (Reason.MOVED, Reason.REDRIVEN):
                raise
            target = await broker.catalogue.declare(transfer.target, QueueSpec() if broker.cluster is None else _as_durable(source.spec))
        if not broker.repartitions.may_arrive(transfer.target, source.pid, transfer.number):
            raise Unavailable(f"{transfer.target!r} is about to get other partitions")
        digest = blake2b(f"{source.pid}/{transfer.number}/{transfer.wall_ms}".encode(), digest_size=8).digest()
        producer_id = int.from_bytes(digest, "big") >> 1
        records: dict[int, list[Record]] = {}
        for taken in transfer.ranges:
            at, end = taken.first, taken.first + taken.count
            while at < end:
                entries = source.reading.near(at, end) or await source.store.read(source.pid, at, limits.READ_CHUNK_BYTES, end)
                if not entries:
                    break
                for entry in entries:
                    for offset, record, envelope in unpacked(entry, at, end):
                        number = partition_for(record.key, target.routes) if record.key is not None else offset % target.routes
                        made = stamp(source.item.name, source.number, transfer, offset, taken, record, trusted=stamped(envelope.flags))
                        if made is not None:
                            records.setdefault(number, []).append(made)
                at = max(at + 1, entries[-1].base_offset + entries[-1].record_count)
        for number, batch in sorted(records.items()):
            await self._append(target, number, producer_id, batch)

    async def _append(self, item: Item, number: int, producer_id: int, records: list[Record]) -> None:
        """Publishes ``records`` to one partition, in frames of bounded size, and waits until all are committed."""
        loop = self.broker.loop
        target = self.broker.loading.partition(item, number) if self.broker.cluster is None else None
        waits = []
        at = 0
        while at < len(records):
            size, stop = 0, at
            while stop < len(records) and stop - at < CHUNK and (stop == at or size < self._batch_bytes):
                record = records[stop]
                size += 64 + len(record.value or b"") + len(record.key or b"") + sum(len(k) + len(v) + 8 for k, v in record.headers)
                stop += 1
            batch = encode_batch(
                records[at:stop], base_timestamp_ms=records[at].timestamp_ms, producer_id=producer_id, producer_epoch=0, base_sequence=at
            )
            blob = encode_publish(batch, channel=0, correlation=0, flags=Level.QUEUE | PublishFlag.STAMPED)
            if target is None:
                await forwarding.give(self.broker, item, forwarding.Given(name=item.name, partition=number, frames=blob))
                at = stop
                continue
            done: asyncio.Future[int] = loop.create_future()

            def answer(base: int, error: HeadraceError | None, done: asyncio.Future[int] = done) -> None:
                if not done.done():
                    if error is None:
                        done.set_result(base)
                    else:
                        done.set_exception(error)

            run = Run()
            run.producer_id, run.producer_epoch, run.first_sequence = producer_id, 0, at
            run.record_count, run.frame_bytes, run.nbytes = stop - at, len(blob), len(blob)
            target.append_own(run, blob, answer)
            waits.append(done)
            at = stop
        for result in await asyncio.gather(*waits, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def attention(self) -> list[str]:
        return list(self._stuck.values())[:20]

    # ------------------------------------------------------------ jobs

    async def begin_job(self, item: Item, to: str, verb: str, asked: control.Filter | None, limit: int, rate: int) -> control.Progress:
        """Starts a move or a redrive of what is ready now, in all partitions, whoever serves them."""
        if limit < 0 or rate < 0:
            raise Invalid("limit and rate are not negative (0 = none)")
        if asked is not None:
            filters.compile(asked)
        held = await everywhere.describe(self.broker, item)
        job = Job(self._next_job if self.broker.cluster is None else self.broker.ambient.bits(JOB_BITS), total=held.ready)
        self._next_job += 1
        self._jobs[job.id] = job
        while len(self._jobs) > JOBS_KEPT:
            finished = next((j.id for j in self._jobs.values() if j.state != "running"), None)
            if finished is None:
                del self._jobs[job.id]
                raise QueueFull(f"{JOBS_KEPT} transfers are running already; wait for one or cancel it")
            del self._jobs[finished]
        if limit:
            job.total = min(job.total, limit)
        task = self.broker.spawn(self._run(job, item, to, verb == "redriven", asked, limit, rate))
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))
        return job.progress()

    def progress(self, id: int, *, cancel: bool = False) -> control.Progress:
        job = self._jobs.get(id)
        if job is None:
            raise NotFound(f"there is no transfer {id}", hint="transfers are known until the broker restarts; what was begun is finished anyway")
        if cancel and job.state == "running":
            job.state = "cancelled"
        return job.progress()

    async def _run(self, job: Job, item: Item, to: str, redrive: bool, asked: control.Filter | None, limit: int, rate: int) -> None:
        """Partition by partition, a few messages at a time, each time asked of who serves it then."""
        loop = self.broker.loop
        began, budget = loop.time(), job.total
        try:
            for number in range(len(item.partitions)):
                after = end = -1
                while budget > job.done and job.state == "running":
                    count = min(CHUNK, budget - job.done, max(1, rate // 10) if rate else CHUNK)
                    chunk = forwarding.Chunk(
                        name=item.name, partition=number, to=to, redrive=redrive, filter=asked, after=after, end=end, count=count
                    )
                    moved, lost = await self._insist_on(job, item, chunk)
                    if limit:
                        budget -= lost  # they may have been moved, and never more than were asked for are
                    if moved is None:
                        break
                    after, end, job.why = moved.after, moved.end, moved.waits
                    job.done += moved.taken
                    if asked is not None:
                        job.total -= moved.looked_at - moved.taken
                        budget -= moved.looked_at - moved.taken
                    if not moved.more:
                        break
                    if rate:
                        await asyncio.sleep(max(0.0, began + job.done / rate - loop.time()))
            if job.state == "running":
                job.state, job.why = "finished", ""
                job.total = job.done
        except HeadraceError as e:
            job.state, job.why = "failed", f"{e}" + (f"; {e.hint}" if e.hint else "")

    async def _insist_on(self, job: Job, item: Item, chunk: forwarding.Chunk) -> tuple[forwarding.Moved | None, int]:
        """Asks until somebody who serves the partition has answered, or the job is cancelled; and how many an owner took that never said so."""
        attempt = lost = 0
        while job.state == "running":
            try:
                return await forwarding.move(self.broker, item, chunk, CHUNK_MS), lost
            except (Elsewhere, Unavailable, NotConnected, UnknownOutcome) as e:
                if not e.definite:
                    lost += chunk.count
                job.why = f"partition {chunk.partition} cannot be moved now: {e}"
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                attempt += 1
        return None, lost

    async def chunk(self, partition: QueuePartition, asked: forwarding.Chunk) -> forwarding.Moved:
        """Takes the next few ready messages of a partition that is served here, once those taken before are at their targets, and waits for them."""
        compiled = filters.compile(asked.filter) if asked.filter is not None else None
        partition.activate()
        end = asked.end if asked.end >= 0 else partition.high_watermark
        if not await self._arrived(partition):
            key = next((key for key in self._done if key[0] == partition.pid), (partition.pid, 0))
            why = self._stuck.get(key, "their target has not answered yet")
            return forwarding.Moved(looked_at=0, taken=0, after=asked.after, end=end, more=True, waits=why)
        rows = [r for r in partition.machine.peek("ready", asked.after, asked.count) if r[0] < end]
        if not rows:
            return forwarding.Moved(looked_at=0, taken=0, after=asked.after, end=end, more=False)
        targets = await self._targets(partition, [r[0] for r in rows], asked.to, compiled)
        reason = Reason.REDRIVEN if asked.redrive else Reason.MOVED
        taken = 0
        for target, offsets in sorted(targets.items()):
            number = partition.machine.start_transfer(target, reason, _ranges(offsets), self.broker.wall_ms, {})
            self.broker.mark(partition)
            if number:
                self._done[partition.pid, number] = asyncio.Event()
            taken += len(offsets)
        await self._arrived(partition)
        if partition.barred is not None:  # what was not committed of it is ready where it is served now
            raise partition.barred
        return forwarding.Moved(looked_at=len(rows), taken=taken, after=rows[-1][0], end=end, more=True)

    def lost(self, partition: Partition) -> None:
        """It is not served here any more: nobody waits here for what jobs took of it, and what it gave is not tried again."""
        for key in [key for key in self._done if key[0] == partition.pid]:
            self._done.pop(key).set()
        for (source, _), way in self._queued.items():
            if source is partition and not _gives(source):
                way.gone.set()

    async def _arrived(self, partition: QueuePartition) -> bool:
        """Whether all that jobs took of a partition is at its targets, after waiting for a while."""
        try:
            async with asyncio.timeout(ARRIVES_S):
                while (done := next((event for key, event in self._done.items() if key[0] == partition.pid), None)) is not None:
                    await done.wait()
        except TimeoutError:
            return False
        return True

    async def _targets(self, partition: QueuePartition, offsets: list[int], to: str, compiled: filters.Compiled | None) -> dict[str, list[int]]:
        """Where each of those messages goes: to ``to``, or back to the queue named in its origin header."""
        if to and compiled is None:
            return {to: offsets}
        wanted, found = set(offsets), dict[str, list[int]]()
        at, end = offsets[0], offsets[-1] + 1
        while at < end:
            entries = partition.reading.near(at, end) or await partition.store.read(partition.pid, at, limits.READ_CHUNK_BYTES, end)
            if not entries:
                break
            for entry in entries:
                for offset, record, envelope in unpacked(entry, at, end):
                    if offset not in wanted or (compiled is not None and not compiled.match(record.key, record.headers)):
                        continue
                    origin = dict(record.headers).get(ORIGIN) if stamped(envelope.flags) else None
                    target = to or (origin.decode() if origin is not None else "")
                    if target and self.broker.catalogue.find(target) is not None:
                        found.setdefault(target, []).append(offset)
            at = max(at + 1, entries[-1].base_offset + entries[-1].record_count)
        return found


def _gives(source: QueuePartition) -> bool:
    """Whether what it has to give away is this object's to give: after a repair, or where it is served then, another one begins again with it."""
    return source.barred is None and not source.quarantined


def _as_durable(spec: QueueSpec) -> QueueSpec:
    """What takes the dead letters of a queue in a cluster survives what the queue does."""
    return QueueSpec(replication_factor=spec.replication_factor, durability=spec.durability, min_in_sync_replicas=spec.min_in_sync_replicas)


def _ranges(offsets: list[int]) -> list[tuple[int, int]]:
    """Sorted offsets as (first, count)."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and found[-1][0] + found[-1][1] == offset:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((offset, 1))
    return found
