"""What a run has appended and what it was promised: the truth that a recovered store is judged by.

Owns the journals as they were appended and, as of a point of the run, their bounds: what may be there (appended, begun) and what must be (reported
durable, completed). Does not know disks; ``judge`` looks at a ``Found`` that others fill from a store.

I1 Marks only ever raise bounds, but for damage that a repair is to cut, and a repair that ends. I2 A bound that must be met was told by the store
itself through its interface.

A problem begins with the promise of the product that is broken: I2 nothing from nowhere, I7 promised epochs survive, I13 what was confirmed is
there (and no crash is taken for damage), I18 checkpoint and entries after it make the state that was.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from crc32c import crc32c

from headrace.storage.api import Checkpoint, StoredEntry
from headrace.wire.journal import Kind

RECORDS: Final = int(Kind.RECORDS)
PROBLEMS_MAX: Final = 20


class Mark(NamedTuple):
    """Something that happened between two operations of the disk. ``must``: it raises what recovery must find."""

    what: str
    pid: int = 0
    number: int = 0
    value: object = None

    @property
    def must(self) -> bool:
        return self.what in ("durable", "checkpointed", "deleted", "cut", "repaired", "compacted", "kept", "opened")


class Journal:
    """One partition's entries, of index 1, 2, ..."""

    __slots__ = ("entries", "floors", "next_offsets", "pid", "promises", "stream", "sums", "versions")

    def __init__(self, pid: int, *, stream: bool) -> None:
        self.pid = pid
        self.stream = stream
        self.entries: list[StoredEntry] = []
        self.sums = [0]
        """The state after each index: a running checksum over all payloads."""
        self.floors = [0]
        """The floor that the entries up to each index make."""
        self.next_offsets = [0]
        self.promises: list[tuple[int, int]] = []
        """(entries before it, epoch)."""
        self.versions: dict[int, list[bytes | None]] = {}
        """By base offset, what compactions made of it, oldest first; None: nothing."""

    @property
    def last_index(self) -> int:
        return len(self.entries)

    @property
    def next_offset(self) -> int:
        return self.next_offsets[-1]

    def add(self, entry: StoredEntry, floor: int) -> None:
        assert entry.index == len(self.entries) + 1
        self.entries.append(entry)
        self.sums.append(crc32c(entry.payload, self.sums[-1]))
        self.floors.append(floor)
        self.next_offsets.append(entry.base_offset + entry.record_count if entry.kind == RECORDS else self.next_offset)

    def until(self, index: int) -> "Journal":
        """As it was after ``index``; it may go on in another way."""
        other = Journal(self.pid, stream=self.stream)
        other.entries, other.sums = self.entries[:index], self.sums[: index + 1]
        other.floors, other.next_offsets = self.floors[: index + 1], self.next_offsets[: index + 1]
        other.promises = [p for p in self.promises if p[0] < index]
        other.versions = self.versions
        return other


def data_of(checksum: int, index: int) -> bytes:
    """A checkpoint's data: of a length that depends on the state too."""
    return checksum.to_bytes(4, "big") * (1 + index % 7)


class Found(NamedTuple):
    """What a store shows of one partition after its recovery."""

    damaged: str
    checkpoint: Checkpoint | None
    last_index: int
    next_offset: int
    promised: int
    entries: Sequence[StoredEntry]
    records: Sequence[StoredEntry]
    """All that can be read from offset 0 on."""
    first_offset: int

    @property
    def floor(self) -> int:
        return self.checkpoint.floor_offset if self.checkpoint is not None else 0


class View:
    """The journals with their bounds as of a point of the run."""

    def __init__(self, journals: Mapping[int, Journal]) -> None:
        self.journals = dict(journals)
        self.appended: dict[int, int] = {}
        self.durable: dict[int, int] = {}
        self.promised: dict[int, int] = {}
        self.checkpointed: dict[int, tuple[int, int]] = {}
        """(index, floor) of the newest checkpoint that was saved."""
        self.retained: dict[int, int] = {}
        """Where retention has put the floor."""
        self.deleting: dict[int, bool] = {}
        """Partitions whose deletion has begun; True: and ended."""
        self.isolated: dict[int, bool] = {}
        self.made: dict[tuple[int, int], int] = {}
        """(partition, base offset): so many versions were made by compactions."""
        self.oldest: dict[tuple[int, int], int] = {}
        """(partition, base offset): the oldest version that may be found."""
        self.puts: dict[bytes, list[bytes | None]] = {}
        self.kept: dict[bytes, int] = {}
        """How many of the values put have been reported durable."""
        self.musts = 0

    def copy(self) -> "View":
        other = View(self.journals)
        for name in ("appended", "durable", "promised", "checkpointed", "retained", "deleting", "isolated", "made", "oldest", "kept"):
            setattr(other, name, dict(getattr(self, name)))
        other.puts = {key: list(values) for key, values in self.puts.items()}
        other.musts = self.musts
        return other

    def apply(self, mark: Mark) -> None:
        what, pid, number, value = mark
        self.musts += mark.must
        if what == "appended":
            self.appended[pid] = number
        elif what == "durable":
            self.durable[pid] = max(number, self.durable.get(pid, 0))
        elif what == "promised":
            self.promised[pid] = max(number, self.promised.get(pid, 0))
        elif what == "checkpointed":
            assert isinstance(value, int)
            self.checkpointed[pid] = max((number, value), self.checkpointed.get(pid, (0, 0)))
        elif what == "retained":
            self.retained[pid] = max(number, self.retained.get(pid, 0))
        elif what in ("deleting", "deleted"):
            self.deleting[pid] = what == "deleted"
        elif what == "hurt":
            self.durable[pid] = min(number, self.durable.get(pid, 0))
        elif what == "cut":
            assert isinstance(value, tuple)
            self.journals[pid], floor = value
            self.appended[pid] = self.durable[pid] = number
            self.retained[pid] = max(floor, self.retained.get(pid, 0))
        elif what in ("isolated", "repaired"):
            self.isolated[pid] = what == "isolated"
        elif what == "version":
            self.made[pid, number] = self.made.get((pid, number), 0) + 1
        elif what == "compacted":
            assert isinstance(value, dict)
            for base, count in value.items():
                self.oldest[pid, base] = max(count, self.oldest.get((pid, base), 0))
        elif what == "put":
            assert isinstance(value, tuple)
            self.puts.setdefault(value[0], [None]).append(value[1])
        elif what == "kept":
            assert isinstance(value, bytes)
            self.kept[value] = max(number, self.kept.get(value, 0))
        else:
            assert what == "opened" and isinstance(value, dict), what
            self._opened(value)

    def _opened(self, found: "dict[int, tuple[Journal, Found]]") -> None:
        """A recovery has ended: what it found is what counts from now on."""
        for pid, (journal, shown) in found.items():
            self.journals[pid] = journal
            self.appended[pid] = self.durable[pid] = shown.last_index
            self.promised[pid] = max(shown.promised, self.promised.get(pid, 0))
            self.isolated[pid] = False

    # ------------------------------------------------------------ judging

    def judge(self, found: Mapping[int, Found], values: Mapping[bytes, bytes], woken: Sequence[int]) -> list[str]:
        """What is wrong with a recovered store; [] = nothing. ``values``: the small state of others than storage."""
        problems: list[str] = []
        for pid in sorted({*self.journals, *found}):
            shown = found.get(pid)
            if shown is None or pid not in self.journals:
                problems.append(f"I2 partition {pid} " + ("was not looked at" if shown is None else "comes from nowhere"))
                continue
            deleting = self.deleting.get(pid)
            if deleting is not None and not shown.damaged and _empty(shown):
                if pid in woken:
                    problems.append(f"I2 partition {pid} is deleted and still listed")
                continue
            if deleting:
                problems.append(f"I2 partition {pid} was deleted and is back: last index {shown.last_index}, {shown.damaged or 'sound'}")
            else:
                problems += [f"{text} (partition {pid})" for text in self._judge(self.journals[pid], shown)]
        for key in sorted({*values, *self.puts}):
            had = self.puts.get(key, [None])
            if values.get(key) not in had[self.kept.get(key, 0) :]:
                problems.append(f"I13 the value of {key!r} is {values.get(key)!r}, not one of {had[self.kept.get(key, 0) :]!r}")
        return problems[:PROBLEMS_MAX]

    def _judge(self, journal: Journal, shown: Found) -> list[str]:
        pid = journal.pid
        wrong: list[str] = []
        if shown.damaged and not self.isolated.get(pid, False):
            wrong.append(f"I13 a crash was taken for damage: {shown.damaged}")
        last, at_least, at_most = shown.last_index, self.durable.get(pid, 0), self.appended.get(pid, 0)
        if not at_least <= last <= at_most:
            broken = "I13" if last < at_least else "I2"
            return [*wrong, f"{broken} it ends at index {last}; {at_least} was reported durable, {at_most} was appended"]
        if shown.next_offset != journal.next_offsets[last]:
            wrong.append(f"I18 its next offset is {shown.next_offset}, {journal.next_offsets[last]} is right after index {last}")
        promised = max((epoch for before, epoch in journal.promises if before < at_least), default=0)
        if not promised <= shown.promised <= self.promised.get(pid, 0):
            wrong.append(f"I7 it has promised epoch {shown.promised}, not {promised} to {self.promised.get(pid, 0)}")
        wrong += self._judge_state(journal, shown)
        wrong += self._judge_records(journal, shown)
        return wrong

    def _judge_state(self, journal: Journal, shown: Found) -> list[str]:
        checkpoint, wrong = shown.checkpoint, list[str]()
        index, floor = (checkpoint.index, checkpoint.floor_offset) if checkpoint is not None else (0, 0)
        saved, saved_floor = self.checkpointed.get(journal.pid, (0, 0))
        if index < saved or floor < saved_floor:
            wrong.append(f"I13 its checkpoint is of index {index}, floor {floor}; one of index {saved}, floor {saved_floor} was saved")
        if index > shown.last_index:
            return [*wrong, f"I13 its checkpoint is of index {index}, it ends at {shown.last_index}"]
        if checkpoint is not None:
            if checkpoint.data != data_of(journal.sums[index], index) or checkpoint.next_offset != journal.next_offsets[index]:
                wrong.append(f"I18 the checkpoint at index {index} is not the state after that index")
            if floor > (self.retained.get(journal.pid, 0) if journal.stream else journal.floors[index]):
                wrong.append(f"I2 the checkpoint at index {index} has floor {floor}, which nobody has set")
        got = [entry.index for entry in shown.entries]
        if got != list(range(index + 1, shown.last_index + 1)):
            wrong.append(f"I18 after its checkpoint at {index} the entries {_runs(got)} are replayed, it ends at {shown.last_index}")
        for entry in shown.entries:
            if entry.index <= journal.last_index and not _same(entry, journal.entries[entry.index - 1]):
                wrong.append(f"I2 the entry at index {entry.index} is not the one that was appended")
                break
        return wrong

    def _judge_records(self, journal: Journal, shown: Found) -> list[str]:
        pid, wrong = journal.pid, list[str]()
        needed_from = max(journal.floors[shown.last_index], self.retained.get(pid, 0))
        got = {entry.index: entry for entry in shown.records}
        order = [entry.index for entry in shown.records]
        if order != sorted(got):
            wrong.append(f"I2 the records read are not in order: {_runs(order)}")
        first_needed = -1
        for entry in journal.entries[: shown.last_index]:
            if entry.kind != RECORDS:
                continue
            key = pid, entry.base_offset
            versions = [entry.payload, *journal.versions.get(entry.base_offset, ())][self.oldest.get(key, 0) : self.made.get(key, 0) + 1]
            read = got.pop(entry.index, None)
            if read is not None:
                if read.payload not in versions or not _same(read.holding(entry.payload), entry):
                    wrong.append(f"I2 the records read at offset {entry.base_offset} are not those that were appended (or left by compaction)")
            elif entry.base_offset + entry.record_count > needed_from and None not in versions:
                wrong.append(f"I13 the records of index {entry.index}, offset {entry.base_offset}, cannot be read; the floor is {needed_from}")
            if read is not None and first_needed < 0 and entry.base_offset + entry.record_count > max(needed_from, shown.floor):
                first_needed = max(entry.base_offset, needed_from, shown.floor)
        if got:
            wrong.append(f"I2 records at the indexes {_runs(sorted(got))} come from nowhere")
        if shown.first_offset < shown.floor or 0 <= first_needed < shown.first_offset:
            wrong.append(f"I2 its first offset is {shown.first_offset}; its floor is {shown.floor}, the first record above it {first_needed}")
        return wrong[:3]


def _empty(shown: Found) -> bool:
    return not (shown.checkpoint or shown.last_index or shown.entries or shown.records or shown.promised)


def _same(a: StoredEntry, b: StoredEntry) -> bool:
    return a == b


def _runs(numbers: Sequence[int]) -> str:
    """Numbers in short: 1-4, 6."""
    shown: list[str] = []
    at = 0
    while at < len(numbers):
        end = at
        while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
            end += 1
        shown.append(f"{numbers[at]}-{numbers[end]}" if end > at else str(numbers[at]))
        at = end + 1
    return ", ".join(shown) or "none"
