"""Random work on the disk store (appends, floors, passes, unloading, compaction of nothing, restarts, power failures at any step) against the plain
truth."""

import random

import pytest

from headrace.model.errors import StorageError
from tests.unit.storage.store_rig import KIB, Killed, Rig


async def _step(rig: Rig, r: random.Random) -> None:
    act = r.random()
    pid = r.choice((1, 2, 3, 4))
    if act < 0.55:
        for _ in range(r.randrange(1, 4)):
            pid = r.choice((1, 2, 3, 4))
            if pid in rig.logs and pid not in rig.loaded:
                rig.load(pid)
            rig.put(pid, size=r.choice((40, 300, 5 * KIB, 60 * KIB)), count=r.randrange(1, 5))
    elif act < 0.75:
        if pid in rig.logs:
            if pid not in rig.loaded:
                rig.load(pid)
            log = rig.logs[pid]
            rig.settle(pid, r.randrange(log.floor, log.next_offset + 1))
    elif act < 0.80:
        await rig.store.maintenance()
    elif act < 0.84:
        await rig.store._mover.pass_once(everything=r.random() < 0.5)
    elif act < 0.87:
        await rig.unload(pid) if pid in rig.logs else None
    elif act < 0.89 and pid in rig.logs:
        await rig.check(pid)
    elif act < 0.91:
        await rig.store.commit_state({b"doc/%d" % r.randrange(5): b"%d" % r.randrange(1000)})
    elif act < 0.92 and pid in rig.logs:
        async with rig.store._ground.moving:
            await rig.store._mover.evacuate(rig.store._ground.part(pid))
    elif act < 0.93:
        for call in rig.timers:
            call()
        rig.timers.clear()
    else:
        await rig.flush()


async def _check(rig: Rig) -> None:
    assert rig.store.damaged() == {}
    for pid in rig.logs:
        await rig.check(pid)


@pytest.mark.parametrize("seed", range(40))
async def test_random_work_and_power_failures(seed: int) -> None:
    r = random.Random(seed)
    rig = await Rig(seed=seed, tail_cache_bytes=1024 * KIB).start()
    for _ in range(6):
        kill = r.random() < 0.7
        rig.kill_at(r.randrange(1, 120) if kill else -1)
        try:
            for _ in range(r.randrange(10, 120)):
                await _step(rig, r)
        except (Killed, StorageError, OSError, AssertionError):
            if not rig.dead:
                raise
        if rig.dead:
            await rig.crash()
            await _check(rig)
            continue
        rig.kill_at(-1)
        fate = r.random()
        if fate < 0.5:
            await rig.crash()
        elif fate < 0.8:
            await rig.restart()
        else:
            for key in list(rig.state.raw()):
                del rig.state.raw()[key]
            await rig.crash()
        if r.random() < 0.7:
            await _check(rig)
    await rig.store.close()
