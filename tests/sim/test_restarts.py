"""Leases over a restart, records acked one by one, what may not be shown yet: histories that break the promise and ones that keep it."""

from typing import Any

from headrace.model.specs import QueueSpec, StreamSpec
from headrace.sim.checks import messages, restarts, streams, times
from headrace.sim.history import Arrival, Commit, Link, Read
from tests.sim.test_checks import Made, told

INFINITE = float("inf")


def regranted(at: float, *, killed: float = 2.0, born: float = 2.5, durable: bool = True, **more: Any) -> list[str]:
    """Message 0 was leased for 1 s to a consumer 1.5 s, the broker was killed and started again, the next attempt came ``at``."""
    made = Made(q=QueueSpec(lease_ms=1000))
    one, two = made.consumer(), made.consumer()
    first = made.at(1.4).confirmed(offset=0)
    made.at(1.5).give(one, first.id)
    if durable:
        second = made.at(1.6).confirmed(offset=1)
        made.at(1.7).give(two, second.id, offset=1)
    made.history.links.append(Link(killed, one.client, False))
    for link in more.pop("links", ()):
        made.history.links.append(Link(link, one.client, False))
    if more.pop("retried", False):
        made.at(1.8).settle(one, first.id, action="retry")
    if "leaving" in more:
        one.leaving = more.pop("leaving")
    made.at(at).give(two, first.id, epoch=2, attempt=more.pop("attempt", 2))
    return told(restarts.ended, made, lives=[(0.0, killed), (born, INFINITE)], **more)


def test_a_lease_lasts_its_whole_duration_from_a_restart() -> None:
    assert regranted(2.6)
    assert regranted(3.4)
    assert not regranted(3.5)
    assert not regranted(2.6, attempt=1)  # for others to judge


def test_what_may_have_ended_before_the_restart_or_was_given_up_is_no_violation() -> None:
    assert not regranted(2.6, durable=False)
    assert not regranted(3.1, killed=2.5, born=3.0)  # the lease may have run out
    assert not regranted(2.6, killed=INFINITE)  # it stopped by itself
    assert not regranted(2.6, retried=True)
    assert not regranted(2.6, leaving=2.55)
    assert not regranted(2.6, links=(2.55,))  # its connection was lost again after the restart
    assert not regranted(2.6, links=(1.8,))  # ... or before
    assert not regranted(2.6, cut=True)
    assert not regranted(2.6, jumped=True)


def acked(*commits: tuple[int, bool], goes_on: int, explicit: bool = True, filter: str = "") -> list[str]:
    """A reader saw ten records and acked these (offset, alone); the next one with its cursor was first given ``goes_on``."""
    made = Made(s=StreamSpec())
    ids = [made.confirmed("s", offset=i).id for i in range(10)]
    one = made.consumer("s", kind="reader", cursor="c", explicit=explicit, filter=filter)
    for i in range(10):
        made.read(one, ids[i], i)
    for offset, single in commits:
        made.history.commits.append(Commit(made.now, one.number, "s", "c", 0, offset, single))
    two = made.at(2.0).consumer("s", kind="reader", cursor="c", explicit=explicit, filter=filter)
    made.read(two, ids[goes_on], goes_on)
    return told(streams.unacked, made)


def test_who_goes_on_with_a_cursor_is_given_what_nobody_acked() -> None:
    assert not acked((0, True), (1, True), goes_on=2)
    assert acked((0, True), (5, True), goes_on=6)
    assert not acked((5, False), goes_on=6)
    assert acked((4, False), goes_on=6)
    assert not acked((1, False), (3, True), (2, True), goes_on=4)
    assert acked(goes_on=1)
    assert not acked(goes_on=1, explicit=False)
    assert not acked(goes_on=1, filter="kind = a")


def test_a_reader_passes_over_what_was_acked_before_and_over_nothing_else() -> None:
    for single, wrong in ((5, 0), (4, 1)):
        made = Made(s=StreamSpec())
        who = made.consumer("s", kind="reader", cursor="c")
        made.history.commits.append(Commit(0.0, who.number, "s", "c", 0, single, True))
        for offset in (4, 6):
            made.read(who, made.publish("s").id, offset)
        assert len(told(streams.gaps, made)) == wrong


def test_a_record_that_was_acked_alone_does_not_come_again_but_others_do() -> None:
    for offset, wrong in ((3, 1), (2, 0)):
        made = Made(s=StreamSpec())
        ids = [made.confirmed("s", offset=i).id for i in range(5)]
        one = made.consumer("s", kind="reader", cursor="c")
        commit = Commit(0.0, one.number, "s", "c", 0, 3, True)
        commit.result, commit.told_at = "done", 1.0
        made.history.commits.append(commit)
        for i in range(4):
            made.read(one, ids[i], i)
        made.read(made.at(2.0).consumer("s", kind="reader", cursor="c"), ids[offset], offset)
        assert len(told(streams.cursors, made)) == wrong


def test_what_a_trim_took_is_not_there_at_the_end() -> None:
    class Row:
        partition, start_offset = 0, 2

    for offset, wrong in ((1, 1), (2, 0)):
        made = Made(s=StreamSpec())
        ids = [made.confirmed("s", offset=i).id for i in range(3)]
        made.verb("trim", "s", rows=(Row,))
        made.read(made.at(1.0).consumer("s", kind="final"), ids[offset], offset)
        assert len(told(streams.starts, made)) == wrong


def test_nothing_is_confirmed_shown_or_given_before_it_is_durable() -> None:
    made = Made(q=QueueSpec(), s=StreamSpec())
    made.history.watermark = lambda name, partition: 1
    made.confirmed(offset=0)
    who = made.consumer("s", kind="reader")
    made.history.reads.append(Read(0.0, who.number, "s", 0, 0, 1, 0, False, 1))
    made.history.reads.append(Read(0.0, who.number, "s", 0, 1, 1, 0, True, 1))
    made.history.arrivals.append(Arrival(0.0, who.number, "q", 0, 0, 1, 1, 1, False, True))
    assert not told(messages.too_soon, made)
    made.confirmed(offset=1)
    made.history.reads.append(Read(0.0, who.number, "s", 0, 1, 1, 0, False, 1))
    made.history.arrivals.append(Arrival(0.0, who.number, "q", 0, 0, 1, 1, 1, False, False))
    assert [violation.invariant for violation in messages.too_soon(made.seen())] == ["I13", "I7", "I5"]


def test_who_lost_a_connection_during_a_pause_is_given_nothing_either() -> None:
    for broken, wrong in ((1.2, 1), (0.5, 0)):
        made = Made()
        made.verb("pause", rows=(1.0, 2.0))
        old, who = made.confirmed(offset=0), made.consumer()
        made.history.links.append(Link(broken, who.client, False))
        made.at(1.5).give(who, old.id)
        assert len(told(times.paused, made)) == wrong


def test_an_expiry_that_was_not_due_when_the_queues_were_empty_accounts_for_nothing() -> None:
    for emptied, wrong in ((0.4, 1), (0.6, 0)):
        made = Made(q=QueueSpec(ttl_ms=500))
        made.confirmed(offset=0)
        made.history.emptied, made.history.finished = emptied, 2.0
        assert len(told(messages.lost, made)) == wrong


def test_an_ack_sent_before_a_later_attempt_arrived_may_have_ended_that_attempt() -> None:
    from headrace.sim.checks import leases

    for acked_at, wrong in ((1.5, 0), (None, 1)):
        made = Made(q=QueueSpec(ordered_by_key=True))
        low, high = made.confirmed(offset=0, key="k"), made.confirmed(offset=1, key="k")
        one, two = made.consumer(), made.consumer()
        made.at(1.0).give(one, low.id)
        if acked_at:
            made.at(acked_at).settle(one, low.id)
        made.at(2.0).give(two, high.id, offset=1)
        made.at(2.1).give(one, low.id, attempt=2)
        assert len(told(leases.key_order, made)) == wrong


def test_a_count_that_starts_again_after_a_restart_is_not_a_later_one() -> None:
    made = Made()
    note, one, two = made.confirmed(), made.consumer(), made.consumer()
    made.give(one, note.id)
    made.arrive(one, attempt=2)  # not durable: after the restart it is attempt 1 again
    made.at(1.0).give(two, note.id, attempt=1, epoch=2)
    made.settle(two, note.id, attempt=1, result="")
    assert not told(messages.lost, made)
