"""The journal of the small state: whatever a start has shown of the state, a loss of the state does not take back."""

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
