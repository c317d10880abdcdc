"""Each check: a history that breaks the promise is reported, one that keeps it is not."""

from typing import Any

import pytest

from headrace.client.lane import Receipt
from headrace.model.errors import ConfirmTimeout, QueueFull
from headrace.model.specs import QueueSpec, Spec, StreamSpec
from headrace.sim.checks import judge, leases, messages, repartitions, shares, streams, times
from headrace.sim.checks.inside import told_figures
from headrace.sim.checks.seen import Seen
from headrace.sim.history import Arrival, Attached, Commit, Delivery, Event, History, Leased, Link, Publish, Read, Settle, Verb
from headrace.wire import control
from headrace.wire.frames import Level


class Made:
    """A history made by hand. Time stands where ``at`` was last set."""

    def __init__(self, **names: Spec) -> None:
        self.history = History()
        self.now = 0.0
        self.life = 1
        self.history.now = lambda: self.now
        self.history.broker_life = lambda: self.life
        for name, spec in (names or {"q": QueueSpec()}).items():
            self.history.declared(name, spec)

    def at(self, now: float) -> "Made":
        self.now = now
        return self

    def publish(self, name: str = "q", publisher: int = 1, **more: Any) -> Publish:
        return self.history.publish(name, publisher, **more)

    def confirmed(self, name: str = "q", offset: int = 0, publisher: int = 1, level: Level = Level.LOCAL, **more: Any) -> Publish:
        note = self.publish(name, publisher, **more)
        note.set_result(Receipt(0, offset, level))
        return note

    def consumer(self, name: str = "q", kind: str = "consumer", **more: Any) -> Attached:
        made = self.history.attach(f"client-{len(self.history.attached)}", kind, name)
        for field, value in more.items():
            setattr(made, field, value)
        return made

    def arrive(self, who: Attached, offset: int = 0, attempt: int = 1, epoch: int = 1, auto_ack: bool = False) -> None:
        self.history.arrivals.append(Arrival(self.now, who.number, who.name, 0, offset, 1, attempt, epoch, auto_ack))

    def give(self, who: Attached, id: int, offset: int = 0, attempt: int = 1, epoch: int = 1, *, auto_ack: bool = False, **grave: str) -> None:
        """Arrives and is handed to the application."""
        reason, origin = grave.get("reason", ""), grave.get("origin", "")
        self.arrive(who, offset, attempt, epoch, auto_ack)
        self.history.deliveries.append(
            Delivery(self.now, who.number, who.name, 0, offset, attempt, epoch, id, auto_ack, reason, origin)
        )

    def settle(self, who: Attached, id: int, offset: int = 0, attempt: int = 1, action: str = "ack", result: str = "done") -> Settle:
        made = Settle(self.now, who.number, who.name, 0, offset, attempt, id, action)
        made.result, made.told_at = result, self.now + 0.001 if result else 0.0
        self.history.settles.append(made)
        return made

    def read(self, who: Attached, id: int, offset: int, epoch: int = 1, speculative: bool = False) -> None:
        self.history.reads.append(Read(self.now, who.number, who.name, 0, offset, epoch, id, speculative))

    def verb(self, verb: str, name: str = "q", what: Any = None, count: int = 0, outcome: str = "done", rows: Any = None) -> Verb:
        made = self.history.verb(verb, name, what)
        made.outcome, made.count, made.told_at, made.rows = outcome, count, self.now + 0.001, rows
        return made

    def seen(self, **more: Any) -> Seen:
        if self.history.finished is None:
            self.history.finished = self.now
        return Seen(self.history, life=self.life, **more)


def told(check: Any, made: Made, **more: Any) -> list[str]:
    return [v.text for v in check(made.seen(**more))]


def test_a_quiet_history_is_fine() -> None:
    made = Made(q=QueueSpec(), s=StreamSpec())
    who = made.consumer()
    note = made.confirmed(offset=0)
    made.at(1.0).give(who, note.id)
    made.settle(who, note.id)
    record = made.confirmed("s", offset=0)
    made.read(made.consumer("s", kind="final"), record.id, 0)
    assert judge(made.seen()) == []


# ---------------------------------------------------------------- I1


def test_a_confirmed_message_that_nobody_got_is_lost() -> None:
    made = Made()
    made.confirmed(offset=3)
    (text,) = told(messages.lost, made)
    assert "message 0" in text
    assert "0/3" in text


def test_a_message_that_was_delivered_must_be_settled_too() -> None:
    made = Made()
    note = made.publish()
    note.set_exception(ConfirmTimeout("?"))
    made.give(made.consumer(), note.id)
    assert told(messages.lost, made)
    made.settle(made.history.attached[0], note.id, result="")
    assert not told(messages.lost, made)


def test_a_stale_ack_ends_nothing_unless_its_first_answer_was_lost() -> None:
    made = Made()
    note = made.confirmed()
    who = made.consumer()
    made.give(who, note.id)
    made.settle(who, note.id, result="stale")
    assert told(messages.lost, made)
    made.history.links.append(Link(made.now, who.client, False))
    assert not told(messages.lost, made)


def test_an_ack_sent_after_the_next_attempt_arrived_elsewhere_ends_nothing() -> None:
    made = Made()
    note = made.confirmed()
    one, two = made.consumer(), made.consumer()
    made.give(one, note.id)
    made.at(1.0).arrive(two, attempt=2)
    made.at(2.0).settle(one, note.id, result="")
    assert told(messages.lost, made)
    made.arrive(one, attempt=3)  # the lease it settled may have been this one
    assert not told(messages.lost, made)


@pytest.mark.parametrize("spec", [QueueSpec(ttl_ms=500), QueueSpec(max_age_ms=500), QueueSpec(overflow="drop_oldest", max_messages=1)])
def test_limits_and_expiry_account_for_a_loss(spec: QueueSpec) -> None:
    made = Made(q=spec)
    made.confirmed()
    made.at(1.0)
    assert not told(messages.lost, made)


def test_an_expiry_that_is_not_due_accounts_for_nothing_unless_the_clock_was_set() -> None:
    made = Made(q=QueueSpec(ttl_ms=5000))
    made.confirmed()
    made.at(1.0)
    assert told(messages.lost, made)
    assert not told(messages.lost, made, jumped=True)


def test_an_expired_message_of_a_queue_with_dead_letters_must_be_among_them() -> None:
    made = Made(q=QueueSpec(ttl_ms=500, dead_letter="dead"), dead=QueueSpec())
    note = made.confirmed()
    made.at(1.0)
    assert told(messages.lost, made)
    who = made.consumer("dead")
    made.give(who, note.id, reason="expired", origin="q")
    made.settle(who, note.id)
    assert not told(messages.lost, made)


def test_a_rejected_message_goes_to_the_dead_letters() -> None:
    made = Made(q=QueueSpec(dead_letter="dead"), dead=QueueSpec())
    who = made.consumer()
    note = made.confirmed()
    made.give(who, note.id)
    made.settle(who, note.id, action="reject")
    assert told(messages.lost, made)


def test_a_purge_accounts_for_as_many_as_it_says() -> None:
    made = Made()
    made.confirmed(offset=0)
    made.confirmed(offset=1)
    made.at(1.0).verb("purge", count=2)
    assert not told(messages.lost, made)
    made.history.verbs[0].count = 1
    assert told(messages.lost, made)
    made.history.verbs[0].outcome = "unknown"
    assert not told(messages.lost, made)


def test_what_was_only_accepted_may_be_lost_with_the_broker() -> None:
    made = Made()
    made.confirmed(level=Level.ACCEPTED)
    assert told(messages.lost, made)
    made.life = 2
    assert not told(messages.lost, made)


def test_auto_ack_and_last_attempts_end_a_message() -> None:
    made = Made(q=QueueSpec(max_deliveries=2))
    note = made.confirmed()
    who = made.consumer()
    made.give(who, note.id)
    assert told(messages.lost, made)
    made.give(who, note.id, attempt=2)
    assert not told(messages.lost, made)
    made = Made()
    note = made.confirmed()
    made.give(made.consumer(), note.id, auto_ack=True)
    assert not told(messages.lost, made)


def test_damage_accounts_for_a_loss() -> None:
    made = Made()
    made.confirmed()
    assert told(messages.lost, made)
    assert not told(messages.lost, made, damage={("q", 0)})


# ---------------------------------------------------------------- I2


def test_what_nobody_published_or_what_was_refused_is_given_to_nobody() -> None:
    made = Made()
    who = made.consumer()
    made.give(who, -1)
    made.give(who, 77)
    note = made.publish()
    note.set_exception(QueueFull("no room"))
    made.give(who, note.id)
    assert len(told(messages.from_nowhere, made)) == 3
    made = Made()
    note = made.publish()
    note.set_exception(ConfirmTimeout("?"))
    made.give(made.consumer(), note.id)
    assert not told(messages.from_nowhere, made)


def test_messages_stay_where_they_belong() -> None:
    made = Made(q=QueueSpec(), other=QueueSpec())
    note = made.confirmed()
    made.give(made.consumer("other"), note.id)
    assert told(messages.from_nowhere, made)
    made.verb("move", what="other")
    assert not told(messages.from_nowhere, made)


def test_a_redriven_message_may_come_home() -> None:
    made = Made(q=QueueSpec(dead_letter="dead"), dead=QueueSpec())
    note = made.confirmed("dead")
    made.give(made.consumer("q"), note.id)
    assert told(messages.from_nowhere, made)
    made.verb("redrive", "dead", what="")
    assert not told(messages.from_nowhere, made)


def test_a_filter_lets_through_what_it_says() -> None:
    made = Made()
    note = made.confirmed(mark="a")
    made.give(made.consumer(filter="kind = a"), note.id)
    assert not told(messages.from_nowhere, made)
    made.give(made.consumer(filter="kind = b"), note.id)
    made.give(made.consumer(filter="not exists kind"), note.id)
    assert len(told(messages.from_nowhere, made)) == 2


# ---------------------------------------------------------------- I3, I4, I11


def test_a_place_has_one_value() -> None:
    made = Made()
    first, second = made.confirmed(offset=0), made.confirmed(offset=1)
    made.give(made.consumer(), first.id, offset=0)
    assert not told(messages.one_value, made)
    made.give(made.consumer(), first.id, offset=1)
    (text,) = told(messages.one_value, made)
    assert str(second.id) in text


def test_an_ephemeral_stream_may_hold_another_value_in_another_epoch() -> None:
    for epoch, wrong in ((1, 1), (2, 0)):
        made = Made(s=StreamSpec(tier="ephemeral"))
        first, second = made.publish("s"), made.publish("s")
        who = made.consumer("s", kind="reader")
        made.read(who, first.id, 0, epoch=1)
        made.read(who, second.id, 0, epoch=epoch)
        assert len(told(messages.one_value, made)) == wrong


def test_a_publisher_s_messages_are_stored_in_order() -> None:
    made = Made()
    made.confirmed(offset=5)
    made.confirmed(offset=6)
    made.confirmed(offset=0, publisher=2)
    assert not told(messages.out_of_order, made)
    made.confirmed(offset=4)
    assert told(messages.out_of_order, made)


def test_a_place_known_only_from_a_delivery_counts_for_order() -> None:
    made = Made()
    note = made.publish()
    made.confirmed(offset=2)
    made.give(made.consumer(), note.id, offset=3)
    assert told(messages.out_of_order, made)


def test_a_message_that_was_redriven_is_in_order_where_it_was_first() -> None:
    made = Made(q=QueueSpec(dead_letter="dead"), dead=QueueSpec())
    made.verb("redrive", "dead", what="")
    note = made.confirmed(offset=1)
    made.confirmed(offset=2)
    made.give(made.consumer(), note.id, offset=3)
    assert not told(messages.out_of_order, made)
    made.confirmed(offset=0)
    assert told(messages.out_of_order, made)


def test_an_idempotent_publish_is_stored_once() -> None:
    for idempotent, wrong in ((True, 1), (False, 0)):
        made = Made()
        note = made.confirmed(offset=0, idempotent=idempotent)
        made.give(made.consumer(), note.id, offset=1)
        assert len(told(messages.stored_twice, made)) == wrong


def test_an_idempotent_record_is_read_at_one_place() -> None:
    made = Made(s=StreamSpec())
    note, who = made.publish("s"), made.consumer("s", kind="reader")
    made.read(who, note.id, 0)
    made.read(who, note.id, 0)
    assert not told(messages.stored_twice, made)
    made.read(who, note.id, 1)
    assert told(messages.stored_twice, made)


def test_of_a_message_that_was_moved_one_copy_is_done_with() -> None:
    made = Made(q=QueueSpec(), other=QueueSpec())
    made.verb("move", what="other")
    note, one, two = made.confirmed(), made.consumer(), made.consumer("other")
    made.give(one, note.id)
    made.give(two, note.id)
    made.settle(two, note.id)
    assert not told(messages.stored_twice, made)
    made.settle(one, note.id)
    assert told(messages.stored_twice, made)


# ---------------------------------------------------------------- I9, I10


def test_a_second_attempt_needs_a_reason() -> None:
    def made_by(more: Any) -> list[str]:
        made = Made(q=QueueSpec(lease_ms=1000))
        who = made.consumer()
        note = made.confirmed()
        made.give(who, note.id)
        more(made, who, note)
        made.give(who, note.id, attempt=2)
        return told(leases.unexplained, made)

    assert made_by(lambda made, who, note: made.at(0.5))
    assert not made_by(lambda made, who, note: made.at(1.0))
    assert not made_by(lambda made, who, note: made.settle(who, note.id, action="retry", result=""))
    assert not made_by(lambda made, who, note: made.history.links.append(Link(0.0, who.client, False)))
    assert not made_by(lambda made, who, note: setattr(made.consumer(), "until", 0.0))


def test_attempts_stay_within_their_limit() -> None:
    made = Made(q=QueueSpec(max_deliveries=2))
    note, who = made.confirmed(), made.consumer()
    made.at(100.0).give(who, note.id, attempt=2)
    assert not told(leases.unexplained, made)
    made.give(who, note.id, attempt=3)
    made.give(who, note.id, attempt=0)
    assert len(told(leases.unexplained, made)) == 2


def test_an_attempt_is_handed_out_once_in_an_epoch() -> None:
    made = Made()
    note, one, two = made.confirmed(), made.consumer(), made.consumer()
    made.give(one, note.id)
    made.arrive(two)  # returned before anybody looked at it
    made.give(two, note.id, epoch=2)
    made.give(two, note.id, attempt=2, epoch=2)
    assert not told(leases.leased_twice, made)
    made.give(two, note.id)
    assert told(leases.leased_twice, made)


def test_two_consumers_do_not_settle_one_message() -> None:
    made = Made()
    note, one, two = made.confirmed(), made.consumer(), made.consumer()
    made.give(one, note.id)
    made.give(two, note.id, attempt=2)
    made.settle(two, note.id, attempt=2)
    made.settle(one, note.id, result="stale")
    assert not told(leases.leased_twice, made)
    made.settle(one, note.id)
    assert told(leases.leased_twice, made)


def test_nothing_comes_after_a_confirmed_ack() -> None:
    made = Made()
    note, one, two = made.confirmed(), made.consumer(), made.consumer()
    made.give(one, note.id)
    made.at(1.0).give(two, note.id, attempt=2)
    made.at(2.0).settle(two, note.id, attempt=2)
    made.at(3.0).arrive(one, attempt=1)  # it was on its way for long
    assert not told(leases.leased_twice, made)
    made.arrive(one, attempt=1, epoch=2)
    assert told(leases.leased_twice, made)
    made.history.arrivals.pop()
    made.arrive(one, attempt=3)
    assert told(leases.leased_twice, made)


def test_a_late_settlement_does_not_count() -> None:
    def made_by(more: Any = None, *, result: str = "done", leased: Leased | None = Leased(attempt=2, epoch=1, until=2.5)) -> list[str]:
        made = Made()
        note, one, two = made.confirmed(), made.consumer(until=9.0, leaving=9.0), made.consumer(until=9.0, leaving=9.0)
        made.give(one, note.id)
        made.at(1.0).arrive(two, attempt=2)
        late = made.at(2.0).settle(one, note.id, action="retry", result=result)
        late.leased = leased
        if more is not None:
            more(made, one, two, note)
        return told(leases.settled_for_others, made)

    assert made_by()
    assert not made_by(result="stale")
    assert not made_by(leased=None)  # nobody had it, or nobody could see who
    assert not made_by(leased=Leased(attempt=3, epoch=1, until=2.5))  # granted to somebody else, and on its way
    assert not made_by(leased=Leased(attempt=2, epoch=1, until=2.0))  # it ran out before the answer
    assert not made_by(lambda made, one, two, note: made.at(1.5).settle(two, note.id, attempt=2, action="retry", result=""))
    assert not made_by(lambda made, one, two, note: setattr(two, "leaving", 1.5))
    assert not made_by(lambda made, one, two, note: setattr(two, "group", "team"))
    assert not made_by(lambda made, one, two, note: made.at(1.5).verb("purge_leased"))
    assert made_by(lambda made, one, two, note: made.at(1.5).verb("describe"))
    assert not made_by(lambda made, one, two, note: made.history.links.append(Link(1.5, two.client, False)))
    assert not made_by(lambda made, one, two, note: made.history.links.append(Link(2.5, two.client, False)))  # it may not have noticed earlier
    assert not made_by(lambda made, one, two, note: made.history.links.append(Link(2.0, one.client, False)))
    assert made_by(lambda made, one, two, note: made.history.links.append(Link(9.5, two.client, False)))  # they close what they left
    assert made_by(lambda made, one, two, note: made.history.links.append(Link(9.5, one.client, False)))


def test_a_confirmed_retry_counts_for_ever() -> None:
    made = Made()
    note, who = made.confirmed(), made.consumer()
    made.give(who, note.id)
    made.settle(who, note.id, action="retry")
    made.at(1.0).give(who, note.id, attempt=2, epoch=2)
    assert not told(leases.leased_twice, made)
    made.at(2.0).arrive(who, attempt=1, epoch=3)
    assert told(leases.leased_twice, made)


def test_a_key_s_messages_come_one_after_the_other() -> None:
    made = Made(q=QueueSpec(ordered_by_key=True))
    first, second = made.confirmed(offset=0, key="k"), made.confirmed(offset=1, key="k")
    one, two = made.consumer(), made.consumer()
    made.at(1.0).give(one, first.id)
    made.at(2.0).give(two, first.id, attempt=2)
    made.at(3.0).give(two, second.id, offset=1)
    made.at(4.0).arrive(one)  # from long ago
    assert not told(leases.key_order, made)
    made.at(5.0).give(one, first.id, attempt=3)
    assert told(leases.key_order, made)


def test_a_new_epoch_begins_each_key_again_and_other_keys_do_not_wait() -> None:
    made = Made(q=QueueSpec(ordered_by_key=True))
    first, second, other = (made.confirmed(offset=i, key=key) for i, key in enumerate("kkx"))
    who = made.consumer()
    made.at(1.0).give(who, other.id, offset=2)
    made.at(2.0).give(who, second.id, offset=1)
    made.at(3.0).give(who, first.id, epoch=2)
    assert not told(leases.key_order, made)


def test_a_message_dies_once_and_of_something() -> None:
    made = Made(q=QueueSpec(max_deliveries=1, dead_letter="dead"), dead=QueueSpec())
    note, who = made.confirmed(), made.consumer("dead")
    made.give(who, note.id, offset=0, reason="max-deliveries", origin="q")
    assert not told(leases.dead_letters, made)
    made.give(who, note.id, offset=1, reason="max-deliveries", origin="q")
    assert told(leases.dead_letters, made)
    for reason in ("rejected", "expired", "overflow"):
        made = Made(q=QueueSpec(max_deliveries=1, dead_letter="dead"), dead=QueueSpec())
        note = made.confirmed()
        made.give(made.consumer("dead"), note.id, reason=reason, origin="q")
        assert told(leases.dead_letters, made)


# ---------------------------------------------------------------- streams


def stream(*offsets: int, spec: StreamSpec | None = None, count: int = 4, **more: Any) -> Made:
    """A stream of which ``count`` records were confirmed and the reading at the end found those offsets."""
    made = Made(s=spec or StreamSpec())
    for offset in range(count):
        made.confirmed("s", offset=offset, **more)
    who = made.at(10.0).consumer("s", kind="final")
    for offset in offsets:
        made.read(who, offset, offset)
    return made


def test_a_stream_keeps_what_it_confirmed() -> None:
    assert not told(streams.lost, stream(0, 1, 2, 3))
    assert told(streams.lost, stream(0, 1, 2))
    assert told(streams.lost, stream(1, 2, 3))
    assert told(streams.lost, stream(0, 2, 3))
    assert len(told(streams.lost, stream())) == 4


def test_retention_takes_the_oldest_and_no_more_than_it_may() -> None:
    assert not told(streams.lost, stream(2, 3, spec=StreamSpec(retention_records=2)))
    assert told(streams.lost, stream(3, spec=StreamSpec(retention_records=2)))
    assert told(streams.lost, stream(0, 2, 3, spec=StreamSpec(retention_records=1)))
    assert not told(streams.lost, stream(3, spec=StreamSpec(retention_ms=9000)))
    assert told(streams.lost, stream(3, spec=StreamSpec(retention_ms=11_000)))
    assert not told(streams.lost, stream(3, spec=StreamSpec(retention_bytes=10)))
    assert told(streams.lost, stream(3, spec=StreamSpec(retention_bytes=100_000)))
    made = stream(3)
    made.verb("trim", "s")
    assert not told(streams.lost, made)


def test_compaction_keeps_the_last_of_each_key() -> None:
    compacted = StreamSpec(compaction=True)
    assert not told(streams.lost, stream(3, spec=compacted, key="k"))
    assert told(streams.lost, stream(0, 1, 2, spec=compacted, key="k"))
    made = stream(spec=compacted, count=1, key="k")
    assert told(streams.lost, made)
    made.confirmed("s", offset=1, key="k", null=True)  # the key was deleted, and its tombstone is gone too
    assert not told(streams.lost, made)
    assert told(streams.lost, stream(3, spec=compacted))


def test_what_was_read_does_not_change_or_vanish() -> None:
    made = stream(0, 1, 2, 3)
    extra = made.publish("s")
    who = made.consumer("s", kind="reader")
    made.read(who, extra.id, 4)
    assert told(streams.lost, made)
    made = stream(0, 1, 2, 3)
    extra = made.publish("s")
    made.read(made.consumer("s", kind="reader"), extra.id, 4, speculative=True)
    assert not told(streams.lost, made)
    made = stream(0, 1, 2, 3)
    made.read(made.consumer("s", kind="reader"), made.publish("s").id, 2)
    made.history.publishes[2].outcome = "unknown"
    assert told(streams.lost, made)


def test_a_reader_skips_nothing_and_does_not_go_back() -> None:
    def reads(*offsets: int, event: str = "", **more: Any) -> list[str]:
        made = Made(s=StreamSpec())
        who = made.consumer("s", kind="reader", **more)
        for offset in offsets:
            made.read(who, made.publish("s").id, offset)
        if event:
            made.history.events.append(Event(made.now, who.number, "s", event, 0, 0))
        return told(streams.gaps, made)

    assert not reads(5, 6, 7)
    assert reads(5, 7)
    assert reads(5, 5)
    assert reads(5, 4)
    assert not reads(5, 7, event="moved")
    assert not reads(5, 4, event="retracted")
    assert not reads(5, 7, filter="kind = a")


def test_a_cursor_neither_falls_back_nor_skips() -> None:
    def goes_on_at(offset: int, verb: str = "") -> list[str]:
        made = Made(s=StreamSpec())
        ids = [made.confirmed("s", offset=i).id for i in range(10)]
        one = made.consumer("s", kind="reader", cursor="c")
        for i in range(4):
            made.read(one, ids[i], i)
        commit = Commit(made.now, one.number, "s", "c", 0, 2)
        commit.result, commit.told_at = "done", 1.0
        made.history.commits.append(commit)
        two = made.at(2.0).consumer("s", kind="reader", cursor="c")
        made.read(two, ids[offset], offset)
        if verb:
            made.verb(verb, "s")
        return told(streams.cursors, made)

    assert goes_on_at(2)
    assert not goes_on_at(3)
    assert not goes_on_at(4)
    assert goes_on_at(5)
    assert not goes_on_at(5, "set_cursor")
    assert not goes_on_at(5, "trim")


# ---------------------------------------------------------------- what is told, what is left out


def test_told_figures_add_up() -> None:
    made = Made()
    row = control.PartitionInfo(partition=0, id=1, epoch=1, state="serving", ready=1, leased=2, delayed=3, settled=4, high_watermark=10)
    made.verb("describe", rows=(row,))
    assert not told(told_figures, made)
    made.verb("describe", rows=(control.PartitionInfo(partition=0, id=1, epoch=1, state="serving", ready=1, high_watermark=2),))
    assert told(told_figures, made)


def test_names_that_were_made_anew_are_left_out_but_for_what_nobody_published() -> None:
    made = Made()
    made.verb("recreate")
    who = made.consumer()
    first, second = made.confirmed(offset=0), made.confirmed(offset=0)
    made.give(who, first.id)
    made.give(who, second.id)
    assert judge(made.seen()) == []
    made.give(who, 99)
    assert [v.invariant for v in judge(made.seen())] == ["I2"]


# ---------------------------------------------------------------- times


def test_a_delayed_message_comes_when_it_is_due() -> None:
    for now, wrong in ((0.4, 1), (0.5, 0)):
        made = Made()
        note = made.confirmed(delay_ms=500)
        made.at(now).give(made.consumer(), note.id)
        assert len(told(times.too_early, made)) == wrong
        assert not told(times.too_early, made, jumped=True)


def test_a_retried_message_comes_after_its_delay_or_the_queue_s_back_off() -> None:
    for now, delay_ms, wrong in ((0.1, 200, 1), (0.3, 200, 0), (0.3, -1, 1), (0.6, -1, 0)):
        made = Made(q=QueueSpec(backoff_ms=(500,)))
        note, who = made.confirmed(), made.consumer()
        made.give(who, note.id)
        made.settle(who, note.id, action="retry").delay_ms = delay_ms
        made.at(now).give(who, note.id, attempt=2)
        assert len(told(times.too_early, made)) == wrong


def test_nobody_who_comes_later_is_given_what_expired() -> None:
    made = Made()
    note, early = made.confirmed(ttl_ms=500), made.consumer()
    made.at(2.0).give(early, note.id)  # it may have been on its way for long
    assert not told(times.expiry, made)
    made.give(made.consumer(), note.id, attempt=2)
    assert told(times.expiry, made)


def test_nothing_expires_before_its_time() -> None:
    for now, wrong in ((0.4, 1), (0.6, 0)):
        made = Made(q=QueueSpec(ttl_ms=500, dead_letter="dead"), dead=QueueSpec())
        note = made.confirmed()
        made.at(now).give(made.consumer("dead"), note.id, reason="expired", origin="q")
        assert len(told(times.expiry, made)) == wrong


def test_an_extended_lease_lasts() -> None:
    def taken_at(now: float, *more: Any) -> list[str]:
        made = Made(q=QueueSpec(lease_ms=1000))
        note, one, two = made.confirmed(), made.consumer(), made.consumer()
        made.give(one, note.id)
        made.at(0.9).settle(one, note.id, action="extend")
        for act in more:
            act(made, one, note)
        made.at(now).give(two, note.id, attempt=2)
        return told(times.extended, made)

    assert taken_at(1.5)
    assert not taken_at(1.9)
    assert not taken_at(1.5, lambda made, one, note: setattr(one, "leaving", 1.0))
    assert not taken_at(1.5, lambda made, one, note: made.settle(one, note.id, action="retry"))
    assert not taken_at(1.5, lambda made, one, note: made.history.links.append(Link(1.0, one.client, False)))


def test_a_paused_queue_gives_nothing_new() -> None:
    made = Made()
    made.verb("pause", rows=(1.0, 2.0))
    old = made.confirmed(offset=0)
    who = made.consumer()
    made.at(1.5).give(who, old.id)  # granted before
    assert not told(times.paused, made)
    new = made.at(1.2).confirmed(offset=1)
    made.at(1.5).give(who, new.id, offset=1)
    assert told(times.paused, made)


def test_who_comes_last_is_given_the_highest_priority_first_and_then_the_oldest() -> None:
    def given(*order: int) -> list[str]:
        made = Made()
        ids = [made.confirmed(offset=i, priority=priority).id for i, priority in enumerate((0, 2, 0))]
        who = made.at(1.0).consumer(kind="final")
        for offset in order:
            made.give(who, ids[offset], offset=offset)
        return told(times.ready_order, made)

    assert not given(1, 0, 2)
    assert given(0, 1, 2)
    assert given(1, 2, 0)


# ---------------------------------------------------------------- restarts, shares, starts


def test_durable_delivery_counts_survive_a_restart() -> None:
    def again(attempt: int, *, durable: bool) -> list[str]:
        made = Made()
        first, one, two = made.confirmed(offset=0), made.consumer(), made.consumer()
        made.at(1.0).give(one, first.id)
        if durable:
            second = made.at(2.0).confirmed(offset=1)
            made.give(one, second.id, offset=1)
        made.at(3.0).give(two, first.id, epoch=2, attempt=attempt)
        return told(leases.lost_at_a_restart, made)

    assert again(1, durable=True)
    assert not again(2, durable=True)
    assert not again(1, durable=False)


def test_a_partition_of_a_cohort_is_one_member_s() -> None:
    def served(*members: int, change: bool = False) -> list[str]:
        made = Made()
        both = [made.consumer(group="team") for _ in range(2)]
        for number, member in enumerate(members):
            made.at(10.0 + number).give(both[member], made.confirmed(offset=number).id, offset=number)
        if change:
            made.history.events.append(Event(11.5, 1, "q", "assigned", 0, 0))
        return told(shares.interleaved, made)

    assert not served(0, 0, 1, 1)
    assert served(0, 1, 0)
    assert not served(0, 1, 0, change=True)


def test_the_start_of_a_stream_does_not_go_back() -> None:
    made = Made(s=StreamSpec())
    ids = [made.confirmed("s", offset=i).id for i in range(3)]
    made.read(made.consumer("s", kind="reader", start="earliest"), ids[1], 1)
    made.read(made.consumer("s", kind="final"), ids[1], 1)
    assert not told(streams.starts, made)
    made.read(made.consumer("s", kind="final"), ids[0], 0)
    assert told(streams.starts, made)


def test_a_start_that_was_told_does_not_go_back_once_something_later_is_durable() -> None:
    def looks(*starts: int, published: bool = True) -> list[str]:
        made = Made(s=StreamSpec())
        for number, start in enumerate(starts):
            row = control.PartitionInfo(partition=0, id=1, epoch=1, state="serving", start_offset=start)
            made.at(1.0 + number).verb("describe", "s", rows=(row,))
            if published:
                made.at(1.5 + number).confirmed("s", offset=10 + number)
        return [v.text for v in streams.told_starts(Seen(made.history, life=2, lives=[(0.0, 1.8), (1.9, float("inf"))]))]

    assert looks(5, 0)
    assert not looks(5, 5, 7)
    assert not looks(5, 0, published=False)


def test_who_pauses_twice_may_not_have_resumed_between() -> None:
    made = Made()
    made.verb("pause", rows=(0.5, 0.9)).told_at = 0.95
    made.verb("pause", rows=(1.0, 2.0))
    new = made.at(1.2).confirmed(offset=0)
    made.at(1.5).give(made.consumer(), new.id)
    assert told(times.paused, made)
    made.verb("pause", rows=(1.1, 1.4)).told_at = 1.45  # another operator, who resumes it meanwhile
    assert not told(times.paused, made)


def test_who_was_shown_what_was_taken_back_is_told() -> None:
    def goes_on(offset: int, event: str = "", cursor: str = "") -> list[str]:
        made = Made(s=StreamSpec(tier="speculative"))
        ids = [made.publish("s").id for _ in range(4)]
        who = made.consumer("s", kind="reader", cursor=cursor)
        made.read(who, ids[0], 1, speculative=True)
        made.read(who, ids[1], offset, epoch=2)
        if event:
            made.history.events.append(Event(made.now, who.number, "s", event, 0, 1))
        end = made.consumer("s", kind="final")
        for place, id in enumerate(ids[1:]):
            made.read(end, id, place, epoch=2)
        return told(streams.not_told, made)

    assert goes_on(2)
    assert goes_on(1)
    assert not goes_on(1, "retracted")
    assert not goes_on(1, cursor="c")  # it begins again at its cursor
    assert not goes_on(2, "retracted")


def moved(settled_at: float, came_at: float, *, force: bool = False) -> list[str]:
    """One key: a message in partition 0, then one in partition 1 that came at that time."""
    made = Made()
    verb = made.at(1).history.verb("repartition", "q", (2, force))
    verb.outcome = "done"
    who = made.consumer()
    first, second = made.publish(key="k"), made.publish(key="k")
    first.set_result(Receipt(0, 0, Level.LOCAL))
    second.set_result(Receipt(1, 0, Level.LOCAL))
    made.at(2).give(who, first.id)
    made.at(settled_at).settle(who, first.id)
    made.at(came_at).history.arrivals.append(Arrival(came_at, who.number, "q", 1, 0, 1, 1, 1, False))
    return [violation.invariant for violation in judge(Seen(made.history), (repartitions.key_order,))]


def test_a_key_that_moved_waits_for_what_is_in_hand() -> None:
    assert moved(3.0, 2.5) == ["key order"]
    assert moved(3.0, 3.5) == []
    assert moved(3.0, 2.5, force=True) == []
