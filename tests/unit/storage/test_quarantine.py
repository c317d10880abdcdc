"""Damage: found, confined to its partition, repaired to the last valid point; never served."""

import logging
from collections.abc import Iterator

import pytest

from headrace.model.errors import Damaged, NotFound
from headrace.storage import segments
from tests.unit.storage.store_rig import END, KIB, Rig


async def logged() -> Rig:
    """Partitions 1 and 2 in the log, several flushes each, then a clean stop without checkpoints."""
    rig = await Rig().start()
    for n in range(12):
        rig.put(1, size=300, count=2)
        rig.put(2, size=200)
        if n % 3 == 2:
            rig.settle(1, n)
        await rig.flush()
    for call in rig.timers:
        call()
    return rig


def places(rig: Rig, pid: int) -> list[tuple[str, int, int]]:
    part = rig.store._ground.part(pid)
    return [(f"/data/wal/wal-{p >> 32:016x}.log", p & 0xFFFFFFFF, s) for p, s, _ in part.rows_from(0)]


async def test_damage_in_the_log_isolates_its_partition_and_repair_cuts_there() -> None:
    rig = await logged()
    path, position, size = places(rig, 1)[8]
    rig.files.contents(path)[position + size - 1] ^= 1
    await rig.crash()
    assert list(rig.store.damaged()) == [1]
    damage = rig.store.damaged()[1]
    assert damage.last_valid_index == 8
    await rig.check(2)
    with pytest.raises(Damaged):
        rig.store.replay(1)
    with pytest.raises(Damaged):
        await rig.store.read(1, 0, KIB, END)
    dry = await rig.store.repair(1, dry_run=True)
    assert list(rig.store.damaged()) == [1]
    done = await rig.store.repair(1, dry_run=False)
    assert done == dry
    assert done.last_valid_index == 8
    assert done.lost_entries_max == 16 - 8
    assert rig.store.damaged() == {}
    rig.logs[1].cut(8)
    assert done.last_valid_offset == rig.logs[1].next_offset
    await rig.check(1)
    rig.put(1)
    rig.put(2)
    await rig.flush()
    await rig.crash()
    assert rig.store.damaged() == {}
    await rig.check(1)
    await rig.check(2)
    assert any("partition-1" in name for name in rig.files.listdir("/data/set-aside"))
    await rig.store.close()


@pytest.mark.parametrize(("row", "at"), [(-1, -1), (-1, 2), (-2, 2)])
async def test_a_repaired_end_stays_repaired(row: int, at: int) -> None:
    """A start leaves a damaged end out already, so that a repair finds nothing to cut: the next start must not find it again."""
    rig = await logged()
    path, position, size = places(rig, 1)[row]
    rig.files.contents(path)[position + at % size] ^= 1
    await rig.crash()
    done = await rig.store.repair(1, dry_run=False)
    rig.logs[1].cut(done.last_valid_index)
    await rig.crash()
    assert rig.store.damaged() == {}
    await rig.check(1)
    await rig.check(2)
    await rig.store.close()


async def test_damage_below_a_checkpoint_costs_only_the_records() -> None:
    rig = await logged()
    await rig.unload(1)
    path, position, size = places(rig, 1)[8]
    rig.files.contents(path)[position + size - 1] ^= 1
    await rig.crash()
    done = await rig.store.repair(1, dry_run=False)
    assert done.last_valid_index == 16
    assert done.lost_entries_max == 1
    rig.load(1)
    bases = [base for _, base, _ in rig.logs[1].entries if base >= 0]
    hit = rig.logs[1].entries[8][1]
    assert [e.base_offset for e in await rig.records(1, 11)] == [b for b in bases if b >= 10 and b != hit]
    await rig.store.close()


async def test_damage_found_while_reading_isolates_and_a_repair_drops_the_entry() -> None:
    rig = await Rig().start()
    for _ in range(400):
        rig.put(1, size=4 * KIB)
        rig.put(2, size=100)
        await rig.flush()
    path, position, _ = places(rig, 1)[5]
    rig.files.contents(path)[position + 100] ^= 1
    with pytest.raises(Damaged):
        await rig.records(1, 0)
    assert next(e for e in rig.events if e[0] == "quarantined")[1] == 1
    await rig.unload(1)
    done = await rig.store.repair(1, dry_run=False)
    assert (done.last_valid_index, done.lost_entries_max) == (400, 1)
    assert [e.base_offset for e in await rig.records(1, 0)] == [n for n in range(400) if n != 5]
    await rig.check(2)
    await rig.crash()
    rig.load(1)
    assert [e.base_offset for e in await rig.records(1, 0)] == [n for n in range(400) if n != 5]
    await rig.store.close()


async def test_a_checkpoint_past_the_log_isolates() -> None:
    rig = await logged()
    key = next(k for k in [b"\0storage/c/" + (1).to_bytes(8, "big")])
    await rig.store._ground.writer.submit(rig.store._mover.checkpoint_puts(rig.store._ground.part(1), rig.checkpoint(1)._replace(index=50)))  # type: ignore[union-attr]
    assert rig.state.get(key) is not None
    rig.logs[1].durable = 0
    rig.files.crash()
    rig.dead = True
    await rig.start()
    assert "past" in rig.store.damaged()[1].why
    done = await rig.store.repair(1, dry_run=False)
    assert done.last_valid_index == 50
    log = rig.store.replay(1)
    assert (log.last_index, list(log.entries)) == (50, [])
    rig.store.append(1, 1, 51, 3, (b"x",), 1)
    await rig.flush()
    rig.files.crash()
    rig.dead = True
    await rig.start()
    assert rig.store.damaged() == {}
    assert rig.store.replay(1).last_index == 51
    await rig.store.close()


async def test_refuse_names_what_is_damaged() -> None:
    rig = await logged()
    path, position, size = places(rig, 2)[3]
    rig.files.contents(path)[position + size - 1] ^= 1
    rig.config = Rig(on_mismatch="refuse").config
    with pytest.raises(Damaged, match="partition 2"):
        await rig.crash()
    rig.files.crash()
    rig.config = Rig(on_mismatch="truncate").config
    for log in rig.logs.values():
        log.durable = 0
    await rig.crash()
    assert rig.store.damaged() == {}
    assert len(rig.logs[2].entries) == 3
    await rig.check(1)
    await rig.check(2)
    await rig.store.close()


async def test_only_a_damaged_partition_is_repaired() -> None:
    rig = await logged()
    with pytest.raises(NotFound):
        await rig.store.repair(1, dry_run=False)
    await rig.store.close()


async def moved(count: int = 60, size: int = 900) -> tuple[Rig, str]:
    """Two partitions of ``count`` entries in one archive of about 64 KiB."""
    rig = await Rig(segment_own_bytes_min=1024 * KIB, tail_cache_bytes=1024 * KIB).start()
    for _ in range(count):
        rig.put(1, size=size)
        rig.put(2, size=100)
        await rig.flush()
    while len(rig.store._ground.wal.files()) < 2:
        rig.put(3, size=250 * KIB)
        rig.settle(3, rig.logs[3].next_offset)
        await rig.flush()
    await rig.store._mover.pass_once(everything=True)
    names = rig.files.listdir("/data/segments")
    assert len(names) == 1
    return rig, f"/data/segments/{names[0]}"


async def bases(rig: Rig, pid: int) -> list[int] | None:
    """What a fresh process reads of a partition; None: it found damage."""
    rig.store._ground.segments.close()
    rig.store._ground.segments._rows.clear()
    part = rig.store._ground.part(pid)
    rig.store._ground.cache.clear(part.tail)
    try:
        return [e.base_offset for e in await rig.records(pid, 0)]
    except Damaged:
        assert pid in rig.store.damaged()
        return None


@pytest.fixture
def quiet() -> Iterator[None]:
    """Thousands of findings need not be kept as log records."""
    logger = logging.getLogger("headrace.storage")
    logger.disabled = True
    yield
    logger.disabled = False


@pytest.mark.usefixtures("quiet")
async def test_every_byte_of_a_segment_damaged_is_found_and_confined() -> None:
    rig, path = await moved(6, 9800)
    data = rig.files.contents(path)
    whole = bytes(data)
    refs = {pid: rig.store._ground.part(pid).moved.refs[0] for pid in (1, 2)}
    for at in range(len(whole)):
        data[at] ^= 1 << (at % 8)
        in_data = [pid for pid, ref in refs.items() if ref.position <= at < ref.position + ref.nbytes]
        for pid in (1, 2):
            if pid in in_data or at % 16 == 0:
                got = await bases(rig, pid)
                if pid in in_data:
                    assert got is None, f"byte {at} is damaged and was served"
                else:
                    assert got == list(range(6)), f"byte {at} hurt partition {pid}, whose entries are sound"
                rig.store._ground.damaged.clear()
        data[at] ^= 1 << (at % 8)
    assert bytes(data) == whole


@pytest.mark.usefixtures("quiet")
async def test_every_length_of_a_segment_is_found() -> None:
    rig, path = await moved(6, 9800)
    data = rig.files.contents(path)
    whole = bytes(data)
    refs = {pid: rig.store._ground.part(pid).moved.refs[0] for pid in (1, 2)}
    for length in range(0, len(whole), 7):
        del data[length:]
        for pid, ref in refs.items():
            got = await bases(rig, pid)
            assert got == (list(range(6)) if ref.position + ref.nbytes <= length else None), (length, pid)
            rig.store._ground.damaged.clear()
        handle = rig.files.open(path)
        assert segments.read_table(rig.files, handle, refs[1].file) is None
        rig.files.close(handle)
        data[length:] = whole[length:]
    assert bytes(data) == whole


@pytest.mark.parametrize(("at", "lost"), [(40, 1), (500, 1), (1000, 1), (40_000, 1), (55_000, 1), (964 * 9 + 2, 51)])
async def test_a_repair_drops_only_what_is_damaged_in_a_segment(at: int, lost: int) -> None:
    """A damaged length hides what follows up to the next step of the sparse index (here: the end)."""
    rig, path = await moved()
    ref = rig.store._ground.part(1).moved.refs[0]
    data = rig.files.contents(path)
    data[ref.position + at] ^= 0x10
    hit = at // (900 + 64)
    assert await bases(rig, 1) is None
    dry = await rig.store.repair(1, dry_run=True)
    assert dry.lost_entries_max == lost
    await rig.store.repair(1, dry_run=False)
    want = [n for n in range(60) if not hit <= n < hit + lost]
    assert await bases(rig, 1) == want
    assert await bases(rig, 2) == list(range(60))
    assert rig.files.listdir("/data/set-aside")
    await rig.crash()
    assert await bases(rig, 1) == want
    rig.load(1)
    await rig.store.close()


async def test_a_missing_segment_isolates_its_partitions() -> None:
    rig, path = await moved()
    rig.files.unlink(path)
    rig.files.fsync_dir("/data/segments")
    await rig.crash()
    assert sorted(rig.store.damaged()) == [1, 2]
    await rig.check(3)
    for pid in (1, 2):
        done = await rig.store.repair(pid, dry_run=False)
        assert done.lost_entries_max == 60
        rig.load(pid)
        assert await rig.records(pid, 0) == []
        assert rig.put(pid) == 60
    await rig.flush()
    await rig.crash()
    assert rig.store.damaged() == {}
    await rig.store.close()


async def test_a_segment_without_a_sound_footer_serves_and_is_rebuilt_by_walking() -> None:
    rig, path = await moved()
    data = rig.files.contents(path)
    data[-10] ^= 1
    await rig.crash()
    await rig.check(1)
    for key in list(rig.state.raw()):
        del rig.state.raw()[key]
    rig.files.crash()
    rig.dead = True
    await rig.start()
    for pid in (1, 2):
        assert [e.base_offset for e in await rig.records(pid, 0)] == list(range(60))
    await rig.store.close()


