"""What the write-ahead log holds after a stop of any kind: reads every file, verifies every byte that counts, tells a torn flush from damage.

Owns the reading of a whole log. Does not know checkpoints or segments: whether a lost entry still matters is for the caller. Changes nothing on the
disk but syncing the last file, so that what it accepts is durable. Holds no payload longer than one flush.

I1 Nothing is reported that was not appended: an entry is taken from where a trusted length or directory says that it lies, never searched for.
I2 A flush of the last file without any successor that cannot be read whole was never confirmed for longer than 20 ms: it is cut. Every other loss is
damage and names its partitions, or, when both copies of a directory are gone, the flush numbers that are lost. I3 An entry or TRUNCATE at index i
discards that partition's entries, and losses, at and above i; a TRUNCATE past the end discards all of them: the partition was replaced as a whole.
I4 A gap in a partition's indexes is a loss, an epoch that falls back is damage.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from headrace.storage.files import Files
from headrace.storage.walfiles import Continuation, WalFile, id_of, name_of
from headrace.storage.walformat import (
    BLOCK,
    CLOSING,
    DATA_START,
    HEADER_BLOCK,
    MARKERS,
    NO_PREVIOUS,
    PROMISE,
    ROW,
    TRUNCATE,
    FileHeader,
    FlushHead,
    Located,
    Previous,
    Row,
    decode_header,
    decode_rows,
    needle,
    seed_of,
)
from headrace.storage.walreading import Read, Source, section, walk

Sink = Callable[[Located, Sequence[memoryview]], None]
"""Takes entries in the order of the log with their payloads, which are valid only during the call. A marker whose own bytes are damaged comes with
what its directory says (TRUNCATE: the index, epoch 0; PROMISE: the epoch, index 0) and an empty payload."""

_NO_LIMIT: Final = 1 << 63
_SCARS_MAX: Final = 100


class Cut(NamedTuple):
    """The torn flush at the end: what it held was never confirmed. ``rows`` as far as they can be read."""

    file_id: int
    position: int
    seq: int
    rows: Sequence[Row]


class LostFlushes(NamedTuple):
    """Flushes of which not even the partitions are known: ``[first_seq, end_seq)``; end None: and whatever came after."""

    first_seq: int
    end_seq: int | None
    why: str


class PartitionTail:
    """What the log holds of one partition. Indexes run from ``first_index`` to ``last_index`` but for ``lost`` (half-open ranges, ascending)."""

    __slots__ = ("epoch", "epochs", "first_index", "last_index", "last_seq", "lost", "promised", "why")

    def __init__(self) -> None:
        self.first_index = 0
        self.last_index = -1
        self.epochs: list[tuple[int, int]] = []
        """(first index, epoch) of each run of one epoch."""
        self.epoch = 0
        """The highest of what was not discarded: what follows a cut may be of an older epoch than what was cut."""
        self.promised = 0
        """Highest epoch of a PROMISE, 0 = none."""
        self.lost: list[tuple[int, int]] = []
        self.why = ""
        self.last_seq = 0
        """Number of the last flush that named this partition."""

    @property
    def last_epoch(self) -> int:
        """Epoch of the last entry; 0 = the log holds none."""
        return self.epochs[-1][1] if self.epochs else 0

    def discard(self, index: int) -> None:
        """Forgets what is at and above ``index``."""
        self.first_index = min(self.first_index, index) if self.last_index >= 0 else index
        self.last_index = index - 1
        while self.epochs and self.epochs[-1][0] >= index:
            self.epochs.pop()
        self.epoch = self.last_epoch
        while self.lost and self.lost[-1][1] > index:
            first, _end = self.lost.pop()
            if first < index:
                self.lost.append((first, index))
                break
        if not self.lost:
            self.why = ""

    def restart(self, index: int) -> None:
        """Nothing before ``index`` counts: what follows goes on from data that stands elsewhere."""
        self.first_index, self.last_index = index, index - 1
        self.epochs.clear()
        self.lost.clear()
        self.epoch, self.why = 0, ""

    def lost_above(self, held_index: int) -> list[tuple[int, int]]:
        """What is lost if everything up to ``held_index`` is held elsewhere (checkpoint, segments; 0 = nothing): half-open ranges of indexes. A log
        that begins later than that has lost its begin."""
        lost = [(max(first, held_index + 1), end) for first, end in self.lost if end > held_index + 1]
        if self.last_index >= 0 and self.first_index > held_index + 1:
            lost.insert(0, (held_index + 1, self.first_index))
        return lost

    def lose(self, first: int, end: int, why: str) -> None:
        """The entries ``[first, end)`` were there and cannot be read."""
        if self.last_index < 0:
            self.first_index = first
        elif first <= self.last_index:
            self.discard(first)
        else:
            first = self.last_index + 1
        if self.lost and self.lost[-1][1] == first:
            self.lost[-1] = (self.lost[-1][0], end)
        else:
            self.lost.append((first, end))
        self.why = self.why or why
        self.last_index = end - 1


class Recovered:
    """See the module's head. ``after`` is where the log goes on."""

    __slots__ = ("after", "clean", "cut", "entries", "flushes", "nbytes", "partitions", "scars", "unknown")

    def __init__(self) -> None:
        self.after: Continuation
        self.partitions: dict[int, PartitionTail] = {}
        self.cut: Cut | None = None
        self.unknown: list[LostFlushes] = []
        self.scars: list[str] = []
        """Damage, in words, whether something was lost by it or not; at most 100."""
        self.flushes = 0
        self.entries = 0
        self.nbytes = 0
        self.clean = True
        """The log ends with a closing flush: nothing was in flight."""

    @property
    def unknown_damage(self) -> bool:
        """Some flushes are lost of which not even the partitions are known."""
        return bool(self.unknown)

    def damaged(self) -> dict[int, PartitionTail]:
        """The partitions that have lost entries."""
        return {pid: tail for pid, tail in self.partitions.items() if tail.lost}

    def suspect(self, pid: int) -> bool:
        """Whether entries of this partition may have been in a flush of which nothing is known, without showing in ``lost_above``: an entry after the
        gap shows them, since indexes are dense."""
        if not self.unknown:
            return False
        end = self.unknown[-1].end_seq
        tail = self.partitions.get(pid)
        return end is None or tail is None or tail.last_seq < end


def recover(files: Files, directory: str, sink: Sink | None = None, *, progress: Callable[[int, int], None] | None = None) -> Recovered:
    """Reads the log in ``directory``. ``progress(bytes read, bytes in all)`` is called after each file.

    Raises only if the directory cannot be listed, a file cannot be opened or the last one synced (``OSError``), or for a log of a later format
    (``UnsupportedVersion``): never for what the bytes are.
    """
    opened: list[Source] = []
    try:
        return _Recovery(files, directory, sink, opened).run(progress)
    finally:
        for source in opened:
            files.close(source.handle)


class _Recovery:
    def __init__(self, files: Files, directory: str, sink: Sink | None, opened: list[Source]) -> None:
        self._files = files
        self._directory = directory
        self._sink = sink
        self._opened = opened
        self._chain: list[Source] = []
        self._found = Recovered()
        self._last_seq: int | None = None
        self._last: tuple[Source, FlushHead] | None = None

    def run(self, progress: Callable[[int, int], None] | None) -> Recovered:
        found = self._found
        prepared, discard, next_id = self._inventory()
        if self._chain:
            self._files.fsync_and_forget(self._chain[-1].handle)
        self._drop_retired(discard)
        chain = self._chain
        total, done = sum(s.size for s in chain), 0
        ends: list[int] = []
        for at, source in enumerate(chain):
            ends.append(self._file(at, source))
            done += source.size
            if progress is not None:
                progress(done, total)
        damaged_tail = bool(chain) and self._end_of_chain(chain[-1])
        last_id = chain[-1].file_id if chain else 0
        discard += [name_of(i) for i in prepared if i < last_id]
        last_seq = self._last_seq or 0
        found.clean = found.cut is None and not damaged_tail and (self._last is None or bool(self._last[1].flags & CLOSING))
        found.after = Continuation(
            header=chain[-1].header if chain else None,
            end=ends[-1] if chain else 0,
            next_seq=last_seq + (2 if damaged_tail else 1),  # the number left out says, at every later recovery too, that something is lost there
            previous=NO_PREVIOUS if damaged_tail else self._previous(),
            oldest_id=chain[0].file_id if chain else next_id,
            live=tuple(WalFile(s.file_id, end) for s, end in zip(chain, ends, strict=True)),
            prepared=tuple(i for i in prepared if i > last_id),
            discard=tuple(discard),
            next_id=next_id,
        )
        return found

    # Which files count

    def _inventory(self) -> tuple[list[int], list[str], int]:
        """Fills the chain; answers (ids of files never used, names of unfinished files, the next free id)."""
        discard: list[str] = []
        prepared: list[int] = []
        next_id = 1
        for name in self._files.listdir(self._directory):
            if name.startswith("wal-") and name.endswith(".new"):
                discard.append(name)
            file_id = id_of(name)
            if file_id is None:
                continue
            next_id = max(next_id, file_id + 1)
            source = Source(self._files, file_id, self._files.open(f"{self._directory}/{name}"))
            self._opened.append(source)
            if self._in_use(source):
                self._chain.append(source)
            else:
                prepared.append(file_id)
        self._chain.sort(key=lambda s: s.file_id)
        prepared.sort()
        for source, successor in zip(self._chain, self._chain[1:], strict=False):
            told = successor.header
            if source.header is None and told is not None and told.previous_id == source.file_id:
                source.header = FileHeader(source.size, source.file_id, told.previous_salt, 0, 0, 0, -1, 0, 0)
                source.seed = seed_of(told.previous_salt)
        return prepared, discard, next_id

    def _in_use(self, source: Source) -> bool:
        """Whether a file was ever written as this id; sets its header if one copy of it is sound."""
        blocks = [source.pread(0, 128), source.pread(HEADER_BLOCK, 128)]
        headers = [decode_header(block) for block in blocks]
        for header in headers:
            if header is not None and header.file_id == source.file_id:
                source.header = header
                source.seed = seed_of(header.salt)
                if headers[0] != headers[1]:
                    self._scar(f"log file {source.file_id}: one of the two copies of its header is damaged")
                return True
        recycled = any(h is not None and h.file_id < source.file_id for h in headers)
        return not recycled and not any(len(b) == 128 and not any(b) for b in blocks)

    def _drop_retired(self, discard: list[str]) -> None:
        """Takes files out of the chain that the last flush does not count any more."""
        oldest = 0
        for source in reversed(self._chain):
            if source.header is None:
                continue
            last = source.last_head()
            oldest = max(source.header.oldest_id, last.oldest_id if last is not None else 0)
            break
        discard += [name_of(s.file_id) for s in self._chain if s.file_id < oldest]
        self._chain = [s for s in self._chain if s.file_id >= oldest]
        if not self._chain:
            return
        header = self._chain[0].header
        if header is None or header.previous_seq < 0:
            return
        if header.previous_id and header.previous_id >= oldest:
            self._unknown(0, header.previous_seq + 1, f"log file {header.previous_id} is missing")
        self._last_seq = header.previous_seq

    # One file

    def _file(self, at: int, source: Source) -> int:
        """Reads one file of the chain; answers where its valid flushes end."""
        following = self._chain[at + 1] if at + 1 < len(self._chain) else None
        if at and self._last_seq is None:
            self._last_seq = 0  # nothing could be read of the files before: all they held is lost
        if source.header is None:
            self._scar(f"log file {source.file_id}: both copies of its header are damaged, nothing in it can be verified")
            return source.size
        limit = _NO_LIMIT
        if following is not None and following.header is not None and following.header.previous_id == source.file_id:
            limit = following.header.previous_end
        stop = min(limit, source.size)
        proven = following is not None or self._short(source)
        position = DATA_START
        while position < stop:
            head = source.head(position)
            if head is None or head.end > limit:
                later = source.search(position + BLOCK, stop)
                if later is None or later.end > limit:
                    break
                position = later.position
                head = later
            if self._last_seq is not None and head.seq <= self._last_seq:
                self._scar(f"log file {source.file_id}: flush {head.seq} at {position} stands there twice")
            elif not self._flush(at, source, head, proven):
                return position
            position = head.end
        if following is None:
            self._look_for_torn(source, position)
            return position
        return source.size if limit == _NO_LIMIT else limit

    def _short(self, source: Source) -> bool:
        return source.header is not None and source.size < source.header.file_bytes

    def _look_for_torn(self, source: Source, position: int) -> None:
        """A head that began to be written, or lost its checksum with nothing behind it, is a torn flush too."""
        if bytes(source.view(position, 16)) == needle(source.file_id) and not self._short(source):
            self._found.cut = Cut(source.file_id, position, (self._last_seq or 0) + 1, ())

    def _end_of_chain(self, source: Source) -> bool:
        """Whether the end of the last file is damaged in a way that hides how much it held."""
        first = (self._last_seq or 0) + 1
        if source.header is None:
            self._unknown(first, None, f"log file {source.file_id} has no sound header")
            return True
        if source.header.previous_seq >= first:
            self._unknown(first, source.header.previous_seq + 1, f"the flushes before log file {source.file_id} are damaged")
            self._last_seq = source.header.previous_seq
        if self._short(source):
            self._unknown((self._last_seq or 0) + 1, None, f"log file {source.file_id} is cut off at {source.size} bytes")
            return True
        return False

    def _previous(self) -> Previous:
        """What the next flush repeats."""
        if self._last is None:
            return NO_PREVIOUS
        source, head = self._last
        rows = bytes(source.view(head.rows_at, head.rows * ROW.size))
        if decode_rows(rows, head.rows_crc, source.seed) is None:
            return NO_PREVIOUS
        return Previous(source.file_id, head.position, head.total_bytes, head.entries_at, rows)

    # One flush

    def _flush(self, at: int, source: Source, head: FlushHead, proven: bool) -> bool:
        """Reports a flush's entries; False: it is torn and the log ends before it."""
        base = head.position + head.entries_at
        body = source.view(base, head.entry_bytes)
        read = walk(body, base, head, source.seed)
        if read is None or read.bad:
            successor = self._successor(at, source, head)
            if successor is None and not proven:
                self._gap(at, source, head)
                self._found.cut = Cut(source.file_id, head.position, head.seq, source.rows(head) or ())
                return False
            self._scar(f"log file {source.file_id}: flush {head.seq} at {head.position} is damaged")
        else:
            successor = None
        self._gap(at, source, head)
        self._last_seq = head.seq
        self._last = (source, head)
        self._found.flushes += 1
        if read is not None:
            self._report(read, head.seq, source)
            return True
        rows = source.rows(head)
        if rows is None and successor is not None and successor[1].seq == head.seq + 1:
            rows = successor[0].previous_rows(successor[1])
        if rows is None:
            self._unknown(head.seq, head.seq + 1, f"flush {head.seq} and both copies of its directory are damaged")
        else:
            self._sections(source, base, rows, head.seq)
        return True

    def _successor(self, at: int, source: Source, head: FlushHead) -> tuple[Source, FlushHead] | None:
        """The next sound flush, in this file or a later one: it proves that ``head``'s was complete."""
        for later in self._chain[at:]:
            if later.header is None:
                continue
            found = later.search(head.end if later is source else DATA_START, later.size)
            if found is not None and found.seq > head.seq:
                return later, found
        return None

    def _gap(self, at: int, source: Source, head: FlushHead) -> None:
        """Accounts for the flushes between the last one that was read and ``head``."""
        if self._last_seq is None:
            # The header of the first file is gone but for its salt: it began before this flush, by how much only this flush can tell.
            first_here = head.position == DATA_START
            one_before = head.previous_file_id == source.file_id and head.previous_position == DATA_START
            self._last_seq = head.seq - (1 if first_here else 2 if one_before else head.seq)
        first = self._last_seq + 1
        if head.seq == first:
            return
        self._scar(f"log file {source.file_id}: the flushes from {first} to {head.seq - 1}, before {head.position}, are damaged or missing")
        rows = source.previous_rows(head)
        named = head.seq - 1 if rows is not None else head.seq
        if first < named:
            self._unknown(first, named, f"the flushes from {first} to {named - 1} are damaged")
        if rows is not None:
            holder = next((s for s in self._chain[: at + 1] if s.file_id == head.previous_file_id and s.header is not None), None)
            self._sections(holder, head.previous_position + head.previous_entries_at, rows, named)
        self._last_seq = head.seq - 1

    def _sections(self, source: Source | None, position: int, rows: Sequence[Row], seq: int) -> None:
        """Saves what is sound of a damaged flush, row by row: a directory that can be trusted says where each partition's entries lie."""
        for row in rows:
            pid, first, last, nbytes, marker = row
            data = source.view(position, nbytes) if source is not None else memoryview(b"")
            good = section(data, position, row)
            self._report(good, seq, source)
            have = first + len(good.entries)
            if not marker and have <= last:
                tail = self._found.partitions.setdefault(pid, PartitionTail())
                tail.last_seq = seq
                tail.lose(have, last + 1, f"flush {seq} is damaged")
            position += nbytes

    # Entries

    def _report(self, read: Read, seq: int, source: Source | None) -> None:
        """Applies entries in order to their partitions' tails and hands those that count to the sink."""
        partitions = self._found.partitions
        skipped: set[int] = set()
        pid_before = -1
        tail = PartitionTail()
        for n, (pid, epoch, index, kind, _position, length) in enumerate(read.entries):
            if pid != pid_before:
                found = partitions.get(pid)
                if found is None:
                    found = partitions[pid] = PartitionTail()
                tail, pid_before = found, pid
                tail.last_seq = seq
            if n in read.bad and kind not in MARKERS:
                tail.lose(index, index + 1, f"an entry in flush {seq} is damaged")
                skipped.add(n)
            elif index == tail.last_index + 1 and epoch == tail.epoch and tail.epochs and kind not in MARKERS:
                tail.last_index = index
            elif not self._turn(tail, epoch, index, kind):
                skipped.add(n)
            self._found.nbytes += length
        entries, payloads = read.entries, read.payloads
        if skipped:
            payloads = [p for n, p in enumerate(payloads) if n not in skipped]
            entries = [e for n, e in enumerate(entries) if n not in skipped]
        self._found.entries += len(entries)
        if self._sink is not None and entries:
            columns = [list(column) for column in zip(*entries, strict=True)]
            self._sink(Located(source.file_id if source is not None else 0, *columns), payloads)

    def _turn(self, tail: PartitionTail, epoch: int, index: int, kind: int) -> bool:
        """Applies an entry that is not simply the next one; False: it must not be used."""
        if kind == PROMISE:
            tail.promised = max(tail.promised, epoch)
            return True
        if kind == TRUNCATE:
            if index <= tail.last_index or tail.last_index < 0:
                tail.discard(index)
            else:
                tail.restart(index)
            return True
        if epoch < tail.epoch:
            tail.lose(index, index + 1, f"the epoch falls back from {tail.epoch} to {epoch} at index {index}")
            return False
        if tail.last_index < 0:
            tail.first_index = index
        elif index <= tail.last_index:
            tail.discard(index)
        elif index > tail.last_index + 1:
            tail.lose(tail.last_index + 1, index, f"the entries from {tail.last_index + 1} to {index - 1} are missing")
        if not tail.epochs or tail.epochs[-1][1] != epoch:
            tail.epochs.append((index, epoch))
        tail.epoch = epoch
        tail.last_index = index
        return True

    def _unknown(self, first_seq: int, end_seq: int | None, why: str) -> None:
        self._found.unknown.append(LostFlushes(first_seq, end_seq, why))
        self._scar(why)

    def _scar(self, text: str) -> None:
        if len(self._found.scars) < _SCARS_MAX:
            self._found.scars.append(text)
