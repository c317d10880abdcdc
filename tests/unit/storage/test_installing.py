"""A partition replaced as a whole: all of it or nothing, at whatever step the broker dies, and what the log had before never comes back."""

import asyncio
import errno
from collections.abc import Sequence
from contextlib import suppress

import pytest

from headrace.model.errors import Damaged, DiskFull, Invalid, SyncFailed
from headrace.storage.api import Checkpoint
from headrace.storage.keys import pack_checkpoint
from headrace.storage.replicated import ReplicatedLog, Snapshot
from headrace.wire import replication as wire
from headrace.wire.journal import Kind, pack_records_head
from tests.unit.storage.store_rig import KIB, Killed, Rig
from tests.unit.storage.test_replicated import Replicas, again, begun

PID = 7
RECORDS, SETTLEMENT = int(Kind.RECORDS), int(Kind.SETTLEMENT)
END = 1 << 62


def records(base: int, count: int = 2, size: int = 400) -> bytes:
    return pack_records_head(base, count, count, 1_700_000_000_000 + base, 0) + b"%d." % base * size


async def owner(entries: int = 40, *, floor: int = 20, epoch: int = 4) -> tuple[Rig, ReplicatedLog, Snapshot]:
    """One with records at even offsets, of which those below ``floor`` are dead, and a checkpoint that covers all of it."""
    rig, replicas, log = await begun(segment_own_bytes_min=4 * KIB, segment_file_bytes=8 * KIB)
    for index in range(1, entries + 1):
        log.append(PID, epoch, index, RECORDS, records(2 * index - 2), 2 * index - 2, 2)
        await rig.flush()
    replicas.committed = entries
    made = Checkpoint(epoch, entries, b"the state of %d" % entries, floor, 2 * entries, 0)
    rig.checkpoint = lambda pid: made if pid == PID else None  # type: ignore[method-assign]
    rig.store.set_floor(PID, floor)
    found = log.snapshot(PID)
    assert found is not None
    return rig, log, found


async def pieces_of(log: ReplicatedLog, snapshot: Snapshot) -> list[wire.Piece]:
    found: list[wire.Piece] = []
    offset = snapshot.first_offset
    while offset < snapshot.end_offset:
        raws, offset = await log.records(PID, snapshot, offset, 2000)
        found += wire.pieces(b"".join(raws), PID)
    return found


async def behind(*, entries: int = 50, epoch: int = 5) -> tuple[Rig, Replicas, ReplicatedLog]:
    """A follower with a log of its own: a checkpoint at 10, and entries of a later epoch than the owner's that were never committed."""
    rig, replicas, log = await begun()
    for index in range(1, entries + 1):
        log.append(PID, 3 if index <= 10 else epoch, index, RECORDS, records(3 * index, 3), 3 * index, 3)
    await rig.flush()
    log.promise(PID, 9, 2, 6)
    await rig.flush()
    replicas.committed = 10
    await rig.store.save_checkpoint(PID, Checkpoint(3, 10, b"old", 3, 33, 0))
    return rig, replicas, log


async def given(log: ReplicatedLog, pieces: Sequence[wire.Piece], snapshot: Snapshot, base_epoch: int = 4) -> None:
    staging = log.staging(PID)
    for at in range(0, len(pieces), 5):
        await staging.add(pieces[at : at + 5])
    await log.replace(PID, await staging.finish(snapshot.packed), base_epoch)


async def check_new(rig: Rig, log: ReplicatedLog, wanted: Sequence[wire.Piece]) -> None:
    found = log.found(PID)
    assert (found.start, found.end, found.base_epoch, found.runs, found.covered) == (41, 41, 4, (), 41)
    assert (found.promised, found.generation, found.version) == (9, 2, 6)
    loaded = rig.store.replay(PID)
    assert loaded.checkpoint == Checkpoint(4, 40, b"the state of 40", 20, 80, 0)
    assert (loaded.last_index, loaded.next_offset, list(loaded.entries)) == (40, 80, [])
    have, at = [], 0
    while read := await rig.store.read(PID, at, 3000, END):
        have += [(e.epoch, e.index, e.payload) for e in read]
        at = read[-1].base_offset + read[-1].record_count
    assert have == [(e.epoch, e.index, e.payload) for e, _ in wanted]


async def test_a_copy_takes_the_place_of_everything() -> None:
    _, from_log, snapshot = await owner()
    wanted = await pieces_of(from_log, snapshot)
    assert [e.index for e, _ in wanted] == list(range(11, 41))
    rig, _, log = await behind()
    await given(log, wanted, snapshot)
    await check_new(rig, log, wanted)
    assert rig.files.listdir("/data/staged") == []
    # it goes on, with entries of an epoch between its last and what it had: none of the old ones comes back
    log.append(PID, 4, 41, RECORDS, records(80), 80, 2)
    log.append(PID, 9, 42, SETTLEMENT, b"settled")
    await rig.flush()
    log = await again(rig)
    assert not rig.store.damaged()
    found = log.found(PID)
    assert (found.start, found.end, found.base_epoch, found.runs) == (41, 43, 4, ((4, 41), (9, 42)))
    assert [e.index for e in rig.store.replay(PID).entries] == [41, 42]


async def test_a_death_at_any_step_leaves_the_old_or_the_new() -> None:
    _, from_log, snapshot = await owner()
    wanted = await pieces_of(from_log, snapshot)
    outcomes: list[bool] = []
    for step in range(1, 200):
        rig, _, log = await behind()
        rig.kill_at(step)
        with suppress(Killed, SyncFailed):
            await given(log, wanted, snapshot)
        died = rig.dead
        log = await again(rig)
        assert not rig.store.damaged(), step
        loaded = rig.store.replay(PID)
        assert loaded.checkpoint is not None
        if loaded.checkpoint.data == b"old":
            assert (log.found(PID).start, log.found(PID).end) == (1, 51)
            assert [e.index for e in loaded.entries] == list(range(11, 51))
        else:
            await check_new(rig, log, wanted)
            log.append(PID, 4, 41, RECORDS, records(80), 80, 2)
            await rig.flush()
            log = await again(rig)
            assert not rig.store.damaged(), step
            assert log.found(PID).runs == ((4, 41),)
        assert rig.files.listdir("/data/staged") == []
        known = set(rig.store._ground.metas)
        assert len(rig.files.listdir("/data/segments")) == len(known), step
        outcomes.append(loaded.checkpoint.data != b"old")
        if not died:
            break
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) > 5
    assert outcomes.count(True) > 5


async def test_a_newer_checkpoint_keeps_what_was_taken_in() -> None:
    _, from_log, snapshot = await owner()
    wanted = await pieces_of(from_log, snapshot)
    rig, _, log = await behind()
    staging = log.staging(PID)
    await staging.add(wanted[:20])
    with pytest.raises(Damaged):
        await staging.finish(b"too short")
    early = await staging.finish(pack_checkpoint(Checkpoint(4, 30, b"the state of 30", 20, 60, 0)))
    with pytest.raises(Invalid):
        await staging.add(wanted[19:])
    await staging.add(wanted[20:])
    staged = await staging.finish(snapshot.packed)
    assert early.copy.ref.file not in staged.files
    await log.replace(PID, staged, 4)
    await check_new(rig, log, wanted)


async def test_what_does_not_follow_is_refused() -> None:
    _, from_log, snapshot = await owner()
    wanted = await pieces_of(from_log, snapshot)
    rig, _, log = await behind()
    staging = log.staging(PID)
    await staging.add(wanted[:2])
    with pytest.raises(Invalid):
        await staging.add(wanted[1:3])
    entry, raw = wanted[5]
    with pytest.raises(Invalid):
        await staging.add([(entry._replace(kind=SETTLEMENT, base_offset=-1), raw)])
    staging.discard()
    assert rig.files.listdir("/data/staged") == []


async def test_nothing_takes_the_place_of_a_damaged_log_and_what_it_had_is_set_aside() -> None:
    rig, _, log = await behind()
    rig.store._ground.isolate(PID, "for a test", 10, 33, -1)
    before = await log.read(PID, 1, 51)
    await log.replace(PID, None, 0)
    assert not log.damage(PID)
    assert log.found(PID) == (1, 1, 9, 2, 6, 0, (), 1)
    (name,) = rig.files.listdir("/data/set-aside")
    assert bytes(rig.files.contents(f"/data/set-aside/{name}")) == b"".join(before)
    log.append(PID, 1, 1, SETTLEMENT, b"from the begin")
    await rig.flush()
    log = await again(rig)
    assert not rig.store.damaged()
    assert log.found(PID)[:7] == (1, 2, 9, 2, 6, 0, ((1, 1),))


async def test_a_full_disk_leaves_a_damaged_log_as_it_is() -> None:
    rig, _, log = await behind()
    rig.store._ground.isolate(PID, "for a test", 10, 33, -1)

    def full(operation: str, path: str, _nbytes: int) -> int | None:
        if operation == "pwrite" and "set-aside" in path:
            raise OSError(errno.ENOSPC, "no space left", path)
        return None

    rig.files.fault = full
    with pytest.raises(DiskFull, match="cannot be set aside"):
        await log.replace(PID, None, 0)
    assert PID in rig.store.damaged()
    rig.files.fault = rig._fault
    await log.replace(PID, None, 0)
    assert not rig.store.damaged()
    await rig.store.close()


async def test_a_full_disk_while_everything_is_given_up_leaves_it_isolated_until_that_is_done() -> None:
    rig, _, log = await behind()
    submit = rig.store._ground.writer.submit

    def full(_puts: object) -> asyncio.Future[None]:
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refused.set_exception(DiskFull("the state cannot grow"))
        return refused

    rig.store._ground.writer.submit = full  # type: ignore[method-assign, assignment]
    with pytest.raises(DiskFull):
        await log.replace(PID, None, 0)
    assert "is being given up" in log.damage(PID), "what the log had is gone, its checkpoint is not"
    rig.store._ground.writer.submit = submit  # type: ignore[method-assign]
    await log.replace(PID, None, 0)
    assert not log.damage(PID)
    assert log.found(PID)[:2] == (1, 1)
    log = await again(rig)
    assert not rig.store.damaged()
    assert log.found(PID)[:2] == (1, 1)


async def test_a_death_while_everything_is_given_up_leaves_it_damaged_or_empty() -> None:
    outcomes: list[bool] = []
    for step in range(1, 100):
        rig, _, log = await behind()
        rig.store._ground.isolate(PID, "for a test", 10, 33, -1)
        await rig.store._ground.writer.drained()
        rig.kill_at(step)
        with suppress(Killed, SyncFailed):
            await log.replace(PID, None, 0)
        died = rig.dead
        log = await again(rig)
        outcomes.append(not log.damage(PID))
        if log.damage(PID):
            await log.replace(PID, None, 0)
            log = await again(rig)
        assert not rig.store.damaged()
        assert log.found(PID) == (1, 1, 9, 2, 6, 0, (), 1)
        assert (rig.store.replay(PID).checkpoint, rig.store.replay(PID).entries) == (None, [])
        log.append(PID, 1, 1, SETTLEMENT, b"from the begin")
        await rig.flush()
        log = await again(rig)
        assert not rig.store.damaged()
        assert log.found(PID).runs == ((1, 1),)
        if not died:
            break
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) > 3
    assert outcomes.count(True) > 1


async def test_what_a_forced_election_cuts_is_set_aside() -> None:
    rig, _, log = await behind(entries=20)
    before = await log.read(PID, 15, 21)
    path = await log.set_aside(PID, 15)
    assert bytes(rig.files.contents(path)) == b"".join(before)
    assert [e.index for e in wire.entries(bytes(rig.files.contents(path)), PID)] == list(range(15, 21))
    again_path = await log.set_aside(PID, 15)
    assert again_path != path
    assert await log.set_aside(PID, 21) == ""


async def test_there_is_no_checkpoint_to_give_before_it_covers_what_was_moved() -> None:
    rig, replicas, log = await begun(wal_file_bytes=64 * KIB, flush_bytes_max=16 * KIB)
    for index in range(1, 31):
        log.append(PID, 1, index, SETTLEMENT, b"x" * 8000)
        await rig.flush()
    replicas.committed = 30
    state = Checkpoint(1, 3, b"three", 0, 0, 0)
    rig.checkpoint = lambda pid: state if pid == PID else None  # type: ignore[method-assign]
    await rig.store._mover.pass_once(everything=True)
    assert rig.store._ground.part(PID).moved.moved_to > 3
    assert log.snapshot(PID) is None
    state = Checkpoint(1, 29, b"more", 0, 0, 0)
    found = log.snapshot(PID)
    assert found is not None
    assert found.index == 29
