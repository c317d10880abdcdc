"""A drawn workload on a real disk store whose every disk operation is recorded, with the truth of what it appended and was promised.

Owns the choice of what is done (appends of all kinds, flushes, floors, checkpoints, passes of the mover, rewrites, compaction, retention, deletions,
repairs, small state) and its marks between the disk's operations. Does not crash anything: ``sim.images`` does, afterwards.

I1 Everything comes from the seed. I2 A mark that raises what must be there is made when the store said so, not before. I3 The store is used as a
broker uses it: nothing is appended to a partition that is isolated or being deleted, a state is loaded before it is appended to.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec
from crc32c import crc32c

from headrace.model.config import Config, Recovery, Storage
from headrace.sim.chance import Chance
from headrace.sim.disk import Disk
from headrace.sim.journals import Journal, Mark, data_of
from headrace.sim.loop import Machine, SimLoop
from headrace.sim.recording import RecordedLane, Recorder
from headrace.storage.api import Checkpoint, Flushed, StoredEntry
from headrace.storage.flusher import Lane
from headrace.storage.index import POSITION_BITS, POSITION_MASK
from headrace.storage.store import DiskStore
from headrace.storage.walfiles import name_of
from headrace.wire.entry import RUN
from headrace.wire.journal import Action, CursorEntry, Kind, Reason, pack_cursors, pack_leases, pack_records_head, pack_settlements

ROOT: Final = "/data"
KIB: Final = 1024
PARTITIONS: Final = 7
_encode = msgspec.msgpack.Encoder().encode


def small_config(chance: Chance) -> Config:
    """Limits, far below what a configuration file may say, at which a short run rolls log files over, makes segments and drops both."""
    storage = Storage(
        wal_file_bytes=chance.pick([(3.0, 32 * KIB), (1.0, 48 * KIB)]),
        wal_bytes_max=chance.pick([(2.0, 128 * KIB), (1.0, 192 * KIB)]),
        flush_bytes_max=chance.pick([(1.0, 4 * KIB), (2.0, 64 * KIB)]),
        tail_cache_bytes=chance.pick([(1.0, KIB), (1.0, 16 * KIB), (1.0, 1024 * KIB)]),
        segment_own_bytes_min=chance.pick([(2.0, 4 * KIB), (1.0, 16 * KIB), (1.0, 256 * KIB)]),
        segment_file_bytes=chance.pick([(1.0, 6 * KIB), (1.0, 64 * KIB)]),
        disk_free_bytes_min=0,
        ballast_bytes=chance.pick([(3.0, 0), (1.0, 4 * KIB)]),
    )
    return Config(storage=storage, recovery=Recovery(on_mismatch="quarantine"))


class MakeLane(Protocol):
    def __call__(self, recorder: Recorder[Mark], loop: SimLoop, machine: Machine, name: str, delay_s: Callable[[], float]) -> Lane: ...


def open_store(
    recorder: Recorder[Mark], loop: SimLoop, machine: Machine, config: Config, chance: Chance, *, make_lane: MakeLane = RecordedLane,
    maintain: bool = False,
) -> DiskStore:
    """A store on the recorder's disk, not open yet."""

    def lane(name: str) -> Lane:
        low, high = (0.0001, 0.002) if name == "flusher" else (0.0001, 0.004)
        return make_lane(recorder, loop, machine, name, lambda: chance.between(low, high))

    return DiskStore(
        ROOT, config, loop, files=recorder.disk, make_state=recorder.make_state, make_lane=lane, later=loop.call_later,
        wall_ms=lambda: machine.wall_ns() // 1_000_000, now_ns=lambda: int(machine.monotonic() * 1e9), random_u64=lambda: machine.bits(64),
        maintain=maintain,
    )  # fmt: skip


class Work:
    """See the module's head. It is the store's owner. ``recorder`` has the operations and marks once ``run`` has ended."""

    def __init__(self, seed: int, *, disk: Disk | None = None, make_lane: MakeLane = RecordedLane) -> None:
        self.chance = chance = Chance(seed, "images")
        self.recorder: Recorder[Mark] = Recorder(disk or Disk())
        self.journals: dict[int, Journal] = {}
        self.begun: dict[int, Journal] = {}
        """The same as they began: one that a repair cut goes on as another."""
        self.config = small_config(chance.fork("config"))
        self.problems: list[str] = []
        self._mark = self.recorder.mark
        self._loop = SimLoop(chance.fork("loop"), rows_max=0)  # type: ignore[abstract]  # what it leaves out is not for a simulator
        self._machine = Machine(self._loop, "store", chance.fork("machine"))
        self._store = open_store(
            self.recorder, self._loop, self._machine, self.config, chance.fork("speeds"), make_lane=make_lane, maintain=chance.happens(0.3)
        )
        self._draw = chance.fork("work")
        self._sizes = self._draw.pick([(1.0, (40, 400)), (2.0, (40, 3000)), (1.0, (1000, 6000))])
        self._compacts = self._draw.happens(0.5)
        self._deletes = self._draw.happens(0.6)
        self._repairs = self._draw.happens(0.4)
        self._loaded: dict[int, bool] = {}
        self._busy: dict[int, str] = {}
        """Partitions that something long is done to."""
        self._gone: dict[int, bool] = {}
        self._durable: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self._retained: dict[int, int] = {}
        self._puts: dict[bytes, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._held = False

    def run(self) -> None:
        loop = self._loop
        try:
            loop.run_until_complete(loop.spawn(self._machine, self._run()))
        finally:
            self.problems += [f"{e.get('message')}: {e.get('exception')!r}" for e in loop.errors]
            self._machine.kill()
            loop.close()

    async def _run(self) -> None:
        draw = self._draw
        await self._store.open(self)
        for _ in range(draw.randint(30, 110)):
            await self._step()
            self._tasks = [task for task in self._tasks if not task.done()]
        if draw.happens(0.5):
            for task in self._tasks:
                await task
            await self._store.close()

    # ------------------------------------------------------------ what the store asks

    def checkpoint(self, pid: int) -> Checkpoint | None:
        journal = self.journals.get(pid)
        if journal is None or not self._loaded.get(pid):
            return None
        index = journal.last_index
        floor = self._retained.get(pid, 0) if journal.stream else journal.floors[index]
        return Checkpoint(self._epochs[pid], index, data_of(journal.sums[index], index), floor, journal.next_offset, 0)

    def flushed(self, result: Flushed) -> None:
        if result.error is not None:
            self.problems.append(f"a flush failed: {result.error}")
            return
        for pid, index in result.partitions:
            if pid in self.journals:
                self._durable[pid] = index
                self._mark(Mark("durable", pid, index))

    def pressure(self, on: bool) -> None:
        self._held = on

    def disk(self, nearly_full: bool) -> None:
        pass

    def quarantined(self, pid: int, why: str) -> None:
        if self._busy.get(pid) != "repair":
            self.problems.append(f"partition {pid} was isolated: {why}")

    # ------------------------------------------------------------ what is done

    async def _step(self) -> None:
        draw, store = self._draw, self._store
        what = draw.pick(
            [
                (40.0, "append"), (8.0, "settle"), (4.0, "other"), (18.0, "sleep"), (2.0, "idle"), (3.0, "state"), (3.0, "retain"),
                (5.0, "checkpoint"), (3.0, "unload"), (6.0, "pass"), (4.0, "round"), (2.0, "rewrite"), (4.0, "sweep"),
                (4.0 if self._compacts else 0.0, "compact"), (3.0 if self._deletes else 0.0, "delete"), (3.0 if self._repairs else 0.0, "repair"),
            ]
        )  # fmt: skip
        if what == "append":
            for _ in range(draw.randint(1, 4)):
                self._append_records(self._some(new=True))
        elif what in ("settle", "other"):
            self._append_other(self._some(new=what == "other"))
        elif what == "sleep":
            await asyncio.sleep(draw.between(0.0001, 0.01))
        elif what == "idle":
            await asyncio.sleep(0.03)
        elif what == "state":
            self._spawn(self._put())
        elif what == "retain":
            self._retain(self._some())
        elif what in ("pass", "round", "rewrite"):
            if len(self._tasks) < 4:
                self._spawn(self._move(what, draw.happens(0.5)))
        elif what == "sweep":
            if len(self._tasks) < 4:
                self._spawn(self._sweep())
        elif (pid := self._some()) >= 0 and pid not in self._busy:
            long = {"checkpoint": self._save, "unload": self._unload, "compact": self._compact, "delete": self._delete, "repair": self._repair}
            self._busy[pid] = what
            self._spawn(self._alone(pid, long[what](pid)))
        if self._held or draw.happens(0.8):
            store.flush()
        if self._held or draw.happens(0.4):
            await asyncio.sleep(draw.between(0.0001, 0.003))

    def _some(self, *, new: bool = False) -> int:
        """A partition that may be used; -1 = there is none."""
        draw = self._draw
        known = [pid for pid in self.journals if not self._gone.get(pid) and self._busy.get(pid) not in ("delete", "repair")]
        if new and len(self.journals) < PARTITIONS and (not known or draw.happens(0.12)):
            pid = len(self.journals) + 1
            self.journals[pid] = self.begun[pid] = Journal(pid, stream=draw.happens(0.5))
            return pid
        return draw.choice(known) if known else -1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(self._watched(work)))

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as e:
            self.problems.append(f"{type(e).__name__}: {e}")

    async def _alone(self, pid: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            del self._busy[pid]

    # ------------------------------------------------------------ appending

    def _load(self, pid: int) -> None:
        """As a broker does before the first entry of its time: replays, then begins an epoch."""
        if self._loaded.get(pid):
            return
        journal = self.journals[pid]
        log = self._store.replay(pid)
        checksum, index = (int.from_bytes(log.checkpoint.data[:4], "big"), log.checkpoint.index) if log.checkpoint is not None else (0, 0)
        for entry in log.entries:
            checksum, index = crc32c(entry.payload, checksum), entry.index
        if (index, checksum, log.next_offset) != (journal.last_index, journal.sums[-1], journal.next_offset):
            self.problems.append(f"partition {pid} is loaded up to index {index}, offset {log.next_offset}, with another state than it had")
        self._loaded[pid] = True
        self._epochs[pid] = self._epochs.get(pid, 0) + 1
        if self._draw.happens(0.2):
            self._epochs[pid] += 1
            journal.promises.append((journal.last_index, self._epochs[pid]))
            self._mark(Mark("promised", pid, self._epochs[pid]))
            self._store.append(pid, self._epochs[pid], journal.last_index + 1, int(Kind.PROMISE), (b"",), 0)
        self._append(pid, Kind.EPOCH_START, _encode({"epoch": self._epochs[pid]}))

    def _append(self, pid: int, kind: Kind, payload: bytes, base: int = -1, count: int = 0, floor: int | None = None) -> None:
        journal = self.journals[pid]
        entry = StoredEntry(self._epochs[pid], journal.last_index + 1, int(kind), base, count, payload)
        journal.add(entry, journal.floors[-1] if floor is None else floor)
        self._mark(Mark("appended", pid, entry.index))
        at = self._draw.randrange(32, len(payload)) if len(payload) > 40 and self._draw.happens(0.5) else 0
        pieces = (payload[:at], payload[at:]) if at else (payload,)
        self._store.append(pid, entry.epoch, entry.index, entry.kind, pieces, len(payload), base, count)

    def _append_records(self, pid: int) -> None:
        if pid < 0 or self._held:
            return
        self._load(pid)
        draw, journal = self._draw, self.journals[pid]
        count = draw.randint(1, 4)
        blob = draw.randbytes(int(draw.between(*self._sizes)))
        base = journal.next_offset
        head = pack_records_head(base, count, count, self._machine.wall_ns() // 1_000_000, 1)
        run = RUN.pack(-1, 0, 0, 0, -1, count, count, len(blob), 0, 0, 0, 0)
        self._append(pid, Kind.RECORDS, head + run + blob, base, count)

    def _append_other(self, pid: int) -> None:
        if pid < 0:
            return
        self._load(pid)
        draw, journal = self._draw, self.journals[pid]
        if journal.stream:
            self._append(pid, Kind.CURSOR, pack_cursors([CursorEntry(f"c{draw.randrange(3)}", draw.randint(0, journal.next_offset))]))
            return
        floor = journal.floors[-1]
        count = draw.randint(0, min(12, journal.next_offset - floor))
        if not count:
            self._append(pid, Kind.LEASE, pack_leases([(floor, 1, 1, 30_000, draw.getrandbits(60))]))
            return
        self._settle(pid, floor + count)

    def _settle(self, pid: int, floor: int) -> None:
        """Everything below ``floor`` is acked."""
        before = self.journals[pid].floors[-1]
        payload = pack_settlements([(int(Action.ACK), int(Reason.NONE), 1, floor - before, before, 0)])
        self._append(pid, Kind.SETTLEMENT, payload, floor=floor)
        self._store.set_floor(pid, floor)

    async def _sweep(self) -> None:
        """What queues have in segments is settled, and at once a round looks for what may be erased: nothing of that is durable yet."""
        draw, store = self._draw, self._store
        async with store._ground.moving:
            if draw.happens(0.5):
                await store._mover.pass_once(everything=True)
            for pid, journal in self.journals.items():
                if journal.stream or self._gone.get(pid) or pid in self._busy or not self._loaded.get(pid):
                    continue
                ends = [ref.end_offset for ref in store._ground.part(pid).moved.refs if ref.end_offset > journal.floors[-1]]
                if ends:
                    self._settle(pid, draw.choice(ends))
            await store._mover.round()

    async def _put(self) -> None:
        draw = self._draw
        key, value = b"doc/%d" % draw.randrange(4), draw.randbytes(8) if draw.happens(0.8) else None
        self._mark(Mark("put", value=(key, value)))
        self._puts[key] = number = self._puts.get(key, 0) + 1
        await self._store.commit_state({key: value})
        self._mark(Mark("kept", number=number, value=key))

    # ------------------------------------------------------------ keeping house

    def _retain(self, pid: int) -> None:
        journal = self.journals.get(pid)
        if journal is None or not journal.stream or not self._loaded.get(pid):
            return
        draw = self._draw
        records = draw.randint(1, 40) if draw.happens(0.5) else 0
        nbytes = 0 if records else int(draw.between(500, 30_000))
        wall_ms = self._machine.wall_ns() // 1_000_000
        start = self._store.retain(pid, wall_ms=wall_ms, age_ms=0, bytes_max=nbytes, records_max=records)
        start = min(start, journal.next_offsets[self._durable.get(pid, 0)])
        if start > self._retained.get(pid, 0):
            self._retained[pid] = start
            self._store.set_floor(pid, start)
        self._mark(Mark("retained", pid, max(start, self._store._ground.part(pid).floor)))

    async def _move(self, what: str, everything: bool) -> None:
        store = self._store
        if what == "round":
            await store.maintenance()
            return
        async with store._ground.moving:
            if what == "pass":
                await store._mover.pass_once(everything=everything)
            elif metas := sorted(store._ground.metas):
                await store._sweeper.rewrite(metas if everything else metas[::2])

    async def _save(self, pid: int) -> None:
        checkpoint = self.checkpoint(pid)
        if checkpoint is not None:
            await self._store.save_checkpoint(pid, checkpoint)
            self._mark(Mark("checkpointed", pid, checkpoint.index, checkpoint.floor_offset))

    async def _unload(self, pid: int) -> None:
        await self._save(pid)
        if not self._gone.get(pid) and self._store._ground.part(pid).checkpoint_index == self.journals[pid].last_index:
            self._loaded[pid] = False

    async def _compact(self, pid: int) -> None:
        journal = self.journals[pid]
        if not journal.stream:
            return
        salt = self._draw.getrandbits(32)
        seen: dict[int, int] = {}

        def keep(payload: bytes, base: int) -> bytes | None:
            draw = crc32c(base.to_bytes(8, "big"), salt) % 4
            if draw > 1 or (draw and len(payload) <= 100):
                seen.setdefault(base, len(journal.versions.get(base, ())))
                return payload
            left = payload[:100] if draw else None
            if base not in seen:
                journal.versions.setdefault(base, []).append(left)
                self._mark(Mark("version", pid, base))
                seen[base] = len(journal.versions[base])
            return left

        await self._store.compact(pid, keep)
        self._mark(Mark("compacted", pid, value=seen))

    async def _delete(self, pid: int) -> None:
        draw = self._draw
        if self._loaded.get(pid) and draw.happens(0.5):
            self._append(pid, Kind.CONFIG, draw.randbytes(draw.randint(1, 3000)))  # what a broker has decided before it lets go
            self._append(pid, Kind.CONFIG, b"last")
        self._gone[pid] = True
        self._loaded[pid] = False
        self._mark(Mark("deleting", pid))
        await self._store.delete([pid])
        self._mark(Mark("deleted", pid))

    async def _repair(self, pid: int) -> None:
        """Somebody finds the partition suspicious. Nothing is wrong with it, and the repair loses nothing; or a byte of one of its entries in the
        log is, and all from there on is cut."""
        store, ground, draw = self._store, self._store._ground, self._draw
        part = ground.part(pid)
        await store.durable(part, self.journals[pid].last_index)
        flushes = ground.wal.next_seq
        if draw.happens(0.5):
            await asyncio.sleep(0.03)
        async with ground.moving:
            first = max(part.moved.moved_to, part.checkpoint_index) + 1
            followed = ground.wal._closed_last or ground.wal.next_seq > flushes  # else what is damaged would be taken for torn
            hurt = draw.randint(first, part.last_index) if followed and first <= part.last_index else 0
            self._mark(Mark("isolated", pid))
            if hurt:
                self._mark(Mark("hurt", pid, hurt - 1))
                self._hurt(part.place(hurt - part.first_index), part.size(hurt - part.first_index))
            ground.isolate(pid, "a drill", part.last_index, part.next_offset, 0)
            self._loaded[pid] = False
            await asyncio.sleep(draw.between(0.0001, 0.01))
            done = await store._repairs.repair(pid, dry_run=False)
            if hurt:
                self._cut(pid, done.last_valid_index)
            self._mark(Mark("repaired", pid))

    def _hurt(self, place: int, nbytes: int) -> None:
        """Turns a byte of an entry in the log into another."""
        disk, at = self.recorder.disk, (place & POSITION_MASK) + nbytes - 1
        handle = disk.open(f"{self._store._ground.wal_directory}/{name_of(place >> POSITION_BITS)}", write=True)
        disk.pwrite(handle, bytes([disk.pread(handle, 1, at)[0] ^ 0x10]), at)
        disk.fsync(handle)
        disk.close(handle)

    def _cut(self, pid: int, index: int) -> None:
        """The journal goes on from there, in another way."""
        old = self.journals[pid]
        journal = self.journals[pid] = old.until(index)
        self._durable[pid] = index
        self._mark(Mark("cut", pid, index, (journal, old.floors[-1])))
