"""The store on disk: what it promises a broker, with files and small state in memory."""

import asyncio

import pytest

from headrace.model.errors import DataDirLocked, StorageError
from headrace.storage.api import Checkpoint, Flushed
from headrace.storage.store import DiskStore
from tests.unit.storage.store_rig import END, KIB, ROOT, Rig


async def test_what_is_appended_is_in_memory_at_once_and_durable_after_a_flush() -> None:
    rig = await Rig().start()
    rig.put(1, count=3)
    assert [e.base_offset for e in rig.store.cached(1, 0, KIB, END) or ()] == [0]
    assert rig.logs[1].durable == 0
    assert rig.store.pending_bytes > 0
    await rig.flush()
    assert rig.logs[1].durable == 1
    assert rig.store.pending_bytes == 0
    assert rig.store.cached(1, 3, KIB, END) == []
    assert [e.base_offset for e in await rig.store.read(1, 2, KIB, END)] == [0]
    await rig.store.close()


async def test_a_partition_that_was_never_used_is_empty() -> None:
    rig = await Rig().start()
    log = rig.store.replay(7)
    assert (log.checkpoint, log.last_epoch, log.last_index, log.next_offset, list(log.entries)) == (None, 0, 0, 0, [])
    assert await rig.store.read(7, 0, KIB, END) == []
    assert rig.store.first_offset(7) == 0
    assert rig.store.offset_for_time(7, 5) == 0
    await rig.store.close()


async def test_what_was_not_flushed_is_gone_after_a_crash_and_the_rest_is_there() -> None:
    rig = await Rig().start()
    for _ in range(5):
        rig.put(1)
        rig.put(2)
    await rig.flush()
    rig.put(1)
    await rig.crash()
    assert len(rig.logs[1].entries) == 5
    assert rig.store.partitions() == [1, 2]
    for pid in (1, 2):
        await rig.check(pid)
    rig.put(1)
    await rig.flush()
    await rig.crash()
    await rig.check(1)
    await rig.store.close()


async def test_a_clean_stop_leaves_nothing_to_replay() -> None:
    rig = await Rig().start()
    rig.put(1)
    rig.put(1)
    await rig.flush()
    rig.put(1)
    await rig.restart()
    assert rig.store.partitions() == []
    assert rig.load(1) == []
    await rig.check(1)
    await rig.store.close()


async def test_a_partition_with_a_timer_is_named_at_start() -> None:
    rig = await Rig().start()
    rig.put(1)
    rig.put(2)
    await rig.flush()
    log = rig.logs[1]
    await rig.store.save_checkpoint(1, Checkpoint(1, 1, log.sums[-1].to_bytes(4, "big"), 0, 1, 12345))
    await rig.store.save_checkpoint(2, Checkpoint(1, 1, log.sums[-1].to_bytes(4, "big"), 0, 1, 0))
    rig.loaded.clear()
    await rig.restart()
    assert rig.store.partitions() == [1]
    await rig.store.save_checkpoint(1, Checkpoint(1, 1, log.sums[-1].to_bytes(4, "big"), 0, 1, 0))
    await rig.restart()
    assert rig.store.partitions() == []
    await rig.store.close()


async def test_a_checkpoint_waits_until_its_index_is_durable() -> None:
    rig = await Rig().start()
    rig.put(1)
    checkpoint = rig.checkpoint(1)
    assert checkpoint is not None
    await rig.store.save_checkpoint(1, checkpoint)
    assert rig.logs[1].durable == 1
    await rig.store.close()


async def test_reads_go_on_where_the_cache_ends() -> None:
    rig = await Rig(tail_cache_bytes=1024 * KIB).start()
    for _ in range(600):
        rig.put(1, size=4 * KIB)
        await rig.flush()
    assert rig.store.cached(1, 0, KIB, END) is None
    assert rig.store.stats()["cache_bytes"] <= 1024 * KIB
    await rig.check(1)
    assert len(await rig.store.read(1, 0, 64 * KIB, END)) == 15
    assert len(await rig.store.read(1, 0, 64 * KIB, 3)) == 3
    assert len(await rig.store.read(1, 599, 1, END)) == 1
    await rig.store.close()


async def test_a_deleted_partition_does_not_come_back() -> None:
    rig = await Rig().start()
    for _ in range(40):
        rig.put(1, size=40 * KIB)
        rig.put(2, size=100)
        await rig.flush()
    await rig.store._mover.pass_once(everything=True)
    rig.put(1)
    await rig.flush()
    await rig.store.delete([1])
    assert rig.store.log_bytes(1) == 0
    del rig.logs[1]
    await rig.crash()
    assert 1 not in rig.store.partitions()
    assert rig.store.replay(1).last_index == 0
    await rig.check(2)
    for _ in range(60):
        rig.put(2, size=40 * KIB)
        await rig.flush()
    await rig.store._mover.pass_once(everything=True)
    rig.put(2)
    await rig.flush()  # says that the older files do not count any more
    await rig.store.maintenance()
    assert rig.store._ground.deleted == {}
    await rig.store.close()


async def test_small_state_is_there_after_a_restart() -> None:
    rig = await Rig().start()
    await rig.store.commit_state({b"doc/a": b"1", b"doc/b": b"2"})
    await rig.store.commit_state({b"doc/b": None})
    await rig.restart()
    assert dict(rig.store.state.scan(b"doc/")) == {b"doc/a": b"1"}
    await rig.store.close()


async def test_publishers_are_held_back_at_the_limit_and_released_by_a_pass() -> None:
    rig = await Rig(wal_bytes_max=2 * 1024 * KIB).start()
    while ("pressure", True) not in rig.events:
        rig.put(1, size=100 * KIB)
        await rig.flush()
    for _ in range(3):
        await rig.store.maintenance()
        rig.put(1)
        await rig.flush()
    assert rig.events[-1] == ("pressure", False)
    await rig.check(1)
    await rig.store.close()


async def test_the_directory_is_locked_and_its_format_is_known(tmp_path: object) -> None:
    rig = await Rig().start()
    other = Rig()
    other.files = rig.files
    with pytest.raises(DataDirLocked):
        await other.start()
    await rig.store.close()
    data = rig.files.contents(f"{ROOT}/FORMAT")
    data[:] = data.replace(b"format 1", b"format 2")
    with pytest.raises(StorageError, match="format 2"):
        await rig.start()


async def test_a_failed_flush_fails_everything_that_waits() -> None:
    rig = await Rig().start()
    rig.put(1)
    await rig.flush()
    failed: list[Flushed] = []
    rig.flushed = failed.append  # type: ignore[method-assign, assignment]

    def broken(operation: str, path: str, _nbytes: int) -> int | None:
        if operation == "pwritev_durable":
            raise OSError(5, "broken")
        return None

    rig.files.fault = broken
    rig.put(1)
    waits = asyncio.ensure_future(rig.store.save_checkpoint(1, Checkpoint(1, 2, b"", 0, 2, 0)))
    await asyncio.sleep(0)
    with pytest.raises(StorageError):
        await waits
    assert failed
    assert failed[0].error is not None
    with pytest.raises(StorageError):
        rig.put(1)
    rig.files.fault = None
    with pytest.raises(StorageError):
        await rig.store.close()


async def test_idle_partitions_have_no_object() -> None:
    rig = await Rig().start()
    for pid in range(1, 200):
        rig.put(pid)
    await rig.flush()
    for pid in range(1, 200):
        await rig.unload(pid)
    while len(rig.store._ground.wal.files()) < 3:
        rig.put(1000, size=100 * KIB)
        await rig.flush()
    await rig.store._mover.pass_once(everything=True)
    assert set(rig.store._ground.parts) <= {0, 1000}
    await rig.check(5)
    await rig.store.close()


async def test_on_a_real_disk(tmp_path: object) -> None:
    rig = Rig()
    rig.loop = asyncio.get_running_loop()
    rig.store = DiskStore(str(tmp_path), rig.config, rig.loop)
    await rig.store.open(rig)
    for n in range(300):
        rig.put(1 + n % 3, size=8 * KIB)
        rig.store.flush()
        if n % 50 == 0:
            await asyncio.sleep(0.01)
    await rig.store.commit_state({b"doc/a": b"1"})
    await rig.store.close()
    rig.loaded.clear()
    rig.store = DiskStore(str(tmp_path), rig.config, rig.loop)
    await rig.store.open(rig)
    assert rig.store.state.get(b"doc/a") == b"1"
    for pid in (1, 2, 3):
        await rig.check(pid)
    await rig.store.close()
