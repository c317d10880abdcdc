"""The store on disk: one facade over log, segments, small state and cache.

Owns the order of things on the loop: what was appended, what became durable, who waits for it. Does not know what entries mean (but where records
are). Everything synchronous is cheap; disks are touched on lanes, but for the first read of a partition (``replay``) and one small read of
``offset_for_time``.

I1 ``flushed`` is told only what the log has made durable. I2 A checkpoint reaches the small state only once its index is durable. I3 Data below a
floor is erased only once what moved the floor is durable. I4 After a failed write nothing is taken any more.

    data directory: FORMAT, LOCK, wal/ (log), segments/ (what outlives it), state/ (small state), staged/ (coming in from another
    broker), set-aside/ (kept for people to look at), ballast
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from headrace.model.config import Config, LogWriting
from headrace.model.errors import Damaged, DiskFull, StorageError, SyncFailed
from headrace.storage import keys
from headrace.storage.apart import Apart
from headrace.storage.api import Checkpoint, Damage, Flushed, Owner, PartitionLog, Replication, StoredEntry
from headrace.storage.files import Files, Handle, OsFiles
from headrace.storage.flusher import Lane, ThreadLane
from headrace.storage.ground import Ground, log, shown
from headrace.storage.index import Part
from headrace.storage.installing import Installs
from headrace.storage.intake import Intake
from headrace.storage.keys import number_key
from headrace.storage.logwrites import LogWrites, log_writes
from headrace.storage.mover import Mover
from headrace.storage.opening import open_ground
from headrace.storage.quarantine import Repairs
from headrace.storage.reads import Reader
from headrace.storage.replicated import OnRows, ReplicatedLog
from headrace.storage.retention import retained_from
from headrace.storage.space import Space
from headrace.storage.state import LmdbStateStore, StateStore
from headrace.storage.sweeping import Sweeper
from headrace.storage.system import SYSTEM_PID, SystemJournal
from headrace.storage.wal import FlushResult, Wal
from headrace.storage.walfiles import Later, spares_of
from headrace.wire.journal import Kind

MAINTENANCE_S: Final = 1.0
RECOVERED_ROUNDS: Final = 30
"""After so many rounds what recovery kept for first loads is given up."""
_TRUNCATE: Final = int(Kind.TRUNCATE)
_LATENCIES: Final = 1024
INLINE_BYTES_MAX: Final = 4096
"""A flush of at most so much is written on the loop itself while the disk is quick (``Wal``)."""
_END: Final = (1 << 63) - 1


class DiskStore:
    """Implements ``api.Store``. Files, small state, lanes, clocks and numbers can be given, so that a simulator is the machine."""

    def __init__(
        self,
        data_dir: "os.PathLike[str] | str",
        config: Config,
        loop: asyncio.AbstractEventLoop,
        *,
        files: Files | None = None,
        make_state: Callable[[str], StateStore] | None = None,
        make_lane: Callable[[str], Lane] | None = None,
        later: Later | None = None,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        now_ns: Callable[[], int] = time.perf_counter_ns,
        random_u64: Callable[[], int] = lambda: int.from_bytes(os.urandom(8), "big"),
        maintain: bool = True,
    ) -> None:
        """``maintain=False``: moving, retention and space are looked at only when ``maintenance`` is called."""
        self._config = config
        self._loop = loop
        self._stepped = make_lane is not None
        self._make_lane = make_lane or (lambda name: ThreadLane(loop, name=f"headrace-{name}"))
        self._make_state = make_state or (lambda path: LmdbStateStore(path, map_bytes=min(config.storage.state_map_bytes, 1 << 34)))
        self._later: Later = later or loop.call_later
        self._random_u64 = random_u64
        self._maintain = maintain
        self._lanes: list[Lane] = []
        self._writes: LogWrites | None = None
        self._apart: Apart | None = None
        io, reader = self._lane("segments"), self._lane("reader")
        self._ground = Ground(os.fspath(data_dir), config, loop, files or OsFiles(), io=io, reader=reader, wall_ms=wall_ms, now_ns=now_ns)
        self._reader = Reader(self._ground)
        self._waiting: list[tuple[Part, int, asyncio.Future[None]]] = []
        self._marked: list[tuple[int, asyncio.Future[None]]] = []
        self._latencies: deque[int] = deque(maxlen=_LATENCIES)
        self._on_rows: OnRows | None = None
        self._rounds = 0
        self._pressure = False
        self._opened = self._closed = False
        self._lock: Handle | None = None
        self._task: asyncio.Task[None] | None = None
        self._floors: dict[int, tuple[int, int]] = {}
        """Partitions whose floor moved: what it was at the last look, and the index that must be durable before it counts."""

    def _lane(self, name: str) -> Lane:
        lane = self._make_lane(name)
        self._lanes.append(lane)
        return lane

    def _log_writes(self) -> LogWrites:
        how: LogWriting = "thread" if self._stepped else self._config.storage.log_writes
        self._writes = log_writes(self._loop, self._ground.files, self._lane("flusher"), how)
        return self._writes

    # ------------------------------------------------------------ life

    async def open(self, owner: Owner) -> None:
        """Locks the directory and recovers. ``DataDirLocked``, ``StorageError`` (a format of the future, a failed disk), ``Damaged`` (by policy)."""
        ground = self._ground
        try:
            self._lock = await ground.on(ground.io, partial(_lock, ground.files, ground.root))
            if not self._stepped and self._config.storage.mover_process and len(os.sched_getaffinity(0)) > 1:
                self._apart = Apart(self._lock)
            found = await open_ground(ground, self._make_state, self._lane("state"))
            ground.wal = Wal(
                ground.files,
                ground.wal_directory,
                after=found.after,
                on_flushed=self._flushed,
                writes=self._log_writes(),
                background=self._lane("files"),
                later=self._later,
                random_u64=self._random_u64,
                wall_ms=ground.wall_ms,
                now_ns=ground.now_ns,
                on_full=self._full,
                file_bytes=self._config.storage.wal_file_bytes,
                flush_bytes_max=self._config.storage.flush_bytes_max,
                spares_max=spares_of(self._config.storage.wal_bytes_max, self._config.storage.wal_file_bytes),
                inline_bytes_max=0 if self._stepped else INLINE_BYTES_MAX,
            )
            ground.wal.start()
            self._intake = Intake(ground.wal.gathering, ground.parts, ground.cache, ground.part)
        except OSError as e:
            await self._release()
            raise StorageError(f"the data directory {ground.root} cannot be opened: {e}", hint="check its disk and its permissions") from e
        except BaseException:
            await self._release()
            raise
        ground.owner = owner
        ground.writer.on_failed = self._state_failed
        self._opened = True
        self._system = SystemJournal(ground, self)
        self._sweeper = Sweeper(ground, self.durable, self.flush)
        self._mover = Mover(ground, self._system, self._intake, self._sweeper, self.durable, self.flush, self._apart)
        self._repairs = Repairs(ground, self._mover, self._sweeper, self._truncate)
        self._space = Space(ground, owner)
        await self._space.begin()
        deleted = await self._system.begin(self._reader)
        if deleted:
            await self.delete(deleted)
        if ground.damaged and self._config.recovery.on_mismatch == "refuse":
            text = "; ".join(f"partition {pid}: {q.why}" for pid, q in sorted(ground.damaged.items())[:20])
            await self._abandon()
            raise Damaged(f"{len(ground.damaged)} partitions are damaged: {text}", hint="repair them, or set recovery.on_mismatch to quarantine")
        if self._config.recovery.on_mismatch == "truncate" and ground.replication is None:  # else it is begun anew, by its driver
            for pid in sorted(ground.damaged):
                done = await self.repair(pid, dry_run=False)
                log.warning("partition %d was cut to its last valid point, index %d: %s", pid, done.last_valid_index, done.why)
        if self._maintain:
            self._task = self._loop.create_task(self._maintenance())

    async def close(self) -> None:
        """Cleanly: checkpoints what is loaded, flushes, ends with a closing flush. ``SyncFailed`` if something could not be made durable."""
        if self._closed or not self._opened:
            self._closed = True
            await self._release()
            return
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        ground = self._ground
        error: BaseException | None = ground.wal.error
        if error is None:
            try:
                async with ground.moving:
                    await self._mover.checkpoint_all()
            except StorageError as e:
                error = e
        try:
            if error is None:
                await ground.wal.close()
            else:
                stopped: asyncio.Future[None] = self._loop.create_future()
                ground.wal.stop(partial(stopped.set_result, None))
                await stopped
        finally:
            await ground.writer.drained()
            await self._release()
        if error is not None:
            raise error

    async def _abandon(self) -> None:
        stopped: asyncio.Future[None] = self._loop.create_future()
        self._ground.wal.abandon(lambda: stopped.set_result(None))
        await stopped
        self._closed = True
        await self._release()

    async def _release(self) -> None:
        ground = self._ground
        ground.segments.close()
        if self._writes is not None:
            self._writes.close()
        if self._apart is not None and self._lanes:
            await ground.on(ground.io, self._apart.close)
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()
        if hasattr(ground, "state"):
            ground.state.close()
        if self._lock is not None:
            ground.files.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------ appending

    @property
    def state(self) -> StateStore:
        return self._ground.state

    async def commit_state(self, puts: Mapping[bytes, bytes | None]) -> None:
        await self._system.commit(puts)

    def append(
        self, pid: int, epoch: int, index: int, kind: int, payload: Sequence[bytes], nbytes: int, base_offset: int = -1, record_count: int = 0
    ) -> None:
        self._intake.append(pid, epoch, index, kind, payload, nbytes, base_offset, record_count)

    @property
    def intake(self) -> Intake:
        """What takes entries, for a caller that has one for each of many partitions."""
        return self._intake

    def reserve(self, replication: Replication) -> None:
        """Before ``open``: from its first moment nothing leaves the log that ``replication`` does not know as committed."""
        self._ground.replication = replication

    def replicated(self, replication: Replication, on_rows: OnRows) -> ReplicatedLog:
        """The log as replicas use it. ``on_rows`` is told what each flush has made durable, marks included, in the order of the log."""
        self._ground.replication, self._on_rows = replication, on_rows
        return ReplicatedLog(self._ground, self._intake, self._reader, self.durable, Installs(self._ground, self.durable, self._truncate))

    def flush(self) -> None:
        self._ground.wal.flush()

    @property
    def pending_bytes(self) -> int:
        return self._ground.wal.pending_bytes

    def _flushed(self, result: FlushResult) -> None:
        ground = self._ground
        if result.error is not None:
            self._failed(result)
            return
        file_id = result.file_id
        pids = ground.file_pids.get(file_id)
        if pids is None:
            pids = ground.file_pids[file_id] = set()
        done = self._intake.landed(result.slots, file_id, pids)
        self._latencies.append(result.took_ns)
        if self._on_rows is not None:
            self._on_rows(result.rows)
        ground.file_entries[file_id] = ground.file_entries.get(file_id, 0) + result.entry_count
        if self._waiting or self._marked:
            self._wake(result)
        self._look_at_size()
        if done:
            ground.owner.flushed(Flushed(done, None, True))

    def _state_failed(self, error: BaseException) -> None:
        """What the small state holds is not known any more: nothing can be promised until a restart has read it."""
        if self._ground.wal.error is None and not self._closed:
            self._ground.owner.flushed(Flushed((), error, False))

    def _wake(self, result: FlushResult) -> None:
        waiting = self._waiting
        self._waiting = [w for w in waiting if w[0].durable_index < w[1] and not w[2].done()]
        for part, index, future in waiting:
            if part.durable_index >= index and not future.done():
                future.set_result(None)
        for row in result.rows:
            if row[4]:
                for pid, future in self._marked:
                    if pid == row[0] and not future.done():
                        future.set_result(None)
        self._marked = [m for m in self._marked if not m[1].done()]

    def _failed(self, result: FlushResult) -> None:
        assert result.error is not None
        for _, _, future in self._waiting:
            if not future.done():
                future.set_exception(result.error)
        for _, future in self._marked:
            if not future.done():
                future.set_exception(result.error)
        self._waiting, self._marked = [], []
        self._ground.owner.flushed(Flushed([(row[0], row[2]) for row in result.rows if row[0] != SYSTEM_PID], result.error, False))

    def _look_at_size(self) -> None:
        if not self._pressure and self._ground.wal.total_bytes >= self._config.storage.wal_bytes_max:
            self._pressure = True
            self._ground.owner.pressure(True)
        elif self._pressure:
            self._look_at_room()
        if self._mover.due() and self._maintain:
            self._mover.wake()

    def _look_at_room(self) -> None:
        """Publishers may go on once an eighth of the log is free. Held back, they cause no flush, so a round of the mover asks too."""
        bound = self._config.storage.wal_bytes_max
        if self._pressure and self._ground.wal.total_bytes < bound - bound // 8:
            self._pressure = False
            self._ground.owner.pressure(False)

    def _full(self, full: bool) -> None:
        self._space.ran_full(full)
        if full:
            self._mover.wake(force=True)

    async def durable(self, part: Part, index: int) -> None:
        """Returns once the entry is durable; ``SyncFailed``."""
        if part.durable_index >= index:
            return
        if self._ground.wal.error is not None:
            raise self._ground.wal.error
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((part, index, future))
        self.flush()
        await future

    async def _truncate(self, part: Part, index: int) -> None:
        """Durably discards a partition's entries in the log from ``index`` on."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._marked.append((part.pid, future))
        payload = index.to_bytes(8, "big") + part.last_epoch.to_bytes(4, "big")
        self.append(part.pid, part.last_epoch, index, _TRUNCATE, (payload,), len(payload))
        self.flush()
        await future

    # ------------------------------------------------------------ reading

    def partitions(self) -> Sequence[int]:
        ground = self._ground
        found = {p.pid for p in ground.parts.values() if p.last_index > p.checkpoint_index and (p.rows or p.tail_index > p.checkpoint_index)}
        found.update(ground.wakes)
        found.discard(SYSTEM_PID)
        return sorted(found)

    def busy(self) -> Sequence[int]:
        """Partitions of which the log has something that was not moved, with timers or with unfinished work."""
        held = {p.pid for p in self._ground.parts.values() if p.last_index > p.moved.moved_to}
        held.discard(SYSTEM_PID)
        return sorted(held.union(self.partitions()))

    def damaged(self) -> dict[int, Damage]:
        return {pid: shown(q) for pid, q in self._ground.damaged.items()}

    def replay(self, pid: int) -> PartitionLog:
        """Raises ``Damaged`` (the partition is isolated then)."""
        ground = self._ground
        part = ground.part(pid)
        if pid in ground.damaged:
            raise Damaged(f"partition {pid} is quarantined: {ground.damaged[pid].why}")
        try:
            raw = ground.state.get(number_key(keys.CHECKPOINT, pid))
            checkpoint = keys.unpack_checkpoint(raw) if raw is not None else None
        except Damaged as e:
            ground.isolate(pid, str(e), part.moved.moved_to, part.next_offset, -1)
            raise
        entries = self._reader.entries_after(part, checkpoint.index if checkpoint is not None else 0)
        return PartitionLog(checkpoint, part.last_epoch, part.last_index, part.next_offset, entries)

    def cached(self, pid: int, offset: int, bytes_max: int, end_offset: int = _END) -> list[StoredEntry] | None:
        part = self._ground.parts.get(pid)
        if part is None:
            return None
        if offset >= part.next_offset:
            return []
        return part.tail.find(offset, bytes_max, end_offset)

    async def read(self, pid: int, offset: int, bytes_max: int, end_offset: int = _END) -> list[StoredEntry]:
        return await self._reader.read(pid, offset, bytes_max, end_offset)

    def offset_for_time(self, pid: int, wall_ms: int) -> int:
        return self._reader.offset_for_time(pid, wall_ms)

    def first_offset(self, pid: int) -> int:
        return self._ground.part(pid).first_offset()

    def log_bytes(self, pid: int) -> int:
        return self._ground.glance(pid).stored_bytes()

    # ------------------------------------------------------------ dropping

    def set_floor(self, pid: int, offset: int) -> None:
        part = self._ground.part(pid)
        if offset > part.floor:
            part.set_floor(offset)
            self._ground.cache.below(part.tail, offset)
            if part.moved.refs:
                self._sweeper.floor_moved(part)

    def retain(self, pid: int, *, wall_ms: int, age_ms: int, bytes_max: int, records_max: int) -> int:
        part = self._ground.part(pid)
        start = retained_from(part, wall_ms=wall_ms, age_ms=age_ms, bytes_max=bytes_max, records_max=records_max)
        self.set_floor(pid, start)
        return part.first_offset()

    async def compact(self, pid: int, keep: Callable[[bytes, int], bytes | None]) -> None:
        """Everything durable is moved out of the log first. Entries keep their index and offsets; one that is dropped leaves a gap in both."""
        async with self._ground.moving:
            await self._mover.compact(self._ground.part(pid), keep)

    async def save_checkpoint(self, pid: int, checkpoint: Checkpoint) -> None:
        part = self._ground.part(pid)
        await self.durable(part, checkpoint.index)
        if checkpoint.index < part.checkpoint_index or pid in self._ground.deleted:
            return
        puts = self._mover.checkpoint_puts(part, checkpoint)
        await self._ground.writer.submit(puts)

    async def delete(self, pids: Sequence[int]) -> None:
        async with self._ground.moving:
            marks = {number_key(keys.DELETED, pid): b"" for pid in pids}
            self._system.note(marks)
            try:
                await self._sweeper.delete(pids)
            except DiskFull:
                await self._system.undo(marks)
                raise

    async def repair(self, pid: int, *, dry_run: bool) -> Damage:
        async with self._ground.moving:
            return await self._repairs.repair(pid, dry_run=dry_run)

    # ------------------------------------------------------------ housekeeping

    async def _maintenance(self) -> None:
        """Moves when the log has grown, looks at floors and space every second."""
        while True:
            await self._mover.wait(MAINTENANCE_S)
            if self._closed:
                return  # Python 3.11 loses a cancellation that meets the end of what ``wait_for`` waits for
            try:
                await self.maintenance()
            except SyncFailed:  # the owner was told
                return
            except StorageError as e:
                if isinstance(e, DiskFull):
                    self._space.note_full()
                log.warning("moving data out of the log will be tried again: %s", e)
                await asyncio.sleep(MAINTENANCE_S)
            except OSError as e:
                log.warning("moving data out of the log failed and will be tried again: %s", e)
                self._space.note_error(e)
                await asyncio.sleep(MAINTENANCE_S)

    async def maintenance(self) -> None:
        """One round: space, floors, a pass of the mover if one is due, a rewrite if one is worth it."""
        self._rounds += 1
        if self._rounds == RECOVERED_ROUNDS:
            self._ground.recovered.clear()
            if self._ground.replication is None:  # else a replica may be opened later, when the coordinator is reached
                self._ground.epochs.clear()
        await self._space.look()
        async with self._ground.moving:
            await self._mover.round()
        self._look_at_room()

    def stats(self) -> dict[str, float]:
        ground = self._ground
        took = sorted(self._latencies)
        wal = ground.wal
        return {
            "wal_bytes": float(wal.total_bytes),
            "wal_files": float(len(wal.files())),
            "pending_bytes": float(wal.pending_bytes),
            "flushes": float(wal.flushes),
            "written_bytes": float(wal.written_bytes),
            "flush_p50_us": took[len(took) // 2] / 1000 if took else 0.0,
            "flush_p99_us": took[min(len(took) - 1, len(took) * 99 // 100)] / 1000 if took else 0.0,
            "segment_bytes": float(sum(m.nbytes for m in ground.metas.values())),
            "segment_live_bytes": float(sum(m.live_bytes for m in ground.metas.values())),
            "segment_files": float(len(ground.metas)),
            "cache_bytes": float(ground.cache.nbytes),
            "disk_free_bytes": float(self._space.free_bytes),
            "moved_bytes": float(self._mover.moved_bytes),
            "move_passes": float(self._mover.passes),
            "partitions_in_memory": float(len(ground.parts)),
        }


def _lock(files: Files, root: str) -> Handle:
    files.make_dir(root)
    return files.lock(f"{root}/LOCK")
