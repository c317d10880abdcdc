"""Messages that must be opened first: key order and filters."""

from headrace.core import filters
from headrace.core.queue import Consumer, Credit, QueueMachine
from headrace.core.queue.lookahead import LOOKAHEAD_MAX
from headrace.model.specs import QueueSpec
from headrace.wire.control import Filter
from headrace.wire.frames import Settle
from tests.unit.core.queues import given_consumer

BLUE = filters.compile(Filter(op="eq", header="colour", value="blue"))


class Keyed:
    """An ordered queue whose message at offset i has the i-th key (``.`` = none)."""

    def __init__(self, keys: str, *, consumers: int = 2, credit: int = 100) -> None:
        self.keys = keys
        self.machine = QueueMachine(QueueSpec(ordered_by_key=True))
        self.machine.enqueue(0, len(keys), len(keys), wall_ms=0, now_ms=0)
        for id in range(1, consumers + 1):
            given_consumer(self.machine, id, credit=credit)

    def open(self) -> None:
        while (wanted := self.machine.wants()) is not None:
            self.machine.opened([(o, None if self.keys[o] == "." else self.keys[o].encode(), ()) for o in range(wanted[0], sum(wanted))])

    def granted(self, wall: int = 0) -> dict[int, int]:
        """Offset to consumer."""
        self.machine.tick(wall, wall)
        self.open()
        grants = self.machine.grant(wall, wall)
        self.machine.check()
        return {o: g.consumer_id for g in grants for o in range(g.first, g.first + g.count)}

    def end(self, offset: int, by: int, action: Settle = Settle.ACK, *, delay_ms: int = 0, wall: int = 0) -> None:
        assert self.machine.settle(by, action, [(offset, 1)], delay_ms=delay_ms, now_ms=wall, wall_ms=wall).count == 1


def test_nothing_is_granted_before_it_is_opened() -> None:
    queue = Keyed("ab")
    assert queue.machine.grant(0, 0) == []
    assert queue.machine.wants() == (0, 2)
    assert sorted(queue.granted()) == [0, 1]


def test_one_message_of_a_key_is_leased_at_a_time_and_others_pass_it() -> None:
    queue = Keyed("aaba.")
    first = queue.granted()
    assert sorted(first) == [0, 2, 4]
    queue.end(0, first[0])
    second = queue.granted()
    assert sorted(second) == [1]


def test_a_retry_comes_before_its_successors_even_delayed() -> None:
    queue = Keyed("aab", consumers=1)
    queue.granted()
    queue.end(0, 1, Settle.RETRY, delay_ms=100)
    assert queue.granted(50) == {}
    assert sorted(queue.granted(100)) == [0]
    queue.end(0, 1, wall=100)
    assert sorted(queue.granted(100)) == [1]


def test_a_rejected_head_lets_the_next_one_up() -> None:
    queue = Keyed("aa", consumers=1)
    queue.granted()
    queue.end(0, 1, Settle.REJECT)
    assert sorted(queue.granted()) == [1]


def test_a_message_published_with_a_delay_blocks_nothing_before_it_is_due() -> None:
    queue = Keyed("", consumers=1)
    queue.keys = "aaa"
    queue.machine.enqueue(0, 1, 1, not_before_ms=100, wall_ms=0, now_ms=0)
    queue.machine.enqueue(1, 2, 2, wall_ms=0, now_ms=0)
    assert sorted(queue.granted()) == [1]
    queue.end(1, 1)
    assert sorted(queue.granted(100)) == [0]


def test_after_a_restart_what_is_leased_still_blocks_its_key() -> None:
    queue = Keyed("aab")
    queue.granted()
    data = queue.machine.snapshot()
    queue.machine = QueueMachine(QueueSpec(ordered_by_key=True))
    queue.machine.restore(1, data)
    given_consumer(queue.machine, 7)
    assert queue.granted() == {}
    queue.machine.tick(40_000, 40_000)
    assert sorted(queue.granted(40_000)) == [0, 2]


def test_the_window_is_bounded() -> None:
    queue = Keyed("a" * (LOOKAHEAD_MAX + 500), consumers=1)
    assert sorted(queue.granted()) == [0]
    assert queue.machine.wants() is None
    queue.end(0, 1)
    assert queue.machine.wants() == (LOOKAHEAD_MAX, 1)


def test_a_filtered_consumer_is_granted_only_what_it_wants_and_others_get_the_rest() -> None:
    machine = QueueMachine(QueueSpec())
    machine.enqueue(0, 6, 6, wall_ms=0, now_ms=0)
    machine.attach(Consumer(1, owner_token=1, credit=Credit(100), filter=BLUE))
    assert machine.grant(0, 0) == []
    assert machine.wants() == (0, 6)
    machine.opened([(o, None, (("colour", b"blue" if o % 2 else b"red"),)) for o in range(6)])
    assert [g.first for g in machine.grant(0, 0)] == [1, 3, 5]
    assert machine.wants() is None
    given_consumer(machine, 2)
    assert [g.first for g in machine.grant(0, 0)] == [0, 2, 4]
    machine.check()


def test_what_nobody_wanted_is_looked_at_again_for_a_new_filter() -> None:
    machine = QueueMachine(QueueSpec())
    machine.enqueue(0, 2, 2, wall_ms=0, now_ms=0)
    machine.attach(Consumer(1, owner_token=1, credit=Credit(100), filter=BLUE))
    machine.next_deadline_ms(0, 0)
    machine.opened([(0, None, (("colour", b"red"),)), (1, None, (("colour", b"red"),))])
    assert machine.wants() is None
    machine.attach(Consumer(2, owner_token=2, credit=Credit(100), filter=filters.compile(Filter(op="exists", header="colour"))))
    assert machine.wants() == (0, 2)
    machine.detach(1, 0, 0)
    machine.detach(2, 0, 0)
    assert machine.wants() is None
    machine.check()
