"""How a queue partition hands its messages out: order, fairness, credit, leases."""

from headrace.core.queue import Consumer, Credit, Grant, QueueMachine
from headrace.model.specs import QueueSpec
from headrace.wire.frames import Settle
from tests.unit.core.queues import ended, given, given_consumer, replayed


def test_a_whole_backlog_goes_to_one_consumer_as_one_grant() -> None:
    machine = given(100_000_000)
    given_consumer(machine, credit=1 << 40)
    assert machine.grant(0, 0) == [Grant(1, 0, 100_000_000, 1, False)]
    machine.check()


def test_consumers_share_equally_and_the_turn_moves_on() -> None:
    machine = given(10)
    for id in (1, 2, 3):
        given_consumer(machine, id)
    assert [(g.consumer_id, g.count) for g in machine.grant(0, 0)] == [(1, 4), (2, 3), (3, 3)]
    machine.enqueue(10, 1, 10, wall_ms=0, now_ms=0)
    assert [(g.consumer_id, g.count) for g in machine.grant(0, 0)] == [(2, 1)]


def test_a_consumer_without_credit_holds_nobody_up() -> None:
    machine = given(10)
    slow, quick = given_consumer(machine, 1, credit=2), given_consumer(machine, 2, credit=100)
    assert [(g.consumer_id, g.count) for g in machine.grant(0, 0)] == [(1, 2), (2, 8)]
    assert (slow.credit.messages, quick.credit.messages) == (0, 92)


def test_what_one_cannot_take_is_divided_among_the_others() -> None:
    machine = given(20)
    for id, credit in ((1, 30), (2, 1), (3, 5), (4, 30)):
        given_consumer(machine, id, credit=credit)
    assert {g.consumer_id: g.count for g in machine.grant(0, 0)} == {1: 7, 2: 1, 3: 5, 4: 7}


def test_credit_in_bytes_is_kept_but_for_one_message() -> None:
    machine = given(10, nbytes=1000)
    consumer = given_consumer(machine, nbytes=250)
    assert machine.grant(0, 0) == [Grant(1, 0, 3, 1, False)]
    assert machine.grant(0, 0) == []
    assert consumer.credit.bytes == -50


def test_credit_returns_when_a_message_is_settled() -> None:
    machine = given(10, nbytes=1000)
    consumer = given_consumer(machine, credit=5, nbytes=10_000)
    machine.grant(0, 0)
    ended(machine, [(0, 3)])
    assert (consumer.credit.messages, consumer.credit.bytes) == (3, 9_800)


def test_credit_that_was_granted_for_a_pull_does_not_return() -> None:
    machine = given(10)
    consumer = Consumer(1, owner_token=1, credit=Credit(5), replenish=False)
    machine.attach(consumer)
    machine.grant(0, 0)
    ended(machine, [(0, 5)])
    assert consumer.credit.messages == 0


def test_higher_priority_goes_first_and_the_oldest_within_one() -> None:
    machine = QueueMachine(QueueSpec())
    for offset, priority in enumerate([0, 9, 5, 9]):
        machine.enqueue(offset, 1, 10, priority=priority, wall_ms=0, now_ms=0)
    given_consumer(machine)
    assert [g.first for g in machine.grant(0, 0)] == [1, 3, 2, 0]


def test_auto_ack_settles_when_granted() -> None:
    machine = given(3)
    machine.attach(Consumer(1, owner_token=1, credit=Credit(10), auto_ack=True))
    assert machine.grant(0, 0) == [Grant(1, 0, 3, 1, True)]
    assert machine.settled_count == machine.end == machine.floor == 3
    assert replayed(machine, given(3)).settled_count == 3


def test_a_paused_queue_grants_nothing() -> None:
    machine = given(3)
    given_consumer(machine)
    machine.pause()
    assert machine.grant(0, 0) == []
    machine.pause(False)
    assert len(machine.grant(0, 0)) == 1


def test_a_gate_lets_one_consumer_through_and_older_generations_do_not_move_it() -> None:
    machine = given(3)
    given_consumer(machine, 1)
    given_consumer(machine, 2)
    assert machine.gate(None, 5)
    assert machine.grant(0, 0) == []
    assert not machine.gate(1, 4)
    assert machine.gate(2, 6)
    assert [g.consumer_id for g in machine.grant(0, 0)] == [2]


def test_an_expired_lease_returns_the_message_with_its_count() -> None:
    machine = given(2)
    consumer = given_consumer(machine, credit=2, lease_ms=1000)
    machine.grant(0, 0)
    assert machine.next_deadline_ms(0, 0) == 1000
    machine.tick(999, 999)
    assert machine.leased_count == 2
    machine.tick(1000, 1000)
    assert consumer.credit.messages == 2
    assert machine.grant(1000, 1000) == [Grant(1, 0, 2, 2, False)]


def test_an_extended_lease_lasts_from_now() -> None:
    machine = given(2)
    given_consumer(machine, lease_ms=1000)
    machine.grant(0, 0)
    answer = machine.extend(1, [(0, 1), (5, 2)], 5000, 900)
    assert (answer.count, answer.stale) == (1, [(5, 2)])
    machine.tick(1000, 1000)
    assert [(p.offset, p.state) for p in machine.peek("any")] == [(0, "leased"), (1, "ready")]
    assert machine.next_deadline_ms(1000, 1000) == 5900


def test_shorter_leases_granted_later_expire_first() -> None:
    machine = given(2)
    given_consumer(machine, 1, credit=1, lease_ms=10_000)
    machine.grant(0, 0)
    given_consumer(machine, 2, credit=1, lease_ms=500)
    machine.grant(0, 0)
    assert machine.next_deadline_ms(0, 0) == 500
    machine.tick(500, 500)
    assert machine.leased_count == 1


def test_stale_settles_name_what_was_not_held() -> None:
    machine = given(10)
    given_consumer(machine, 1, credit=4)
    given_consumer(machine, 2, credit=4)
    machine.grant(0, 0)
    answer = machine.settle(1, Settle.ACK, [(2, 4), (2, 1), (0, 0), (1 << 64, 9)], now_ms=0, wall_ms=0)
    assert answer.count == 2
    assert answer.stale == [(4, 2), (2, 1), (0, 0), (1 << 64, 9)]
    assert machine.settle(99, Settle.ACK, [(0, 1)], now_ms=0, wall_ms=0).stale == [(0, 1)]
    assert machine.settle(1, 3, [(0, 1)], now_ms=0, wall_ms=0).stale == [(0, 1)]


def test_up_to_settles_only_what_this_consumer_holds() -> None:
    machine = given(8)
    given_consumer(machine, 1, credit=4)
    given_consumer(machine, 2, credit=4)
    machine.grant(0, 0)
    answer = machine.settle(2, Settle.ACK, [(0, 8)], up_to=True, now_ms=0, wall_ms=0)
    assert (answer.count, answer.stale) == (4, [])
    assert machine.leased_count == 4
    assert machine.settle(2, Settle.ACK, [(0, 8)], up_to=True, now_ms=0, wall_ms=0).stale == [(0, 8)]


def test_detaching_returns_at_once_and_what_was_never_delivered_does_not_count() -> None:
    machine = given(4)
    given_consumer(machine)
    machine.grant(0, 0)
    machine.detach(1, 0, 0, [(2, 2)])
    assert [(p.state, p.attempts) for p in machine.peek("any")] == [("ready", 1), ("ready", 1), ("ready", 0), ("ready", 0)]
    assert replayed(machine, given(4)).snapshot() == machine.snapshot()


def test_a_suspended_consumer_keeps_its_leases_and_resuming_releases_what_never_reached_it() -> None:
    machine = given(4)
    given_consumer(machine, credit=10)
    machine.grant(0, 0)
    machine.suspend(1)
    machine.enqueue(4, 1, 10, wall_ms=0, now_ms=0)
    assert machine.grant(0, 0) == []
    machine.resume(1, [(0, 2)], 10, 10)
    assert machine.leased_count == 2
    assert [(g.first, g.count, g.attempt) for g in machine.grant(10, 10)] == [(2, 3, 1)]


def test_what_is_leased_to_a_consumer_that_comes_back_counts_in_its_window() -> None:
    machine = given(100)
    given_consumer(machine, credit=20)
    machine.grant(now_ms=0, wall_ms=0)
    restarted = replayed(machine, given(100))
    for kept in (machine, restarted):
        consumer = Consumer(2, owner_token=1001, credit=Credit(20, 1 << 60))
        kept.attach(consumer)
        assert consumer.credit.messages == 0
        kept.resume(2, [(0, 5)], 0, 0)
        assert consumer.credit.messages == 15
        kept.grant(now_ms=0, wall_ms=0)
        assert sum(end - first for first, end, _ in kept._state.leases) == 20


def test_what_could_not_be_sent_is_taken_back_without_counting() -> None:
    machine = given(4)
    given_consumer(machine)
    machine.grant(0, 0)
    assert machine.take_back(1, [(1, 2)], 0, 0) == 2
    assert [(g.first, g.count, g.attempt) for g in machine.grant(0, 0)] == [(1, 2, 1)]
