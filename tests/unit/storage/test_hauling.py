"""What is read out of the log for many partitions at once is what was written, and what is not says so."""

import errno
import random

import pytest

from headrace.model.errors import NotFound
from headrace.storage.hauling import Share, haul
from headrace.storage.index import POSITION_BITS
from headrace.storage.walformat import encode_entry

KIB = 1024


class Log:
    """Files of entries of several partitions, one after the other, as flushes leave them."""

    def __init__(self, seed: int, *, size_max: int) -> None:
        chance = random.Random(seed)
        self.files = [bytearray(64), bytearray(64)]
        self.rows: dict[int, list[tuple[int, int, int]]] = {pid: [] for pid in range(1, 9)}
        self.whole: dict[tuple[int, int], bytes] = {}
        self.asked = 0
        for number, file in enumerate(self.files):
            for _ in range(400):
                pid = chance.randrange(1, 9)
                index = len(self.rows[pid]) + 1
                payload = chance.randbytes(chance.randrange(size_max))
                raw = encode_entry(pid, 3, index, 1, [payload], len(payload)) + payload
                self.rows[pid].append(((number << POSITION_BITS) | len(file), len(raw), index))
                self.whole[pid, index] = raw
                file += raw + bytes(chance.choice((0, 0, 7, 300)))

    def pread(self, file_id: int, position: int, length: int) -> bytes:
        self.asked += 1
        return bytes(self.files[file_id][position : position + length])


def hauled(log: Log) -> dict[tuple[int, int], bytes | None]:
    shares = [Share(pid, rows) for pid, rows in log.rows.items()]
    haul(shares, log.pread)
    return {(share.pid, row[2]): raw for share in shares for row, raw in zip(share.rows, share.found, strict=True)}


@pytest.mark.parametrize("size_max", [200, 4 * KIB, 300 * KIB])
def test_every_entry_comes_whole(size_max: int) -> None:
    log = Log(1, size_max=size_max)
    assert hauled(log) == log.whole
    if size_max == 200:
        assert log.asked < 10, "in large pieces"


def test_what_is_damaged_says_so_and_nothing_else() -> None:
    for seed in range(30):
        log = Log(seed, size_max=500)
        chance = random.Random(seed)
        bad = chance.sample(sorted(log.whole), 5)
        for pid, index in bad:
            place, size, _ = log.rows[pid][index - 1]
            at = (place & ((1 << POSITION_BITS) - 1)) + chance.randrange(size)
            log.files[place >> POSITION_BITS][at] ^= 1 << chance.randrange(8)
        got = hauled(log)
        assert {key for key, raw in got.items() if raw is None} == set(bad)
        assert all(got[key] == raw for key, raw in log.whole.items() if key not in bad)


def test_a_file_that_is_cut_off_has_what_is_left() -> None:
    log = Log(3, size_max=500)
    del log.files[1][20 * KIB :]
    got = hauled(log)
    for pid, rows in log.rows.items():
        for place, size, index in rows:
            left = place >> POSITION_BITS == 0 or (place & 0xFFFF_FFFF) + size <= 20 * KIB
            assert (got[pid, index] == log.whole[pid, index]) == left, (pid, index)


def test_a_piece_that_cannot_be_read_costs_only_what_is_in_the_bad_place() -> None:
    log = Log(4, size_max=500)
    pread = log.pread
    place, _, index = log.rows[5][7]
    sector = (place & 0xFFFF_FFFF) // 512 * 512

    def failing(file_id: int, position: int, length: int) -> bytes:
        if file_id == place >> POSITION_BITS and position < sector + 512 and position + length > sector:
            raise OSError(errno.EIO, "a bad sector")
        return pread(file_id, position, length)

    log.pread = failing  # type: ignore[method-assign]
    got = hauled(log)
    lost = [key for key, raw in got.items() if raw is None]
    assert (5, index) in lost
    assert len(lost) < 20


def test_a_file_that_is_gone_is_no_damage() -> None:
    def gone(file_id: int, position: int, length: int) -> bytes:
        raise NotFound("the log file was retired")

    with pytest.raises(NotFound):
        haul([Share(1, [(64, 100, 1)])], gone)
    haul([Share(1, [])], gone)
