"""A run's disk operations in order, and the disks that a loss of power at any point of them may leave.

Owns the log of operations (``Recorder``), what of it is durable after each (``Media``), and the legal choices of what survives beside that
(``variants``). Does not know what storage writes, nor what is promised to whom: marks between operations are its user's.

I1 What a successful sync covered is in every image. I2 Unsynced names of a directory survive as a prefix in order, unsynced writes as any subset,
each whole or torn by sectors. I3 An operation that was under way when the power failed (its thread had begun the work) may have taken place, in part
or whole, though others that ended later in the log did not. I4 The same seed gives the same images in the same order.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Final, Generic, NamedTuple, TypeVar

from headrace.sim.chance import Chance
from headrace.sim.disk import SECTOR, Disk, SimState, Write, applied, sectors
from headrace.sim.lanes import SimLane
from headrace.sim.loop import Machine, SimLoop
from headrace.storage.flusher import Done, Work
from headrace.storage.state import Puts, framed

M = TypeVar("M")

WRITES: Final = ("pwrite", "pwritev_durable", "preallocate", "truncate")
NAMES: Final = ("create", "unlink", "rename")


class Op(NamedTuple):
    """One operation. ``began``: how many operations had ended when its thread could have begun it."""

    what: str
    path: str
    offset: int
    data: bytes
    lane: str
    began: int
    puts: Puts | None

    @property
    def write(self) -> Write:
        return Write(self.offset, self.data if self.what.startswith("pwrite") else None)

    def __str__(self) -> str:
        name = os.path.basename(self.path)
        if self.what.startswith("pwrite"):
            return f"{self.what} {name} at {self.offset}, {len(self.data)} bytes"
        if self.what == "rename":
            return f"rename {name} to {os.path.basename(self.data.decode())}"
        if self.puts is not None:
            return "commit " + ", ".join(f"{_shown(key)}{'' if value is not None else ' (gone)'}" for key, value in sorted(self.puts.items()))
        return f"{self.what} {name}" + (f" to {self.offset}" if self.what in WRITES else "")


def _shown(key: bytes) -> str:
    if key.startswith(b"\0storage/") and len(key) == 19:
        return f"{key[9:11].decode()}{int.from_bytes(key[11:], 'big')}"
    return key.decode("ascii", "replace").lstrip("\0")


class Recorder(Generic[M]):
    """Operations and marks of one run. ``marks``: (how many operations had ended, what)."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.ops: list[Op] = []
        self.marks: list[tuple[int, M]] = []
        self.lane = ""
        self.began = 0
        self.puts: Puts | None = None
        disk.observe = self._observe

    def mark(self, mark: M) -> None:
        self.marks.append((len(self.ops), mark))

    def _observe(self, what: str, path: str, offset: int, data: bytes) -> None:
        at = len(self.ops)
        if what == "commit":
            assert self.puts is not None, "commits come through the recorded state"
            self.ops.append(Op(what, path, 0, b"", self.lane, self.began if self.lane else at, self.puts))
        else:
            self.ops.append(Op(what, path, offset, data, self.lane, self.began if self.lane else at, None))
        self.began = at + 1

    def make_state(self, path: str) -> "RecordedState":
        return RecordedState(self, path)


class RecordedState(SimState):
    """Small state whose commits are told with their values."""

    def __init__(self, recorder: Recorder[M], path: str) -> None:
        super().__init__(recorder.disk, path)
        self._recorder = recorder

    def commit(self, puts: Puts) -> None:
        self._recorder.puts = dict(puts)
        super().commit(puts)


class RecordedLane(SimLane):
    """A lane that tells the recorder which work an operation belongs to and when that began."""

    def __init__(self, recorder: Recorder[M], loop: SimLoop, machine: Machine, name: str, delay_s: Callable[[], float]) -> None:
        self._recorder = recorder
        self._began_at = 0
        super().__init__(loop, machine, name, delay_s)

    def submit(self, work: Work, done: Done) -> None:
        recorder = self._recorder

        def recorded() -> object:
            recorder.lane, recorder.began = self.name, self._began_at
            try:
                return work()
            finally:
                recorder.lane = ""

        super().submit(recorded, done)

    def _begin(self) -> None:
        self._began_at = len(self._recorder.ops)
        super()._begin()


class Image(NamedTuple):
    """A disk at rest: files by path, small states by path, and a digest over both."""

    files: dict[str, bytes]
    states: dict[str, dict[bytes, bytes]]
    digest: bytes

    def disk(self) -> Disk:
        made = Disk()
        for path, data in self.files.items():
            made.restore(path, data)
        for path, values in self.states.items():
            made.states[path] = dict(values)
        return made


EMPTY: Final = Image({}, {}, b"")


class _File:
    __slots__ = ("_digest", "data", "pending")

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        """As synced."""
        self.pending: list[tuple[int, Write]] = []
        """(number of the operation, write)."""
        self._digest = b""

    def settle(self) -> None:
        if self.pending:
            self.data = _with(self.data, (write for _, write in self.pending))
            self.pending.clear()
            self._digest = b""

    @property
    def digest(self) -> bytes:
        if not self._digest:
            self._digest = _digest(self.data)
        return self._digest


class _Name(NamedTuple):
    path: str
    file: _File | None
    old: str

    def apply(self, names: dict[str, _File]) -> None:
        if self.old:
            names.pop(self.old, None)
        if self.file is None:
            names.pop(self.path, None)
        else:
            names[self.path] = self.file


class Variant(NamedTuple):
    """What of the unsynced is on the disk. ``names``: how many changes of each directory; ``writes``: by operation, its pieces; ``others``:
    operations under way that took place (names, commits)."""

    label: str
    names: dict[str, int]
    writes: dict[int, tuple[Write, ...]]
    others: tuple[int, ...]


class Media:
    """What is on the disk after so many operations."""

    def __init__(self, image: Image = EMPTY) -> None:
        self.live = {path: _File(data) for path, data in image.files.items()}
        self.names = dict(self.live)
        """Those that are durable."""
        self.pending: dict[str, list[_Name]] = {}
        self.states = {path: dict(values) for path, values in image.states.items()}
        self._state_digest = b""

    def apply(self, number: int, op: Op) -> None:
        what, path = op.what, op.path
        if what in NAMES:
            name = self._name(op)
            name.apply(self.live)
            self.pending.setdefault(os.path.dirname(name.path), []).append(name)
        elif what == "fsync_dir":
            for name in self.pending.pop(path, ()):
                name.apply(self.names)
        elif what == "commit":
            assert op.puts is not None
            commit(self.states.setdefault(path, {}), op.puts)
            self._state_digest = b""
        elif (file := self.live.get(path)) is not None:
            if what in WRITES:
                file.pending.append((number, op.write))
            if what in ("fsync", "pwritev_durable"):
                file.settle()

    def _name(self, op: Op) -> _Name:
        if op.what == "create":
            return _Name(op.path, _File(), "")
        if op.what == "unlink":
            return _Name(op.path, None, "")
        return _Name(op.data.decode(), self.live.get(op.path), op.path)

    def unsynced(self) -> list[tuple[int, str, Write]]:
        """(number of the operation, path, write), in order. A file that has no name any more counts as long as a loss of power may bring it back."""
        found: dict[int, tuple[str, Write]] = {}
        places = [*self.names.items(), *self.live.items()]
        for path, file in places:
            for number, write in file.pending:
                found[number] = (path, write)
        return [(number, *found[number]) for number in sorted(found)]

    def image(self, variant: Variant, ops: Sequence[Op]) -> Image:
        names = dict(self.names)
        for directory in sorted(self.pending):
            for name in self.pending[directory][: variant.names.get(directory, 0)]:
                name.apply(names)
        states = self.states
        extra: dict[int, list[Write]] = {}
        for number in variant.others:
            op = ops[number]
            if op.puts is not None:
                states = {path: dict(values) for path, values in states.items()}
                commit(states.setdefault(op.path, {}), op.puts)
            else:
                self._name(op).apply(names)
        for number, pieces in sorted(variant.writes.items()):
            target = self.live.get(ops[number].path)
            if target is not None and not any(known == number for known, _ in target.pending):
                extra.setdefault(id(target), []).extend(pieces)
        files: dict[str, bytes] = {}
        total = blake2b(digest_size=16)
        for path in sorted(names):
            file = names[path]
            kept = [piece for number, _ in file.pending for piece in variant.writes.get(number, ())] + extra.get(id(file), [])
            data = _with(file.data, kept) if kept else file.data
            files[path] = data
            total.update(path.encode() + b"\0" + (_digest(data) if kept else file.digest))
        if states is self.states:
            self._state_digest = self._state_digest or _digest_of_states(states)
            total.update(self._state_digest)
        else:
            total.update(_digest_of_states(states))
        return Image(files, states, total.digest())


def commit(values: dict[bytes, bytes], puts: Puts) -> None:
    for key, value in puts.items():
        if value is None:
            values.pop(key, None)
        else:
            values[key] = framed(key, value)


def _with(data: bytes, writes: Iterable[Write]) -> bytes:
    changed = bytearray(data)
    for write in writes:
        applied(changed, write)
    return bytes(changed)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _digest_of_states(states: dict[str, dict[bytes, bytes]]) -> bytes:
    total = blake2b(digest_size=16)
    for path in sorted(states):
        for key, value in sorted(states[path].items()):
            total.update(b"%d %d " % (len(key), len(value)) + key + value)
    return total.digest()


# ------------------------------------------------------------ what may survive


def under_way(ops: Sequence[Op], point: int, *, horizon: int = 40) -> list[int]:
    """Operations that may have begun when only the first ``point`` had ended: of each thread its next one."""
    found: list[int] = []
    lanes: list[str] = []
    for number in range(point, min(len(ops), point + horizon)):
        op = ops[number]
        if op.lane in lanes:
            continue
        if op.began <= point:
            found.append(number)
        lanes.append(op.lane)
        if not op.lane:
            break  # what follows on the loop may depend on it
    return found


def torn(write: Write, chance: Chance, *, thin: bool = False) -> Iterator[tuple[str, tuple[Write, ...]]]:
    """A write in part: prefixes, single sectors missing or alone, drawn subsets, and cuts within a sector."""
    data = write.data
    if data is None or len(data) < 2:
        return
    count = sum(1 for _ in sectors(write, lambda _: True))
    if not any(data):
        for at in sorted({len(data) // 2, len(data) - 1}):  # zeros: only the length shows
            yield f"its first {at} bytes", (Write(write.offset, data[:at]),)
        return

    def part(kept: Callable[[int], bool]) -> tuple[Write, ...]:
        return tuple(sectors(write, kept))

    at_most = 2 if thin else 8
    lengths = list(range(1, count)) if count <= at_most + 1 else sorted({1, count - 1, *(chance.randrange(1, count) for _ in range(at_most - 2))})
    for length in lengths:
        yield f"its first {length} of {count} sectors", part(lambda n, length=length: n < length)  # type: ignore[misc]
    if count > 2:
        singles = [0, count - 1] if thin else sorted({0, 1, count - 1, chance.randrange(count), chance.randrange(count)})
        for single in singles:
            yield f"all of its {count} sectors but number {single}", part(lambda n, single=single: n != single)  # type: ignore[misc]
        for single in singles[:1] if thin else sorted({0, count - 1, chance.randrange(count)}):
            yield f"of its {count} sectors only number {single}", part(lambda n, single=single: n == single)  # type: ignore[misc]
        for _ in range(1 if thin else 3):
            mask = chance.getrandbits(count)
            yield f"the sectors of mask {mask:#x}", part(lambda n, mask=mask: bool(mask >> n & 1))  # type: ignore[misc]
    for _ in range(0 if thin else 2):
        at = chance.randrange(1, len(data)) if chance.happens(0.5) else chance.randrange(1, min(len(data), SECTOR))
        yield f"its first {at} bytes", (Write(write.offset, data[:at]),)


def variants(media: Media, ops: Sequence[Op], point: int, chance: Chance, *, thin: bool = False) -> Iterator[Variant]:
    """What may survive a loss of power when ``point`` operations had ended; ``thin``: fewer of each kind."""
    every = {directory: len(names) for directory, names in media.pending.items() if names}
    waiting = media.unsynced()
    whole: dict[int, tuple[Write, ...]] = {number: (write,) for number, _, write in waiting}
    yield Variant("everything unsynced", every, whole, ())
    if every or whole:
        yield Variant("nothing unsynced", {}, {}, ())
    if every and whole:
        yield Variant("unsynced names, no unsynced writes", every, {}, ())
        yield Variant("unsynced writes, no unsynced names", {}, whole, ())
    for directory in sorted(every):
        for count in range(1, every[directory]):
            text = f"{count} of {every[directory]} names in {os.path.basename(directory)}"
            yield Variant(f"all writes, {text}, all other names", {**every, directory: count}, whole, ())
            yield Variant(f"no writes, {text}, no other names", {directory: count}, {}, ())
        if len(every) > 1:
            yield Variant(f"all writes, all names but those in {os.path.basename(directory)}", {**every, directory: 0}, whole, ())
            yield Variant(f"all writes, no names but those in {os.path.basename(directory)}", {directory: every[directory]}, whole, ())
    if len(whole) > 1:
        numbers = sorted(whole)
        some = numbers if len(numbers) <= 6 else sorted({*numbers[:2], *numbers[-2:], chance.choice(numbers), chance.choice(numbers)})
        for number in some:
            yield Variant(f"all but the write {number}", every, {n: w for n, w in whole.items() if n != number}, ())
            yield Variant(f"of the writes only {number}", every, {number: whole[number]}, ())
            yield Variant(f"the writes before {number}", every, {n: w for n, w in whole.items() if n < number}, ())
    if waiting:
        number, _, write = waiting[-1]
        for text, pieces in torn(write, chance, thin=True):
            yield Variant(f"all, but of the last write {number} {text}", every, {**whole, number: pieces}, ())
    yield from _begun(media, ops, under_way(ops, point), every, whole, chance, thin=thin)


def _begun(
    media: Media, ops: Sequence[Op], begun: Sequence[int], every: dict[str, int], whole: dict[int, tuple[Write, ...]], chance: Chance, *, thin: bool
) -> Iterator[Variant]:
    """With operations that were under way."""
    others: list[int] = []
    writes: dict[int, tuple[Write, ...]] = {}
    for number in begun:
        op = ops[number]
        if op.what in NAMES or op.what == "commit":
            others.append(number)
            yield Variant(f"all, and {number} took place", every, whole, (number,))
            if whole:
                yield Variant(f"no writes, and {number} took place", every, {}, (number,))
            if every and op.what == "commit":
                yield Variant(f"nothing else, and {number} took place", {}, {}, (number,))
        elif op.what in WRITES and op.path in media.live:
            writes[number] = (op.write,)
            yield Variant(f"all, and the write {number} under way whole", every, {**whole, number: (op.write,)}, ())
            if every or whole:
                yield Variant(f"of what was not synced only the write {number} under way", {}, {number: (op.write,)}, ())
            for text, pieces in torn(op.write, chance, thin=thin):
                yield Variant(f"all, and of the write {number} under way {text}", every, {**whole, number: pieces}, ())
    if len(others) + len(writes) > 1:
        yield Variant("all, and all that was under way", every, {**whole, **writes}, tuple(others))
    if len(whole) + len(writes) + len(others) + sum(every.values()) > 1:
        for draw in range(1 if thin else 3):
            names = {directory: chance.randint(0, count) for directory, count in sorted(every.items())}
            kept: dict[int, tuple[Write, ...]] = {}
            for number, (write,) in sorted({**whole, **writes}.items()):
                if chance.happens(0.3):
                    kept[number] = tuple(sectors(write, lambda _: chance.happens(0.5))) if write.data is not None else (write,)
                elif chance.happens(0.5):
                    kept[number] = (write,)
            taken = tuple(n for n in others if chance.happens(0.5) and _in_order(ops[n], names, every))
            yield Variant(f"draw {draw}", names, kept, taken)


def _in_order(op: Op, names: dict[str, int], every: dict[str, int]) -> bool:
    """A name can only follow those before it in its directory."""
    directory = os.path.dirname(op.data.decode() if op.what == "rename" else op.path)
    return op.what == "commit" or names.get(directory, 0) == every.get(directory, 0)
