"""The log while it is written: what is flushed when, in which order, and what happens when the disk fails."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from headrace.model.config import MIB, LogWriting
from headrace.model.errors import Damaged, Invalid, Invariant, NotFound, SyncFailed
from headrace.storage.files import MemoryFiles, OsFiles
from headrace.storage.flusher import ThreadLane
from headrace.storage.logwrites import log_writes
from headrace.storage.recovery import recover
from headrace.storage.wal import FlushResult, Wal
from headrace.storage.walfiles import FRESH, name_of, spares_of
from headrace.storage.walformat import PROMISE, TRUNCATE, decode_entry
from tests.unit.storage.rig import DIRECTORY, Collected, Rig, columns, reopened


def memory(rig: Rig) -> MemoryFiles:
    assert isinstance(rig.files, MemoryFiles)
    return rig.files


def test_one_flush_at_a_time_with_all_that_gathered() -> None:
    rig = Rig(eager=False)
    rig.put((1, b"first"))
    for n in range(5):
        rig.put((1, b"%d" % n), (2, b"x"))
    assert len(rig.flusher) == 1
    assert rig.wal.in_flight
    assert rig.wal.pending_bytes == 37 + 5 * 33 * 2
    rig.flusher.step()
    assert len(rig.flusher) == 1
    rig.flusher.step()
    assert len(rig.flusher) == 0
    assert [r.rows for r in rig.flushed] == [[(1, 1, 1, 37, 0)], [(1, 2, 6, 165, 0), (2, 1, 5, 165, 0)]]
    assert rig.wal.pending_bytes == 0
    assert rig.flushed[1].located.indexes == [2, 3, 4, 5, 6, 1, 2, 3, 4, 5]


def test_the_callback_may_append_and_its_entries_go_next() -> None:
    rig = Rig(eager=False)
    order: list[str] = []

    def more(result: FlushResult) -> None:
        order.append(f"flushed {result.rows[0][1]}, in flight: {rig.wal.in_flight}")
        if result.rows[0][1] < 3:
            rig.put((1, b"again"))

    rig.on_flushed = more
    rig.put((1, b"begin"))
    while rig.flusher.step():
        pass
    assert order == ["flushed 1, in flight: False", "flushed 2, in flight: False", "flushed 3, in flight: False"]


def test_a_callback_that_raises_does_not_stop_the_log() -> None:
    rig = Rig(eager=False)

    def broken(result: FlushResult) -> None:
        raise ZeroDivisionError

    rig.on_flushed = broken
    rig.put((1, b"a"))
    rig.put((1, b"b"))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            rig.flusher.step()
    assert len(rig.flushed) == 2


def test_entries_are_read_where_they_were_said_to_be() -> None:
    rig = Rig()
    for n in range(40):
        rig.put(*[(pid, bytes([n]) * (pid * 30)) for pid in range(1, 6)])
    rig.put((1, [b"in ", b"pieces"]))
    seen = 0
    for result in rig.flushed:
        for pid, epoch, index, kind, position, length in columns(result.located):
            entry = rig.wal.read(result.located.file_id, position, length)
            assert (entry.epoch, entry.kind, bytes(entry.payload)) == rig.truth[pid, index]
            assert (epoch, kind, pid) == (entry.epoch, entry.kind, entry.pid)
            assert decode_entry(rig.wal.pread(result.located.file_id, position, length)) == entry
            seen += 1
    assert seen == len(rig.truth)
    with pytest.raises(Damaged):
        rig.wal.read(1, 8192, 100)
    with pytest.raises(NotFound):
        rig.wal.read(77, 8192, 100)


def test_rows_stay_dense_when_indexes_fall_back() -> None:
    rig = Rig(eager=False)
    rig.put((9, b"in flight"))
    for n in range(3):
        rig.add(1, b"%d" % n)
    rig.add(1, bytes(12), kind=TRUNCATE, index=2)
    rig.add(1, b"two", epoch=2)
    rig.add(2, b"", kind=PROMISE, index=0, epoch=5)
    rig.add(1, b"two again", epoch=3, index=2)
    rig.add(1, b"three", epoch=3)
    rig.stop()
    assert [row[:3] + row[4:] for row in rig.flushed[1].rows] == [(1, 1, 3, 0), (1, 2, 2, TRUNCATE), (1, 2, 2, 0), (2, 5, 5, PROMISE), (1, 2, 3, 0)]
    found = Collected(rig.files)
    assert found.entries == rig.truth
    assert found.log.partitions[2].promised == 5
    assert found.log.partitions[1].epochs == [(1, 1), (2, 3)]
    assert not found.log.damaged()


def test_a_flood_is_split_and_keeps_nobody_out() -> None:
    rig = Rig(eager=False, file_bytes=1 << 22, flush_bytes_max=1 << 20)
    rig.put((9, b"in flight"))
    for _ in range(40):
        rig.add(1, bytes(60_000))
    rig.add(2, b"small")
    rig.add(1, b"last")
    rig.stop()
    assert [[row[:3] for row in r.rows] for r in rig.flushed[1:]] == [[(1, 1, 17)], [(1, 18, 34)], [(1, 35, 40), (2, 1, 1), (1, 41, 41)]] or [
        pid for r in rig.flushed for pid, *_ in r.rows
    ].index(2) <= 4
    assert Collected(rig.files).entries == rig.truth


def test_thousands_of_partitions_in_one_flush() -> None:
    rig = Rig(eager=False, file_bytes=1 << 24)
    rig.put((1, b"in flight"))
    for pid in range(1, 20_001):
        rig.add(pid, b"payload %d" % pid)
    rig.stop()
    assert len(rig.flushed) == 3, "16,384 rows a flush"
    assert Collected(rig.files).entries == rig.truth


def test_an_entry_larger_than_a_flush_goes_alone_and_one_larger_than_a_file_is_refused() -> None:
    rig = Rig(file_bytes=1 << 20, flush_bytes_max=1 << 16)
    rig.put((1, bytes(700_000)), (2, b"small"))
    rig.put((1, bytes(700_000)))
    with pytest.raises(Invalid, match="does not fit"):
        rig.wal.append(3, 1, 1, 1, bytes(1 << 20), 1 << 20)
    rig.put((3, b"goes on"))
    rig.stop()
    assert Collected(rig.files).entries == rig.truth


def test_a_closing_flush_once_idle() -> None:
    rig = Rig()
    rig.put((1, b"a"))
    assert len(rig.timers) == 1
    rig.put((1, b"b"))
    assert len(rig.timers) == 1
    assert not Collected(rig.files).log.clean
    rig.run_timers()
    assert Collected(rig.files).log.clean
    flushes = rig.wal.flushes
    rig.run_timers()
    rig.stop()
    assert rig.wal.flushes == flushes, "closed already"


def test_an_idle_log_goes_on_in_a_new_file_when_asked() -> None:
    rig = Rig()
    rig.put((1, b"a"))
    rig.wal.roll()
    assert len(rig.wal.files()) == 1, "no closing flush yet: something may follow at once"
    rig.run_timers()
    rig.wal.roll()
    first, second = rig.wal.files()
    rig.put((1, b"b"))
    assert rig.wal.files()[-1].end > second.end
    rig.wal.retire(first.file_id)
    rig.stop()
    found = Collected(rig.files)
    assert found.log.clean
    assert not found.log.damaged()
    assert [index for _, index in found.entries] == [2]


def test_a_log_with_no_file_to_go_on_in_stays_where_it_is() -> None:
    rig = Rig(MemoryFiles(capacity=64 * 1024 + 100))
    rig.put((1, b"a"))
    rig.run_timers()
    rig.wal.roll()
    assert len(rig.wal.files()) == 1
    rig.put((1, b"b"))
    rig.stop()
    assert rig.wal.error is None
    assert Collected(rig.files).entries == rig.truth


def test_files_follow_each_other_and_are_used_again() -> None:
    rig = Rig(spares_max=2)
    for n in range(300):
        rig.put((1 + n % 3, bytes(1000)))
        for file in rig.wal.files()[:-2]:
            rig.wal.retire(file.file_id)
    ids = [f.file_id for f in rig.wal.files()]
    assert ids == sorted(ids)
    assert len(ids) == 2
    assert rig.wal.total_bytes == sum(f.end for f in rig.wal.files())
    with pytest.raises(Invariant):
        rig.wal.retire(rig.wal.files()[-1].file_id)
    rig.stop()
    names = memory(rig).listdir(DIRECTORY)
    assert len(names) <= 2 + 2
    assert len({name for name in names if name.endswith(".log")}) == len(names)
    found = Collected(rig.files)
    assert not found.log.damaged()
    assert found.log.clean
    assert found.entries
    rig.wal.retire(1)


def test_a_log_that_fills_uses_its_files_again() -> None:
    rig = Rig(spares_max=4)
    created: list[str] = []
    create = rig.files.create
    rig.files.create = lambda path: (created.append(path), create(path))[1]  # type: ignore[method-assign]
    for n in range(600):
        rig.put((1 + n % 3, bytes(1000)))
        for file in rig.wal.files()[:-3]:
            rig.wal.retire(file.file_id)
    assert rig.wal.files()[-1].file_id > 8
    assert len(created) <= 3 + 2, "the live ones, and those made ahead"
    rig.stop()


def test_files_are_made_ahead_of_a_log_that_fills() -> None:
    for spares, ahead in ((spares_of(4 * MIB, MIB), 1), (spares_of(16 * MIB, MIB), 2)):
        rig = Rig(spares_max=spares)
        assert len(memory(rig).listdir(DIRECTORY)) == 2, "an idle log has one"
        while len(rig.wal.files()) < 2:
            rig.put((1, bytes(3000)))
        assert len(memory(rig).listdir(DIRECTORY)) == 2 + ahead


def test_a_file_goes_only_after_older_ones_and_a_flush_that_says_so() -> None:
    rig = Rig(eager=False)
    while len(rig.wal.files()) < 4:
        rig.put((1, bytes(3000)))
        while rig.step():
            pass
    rig.wal.retire(2)
    assert [f.file_id for f in rig.wal.files()] == [1, 2, 3, 4]
    rig.wal.retire(1)
    assert [f.file_id for f in rig.wal.files()] == [3, 4]
    assert rig.wal.read(1, *next((p, n) for _, _, _, _, p, n in columns(rig.flushed[0].located)))
    assert memory(rig).exists(f"{DIRECTORY}/{name_of(1)}")
    rig.run_timers()
    while rig.step():
        pass
    with pytest.raises(NotFound):
        rig.wal.read(1, 8192, 32)
    assert not memory(rig).exists(f"{DIRECTORY}/{name_of(1)}")
    rig.stop()
    found = Collected(rig.files)
    assert found.log.after.oldest_id == 3
    assert not found.log.unknown_damage


def test_a_failed_write_fails_all_that_waits_and_is_not_retried() -> None:
    rig = Rig(eager=False)
    rig.put((1, b"durable"))
    rig.flusher.step()
    rig.put((1, b"fails"), (2, b"fails"))
    rig.put((3, b"waits"))
    calls: list[str] = []

    def fault(operation: str, path: str, nbytes: int) -> int | None:
        calls.append(f"{operation} {path}")
        return 100

    memory(rig).fault = fault
    rig.flusher.step()
    assert calls == [f"pwritev_durable {DIRECTORY}/{name_of(1)}"]
    assert [r.error is not None for r in rig.flushed] == [False, True, True]
    assert [row[:3] for r in rig.flushed[1:] for row in r.rows] == [(1, 2, 2), (2, 1, 1), (3, 1, 1)]
    assert all(isinstance(r.error, SyncFailed) for r in rig.flushed[1:])
    with pytest.raises(SyncFailed):
        rig.wal.append(1, 1, 3, 1, b"", 0)
    rig.wal.flush()
    rig.run_timers()
    done: list[int] = []
    rig.wal.stop(lambda: done.append(1))
    while rig.step():
        pass
    assert done == [1]
    assert len([c for c in calls if name_of(1) in c]) == 1
    memory(rig).fault = None
    assert Collected(rig.files).entries == {(1, 1): (1, 1, b"durable")}


def test_a_full_disk_holds_flushes_back_until_there_is_room() -> None:
    files = MemoryFiles(capacity=3 * 64 * 1024 + 100)
    rig = Rig(files)
    while not rig.full:
        rig.put((1, bytes(1500)))
        rig.run_timers()
        assert len(rig.wal.files()) <= 3
    assert rig.full == [True]
    assert rig.wal.error is None
    waiting = rig.wal.pending_bytes
    assert waiting > 0
    rig.put((1, b"gathers"))
    assert rig.wal.pending_bytes == waiting + 39
    files.capacity += 64 * 1024
    rig.run_timers()
    assert rig.full == [True, False]
    assert rig.wal.pending_bytes == 0
    rig.stop()
    assert Collected(files).entries == rig.truth


def test_a_full_disk_recovers_by_retiring() -> None:
    files = MemoryFiles(capacity=3 * 64 * 1024 + 100)
    rig = Rig(files)
    while not rig.full:
        rig.put((1, bytes(1500)))
        rig.run_timers()
    rig.wal.retire(1)
    assert rig.full == [True, False]
    assert rig.wal.pending_bytes == 0
    assert [f.file_id for f in rig.wal.files()][:2] == [2, 3]
    rig.stop()
    found = Collected(files)
    assert found.log.partitions[1].last_index == rig.last[1]
    assert not found.log.damaged()


def test_stopping_on_a_full_disk_fails_what_waits() -> None:
    rig = Rig(MemoryFiles(capacity=2 * 64 * 1024 + 100))
    while not rig.full:
        rig.put((1, bytes(1500)))
        rig.run_timers()
    rig.stop()
    assert isinstance(rig.wal.error, SyncFailed)
    assert rig.flushed[-1].error is rig.wal.error


def test_a_file_that_cannot_be_prepared_is_a_failure() -> None:
    rig = Rig(eager=False)

    def fault(operation: str, path: str, nbytes: int) -> int | None:
        if operation == "create":
            raise OSError(errno.EIO, "broken")
        return None

    memory(rig).fault = fault
    rig.put((1, b"x"))
    while rig.step():
        pass
    assert isinstance(rig.wal.error, SyncFailed)


def test_a_file_being_read_is_not_used_again() -> None:
    rig = Rig()
    while len(rig.wal.files()) < 3:
        rig.put((1, bytes(3000)))
    held: list[bytes] = []
    files = memory(rig)
    real = files.pread

    def slow(handle: object, length: int, offset: int) -> bytes:
        rig.wal.retire(1)
        rig.run_timers()
        held.append(b"still there" if files.exists(f"{DIRECTORY}/{name_of(1)}") else b"gone")
        return real(handle, length, offset)  # type: ignore[arg-type]

    files.pread = slow  # type: ignore[method-assign]
    position, length = rig.flushed[0].located.positions[0], rig.flushed[0].located.lengths[0]
    assert rig.wal.read(1, position, length).index == 1
    assert held == [b"still there"]
    files.pread = real  # type: ignore[method-assign]
    rig.put((1, b"next"))
    assert not files.exists(f"{DIRECTORY}/{name_of(1)}")


def test_the_next_flush_is_under_way_while_what_landed_is_told() -> None:
    rig = Rig(eager=False)
    while rig.flusher.step():
        pass
    rig.put((1, b"first"))
    rig.put((1, b"second"))
    under_way: list[bool] = []
    rig.on_flushed = lambda result: under_way.append(rig.wal.in_flight)
    assert rig.flusher.step()
    assert under_way == [True]
    assert rig.flusher.step()
    assert under_way == [True, False]
    assert [r.located.indexes for r in rig.flushed] == [[1], [2]]


def test_what_spares_a_restart_finds_are_used() -> None:
    rig = Rig()
    rig.put((1, b"x"))
    rig.stop()
    before = memory(rig).listdir(DIRECTORY)
    rig = reopened(rig.files)
    rig.put((1, b"y"))
    assert {name_of(1), name_of(2)} <= set(before)
    assert [f.file_id for f in rig.wal.files()] == [1, 2]
    rig.stop()


@pytest.mark.parametrize("how", ["auto", "thread"])
async def test_on_a_real_disk(tmp_path: Path, how: LogWriting) -> None:
    loop = asyncio.get_running_loop()
    flusher, background = ThreadLane(loop, name="flusher"), ThreadLane(loop, name="background")
    done = asyncio.Event()
    seen = 0

    def flushed(result: FlushResult) -> None:
        nonlocal seen
        assert result.error is None
        seen += len(result.located.pids)
        if seen == 5000:
            done.set()

    writes = log_writes(loop, OsFiles(), flusher, how)
    wal = Wal(
        OsFiles(),
        str(tmp_path),
        after=FRESH,
        on_flushed=flushed,
        writes=writes,
        background=background,
        later=loop.call_later,
        random_u64=lambda: int.from_bytes(os.urandom(8), "big"),
        wall_ms=lambda: 0,
        file_bytes=1 << 20,
    )
    wal.start()
    for n in range(5000):
        wal.append(n % 7, 1, 1 + n // 7, 1, (b"head", bytes(500)), 504)
        if n % 50 == 0:
            wal.flush()
            await asyncio.sleep(0)
    wal.flush()
    await done.wait()
    await wal.close()
    writes.close()
    flusher.close()
    background.close()
    found = recover(OsFiles(), str(tmp_path))
    assert found.entries == 5000
    assert found.clean
    assert not found.damaged()


def test_a_small_flush_of_an_idle_log_is_written_at_once_and_a_large_one_by_the_flusher() -> None:
    rig = Rig(eager=False, inline_bytes_max=4096)
    while rig.flusher.step():
        pass
    rig.put((1, b"small"))
    assert [r.error for r in rig.flushed] == [None]
    rig.put((1, b"x" * 10_000))
    assert len(rig.flushed) == 1
    assert rig.flusher.step()
    assert [r.error for r in rig.flushed] == [None, None]


def test_what_the_callback_of_an_inline_flush_appends_goes_to_the_flusher() -> None:
    rig = Rig(eager=False, inline_bytes_max=4096)
    while rig.flusher.step():
        pass

    def again(result: FlushResult) -> None:
        if len(rig.flushed) == 1:
            rig.put((2, b"lease"))

    rig.on_flushed = again
    rig.put((1, b"message"))
    assert len(rig.flushed) == 1
    assert rig.flusher.step()
    assert len(rig.flushed) == 2


def test_a_failed_inline_write_fails_the_log() -> None:
    failing = [False]
    files = MemoryFiles(fault=lambda op, path, nbytes: 5 if failing[0] and op == "pwritev_durable" else None)
    rig = Rig(files, eager=False, inline_bytes_max=4096)
    while rig.flusher.step():
        pass
    failing[0] = True
    rig.put((1, b"message"))
    assert isinstance(rig.flushed[0].error, SyncFailed)
    with pytest.raises(SyncFailed):
        rig.add(1, b"more")
