"""Every byte of a small log damaged, and every length cut: nothing wrong is ever returned, every loss is reported, all else is complete."""

import random

import pytest

from headrace.storage.files import MemoryFiles
from headrace.storage.walfiles import name_of
from headrace.storage.walformat import DATA_START, PROMISE, TRUNCATE
from tests.unit.storage.rig import DIRECTORY, Collected, Key, Rig, reopened

FILE_BYTES = 32 * 1024
SWEEPS = pytest.mark.parametrize(
    ("closed", "step"), [pytest.param(False, 1, marks=[pytest.mark.slow, pytest.mark.timeout(600)]), (False, 29), (True, 29)]
)


def written(*, closed: bool) -> tuple[Rig, set[Key]]:
    """A log of one full file and the begin of a second one; with the entries of its last flush."""
    numbers = random.Random(7)
    rig = Rig(file_bytes=FILE_BYTES)
    flush = 0
    while len(rig.wal.files()) == 1 or flush % 5:
        flush += 1
        for pid in range(1 + flush % 3, 8, 1 + flush % 4):
            for _ in range(1 + (pid + flush) % 2):
                rig.add(pid, numbers.randbytes(numbers.choice((0, 30, 500, 1500))), epoch=1 + flush // 10)
        if flush % 7 == 3:
            rig.add(2, bytes(12), kind=TRUNCATE, index=max(1, rig.last[2] - 1), epoch=1 + flush // 10)
            rig.add(2, b"anew", epoch=1 + flush // 10)
        if flush % 9 == 4:
            rig.add(5, b"", kind=PROMISE, index=0, epoch=9)
        rig.wal.flush()
        if flush % 6 == 0:
            rig.run_timers()
    if closed:
        rig.stop()
    result = rig.flushed[-1]
    last = {(pid, i) for pid, i in zip(result.located.pids, result.located.indexes, strict=True) if (pid, i) in rig.truth}
    return rig, last


def check(rig: Rig, found: Collected, last: set[Key], *, closed: bool, what: str) -> set[int]:
    """Asserts what the head of this module says; the partitions that lost something."""
    truth = rig.truth
    if found.entries == truth and not found.log.damaged():
        return set()
    wrong = [key for key, value in found.entries.items() if truth.get(key) != value]
    missing = truth.keys() - found.entries.keys()
    if found.log.cut is not None and not closed:
        # A torn TRUNCATE leaves what it would have discarded: it was never durable.
        torn = {key[0] for key in last}
        wrong = [key for key in wrong if key[0] not in torn]
        missing -= last
    damaged = found.log.damaged()
    if not found.log.unknown_damage:
        assert not wrong, what
        assert {pid for pid, _ in missing} == set(damaged), what
    for pid, index in missing:
        tail = found.log.partitions.get(pid)
        named = tail is not None and any(first <= index < end for first, end in tail.lost_above(0))
        assert named or found.log.suspect(pid), what
    return {pid for pid, _ in missing}


@pytest.mark.parametrize("file_id", [1, 2])
@SWEEPS
def test_every_flipped_byte(closed: bool, file_id: int, step: int) -> None:
    rig, last = written(closed=closed)
    assert isinstance(rig.files, MemoryFiles)
    data = rig.files.contents(f"{DIRECTORY}/{name_of(file_id)}")
    used = rig.wal.files()[file_id - 1].end
    assert len(data) == FILE_BYTES
    assert used < FILE_BYTES
    lossy = 0
    for at in range(0, used + 1024, step):
        mask = 1 << (at % 8) if at % 3 else 0xFF
        data[at] ^= mask
        found = Collected(rig.files)
        data[at] ^= mask
        lost = check(rig, found, last, closed=closed, what=f"byte {at}")
        assert len(lost) <= 1, f"byte {at} damaged more than its partition: {lost}"
        assert not found.log.unknown_damage, f"byte {at}"
        assert found.log.cut is None or not closed or file_id == 2, f"byte {at}"
        lossy += bool(lost)
    assert lossy * step > used // 4
    assert Collected(rig.files).entries == rig.truth


@pytest.mark.parametrize("file_id", [1, 2])
@SWEEPS
def test_every_length(closed: bool, file_id: int, step: int) -> None:
    rig, last = written(closed=closed)
    assert isinstance(rig.files, MemoryFiles)
    data = rig.files.contents(f"{DIRECTORY}/{name_of(file_id)}")
    whole = bytes(data)
    for length in range(rig.wal.files()[file_id - 1].end, -1, -step):
        del data[length:]
        found = Collected(rig.files)
        lost = check(rig, found, last, closed=closed, what=f"{length} bytes")
        assert lost or length > rig.wal.files()[file_id - 1].end - 1024 or found.log.unknown_damage
        if file_id == 2:
            assert found.log.unknown_damage, "a file that is too short hides how much it held"
    data[:] = whole


def test_flips_in_a_recycled_file() -> None:
    """The stale bytes behind the log's end are as good as noise."""
    rig = Rig(file_bytes=FILE_BYTES)
    numbers = random.Random(3)
    while len(rig.wal.files()) < 2:
        rig.put(*[(pid, numbers.randbytes(200)) for pid in range(1, 9)])
    rig.wal.retire(1)
    while rig.wal.files()[-1].file_id < 4:
        rig.put(*[(pid, numbers.randbytes(200)) for pid in range(1, 9)])
        for file in rig.wal.files()[:-1]:
            rig.wal.retire(file.file_id)
    rig.truth.clear()
    rig.put(*[(pid, b"kept") for pid in range(20, 24)])
    rig.stop()
    file_id = rig.wal.files()[-1].file_id
    assert isinstance(rig.files, MemoryFiles)
    found = Collected(rig.files)
    assert {k: v for k, v in found.entries.items() if k[0] >= 20} == rig.truth
    data = rig.files.contents(f"{DIRECTORY}/{name_of(file_id)}")
    end = rig.wal.files()[-1].end
    assert any(data[end:]), "the file was used before"
    for at in range(end, FILE_BYTES, 37):
        data[at] ^= 0xFF
        again = Collected(rig.files)
        assert again.entries == found.entries
        assert not again.log.damaged()
        assert not again.log.unknown_damage
        assert again.log.cut is None
        data[at] ^= 0xFF


def test_damage_is_reported_again_after_every_restart() -> None:
    rig, _last = written(closed=True)
    assert isinstance(rig.files, MemoryFiles)
    del rig.files.contents(f"{DIRECTORY}/{name_of(2)}")[DATA_START + 700 :]
    first = Collected(rig.files)
    assert first.log.unknown_damage
    rig = reopened(rig.files, file_bytes=FILE_BYTES)
    rig.put((1, b"later"))
    rig.stop()
    second = Collected(rig.files)
    assert second.log.unknown_damage
    assert second.log.unknown[-1].end_seq is not None
