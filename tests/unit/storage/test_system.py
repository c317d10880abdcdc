"""The journal of the small state: whatever a start has shown of the state, a loss of the state does not take back."""

import errno
from collections.abc import Callable

import pytest

from headrace.model.errors import DiskFull
from headrace.storage.state import MemoryStateStore, Puts
from tests.unit.storage.store_rig import KillableState, Killed, Rig

KEYS = (b"names/a", b"names/b")


def shown(rig: Rig) -> list[bytes | None]:
    return [rig.state.get(key) for key in KEYS]


async def lose_state(rig: Rig) -> None:
    """Ends the process without a clean stop, and with it the small state."""
    rig.dead = True
    rig.state = KillableState(rig)
    rig.files.crash()
    await rig.start()


async def test_state_and_journal_agree_after_a_crash_at_every_step() -> None:
    step = 0
    while True:
        step += 1
        rig = await Rig(seed=step).start()
        await rig.store.commit_state({KEYS[0]: b"1", KEYS[1]: b"1"})
        rig.kill_at(step)
        confirmed = False
        try:
            await rig.store.commit_state({KEYS[0]: b"2", KEYS[1]: None})
            confirmed = True
        except Killed:
            pass
        if not rig.dead and confirmed:
            break
        await rig.crash()
        before = shown(rig)
        assert before in ([b"1", b"1"], [b"2", None])
        await lose_state(rig)
        assert shown(rig) == before, f"killed at step {step}"
    assert step > 3


class FullState(MemoryStateStore):
    """Has no room while ``full``."""

    full = False

    def commit(self, puts: Puts) -> None:
        if self.full:
            raise DiskFull("no room")
        super().commit(puts)


async def test_what_did_not_fit_is_not_in_the_journal_either() -> None:
    rig = Rig()
    rig.state = state = FullState()
    await rig.start()
    await rig.store.commit_state({KEYS[0]: b"1"})
    state.full = True
    with pytest.raises(DiskFull):
        await rig.store.commit_state({KEYS[0]: b"2", KEYS[1]: b"2"})
    state.full = False
    await rig.store.commit_state({b"names/c": b"3"})
    await lose_state(rig)
    assert shown(rig) == [b"1", None]
    assert rig.state.get(b"names/c") == b"3"


async def test_a_full_disk_leaves_a_partition_that_was_to_be_deleted() -> None:
    rig = Rig()
    rig.state = state = FullState()
    await rig.start()
    rig.put(1, count=3)
    await rig.flush()
    state.full = True
    with pytest.raises(DiskFull):
        await rig.store.delete([1])
    assert [e.base_offset for e in await rig.store.read(1, 0, 1024, 3)] == [0]
    await rig.crash()
    assert [e.base_offset for e in await rig.store.read(1, 0, 1024, 3)] == [0]
    state.full = False
    await rig.store.delete([1])
    assert rig.store.partitions() == []


async def declare_many(rig: Rig) -> dict[bytes, bytes]:
    """More of the catalogue than a log file is kept for."""
    made = {b"names/%04d" % n: bytes(100) for n in range(600)}
    for at in range(0, 600, 20):
        await rig.store.commit_state(dict(list(made.items())[at : at + 20]))
    return made


def _without_segments(number: int) -> Callable[[str, str, int], int | None]:
    """A disk that takes no segments."""

    def broken(done: str, path: str, _nbytes: int) -> int | None:
        if done == "pwrite" and "segments" in path:
            raise OSError(number, "the write failed", path)
        return None

    return broken


async def quiet(rig: Rig) -> None:
    """Some rounds in which nobody declares anything."""
    for _ in range(4):
        for call in rig.timers[:]:
            rig.timers.remove(call)
            call()
        await rig.store.maintenance()


async def test_what_many_queues_were_declared_with_is_given_up_once_it_is_in_the_small_state() -> None:
    rig = await Rig().start()
    made = await declare_many(rig)
    before = rig.store.stats()["wal_bytes"]
    await rig.store.maintenance()
    assert rig.store.stats()["wal_bytes"] >= before, "more may be declared at once"
    await quiet(rig)
    assert rig.store.stats()["wal_bytes"] < before / 4
    assert len(rig.store._ground.wal.files()) == 1
    passes = rig.store.stats()["move_passes"]
    await quiet(rig)
    assert rig.store.stats()["move_passes"] == passes, "once"
    await rig.crash()
    assert {key: rig.state.get(key) for key in made} == made
    await lose_state(rig)
    assert {key: rig.state.get(key) for key in made} == made
    await rig.store.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_the_log_keeps_the_catalogue_until_its_copy_is_written(number: int) -> None:
    rig = await Rig().start()
    made = await declare_many(rig)
    await rig.crash()  # the log goes on in another file
    await rig.store.commit_state({b"names/last": b"1"})

    rig.files.fault = _without_segments(number)
    with pytest.raises(OSError, match="the write failed"):
        await rig.store._mover.pass_once(everything=True)
    rig.files.fault = rig._fault
    await lose_state(rig)
    assert {key: rig.state.get(key) for key in made} == made
    await rig.store._mover.pass_once(everything=True)
    await lose_state(rig)
    assert {key: rig.state.get(key) for key in made} == made
    await rig.store.close()


@pytest.mark.parametrize("full", [True, False])
async def test_a_full_disk_does_not_keep_log_files_of_which_all_is_settled(full: bool) -> None:
    rig = await Rig().start()
    rig.put(1, count=30)
    rig.settle(1, rig.logs[1].next_offset)
    await rig.flush()
    await rig.crash()  # the log goes on in another file
    rig.load(1)
    rig.files.fault = _without_segments(errno.ENOSPC if full else errno.EIO)
    if full:
        assert await rig.store._mover.pass_once(everything=True) > 0
    else:
        with pytest.raises(OSError, match="the write failed"):
            await rig.store._mover.pass_once(everything=True)
    rig.files.fault = rig._fault
    await rig.crash()
    await rig.check(1)
    await rig.store.close()


async def test_a_file_with_messages_in_it_is_not_given_up_early() -> None:
    rig = await Rig().start()
    rig.put(1)
    await rig.flush()
    await declare_many(rig)
    before = rig.store.stats()["wal_bytes"]
    await quiet(rig)
    assert rig.store.stats()["wal_bytes"] >= before
    await rig.store.close()


async def test_wherever_giving_it_up_is_killed_the_catalogue_is_whole() -> None:
    step, done = 0, False
    while not done:
        step += 1
        rig = await Rig(seed=step).start()
        made = await declare_many(rig)
        rig.kill_at(step)
        try:
            await quiet(rig)
            done = not rig.dead
        except Killed:
            pass
        await rig.crash()
        assert {key: rig.state.get(key) for key in made} == made, step
        await lose_state(rig)
        assert {key: rig.state.get(key) for key in made} == made, step
        await rig.store.close()
    assert step > 8
