"""A partition that cannot commit does not keep the log's files from going, and loses nothing wherever the broker dies meanwhile."""

from contextlib import suppress

import pytest

from headrace.model.errors import SyncFailed
from headrace.storage.carrying import carry
from headrace.storage.replicated import ReplicatedLog
from headrace.wire.journal import Kind
from tests.unit.storage.store_rig import KIB, Killed, Rig
from tests.unit.storage.test_replicated import Replicas

SETTLEMENT = int(Kind.SETTLEMENT)
STUCK, BUSY = 7, 8


class Half(Replicas):
    """Everything is committed but what the stuck partition has after ``upto``."""

    def __init__(self, upto: int) -> None:
        super().__init__()
        self.upto = upto

    def committed_index(self, pid: int) -> int | None:
        return self.upto if pid == STUCK else 1 << 40 if pid == BUSY else None

    def epoch_at(self, pid: int, index: int) -> int:
        return 2 if pid == STUCK else 1


async def opened(rig: Rig, upto: int) -> ReplicatedLog:
    rig.flushed = lambda result: None  # type: ignore[method-assign]
    replicas = Half(upto)
    return rig.store.replicated(replicas, replicas.on_rows)


def payload(index: int) -> bytes:
    return b"%04d" % index * 100


async def filled(*, epochs: tuple[int, ...] = (2, 2, 2, 2, 2), upto: int = 2) -> tuple[Rig, ReplicatedLog]:
    rig = await Rig(wal_file_bytes=64 * KIB, flush_bytes_max=16 * KIB).start()
    log = await opened(rig, upto)
    for index, epoch in enumerate(epochs, 1):
        log.append(STUCK, epoch, index, SETTLEMENT, payload(index))
    for index in range(1, 50):
        log.append(BUSY, 1, index, SETTLEMENT, b"x" * 8000)
        await rig.flush()
    return rig, log


async def kept(log: ReplicatedLog, rig: Rig, count: int, *, restarted: bool = False) -> None:
    """All entries of the stuck partition are there, as they were."""
    part = rig.store._ground.part(STUCK)
    assert not rig.store.damaged()
    assert part.last_index == part.durable_index == count
    if restarted:
        found = log.found(STUCK)
        assert (found.end, found.runs[-1][0]) == (count + 1, 2)
    first = part.moved.moved_to + 1
    raw = await log.read(STUCK, first, count + 1)
    assert [entry[-len(payload(1)) :] for entry in raw] == [payload(index) for index in range(first, count + 1)]


async def test_the_files_before_what_is_not_committed_go() -> None:
    rig, log = await filled()
    files = [f.file_id for f in rig.store._ground.wal.files()]
    assert len(files) > 4
    for _ in range(2):
        await rig.store._mover.pass_once(everything=True)
    left = [f.file_id for f in rig.store._ground.wal.files()]
    assert left[0] >= files[-1]
    await kept(log, rig, 5)
    log.append(STUCK, 2, 6, SETTLEMENT, payload(6))
    await rig.flush()
    rig.dead = True
    rig.files.crash()
    await rig.start()
    await kept(await opened(rig, 2), rig, 6, restarted=True)
    await rig.store.close()


@pytest.mark.timeout(240)
async def test_wherever_the_broker_dies_meanwhile_nothing_is_lost() -> None:
    rig, _ = await filled()
    rig.kill_at(-1)
    await rig.store._mover.pass_once(everything=True)
    steps = rig.steps
    assert steps > 5
    for step in range(1, steps + 1):
        rig, _ = await filled()
        rig.kill_at(step)
        with suppress(Killed, SyncFailed):
            await rig.store._mover.pass_once(everything=True)
        rig.dead = True
        rig.files.crash()
        await rig.start()
        log = await opened(rig, 2)
        await kept(log, rig, 5, restarted=True)
        await rig.store._mover.pass_once(everything=True)
        await kept(log, rig, 5)
        await rig.store.close()


async def test_what_is_of_two_epochs_stays_where_it_is() -> None:
    rig, log = await filled(epochs=(1, 1, 1, 2, 2))
    files = [f.file_id for f in rig.store._ground.wal.files()]
    await rig.store._mover.pass_once(everything=True)
    assert rig.store._ground.wal.files()[0].file_id == files[0]
    await kept(log, rig, 5)
    await rig.store.close()


async def test_what_is_on_its_way_to_the_disk_is_not_carried() -> None:
    rig, log = await filled()
    files = [f.file_id for f in rig.store._ground.wal.files()]
    log.append(STUCK, 2, 6, SETTLEMENT, payload(6))
    assert not await _carried(rig)
    await rig.flush()
    assert await _carried(rig)
    assert rig.store._ground.wal.files()[0].file_id == files[0]
    await kept(log, rig, 6)
    log.truncate(STUCK, 4, 2)
    assert not await _carried(rig)
    await rig.flush()
    assert rig.store._ground.part(STUCK).last_index == 3
    await rig.store.close()


async def _carried(rig: Rig) -> bool:
    store = rig.store
    return await carry(store._ground, store._ground.part(STUCK), 2, store.intake, store.flush, store.durable)
