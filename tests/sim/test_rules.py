"""Limits, purges, tiers: a history that breaks the promise is reported, one that keeps it is not."""

from typing import Any

from headrace.client.lane import Receipt
from headrace.model.specs import QueueSpec, Spec, StreamSpec
from headrace.sim.checks import rules
from headrace.sim.checks.seen import Seen
from headrace.sim.history import Arrival, Attached, Delivery, History, Publish, Read
from headrace.wire.frames import Level


class Made:
    """A history of one queue or stream. Time stands where ``at`` was last set."""

    def __init__(self, spec: Spec) -> None:
        self.history = History()
        self.now = 0.0
        self.history.now = lambda: self.now
        self.history.broker_life = lambda: 1
        self.history.declared("q", spec)

    def confirmed(self, offset: int, **more: Any) -> Publish:
        note = self.history.publish("q", 1, **more)
        note.set_result(Receipt(0, offset, Level.LOCAL))
        return note

    def consumer(self, now: float, kind: str = "final") -> Attached:
        self.now = now
        return self.history.attach(f"client-{now}", kind, "q")

    def give(self, who: Attached, note: Publish, attempt: int = 1) -> None:
        self.now += 0.01
        offset = note.offset
        self.history.arrivals.append(Arrival(self.now, who.number, "q", 0, offset, 1, attempt, 1, False))
        self.history.deliveries.append(Delivery(self.now, who.number, "q", 0, offset, attempt, 1, note.id, False))

    def purge(self, now: float) -> None:
        self.now = now
        verb = self.history.verb("purge", "q")
        verb.outcome, verb.told_at = "done", now + 0.001

    def told(self, check: Any) -> list[str]:
        self.history.finished = self.history.emptied = self.now
        return [violation.text for violation in check(Seen(self.history, life=1))]


def test_a_queue_that_refuses_holds_no_more_than_its_limit() -> None:
    made = Made(QueueSpec(max_messages=2))
    notes = [made.confirmed(offset) for offset in range(3)]
    who = made.consumer(1.0)
    for note in notes[:2]:
        made.give(who, note)
    assert made.told(rules.limits) == []
    made.give(who, notes[2])
    assert "held 3 messages" in made.told(rules.limits)[0]


def test_what_came_after_the_last_consumer_is_not_counted() -> None:
    made = Made(QueueSpec(max_messages=1))
    first = made.confirmed(0)
    who = made.consumer(1.0)
    made.give(who, first)
    second = made.confirmed(1)
    made.give(who, second)
    assert made.told(rules.limits) == []


def test_room_is_made_by_the_oldest() -> None:
    made = Made(QueueSpec(max_messages=2, overflow="drop_oldest"))
    notes = [made.confirmed(offset) for offset in range(3)]
    who = made.consumer(1.0)
    made.give(who, notes[1])
    made.give(who, notes[2])
    assert made.told(rules.overflowed) == []


def test_room_made_by_the_newest_is_reported() -> None:
    made = Made(QueueSpec(max_messages=2, overflow="drop_oldest"))
    notes = [made.confirmed(offset) for offset in range(3)]
    who = made.consumer(1.0)
    made.give(who, notes[0])
    made.give(who, notes[2])
    (text,) = made.told(rules.overflowed)
    assert "q/0/1 was dropped to make room" in text


def test_a_message_that_somebody_had_may_outlive_newer_ones() -> None:
    made = Made(QueueSpec(max_messages=2, overflow="drop_oldest"))
    first = made.confirmed(0)
    made.give(made.consumer(0.5, "consumer"), first)
    made.confirmed(1)
    last = made.confirmed(2)
    who = made.consumer(1.0)
    made.give(who, first, attempt=2)
    made.give(who, last)
    assert made.told(rules.overflowed) == []


def test_what_a_purge_met_is_not_delivered_to_those_who_come_later() -> None:
    made = Made(QueueSpec())
    note = made.confirmed(0, delay_ms=2000)
    made.purge(1.0)
    later = made.confirmed(1)
    who = made.consumer(3.0)
    made.give(who, later)
    assert made.told(rules.purged) == []
    made.give(who, note)
    assert "q/0/0 arrived" in made.told(rules.purged)[0]


def test_what_was_leased_during_a_purge_stays() -> None:
    made = Made(QueueSpec())
    note = made.confirmed(0)
    made.give(made.consumer(0.5, "consumer"), note)
    made.purge(1.0)
    made.give(made.consumer(3.0), note, attempt=2)
    assert made.told(rules.purged) == []


def test_only_other_tiers_show_what_is_not_durable() -> None:
    for tier, found in (("durable", 1), ("speculative", 0)):
        made = Made(StreamSpec(tier=tier))  # type: ignore[arg-type]
        note = made.confirmed(0)
        who = made.consumer(1.0, "reader")
        made.history.reads.append(Read(1.0, who.number, "q", 0, 0, 1, note.id, True))
        assert len(made.told(rules.tiers)) == found
