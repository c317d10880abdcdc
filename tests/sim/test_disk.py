"""The simulated disk: what a loss of power keeps, loses, tears and reorders, and faults on the way."""

import errno
from collections.abc import Iterator

import pytest

from headrace.model.errors import DataDirLocked, DiskFull, SyncFailed
from headrace.sim.chance import Chance
from headrace.sim.disk import SECTOR, Disk, Fault, Node, SimState, Write, sectors
from headrace.storage.files import Handle

DIR = "/data"
PATH = "/data/file"


def nothing(_node: Node, _write: Write) -> Iterator[Write]:
    return iter(())


def whole(_node: Node, write: Write) -> Iterator[Write]:
    yield write


def made(disk: Disk, data: bytes = b"", path: str = PATH) -> Handle:
    """A file whose name and bytes are synced."""
    handle = disk.create(path)
    if data:
        disk.pwritev_durable(handle, [data], 0)
    disk.fsync_dir(DIR)
    return handle


def test_a_synced_write_survives_and_an_unsynced_one_need_not() -> None:
    disk = Disk()
    handle = made(disk, b"synced")
    disk.pwrite(handle, b"lost", 6)
    assert disk.pread(handle, 99, 0) == b"syncedlost"
    disk.crash(nothing, lambda count: count)
    assert disk.image(PATH) == b"synced"


def test_any_subset_of_unsynced_writes_survives_in_their_order() -> None:
    disk = Disk()
    handle = made(disk)
    for n in range(3):
        disk.pwrite(handle, b"%d" % n * 4, 2 * n)

    def but_the_first(_node: Node, write: Write) -> Iterator[Write]:
        if write.offset:
            yield write

    disk.crash(but_the_first, lambda count: count)
    assert disk.image(PATH) == b"\0\0" + b"112222"


def test_a_sync_covers_all_that_was_written_to_the_file_and_nothing_of_another() -> None:
    disk = Disk()
    one, two = made(disk), made(disk, path="/data/two")
    disk.pwrite(one, b"one", 0)
    disk.pwrite(two, b"two", 0)
    disk.fsync(one)
    disk.crash(nothing, lambda count: count)
    assert (disk.image(PATH), disk.image("/data/two")) == (b"one", b"")


def test_names_survive_as_a_prefix_in_their_order() -> None:
    for kept, there in ((0, []), (1, ["a"]), (2, ["a", "b"]), (3, ["b", "c"]), (4, ["b"])):
        disk = Disk()
        disk.create("/data/a")
        disk.create("/data/b")
        disk.rename("/data/a", "/data/c")
        disk.unlink("/data/c")
        disk.crash(whole, lambda _count, kept=kept: kept)  # type: ignore[misc]
        assert [path.removeprefix("/data/") for path in disk.files()] == there


def test_a_synced_file_whose_name_is_not_is_lost() -> None:
    disk = Disk()
    handle = disk.create(PATH)
    disk.pwritev_durable(handle, [b"synced"], 0)
    disk.crash(whole, lambda _count: 0)
    assert disk.files() == []


def test_a_file_comes_back_when_its_removal_was_not_synced() -> None:
    disk = Disk()
    made(disk, b"old")
    disk.unlink(PATH)
    assert not disk.exists(PATH)
    disk.crash(nothing, lambda _count: 0)
    assert disk.image(PATH) == b"old"


def test_a_rename_over_a_file_gives_the_old_or_the_new_one() -> None:
    for kept, data in ((0, b"old"), (1, b"new")):
        disk = Disk()
        made(disk, b"old")
        made(disk, b"new", "/data/file.new")
        disk.rename("/data/file.new", PATH)
        disk.crash(nothing, lambda _count, kept=kept: kept)  # type: ignore[misc]
        assert disk.image(PATH) == data


def test_a_handle_follows_a_rename() -> None:
    disk = Disk()
    handle = made(disk)
    disk.rename(PATH, "/data/other")
    disk.pwritev_durable(handle, [b"x"], 0)
    disk.fsync_dir(DIR)
    disk.crash(nothing, lambda _count: 0)
    assert disk.image("/data/other") == b"x"


def test_a_torn_write_is_cut_at_sectors_of_the_disk() -> None:
    write = Write(SECTOR - 10, b"a" * 10 + b"b" * SECTOR + b"c" * 5)
    pieces = list(sectors(write, lambda number: number != 1))
    assert pieces == [Write(SECTOR - 10, b"a" * 10), Write(2 * SECTOR, b"c" * 5)]
    disk = Disk()
    handle = made(disk)
    disk.pwrite(handle, write.data or b"", write.offset)
    disk.crash(lambda _node, each: sectors(each, lambda number: number == 2), lambda count: count)
    assert disk.image(PATH) == bytes(2 * SECTOR) + b"c" * 5


def test_length_changes_are_unsynced_writes_too() -> None:
    disk = Disk()
    handle = made(disk, b"0123456789")
    disk.truncate(handle, 4)
    assert disk.size(handle) == 4
    disk.crash(nothing, lambda count: count)
    assert disk.image(PATH) == b"0123456789"
    handle = disk.open(PATH, write=True)
    disk.preallocate(handle, 20)
    disk.fsync(handle)
    disk.crash(nothing, lambda count: count)
    assert disk.image(PATH) == b"0123456789" + bytes(10)


def test_a_machine_that_dies_in_a_sync_has_not_synced() -> None:
    disk = Disk()
    handle = made(disk)
    disk.dying = True
    disk.pwritev_durable(handle, [b"abc"], 0)
    disk.dying = False
    disk.crash(nothing, lambda count: count)
    assert disk.image(PATH) == b""


def test_a_machine_that_dies_in_a_sync_does_nothing_after_it() -> None:
    """A file that is renamed once it is synced is never there under its new name with less."""
    disk = Disk()
    handle = made(disk)
    disk.dying = True
    disk.pwrite(handle, b"abc", 0)
    disk.fsync(handle)
    for action in (lambda: disk.rename(PATH, PATH + ".new"), lambda: disk.unlink(PATH), lambda: disk.fsync(handle)):
        with pytest.raises(OSError, match="lost its power"):
            action()
    disk.dying = False
    disk.crash(nothing, lambda count: count)
    assert disk.image(PATH) == b""
    assert not disk.exists(PATH + ".new")


def test_a_process_that_dies_loses_its_handles_and_locks_and_no_bytes() -> None:
    disk = Disk()
    handle = disk.create(PATH)
    disk.pwrite(handle, b"written", 0)
    disk.lock("/data/LOCK")
    with pytest.raises(DataDirLocked):
        disk.lock("/data/LOCK")
    disk.kill()
    disk.lock("/data/LOCK")
    assert disk.image(PATH) == b"written"
    with pytest.raises(OSError, match="not an open handle"):
        disk.pread(handle, 1, 0)


def test_a_failed_write_leaves_what_the_fault_says() -> None:
    disk = Disk()
    handle = made(disk)
    disk.fault = lambda operation, _path, _nbytes: 2 if operation == "pwritev_durable" else None
    with pytest.raises(OSError, match="half way"):
        disk.pwritev_durable(handle, [b"abcd"], 0)
    assert disk.pread(handle, 9, 0) == b"ab"
    disk.fault = None
    disk.crash(nothing, lambda count: count)
    assert disk.image(PATH) == b""


def test_a_full_disk_refuses_and_counts_what_a_crash_gives_back() -> None:
    disk = Disk(capacity=10)
    handle = made(disk, b"12345")
    with pytest.raises(OSError) as refused:
        disk.pwrite(handle, b"123456", 5)
    assert refused.value.errno == errno.ENOSPC
    disk.pwrite(handle, b"12345", 5)
    assert disk.free_bytes(DIR) == 0
    disk.crash(nothing, lambda count: count)
    assert disk.free_bytes(DIR) == 5
    disk.unlink(PATH)
    assert disk.free_bytes(DIR) == 10


def test_small_state_is_durable_at_once_and_fails_as_asked() -> None:
    disk = Disk()
    state = SimState(disk, "/data/state")
    state.commit({b"a": b"1", b"b": b"2"})
    state.commit({b"a": None})
    disk.crash(nothing, lambda _count: 0)
    assert list(SimState(disk, "/data/state").scan(b"")) == [(b"b", b"2")]

    def failing(number: int) -> Fault:
        def fault(_operation: str, _path: str, _nbytes: int) -> int | None:
            raise OSError(number, "no")

        return fault

    for number, error in ((errno.ENOSPC, DiskFull), (errno.EIO, SyncFailed)):
        disk.fault = failing(number)
        with pytest.raises(error):
            state.commit({b"c": b"3"})
    assert state.get(b"c") is None


def test_the_same_draws_give_the_same_disk() -> None:
    def image(seed: int) -> list[bytes]:
        disk = Disk()
        handles = [made(disk, path=f"/data/{n}") for n in range(3)]
        for n in range(30):
            disk.pwrite(handles[n % 3], bytes([n]) * 700, 300 * n)
        disk.crash_by(Chance(seed))
        return [disk.image(path) for path in disk.files()]

    assert image(5) == image(5)
    assert len({tuple(image(seed)) for seed in range(12)}) > 6


def test_damage_and_old_files_are_on_the_disk_and_for_every_reader() -> None:
    disk = Disk()
    handle = made(disk, b"abc")
    old = disk.image(PATH)
    disk.pwritev_durable(handle, [b"xyz"], 0)
    disk.flip(PATH, 1, 1)
    assert disk.pread(handle, 3, 0) == b"xxz"
    disk.crash(nothing, lambda count: count)
    assert disk.image(PATH) == b"xxz"
    disk.restore(PATH, old)
    disk.crash(nothing, lambda count: count)
    assert disk.image(PATH) == b"abc"


def test_what_is_observed_is_every_change_and_sync_in_order() -> None:
    disk = Disk()
    seen: list[tuple[str, str, int, bytes]] = []
    disk.observe = lambda operation, path, offset, data: seen.append((operation, path, offset, data))
    handle = disk.create(PATH)
    disk.pwrite(handle, b"ab", 3)
    disk.truncate(handle, 1)
    disk.fsync(handle)
    disk.rename(PATH, "/data/b")
    disk.fsync_dir(DIR)
    disk.unlink("/data/b")
    assert seen == [
        ("create", PATH, 0, b""),
        ("pwrite", PATH, 3, b"ab"),
        ("truncate", PATH, 1, b""),
        ("fsync", PATH, 0, b""),
        ("rename", PATH, 0, b"/data/b"),
        ("fsync_dir", DIR, 0, b""),
        ("unlink", "/data/b", 0, b""),
    ]
