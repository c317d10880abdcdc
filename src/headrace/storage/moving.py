"""The mover's work on its thread: copies what lives of some partitions from the log into new segment files.

Owns the choice of file per partition (its own from ``segment_own_bytes_min`` live bytes, else a shared archive) and the writing. Decides nothing
about which partitions, commits nothing. Blocks; raises ``OSError`` after removing what it wrote."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from headrace.storage.files import DISK_FULL, Files
from headrace.storage.hauling import Share, haul
from headrace.storage.index import Rows
from headrace.storage.keys import FileMeta, SegmentRef
from headrace.storage.reads import LogBytes, bytes_of, raw_entries, rows_of
from headrace.storage.segments import Section, SegmentWriter
from headrace.storage.system import SYSTEM_PID

_ROWS: Final = 4096
"""Rows worked on at a time: millions of small objects alive at once would stop the loop for the garbage collector."""
_TOGETHER_BYTES: Final = 8 * 1024 * 1024
_TOGETHER_PARTITIONS: Final = 2048
"""What of archives is read together, and so in memory at once."""


class Job:
    """One partition of a pass. Records entries up to ``after`` live above ``floor``; above ``after`` everything lives."""

    __slots__ = ("after", "base_epoch", "checkpoint", "copied", "end_offset", "floor", "last_index", "pid", "rows")

    def __init__(self, pid: int, copied: Rows, *, after: int, floor: int, last_index: int, end_offset: int, checkpoint: bytes) -> None:
        self.pid = pid
        self.copied = copied
        self.rows = len(copied.columns[0])
        self.after = after
        self.floor = floor
        self.last_index = last_index
        self.end_offset = end_offset
        self.checkpoint = checkpoint
        """Packed; a copy is kept beside the entries."""
        self.base_epoch = 0
        """Of the entry at ``last_index``, 0 = not known."""


class Moves:
    """What a pass has written, synced and not yet committed."""

    __slots__ = ("bad", "checkpoints", "files", "moved_bytes", "refs")

    def __init__(self) -> None:
        self.files: dict[int, FileMeta] = {}
        self.refs: dict[int, list[SegmentRef]] = {}
        self.checkpoints: dict[int, tuple[int, int]] = {}
        """pid: (file, bytes) of the copy of its checkpoint."""
        self.bad: dict[int, list[int]] = {}
        """pid: indexes of entries that are damaged in the log."""
        self.moved_bytes = 0


class Writing:
    """The files of one pass."""

    def __init__(
        self, files: Files, directory: str, take_number: Callable[[], int], *, own_bytes_min: int, file_bytes: int, wall_ms: int
    ) -> None:
        self._files = files
        self._directory = directory
        self._take_number = take_number
        self._own_bytes_min = own_bytes_min
        self.file_bytes = file_bytes
        self._wall_ms = wall_ms
        self._open: SegmentWriter | None = None
        self._made: list[SegmentWriter] = []
        self.moves = Moves()

    def move(self, wal: LogBytes, jobs: Sequence[Job]) -> Moves:
        """All jobs, which are sorted by partition: own files first, then archives; every file is durable when it returns."""
        shared: list[tuple[Job, int]] = []  # with the bytes of its entries that go into an archive
        entries = 0
        try:
            for job in jobs:
                live, nbytes = bytes_of(job.copied, job.after, job.floor)
                entries += live
                self.moves.moved_bytes += nbytes
                if nbytes >= self._own_bytes_min:
                    self._copy(wal, job)
                    self.close(job.pid)
                    live = nbytes = 0
                if live or job.checkpoint:
                    shared.append((job, nbytes))
            at = 0
            while at < len(shared):
                upto, nbytes = at, 0
                while upto < len(shared) and upto - at < _TOGETHER_PARTITIONS and nbytes < _TOGETHER_BYTES:
                    nbytes += shared[upto][1]
                    upto += 1
                self._copy_together(wal, shared[at:upto])
                at = upto
            self.finish()
        except OSError as e:
            self.abandon()
            if entries or e.errno not in DISK_FULL or any(job.pid == SYSTEM_PID for job in jobs):
                raise
            # The log makes room although the disk has none: only copies of checkpoints are missing, which the small state has too, but for the
            # system journal's own, which is all that is left of the catalogue if that state is lost.
            self.moves = Moves()
        except BaseException:
            self.abandon()
            raise
        return self.moves

    def writer(self) -> SegmentWriter:
        """The open file, a new one if there is none."""
        if self._open is None:
            self._open = SegmentWriter(self._files, self._directory, self._take_number(), self._wall_ms)
            self._made.append(self._open)
        return self._open

    def close(self, own_pid: int = -1) -> list[Section]:
        """Finishes the open file."""
        writer, self._open = self._open, None
        if writer is None:
            return []
        sections = writer.finish()
        live = sum(s.ref.nbytes + s.checkpoint_bytes for s in sections)
        self.moves.files[writer.number] = FileMeta(writer.size, live, own_pid)
        for section in sections:
            if section.ref.entries:
                self.moves.refs.setdefault(section.pid, []).append(section.ref)
            if section.checkpoint_at:
                self.moves.checkpoints[section.pid] = (writer.number, section.checkpoint_bytes)
        return sections

    def finish(self, own_pid: int = -1) -> None:
        """Everything is durable when it returns."""
        self.close(own_pid)
        if self._made:
            self._files.fsync_dir(self._directory)

    def abandon(self) -> None:
        """Removes everything written."""
        for writer in self._made:
            writer.abandon()
        self._made.clear()
        self._open = None

    def _copy(self, wal: LogBytes, job: Job) -> None:
        """Into files of its own."""
        pid, bad = job.pid, list[int]()
        writer = self._roomy()
        tail = job.last_index if job.last_index > job.after else 0
        writer.begin(pid, first_index=job.copied.first_index, last_index=job.last_index, end_offset=job.end_offset, tail_index=tail)
        live = rows_of(job.copied, job.after, job.floor)
        while some := list(islice(live, _ROWS)):
            follows = iter(some)
            for index, raw in raw_entries(wal, pid, [row for row, *_ in some], bad=bad):
                if writer.size >= self.file_bytes:
                    writer.cut(index - 1, tail_index=index - 1 if index - 1 > job.after else 0)
                    writer.end()
                    self.close(pid)
                    writer = self.writer()
                    writer.begin(pid, first_index=index, last_index=job.last_index, end_offset=job.end_offset, tail_index=tail)
                row, base, count, wall = next(follows)
                while row[2] != index:
                    row, base, count, wall = next(follows)
                writer.add(raw, index, base, count, wall)
        writer.end()
        if bad:
            self.moves.bad[pid] = bad

    def _copy_together(self, wal: LogBytes, jobs: Sequence[tuple[Job, int]]) -> None:
        """Into archives, with the checkpoints. A copy of a checkpoint never stands in a partition's own segment: that goes as a whole when it is
        dead."""
        live = [list(rows_of(job.copied, job.after, job.floor)) if nbytes else [] for job, nbytes in jobs]
        shares = [Share(job.pid, [row for row, *_ in rows]) for (job, _), rows in zip(jobs, live, strict=True)]
        haul(shares, wal.pread)
        for (job, _), rows, share in zip(jobs, live, shares, strict=True):
            writer = self._roomy()
            if not rows:
                writer.begin(job.pid, first_index=job.last_index + 1, last_index=job.last_index, end_offset=job.end_offset)
            else:
                tail = job.last_index if job.last_index > job.after else 0
                writer.begin(job.pid, first_index=job.copied.first_index, last_index=job.last_index, end_offset=job.end_offset, tail_index=tail)
                for ((_, _, index), base, count, wall), raw in zip(rows, share.found, strict=True):
                    if raw is None:
                        self.moves.bad.setdefault(job.pid, []).append(index)
                    else:
                        writer.add(raw, index, base, count, wall)
            writer.end(job.checkpoint)

    def _roomy(self) -> SegmentWriter:
        if self.writer().size >= self.file_bytes:
            self.close()
        return self.writer()
