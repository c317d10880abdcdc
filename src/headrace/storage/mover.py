"""Keeps the log short: moves what must outlive it into segments, and has what is dead erased (``sweeping``).

Owns when and what; the bytes are written by ``moving`` on a thread. Everything that changes references runs while
``ground.moving`` is held, one thing at a time.

I1 Order of durability: log synced up to the checkpoint's index, segments and their directory synced, one commit {moved_to, checkpoint, references},
then the log file goes. So at every moment each live entry stands in a place that the small state or the log itself names. I2 Only committed entries
move (with one copy: durable ones), so what was moved is never truncated; others are carried on in the log (``carrying``), or the file that holds
them stays. I3 Nothing is erased before what made it dead is durable. I4 The loop is held for at most one checkpoint, or 0.5 ms."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from headrace.storage import carrying, keys
from headrace.storage.apart import REST_NS, Apart, Gone, numbers_for, worth_it
from headrace.storage.api import Checkpoint
from headrace.storage.ground import Ground, log
from headrace.storage.index import Part
from headrace.storage.intake import Intake
from headrace.storage.keys import FileMeta, Moved, number_key
from headrace.storage.moving import Job, Moves
from headrace.storage.rewriting import Rewrite
from headrace.storage.slices import Slices
from headrace.storage.sweeping import Sweeper, as_covered, writing
from headrace.storage.system import SYSTEM_PID, SystemJournal

ENTRIES_MAX: Final = 250_000
FILES_MAX: Final = 8
"""Every start begins a new log file: nearly empty ones must not pile up."""
PILE_SHARE: Final = 16
"""What piled up in the file that is written is given up from this share of it on, when nobody adds to it."""
COMMIT_PARTITIONS: Final = 128
Puts = dict[bytes, bytes | None]


class Mover:
    """See the module's head."""

    def __init__(
        self,
        ground: Ground,
        system: SystemJournal,
        intake: Intake,
        sweeper: Sweeper,
        durable: Callable[[Part, int], Awaitable[None]],
        flush: Callable[[], None],
        apart: Apart | None = None,
    ) -> None:
        self.passes = 0
        self.moved_bytes = 0
        self._ground = ground
        self._system = system
        self._sweeper = sweeper
        self._durable = durable
        self._flush = flush
        self._appending = (intake, flush, durable)
        self._wanted = asyncio.Event()
        self._seen_seq = 0
        self._forced = False
        self._apart = apart
        self._apart_ns = 0
        """When the process of its own was last asked."""
        storage = ground.config.storage
        self._threshold = min(storage.wal_bytes_max // 4, 4 * storage.wal_file_bytes)

    # ------------------------------------------------------------ when

    def due(self) -> bool:
        """Whether the log is long enough for a pass: in bytes, or in entries, which a start reads one by one."""
        entries = self._ground.file_entries
        return len(entries) > 1 and (self._ground.wal.total_bytes >= self._threshold or sum(entries.values()) >= ENTRIES_MAX)

    def wake(self, *, force: bool = False) -> None:
        """Ends ``wait``; with ``force`` the next round is a pass (there is no room for another log file)."""
        self._forced = self._forced or force
        self._wanted.set()

    async def wait(self, seconds: float) -> None:
        """Until woken, or for that long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()
        self._wanted.clear()

    async def round(self) -> None:
        """A pass if one is due, then what died, then a rewrite if one is worth it."""
        self._sweeper.rounds += 1
        if self.due() or self._forced or len(self._ground.wal.files()) > FILES_MAX:
            self._forced = False
            await self.pass_once()
        elif noted := self._only_noted():
            await self._pass(noted)
        elif self._piled_up():
            self._ground.wal.roll()
        apart = self._apart
        if apart is not None and apart.pid and self._ground.now_ns() - self._apart_ns > REST_NS:
            await self._ground.on(self._ground.io, apart.close)
        await self._forget_deleted()
        await self._sweeper.sweep()
        numbers = self._sweeper.worth_rewriting()
        if numbers:
            await self._sweeper.rewrite(numbers)

    # ------------------------------------------------------------ a pass

    async def pass_once(self, *, everything: bool = False) -> int:
        """Moves the older half of the closed log files (``everything``: all of them); how many files could go."""
        closed = self._ground.wal.files()[:-1]
        return await self._pass(closed[-1 if everything else (len(closed) - 1) // 2].file_id) if closed else 0

    def _only_noted(self) -> int:
        """The newest of the oldest closed files that hold nothing but the system journal, or 0: what is in the small state already is given up at
        once, so that a start does not read it again, flush by flush."""
        noted = 0
        for file in self._ground.wal.files()[:-1]:
            if self._ground.file_pids.get(file.file_id) != {SYSTEM_PID}:
                break
            noted = file.file_id
        return noted

    def _piled_up(self) -> bool:
        """Whether the file that is written holds much, all of the system journal, and nothing was added since the last round: when many queues were
        declared."""
        wal = self._ground.wal
        seen, self._seen_seq = self._seen_seq, wal.next_seq
        last = wal.files()[-1]
        much = last.end >= self._ground.config.storage.wal_file_bytes // PILE_SHARE
        return much and seen == self._seen_seq and self._ground.file_pids.get(last.file_id) == {SYSTEM_PID}

    async def _pass(self, upto: int) -> int:
        """Moves the closed log files up to that one; how many could go."""
        ground = self._ground
        closed = ground.wal.files()[:-1]
        pids: set[int] = set()
        for file in closed:
            if file.file_id <= upto:
                pids |= ground.file_pids.get(file.file_id, set())
        upto = await self._unpinned(pids, upto)
        slices = Slices(self._ground.now_ns)
        wanted: list[tuple[Part, int]] = []
        for pid in sorted(pids):
            part = ground.parts.get(pid)
            if part is not None:
                wanted.append((part, part.rows_up_to_file(upto)))
            if slices.over():
                await slices.pause()
        await self._move(wanted)
        await self._forget_deleted()
        gone = 0
        for file in closed:
            if file.file_id <= upto:
                ground.wal.retire(file.file_id)
                ground.file_pids.pop(file.file_id, None)
                ground.file_entries.pop(file.file_id, None)
                gone += 1
        self.passes += 1
        return gone

    async def _unpinned(self, pids: Iterable[int], upto: int) -> int:
        """The newest file up to ``upto`` before which nothing lies that is not committed yet and cannot be carried on."""
        replication = self._ground.replication
        if replication is None:
            return upto
        for pid in sorted(pids):
            part, committed = self._ground.parts.get(pid), replication.committed_index(pid)
            if part is None or committed is None:
                continue
            file_id = carrying.first_file(part, committed)
            if file_id is not None and file_id <= upto and await carrying.carry(self._ground, part, committed, *self._appending):
                file_id = carrying.first_file(part, committed)
            if file_id is not None:
                upto = min(upto, file_id - 1)
        return upto

    async def _forget_deleted(self) -> None:
        """Gives up the marks of deleted partitions of which no log file that a recovery may read holds anything. That a file was retired is not
        enough: it counts until a durable flush says so. What was appended before the deletion may have been flushed after it, to a newer file."""
        ground = self._ground
        if not ground.deleted:
            return
        for file_id, pids in ground.file_pids.items():
            for pid in [pid for pid in ground.deleted if pid in pids]:
                ground.deleted[pid] = max(ground.deleted[pid], file_id)
        wal = ground.wal
        gone = [pid for pid, file_id in ground.deleted.items() if file_id < wal.released_id and not wal.holds(pid)]
        if gone:
            await ground.writer.submit({number_key(keys.DELETED, pid): None for pid in gone})
            for pid in gone:
                del ground.deleted[pid]

    async def evacuate(self, part: Part, *, last_index: int | None = None) -> None:
        """Moves everything durable of one partition out of the log (at most up to ``last_index``)."""
        rows = part.rows
        committed = self._ground.replication.committed_index(part.pid) if self._ground.replication is not None else None
        if committed is not None:
            last_index = committed if last_index is None else min(last_index, committed)
        if last_index is not None:
            rows = max(0, min(rows, last_index + 1 - part.first_index))
        await self._move([(part, rows)], least_index=last_index or 0)

    async def _move(self, wanted: Sequence[tuple[Part, int]], *, least_index: int = 0) -> None:
        ground = self._ground
        taken = await self._checkpoints(
            [(part, rows) for part, rows in wanted if rows > 0 or least_index > part.moved.moved_to or part.promised > part.moved.promised]
        )
        if not taken:
            return
        jobs: list[Job] = []
        slices = Slices(self._ground.now_ns)
        for part, rows, checkpoint in taken:
            jobs.append(self._job(part, rows, checkpoint, least_index))
            if slices.over():
                await slices.pause()
        moves = await ground.on(ground.io, lambda: self._written(jobs))
        self.moved_bytes += moves.moved_bytes
        fresh = {part.pid: checkpoint for part, _, checkpoint in taken if checkpoint is not None}
        for at in range(0, len(jobs), COMMIT_PARTITIONS):
            await self._commit(jobs[at : at + COMMIT_PARTITIONS], fresh, moves)

    def _written(self, jobs: Sequence[Job]) -> Moves:
        """On the storage thread: in a process of its own if it takes long and can be."""
        ground, apart = self._ground, self._apart
        if apart is not None and worth_it(jobs):
            self._apart_ns = ground.now_ns()
            storage = ground.config.storage
            numbers = numbers_for(jobs, storage.segment_file_bytes)
            try:
                return apart.move(
                    jobs, ground.wal_directory, ground.segment_directory, ground.take_numbers(numbers), numbers, storage.segment_own_bytes_min,
                    storage.segment_file_bytes, ground.wall_ms(),
                )  # fmt: skip
            except Gone as e:
                log.warning("the mover's process failed, the broker does its work: %s", e)
        return writing(ground).move(ground.wal, jobs)

    async def _checkpoints(self, wanted: Sequence[tuple[Part, int]]) -> list[tuple[Part, int, Checkpoint | None]]:
        """Asks for the state of each partition, in slices, and waits until it is durable."""
        ground = self._ground
        taken: list[tuple[Part, int, Checkpoint | None]] = []
        slices = Slices(self._ground.now_ns)
        for part, rows in wanted:
            checkpoint: Checkpoint | None = None
            if part.pid == SYSTEM_PID:
                checkpoint = await self._system.checkpoint()
            elif part.pid not in ground.damaged:
                checkpoint = ground.owner.checkpoint(part.pid)
            if checkpoint is not None and checkpoint.index < part.checkpoint_index:
                checkpoint = None
            taken.append((part, rows, checkpoint))
            if slices.over():
                self._flush()
                await slices.pause()
        self._flush()
        for part, _, checkpoint in taken:
            if checkpoint is not None and part.durable_index < checkpoint.index:
                await self._durable(part, checkpoint.index)
        return taken

    def _job(self, part: Part, rows: int, checkpoint: Checkpoint | None, least_index: int) -> Job:
        copied = part.copy(rows)
        refs = part.moved.refs
        last_index = max(part.first_index + rows - 1, part.moved.moved_to, least_index)
        end_offset = part.end_of(rows)
        if end_offset < 0:
            end_offset = refs[-1].end_offset if refs else 0
        if checkpoint is not None:
            after, floor, packed = checkpoint.index, checkpoint.floor_offset, keys.pack_checkpoint(checkpoint)
        else:
            after, floor = part.checkpoint_index, part.checkpoint_floor
            raw = self._ground.state.get(number_key(keys.CHECKPOINT, part.pid)) if after and part.pid != SYSTEM_PID else None
            packed = raw or b""
        job = Job(part.pid, copied, after=after, floor=floor, last_index=last_index, end_offset=end_offset, checkpoint=packed)
        if last_index == part.moved.moved_to:
            job.base_epoch = part.moved.base_epoch
        elif self._ground.replication is not None:
            job.base_epoch = self._ground.replication.epoch_at(part.pid, last_index)
        return job

    async def _commit(self, jobs: Sequence[Job], fresh: dict[int, Checkpoint], moves: Moves) -> None:
        """One transaction for some of a pass's partitions; each is whole in one, and files count as live what was committed of them."""
        ground = self._ground
        parts = [ground.parts[job.pid] for job in jobs]
        puts, moved, after = await ground.on(ground.io, lambda: self._plan(jobs, parts, fresh, moves))
        for part in parts:
            checkpoint = fresh.get(part.pid)
            if checkpoint is not None and checkpoint.index < part.checkpoint_index:  # a newer one was saved meanwhile
                del fresh[part.pid]
                del puts[number_key(keys.CHECKPOINT, part.pid)]
                puts.pop(number_key(keys.WAKE, part.pid), None)
        # If whether this is committed stays unknown, the new files stay: the next start finds out which of them count.
        await ground.writer.submit(puts)
        ground.apply_files(after)
        slices = Slices(self._ground.now_ns)
        for job, part, now in zip(jobs, parts, moved, strict=True):
            checkpoint = fresh.get(part.pid)
            if checkpoint is not None and checkpoint.index >= part.checkpoint_index:
                self._now_current(part, checkpoint)
            part.moved = now
            if ground.replication is not None:
                ground.replication.moved(part.pid, now.moved_to)
            part.drop_rows(job.rows)
            if not part.rows:
                part.first_index = max(part.first_index, job.last_index + 1)
            bad = moves.bad.get(job.pid)
            if bad:
                ground.isolate(job.pid, f"{len(bad)} entries in the log were damaged, the first at index {bad[0]}", bad[0] - 1, part.floor, len(bad))
            if job.pid not in fresh:
                ground.forget(part)
            if slices.over():
                await slices.pause()

    def _plan(
        self, jobs: Sequence[Job], parts: Sequence[Part], fresh: dict[int, Checkpoint], moves: Moves
    ) -> tuple[Puts, list[Moved], dict[int, FileMeta | None]]:
        """The puts of a transaction; on the storage thread, as it may take milliseconds. Reads only what changes under ``moving``."""
        puts: Puts = {}
        change: dict[int, int] = {}
        made: dict[int, FileMeta] = {}
        moved: list[Moved] = []
        for job, part in zip(jobs, parts, strict=True):
            old = part.moved
            file, nbytes = moves.checkpoints.get(job.pid, (0, 0))
            new = moves.refs.get(job.pid, ())
            for number, more in [*((ref.file, ref.nbytes) for ref in new), (file, nbytes)]:
                if number:
                    known = made.get(number) or self._ground.metas.get(number) or FileMeta(moves.files[number].nbytes, 0, moves.files[number].own_pid)
                    made[number] = FileMeta(known.nbytes, known.live_bytes + more, known.own_pid)
            if file and old.checkpoint_file:
                change[old.checkpoint_file] = change.get(old.checkpoint_file, 0) - old.checkpoint_bytes
            covered = job.after if file else old.copy_index
            refs = (*(as_covered(ref) if ref.tail_index <= covered else ref for ref in old.refs), *new)
            if not file:
                file, nbytes = old.checkpoint_file, old.checkpoint_bytes
            now = Moved(job.last_index, part.last_epoch, part.promised, refs, file, nbytes, covered, job.base_epoch, *part.obeyed)
            moved.append(now)
            puts[number_key(keys.MOVED, job.pid)] = keys.pack(now)
            checkpoint = fresh.get(job.pid)
            if checkpoint is not None:
                puts |= _checkpoint_puts(part, checkpoint)
        file_puts, after = self._ground.files_changed(change, made)
        return puts | file_puts, moved, after

    # ------------------------------------------------------------ checkpoints

    def checkpoint_puts(self, part: Part, checkpoint: Checkpoint) -> Puts:
        """What makes a checkpoint, whose index is durable, the partition's current one; its object is changed at once."""
        puts = _checkpoint_puts(part, checkpoint)
        self._now_current(part, checkpoint)
        return puts

    def _now_current(self, part: Part, checkpoint: Checkpoint) -> None:
        if checkpoint.wake_at_ms:
            self._ground.wakes[part.pid] = checkpoint.wake_at_ms
        else:
            self._ground.wakes.pop(part.pid, None)
        part.checkpoint_epoch, part.checkpoint_index = checkpoint.epoch, checkpoint.index
        part.checkpoint_floor, part.checkpoint_next, part.wake_at_ms = checkpoint.floor_offset, checkpoint.next_offset, checkpoint.wake_at_ms
        if checkpoint.floor_offset > part.floor:
            part.set_floor(checkpoint.floor_offset)

    async def checkpoint_all(self) -> None:
        """Before a clean stop: so that the next start replays nothing."""
        ground = self._ground
        wanted = [(p, 0) for p in ground.parts.values() if p.pid != SYSTEM_PID and p.last_index > p.checkpoint_index and p.pid not in ground.damaged]
        puts: Puts = {}
        for part, _, checkpoint in await self._checkpoints(wanted):
            if checkpoint is not None:
                puts |= self.checkpoint_puts(part, checkpoint)
        if puts:
            await ground.writer.submit(puts)

    async def compact(self, part: Part, keep: Callable[[bytes, int], bytes | None]) -> None:
        """Rewrites what is sealed of one partition by ``keep``; everything durable is sealed first."""
        await self.evacuate(part)
        refs = [ref for ref in part.moved.refs if ref.tail_index <= part.moved.copy_index]
        await self._sweeper.replace([Rewrite(part, refs, part.settled_floor, keep=keep)], {}, own_pid=part.pid)
        self._ground.cache.before_index(part.tail, part.moved.moved_to)


def _checkpoint_puts(part: Part, checkpoint: Checkpoint) -> Puts:
    stored = checkpoint._replace(data=b"") if part.pid == SYSTEM_PID else checkpoint
    wake = number_key(keys.WAKE, part.pid)
    puts: Puts = {number_key(keys.CHECKPOINT, part.pid): keys.pack_checkpoint(stored)}
    if checkpoint.wake_at_ms or part.wake_at_ms:
        puts[wake] = checkpoint.wake_at_ms.to_bytes(8, "big") if checkpoint.wake_at_ms else None
    return puts
