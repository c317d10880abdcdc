"""The write-ahead log: gathers entries of all partitions, writes and syncs them together, one flush at a time.

Owns what gathers, the flush in flight, rotation and failure. Does not know what entries mean (but that markers take no index), nor which partition
still needs which file. Everything but ``read`` is called on the loop. Time and randomness come in as callables.

I1 One flush is in flight at a time; the next starts when it has ended, with all that gathered: no timer delays a lone entry. I2 ``on_flushed``
says "durable" only after the durable write returned, in the order of flushes, before the next one has ended. I3 A failed write or sync is never
retried: the log is FAILED from then on, everything that waits fails, nothing more is taken. I4 Entries of one partition are flushed in the order they
were appended. I5 Once idle for 20 ms a closing flush repeats the last directory, so that damage of the last flush is told from a torn one.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from headrace.model import limits
from headrace.model.errors import Damaged, Invalid, SyncFailed
from headrace.storage.entry import Appended
from headrace.storage.files import DISK_FULL, Buffer, Files, Handle
from headrace.storage.flusher import Lane
from headrace.storage.gathering import Gathering, bytes_of, row_of
from headrace.storage.logwrites import LogWrites
from headrace.storage.walfiles import Continuation, Later, OpenFile, WalFile, WalFiles
from headrace.storage.walformat import (
    CLOSING,
    DATA_START,
    ENTRY_BYTES,
    HEAD_BYTES,
    ROW,
    Entry,
    FileHeader,
    Located,
    Previous,
    Row,
    decode_entry,
    encode_head,
    encode_header,
    padded,
    seed_of,
)

IDLE_S: Final = 0.02
ROWS_MAX: Final = 16_384
INLINE_NS_MAX: Final = 500_000
INLINE_ONCE_NS_MAX: Final = 5_000_000
INLINE_PAUSE_NS: Final = 250_000_000
_RESERVE_FLUSHES: Final = 16
_ZEROS: Final = bytes(512)


class FlushResult(NamedTuple):
    """A flush that ended. ``slots``: what it held; a partition may stand in several, in order."""

    seq: int
    error: SyncFailed | None
    """Nothing of it may be taken as durable, the outcome is unknown."""
    slots: list[Appended]
    file_id: int
    entry_count: int
    nbytes: int
    """Written, with heads and padding."""
    took_ns: int

    @property
    def rows(self) -> Sequence[Row]:
        """(partition, first index, last index, bytes, marker) of each slot."""
        return [row_of(slot) for slot in self.slots]

    @property
    def located(self) -> Located:
        """Where its entries are; nowhere after an error."""
        entries = [entry for slot in self.slots for entry in (slot, *(slot.more or ()))] if self.error is None else []
        return Located(
            self.file_id,
            [e.pid for e in entries],
            [e.epoch for e in entries],
            [e.index for e in entries],
            [e.kind for e in entries],
            [e.position for e in entries],
            [e.length for e in entries],
        )


class _Flight:
    """The flush that is being written."""

    __slots__ = ("entry_bytes", "entry_count", "oldest_id", "previous", "seq", "slots", "started_ns", "total_bytes")

    def __init__(
        self,
        seq: int,
        slots: list[Appended],
        entry_count: int,
        entry_bytes: int,
        total_bytes: int,
        oldest_id: int,
        previous: Previous,
        started_ns: int,
    ) -> None:
        self.seq = seq
        self.slots = slots
        self.entry_count = entry_count
        self.entry_bytes = entry_bytes
        self.total_bytes = total_bytes
        self.oldest_id = oldest_id
        self.previous = previous
        self.started_ns = started_ns


def entry_bytes_max(file_bytes: int) -> int:
    """The largest entry that a log file of that size takes."""
    return _reserve_at(file_bytes) - DATA_START - HEAD_BYTES - (_rows_max(file_bytes) + 1) * ROW.size - 512


def _rows_max(file_bytes: int) -> int:
    return max(16, min(ROWS_MAX, file_bytes // 512))


def _reserve_at(file_bytes: int) -> int:
    return file_bytes - padded(HEAD_BYTES + _rows_max(file_bytes) * ROW.size) - _RESERVE_FLUSHES * 512


class Wal:
    """See the module's head. ``start()`` before anything else."""

    def __init__(
        self,
        files: Files,
        directory: str,
        *,
        after: Continuation,
        on_flushed: Callable[[FlushResult], None],
        writes: LogWrites,
        background: Lane,
        later: Later,
        random_u64: Callable[[], int],
        wall_ms: Callable[[], int],
        now_ns: Callable[[], int] = time.perf_counter_ns,
        on_full: Callable[[bool], None] = lambda full: None,
        file_bytes: int = limits.WAL_FILE_BYTES,
        flush_bytes_max: int = limits.FLUSH_BYTES_MAX,
        spares_max: int = 2,
        inline_bytes_max: int = 0,
    ) -> None:
        """``writes`` are of this log alone; ``background`` prepares and removes files. ``on_full(True)``: the disk has no room for the
        next file and flushes wait for it; ``on_full(False)``: they go on."""
        self.error: SyncFailed | None = None
        self.flushes = 0
        self.written_bytes = 0
        self._files = files
        self._after = after
        self._on_flushed = on_flushed
        self._on_full = on_full
        self._writes = writes
        self._later = later
        self._random_u64 = random_u64
        self._wall_ms = wall_ms
        self._now_ns = now_ns
        self._rows_max = _rows_max(file_bytes)
        self._inline_bytes_max = inline_bytes_max
        self._inlining = False
        self._write_ns = 0
        """Moving average of what one small durable write takes."""
        self._inline_from_ns = 0
        self._reserve_at = _reserve_at(file_bytes)
        self._entry_bytes_max = entry_bytes_max(file_bytes)
        self._flush_bytes_max = min(flush_bytes_max, self._entry_bytes_max)
        if self._entry_bytes_max < 4096:
            raise Invalid(f"a log file of {file_bytes} bytes is too small")
        self._set = WalFiles(
            files,
            directory,
            background=background,
            later=later,
            file_bytes=file_bytes,
            spares_max=spares_max,
            on_ready=self._ready,
            on_trouble=self._trouble,
        )
        self.gathering = Gathering(self._entry_bytes_max)
        """What waits for the next flush; ``append`` goes straight to it."""
        self._flight: _Flight | None = None
        self._file: OpenFile | None = None
        self._seed = 0
        self._salt = 0
        self._end = 0
        self._file_bytes = file_bytes
        self._seq = after.next_seq
        self._previous = after.previous
        self._starved = False
        self._rolling = False
        self._full = False
        self._closed_last = False
        self._ended_ns = 0
        self._timer = False
        self._told_oldest_id = 0
        self._stopping: Callable[[], object] | None = None
        self._stopped = False

    def start(self) -> None:
        """Begins a new file, whose header fixes for ever where the old one ends, and repeats the last directory in it. Blocks; raises ``OSError``."""
        self._set.start(self._after)
        file = self._set.take()
        assert file is not None, "start has one file ready"
        after, old = self._after, self._after.header
        header = self._header(
            file,
            previous_id=old.file_id if old else 0,
            previous_end=after.end,
            previous_salt=old.salt if old else 0,
            previous_seq=after.next_seq - 1,
        )
        self._begin(file, header)
        pieces, flight = self._build([], CLOSING)
        self._files.pwritev_durable(file.handle, [encode_header(header), *pieces], 0)
        self._complete(flight)

    @property
    def pending_bytes(self) -> int:
        """Entry bytes appended and not yet durable."""
        return self.gathering.nbytes + (self._flight.entry_bytes if self._flight is not None else 0)

    @property
    def total_bytes(self) -> int:
        """Bytes written in live files: what counts against the log's limit."""
        return self._set.total_bytes

    @property
    def in_flight(self) -> bool:
        return self._flight is not None

    @property
    def next_seq(self) -> int:
        """Number of the next flush."""
        return self._seq

    @property
    def released_id(self) -> int:
        """Files below are not read by any recovery from now on: a durable flush has said so."""
        return self._told_oldest_id

    def holds(self, pid: int) -> bool:
        """Whether entries of this partition wait to be durable."""
        return self.gathering.holds(pid) or (self._flight is not None and any(slot.pid == pid for slot in self._flight.slots))

    def files(self) -> list[WalFile]:
        """Live files, oldest first; the last one is being written."""
        return [WalFile(f.file_id, f.end) for f in self._set.live]

    def append(self, pid: int, epoch: int, index: int, kind: int, payload: bytes | Sequence[Buffer], nbytes: int) -> None:
        """Gathers one entry for the next flush: one call per partition and tick. A payload in pieces (``nbytes`` together) is joined.

        ``SyncFailed`` once the log has failed; ``Invalid`` if the entry cannot fit in a file (7/8 of it). Nothing is written before ``flush``.
        """
        self.gathering.append(pid, epoch, index, kind, payload if isinstance(payload, bytes) else b"".join(payload))

    def flush(self) -> None:
        """Starts a flush of what gathered if none is in flight (else it starts by itself when that one ends)."""
        gathering = self.gathering
        if self._flight is None and gathering.slots and self.error is None and not self._starved:
            self._start(inline=gathering.nbytes <= self._inline_bytes_max and not self._inlining)

    def read(self, file_id: int, position: int, length: int) -> Entry:
        """One durable entry, verified, from any thread. ``Damaged``; ``NotFound`` if the file was retired and is gone."""
        try:
            entry = decode_entry(self._set.pread(file_id, length, position))
        except OSError as e:
            raise Damaged(f"log file {file_id} cannot be read at {position}: {e}") from e
        except Damaged as e:
            raise Damaged(f"log file {file_id} at {position}: {e}") from e
        if ENTRY_BYTES + len(entry.payload) != length:
            raise Damaged(f"log file {file_id} at {position}: the entry has another length than it was written with")
        return entry

    def pread(self, file_id: int, position: int, length: int) -> bytes:
        """Bytes as they are, unverified, from any thread: for reading several entries at once (``walformat.decode_entry`` verifies each)."""
        return self._set.pread(file_id, length, position)

    def retire(self, file_id: int) -> None:
        """Nothing in this file is needed any more. It is removed or recycled once all older ones are retired and a flush that says so is durable (one
        is made within 20 ms)."""
        if self._set.retire(file_id) and self._flight is None:
            if self._starved:
                self._starve()
            else:
                self._arm()

    def roll(self) -> None:
        """Goes on in a new file, if one is ready and the log is idle; else nothing happens. What is in the old one can then be given up."""
        running = self.error is None and self._stopping is None and not self._stopped
        if running and self._flight is None and self._closed_last and not self.gathering.slots:
            self._rolling = True
            self._write([], CLOSING)

    async def close(self) -> None:
        """Flushes what gathered, ends with a closing flush and closes the files. ``SyncFailed`` if something could not be made durable."""
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stop(partial(_resolve, stopped))
        await stopped
        if self.error is not None:
            raise self.error

    def stop(self, done: Callable[[], object]) -> None:
        """As ``close``, with a callback; ``error`` says how it went. The lanes may be closed after it."""
        self._stopping = done
        if self.error is None and self._full:
            self._fail(_closed_while_full())
        elif self._flight is None:
            self._ended()

    def abandon(self, done: Callable[[], object] = lambda: None) -> None:
        """Closes the files without writing anything more; what waits is never answered."""
        if not self._stopped:
            self._stopped = True
            self._writes.after(lambda: self._set.close(done))  # not before the write in flight has returned

    # Flushing

    def _start(self, *, inline: bool = False) -> None:
        """Writes what gathered, as much as one flush may hold."""
        self._write(self.gathering.take(self._flush_bytes_max, self._rows_max), 0, inline=inline)

    def _write(self, slots: list[Appended], flags: int, *, inline: bool = False) -> None:
        file = self._file
        assert file is not None and self._flight is None, "started, and nothing in flight"
        entry_bytes = bytes_of(slots)
        needed = padded(HEAD_BYTES + len(slots) * ROW.size + len(self._previous.rows) + entry_bytes)
        header: bytes | None = None
        fresh: OpenFile | None = None
        if self._end + needed > (self._reserve_at if slots else self._file_bytes):
            fresh = self._set.take()
            if fresh is None:
                self.gathering.give_back(slots)
                self._starve()
                return
        elif self._rolling:
            fresh = self._set.take()
        self._rolling = False
        if fresh is not None:
            told = self._header(
                fresh, previous_id=file.file_id, previous_end=self._end, previous_salt=self._salt, previous_seq=self._seq - 1
            )
            self._begin(fresh, told)
            header, file = encode_header(told), fresh
        offset = self._end
        pieces, flight = self._build(slots, flags)
        if header is not None:
            pieces.insert(0, header)
            offset = 0
        self._flight = flight
        if inline and header is None and self._now_ns() >= self._inline_from_ns:
            self._write_here(file.handle, pieces, offset)
        else:
            self._writes.write(file.handle, pieces, offset, self._written)

    def _write_here(self, handle: Handle, pieces: list[Buffer], offset: int) -> None:
        """A small flush of an idle log is written on the loop itself, which saves a lone message two changes of thread, as long as the disk answers
        in a fraction of a millisecond; after one slow write none is for a while."""
        self._inlining = True
        began = self._now_ns()
        error: BaseException | None = None
        try:
            self._files.pwritev_durable(handle, pieces, offset)
        except OSError as e:
            error = e
        ended = self._now_ns()
        self._write_ns += (ended - began - self._write_ns) // 8
        if self._write_ns > INLINE_NS_MAX or ended - began > INLINE_ONCE_NS_MAX:
            self._inline_from_ns, self._write_ns = ended + INLINE_PAUSE_NS, 0
        try:
            self._written(None, error)
        finally:
            self._inlining = False

    def _build(self, slots: list[Appended], flags: int) -> tuple[list[Buffer], _Flight]:
        """The bytes of the next flush at the current end, and what is to be remembered of it."""
        file = self._file
        assert file is not None
        started_ns = self._now_ns()
        entries_at = HEAD_BYTES + len(slots) * ROW.size + len(self._previous.rows)
        start = self._end + entries_at
        laid = self.gathering.lay(slots, start)
        oldest_id = self._set.oldest_id
        head, zeros, total = encode_head(
            self._seed,
            file_id=file.file_id,
            position=self._end,
            seq=self._seq,
            rows=laid.directory,
            entry_bytes=laid.nbytes,
            entry_heads=laid.heads,
            previous=self._previous,
            flags=flags,
            oldest_id=oldest_id,
            wall_ms=self._wall_ms(),
        )
        pieces = laid.pieces
        pieces.insert(0, head)
        pieces.append(_ZEROS[:zeros])
        previous = Previous(file.file_id, self._end, total, entries_at, laid.directory)
        return pieces, _Flight(self._seq, slots, laid.entry_count, laid.nbytes, total, oldest_id, previous, started_ns)

    def _written(self, _result: object, error: BaseException | None) -> None:
        flight = self._flight
        if self._stopped or flight is None:
            return
        if error is not None:
            self._fail(SyncFailed(f"a write to the log failed: {error}", hint="look at the disk, then restart the broker: it recovers what is on it"))
            return
        self._flight = None
        self._complete(flight)
        if self.gathering.slots and self._stopping is None:
            self._start()  # the disk works while what landed is booked
        try:
            if flight.slots:
                took_ns = self._ended_ns - flight.started_ns
                file_id = flight.previous.file_id
                self._on_flushed(FlushResult(flight.seq, None, flight.slots, file_id, flight.entry_count, flight.total_bytes, took_ns))
        finally:
            self._ended()

    def _complete(self, flight: _Flight) -> None:
        """The flush is durable: the next one follows it."""
        assert self._file is not None
        self._end += flight.total_bytes
        self._seq += 1
        self._previous = flight.previous
        self._closed_last = not flight.slots
        self._ended_ns = self._now_ns()
        self.flushes += 1
        self.written_bytes += flight.total_bytes
        self._set.grow(self._file, self._end)
        self._told_oldest_id = flight.oldest_id
        if self._set.leaving:
            self._set.release(flight.oldest_id)

    def _ended(self) -> None:
        """No flush is in flight: starts the next, or a closing one, or waits."""
        if self._flight is not None or self._starved:
            return
        if self.error is not None:
            if self._stopping is not None:
                self.abandon(self._stopping)
        elif self.gathering.slots:
            self._start()
        elif self._stopping is None:
            if not self._closed_last or self._set.leaving:
                self._arm()
        elif not self._closed_last:
            self._write([], CLOSING)
        else:
            self.abandon(self._stopping)

    def _arm(self) -> None:
        if not self._timer and not self._stopped and self.error is None:
            self._timer = True
            self._later(IDLE_S, self._idle)

    def _idle(self) -> None:
        """One timer serves all flushes: it looks how long nothing was flushed and comes back for the rest."""
        self._timer = False
        if self._flight is not None or self.gathering.slots or self.error is not None or self._stopped or self._stopping is not None:
            return
        rest_s = IDLE_S - (self._now_ns() - self._ended_ns) / 1e9
        if rest_s > 0.001:
            self._timer = True
            self._later(rest_s, self._idle)
        elif not self._closed_last or self._set.leaving:
            self._write([], CLOSING)

    # Files

    def _header(self, file: OpenFile, *, previous_id: int, previous_end: int, previous_salt: int, previous_seq: int) -> FileHeader:
        return FileHeader(
            file_bytes=self._file_bytes,
            file_id=file.file_id,
            salt=self._random_u64(),
            previous_id=previous_id,
            previous_end=previous_end,
            previous_salt=previous_salt,
            previous_seq=previous_seq,
            oldest_id=self._set.oldest_id,
            wall_ms=self._wall_ms(),
        )

    def _begin(self, file: OpenFile, header: FileHeader) -> None:
        self._file = file
        self._salt = header.salt
        self._seed = seed_of(header.salt)
        self._end = DATA_START

    def _starve(self) -> None:
        """There is no file to go on in: waits for ``_ready``. If files were retired, a closing flush (room for it is kept) lets them go, and one of
        them may be the next file."""
        self._starved = True
        if self._set.oldest_id > self._told_oldest_id and self._end + padded(HEAD_BYTES + len(self._previous.rows)) <= self._file_bytes:
            self._write([], CLOSING)

    def _ready(self) -> None:
        if self._full:
            self._full = False
            self._on_full(False)
        if self._starved:
            self._starved = False
            self._ended()

    def _trouble(self, error: OSError) -> None:
        if self.error is not None or self._stopped:
            return
        if error.errno in DISK_FULL:
            self._set.release(self._told_oldest_id)  # a file may have been read when its turn came
            if self._starved and not self._full:
                self._full = True
                self._on_full(True)
            if self._full and self._stopping is not None:
                self._fail(_closed_while_full())
        else:
            self._fail(SyncFailed(f"a log file could not be prepared: {error}"))

    def _fail(self, error: SyncFailed) -> None:
        """Nothing is durable any more: what is in flight and what gathered fails, in order, each once."""
        self.error = self.gathering.error = error
        flight, self._flight = self._flight, None
        waiting = self.gathering.clear()
        self._starved = False
        if flight is not None and flight.slots:
            self._on_flushed(FlushResult(flight.seq, error, flight.slots, 0, 0, 0, self._now_ns() - flight.started_ns))
        if waiting:
            self._on_flushed(FlushResult(self._seq + 1, error, waiting, 0, 0, 0, 0))
        if not waiting and (flight is None or not flight.slots) and self._stopping is None:
            self._on_flushed(FlushResult(self._seq + 1, error, [], 0, 0, 0, 0))  # nobody's entries were lost, but nobody's will be kept either
        self._ended()


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _closed_while_full() -> SyncFailed:
    return SyncFailed("the log was closed while the disk had no room for what it held", hint="free space, then start the broker")
