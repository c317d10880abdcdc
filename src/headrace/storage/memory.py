"""A store that keeps everything in memory and nothing on disk: for throw-away brokers. A flush completes in the next turn of the loop and is never
durable."""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence

from headrace.model.config import Config
from headrace.model.errors import NotFound
from headrace.storage.api import Checkpoint, Damage, Flushed, Owner, PartitionLog, StoredEntry
from headrace.wire.journal import RECORDS_HEAD, Kind


class MemoryState:
    """Small state in a dict; ``scan`` sorts, which a throw-away broker can afford."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(k for k in self.values if k.startswith(prefix) and k > after):
            yield key, self.values[key]


class _Log:
    """One partition: records entries by offset; other kinds only while the partition may be loaded again without a checkpoint."""

    __slots__ = ("bases", "checkpoint", "entries", "epoch", "folding", "index", "nbytes", "next_offset", "others")

    def __init__(self) -> None:
        self.entries: list[StoredEntry] = []
        self.bases: list[int] = []
        self.others: list[StoredEntry] = []
        self.checkpoint: Checkpoint | None = None
        self.folding = False
        self.epoch = self.index = self.next_offset = self.nbytes = 0


class MemoryStore:
    """Implements ``Store``."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        self.state = MemoryState()
        self._loop = loop
        self._owner: Owner | None = None
        self._logs: dict[int, _Log] = {}
        self._pending: dict[int, int] = {}
        self._pending_bytes = 0
        self._flushing = False
        self._bytes = 0

    async def commit_state(self, puts: Mapping[bytes, bytes | None]) -> None:
        for key, value in puts.items():
            if value is None:
                self.state.values.pop(key, None)
            else:
                self.state.values[key] = value

    async def open(self, owner: Owner) -> None:
        self._owner = owner

    def partitions(self) -> Sequence[int]:
        return ()

    def damaged(self) -> Mapping[int, Damage]:
        return {}

    def append(
        self, pid: int, epoch: int, index: int, kind: int, payload: Sequence[bytes], nbytes: int, base_offset: int = -1, record_count: int = 0
    ) -> None:
        log = self._logs.get(pid)
        if log is None:
            log = self._logs[pid] = _Log()
        entry = StoredEntry(epoch, index, kind, base_offset, record_count, payload[0] if len(payload) == 1 else b"".join(payload))
        log.epoch, log.index = epoch, index
        if kind == Kind.RECORDS:
            log.entries.append(entry)
            log.bases.append(base_offset)
            log.next_offset = base_offset + record_count
            log.nbytes += nbytes
            self._bytes += nbytes
        else:
            log.others.append(entry)
            if len(log.others) > 4096:
                self._fold(pid, log)
        self._pending[pid] = index
        self._pending_bytes += nbytes

    def _fold(self, pid: int, log: _Log) -> None:
        """Replaces what was journalled beside records by a checkpoint, at a moment when the owner is not in the middle of appending."""

        def fold() -> None:
            log.folding = False
            checkpoint = self._owner.checkpoint(pid) if self._owner is not None else None
            if checkpoint is not None:
                log.checkpoint = checkpoint
                log.others = [e for e in log.others if e.index > checkpoint.index]

        if not log.folding:
            log.folding = True
            self._loop.call_soon(fold)

    def flush(self) -> None:
        if self._pending and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flushed)

    def _flushed(self) -> None:
        done, self._pending = self._pending, {}
        self._pending_bytes = 0
        self._flushing = False
        if self._owner is not None:
            self._owner.flushed(Flushed(list(done.items()), None, False))

    @property
    def pending_bytes(self) -> int:
        return self._pending_bytes

    def replay(self, pid: int) -> PartitionLog:
        log = self._logs.get(pid)
        if log is None:
            return PartitionLog(None, 0, 0, 0, ())
        after = log.checkpoint.index if log.checkpoint is not None else 0
        entries = sorted((e for e in (*log.entries, *log.others) if e.index > after), key=lambda e: e.index)
        return PartitionLog(log.checkpoint, log.epoch, log.index, log.next_offset, entries)

    def cached(self, pid: int, offset: int, bytes_max: int, end_offset: int) -> list[StoredEntry] | None:
        log = self._logs.get(pid)
        if log is None or not log.entries:
            return []
        found: list[StoredEntry] = []
        size = 0
        for i in range(max(0, bisect_right(log.bases, offset) - 1), len(log.entries)):
            entry = log.entries[i]
            if entry.base_offset >= end_offset or (found and size >= bytes_max):
                break
            if entry.base_offset + entry.record_count > offset:
                found.append(entry)
                size += len(entry.payload)
        return found

    async def read(self, pid: int, offset: int, bytes_max: int, end_offset: int) -> list[StoredEntry]:
        return self.cached(pid, offset, bytes_max, end_offset) or []

    def offset_for_time(self, pid: int, wall_ms: int) -> int:
        log = self._logs.get(pid)
        if log is None:
            return 0
        for entry in log.entries:
            if RECORDS_HEAD.unpack_from(entry.payload)[3] >= wall_ms:
                return entry.base_offset
        return log.next_offset

    def first_offset(self, pid: int) -> int:
        log = self._logs.get(pid)
        return 0 if log is None else log.bases[0] if log.bases else log.next_offset

    def log_bytes(self, pid: int) -> int:
        log = self._logs.get(pid)
        return log.nbytes if log is not None else 0

    def set_floor(self, pid: int, offset: int) -> None:
        log = self._logs.get(pid)
        if log is None or not log.entries:
            return
        gone = 0
        while gone < len(log.entries) and log.entries[gone].base_offset + log.entries[gone].record_count <= offset:
            size = len(log.entries[gone].payload)
            log.nbytes -= size
            self._bytes -= size
            gone += 1
        if gone:
            del log.entries[:gone]
            del log.bases[:gone]

    def retain(self, pid: int, *, wall_ms: int, age_ms: int, bytes_max: int, records_max: int) -> int:
        log = self._logs.get(pid)
        if log is None:
            return 0
        size, gone = log.nbytes, 0
        for entry in log.entries:
            too_old = age_ms and RECORDS_HEAD.unpack_from(entry.payload)[3] < wall_ms - age_ms
            too_many = records_max and log.next_offset - entry.base_offset - entry.record_count >= records_max
            too_large = bytes_max and size - len(entry.payload) >= bytes_max
            if not (too_old or too_many or too_large):
                break
            size -= len(entry.payload)
            gone = entry.base_offset + entry.record_count
        if gone:
            self.set_floor(pid, gone)
        return self.first_offset(pid)

    async def compact(self, pid: int, keep: Callable[[bytes, int], bytes | None]) -> None:
        """Memory is not compacted: a throw-away broker's streams end with it."""

    async def save_checkpoint(self, pid: int, checkpoint: Checkpoint) -> None:
        log = self._logs.get(pid)
        if log is not None:
            log.checkpoint = checkpoint
            log.others = [e for e in log.others if e.index > checkpoint.index]

    async def delete(self, pids: Sequence[int]) -> None:
        for pid in pids:
            log = self._logs.pop(pid, None)
            if log is not None:
                self._bytes -= log.nbytes

    async def repair(self, pid: int, *, dry_run: bool) -> Damage:
        raise NotFound("a store in memory has no damage to repair")

    def stats(self) -> dict[str, float]:
        return {"wal_bytes": 0.0, "cache_bytes": float(self._bytes), "disk_free_bytes": 0.0}

    async def close(self) -> None:
        self._logs.clear()
