"""A disk store on a disk in memory, without threads, and an owner whose state is a running checksum: what a partition recovers can be told from what
it was.

``Rig.kill_at(n)`` ends the process at the n-th thing done to the disk or the small state from then on: nothing after it happens.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from crc32c import crc32c

from headrace.model.config import Config, Recovery, Storage
from headrace.storage.api import Checkpoint, Flushed, StoredEntry
from headrace.storage.files import MemoryFiles
from headrace.storage.flusher import SteppedLane
from headrace.storage.state import MemoryStateStore, Puts
from headrace.storage.store import DiskStore
from headrace.wire.journal import RECORDS_HEAD, Kind

ROOT = "/data"
KIB = 1024
END = 1 << 62
LOOK_NS = 50_000


class Killed(BaseException):
    """The process has ended."""


class KillableState(MemoryStateStore):
    """Counts commits as things done to the disk."""

    def __init__(self, rig: "Rig") -> None:
        super().__init__()
        self._rig = rig

    def commit(self, puts: Puts) -> None:
        self._rig.count("commit")
        super().commit(puts)
        self._rig.count("committed")


class Log:
    """What one partition's journal holds, by the truth."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, bytes]] = []
        """(kind, base offset or -1, payload) of index 1, 2, ..."""
        self.sums = [0]
        self.next_offset = 0
        self.floor = 0
        self.floors = [0]
        """The floor as of each index: a floor is moved by entries."""
        self.durable = 0

    def cut(self, index: int) -> None:
        """Goes back to the state after ``index``."""
        del self.entries[index:]
        del self.sums[index + 1 :]
        del self.floors[index + 1 :]
        self.floor = self.floors[-1]
        records = [(base, p) for kind, base, p in self.entries if base >= 0]
        self.next_offset = records[-1][0] + RECORDS_HEAD.unpack_from(records[-1][1])[1] if records else 0


class Rig:
    """See the module's head. The truth is in ``logs``; ``store`` is what is tested."""

    def __init__(self, *, seed: int = 1, on_mismatch: str = "quarantine", **storage: int) -> None:
        settings: dict[str, Any] = {
            "wal_file_bytes": 1024 * KIB,
            "wal_bytes_max": 8 * 1024 * KIB,
            "flush_bytes_max": 256 * KIB,
            "segment_own_bytes_min": 64 * KIB,
            "segment_file_bytes": 1024 * KIB,
            "tail_cache_bytes": 1024 * KIB,
            "disk_free_bytes_min": 0,
            "ballast_bytes": 0,
            **storage,
        }
        self.config = Config(storage=Storage(**settings), recovery=Recovery(on_mismatch=on_mismatch))  # type: ignore[arg-type]
        self.random = random.Random(seed)
        self.files = MemoryFiles(fault=self._fault)
        self.state: MemoryStateStore = KillableState(self)
        self.logs: dict[int, Log] = {}
        self.loaded: set[int] = set()
        self.dead = False
        self.steps = 0
        self.events: list[tuple[Any, ...]] = []
        self.wall_ms = 1_700_000_000_000
        self._elapsed_ns = 0
        self._kill_at = -1
        self.trace: list[str] = []

    # ------------------------------------------------------------ the machine

    def _now_ns(self) -> int:
        """Every look at the clock takes its time, so that long work pauses; a machine that is busy changes nothing."""
        self._elapsed_ns += LOOK_NS
        return self._elapsed_ns

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        def due() -> None:
            self._elapsed_ns += int(delay * 1e9)
            call()

        self.timers.append(due)

    def count(self, what: str) -> None:
        if self.dead:
            raise Killed
        self.steps += 1
        self.trace.append(what)
        if self.steps == self._kill_at:
            self.dead = True
            raise Killed

    def _fault(self, operation: str, path: str, _nbytes: int) -> int | None:
        self.count(f"{operation} {path.rsplit('/', 1)[-1]}")
        return None

    def kill_at(self, step: int) -> None:
        self.steps = 0
        self.trace = []
        self._kill_at = step

    async def start(self) -> "Rig":
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._unhandled)
        self.dead = False
        self._kill_at = -1
        self.timers: list[Callable[[], None]] = []
        self.store = DiskStore(
            ROOT,
            self.config,
            self.loop,
            files=self.files,
            make_state=lambda _path: self.state,
            make_lane=lambda _name: SteppedLane(eager=True),
            later=self._later,
            wall_ms=lambda: self.wall_ms,
            now_ns=self._now_ns,
            random_u64=lambda: self.random.getrandbits(64),
            maintain=False,
        )
        await self.store.open(self)
        return self

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Killed):
            self.events.append(("error", context))

    async def crash(self) -> None:
        """Power fails and comes back; what was not durable is gone from the truth too."""
        self.dead = True
        self.files.crash()
        self.loaded.clear()
        before = {pid: log.durable for pid, log in self.logs.items()}
        await self.start()
        for pid, log in self.logs.items():
            last = self.store._ground.part(pid).last_index
            assert last >= before[pid] or pid in self.store.damaged(), f"partition {pid}: {before[pid]} was durable, {last} is left"
            if last < len(log.entries):
                log.cut(last)
            log.durable = last

    async def restart(self) -> None:
        for call in self.timers:
            call()
        await self.store.close()
        self.loaded.clear()
        await self.start()

    # ------------------------------------------------------------ what the store asks

    def checkpoint(self, pid: int) -> Checkpoint | None:
        if pid not in self.loaded:
            return None
        log = self.logs[pid]
        return Checkpoint(1, len(log.entries), log.sums[-1].to_bytes(4, "big"), log.floor, log.next_offset, 0)

    def flushed(self, result: Flushed) -> None:
        if self.dead:
            return
        assert result.error is None, result.error
        for pid, index in result.partitions:
            self.logs[pid].durable = index

    def pressure(self, on: bool) -> None:
        self.events.append(("pressure", on))

    def disk(self, nearly_full: bool) -> None:
        self.events.append(("disk", nearly_full))

    def quarantined(self, pid: int, why: str) -> None:
        self.events.append(("quarantined", pid, why))

    # ------------------------------------------------------------ what a broker does

    def put(self, pid: int, size: int = 100, count: int = 1, *, wall_ms: int | None = None) -> int:
        """Appends records; their base offset."""
        log = self.logs.setdefault(pid, Log())
        base = log.next_offset
        payload = RECORDS_HEAD.pack(base, count, count, self.wall_ms if wall_ms is None else wall_ms, 0) + self.random.randbytes(size)
        self._append(pid, int(Kind.RECORDS), payload, base, count)
        log.next_offset = base + count
        return base

    def settle(self, pid: int, floor: int) -> None:
        """Journals that everything below ``floor`` is settled."""
        log = self.logs[pid]
        log.floor = max(log.floor, min(floor, log.next_offset))
        self._append(pid, int(Kind.SETTLEMENT), log.floor.to_bytes(8, "big"), -1, 0)
        self.store.set_floor(pid, log.floor)

    def _append(self, pid: int, kind: int, payload: bytes, base: int, count: int) -> None:
        log = self.logs.setdefault(pid, Log())
        self.loaded.add(pid)
        index = len(log.entries) + 1
        log.entries.append((kind, base, payload))
        log.sums.append(crc32c(payload, log.sums[-1]))
        log.floors.append(log.floor)
        cut = self.random.randrange(32, len(payload)) if len(payload) > 40 and self.random.random() < 0.5 else 0
        pieces = (payload[:cut], payload[cut:]) if cut else (payload,)
        self.store.append(pid, 1, index, kind, pieces, len(payload), base, count)

    async def flush(self) -> None:
        self.store.flush()
        await asyncio.sleep(0)

    async def unload(self, pid: int) -> None:
        checkpoint = self.checkpoint(pid)
        if checkpoint is not None:
            await self.store.save_checkpoint(pid, checkpoint)
            self.loaded.discard(pid)

    # ------------------------------------------------------------ what must hold

    def load(self, pid: int) -> list[StoredEntry]:
        """Replays a partition and checks that its state is what it was."""
        log = self.logs[pid]
        got = self.store.replay(pid)
        sum_, index = 0, 0
        if got.checkpoint is not None:
            sum_, index = int.from_bytes(got.checkpoint.data, "big"), got.checkpoint.index
            assert sum_ == log.sums[index]
        for entry in got.entries:
            index += 1
            assert entry.index == index
            sum_ = crc32c(entry.payload, sum_)
        assert index == got.last_index == len(log.entries), (pid, index, got.last_index, len(log.entries))
        assert sum_ == log.sums[-1]
        assert got.next_offset == log.next_offset
        self.loaded.add(pid)
        if log.floor:
            self.store.set_floor(pid, log.floor)
        return list(got.entries)

    async def records(self, pid: int, first: int = 0, *, bytes_max: int = 64 * KIB) -> list[StoredEntry]:
        """Everything readable from ``first`` on."""
        found: list[StoredEntry] = []
        while True:
            some = await self.store.read(pid, first, bytes_max, END)
            if not some:
                return found
            assert some[0].base_offset + some[0].record_count > first
            found += some
            first = some[-1].base_offset + some[-1].record_count

    async def check(self, pid: int, *, load: bool = True) -> None:
        """State, records and sizes are those of the truth."""
        log = self.logs[pid]
        if load and pid not in self.loaded:
            self.load(pid)
        want = [(base, p) for _, base, p in log.entries if base >= 0 and base + RECORDS_HEAD.unpack_from(p)[1] > log.floor]
        got = [(e.base_offset, bytes(e.payload)) for e in await self.records(pid, log.floor)]
        assert got == want, (pid, log.floor, [b for b, _ in got][:5], [b for b, _ in want][:5], len(got), len(want))
        first = self.store.first_offset(pid)
        assert first <= max(log.floor, want[0][0]) if want else first <= log.next_offset, (first, log.floor)
