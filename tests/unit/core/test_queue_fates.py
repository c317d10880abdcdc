"""What becomes of messages that are not simply acked: retries, dead letters, expiry, limits, transfers."""

import pytest

from headrace.core.queue import QueueMachine, Taken
from headrace.model.errors import Damaged, Malformed, QueueFull
from headrace.model.specs import QueueSpec
from headrace.wire.frames import Settle
from headrace.wire.journal import Kind, Reason, unpack_leases, unpack_settlements
from tests.unit.core.queues import ended, given, given_consumer, replayed

# ---------------------------------------------------------------- retry


def test_a_retry_with_a_delay_waits_and_counts() -> None:
    machine = given(1)
    given_consumer(machine)
    machine.grant(0, 0)
    ended(machine, [(0, 1)], Settle.RETRY, wall_ms=100, delay_ms=50)
    assert machine.delayed_count == 1
    assert machine.next_deadline_ms(7, 100) == 57
    assert machine.grant(8, 149) == []
    assert machine.grant(9, 150)[0].attempt == 2


def test_back_off_grows_and_its_last_step_repeats() -> None:
    machine = given(1, QueueSpec(backoff_ms=(0, 100, 200)))
    given_consumer(machine)
    waits, wall = [], 0
    for _ in range(5):
        machine.grant(wall, wall)
        ended(machine, [(0, 1)], Settle.RETRY, wall_ms=wall)
        due = machine.peek("any")[0].due_ms
        waits.append(max(0, due - wall))
        wall = max(wall, due)
    assert waits == [0, 100, 200, 200, 200]


def test_too_many_deliveries_are_dead_lettered_with_the_time_of_the_first_failure() -> None:
    machine = given(1, QueueSpec(max_deliveries=2, dead_letter="graves"))
    given_consumer(machine)
    machine.grant(0, 0)
    ended(machine, [(0, 1)], Settle.RETRY, wall_ms=10, delay_ms=5)
    machine.grant(20, 20)
    ended(machine, [(0, 1)], Settle.RETRY, wall_ms=30)
    (transfer,) = machine.take_transfers()
    assert (transfer.target, transfer.reason, transfer.wall_ms) == ("graves", Reason.MAX_DELIVERIES, 30)
    assert transfer.ranges == (Taken(0, 1, 2, 10),)
    assert machine.settled_count == 1


@pytest.mark.parametrize("reason", ["expiry", "gone"])
def test_a_poison_message_that_kills_its_consumers_is_buried_too(reason: str) -> None:
    machine = given(1, QueueSpec(max_deliveries=1))
    given_consumer(machine, lease_ms=100)
    machine.grant(0, 0)
    if reason == "expiry":
        machine.tick(100, 100)
    else:
        machine.detach(1, 50, 50)
    assert machine.settled_count == 1
    assert machine.take_transfers() == []


def test_a_reject_is_dead_lettered_or_dropped_on_request() -> None:
    machine = given(3, QueueSpec(dead_letter="graves"))
    given_consumer(machine)
    machine.grant(0, 0)
    ended(machine, [(0, 1), (2, 1)], Settle.REJECT, wall_ms=5)
    ended(machine, [(1, 1)], Settle.REJECT, wall_ms=5, drop=True)
    assert [t.ranges for t in machine.take_transfers()] == [(Taken(0, 1, 1, 5), Taken(2, 1, 1, 5))]


# ---------------------------------------------------------------- time


def test_a_delayed_publish_is_ready_when_due() -> None:
    machine = QueueMachine(QueueSpec())
    machine.enqueue(0, 2, 20, not_before_ms=500, wall_ms=100, now_ms=0)
    given_consumer(machine)
    assert machine.grant(0, 499) == []
    assert machine.next_deadline_ms(0, 100) == 400
    assert machine.grant(1, 500)[0].count == 2


def test_own_expiry_replaces_the_queues_ttl_and_age_limits_both() -> None:
    machine = QueueMachine(QueueSpec(ttl_ms=100, max_age_ms=1000))
    machine.enqueue(0, 1, 10, wall_ms=0, now_ms=0)
    machine.enqueue(1, 1, 10, expires_at_ms=300, wall_ms=0, now_ms=0)
    machine.enqueue(2, 1, 10, expires_at_ms=9999, wall_ms=0, now_ms=0)
    left = []
    for wall in (99, 100, 300, 999, 1000):
        machine.tick(wall, wall)
        left.append([p.offset for p in machine.peek("any")])
    assert left == [[0, 1, 2], [1, 2], [2], [2], []]


def test_a_leased_message_expires_when_it_returns() -> None:
    machine = QueueMachine(QueueSpec(dead_letter="graves"))
    machine.enqueue(0, 1, 10, expires_at_ms=100, wall_ms=0, now_ms=0)
    given_consumer(machine)
    machine.grant(0, 0)
    machine.tick(200, 200)
    assert machine.leased_count == 1
    ended(machine, [(0, 1)], Settle.RETRY, wall_ms=201)
    assert machine.take_transfers()[0].reason == Reason.EXPIRED


def test_an_idle_machine_has_no_deadline() -> None:
    machine = given(3, QueueSpec(ttl_ms=0))
    given_consumer(machine)
    assert machine.next_deadline_ms(0, 0) is None
    machine.grant(0, 0)
    ended(machine, [(0, 3)])
    assert machine.next_deadline_ms(0, 0) is None


# ---------------------------------------------------------------- limits


def test_a_full_queue_refuses_and_counts_what_is_admitted_but_not_enqueued() -> None:
    machine = given(0, QueueSpec(max_messages=10))
    assert machine.admit(6, 60, 0) is None
    assert isinstance(machine.admit(5, 50, 0), QueueFull)
    machine.unreserve(6, 60)
    assert machine.admit(10, 100, 0) is None
    machine.enqueue(0, 10, 100, wall_ms=0, now_ms=0)
    assert isinstance(machine.admit(1, 10, 0), QueueFull)


def test_the_oldest_make_room_and_leased_ones_do_not() -> None:
    machine = given(0, QueueSpec(max_messages=4, overflow="drop_oldest"))
    for base in (0, 4):
        assert machine.admit(4, 40, 0) is None
        machine.enqueue(base, 4, 40, wall_ms=0, now_ms=0)
    assert [p.offset for p in machine.peek("ready")] == [4, 5, 6, 7]
    given_consumer(machine, credit=2)
    machine.grant(0, 0)
    machine.admit(1, 10, 0)
    machine.enqueue(8, 1, 10, wall_ms=0, now_ms=0)
    assert [p.offset for p in machine.peek("any")] == [4, 5, 7, 8]


def test_overflow_may_dead_letter_by_bytes() -> None:
    machine = given(0, QueueSpec(max_bytes=100, overflow="dead_letter_oldest", dead_letter="graves"))
    for base in range(3):
        machine.admit(1, 45, 7)
        machine.enqueue(base, 1, 45, wall_ms=7, now_ms=0)
    assert [(t.reason, t.ranges) for t in machine.take_transfers()] == [(Reason.OVERFLOW, (Taken(0, 1, 0, 0),))]
    assert machine.bytes == 90


# ---------------------------------------------------------------- operators


def test_purge_spares_the_leased_unless_told() -> None:
    machine = given(10)
    given_consumer(machine, credit=4)
    machine.grant(0, 0)
    assert machine.purge() == 6
    assert machine.purge(True) == 4
    assert machine.floor == 10


def test_a_move_takes_what_is_ready_and_its_payloads_are_kept_until_it_arrived() -> None:
    machine = given(10)
    given_consumer(machine, credit=4)
    machine.grant(0, 0)
    number = machine.start_transfer("elsewhere", Reason.MOVED, [(0, 6)], 5, {"job": 1})
    assert machine.start_transfer("elsewhere", Reason.MOVED, [(0, 6)], 5) == 0
    ended(machine, [(0, 4)])
    assert [(t.number, t.ranges, t.extra) for t in machine.take_transfers()] == [(number, (Taken(4, 2, 0, 0),), {"job": 1})]
    machine.purge()
    assert machine.floor == 4
    assert machine.transfer_done(number)
    assert not machine.transfer_done(number)
    assert machine.floor == 10


def test_pending_transfers_are_handed_out_again_after_a_restart() -> None:
    machine = given(10)
    machine.start_transfer("elsewhere", Reason.MOVED, [(0, 3)], 5)
    other = replayed(machine, given(10))
    other.next_deadline_ms(0, 0)
    assert [t.number for t in other.take_transfers()] == [1]
    assert other.take_transfers() == []
    assert other.start_transfer("elsewhere", Reason.MOVED, [(3, 1)], 5) == 4


def test_peek_shows_states_in_order_without_leasing() -> None:
    machine = given(4)
    given_consumer(machine, credit=1, lease_ms=1000)
    machine.grant(0, 0)
    machine.enqueue(4, 1, 10, not_before_ms=50, wall_ms=0, now_ms=0)
    rows = machine.peek("any", 0, 3, now_ms=0, wall_ms=10_000)
    assert [(r.offset, r.state) for r in rows] == [(1, "ready"), (2, "ready"), (3, "ready")]
    assert machine.peek("leased", -1, 9, now_ms=0, wall_ms=10_000)[0].lease_until_ms == 11_000
    assert machine.peek("delayed")[0].due_ms == 50
    assert machine.peek("nonsense") == []


# ---------------------------------------------------------------- journal


def test_a_tick_is_one_settlement_and_one_lease_entry() -> None:
    machine = given(300)
    given_consumer(machine, credit=1000)
    machine.grant(0, 0)
    machine.take_journal()
    machine.enqueue(300, 300, 3000, wall_ms=0, now_ms=0)
    for offset in range(299, -1, -1):
        ended(machine, [(offset, 1)])
    machine.grant(0, 0)
    settlement, lease = machine.take_journal()
    assert settlement[0] == Kind.SETTLEMENT
    assert unpack_settlements(settlement[1]) == [(0, 0, 0, 300, 0, 0)]
    assert lease[0] == Kind.LEASE
    assert unpack_leases(lease[1]) == [(300, 300, 1, 30_000, 1001)]
    assert machine.take_journal() == []


def test_what_was_leased_and_settled_in_one_tick_replays_right() -> None:
    machine = given(10)
    given_consumer(machine, credit=100)
    machine.grant(0, 0)
    ended(machine, [(0, 2)])
    ended(machine, [(4, 2)], Settle.RETRY)
    machine.grant(0, 0)
    ended(machine, [(4, 1)])
    assert replayed(machine, given(10)).snapshot() == machine.snapshot()


def test_restored_leases_belong_to_their_token_and_last_their_whole_time() -> None:
    machine = given(4)
    given_consumer(machine, lease_ms=1000)
    machine.grant(0, 0)
    other = QueueMachine(QueueSpec())
    other.restore(1, machine.snapshot())
    given_consumer(other, lease_ms=1000)
    assert other.next_deadline_ms(50_000, 99) == 51_000
    assert ended(other, [(0, 4)]).count == 4


def test_leases_of_an_owner_that_never_returns_expire() -> None:
    machine = given(4)
    given_consumer(machine, lease_ms=1000)
    machine.grant(0, 0)
    other = replayed(machine, given(4))
    other.tick(5, 5)
    assert other.leased_count == 4
    other.tick(1005, 1005)
    assert other.ready_count == 4


def test_damaged_snapshots_and_entries_are_named() -> None:
    machine = given(4)
    with pytest.raises(Damaged):
        machine.restore(2, machine.snapshot())
    with pytest.raises(Damaged):
        machine.restore(1, b"nonsense")
    with pytest.raises(Malformed):
        machine.replay(Kind.LEASE, b"short")
    with pytest.raises(Malformed):
        machine.replay(Kind.SETTLEMENT, bytes([250]) + bytes(23))


def test_a_longer_ttl_holds_for_what_was_leased_beyond_the_shorter_one() -> None:
    machine = given(1, QueueSpec(ttl_ms=100, lease_ms=1000))
    given_consumer(machine)
    machine.grant(0, 0)
    machine.tick(150, 150)
    machine.configure(QueueSpec(ttl_ms=400, lease_ms=1000))
    machine.tick(160, 160)
    machine.take_back(1, [(0, 1)], 200, 200)
    assert machine.ready_count == 1
    machine.tick(399, 399)
    assert machine.ready_count == 1
    machine.tick(400, 400)
    assert machine.ready_count == 0, "it expires all the same"


@pytest.mark.parametrize("own", [False, True])
def test_what_was_leased_beyond_its_expiry_and_returns_when_the_clock_fell_back_expires_again(own: bool) -> None:
    machine = QueueMachine(QueueSpec() if own else QueueSpec(ttl_ms=100))
    machine.enqueue(0, 1, 10, expires_at_ms=100 if own else 0, wall_ms=0, now_ms=0)
    given_consumer(machine)
    machine.grant(0, 0)
    machine.tick(150, 150)
    machine.take_back(1, [(0, 1)], 160, 50)
    machine.detach(1, 160, 50)
    machine.tick(170, 60)
    assert machine.ready_count == 1
    assert machine.next_deadline_ms(170, 60) == 210
    machine.tick(210, 100)
    assert machine.settled_count == 1


def test_a_snapshot_of_an_empty_queue_knows_the_last_append() -> None:
    machine = given(6)
    given_consumer(machine)
    machine.grant(0, 0)
    ended(machine, [(0, 6)])
    machine.take_journal()
    other = QueueMachine(QueueSpec())
    other.restore(1, machine.snapshot())
    for each in (machine, other):
        each.enqueue(6, 6, 60, wall_ms=500, now_ms=500)
    assert other.snapshot() == machine.snapshot()
    assert other.oldest_wall_ms == machine.oldest_wall_ms
