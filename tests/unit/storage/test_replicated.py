"""The log as replicas use it: what a start finds of epochs, marks and ends, and what is read again byte for byte."""

from collections.abc import Sequence
from typing import Any

import pytest

from headrace.model.errors import Damaged
from headrace.storage.replicated import ReplicatedLog
from headrace.wire import replication as wire
from headrace.wire.journal import Kind
from tests.unit.storage.store_rig import KIB, Rig

SETTLEMENT = int(Kind.SETTLEMENT)


class Replicas:
    """Commits what it is told to."""

    def __init__(self, committed: int | None = None) -> None:
        self.committed = committed
        self.epochs: dict[int, int] = {}
        self.told: list[tuple[int, int]] = []
        self.rows: list[tuple[int, ...]] = []

    def committed_index(self, pid: int) -> int | None:
        return self.committed

    def epoch_at(self, pid: int, index: int) -> int:
        return self.epochs.get(index, 1)

    def moved(self, pid: int, moved_to: int) -> None:
        self.told.append((pid, moved_to))

    def on_rows(self, rows: Sequence[tuple[int, ...]]) -> None:
        self.rows += rows


async def begun(**settings: Any) -> tuple[Rig, Replicas, ReplicatedLog]:
    rig = await Rig(**settings).start()
    rig.flushed = lambda result: None  # type: ignore[method-assign]
    replicas = Replicas()
    return rig, replicas, rig.store.replicated(replicas, replicas.on_rows)


async def again(rig: Rig) -> ReplicatedLog:
    rig.dead = True
    rig.files.crash()
    await rig.start()
    replicas = Replicas()
    return rig.store.replicated(replicas, replicas.on_rows)


def put(log: ReplicatedLog, epoch: int, index: int, payload: bytes = b"payload") -> bytes:
    return log.append(7, epoch, index, SETTLEMENT, payload) + payload


async def test_a_start_finds_epochs_and_promises() -> None:
    rig, _, log = await begun()
    assert log.found(7) == (1, 1, 0, 0, 0, 0, (), 1)
    log.promise(7, 3, 1, 4)
    for index, epoch in enumerate((1, 1, 2, 3, 3), 1):
        put(log, epoch, index)
    await rig.flush()
    log = await again(rig)
    assert log.found(7) == (1, 6, 3, 1, 4, 0, ((1, 1), (2, 3), (3, 4)), 1)


async def test_what_follows_a_cut_may_be_of_an_older_epoch_than_what_was_cut() -> None:
    rig, replicas, log = await begun()
    for index, epoch in enumerate((1, 1, 5, 5), 1):
        put(log, epoch, index)
    log.truncate(7, 3, 6)
    put(log, 4, 3, b"of epoch 4")
    put(log, 6, 4)
    await rig.flush()
    assert [(row[1], row[2], row[4]) for row in replicas.rows] == [(1, 4, 0), (3, 3, int(Kind.TRUNCATE)), (3, 4, 0)]
    assert [e.epoch for raw in await log.read(7, 1, 9) for e in wire.entries(raw, 7)] == [1, 1, 4, 6]
    log = await again(rig)
    assert not rig.store.damaged()
    assert log.found(7)[:2] == (1, 5)
    assert log.found(7).runs == ((1, 1), (4, 3), (6, 4))


async def test_an_epoch_that_falls_back_without_a_cut_is_damage() -> None:
    rig, _, log = await begun()
    put(log, 5, 1)
    put(log, 4, 2)
    await rig.flush()
    log = await again(rig)
    assert "falls back" in log.damage(7)
    assert log.damage(8) == ""


async def test_a_cut_at_the_end_of_a_log_stays_cut() -> None:
    rig, _, log = await begun()
    for index in range(1, 6):
        put(log, 1, index)
    await rig.flush()
    log.truncate(7, 4, 2)
    await rig.flush()
    log = await again(rig)
    assert (log.found(7).end, log.found(7).runs) == (4, ((1, 1),))


async def test_entries_are_read_as_they_were_appended() -> None:
    rig, _, log = await begun()
    whole = [put(log, 1, index, b"%d" % index * 100 * index) for index in range(1, 40)]
    assert await log.read(7, 1, 40) == []  # not durable yet
    await rig.flush()
    assert await log.read(7, 1, 40) == whole
    assert await log.read(7, 5, 8) == whole[4:7]
    assert await log.read(7, 5, 40, 1) == whole[4:5]
    assert await log.read(7, 40, 50) == []
    other = await Rig().start()
    copy = other.store.replicated(Replicas(), lambda rows: None)
    other.flushed = lambda result: None  # type: ignore[method-assign]
    for raw in whole:
        for entry in wire.entries(raw, 7):
            assert copy.received(7, entry) == raw[:32]
    await other.flush()
    assert await copy.read(7, 1, 40) == whole


async def test_damage_isolates() -> None:
    rig, _, log = await begun()
    whole = [put(log, 1, index, b"x" * 100) for index in range(1, 10)]
    await rig.flush()
    wal = rig.store._ground.wal
    pread = wal._set.pread
    wal._set.pread = lambda *args: pread(*args).replace(b"x", b"y")  # type: ignore[method-assign]
    with pytest.raises(Damaged):
        await log.read(7, 1, len(whole))
    assert log.damage(7)


async def test_what_is_not_committed_stays_in_the_log() -> None:
    rig, replicas, log = await begun(wal_file_bytes=64 * KIB, flush_bytes_max=16 * KIB)
    replicas.committed = 30
    replicas.epochs = {}
    for index in range(1, 61):
        put(log, 1 if index < 10 else 2, index, b"x" * 8000)
        await rig.flush()
    replicas.epochs = dict.fromkeys(range(10, 61), 2)
    files = len(rig.store._ground.wal.files())
    await rig.store._mover.pass_once(everything=True)
    moved = replicas.told[-1][1]
    assert 10 <= moved <= 30
    assert 1 < len(rig.store._ground.wal.files()) < files
    replicas.committed = 0
    await rig.store._mover.pass_once(everything=True)
    log = await again(rig)
    assert not rig.store.damaged()
    assert log.found(7) == (moved + 1, 61, 0, 0, 0, 2, ((2, moved + 1),), moved + 1)


async def test_a_promise_outlives_its_log_file() -> None:
    rig, replicas, log = await begun(wal_file_bytes=64 * KIB, flush_bytes_max=16 * KIB)
    log.promise(8, 9, 2, 5)
    for index in range(1, 30):
        put(log, 1, index, b"x" * 8000)
        await rig.flush()
    replicas.committed = 29
    await rig.store._mover.pass_once(everything=True)
    assert rig.store._ground.wal.files()[0].file_id > 1
    log = await again(rig)
    assert log.found(8) == (1, 1, 9, 2, 5, 0, (), 1)
