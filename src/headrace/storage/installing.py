"""A partition replaced as a whole by what another broker has of it: staged beside the old data, then switched in one commit.

Owns the directory ``staged`` and the switch. Does not know where the data comes from, nor whether it may take the place of what is here: that is
``core.replica``'s.

I1 Nobody reads what is staged before the commit that names it. A start removes what no commit names and puts into place what one does. I2 The commit
is the switch: before it the old data counts whatever else lies on the disk, after it the new. I3 What the log had of the partition is given up by
marks that stand behind the commit and before anything new; before the commit, if nothing takes its place. I4 Of a partition that is isolated, what
the log had is set aside before the commit.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

from headrace.model.errors import Damaged, DiskFull, Invalid, StorageError, SyncFailed
from headrace.storage import aside, keys, segments
from headrace.storage.files import DISK_FULL
from headrace.storage.ground import Ground
from headrace.storage.index import Part
from headrace.storage.keys import FileMeta, Moved, SegmentRef, number_key
from headrace.storage.segments import Section, SegmentWriter
from headrace.storage.state import StateStore
from headrace.wire.journal import RECORDS_HEAD, Kind
from headrace.wire.replication import Piece

_RECORDS: Final = int(Kind.RECORDS)
_T = TypeVar("_T")


class Staged(NamedTuple):
    """What is durable beside the old data, for ``Installs.replace``: a checkpoint and the records that it needs."""

    index: int  # type: ignore[assignment]  # the journal's word; tuple.index is not used
    checkpoint: bytes
    """Packed (``keys.pack_checkpoint``)."""
    sections: Sequence[Section]
    copy: Section
    files: dict[int, FileMeta]


NOTHING: Final = Staged(0, b"", (), Section(0, SegmentRef(0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 0, 0), {})
"""In its place a partition begins anew, without any data."""


class Staging:
    """Records that come in, in the order of their offsets, on their way into new segment files. One caller at a time."""

    def __init__(self, ground: Ground, pid: int) -> None:
        self.pid = pid
        self.end_offset = 0
        """Exclusive end of the records that were taken."""
        self.last_index = 0
        self._ground = ground
        self._writer: SegmentWriter | None = None
        self._numbers: list[int] = []
        self._sections: list[Section] = []
        self._files: dict[int, FileMeta] = {}
        self._copy = 0

    async def add(self, pieces: Sequence[Piece]) -> None:
        """Takes verified entries. ``Invalid``: they are no records, or do not follow on what was taken. ``StorageError``: begin again."""
        index, offset = self.last_index, self.end_offset
        for entry, _ in pieces:
            if entry.kind != _RECORDS or entry.index <= index or entry.base_offset < offset or entry.record_count < 1:
                raise Invalid(f"the entry at index {entry.index} does not follow on what was sent of partition {self.pid}")
            index, offset = entry.index, entry.base_offset + entry.record_count
        await self._on_disk(partial(self._add, pieces))
        self.last_index, self.end_offset = index, offset

    async def finish(self, checkpoint: bytes) -> Staged:
        """All that was taken, with the checkpoint that needs it, is durable when it returns; more may follow, for a newer one. ``Damaged``: the
        checkpoint is none, or is older than the records. ``StorageError``: all is to be begun again."""
        found = keys.unpack_checkpoint(checkpoint)
        if found.index < self.last_index or found.next_offset < self.end_offset:
            raise Damaged(f"the checkpoint at index {found.index} is older than the records that were sent with it")
        self.last_index, self.end_offset = found.index, found.next_offset
        return await self._on_disk(partial(self._finish, found.index, found.next_offset, checkpoint))

    def discard(self) -> None:
        """Gives it all up; the files go when the disk lets them, at the latest at the next start."""
        self._ground.io.submit(self._discard, lambda _result, _error: None)

    def handed(self) -> None:
        """Its files are for ``replace``; there is nothing to discard any more."""
        self._numbers = []

    # ------------------------------------------------------------ on the storage thread

    async def _on_disk(self, work: Callable[[], _T]) -> _T:
        try:
            return await self._ground.on(self._ground.io, work)
        except OSError as e:
            kind = DiskFull if e.errno in DISK_FULL else StorageError
            raise kind(f"what comes in for partition {self.pid} cannot be stored: {e}") from e

    def _open(self, first_index: int) -> SegmentWriter:
        if self._writer is None:
            ground = self._ground
            ground.files.make_dir(ground.staged_directory)
            number = ground.take_number()
            self._writer = SegmentWriter(ground.files, ground.staged_directory, number, ground.wall_ms())
            self._numbers.append(number)
            self._writer.begin(self.pid, first_index=first_index, last_index=first_index, end_offset=self.end_offset)
        return self._writer

    def _add(self, pieces: Sequence[Piece]) -> None:
        last = self.last_index
        for entry, raw in pieces:
            first = self._sections[-1].ref.last_index + 1 if self._sections else 1
            writer = self._open(first)
            writer.add(raw, entry.index, entry.base_offset, entry.record_count, RECORDS_HEAD.unpack_from(entry.payload)[3])
            last = entry.index
            if writer.size >= self._ground.config.storage.segment_file_bytes:
                self._close(last)

    def _close(self, last_index: int, checkpoint: bytes = b"", *, own: bool = True) -> None:
        writer, self._writer = self._writer, None
        assert writer is not None
        writer.cut(last_index, tail_index=0)
        writer.end(checkpoint)
        self._done(writer, own=own)

    def _done(self, writer: SegmentWriter, *, own: bool) -> Section:
        (section,) = writer.finish()
        if section.ref.entries:
            self._sections.append(section)
        live = section.ref.nbytes + section.checkpoint_bytes
        self._files[writer.number] = FileMeta(writer.size, live, self.pid if own else -1)
        return section

    def _finish(self, index: int, next_offset: int, checkpoint: bytes) -> Staged:
        ground = self._ground
        if self._writer is not None:
            self._close(index)
        if self._copy:  # of an older checkpoint
            self._files.pop(self._copy, None)
            self._numbers.remove(self._copy)
            with suppress(FileNotFoundError):
                ground.files.unlink(segments.path_of(ground.staged_directory, self._copy))
        ground.files.make_dir(ground.staged_directory)
        self._copy = ground.take_number()
        self._numbers.append(self._copy)
        writer = SegmentWriter(ground.files, ground.staged_directory, self._copy, ground.wall_ms())
        writer.begin(self.pid, first_index=index + 1, last_index=index, end_offset=next_offset)
        writer.end(checkpoint)
        copy = self._done(writer, own=False)
        ground.files.fsync_dir(ground.staged_directory)
        return Staged(index, checkpoint, tuple(self._sections), copy, dict(self._files))

    def _discard(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
        for number in self._numbers:
            with suppress(OSError):
                self._ground.files.unlink(segments.path_of(self._ground.staged_directory, number))


class Installs:
    """See the module's head."""

    def __init__(self, ground: Ground, durable: Callable[[Part, int], Awaitable[None]], truncate: Callable[[Part, int], Awaitable[None]]) -> None:
        self._ground = ground
        self._durable = durable
        self._truncate = truncate

    async def replace(self, pid: int, staged: Staged, base_epoch: int) -> None:
        """Puts ``staged`` into the place of everything that is here of the partition, its quarantine too; ``base_epoch``: of the entry at its index.
        Nothing may be appended meanwhile. ``DiskFull``: it may be tried again; nothing has changed, unless nothing at all was to stay: then the
        partition may be isolated until it is done. ``SyncFailed``: the store has failed."""
        ground = self._ground
        async with ground.moving:
            part = ground.part(pid)
            await self._durable(part, part.last_index)
            if pid in ground.damaged:
                try:
                    await aside.rows(ground, part, part.first_index)
                except OSError as e:
                    kind = DiskFull if e.errno in DISK_FULL else StorageError
                    raise kind(f"what is damaged of partition {pid} cannot be set aside: {e}") from e
            if not staged.index:  # nothing of what is here shall be left: not even by a death before the marks
                await self._truncate(part, 1)
            puts, made, gone = self._plan(part, staged, base_epoch)
            file_puts, after = ground.files_changed(gone, made)
            try:
                await ground.writer.submit(puts | file_puts)
            except DiskFull:
                if not staged.index:  # its checkpoint and segments are there, what the log had after them is not: as a start would find it
                    ground.isolate(pid, "what is here of it is being given up, and the disk is full", 0, 0, -1)
                raise
            await self._put_in_place(staged)
            self._switch(part, base_epoch)
            ground.apply_files(after)
            part = ground.part(pid)
            for _ in range(2 if staged.index else 0):  # the second, past the end of what is left, says that nothing before it counts
                await self._truncate(part, staged.index + 1)

    def _plan(self, part: Part, staged: Staged, base_epoch: int) -> tuple[dict[bytes, bytes | None], dict[int, FileMeta], dict[int, int]]:
        """The puts, the new files, and how many live bytes old files lose."""
        pid, old = part.pid, part.moved
        gone: dict[int, int] = {}
        for ref in old.refs:
            gone[ref.file] = gone.get(ref.file, 0) - (ref.nbytes - ref.dead_bytes)
        if old.checkpoint_file:
            gone[old.checkpoint_file] = gone.get(old.checkpoint_file, 0) - old.checkpoint_bytes
        wake, checkpoint = number_key(keys.WAKE, pid), staged.checkpoint or None
        wake_at_ms = keys.unpack_checkpoint(checkpoint).wake_at_ms if checkpoint else 0
        now = Moved(
            moved_to=staged.index,
            epoch=base_epoch,
            promised=part.promised,
            refs=tuple(section.ref for section in staged.sections),
            checkpoint_file=staged.copy.ref.file,
            checkpoint_bytes=staged.copy.checkpoint_bytes,
            copy_index=staged.index,
            base_epoch=base_epoch,
            generation=part.obeyed[0],
            version=part.obeyed[1],
        )
        puts: dict[bytes, bytes | None] = {
            number_key(keys.MOVED, pid): keys.pack(now),
            number_key(keys.CHECKPOINT, pid): checkpoint,
            wake: wake_at_ms.to_bytes(8, "big") if wake_at_ms else None,
            number_key(keys.QUARANTINE, pid): None,
        }
        return puts, dict(staged.files), gone

    async def _put_in_place(self, staged: Staged) -> None:
        ground = self._ground
        try:
            await ground.on(ground.io, partial(_rename, ground, sorted(staged.files)))
        except OSError as e:  # the commit names files that are not where they belong: only a start can put that right
            error = SyncFailed(f"a segment that was sent by another broker cannot be put into place: {e}")
            ground.writer.on_failed(error)
            raise error from e

    def _switch(self, old: Part, base_epoch: int) -> None:
        """The partition's object is one that knows only what the small state says."""
        ground, pid = self._ground, old.pid
        ground.cache.clear(old.tail)
        ground.recovered.take(pid, 0, -1)
        ground.epochs.pop(pid, None)
        ground.damaged.pop(pid, None)
        ground.parts.pop(pid)
        part = ground.load_for_recovery(pid)
        part.promised, part.obeyed, part.last_epoch = max(old.promised, part.promised), max(old.obeyed, part.obeyed), base_epoch
        if part.wake_at_ms:
            ground.wakes[pid] = part.wake_at_ms
        else:
            ground.wakes.pop(pid, None)


def settle(ground: Ground, state: StateStore) -> None:
    """At a start, before segments are listed: what a commit names goes into place, all else that was staged goes."""
    files, directory = ground.files, ground.staged_directory
    if not files.exists(directory):
        return
    damaged: list[bytes] = []
    named = {keys.number_of(keys.FILE, key) for key, _ in state.scan(keys.FILE, damaged=damaged)}
    named.update(keys.number_of(keys.FILE, key) for key in damaged)
    there = {number: name for name in files.listdir(directory) if (number := segments.number_of(name)) is not None}
    _rename(ground, sorted(number for number in there if number in named))
    for number, name in there.items():
        if number not in named:
            files.unlink(f"{directory}/{name}")
    files.fsync_dir(directory)


def _rename(ground: Ground, numbers: Sequence[int]) -> None:
    files = ground.files
    for number in numbers:
        files.rename(segments.path_of(ground.staged_directory, number), segments.path_of(ground.segment_directory, number))
    if numbers:
        files.fsync_dir(ground.segment_directory)
        files.fsync_dir(ground.staged_directory)
