from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client.lane import PIPELINE, QUEUE_BATCH_RECORDS_MAX, Envelope, Frame, Lane, Receipt
from headrace.model.errors import ConfirmTimeout, Draining, HeadraceError, NotConnected, NotFound, QueueFull, StaleRouting, UnknownOutcome
from headrace.model.ids import NO_PRODUCER
from headrace.wire.batch import Record, batch_info, decode_batch
from headrace.wire.frames import ENVELOPE, Level

PLAIN = Envelope()


class Waiter:
    def __init__(self) -> None:
        self.result: Any = None

    def done(self) -> bool:
        return self.result is not None

    def set_result(self, result: Any, /) -> None:
        assert self.result is None, "answered twice"
        self.result = result

    def set_exception(self, exception: BaseException, /) -> None:
        self.set_result(exception)


class Lanes:
    """A lane with what happened to it."""

    def __init__(self, producer_id: int = 7, *, keeps: bool = True) -> None:
        self.done: list[tuple[Frame, HeadraceError | None]] = []
        self.lane = Lane(0, producer_id, lambda f, e: self.done.append((f, e)), keeps=keeps)
        self.lane.channel = 3

    def add(self, text: str, envelope: Envelope = PLAIN, deadline_ms: int = 100) -> Waiter:
        waiter = Waiter()
        self.lane.add(envelope, Record(key=None, value=text.encode(), timestamp_ms=1), 100, waiter, deadline_ms)
        return waiter

    def take(self) -> list[bytes]:
        out: list[bytes] = []
        self.lane.take(out, 1 << 30)
        return out


def values(frame: bytes) -> list[str]:
    return [(r.value or b"").decode() for r in decode_batch(frame, ENVELOPE.size)]


def test_a_lone_message_goes_at_once_and_what_comes_meanwhile_is_one_batch() -> None:
    lanes = Lanes()
    for i in range(PIPELINE):
        lanes.add(str(i))
        assert [values(f) for f in lanes.take()] == [[str(i)]]
    for text in "abc":
        lanes.add(text)
        assert lanes.take() == []
    lanes.lane.confirmed(0, 1, 0, 2, False)
    (frame,) = lanes.take()
    assert values(frame) == ["a", "b", "c"]
    assert batch_info(frame, ENVELOPE.size).base_sequence == PIPELINE
    assert ENVELOPE.unpack_from(frame)[4] == PIPELINE


def test_receipts_carry_the_offset_of_each_message() -> None:
    lanes = Lanes()
    waiters = [lanes.add(t) for t in "abc"]
    lanes.take()
    lanes.lane.confirmed(0, 1, 40, 3, False)
    assert [w.result for w in waiters] == [Receipt(0, 40 + i, Level.MAJORITY) for i in range(3)]
    assert lanes.lane.count == lanes.lane.nbytes == 0


def test_one_confirm_covers_many_frames_densely() -> None:
    lanes = Lanes()
    waiters = []
    for pair in ("ab", "cd", "ef"):
        waiters += [lanes.add(t) for t in pair]
        lanes.take()
    lanes.lane.confirmed(0, 3, 10, 2, False)
    assert [w.result.offset for w in waiters] == [10, 11, 12, 13, 14, 15]


def test_frames_are_homogeneous_and_in_order() -> None:
    lanes = Lanes()
    urgent = Envelope(priority=9)
    for text, envelope in (("a", PLAIN), ("b", urgent), ("c", urgent), ("d", PLAIN)):
        lanes.add(text, envelope)
    frames = lanes.take()
    assert [values(f) for f in frames] == [["a"], ["b", "c"], ["d"]]
    assert [ENVELOPE.unpack_from(f)[7] for f in frames] == [0, 9, 0]


def test_what_is_sealed_is_sent_even_when_the_pipeline_is_full() -> None:
    lanes = Lanes()
    for i in range(PIPELINE * 3):
        lanes.add(str(i), Envelope(key_slot=i))
    assert len(lanes.take()) == PIPELINE * 3 - 1


def test_a_batch_has_an_end() -> None:
    lanes = Lanes()
    for _ in range(QUEUE_BATCH_RECORDS_MAX + 1):
        lanes.add("x")
    assert [len(values(f)) for f in lanes.take()] == [QUEUE_BATCH_RECORDS_MAX, 1]


def test_after_a_broken_connection_the_same_bytes_are_sent_again() -> None:
    lanes = Lanes()
    first = []
    for text in "abc":
        lanes.add(text)
        first += lanes.take()
    lanes.lane.confirmed(1, 1, 5, 2, False)
    again: list[bytes] = []
    lanes.lane.again(again)
    assert again == [first[0], first[2]]


def test_a_refusal_is_told_to_its_own_messages_only() -> None:
    lanes = Lanes()
    a = lanes.add("a")
    lanes.take()
    b = lanes.add("b")
    lanes.take()
    lanes.lane.refused(0, 1, QueueFull("full"))
    lanes.lane.confirmed(1, 1, 0, 2, False)
    assert isinstance(a.result, QueueFull)
    assert b.result == Receipt(0, 0, Level.LOCAL)
    assert isinstance(lanes.done[0][1], QueueFull)


def test_a_broker_that_goes_away_has_not_answered() -> None:
    lanes = Lanes()
    waiter = lanes.add("a")
    (frame,) = lanes.take()
    lanes.lane.refused(0, 1, Draining("bye"))
    assert waiter.result is None
    again: list[bytes] = []
    lanes.lane.again(again)
    assert again == [frame]


@pytest.mark.parametrize(
    ("producer_id", "error", "expected"),
    [(7, QueueFull, QueueFull), (NO_PRODUCER, QueueFull, UnknownOutcome), (7, NotFound, UnknownOutcome), (NO_PRODUCER, NotFound, UnknownOutcome)],
)
def test_what_is_refused_when_it_is_sent_again_may_have_been_stored_the_first_time(
    producer_id: int, error: type[HeadraceError], expected: type[HeadraceError]
) -> None:
    lanes = Lanes(producer_id)
    sent = lanes.add("a")
    lanes.take()
    lanes.lane.again([])
    new = lanes.add("b")
    lanes.take()
    lanes.lane.refused(0, 2, error("no"))
    assert type(sent.result) is expected
    assert type(new.result) is error


def test_what_a_broker_that_goes_away_refused_was_not_stored() -> None:
    lanes = Lanes(NO_PRODUCER)
    sent = lanes.add("a")
    lanes.take()
    lanes.lane.refused(0, 1, Draining("bye"))
    lanes.lane.again([])
    lanes.lane.refused(0, 1, QueueFull("full"))
    assert type(sent.result) is QueueFull


def test_a_confirm_that_counts_in_what_waited_too_long_gives_the_others_their_own_offsets() -> None:
    lanes = Lanes()
    late = [lanes.add(text) for text in ("a", "b")]
    lanes.take()
    kept = lanes.add("c", deadline_ms=500)
    lanes.take()
    lanes.lane.expire(200)
    assert all(isinstance(waiter.result, ConfirmTimeout) for waiter in late)
    lanes.lane.confirmed(0, 2, 5, 2, False)
    assert kept.result == Receipt(0, 7, Level.LOCAL, False)


def test_after_a_new_connection_a_confirm_no_longer_counts_in_what_was_given_up_before() -> None:
    lanes = Lanes()
    lanes.add("a")
    lanes.take()
    kept = lanes.add("b", deadline_ms=500)
    lanes.take()
    lanes.lane.expire(200)
    lanes.lane.again([])
    lanes.lane.confirmed(1, 1, 5, 2, False)
    assert kept.result.offset == 5


def test_waiting_too_long_is_an_unknown_outcome_and_a_late_confirm_changes_nothing() -> None:
    lanes = Lanes()
    sent = lanes.add("a", deadline_ms=100)
    lanes.take()
    unsent = lanes.add("b", deadline_ms=150)
    assert lanes.lane.expire(99) == 100
    lanes.lane.expire(100)
    assert isinstance(sent.result, ConfirmTimeout)
    assert unsent.result is None
    lanes.lane.expire(150)
    assert isinstance(unsent.result, ConfirmTimeout)
    assert unsent.result.hint.startswith("they were not stored")
    lanes.lane.confirmed(0, 1, 0, 2, False)
    assert lanes.lane.count == 0


def test_level_none_is_kept_nowhere() -> None:
    lanes = Lanes(-1, keeps=False)
    waiter = lanes.add("a", Envelope(level=0))
    assert len(lanes.take()) == 1
    assert waiter.result == Receipt(0, -1, Level.NONE)
    assert not lanes.lane.sent


@given(st.lists(st.sampled_from(["add", "add other", "take", "confirm", "refuse", "again"]), max_size=60))
def test_every_message_is_answered_once_and_the_counts_add_up(steps: list[str]) -> None:
    lanes = Lanes()
    waiters: list[Waiter] = []
    offset = 0
    sequences: list[int] = []
    for step in steps:
        if step.startswith("add"):
            waiters.append(lanes.add("x", PLAIN if step == "add" else Envelope(priority=1)))
        elif step == "take":
            sequences += [batch_info(f, ENVELOPE.size).base_sequence for f in lanes.take()]
        elif step == "again":
            lanes.lane.again([])
        elif lanes.lane.sent:
            correlation, frame = next(iter(lanes.lane.sent.items()))
            if step == "confirm":
                lanes.lane.confirmed(correlation, 1, offset, 2, False)
                offset += frame.count
            else:
                lanes.lane.refused(correlation, 1, QueueFull("full"))
        assert lanes.lane.count == sum(w.result is None for w in waiters)
    assert sequences == sorted(set(sequences))
    lanes.lane.fail(QueueFull("end"))
    assert all(w.result is not None for w in waiters)
    assert lanes.lane.count == lanes.lane.nbytes == 0


def test_what_was_sent_and_not_answered_has_an_unknown_outcome_whatever_ends_it() -> None:
    lanes = Lanes()
    sent = lanes.add("sent")
    lanes.take()
    drained = lanes.add("refused by a broker that goes away")
    lanes.take()
    lanes.lane.refused(1, 1, Draining("going away"))
    for _ in range(PIPELINE):
        lanes.add("x")
        lanes.take()
    kept = lanes.add("never sent")
    assert lanes.take() == []
    lanes.lane.fail(NotConnected("the client was closed"))
    assert isinstance(sent.result, UnknownOutcome)
    assert not sent.result.definite
    assert "the client was closed" in str(sent.result)
    assert isinstance(drained.result, NotConnected)
    assert isinstance(kept.result, NotConnected)
    assert lanes.lane.count == lanes.lane.nbytes == 0


LATE = StaleRouting("other partitions")


def test_what_was_routed_too_late_is_taken_out_in_order_and_its_sequences_are_not_used_again() -> None:
    lanes = Lanes()
    keyed = Envelope(key_slot=9)
    waiters = [lanes.add(t, keyed) for t in "ab"]
    lanes.take()
    waiters.append(lanes.add("c"))
    (frame,) = lanes.take()
    assert batch_info(frame, ENVELOPE.size).base_sequence == 2
    lane = lanes.lane
    lane.refused(0, 1, LATE)
    lane.stopped = True
    waiters.append(lanes.add("d"))
    assert lanes.take() == []
    lane.refused(1, 1, LATE)
    assert not lane.sent
    assert all(not waiter.done() for waiter in waiters)
    left = lane.leftovers()
    assert [((r.value or b"").decode(), e.key_slot, w) for e, r, _, w, _ in left] == list(zip("abcd", (9, 9, 0, 0), waiters, strict=True))
    assert sum(nbytes for _, _, nbytes, _, _ in left) == 400
    assert lane.count == lane.nbytes == 0
    assert not lanes.done
    lanes.add("e")
    (frame,) = lanes.take()
    assert (values(frame), batch_info(frame, ENVELOPE.size).base_sequence) == (["e"], 3)


def test_what_was_stored_before_is_confirmed_and_only_the_rest_is_routed_anew() -> None:
    lanes = Lanes()
    stored, lost = lanes.add("stored"), lanes.add("lost", Envelope(priority=1))
    lanes.take()
    lanes.lane.again([])  # on a new connection, under the old routing
    lanes.lane.confirmed(0, 1, 7, 2, True)
    lanes.lane.refused(1, 1, LATE)
    assert stored.result == Receipt(0, 7, Level.LOCAL, True)
    assert [w for _, _, _, w, _ in lanes.lane.leftovers()] == [lost]


def test_without_sequences_what_was_sent_twice_may_be_stored() -> None:
    lanes = Lanes(NO_PRODUCER)
    waiter = lanes.add("x")
    lanes.take()
    lanes.lane.again([])
    lanes.lane.refused(0, 1, LATE)
    assert isinstance(waiter.result, UnknownOutcome)
    assert lanes.lane.leftovers() == []


def test_who_cannot_be_asked_any_more_leaves_the_outcome_unknown() -> None:
    lanes = Lanes()
    sent = lanes.add("sent")
    lanes.take()
    gathered = [lanes.add(str(i)) for i in range(PIPELINE + 1)]
    lanes.lane.stopped = True
    lanes.lane.forsake(LATE)
    assert isinstance(sent.result, UnknownOutcome)
    assert [w for _, _, _, w, _ in lanes.lane.leftovers()] == gathered


def test_what_waits_to_be_routed_anew_for_too_long_is_given_up() -> None:
    lanes = Lanes()
    waiter = lanes.add("x", deadline_ms=100)
    lanes.take()
    lanes.lane.refused(0, 1, LATE)
    lanes.lane.expire(100)
    assert isinstance(waiter.result, StaleRouting)
    assert lanes.lane.count == 0
