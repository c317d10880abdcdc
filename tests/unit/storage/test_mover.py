"""Moving out of the log: nothing is lost or doubled, wherever the process ends; what is dead goes, what is mostly dead is rewritten."""

import asyncio
from contextlib import suppress

import pytest

from headrace.model.errors import HeadraceError
from headrace.storage.flusher import SteppedLane
from headrace.storage.keys import FILE
from headrace.storage.logwrites import LaneWrites
from headrace.wire.journal import Kind
from tests.unit.storage.store_rig import KIB, Killed, Rig


async def filled(*, seed: int = 1) -> Rig:
    """Three log files: partition 1 with much that lives, 2 and 3 with little, 4 all settled, 5 unloaded, 6 never loaded again after a crash."""
    rig = await Rig(seed=seed).start()
    rig.put(6)
    rig.put(6)
    await rig.flush()
    await rig.crash()
    rig.put(5, size=500)
    rig.put(4, size=30 * KIB)
    await rig.store.commit_state({b"doc/a": b"1"})
    for n in range(40):
        rig.put(1, size=40 * KIB, count=2)
        if n % 4 == 0:
            rig.put(2, size=200)
            rig.put(3, size=1000)
            rig.settle(2, rig.logs[2].next_offset - 3)
        if n == 20:
            rig.settle(4, 1)
            rig.settle(1, 10)
        await rig.flush()
        if n == 30:
            await rig.unload(5)
    return rig


async def check_all(rig: Rig) -> None:
    for pid in rig.logs:
        await rig.check(pid)
    assert rig.store.damaged() == {}
    assert rig.store.state.get(b"doc/a") == b"1"
    known = {f"segment-{int.from_bytes(k[len(FILE) :], 'big'):016x}.seg" for k, _ in rig.state.scan(FILE)}
    assert set(rig.files.listdir("/data/segments")) == known, "files and what is known of them differ"


async def test_a_pass_moves_what_lives_and_lets_the_files_go() -> None:
    rig = await filled()
    before = len(rig.store._ground.wal.files())
    assert before >= 2
    await rig.store._mover.pass_once(everything=True)
    assert len(rig.store._ground.wal.files()) == 1
    stats = rig.store.stats()
    assert stats["segment_files"] >= 2, "partition 1 has files of its own, the others share one"
    await check_all(rig)
    await rig.crash()
    await check_all(rig)
    rig.put(1)
    rig.put(6)
    await rig.restart()
    await check_all(rig)
    await rig.store.close()


async def test_wherever_a_pass_is_killed_nothing_is_lost() -> None:
    rig = await filled()
    rig.kill_at(-1)
    await rig.store._mover.pass_once(everything=True)
    for call in rig.timers:
        call()
    steps = rig.steps
    assert steps > 10
    await rig.store.close()
    for step in range(1, steps + 1):
        rig = await filled()
        rig.kill_at(step)
        with suppress(Killed):
            await rig.store._mover.pass_once(everything=True)
            for call in rig.timers:
                call()
        await rig.crash()
        await check_all(rig)
        rig.put(1)
        rig.put(6)
        await rig.flush()
        await rig.store._mover.pass_once(everything=True)
        await check_all(rig)
        await rig.crash()
        await check_all(rig)
        await rig.store.close()


@pytest.mark.parametrize("operation", ["create", "pwrite", "fsync", "fsync_dir"])
async def test_a_failed_write_ends_a_pass_and_the_next_one_succeeds(operation: str) -> None:
    rig = await filled()
    left = [2]

    def broken(done: str, path: str, _nbytes: int) -> int | None:
        if done == operation and "segments" in path:
            left[0] -= 1
            if left[0] == 0 or operation == "fsync_dir":
                raise OSError(28, "no space left")
        return None

    rig.files.fault = broken
    with pytest.raises(OSError, match="no space"):
        await rig.store._mover.pass_once(everything=True)
    rig.files.fault = None
    for pid in rig.logs:
        await rig.check(pid)
    await rig.store._mover.pass_once(everything=True)
    await check_all(rig)
    await rig.crash()
    await check_all(rig)
    await rig.store.close()


async def test_dead_segments_go_once_what_killed_them_is_durable() -> None:
    rig = await filled()
    await rig.store._mover.pass_once(everything=True)
    before = rig.store.stats()["segment_bytes"]
    rig.settle(1, rig.logs[1].next_offset)
    assert rig.logs[1].durable < len(rig.logs[1].entries)
    await rig.store.maintenance()
    assert rig.logs[1].durable == len(rig.logs[1].entries)
    assert rig.store.stats()["segment_bytes"] < before / 4
    await check_all(rig)
    await rig.crash()
    await check_all(rig)
    await rig.store.close()


async def test_a_crash_before_the_settlement_is_durable_brings_the_message_back() -> None:
    rig = await filled()
    await rig.store._mover.pass_once(everything=True)
    rig.settle(1, rig.logs[1].next_offset)
    await rig.crash()
    assert rig.logs[1].floor == 10
    await check_all(rig)
    await rig.store.close()


async def test_a_mostly_dead_file_is_rewritten_when_nothing_dies_in_it_any_more() -> None:
    rig = await filled()
    await rig.store._mover.pass_once(everything=True)
    rig.settle(1, rig.store._ground.part(1).moved.refs[-1].end_offset - 6)
    await rig.store.maintenance()
    before = rig.store.stats()["segment_bytes"]
    for _ in range(12):
        await rig.store.maintenance()
    assert rig.store.stats()["segment_bytes"] < before / 2
    await check_all(rig)
    await rig.crash()
    await check_all(rig)
    await rig.store.close()


async def test_many_small_archives_become_one() -> None:
    rig = await Rig().start()
    await rig.store.commit_state({b"doc/a": b"1"})
    for n in range(18):
        rig.put(1 + n % 3, size=300)
        while len(rig.store._ground.wal.files()) < 2:
            rig.put(9, size=200 * KIB)
            rig.settle(9, rig.logs[9].next_offset)
            await rig.flush()
        await rig.store._mover.pass_once(everything=True)
    assert rig.store.stats()["segment_files"] >= 16
    for _ in range(12):
        await rig.store.maintenance()
    assert rig.store.stats()["segment_files"] <= 4
    await check_all(rig)
    await rig.crash()
    await check_all(rig)
    await rig.store.close()


async def test_reads_during_a_pass_find_everything() -> None:
    rig = await filled()
    moving = asyncio.ensure_future(rig.store._mover.pass_once(everything=True))
    for _ in range(5):
        await rig.check(1)
        await asyncio.sleep(0)
    await moving
    await rig.check(1)
    await rig.store.close()


async def test_offset_for_time_and_retention_over_segments_and_log() -> None:
    rig = await Rig(segment_file_bytes=1024 * KIB).start()
    for n in range(120):
        rig.put(1, size=30 * KIB, count=2, wall_ms=rig.wall_ms + n * 10)
        await rig.flush()
        if n == 80:
            await rig.store._mover.pass_once(everything=True)
    part = rig.store._ground.part(1)
    assert len(part.moved.refs) >= 2
    assert part.rows
    for n in (0, 1, 40, 65, 80, 100, 119):
        assert rig.store.offset_for_time(1, rig.wall_ms + n * 10) == 2 * n
        assert rig.store.offset_for_time(1, rig.wall_ms + n * 10 - 9) == 2 * n
    assert rig.store.offset_for_time(1, rig.wall_ms + 2000) == 240
    assert rig.store.retain(1, wall_ms=rig.wall_ms, age_ms=0, bytes_max=0, records_max=0) == 0
    first = part.moved.refs[0].end_offset
    assert rig.store.retain(1, wall_ms=rig.wall_ms, age_ms=0, bytes_max=0, records_max=240 - first) == first
    start = rig.store.retain(1, wall_ms=rig.wall_ms + 119 * 10, age_ms=100, bytes_max=0, records_max=0)
    assert start == 2 * 109
    assert rig.store.retain(1, wall_ms=0, age_ms=0, bytes_max=100 * KIB, records_max=0) == 240 - 2 * 4, 'as many as reach the bound stay'
    await rig.store.maintenance()
    assert rig.store.first_offset(1) == 232
    assert [e.base_offset for e in await rig.records(1, 232)] == [232, 234, 236, 238]
    assert rig.store.stats()["segment_files"] == 1, "the archive with the copy of the checkpoint"
    await rig.crash()
    assert rig.store.replay(1).next_offset == 240
    await rig.store.close()


async def test_compaction_leaves_gaps_and_offsets() -> None:
    rig = await filled()
    log = rig.logs[1]
    kept = {base for _, base, _ in log.entries if base % 6 == 0}
    await rig.store.compact(1, lambda payload, base: payload if base in kept else None)
    got = [e.base_offset for e in await rig.records(1, 10)]
    assert got == sorted(base for base in kept if base + 2 > 10)
    assert [e.base_offset for e in await rig.store.read(1, 14, 1, 1 << 62)] == [18]
    await rig.crash()
    assert [e.base_offset for e in await rig.records(1, 10)] == got
    rig.load(1)
    await rig.store.compact(1, lambda payload, base: payload[:40] if base == 12 else payload)
    assert len((await rig.store.read(1, 12, 1, 1 << 62))[0].payload) == 40
    await rig.store.close()


async def test_a_lost_state_is_rebuilt() -> None:
    rig = await filled()
    await rig.store._mover.pass_once(everything=True)
    await rig.store.commit_state({b"doc/b": b"2"})
    for n in range(30):
        rig.put(1, size=40 * KIB)
        rig.put(2)
        rig.settle(3, n)
        await rig.flush()
    for _ in range(2):
        for key in list(rig.state.raw()):
            del rig.state.raw()[key]
        await rig.crash()
        assert rig.store.state.get(b"doc/b") == b"2"
        await check_all(rig)
        await rig.store._mover.pass_once(everything=True)
        await check_all(rig)
    await rig.restart()
    await check_all(rig)
    await rig.store.close()


async def test_a_damaged_value_of_the_state_isolates_its_partition_and_a_repair_rebuilds_it() -> None:
    rig = await filled()
    await rig.store._mover.pass_once(everything=True)
    key = next(k for k in rig.state.raw() if k.endswith(b"m/" + (1).to_bytes(8, "big")))
    raw = rig.state.raw()[key]
    rig.state.raw()[key] = raw[:-1] + bytes([raw[-1] ^ 1])
    await rig.crash()
    with pytest.raises(HeadraceError):
        rig.store.replay(1)
    assert list(rig.store.damaged()) == [1]
    await rig.store.repair(1, dry_run=True)
    await rig.store.repair(1, dry_run=False)
    rig.logs[1].floor = 0 if not rig.logs[1].entries else rig.logs[1].floor
    await check_all(rig)
    await rig.restart()
    await check_all(rig)
    await rig.store.close()


async def roll_over(rig: Rig) -> None:
    """The log goes on in another file."""
    files = len(rig.store._ground.wal.files())
    while len(rig.store._ground.wal.files()) == files:
        rig.put(2, size=40 * KIB)
        await rig.flush()


async def close_flush(rig: Rig) -> None:
    """The log is idle: what it has retired goes."""
    for call in rig.timers:
        call()
    rig.timers.clear()


async def forget(rig: Rig, pid: int) -> None:
    await rig.store.delete([pid])
    del rig.logs[pid]
    rig.loaded.discard(pid)


async def test_a_deleted_partition_stays_deleted_while_a_recovery_may_still_read_its_log_files() -> None:
    """That a log file was retired is forgotten by a crash until a flush has said so."""
    rig = await Rig().start()
    rig.put(1)
    await rig.flush()
    await forget(rig, 1)
    await roll_over(rig)
    await rig.store._mover.pass_once(everything=True)
    await rig.crash()
    assert rig.store.replay(1).last_index == 0
    assert 1 not in rig.store.partitions()
    for _ in range(3):
        await close_flush(rig)
        await roll_over(rig)
        await rig.store._mover.pass_once(everything=True)
    assert rig.store._ground.deleted == {}, "nothing of it is left, so its mark went too"
    await rig.crash()
    assert rig.store.replay(1).last_index == 0


async def test_what_was_appended_before_a_deletion_and_flushed_after_it_stays_deleted() -> None:
    """It may lie in a newer log file than the one that was written when the partition was deleted."""
    rig = await Rig().start()
    for _ in range(3):
        rig.put(1)
        await rig.flush()
    wal = rig.store._ground.wal
    while wal._reserve_at - wal._end > 80 * KIB:
        rig.put(2, size=40 * KIB)
        await rig.flush()
    newest = wal.files()[-1].file_id
    slow = SteppedLane()
    eager, wal._writes = wal._writes, LaneWrites(wal._files, slow)
    rig.put(2)
    rig.store.flush()
    rig.put(1, size=100 * KIB)
    await forget(rig, 1)
    while slow.step():
        pass
    wal._writes = eager
    assert wal.files()[-1].file_id > newest, "it was flushed to the next file, after the deletion"
    for _ in range(2):
        await rig.store._mover.pass_once(everything=True)
        await close_flush(rig)
    await rig.crash()
    assert rig.store.damaged() == {}
    assert rig.store.replay(1).last_index == 0


async def test_a_promise_outlives_the_log_file_that_held_it() -> None:
    rig = await Rig().start()
    rig.put(1)
    await rig.unload(1)
    rig.store.append(1, 7, 2, int(Kind.PROMISE), (b"",), 0)
    rig.store.append(3, 4, 1, int(Kind.PROMISE), (b"",), 0)  # a partition without any entry
    for _ in range(30):
        rig.put(2, size=40 * KIB)
        await rig.flush()
    for _ in range(3):
        await rig.store._mover.pass_once(everything=True)
        await close_flush(rig)
    assert rig.store._ground.wal.files()[0].file_id > 1, "the file that held them is gone"
    await rig.crash()
    assert rig.store._ground.part(1).promised == 7
    assert rig.store._ground.part(3).promised == 4
    assert rig.store.damaged() == {}
    rig.put(3)
    await rig.restart()
    for pid in rig.logs:
        await rig.check(pid)
