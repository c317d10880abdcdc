"""Recovery told apart: torn, damaged, missing, retired, stale. The sweep over every byte is in a file of its own."""

from collections.abc import Callable

import pytest

from headrace.model.errors import UnsupportedVersion
from headrace.storage.files import MemoryFiles
from headrace.storage.recovery import recover
from headrace.storage.walfiles import FRESH, name_of
from headrace.storage.walformat import DATA_START, FILE, HEAD_BYTES, HEADER_BLOCK, PROMISE, ROW, TRUNCATE, crc32c
from tests.unit.storage.rig import DIRECTORY, Collected, Rig, reopened


def memory(rig: Rig) -> MemoryFiles:
    assert isinstance(rig.files, MemoryFiles)
    return rig.files


def data_of(rig: Rig, file_id: int) -> bytearray:
    return memory(rig).contents(f"{DIRECTORY}/{name_of(file_id)}")


def filled(files: int, *, partitions: int = 4) -> Rig:
    """A stopped log of so many files; each flush holds one entry of each partition."""
    rig = Rig()
    while len(rig.wal.files()) < files or len(rig.flushed) < 6:
        rig.put(*[(pid, b"%d" % pid * 700) for pid in range(1, partitions + 1)])
    rig.stop()
    return rig


def test_an_empty_directory() -> None:
    files = MemoryFiles()
    files.make_dir(DIRECTORY)
    found = recover(files, DIRECTORY)
    assert found.after == FRESH
    assert found.clean
    assert not found.partitions


def test_other_files_are_left_alone() -> None:
    rig = filled(1)
    for name in ("lock", "wal-1.log", "wal-000000000000000g.log", "wal-0000000000000001.log.bak", "WAL-0000000000000009.log"):
        rig.files.create(f"{DIRECTORY}/{name}")
    rig.files.create(f"{DIRECTORY}/wal-0000000000000009.new")
    found = Collected(rig.files)
    assert found.entries == rig.truth
    assert found.log.after.discard == ("wal-0000000000000009.new",)


def test_epochs_and_indexes_of_each_partition() -> None:
    rig = Rig()
    rig.put((1, b"a"), (2, b"b"))
    rig.add(1, b"c", epoch=3)
    rig.add(7, b"late", index=41, epoch=2)
    rig.wal.flush()
    rig.stop()
    tails = Collected(rig.files).log.partitions
    assert (tails[1].first_index, tails[1].last_index, tails[1].last_epoch, tails[1].epochs) == (1, 2, 3, [(1, 1), (2, 3)])
    assert (tails[2].last_index, tails[2].last_epoch) == (1, 1)
    assert (tails[7].first_index, tails[7].last_index) == (41, 41)
    assert tails[7].lost_above(40) == []
    assert tails[7].lost_above(9) == [(10, 41)]


def test_a_gap_in_the_indexes_and_an_epoch_that_falls_back_are_damage() -> None:
    rig = Rig()
    rig.add(1, b"a")
    rig.add(1, b"c", index=5)
    rig.add(2, b"a", epoch=4)
    rig.add(2, b"b", epoch=3)
    rig.add(3, b"fine")
    rig.wal.flush()
    rig.stop()
    found = Collected(rig.files)
    damaged = found.log.damaged()
    assert damaged.keys() == {1, 2}
    assert damaged[1].lost == [(2, 5)]
    assert "missing" in damaged[1].why
    assert damaged[2].lost == [(2, 3)]
    assert "falls back from 4 to 3" in damaged[2].why
    assert (2, 2) not in found.entries
    assert not found.log.unknown_damage


def test_truncating_discards_entries_and_losses() -> None:
    rig = Rig()
    rig.put((1, b"1"))
    rig.add(1, b"5", index=5)
    rig.put((1, b"6"))
    rig.stop()
    assert Collected(rig.files).log.damaged()[1].lost == [(2, 5)]
    rig = reopened(rig.files)
    rig.last = {1: 6}
    rig.add(1, bytes(12), kind=TRUNCATE, index=3, epoch=2)
    rig.wal.flush()
    rig.kill()
    assert Collected(rig.files).log.damaged()[1].lost == [(2, 3)]
    rig = reopened(rig.files)
    rig.add(1, bytes(12), kind=TRUNCATE, index=2, epoch=2)
    rig.put((1, b"new 2"))
    rig.stop()
    found = Collected(rig.files)
    assert not found.log.damaged()
    assert found.entries[1, 2][2] == b"new 2"
    assert found.log.partitions[1].last_index == 2


def test_promises_are_kept_when_their_bytes_are_damaged() -> None:
    rig = Rig()
    rig.add(3, b"payload of a promise", kind=PROMISE, index=0, epoch=17)
    rig.add(3, bytes(12), kind=TRUNCATE, index=8, epoch=17)
    rig.wal.flush()
    rig.stop()
    data = data_of(rig, 1)
    at = data.index(b"payload of a promise")
    data[at - 20 : at + 20] = bytes(40)
    found = Collected(rig.files)
    assert found.log.partitions[3].promised == 17
    assert found.log.partitions[3].last_index == 7
    assert not found.log.unknown_damage


def torn(rig: Rig, keep: int) -> None:
    """The last flush of a log is written only so far."""
    before = memory(rig).fault
    memory(rig).fault = lambda operation, path, nbytes: keep if operation == "pwritev_durable" else None
    for pid in (1, 2):
        rig.add(pid, b"never confirmed" * 100)
        del rig.truth[pid, rig.last[pid]]
    rig.wal.flush()
    memory(rig).fault = before
    assert rig.wal.error is not None


@pytest.mark.parametrize("keep", [0, 1, 100, HEAD_BYTES, HEAD_BYTES + 70, 512, 1024, 3000])
def test_a_torn_flush_is_cut_and_stays_cut(keep: int) -> None:
    rig = Rig()
    rig.put((1, b"kept"), (2, b"kept"))
    torn(rig, keep)
    tail = bytes(data_of(rig, 1))
    found = Collected(rig.files)
    assert found.entries == rig.truth
    assert not found.log.damaged()
    assert not found.log.clean
    assert (found.log.cut is not None) == (keep >= 100)
    whole = Rig()
    whole.put((1, b"kept"), (2, b"kept"))
    whole.put((1, b"never confirmed" * 100), (2, b"never confirmed" * 100))
    rig = Rig(rig.files, after=found.log.after)
    rig.kill()
    # The lost sectors come back, as a disk may let them: what was cut is not resurrected.
    data_of(rig, 1)[len(tail.rstrip(b"\0")) :] = data_of(whole, 1)[len(tail.rstrip(b"\0")) :]
    again = Collected(rig.files)
    assert again.entries == found.entries
    assert again.log.cut is None
    assert again.log.clean


def test_a_flush_behind_proves_that_one_was_complete() -> None:
    rig = Rig()
    rig.put((1, b"one" * 300), (2, b"two"))
    rig.run_timers()
    data = data_of(rig, 1)
    data[data.index(b"one" * 300) + 5] ^= 1
    found = Collected(rig.files)
    assert found.log.cut is None
    assert found.log.damaged().keys() == {1}
    assert found.log.damaged()[1].lost == [(1, 2)]
    assert found.entries == {(2, 1): (1, 1, b"two")}


def test_lengths_that_cannot_be_trusted_do_not_spread() -> None:
    rig = Rig()
    rig.put((1, b"a"))
    for pid in (1, 2, 3):
        for n in range(3):
            rig.add(pid, b"%d-%d" % (pid, n) * 10)
    rig.wal.flush()
    rig.stop()
    data = data_of(rig, 1)
    at = data.index(b"2-1" * 10) - 32
    data[at : at + 4] = b"\xff\xff\xff\xff"
    found = Collected(rig.files)
    assert {pid: tail.lost for pid, tail in found.log.damaged().items()} == {2: [(2, 4)]}
    assert {k for k in rig.truth if k not in found.entries} == {(2, 2), (2, 3)}


def test_a_forged_entry_in_a_payload_is_never_found() -> None:
    forged = Rig()
    forged.put((2, b"forged"))
    raw = bytes(data_of(forged, 1))
    entry = raw[raw.index(b"forged") - 32 : raw.index(b"forged") + 6]
    for spoiled in range(32):
        rig = Rig()
        rig.put((1, entry * 20), (2, b"real"))
        rig.stop()
        data = data_of(rig, 1)
        at = data.index(entry) - 32 + spoiled
        data[at] ^= 0xFF
        assert Collected(rig.files).entries == {(2, 1): (1, 1, b"real")}


def lost_both(rig: Rig, seq: int) -> None:
    """Damages a flush's head and its copy in the next one: two faults."""
    data = data_of(rig, 1)
    ends = [DATA_START]
    for at in range(DATA_START, len(data), 512):
        if data[at : at + 8] == b"\xf5HDRFLU\n":
            ends.append(at)
    at, following = ends[seq], ends[seq + 1]
    data[at + 40] ^= 1
    data[following + HEAD_BYTES + 4 * ROW.size + 3] ^= 1


def test_a_flush_of_which_nothing_is_known() -> None:
    rig = filled(1)
    lost_both(rig, 3)
    found = Collected(rig.files)
    assert [(u.first_seq, u.end_seq) for u in found.log.unknown] == [(3, 4)]
    assert all(found.log.partitions[pid].lost == [(2, 3)] for pid in range(1, 5)), "later entries show what is missing"
    assert not any(found.log.suspect(pid) for pid in range(1, 5))
    assert found.log.suspect(99)


def test_a_partition_without_later_entries_is_suspect() -> None:
    rig = Rig()
    rig.put((1, b"1"), (2, b"2"), (3, b"3"), (4, b"4"))
    rig.put((1, b"1"), (2, b"2"), (3, b"3"), (4, b"4"))
    rig.put((1, b"1"), (2, b"2"), (3, b"3"))
    rig.stop()
    lost_both(rig, 3)
    found = Collected(rig.files)
    assert [found.log.suspect(pid) for pid in (1, 2, 3, 4)] == [False, False, False, True]
    assert found.log.damaged().keys() == {1, 2, 3}


def test_a_missing_file() -> None:
    rig = filled(4)
    rig.files.unlink(f"{DIRECTORY}/{name_of(2)}")
    found = Collected(rig.files)
    assert found.log.unknown_damage
    assert found.log.damaged().keys() == {1, 2, 3, 4}
    assert all(rig.truth[key] == value for key, value in found.entries.items())


def test_the_first_file_is_missing() -> None:
    rig = filled(3)
    rig.files.unlink(f"{DIRECTORY}/{name_of(1)}")
    found = Collected(rig.files)
    assert found.log.unknown_damage
    assert "log file 1 is missing" in found.log.unknown[0].why
    assert all(found.log.partitions[pid].lost_above(0) for pid in range(1, 5))


def test_a_retired_file_is_not_missing_and_does_not_come_back() -> None:
    rig = filled(3)
    old = bytes(data_of(rig, 1))
    rig = reopened(rig.files)
    rig.wal.retire(1)
    rig.put((9, b"later"))
    rig.stop()
    names = memory(rig).listdir(DIRECTORY)
    assert name_of(1) not in names
    assert not Collected(rig.files).log.unknown_damage
    handle = rig.files.create(f"{DIRECTORY}/{name_of(1)}")
    rig.files.pwrite(handle, old, 0)
    found = Collected(rig.files)
    assert name_of(1) in found.log.after.discard
    assert found.log.after.oldest_id == 2
    assert found.log.partitions[1].first_index > 1
    reopened(rig.files).stop()
    assert name_of(1) not in memory(rig).listdir(DIRECTORY)


@pytest.mark.parametrize("copies", [[0], [1], [0, 1]])
@pytest.mark.parametrize("file_id", [1, 2, 3])
def test_a_lost_header(copies: list[int], file_id: int) -> None:
    rig = filled(3)
    for copy in copies:
        data_of(rig, file_id)[copy * HEADER_BLOCK : copy * HEADER_BLOCK + 512] = b"\x5a" * 512
    found = Collected(rig.files)
    if len(copies) == 2 and file_id == 3:
        assert found.log.unknown[-1].end_seq is None
        assert found.log.suspect(1)
        assert all(rig.truth[key] == value for key, value in found.entries.items())
        rig = reopened(rig.files)
        rig.stop()
        again = Collected(rig.files)
        assert again.log.unknown_damage
        assert again.entries == found.entries
    else:
        assert found.entries == rig.truth
        assert not found.log.unknown_damage
        assert not found.log.damaged()


def test_a_header_of_a_later_format() -> None:
    rig = filled(1)
    raw = bytearray(data_of(rig, 1)[: FILE.size])
    raw[9] = 2
    data_of(rig, 1)[: FILE.size + 4] = bytes(raw) + crc32c(bytes(raw)).to_bytes(4, "big")
    with pytest.raises(UnsupportedVersion):
        recover(rig.files, DIRECTORY)


class Unreadable(MemoryFiles):
    """Some blocks of the disk give EIO."""

    bad: Callable[[int], bool] = staticmethod(lambda at: False)

    def pread(self, handle: object, length: int, offset: int) -> bytes:
        if any(self.bad(at) for at in range(offset & -4096, offset + length, 4096)):
            raise OSError(5, "Input/output error")
        return super().pread(handle, length, offset)  # type: ignore[arg-type]


def test_blocks_that_the_disk_refuses_to_read() -> None:
    files = Unreadable()
    rig = Rig(files)
    while len(rig.wal.files()) < 2:
        rig.put(*[(pid, b"%d" % pid * 100) for pid in range(1, 5)])
    rig.stop()
    files.bad = lambda at: at == DATA_START + 8192  # type: ignore[method-assign]
    found = Collected(files)
    assert all(rig.truth[key] == value for key, value in found.entries.items())
    missing = rig.truth.keys() - found.entries.keys()
    assert missing
    assert all(any(a <= index < b for a, b in found.log.partitions[pid].lost) for pid, index in missing)


def test_progress_and_totals() -> None:
    rig = filled(3)
    seen: list[tuple[int, int]] = []
    found = recover(rig.files, DIRECTORY, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(65536, 196608), (131072, 196608), (196608, 196608)]
    assert found.entries == len(rig.truth)
    assert found.nbytes == sum(32 + len(v[2]) for v in rig.truth.values())
