"""What an owner does with time, silence, lost answers and the end of its epoch."""

from msgspec.structs import replace

from headrace.core.replica.change import Wish
from headrace.core.replica.effects import Alarm, Committed, Confirmed, Outcome, Promise, Refusal, Send, Stream, Swap, Unknown
from headrace.core.replica.journal import Recovered
from headrace.core.replica.messages import Align, Append, Fenced, Fetch, Fetched, Gap, Install, NewEpoch
from headrace.model.cluster import BrokerId, Forced, Incarnation
from headrace.model.ids import Epoch, Index
from headrace.wire.frames import Level
from tests.unit.core.replica.owners import Bench, assignment

MAJORITY, REPLICA, LOCAL, QUEUE = Level.MAJORITY, Level.REPLICA, Level.LOCAL, Level.QUEUE


def test_an_epoch_is_durable_before_anybody_hears_of_it() -> None:
    bench = Bench(assignment())
    bench.connects("b", "c")
    assert bench.took(Send) == []
    bench.synced()
    assert {s.to for s in bench.took(Send) if isinstance(s.message, NewEpoch)} == {"b", "c"}


def test_another_life_takes_a_new_epoch_and_only_when_it_is_wanted() -> None:
    bench = Bench(assignment(incarnation=Incarnation("a0")), Recovered(promised=3))
    assert bench.took(Swap) == []
    bench.replica.activate(0)
    bench.later(100)
    swap = bench.swap()
    assert (swap.document.epoch, swap.document.incarnation, swap.expected) == (4, "a1", 1)
    bench.answers(swap, Outcome.UNKNOWN)
    bench.later(300)
    again = bench.swap()
    assert again.document == swap.document
    bench.answers(again, Outcome.REFUSED, swap.document)  # the first one was applied
    assert [p.epoch for p in bench.took(Promise)] == [4]


def test_the_same_life_never_begins_an_epoch_twice() -> None:
    bench = Bench(assignment(), Recovered(promised=3))
    bench.replica.activate(0)
    bench.later(100)
    assert bench.replica.owner is None
    assert bench.swap().document.epoch == 4


def test_a_document_older_than_one_that_was_obeyed_is_refused() -> None:
    bench = Bench(assignment(version=4), Recovered(promised=2, version=5, generation=1))
    assert bench.replica.owner is None
    assert "was restored" in bench.took(Alarm)[0].reason


def test_one_member_that_is_silent_leaves_the_isr_once_it_owes_something() -> None:
    bench = Bench(assignment()).serves()
    bench.later(5_000, hears="b")
    assert bench.took(Swap) == []  # it owes nothing
    assert bench.replica.next_deadline_ms(bench.now_ms) is None
    bench.appends()
    bench.synced()
    bench.acks("b", 3)
    bench.later(400, hears="b")
    assert bench.took(Swap) == []
    bench.later(200, hears="b")
    assert bench.swap().document.isr == ("a", "b")


def test_a_member_that_answers_and_lags_leaves_after_ten_seconds() -> None:
    bench = Bench(assignment()).serves()
    bench.appends(50)
    bench.synced()
    bench.acks("b", 52)
    end = 2
    for _ in range(96):
        end += 1
        bench.later(100, hears="bc")
        bench.acks("c", min(end, 40))
        assert bench.took(Swap) == []
    bench.later(900, hears="bc")
    assert "lags" in bench.swap().document.reason


def test_a_reset_counts_at_once_when_something_is_owed() -> None:
    bench = Bench(assignment()).serves()
    bench.breaks("c")
    assert bench.took(Swap) == []
    bench.appends()
    assert bench.swap().document.isr == ("a", "b")


def test_who_leaves_counts_until_that_is_recorded() -> None:
    bench = Bench(assignment()).serves()
    bench.breaks("c")
    bench.appends()
    bench.waits(QUEUE, 7)
    bench.synced()
    bench.acks("b", 3)
    swap = bench.swap()
    assert bench.took(Committed) == []
    bench.answers(swap, Outcome.UNKNOWN)
    bench.later(1_000, hears="b")
    assert bench.took(Committed) == []
    again = bench.swap()
    assert (again.document, again.expected) == (swap.document, swap.expected)
    bench.answers(again, Outcome.APPLIED)
    assert [c.high_watermark for c in bench.took(Committed)] == [3]
    assert bench.took(Confirmed) == [Confirmed([7])]


def test_who_comes_in_counts_before_that_is_recorded() -> None:
    bench = Bench(assignment(isr="ab")).serves()
    swap = bench.swap() if any(isinstance(e, Swap) for e in bench.effects) else None
    change = bench.replica.owner.change if bench.replica.owner is not None else None
    assert swap is None
    assert change is not None
    assert change.document.isr == ("a", "b", "c")
    bench.appends()
    bench.synced()
    bench.acks("b", 3)
    assert bench.took(Committed) == []
    bench.acks("c", 3)
    assert [c.high_watermark for c in bench.took(Committed)] == [3]


def test_below_the_floor_nothing_is_taken_and_nothing_is_committed() -> None:
    bench = Bench(assignment(floor=2)).serves()
    for broker in "bc":
        bench.breaks(broker)
    bench.appends()
    bench.synced()
    bench.waits(QUEUE, 1)
    bench.waits(LOCAL, 2)
    assert bench.took(Confirmed) == [Confirmed([2])]
    swap = bench.swap()
    assert (swap.document.isr, swap.document.elr) == (("a",), ("b", "c"))
    bench.answers(swap, Outcome.APPLIED)
    assert bench.took(Unknown) == [Unknown([1], Refusal.BELOW_FLOOR.value)]
    assert bench.took(Committed) == []
    assert bench.replica.refusal(MAJORITY, bench.now_ms) is Refusal.BELOW_FLOOR
    assert bench.replica.refusal(LOCAL, bench.now_ms) is None
    bench.connects("b")
    bench.holds("b", 2, runs=((3, 1),), high_watermark=2)
    bench.acks("b", 3)
    swap = bench.swap()
    assert (swap.document.isr, swap.document.elr) == (("a", "b"), ())
    assert bench.took(Committed) == []
    bench.answers(swap, Outcome.APPLIED)
    assert [c.high_watermark for c in bench.took(Committed)] == [3]


def test_a_level_promises_what_it_names() -> None:
    bench = Bench(assignment(names="abcde")).serves()
    bench.appends()
    for token, level in enumerate((Level.ACCEPTED, LOCAL, MAJORITY, REPLICA), 1):
        bench.waits(level, token)
    assert bench.took(Confirmed) == [Confirmed([1])]
    bench.synced()
    assert bench.took(Confirmed) == [Confirmed([2])]
    bench.acks("b", 3)
    assert bench.took(Confirmed) == []
    bench.acks("c", 3)
    assert bench.took(Confirmed) == [Confirmed([3])]
    bench.acks("d", 3)
    bench.acks("e", 3)
    assert bench.took(Confirmed) == [Confirmed([4])]
    bench.waits(REPLICA, 5)  # what is reached already is answered as well
    assert bench.took(Confirmed) == [Confirmed([5])]


def test_an_owner_that_hears_too_few_is_isolated_until_it_hears_them() -> None:
    bench = Bench(assignment("majority_durable")).serves()
    bench.later(2_000, hears="b")
    assert bench.replica.delivers(bench.now_ms) is None
    bench.later(1_100)
    assert bench.replica.delivers(bench.now_ms) is Refusal.ISOLATED
    assert bench.replica.owner is not None
    assert bench.replica.owner.missed(bench.now_ms) == ["b", "c"]
    bench.later(100, hears="c")
    assert bench.replica.delivers(bench.now_ms) is None


def test_who_is_silent_and_owes_nothing_leaves_the_isr_once_a_delivery_waits_for_him() -> None:
    bench = Bench(assignment()).serves()
    bench.breaks("c")
    bench.later(5_000, hears="b")
    assert bench.took(Swap) == [], "an idle partition costs nothing"
    assert bench.replica.delivers(bench.now_ms) is Refusal.ISOLATED
    bench.later(100, hears="b")
    (swap,) = bench.took(Swap)
    assert swap.document.isr == ("a", "b")
    assert "c is needed for a delivery and was not heard for 5" in swap.document.reason
    bench.answers(swap, Outcome.APPLIED)
    assert bench.replica.delivers(bench.now_ms) is None


def test_a_later_epoch_ends_the_owner_and_what_waits_is_unknown() -> None:
    bench = Bench(assignment()).serves()
    bench.appends()
    bench.waits(QUEUE, 1)
    bench.says("b", Fenced(epoch=4))
    assert [u.tokens for u in bench.took(Unknown)] == [[1]]
    assert bench.replica.refusal(0, bench.now_ms) is Refusal.NOT_OWNER
    bench.acks("b", 3)
    assert bench.took(Committed) == []


def test_an_old_owner_promises_to_the_new_one() -> None:
    bench = Bench(assignment()).serves()
    bench.appends()
    bench.says("b", NewEpoch(epoch=4, session=1))
    assert bench.replica.owner is None
    assert bench.took(Send) == []
    bench.synced()
    sent = bench.took(Send)
    assert [s.to for s in sent] == ["b"]


def test_the_longest_journal_of_the_last_epoch_is_fetched() -> None:
    bench = Bench(assignment("majority_durable"), Recovered(end=4, promised=2, runs=((1, 1),)))
    bench.synced()
    bench.connects("b", "c")
    bench.holds("b", 9, runs=((1, 1),))
    bench.holds("c", 4, runs=((1, 1), (2, 3)))
    (cut,) = [e for e in bench.effects if type(e).__name__ == "Cut"]
    assert getattr(cut, "at", 0) == 3
    assert [s for s in bench.took(Send) if isinstance(s.message, Fetch)] == []
    bench.replica.cut(3, bench.now_ms)
    bench.later(100)
    (asked,) = [s.message for s in bench.took(Send) if isinstance(s.message, Fetch)]
    assert (asked.first, asked.end, asked.previous_epoch) == (3, 4, 1)
    bench.says("c", Fetched(epoch=3, session=bench.sessions["c"], first=3, count=1, runs=((2, 3),), entries=(0,)))
    bench.synced()
    assert bench.replica.owner is not None
    assert bench.replica.owner.begun_at == 4


def test_a_longer_journal_of_another_history_is_not_gone_on_with() -> None:
    """``c`` has what was committed, from an index on at which the owner's journal is of an older epoch already: only a checkpoint brings it there."""
    bench = Bench(assignment("majority_durable"), Recovered(end=20, promised=2, runs=((1, 1),)))
    bench.synced()
    bench.connects("b", "c")
    bench.holds("c", 12, runs=((2, 8),), start=8, history_start=8, base_epoch=2, high_watermark=10)
    bench.holds("b")
    bench.later(1_500, hears="bc")
    owner = bench.replica.owner
    assert owner is not None
    assert owner.begun_at == 0
    assert bench.replica.journal.high_watermark == 1
    asked = [s for s in bench.took(Send) if isinstance(s.message, Fetch)]
    assert {(s.to, s.message.first, s.message.end) for s in asked if isinstance(s.message, Fetch)} == {("c", 1, 12)}
    assert len(asked) > 1, "the answer may be lost"
    bench.says("c", Install(epoch=3, session=bench.sessions["c"], end=10, history_start=10, base_epoch=2, runs=()))
    bench.replica.installed(10, bench.now_ms)
    bench.later(100)
    (fetch,) = [s.message for s in bench.took(Send) if isinstance(s.message, Fetch)]
    assert (fetch.first, fetch.end, fetch.previous_epoch) == (10, 12, 2)
    bench.says("c", Fetched(epoch=3, session=bench.sessions["c"], first=10, count=2, runs=((2, 10),), entries=(0, 0)))
    bench.synced()
    assert owner.begun_at == 12


def test_what_the_source_has_moved_out_of_its_log_is_installed() -> None:
    """It answered long before the choice was made: then its log still had what comes next."""
    bench = Bench(assignment("majority_durable"), Recovered(end=6, promised=2, runs=((1, 1),), unclean=True))
    bench.synced()
    bench.connects("c")
    bench.holds("c", 20, runs=((1, 4), (2, 6)), start=4, history_start=4, base_epoch=1, high_watermark=18)
    bench.later(6_000, hears="c")
    bench.connects("b")
    bench.holds("b")
    owner = bench.replica.owner
    assert owner is not None
    (fetch,) = [s.message for s in bench.took(Send) if isinstance(s.message, Fetch)]
    assert (fetch.first, fetch.end) == (6, 20)
    session = bench.sessions["c"]
    assert not owner.offered(BrokerId("b"), bench.sessions["b"], 18)
    assert not owner.offered(BrokerId("c"), session, 6), "a checkpoint of what is here already is one of before"
    assert owner.offered(BrokerId("c"), session, 18)
    bench.says("c", Install(epoch=3, session=session, end=18, history_start=18, base_epoch=2, runs=()))
    bench.replica.installed(18, bench.now_ms)
    assert not owner.offered(BrokerId("c"), session, 18)
    bench.later(100)
    assert [s.message.first for s in bench.took(Send) if isinstance(s.message, Fetch)] == [18]
    bench.says("c", Fetched(epoch=3, session=session, first=18, count=2, runs=((2, 18),), entries=(0, 0)))
    bench.synced()
    assert owner.begun_at == 20


def test_after_an_unclean_stop_the_own_answer_is_not_enough() -> None:
    bench = Bench(assignment(), Recovered(unclean=True))
    bench.synced()
    bench.later(5_000)
    assert bench.replica.owner is not None
    assert bench.replica.owner.begun_at == 0
    assert bench.replica.owner.reason == "waits for b, c"
    bench.replica.dead(BrokerId("b"))
    bench.replica.dead(BrokerId("c"))
    bench.later(100)
    assert bench.replica.owner.begun_at == 1


def test_an_epoch_that_does_not_begin_says_once_what_it_waits_for() -> None:
    bench = Bench(assignment("majority_durable"))
    bench.connects("b")
    assert bench.replica.next_deadline_ms(0) == 10_000
    bench.synced()
    bench.later(9_000)
    assert bench.took(Alarm) == []
    bench.later(20_000)
    (alarm,) = bench.took(Alarm)
    assert alarm.mends
    assert alarm.reason == (
        "epoch 3 has not begun for 10 s: its owner waits for answers (waits for b, c); b was asked what it holds, c cannot be reached"
    )
    bench.holds("b")
    bench.replica.dead(BrokerId("c"))
    bench.later(1_000, hears="b")
    assert bench.replica.owner is not None
    assert bench.replica.owner.begun_at


def test_a_majority_is_not_replaced_by_patience() -> None:
    bench = Bench(assignment("majority_durable"))
    bench.synced()
    bench.replica.dead(BrokerId("b"))
    bench.replica.dead(BrokerId("c"))
    bench.later(30_000)
    assert bench.replica.owner is not None
    assert bench.replica.owner.begun_at == 0


def test_a_handover_waits_for_everything_and_takes_nothing_meanwhile() -> None:
    bench = Bench(assignment()).serves()
    bench.appends()
    owner = bench.replica.owner
    assert owner is not None
    assert owner.hand_over(BrokerId("b"), bench.now_ms)
    assert bench.replica.refusal(0, bench.now_ms) is Refusal.MOVING
    bench.synced()
    bench.acks("b", 3)
    assert bench.took(Swap) == []
    bench.acks("c", 3)
    swap = bench.swap()
    assert (swap.document.owner, swap.document.epoch, swap.document.incarnation) == ("b", 4, "b1")
    bench.answers(swap, Outcome.UNKNOWN)
    bench.later(1_000, hears="bc")
    assert bench.replica.refusal(0, bench.now_ms) is Refusal.MOVING
    bench.answers(bench.swap(), Outcome.REFUSED, swap.document)
    assert bench.replica.refusal(0, bench.now_ms) is Refusal.NOT_OWNER


def test_a_handover_to_who_does_not_keep_up_is_given_up() -> None:
    bench = Bench(assignment("majority_durable")).serves()
    assert bench.replica.owner is not None
    assert not bench.replica.owner.hand_over(BrokerId("x"), bench.now_ms)
    bench.appends()
    assert bench.replica.owner.hand_over(BrokerId("b"), bench.now_ms)
    bench.synced()
    bench.acks("c", 3)
    bench.later(6_000, hears="bc")
    assert bench.replica.refusal(0, bench.now_ms) is None


def test_a_follower_that_has_lost_what_it_acknowledged_leaves_and_comes_back() -> None:
    bench = Bench(assignment()).serves()
    bench.appends(4)
    bench.synced()
    bench.acks("b", 6)
    bench.acks("c", 6)
    bench.breaks("c")
    bench.connects("c")
    bench.holds("c", 3, runs=((3, 1),), high_watermark=2)
    swap = bench.swap()
    assert swap.document.isr == ("a", "b")
    bench.acks("c", 6)
    bench.answers(swap, Outcome.APPLIED)
    assert bench.swap().document.isr == ("a", "b", "c")


def test_members_changed_by_another_end_the_epoch() -> None:
    bench = Bench(assignment()).serves()
    bench.replica.assigned(replace(assignment(isr="ab"), version=2), bench.now_ms)
    bench.later(100)
    assert bench.replica.owner is None
    assert "by another" in bench.took(Alarm)[0].reason


def test_what_the_controller_may_change_changes_nothing_else() -> None:
    bench = Bench(assignment()).serves()
    bench.replica.assigned(replace(assignment(), version=2, learners=(BrokerId("d"),)), bench.now_ms)
    bench.connects("d")
    bench.holds("d")
    bench.acks("d", 2)
    swap = bench.swap()
    assert (swap.document.replicas, swap.document.learners) == (("a", "b", "c", "d"), ())
    assert swap.document.isr == ("a", "b", "c", "d")


def test_a_level_counts_once_it_is_recorded_and_both_count_meanwhile() -> None:
    bench = Bench(assignment("majority_durable")).serves()
    bench.replica.wish(Wish("replica_durable", 2), bench.now_ms)
    bench.appends()
    swap = bench.swap()
    assert (swap.document.level, swap.document.floor, swap.document.isr) == ("replica_durable", 2, ("a", "b", "c"))
    bench.synced()
    bench.acks("b", 3)
    assert bench.took(Committed) == []
    bench.acks("c", 3)
    assert [c.high_watermark for c in bench.took(Committed)] == [3]


def test_a_window_bounds_what_is_sent_and_the_driver_may_send_less() -> None:
    bench = Bench(assignment(names="ab")).serves()
    bench.appends(10_000)
    sent = [s.message for s in bench.took(Stream) if isinstance(s.message, Append)]
    assert sum(m.count for m in sent) == 4_096
    assert bench.replica.owner is not None
    bench.replica.owner.sent_less(BrokerId("b"), bench.sessions["b"], 100)
    bench.acks("b", 100)
    sent = [s.message for s in bench.took(Stream) if isinstance(s.message, Append)]
    assert sent[0].first == 100


def test_a_lone_copy_needs_nobody() -> None:
    bench = Bench(assignment("local_durable", names="a"), Recovered(end=5, high_watermark=2, promised=2, runs=((1, 1),), unclean=True))
    bench.synced()
    bench.later(100)
    bench.synced()
    assert bench.replica.refusal(LOCAL, bench.now_ms) is None
    assert bench.replica.journal.high_watermark == 6
    assert bench.replica.next_deadline_ms(bench.now_ms) is None


def test_a_forced_election_lets_a_follower_cut_what_was_committed_and_set_it_aside() -> None:
    for forced in (False, True):
        given = (Forced(epoch=Epoch(3), base=Index(2), base_epoch=Epoch(1), accepted_by="operator"),) if forced else ()
        document = assignment(isr="b", owner=BrokerId("b"), incarnation=Incarnation("b1"), forced=given)
        bench = Bench(document, Recovered(end=6, high_watermark=6, promised=2, runs=((1, 1),)))
        bench.connects("b")
        bench.says("b", NewEpoch(epoch=3, session=1))
        bench.synced()
        bench.says("b", Align(epoch=3, session=1, at=3, end=6, previous_epoch=1))
        cuts = [e for e in bench.effects if type(e).__name__ == "Cut"]
        if forced:
            assert [(getattr(c, "at", 0), getattr(c, "set_aside", False)) for c in cuts] == [(3, True)]
            bench.replica.cut(3, bench.now_ms)
            assert bench.replica.journal.high_watermark == 3
        else:
            assert cuts == []
            assert "was committed here" in bench.took(Alarm)[0].reason
            assert bench.replica.view()["phase"] == "is quarantined"


def test_a_follower_that_never_fits_is_asked_ever_more_seldom_and_somebody_is_told() -> None:
    bench = Bench(assignment()).serves()
    asked = 0
    bench.says("b", Gap(epoch=3, session=bench.sessions["b"], reason="does not fit"))
    for _ in range(300):
        bench.later(100, hears="bc")
        if any(s.to == "b" and isinstance(s.message, NewEpoch) for s in bench.took(Send)):
            asked += 1
            bench.holds("b", 2, runs=((3, 1),))
            bench.says("b", Gap(epoch=3, session=bench.sessions["b"], reason="does not fit"))
    assert 8 < asked < 40
    assert [a.reason for a in bench.took(Alarm)] == ["b has failed 5 times in a row to follow: does not fit"]


def test_a_late_answer_with_an_older_document_ends_nothing() -> None:
    bench = Bench(assignment(version=7)).serves()
    bench.replica.swapped(99, Outcome.REFUSED, assignment(version=5, owner=BrokerId("b"), epoch=Epoch(2)), bench.now_ms)
    bench.later(100)
    assert bench.replica.refusal(0, bench.now_ms) is None


def test_what_was_known_before_it_owned_the_partition_counts() -> None:
    bench = Bench(assignment(owner=BrokerId("b"), version=1), Recovered(unclean=True))
    bench.replica.dead(BrokerId("b"))
    bench.replica.draining(BrokerId("c"), True)
    bench.connects("c")
    bench.replica.assigned(assignment(isr="a", version=2), bench.now_ms)
    bench.later(100)
    bench.synced()
    assert bench.replica.owner is not None
    assert bench.replica.owner.peers[BrokerId("b")].dead
    assert bench.replica.owner.peers[BrokerId("c")].draining
    assert bench.replica.owner.begun_at == 1
    bench.synced()
    bench.holds("c")
    bench.acks("c", 2)
    assert bench.took(Swap) == []


def test_a_copy_that_has_lost_something_is_not_enough_while_a_dead_one_has_not_answered() -> None:
    bench = Bench(assignment("majority_durable"))
    bench.synced()
    bench.connects("b")
    bench.replica.dead(BrokerId("c"))
    bench.holds("b", 1, suspect=True)
    bench.later(5_000, hears="b")
    assert bench.replica.owner is not None
    assert bench.replica.owner.begun_at == 0
    bench.connects("c")
    bench.holds("c", 1)
    assert bench.replica.owner.begun_at == 1


def test_what_a_forced_election_has_kept_is_committed_whatever_the_floor() -> None:
    forced = Forced(epoch=Epoch(3), base=Index(4), base_epoch=Epoch(2), accepted_by="somebody")
    found = Recovered(end=5, promised=2, runs=((1, 1), (2, 3)))
    bench = Bench(assignment(isr="a", floor=2, forced=(forced,)), found)
    bench.synced()
    assert bench.replica.owner is not None
    assert bench.replica.owner.begun_at == 5
    assert bench.replica.journal.high_watermark == 5  # what it appends from now on waits for the floor
    bench.synced()
    assert bench.replica.journal.high_watermark == 5


def test_a_forced_election_commits_nothing_of_another_history() -> None:
    forced = Forced(epoch=Epoch(3), base=Index(4), base_epoch=Epoch(2), accepted_by="somebody")
    bench = Bench(assignment(isr="a", floor=2, forced=(forced,)), Recovered(end=5, promised=2, runs=((1, 1),)))
    bench.synced()
    assert bench.replica.journal.high_watermark == 1
