"""A write-ahead log on a disk in memory, driven step by step: no thread, no clock, one source of numbers. For tests of storage."""

import random
from collections.abc import Callable, Iterator, Sequence

from headrace.storage.files import Files, MemoryFiles
from headrace.storage.flusher import SteppedLane
from headrace.storage.logwrites import LaneWrites
from headrace.storage.recovery import Recovered, recover
from headrace.storage.wal import FlushResult, Wal
from headrace.storage.walfiles import FRESH, Continuation
from headrace.storage.walformat import MARKERS, TRUNCATE, Located

DIRECTORY = "/data"
Key = tuple[int, int]
Value = tuple[int, int, bytes]


class Rig:
    """``truth``: what each partition's journal holds, (pid, index) to (epoch, kind, payload); ``flushed``: results in order."""

    def __init__(
        self,
        files: Files | None = None,
        *,
        after: Continuation = FRESH,
        file_bytes: int = 64 * 1024,
        flush_bytes_max: int = 1 << 20,
        eager: bool = True,
        seed: int = 1,
        spares_max: int = 2,
        inline_bytes_max: int = 0,
    ) -> None:
        self.files: Files = MemoryFiles() if files is None else files
        self.files.make_dir(DIRECTORY)
        self.flusher = SteppedLane(eager=eager)
        self.background = SteppedLane(eager=eager)
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.now_ns = 0
        self.flushed: list[FlushResult] = []
        self.on_flushed: Callable[[FlushResult], None] = lambda result: None
        self.full: list[bool] = []
        self.truth: dict[Key, Value] = {}
        self.last: dict[int, int] = {}
        self.random = random.Random(seed)
        self.wal = Wal(
            self.files,
            DIRECTORY,
            after=after,
            on_flushed=self._flushed,
            writes=LaneWrites(self.files, self.flusher),
            background=self.background,
            later=self._later,
            random_u64=lambda: self.random.getrandbits(64),
            wall_ms=lambda: 1_700_000_000_000,
            now_ns=lambda: self.now_ns,
            on_full=self.full.append,
            file_bytes=file_bytes,
            flush_bytes_max=flush_bytes_max,
            spares_max=spares_max,
            inline_bytes_max=inline_bytes_max,
        )
        self.wal.start()

    def add(self, pid: int, payload: bytes | Sequence[bytes], *, epoch: int = 1, kind: int = 1, index: int | None = None) -> int:
        """Appends the next entry (or one at ``index``, which discards from there on) and notes it in ``truth``."""
        pieces = [payload] if isinstance(payload, bytes) else list(payload)
        at = self.last.get(pid, 0) + 1 if index is None else index
        self.wal.append(pid, epoch, at, kind, pieces, sum(map(len, pieces)))
        if kind == TRUNCATE or kind not in MARKERS:
            for gone in range(at, self.last.get(pid, 0) + 1):
                self.truth.pop((pid, gone), None)
            self.last[pid] = at - 1
        if kind not in MARKERS:
            self.truth[pid, at] = (epoch, kind, b"".join(pieces))
            self.last[pid] = at
        return at

    def put(self, *parts: tuple[int, bytes]) -> None:
        """One flush with these (partition, payload)."""
        for pid, payload in parts:
            self.add(pid, payload)
        self.wal.flush()

    def run_timers(self) -> None:
        """Lets the time pass for which someone waits, twice: a timer that looks and waits for the rest comes to its end."""
        for _ in range(2):
            due, self.timers = self.timers, []
            for delay, callback in due:
                self.now_ns += int(delay * 1e9) + 1
                callback()

    def step(self) -> bool:
        return self.flusher.step() or self.background.step()

    def stop(self) -> None:
        done: list[bool] = []
        self.wal.stop(lambda: done.append(True))
        while not done and self.step():
            pass
        assert done, "the log did not stop"

    def kill(self) -> None:
        """The process dies: nothing more is written."""
        self.flusher.drop()
        self.background.drop()

    def _later(self, delay: float, callback: Callable[[], None], /) -> object:
        self.timers.append((delay, callback))
        return None

    def _flushed(self, result: FlushResult) -> None:
        self.flushed.append(result)
        self.on_flushed(result)


class Collected:
    """What a recovery reported, kept as an index of the store would be."""

    def __init__(self, files: Files, directory: str = DIRECTORY) -> None:
        self.entries: dict[Key, Value] = {}
        self.where: dict[Key, tuple[int, int, int]] = {}
        self.last: dict[int, int] = {}
        self.markers: list[tuple[int, int, int, int]] = []
        self.log: Recovered = recover(files, directory, self._take)

    def _take(self, located: Located, payloads: Sequence[memoryview]) -> None:
        for (pid, epoch, index, kind, position, length), payload in zip(columns(located), payloads, strict=True):
            if kind in MARKERS:
                self.markers.append((pid, epoch, index, kind))
                if kind != TRUNCATE:
                    continue
            if index <= self.last.get(pid, 0):
                for gone in range(index, self.last[pid] + 1):
                    self.entries.pop((pid, gone), None)
                self.last[pid] = index - 1
            if kind not in MARKERS:
                self.entries[pid, index] = (epoch, kind, bytes(payload))
                self.where[pid, index] = (located.file_id, position, length)
                self.last[pid] = index


def columns(located: Located) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Rows of (pid, epoch, index, kind, position, length)."""
    return zip(located.pids, located.epochs, located.indexes, located.kinds, located.positions, located.lengths, strict=True)


def reopened(files: Files, **settings: int) -> Rig:
    """A log that goes on after what recovery finds."""
    return Rig(files, after=Collected(files).log.after, **settings)  # type: ignore[arg-type]
