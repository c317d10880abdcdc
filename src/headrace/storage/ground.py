"""What all rooms of the disk store stand on: its directories, threads, small state, and the partitions that have an object.

Owns loading a partition's object from the small state, segment files' handles and sizes, and isolating a damaged partition. Decides nothing else.

I1 Values of the small state that concern segments (``m/``, ``f/``) are computed and submitted only while ``moving`` is held. I2 A damaged partition
is in ``damaged`` and in the small state before anybody is told.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from headrace.log import get_logger
from headrace.model.config import Config
from headrace.model.errors import Damaged, NotFound
from headrace.storage import keys, segments
from headrace.storage.api import Damage, Owner, Replication, StoredEntry
from headrace.storage.cache import TailCache
from headrace.storage.files import Files, Handle
from headrace.storage.flusher import Lane
from headrace.storage.index import Part
from headrace.storage.keys import FileMeta, Quarantine, SegmentRef
from headrace.storage.segments import Rows
from headrace.storage.state import StateStore, StateWriter
from headrace.storage.wal import Wal

HANDLES_MAX: Final = 64
ROWS_MAX: Final = 512
_ENTRY_COST: Final = 200
_T = TypeVar("_T")
log = get_logger("storage")


class SegmentFiles:
    """Open segment files and their sparse indexes, a bounded number of each, shared by all threads."""

    def __init__(self, files: Files, directory: str) -> None:
        self.files = files
        self.directory = directory
        self._lock = threading.Lock()
        self._open: OrderedDict[int, tuple[Handle, list[int]]] = OrderedDict()
        self._rows: OrderedDict[tuple[int, int], Rows] = OrderedDict()

    @contextmanager
    def opened(self, number: int) -> Iterator[Handle]:
        """The file's handle, kept open for the next reader. ``NotFound`` if it is gone."""
        with self._lock:
            held = self._open.get(number)
            if held is None:
                try:
                    held = self._open[number] = (self.files.open(segments.path_of(self.directory, number)), [0])
                except FileNotFoundError:
                    raise NotFound(f"segment {number} was removed", hint="look the entry up again: it was moved") from None
            else:
                self._open.move_to_end(number)
            held[1][0] += 1
            for other in [n for n, (_, pins) in self._open.items() if not pins[0]][: max(0, len(self._open) - HANDLES_MAX)]:
                self.files.close(self._open.pop(other)[0])
        try:
            yield held[0]
        finally:
            with self._lock:
                held[1][0] -= 1
                if not held[1][0] and self._open.get(number) is not held:
                    self.files.close(held[0])

    def rows(self, handle: Handle, pid: int, ref: SegmentRef) -> Rows:
        """The sparse index of a section, loaded at first use."""
        key = (ref.file, ref.position)
        with self._lock:
            found = self._rows.get(key)
            if found is not None:
                self._rows.move_to_end(key)
                return found
        found = segments.load_rows(self.files, handle, pid, ref)
        with self._lock:
            self._rows[key] = found
            if len(self._rows) > ROWS_MAX:
                self._rows.popitem(last=False)
        return found

    def remove(self, number: int) -> None:
        """Unlinks a file; who reads it reads on to the end. The directory is not synced."""
        with self._lock:
            held = self._open.pop(number, None)
            for key in [k for k in self._rows if k[0] == number]:
                del self._rows[key]
            if held is not None and not held[1][0]:
                self.files.close(held[0])
        with suppress(FileNotFoundError):
            self.files.unlink(segments.path_of(self.directory, number))

    def close(self) -> None:
        with self._lock:
            for handle, _pins in self._open.values():
                self.files.close(handle)
            self._open.clear()
            self._rows.clear()


class RecoveredEntries:
    """What recovery has read anyway, kept for the first load of each partition: bounded, whole per partition or not at all."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._kept: dict[int, list[StoredEntry]] = {}
        self._not_whole: set[int] = set()

    def add(self, pid: int, entry: StoredEntry) -> None:
        kept = self._kept.get(pid)
        if kept is None:
            if pid in self._not_whole:
                return
            kept = self._kept[pid] = []
        self._left -= len(entry.payload) + _ENTRY_COST
        if self._left < 0 or (kept and kept[-1].index + 1 != entry.index):
            self._left += sum(len(e.payload) + _ENTRY_COST for e in self._kept.pop(pid)) + len(entry.payload) + _ENTRY_COST
            self._not_whole.add(pid)
            return
        kept.append(entry)

    def take(self, pid: int, after: int, last_index: int) -> list[StoredEntry] | None:
        """The entries above ``after``, if they are all here; asked once."""
        kept = self._kept.pop(pid, None)
        if not kept or kept[0].index > after + 1 or kept[-1].index != last_index:
            return None
        return kept[after + 1 - kept[0].index :]

    def clear(self) -> None:
        self._kept.clear()


class Ground:
    """See the module's head."""

    wal: Wal
    owner: Owner
    state: StateStore
    writer: StateWriter

    def __init__(
        self, root: str, config: Config, loop: asyncio.AbstractEventLoop, files: Files, *, io: Lane, reader: Lane, wall_ms: Callable[[], int],
        now_ns: Callable[[], int],
    ) -> None:
        self.config = config
        self.loop = loop
        self.files = files
        self.root = root
        self.wal_directory = f"{root}/wal"
        self.segment_directory = f"{root}/segments"
        self.state_directory = f"{root}/state"
        self.aside_directory = f"{root}/set-aside"
        self.staged_directory = f"{root}/staged"
        self.io = io
        self.reader = reader
        self.wall_ms = wall_ms
        self.now_ns = now_ns
        self.parts: dict[int, Part] = {}
        self.file_pids: dict[int, set[int]] = {}
        """Which partitions have rows in which log file."""
        self.file_entries: dict[int, int] = {}
        """How many entries were written to which log file."""
        self.cache = TailCache(config.storage.tail_cache_bytes)
        self.segments = SegmentFiles(files, self.segment_directory)
        self.metas: dict[int, FileMeta] = {}
        """All segment files."""
        self.next_number = 1
        self.damaged: dict[int, Quarantine] = {}
        self.deleted: dict[int, int] = {}
        """Deleted partitions whose entries may still be in the log: the newest log file then."""
        self.wakes: dict[int, int] = {}
        self.recovered = RecoveredEntries(config.storage.tail_cache_bytes)
        self.epochs: dict[int, list[tuple[int, int]]] = {}
        """(first index, epoch) of each run of one epoch that recovery has found in the log, kept as long as ``recovered``."""
        self.replication: Replication | None = None
        """Who knows what of a partition is committed, if any is replicated."""
        self.lost_state = False
        """The small state was lost and is rebuilt from segments and log at this start."""
        self.system_copy = b""
        """What a rebuild has found of the small state's own copy."""
        self.moving = asyncio.Lock()

    def on(self, lane: Lane, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        """Runs ``work`` on a lane; done with its result on the loop."""
        future: asyncio.Future[_T] = self.loop.create_future()

        def done(result: _T, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        lane.submit(work, done)
        return future

    # ------------------------------------------------------------ partitions

    def part(self, pid: int) -> Part:
        """The partition's object, made from the small state if there is none; an unknown partition is an empty one."""
        part = self.parts.get(pid)
        if part is None:
            part = self.parts[pid] = Part(pid)
            self._load(part)
            if part.checkpoint_index > part.moved.moved_to:
                # What follows the segments must be in the log, and recovery has found nothing there.
                why = f"the checkpoint at index {part.checkpoint_index} is past what is stored, which ends at {part.moved.moved_to}"
                self.isolate(pid, why, part.checkpoint_index, part.next_offset, part.checkpoint_index - part.moved.moved_to)
        return part

    def glance(self, pid: int) -> Part:
        """As ``part``, for a look: what is made for it alone, and of an idle partition, is not kept."""
        known = pid in self.parts
        part = self.part(pid)
        if not known:
            self.forget(part)
        return part

    def load_for_recovery(self, pid: int) -> Part:
        """As ``part``, before the log was read."""
        part = self.parts.get(pid)
        if part is None:
            part = self.parts[pid] = Part(pid)
            self._load(part)
        return part

    def _load(self, part: Part) -> None:
        pid = part.pid
        try:
            part.moved = keys.unpack_moved(self.state.get(keys.number_key(keys.MOVED, pid)))
            raw = self.state.get(keys.number_key(keys.CHECKPOINT, pid))
            checkpoint = keys.unpack_checkpoint(raw) if raw is not None else None
        except Damaged as e:
            if pid not in self.damaged:
                self.isolate(pid, str(e), 0, 0, -1)
            return
        moved = part.moved
        part.last_index = part.durable_index = moved.moved_to
        part.last_epoch, part.promised = max(part.last_epoch, moved.epoch), max(part.promised, moved.promised)
        part.obeyed = max(part.obeyed, (moved.generation, moved.version))
        if not part.rows:
            part.first_index = moved.moved_to + 1
        if moved.refs:
            part.next_offset = moved.refs[-1].end_offset
        if checkpoint is not None:
            part.checkpoint_epoch, part.checkpoint_index, part.checkpoint_floor = checkpoint.epoch, checkpoint.index, checkpoint.floor_offset
            part.checkpoint_next, part.wake_at_ms = checkpoint.next_offset, checkpoint.wake_at_ms
            part.floor = part.settled_floor = checkpoint.floor_offset
            part.last_index = part.durable_index = max(part.last_index, checkpoint.index)
            part.last_epoch = max(part.last_epoch, checkpoint.epoch)
            part.next_offset = max(part.next_offset, checkpoint.next_offset)

    def reload(self, part: Part) -> None:
        """Reads again what the small state has of a partition; its rows in the log stay."""
        self._load(part)
        part.drop_rows(part.moved.moved_to + 1 - part.first_index)
        if part.rows:
            part.last_index = part.durable_index = max(part.last_index, part.first_index + part.rows - 1)
        part.next_offset = max(part.next_offset, part.end_in_log())
        part.set_floor(part.floor)

    def state_readable(self, pid: int) -> bool:
        """Whether what the small state has of a partition can be read."""
        try:
            keys.unpack_moved(self.state.get(keys.number_key(keys.MOVED, pid)))
            raw = self.state.get(keys.number_key(keys.CHECKPOINT, pid))
            return raw is None or bool(keys.unpack_checkpoint(raw))
        except Damaged:
            return False

    def forget(self, part: Part) -> None:
        """Drops an object that holds nothing which the small state does not."""
        if part.forgettable and part.pid not in self.damaged:
            self.cache.clear(part.tail)
            self.parts.pop(part.pid, None)

    # ------------------------------------------------------------ damage

    def isolate(self, pid: int, why: str, last_valid_index: int, last_valid_offset: int, lost_entries_max: int, file: int = 0) -> None:
        """Takes a partition out of service until it is repaired. The first finding is kept."""
        if pid in self.damaged:
            return
        found = Quarantine(why, last_valid_index, last_valid_offset, lost_entries_max, self.wall_ms(), file)
        self.damaged[pid] = found
        log.error("partition %d is isolated: %s", pid, why)
        if hasattr(self, "writer"):
            self.submit({keys.number_key(keys.QUARANTINE, pid): keys.pack(found)})
        if hasattr(self, "owner"):
            self.owner.quarantined(pid, why)

    def submit(self, puts: Mapping[bytes, bytes | None]) -> None:
        """Writes to the small state without waiting; a failure shows at the next thing that waits."""
        self.writer.submit(puts).add_done_callback(_observed)

    # ------------------------------------------------------------ segment files

    def take_number(self) -> int:
        return self.take_numbers(1)

    def take_numbers(self, count: int) -> int:
        """The first of so many; not all need be used."""
        self.next_number += count
        return self.next_number - count

    def files_changed(self, change: Mapping[int, int], made: Mapping[int, FileMeta]) -> tuple[dict[bytes, bytes | None], dict[int, FileMeta | None]]:
        """Puts for files whose live bytes change by ``change`` and for new ones; a file without live bytes is to be removed (None)."""
        after: dict[int, FileMeta | None] = dict(made)
        for number, delta in change.items():
            meta = after.get(number) or self.metas.get(number)
            if meta is not None:
                live = max(0, meta.live_bytes + delta)
                after[number] = FileMeta(meta.nbytes, live, meta.own_pid) if live else None
        puts = {keys.number_key(keys.FILE, n): keys.pack(m) if m is not None else None for n, m in after.items()}
        return puts, after

    def apply_files(self, after: Mapping[int, FileMeta | None]) -> None:
        """Once the puts of ``files_changed`` are durable: remembers and unlinks."""
        gone = []
        for number, meta in after.items():
            if meta is None:
                self.metas.pop(number, None)
                gone.append(number)
            else:
                self.metas[number] = meta
        if gone:
            self.io.submit(lambda: self._unlink(gone), _ignored)

    def _unlink(self, numbers: list[int]) -> None:
        for number in numbers:
            self.segments.remove(number)
        self.files.fsync_dir(self.segment_directory)


def shown(q: Quarantine) -> Damage:
    return Damage(q.why, q.last_valid_index, q.last_valid_offset, q.lost_entries_max, q.since_ms)


def _ignored(_result: object, error: BaseException | None) -> None:
    """A segment that could not be unlinked is found at the next start."""
    if error is not None:
        log.warning("a segment file could not be removed: %s", error)


def _observed(future: "asyncio.Future[None]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("the small state could not be written: %s", error)
