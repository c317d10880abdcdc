"""Room on the disk: told once when it runs out and once when it is back; the ballast is given up for it."""

from tests.unit.storage.store_rig import KIB, ROOT, Rig

MIB = 1024 * KIB


def use(rig: Rig, free: int) -> None:
    """Leaves ``free`` bytes."""
    rig.files.capacity += free - rig.files.free_bytes(ROOT)


def run_timers(rig: Rig) -> None:
    timers, rig.timers = rig.timers, []
    for call in timers:
        call()


async def started() -> Rig:
    rig = await Rig(disk_free_bytes_min=8 * MIB, ballast_bytes=1 * MIB).start()
    assert rig.files.exists(f"{ROOT}/ballast")
    return rig


async def test_nearly_full_and_room_again_are_told_once_with_a_gap_between_them() -> None:
    rig = await started()
    use(rig, 7 * MIB)
    for _ in range(3):
        await rig.store.maintenance()
    assert rig.events == [("disk", True)]
    use(rig, 9 * MIB)
    await rig.store.maintenance()
    assert rig.events == [("disk", True)], "a little above the mark is not room yet"
    use(rig, 11 * MIB)
    for _ in range(3):
        await rig.store.maintenance()
    assert rig.events == [("disk", True), ("disk", False)]
    assert rig.store.stats()["disk_free_bytes"] == 11 * MIB
    await rig.store.close()


async def test_a_log_without_room_gives_the_ballast_up_and_goes_on_later() -> None:
    rig = await started()
    use(rig, 300 * KIB)
    n = 0
    while ("disk", True) not in rig.events and n < 60:
        rig.put(1, size=60 * KIB)
        await rig.flush()
        run_timers(rig)
        n += 1
    assert ("disk", True) in rig.events
    assert not rig.files.exists(f"{ROOT}/ballast")
    durable = rig.logs[1].durable
    use(rig, 64 * MIB)
    for _ in range(3):
        run_timers(rig)
        await rig.flush()
        await rig.store.maintenance()
    assert rig.logs[1].durable == len(rig.logs[1].entries) >= durable
    assert rig.events[-1] == ("disk", False)
    assert rig.files.exists(f"{ROOT}/ballast")
    await rig.check(1)
    await rig.store.close()


async def test_a_disk_that_was_full_at_start_is_told_at_start() -> None:
    rig = Rig(disk_free_bytes_min=8 * MIB)
    rig.files.capacity = 4 * MIB
    await rig.start()
    assert rig.events == [("disk", True)]
    await rig.store.close()
