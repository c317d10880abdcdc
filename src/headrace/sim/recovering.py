"""Starting a real store on an image of a disk, and what it shows: the recovery that a loss of power makes necessary.

Owns a recovery with all that is looked at after it, and its sequel: entries appended, sometimes a pass of the mover, another loss of power and a
second recovery. Judges only what is wrong whatever was promised (files that nobody knows, live bytes that do not add up); the rest is
``sim.journals``'.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from headrace.model.config import Config
from headrace.sim.chance import Chance
from headrace.sim.disk import Disk
from headrace.sim.journals import Found, Journal, Mark, View, data_of
from headrace.sim.loop import Machine, SimLoop
from headrace.sim.recording import Image, Recorder
from headrace.sim.storework import open_store
from headrace.storage import keys, segments
from headrace.storage.api import Checkpoint, Flushed, StoredEntry
from headrace.storage.keys import number_of
from headrace.storage.store import DiskStore
from headrace.wire.entry import RUN
from headrace.wire.journal import Kind, pack_records_head

READ_BYTES: Final = 64 * 1024
END: Final = 1 << 62


class Outcome(NamedTuple):
    """What a recovery of an image showed. ``problems``: what is wrong whatever was promised."""

    found: dict[int, Found]
    values: dict[bytes, bytes]
    listed: tuple[int, ...]
    problems: tuple[str, ...]
    recoveries: int
    scarred: bool


class Recovery:
    """One start of a store on a disk, then what it shows, and entries after it. It is the store's owner."""

    def __init__(self, disk: Disk, config: Config, seed: int, pids: Sequence[int]) -> None:
        self.recorder: Recorder[Mark] = Recorder(disk)
        self.journals: dict[int, Journal] = {}
        """As found, and what was appended since."""
        self.found: dict[int, Found] = {}
        self.values: dict[bytes, bytes] = {}
        self.listed: tuple[int, ...] = ()
        self.problems: list[str] = []
        self._chance = Chance(seed, "recovery")
        self._config = config
        self._pids = pids
        self._durable: dict[int, int] = {}
        self._store: DiskStore

    def run(self, known: Mapping[int, Journal], *, appends: bool, moves: bool) -> None:
        chance = self._chance
        loop = SimLoop(chance.fork("loop"), rows_max=0)  # type: ignore[abstract]  # what it leaves out is not for a simulator
        machine = Machine(loop, "store", chance.fork("machine"))
        self._store = open_store(self.recorder, loop, machine, self._config, chance.fork("speeds"))
        try:
            loop.run_until_complete(loop.spawn(machine, self._run(known, machine, appends=appends, moves=moves)))
        except Exception as e:
            self.problems.append(f"I13 {type(e).__name__}: {e}")
        self.problems += [f"I13 {e.get('message')}: {e.get('exception')!r}" for e in loop.errors]
        machine.kill()
        loop.close()

    async def _run(self, known: Mapping[int, Journal], machine: Machine, *, appends: bool, moves: bool) -> None:
        store = self._store
        await store.open(self)
        self.listed = tuple(store.partitions())
        damaged = {pid: damage.why for pid, damage in store.damaged().items()}
        for pid in sorted(damaged):
            await store.repair(pid, dry_run=False)
        ground = store._ground
        stored = [number_of(prefix, key) for prefix in (keys.MOVED, keys.CHECKPOINT) for key, _ in store.state.scan(prefix)]
        for pid in sorted({*self._pids, *stored, *ground.parts, *self.listed, *damaged} - {0}):
            self.found[pid] = await self._look(pid, damaged.get(pid, ""))
        self.values = {key: value for key, value in store.state.scan(b"") if not key.startswith(keys.PREFIX)}
        await ground.on(ground.io, lambda: None)  # what a repair has replaced is unlinked by then
        self._look_at_files()
        for pid, shown in self.found.items():
            if pid in known and shown.last_index <= known[pid].last_index:
                self.journals[pid] = known[pid].until(shown.last_index)
        opened = {pid: (journal.until(journal.last_index), self.found[pid]) for pid, journal in self.journals.items()}
        self.recorder.mark(Mark("opened", value=opened))
        if appends:
            await self._append(machine)
        if moves:
            async with ground.moving:
                await store._mover.pass_once(everything=True)
            await store.maintenance()
            await self._append(machine)

    async def _look(self, pid: int, damaged: str) -> Found:
        store = self._store
        log = store.replay(pid)
        first = store.first_offset(pid)
        records: list[StoredEntry] = []
        offset = 0
        while some := await store.read(pid, offset, READ_BYTES, END):
            records += some
            after = some[-1].base_offset + some[-1].record_count
            if after <= offset:
                self.problems.append(f"I18 partition {pid}: a read from offset {offset} ends at {after}")
                break
            offset = after
        promised = store._ground.part(pid).promised
        return Found(damaged, log.checkpoint, log.last_index, log.next_offset, promised, log.entries, records, first)

    def _look_at_files(self) -> None:
        """Segments on the disk are those that the small state knows, with as many live bytes as are referred to."""
        ground = self._store._ground
        present = {number for name in ground.files.listdir(ground.segment_directory) if (number := segments.number_of(name)) is not None}
        if present != set(ground.metas):
            self.problems.append(f"I18 segments on the disk: {sorted(present)}, known: {sorted(ground.metas)}")
        live = dict.fromkeys(ground.metas, 0)
        for _, raw in ground.state.scan(keys.MOVED):
            moved = keys.unpack_moved(raw)
            for number, nbytes in [*((ref.file, ref.nbytes - ref.dead_bytes) for ref in moved.refs), (moved.checkpoint_file, moved.checkpoint_bytes)]:
                if number:
                    live[number] = live.get(number, 0) + nbytes
        counted = {number: meta.live_bytes for number, meta in ground.metas.items()}
        if live != counted:
            self.problems.append(f"I18 live bytes of segments: {counted} are counted, {live} are referred to")
        wal = ground.wal._set
        logs = ground.files.listdir(ground.wal_directory)
        if len(logs) != len(wal.live) + len(wal._ready):
            self.problems.append(f"I18 log files on the disk: {', '.join(logs)}; in use or ready: {len(wal.live)} and {len(wal._ready)}")

    async def _append(self, machine: Machine) -> None:
        """An epoch and records, as a broker that serves again would; done when they are durable."""
        chance, store = self._chance, self._store
        pids = [pid for pid, journal in self.journals.items() if journal.last_index][:6]
        if not pids:
            return
        for pid in sorted({chance.choice(pids), chance.choice(pids), chance.choice(pids)}):
            journal = self.journals[pid]
            epoch = max(self.found[pid].promised, journal.entries[-1].epoch) + 1
            self._add(journal, epoch, Kind.EPOCH_START, b"again")
            base, count = journal.next_offset, chance.randint(1, 3)
            head = pack_records_head(base, count, count, machine.wall_ns() // 1_000_000, 1)
            blob = chance.randbytes(chance.randint(10, 2000))
            self._add(journal, epoch, Kind.RECORDS, head + RUN.pack(-1, 0, 0, 0, -1, count, count, len(blob), 0, 0, 0, 0) + blob, base, count)
            store.flush()
        for _ in range(10_000):
            if not store.pending_bytes:
                return
            await asyncio.sleep(0.001)
        self.problems.append("I16 what was appended after the recovery never became durable")

    def _add(self, journal: Journal, epoch: int, kind: Kind, payload: bytes, base: int = -1, count: int = 0) -> None:
        entry = StoredEntry(epoch, journal.last_index + 1, int(kind), base, count, payload)
        journal.add(entry, journal.floors[-1])
        self.recorder.mark(Mark("appended", journal.pid, entry.index))
        self._store.append(journal.pid, epoch, entry.index, entry.kind, (payload,), len(payload), base, count)

    # what the store asks

    def checkpoint(self, pid: int) -> Checkpoint | None:
        journal = self.journals.get(pid)
        if journal is None or not journal.last_index:
            return None
        index, shown = journal.last_index, self.found[pid]
        floor = shown.floor if journal.stream else journal.floors[index]
        return Checkpoint(journal.entries[-1].epoch, index, data_of(journal.sums[index], index), floor, journal.next_offset, 0)

    def flushed(self, result: Flushed) -> None:
        if result.error is not None:
            self.problems.append(f"I13 a flush after the recovery failed: {result.error}")
            return
        for pid, index in result.partitions:
            self.recorder.mark(Mark("durable", pid, index))

    def pressure(self, on: bool) -> None:
        pass

    def disk(self, nearly_full: bool) -> None:
        pass

    def quarantined(self, pid: int, why: str) -> None:
        self.problems.append(f"I13 partition {pid} was isolated after the recovery: {why}")


class Scars(logging.Handler):
    """Counts what recoveries say of the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.count += "scar" in text
        self.lines = [*self.lines[-50:], text]


@contextmanager
def listening(scars: Scars) -> Iterator[None]:
    """What the store logs goes to ``scars``."""
    logger = logging.getLogger("headrace")
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(scars)
    try:
        yield
    finally:
        logger.removeHandler(scars)
        logger.level, logger.propagate = before


def recover(image: Image, config: Config, view: View, scars: Scars) -> tuple[Outcome, Recovery]:
    """Two starts: on the image, and, after entries were appended, on what is synced then."""
    before = scars.count
    disk = image.disk()
    seed = int.from_bytes(image.digest[:6], "big")
    first = Recovery(disk, config, seed, sorted(view.journals))
    first.run(view.journals, appends=True, moves=image.digest[0] % 4 == 0)
    problems = list(first.problems)
    recoveries = 1
    if not problems:
        again = view.copy()
        for _, mark in first.recorder.marks:
            again.apply(mark)
        again.journals.update(first.journals)
        disk.observe = None
        disk.crash(lambda _node, _write: iter(()), lambda _count: 0)
        second = Recovery(disk, config, seed + 1, sorted(view.journals))
        second.run(first.journals, appends=False, moves=False)
        recoveries += 1
        problems += [f"{text} (the second time)" for text in second.problems]
        if not second.problems:
            problems += [f"{text} (the second time)" for text in again.judge(second.found, second.values, second.listed)]
    return Outcome(first.found, first.values, first.listed, tuple(problems), recoveries, scars.count > before), first
