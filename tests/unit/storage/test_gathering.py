"""What gathers for a flush: which entries share a row of the directory, and what landing books of them."""

from headrace.storage.cache import TailCache
from headrace.storage.entry import Appended
from headrace.storage.gathering import JOIN_BYTES_MAX, Gathering, header_of
from headrace.storage.index import Part
from headrace.storage.intake import Intake
from headrace.storage.walformat import decode_entry
from headrace.wire.journal import Kind

RECORDS = int(Kind.RECORDS)
TRUNCATE = int(Kind.TRUNCATE)


class Desk:
    """An intake without a log: ``flush`` lays out what gathered, ``land`` books it."""

    def __init__(self) -> None:
        self.gathering = Gathering(1 << 20)
        self.parts: dict[int, Part] = {}
        self.cache = TailCache(1 << 20)
        self.intake = Intake(self.gathering, self.parts, self.cache, self._make)

    def _make(self, pid: int) -> Part:
        self.parts[pid] = Part(pid)
        return self.parts[pid]

    def put(self, pid: int, index: int, size: int = 40, *, keep: bool = True) -> Appended:
        return self.intake.records(pid, 1, index, bytes(size), index, 1, 0, keep)

    def rows(self) -> list[tuple[int, int, int]]:
        return [(slot.pid, slot.index, slot.last) for slot in self.gathering.slots]

    def land(self, file_id: int, pids: set[int]) -> list[tuple[int, int]]:
        slots = self.gathering.take(1 << 20, 100)
        self.gathering.lay(slots, 8192)
        return self.intake.landed(slots, file_id, pids)


def test_entries_of_a_partition_share_a_row_until_a_flush_takes_it() -> None:
    desk = Desk()
    desk.put(1, 1)
    desk.put(2, 1)
    desk.put(1, 2)
    assert desk.rows() == [(1, 1, 2), (2, 1, 1)]
    taken = desk.gathering.take(1 << 20, 1)
    desk.put(1, 3)
    desk.put(2, 2)
    assert [slot.last for slot in taken] == [2], "what a flush has does not grow"
    assert desk.rows() == [(2, 1, 2), (1, 3, 3)]


def test_what_was_given_back_takes_more() -> None:
    desk = Desk()
    desk.put(1, 1)
    desk.gathering.give_back(desk.gathering.take(1 << 20, 100))
    desk.put(1, 2)
    assert desk.rows() == [(1, 1, 2)]
    assert desk.land(1, set()) == [(1, 2)]


def test_a_marker_stands_alone() -> None:
    desk = Desk()
    desk.put(1, 1)
    desk.intake.append(1, 1, 2, TRUNCATE, (b"",), 0)
    desk.put(1, 2)
    assert desk.rows() == [(1, 1, 1), (1, 2, 2), (1, 2, 2)]


def test_a_partition_is_noted_in_every_log_file_that_holds_something_of_it() -> None:
    desk, first, second = Desk(), set[int](), set[int]()
    desk.put(1, 1)
    desk.put(2, 1)
    desk.land(7, first)
    desk.put(1, 2)
    desk.land(7, first)
    desk.put(1, 3)
    desk.land(8, second)
    assert (first, second) == ({1, 2}, {1})


def test_a_partition_that_is_gone_is_noted_and_not_told() -> None:
    desk, pids = Desk(), set[int]()
    desk.put(1, 1)
    del desk.parts[1]
    assert desk.land(7, pids) == []
    assert pids == {1}


def test_nothing_that_has_landed_is_kept_by_its_partition() -> None:
    desk = Desk()
    desk.put(1, 1)
    desk.land(7, set())
    assert desk.parts[1].slot is None
    assert desk.parts[1].oldest is desk.parts[1].newest is None


def test_what_nobody_reads_is_not_in_the_cache() -> None:
    desk = Desk()
    desk.put(1, 1)
    desk.put(1, 2, keep=False)
    tail = desk.parts[1].tail
    assert tail.find(1, 1 << 20, 9) is None, "what is there has no gap up to the end, so nothing is there"
    desk.put(1, 3)
    desk.land(7, set())
    assert [entry.index for entry in tail.find(3, 1 << 20, 9) or ()] == [3]
    assert tail.find(2, 1 << 20, 9) is None, "it is read from the log"
    assert desk.cache.nbytes == 40 + 300
    desk.put(1, 4, keep=False)
    assert (tail.find(3, 1 << 20, 9), desk.cache.nbytes) == (None, 0)


def test_a_header_is_what_the_log_says_before_the_payload() -> None:
    desk = Desk()
    entry = desk.put(5, 1)
    laid = desk.gathering.lay(desk.gathering.take(1 << 20, 100), 8192)
    assert laid.heads == header_of(entry)
    assert b"".join(laid.pieces) == header_of(entry) + bytes(40)
    assert decode_entry(b"".join(laid.pieces)).index == 1
    large = desk.put(5, 2, JOIN_BYTES_MAX)
    apart = desk.gathering.lay(desk.gathering.take(1 << 20, 100), 8192)
    assert apart.pieces == [header_of(large), bytes(JOIN_BYTES_MAX)], "what is large is not copied"
