"""The log as the replicas of partitions use it: entries with the epoch and index they were given, marks, what is read again, what a start finds.

Owns no state but the bound on reads. Does not know who may append what: that is ``core.replica``'s. What is appended here is durable with the next
flush and told by ``OnRows``, in the order of the log, marks included.

I1 What is appended as received lies in this log byte for byte as it came. I2 What is read is verified. I3 A start finds exactly the epochs of what
the log holds, so that two journals with an entry of the same epoch at the same index are the same up to there. I4 What a forced election cuts is set
aside before it is cut.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from headrace.model import limits
from headrace.model.errors import Damaged, NotFound, StorageError
from headrace.storage import aside, keys
from headrace.storage.gathering import header_of
from headrace.storage.ground import Ground, log
from headrace.storage.index import Part, Row
from headrace.storage.installing import NOTHING, Installs, Staged, Staging
from headrace.storage.intake import Intake
from headrace.storage.reads import DamagedEntry, Reader, raw_entries
from headrace.storage.system import SYSTEM_PID
from headrace.storage.walformat import Row as FlushRow
from headrace.storage.walformat import encode_entry
from headrace.wire.journal import OBEYED, TRUNCATE, Kind
from headrace.wire.replication import Entry

OnRows = Callable[[Sequence[FlushRow]], None]
"""(partition, first index, last index, bytes, marker) of each row of a flush that is durable."""
READS_MAX: Final = 2
"""At one time, of all partitions: who catches up must not keep consumers from the disk."""
_PROMISE: Final = int(Kind.PROMISE)
_TRUNCATE: Final = int(Kind.TRUNCATE)


class Found(NamedTuple):
    """What a start finds of a partition's log. ``end`` is exclusive; entries below ``start`` are in segments and checkpoints, as far as they live."""

    start: int
    end: int
    promised: int
    generation: int
    version: int
    base_epoch: int
    """Of the entry before ``start``, 0 = there is none."""
    runs: tuple[tuple[int, int], ...]
    """(epoch, first index) of each run from ``start`` on."""
    covered: int
    """Exclusive end of what checkpoints and moved data stand for, all of it committed."""


class Snapshot(NamedTuple):
    """A partition's state at a committed index, for another broker, and which offsets the records that it needs may have."""

    index: int  # type: ignore[assignment]  # the journal's word; tuple.index is not used
    packed: bytes
    first_offset: int
    end_offset: int


class ReplicatedLog:
    """See the module's head. Made by ``DiskStore.replicated`` once that is open."""

    def __init__(
        self, ground: Ground, intake: Intake, reader: Reader, durable: Callable[[Part, int], Awaitable[None]], installs: Installs
    ) -> None:
        self._ground = ground
        self._durable = durable
        self._intake = intake
        self._reader = reader
        self._installs = installs
        self._reads = asyncio.Semaphore(READS_MAX)

    # ------------------------------------------------------------ at start

    def damage(self, pid: int) -> str:
        """Why the partition is quarantined here, "" = it is not."""
        found = self._ground.damaged.get(pid)
        return found.why if found is not None else ""

    def held(self) -> list[int]:
        """The partitions of which anything is on the disk, whether it can be read or not. Blocks for a scan of the small state."""
        ground = self._ground
        known = {keys.number_of(prefix, key) for prefix in (keys.MOVED, keys.CHECKPOINT) for key, _ in ground.state.scan(prefix, damaged=[])}
        known.update(ground.damaged, (p.pid for p in ground.parts.values() if p.last_index or p.promised))
        return sorted(known - {SYSTEM_PID})

    def keeps(self, pid: int) -> bool:
        """Whether anything of the partition is on the disk but what it has promised."""
        return pid in self._ground.damaged or self._ground.part(pid).last_index > 0

    def found(self, pid: int) -> Found:
        """To be asked before anything is appended."""
        part = self._ground.part(pid)
        moved = part.moved
        start, base_epoch = moved.moved_to + 1, moved.base_epoch
        if self._is_of_before(pid, part):
            log.info("partition %d: what the log has from before an install is given up", pid)
            for _ in range(2):  # see ``installing``
                self.truncate(pid, start, base_epoch)
            part.discard(start)  # at once, as it may be read before the marks are durable
            self._ground.epochs.pop(pid, None)
        end = part.last_index + 1
        if moved.moved_to and not base_epoch:  # it was not replicated then: only its checkpoint says an epoch
            start, base_epoch = part.checkpoint_index + 1, part.checkpoint_epoch
        runs: list[tuple[int, int]] = []
        for first, epoch in self._ground.epochs.get(pid, ()):
            if first >= end:
                break
            if first <= start:
                runs.clear()
            runs.append((epoch, max(first, start)))
        if start >= end:
            runs.clear()
        return Found(start, end, part.promised, *part.obeyed, base_epoch, tuple(runs), self.covered(pid))

    def left(self, pid: int, runs: Sequence[tuple[int, int]]) -> None:
        """Its replica ends, and may begin again in this life: (epoch, first index) of each run of what it leaves, for ``found``."""
        self._ground.epochs[pid] = [(first, epoch) for epoch, first in runs]

    def _is_of_before(self, pid: int, part: Part) -> bool:
        """Whether the log does not go on from what was moved: an install took its place and the broker died before the log said so."""
        moved = part.moved
        epoch = 0
        for first, of in self._ground.epochs.get(pid, ()):
            if first <= moved.moved_to:
                epoch = of
        if not moved.base_epoch or not epoch or pid in self._ground.damaged:
            return False
        return epoch > moved.base_epoch or (epoch < moved.base_epoch and part.last_index > moved.moved_to)

    # ------------------------------------------------------------ appending

    def append(self, pid: int, epoch: int, index: int, kind: int, payload: bytes, base_offset: int = -1, record_count: int = 0) -> bytes:
        """Takes an entry; gives its header as it will lie in the log."""
        entry = self._intake.append(pid, epoch, index, kind, (payload,), len(payload), base_offset, record_count)
        return header_of(entry)

    def received(self, pid: int, entry: Entry) -> bytes:
        """As ``append``, of an entry that another broker has in its log."""
        return self.append(pid, entry.epoch, entry.index, entry.kind, entry.payload, entry.base_offset, entry.record_count)

    def truncate(self, pid: int, at: int, epoch: int) -> None:
        """Gives up everything from index ``at`` on."""
        self._ground.recovered.take(pid, 0, -1)  # of what it holds some may be cut, and other entries stand there then
        self.append(pid, epoch, at, _TRUNCATE, TRUNCATE.pack(at, epoch))

    def promise(self, pid: int, epoch: int, generation: int, version: int) -> None:
        """Nothing older than ``epoch`` is obeyed from now on, in any life."""
        part = self._ground.part(pid)
        part.obeyed = max(part.obeyed, (generation, version))
        self.append(pid, epoch, 0, _PROMISE, OBEYED.pack(generation, version))

    def flush(self) -> None:
        self._ground.wal.flush()

    async def durable(self, pid: int) -> None:
        """Returns once everything appended to it is durable; ``SyncFailed``."""
        part = self._ground.part(pid)
        await self._durable(part, part.last_index)

    def covered(self, pid: int) -> int:
        """Exclusive end of what checkpoints and moved data stand for."""
        part = self._ground.part(pid)
        return max(part.moved.moved_to, part.checkpoint_index) + 1

    async def set_aside(self, pid: int, at: int) -> str:
        """Copies what the log has from index ``at`` on to a file that no broker removes; its path, "" = there was nothing. ``StorageError``: it was
        not copied and may be tried again."""
        part = self._ground.part(pid)
        await self._durable(part, part.last_index)
        try:
            return await aside.rows(self._ground, part, at)
        except OSError as e:
            raise StorageError(f"what an operator gave up of partition {pid} cannot be set aside: {e}") from e

    # ------------------------------------------------------------ replaced as a whole

    def snapshot(self, pid: int) -> Snapshot | None:
        """The newest state that covers everything that is not in the log any more; None: there is none yet, ask again later."""
        ground, part = self._ground, self._ground.part(pid)
        if pid in ground.damaged:
            return None
        found = ground.owner.checkpoint(pid)
        if found is None or found.index < part.checkpoint_index:
            raw = ground.state.get(keys.number_key(keys.CHECKPOINT, pid))
            found = keys.unpack_checkpoint(raw) if raw is not None else None
        if found is None or found.index < part.moved.moved_to:
            return None
        return Snapshot(found.index, keys.pack_checkpoint(found), found.floor_offset, found.next_offset)

    async def records(
        self, pid: int, upto: Snapshot, offset: int, bytes_max: int
    ) -> tuple[list[bytes], int]:
        """Entries with records from ``offset`` on that ``upto`` needs, whole, about ``bytes_max`` together but at least one, and the offset after
        them. ([], its end): there are none any more. ``Damaged`` isolates the partition."""
        part, end_offset = self._ground.part(pid), upto.end_offset
        await self._durable(part, min(upto.index, part.last_index))
        raws: list[bytes] = []
        if offset >= end_offset:
            return raws, end_offset
        for entry in await self._reader.read(pid, offset, bytes_max, end_offset):
            if entry.base_offset >= end_offset:
                break
            payload = bytes(entry.payload)
            raws.append(encode_entry(pid, entry.epoch, entry.index, entry.kind, (payload,), len(payload)) + payload)
            offset = entry.base_offset + entry.record_count
        return raws, offset if raws else end_offset

    def staging(self, pid: int) -> Staging:
        """For what another broker sends of it."""
        return Staging(self._ground, pid)

    async def replace(self, pid: int, staged: Staged | None, base_epoch: int) -> None:
        """Puts what was staged (None: nothing at all) into the place of everything that is here. Nothing may be appended meanwhile. ``DiskFull``:
        it may be tried again; see ``installing``."""
        await self._installs.replace(pid, NOTHING if staged is None else staged, base_epoch)

    # ------------------------------------------------------------ reading again

    async def read(self, pid: int, first: int, end: int, bytes_max: int = limits.READ_CHUNK_BYTES) -> list[bytes]:
        """Durable entries from index ``first`` on, below ``end``, whole and verified, about ``bytes_max`` together but at least one. [] = the first
        of them is not in the log (any more, or yet). ``Damaged`` isolates the partition."""
        ground = self._ground
        async with self._reads:
            part = ground.part(pid)
            rows = _rows(part, first, end, bytes_max)
            if not rows:
                return []
            try:
                return await ground.on(ground.reader, partial(self._read, pid, rows))
            except NotFound:
                return []  # moved meanwhile
            except Damaged as e:
                index = e.index if isinstance(e, DamagedEntry) else first
                ground.isolate(pid, str(e), index - 1, part.end_in_log_below(index), 1)
                raise

    def _read(self, pid: int, rows: Sequence[Row]) -> list[bytes]:
        return [bytes(raw) for _, raw in raw_entries(self._ground.wal, pid, rows)]


def _rows(part: Part, first: int, end: int, bytes_max: int) -> list[Row]:
    rows: list[Row] = []
    if first < part.first_index:
        return rows
    for k in range(first - part.first_index, min(end - part.first_index, part.rows)):
        size = part.size(k)
        bytes_max -= size
        if not size or (rows and bytes_max < 0):
            break
        rows.append(part.row(k))
    return rows
