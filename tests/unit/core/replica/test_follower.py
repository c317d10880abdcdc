"""What a follower answers, stores, cuts and refuses, message by message."""

from typing import Any

from headrace.core.replica.effects import AnyEffect, Committed, Cut, Promise, Renew, Send, Stage, Store, Stream, Transfer
from headrace.core.replica.journal import Recovered
from headrace.core.replica.messages import (
    Ack,
    Align,
    AnyMessage,
    Append,
    Fenced,
    Fetch,
    Fetched,
    Gap,
    Install,
    NewEpoch,
    Quarantined,
    State,
)  # fmt: skip
from headrace.core.replica.replica import Replica
from headrace.model.cluster import Assignment, BrokerId, Forced, Incarnation
from headrace.model.ids import Epoch, Index, PartitionId

OWNER, OTHER = BrokerId("o"), BrokerId("p")


class Bench:
    def __init__(self, **found: Any) -> None:
        self.replica = Replica(BrokerId("f"), Incarnation("f1"), Recovered(**found), {})

    def says(self, message: AnyMessage, *, sender: BrokerId = OWNER) -> list[AnyEffect]:
        self.replica.received(sender, message, 0)
        self.replica.check()
        return self.replica.take()

    def durable(self) -> list[AnyEffect]:
        self.replica.durable(self.replica.journal.end, 0)
        return self.replica.take()

    def joined(self, epoch: int = 5) -> "Bench":
        """Follows from its own end."""
        self.says(NewEpoch(epoch=epoch, session=1))
        self.replica.promised(epoch, 0)
        journal = self.replica.journal
        self.replica.take()
        self.says(Align(epoch=epoch, session=1, at=journal.end, end=journal.end, previous_epoch=journal.last_epoch))
        return self

    def append(
        self, first: int, count: int, *, epoch: int = 5, run: int = 5, previous: int = 0, watermark: int = 1, session: int = 1
    ) -> list[AnyEffect]:
        runs = ((run, first),) if count else ()
        return self.says(
            Append(
                epoch=epoch, session=session, first=first, count=count, previous_epoch=previous, runs=runs, high_watermark=watermark,
                entries=tuple(range(first, first + count)),
            )
        )  # fmt: skip


def sent(effects: list[AnyEffect]) -> list[AnyMessage]:
    return [e.message for e in effects if isinstance(e, Send)]


def test_it_answers_once_the_promise_is_durable_and_refuses_older_ones_at_once() -> None:
    bench = Bench(end=3, runs=((1, 1),), promised=1)
    assert bench.says(NewEpoch(epoch=5, session=2)) == [Promise(5, 0, 0)]
    assert sent(bench.says(NewEpoch(epoch=4, session=9), sender=OTHER)) == [Fenced(epoch=5)]
    assert sent(bench.append(3, 1, epoch=1, run=1, previous=1)) == [Fenced(epoch=5)]
    bench.replica.promised(5, 0)
    (state,) = sent(bench.replica.take())
    assert isinstance(state, State)
    assert (state.epoch, state.session, state.end, tuple(state.runs)) == (5, 2, 3, ((1, 1),))
    assert sent(bench.says(NewEpoch(epoch=5, session=2))) == [state]  # the answer may be lost


def test_the_owner_before_is_told_of_a_new_epoch() -> None:
    bench = Bench().joined()
    effects = bench.says(NewEpoch(epoch=6, session=1), sender=OTHER)
    assert Send(OWNER, Fenced(epoch=6)) in effects
    assert sent(bench.append(1, 1)) == [Fenced(epoch=6)]


def test_one_acknowledgement_a_flush_for_all_that_is_durable() -> None:
    bench = Bench().joined()
    assert bench.append(1, 2) == [Store(1, ((5, 1),), (1, 2))]
    assert bench.append(3, 1, previous=5, watermark=3) == [Store(3, ((5, 3),), (3,)), Committed(3)]
    assert sent(bench.durable()) == [Ack(epoch=5, session=1, end=4)]


def test_what_it_has_already_is_not_stored_again_and_the_rest_is() -> None:
    bench = Bench().joined()
    bench.append(1, 3)
    assert bench.append(1, 3) == []
    assert bench.append(2, 4, previous=5) == [Store(4, ((5, 4),), (4, 5))]


def test_what_does_not_follow_on_is_refused() -> None:
    bench = Bench(end=3, runs=((1, 1),), promised=1).joined()
    assert isinstance(sent(bench.append(5, 1, previous=5))[0], Gap)
    assert isinstance(sent(bench.append(3, 1, previous=2))[0], Gap)
    assert isinstance(sent(bench.append(3, 1, run=6, previous=1))[0], Gap)
    assert bench.append(3, 1, session=2, previous=1) == []
    assert bench.append(3, 1, previous=1) == [Store(3, ((5, 3),), (3,))]


def test_a_cut_is_durable_before_anything_is_acknowledged_or_stored() -> None:
    bench = Bench(end=9, high_watermark=3, runs=((1, 1), (2, 5)), promised=1)
    bench.says(NewEpoch(epoch=5, session=1))
    bench.replica.promised(5, 0)
    bench.replica.take()
    assert bench.says(Align(epoch=5, session=1, at=5, end=9, previous_epoch=1)) == [Cut(5, 5)]
    assert bench.append(5, 1, previous=1) == []
    bench.replica.durable(9, 0)  # a flush from before the cut
    assert bench.replica.take() == []
    bench.replica.cut(5, 0)
    assert sent(bench.replica.take()) == [Ack(epoch=5, session=1, end=5)]
    assert bench.append(5, 1, previous=1) == [Store(5, ((5, 5),), (5,))]


def test_nothing_below_the_high_watermark_is_cut() -> None:
    bench = Bench(end=9, high_watermark=6, runs=((1, 1),), promised=1)
    bench.says(NewEpoch(epoch=5, session=1))
    bench.replica.promised(5, 0)
    bench.replica.take()
    effects = bench.says(Align(epoch=5, session=1, at=5, end=9, previous_epoch=1))
    assert isinstance(sent(effects)[-1], Quarantined)
    assert bench.replica.journal.end == 9
    assert isinstance(sent(bench.says(NewEpoch(epoch=5, session=2)))[0], Quarantined)


def test_an_answer_to_what_it_said_before_is_not_obeyed() -> None:
    """A repeated ``State`` from before an install once made a sound follower quarantine itself."""
    bench = Bench()
    bench.says(NewEpoch(epoch=5, session=1))
    bench.replica.promised(5, 0)
    bench.replica.take()
    install = Install(epoch=5, session=1, end=8, history_start=4, base_epoch=1, runs=((2, 4),))
    assert bench.says(install) == [Stage(8, 4, 1, ((2, 4),), None)]
    bench.replica.installed(8, 0)
    effects = bench.replica.take()
    assert isinstance(sent(effects)[0], State)
    assert bench.replica.journal.start == bench.replica.journal.end == 8
    assert isinstance(sent(bench.says(Align(epoch=5, session=1, at=1, end=1, previous_epoch=0)))[0], Gap)
    assert sent(bench.says(Align(epoch=5, session=1, at=8, end=8, previous_epoch=2))) == [Ack(epoch=5, session=1, end=8)]


def test_a_checkpoint_undoes_nothing_that_is_committed() -> None:
    bench = Bench(end=9, high_watermark=6, runs=((1, 1),), promised=1)
    bench.says(NewEpoch(epoch=5, session=1))
    bench.replica.promised(5, 0)
    bench.replica.take()
    assert isinstance(sent(bench.says(Install(epoch=5, session=1, end=5, history_start=5, base_epoch=1, runs=())))[0], Gap)


def test_a_new_owner_is_given_what_it_lacks() -> None:
    bench = Bench(start=3, end=9, high_watermark=4, base_epoch=1, runs=((1, 3), (2, 5)), promised=1)
    bench.says(NewEpoch(epoch=5, session=1))
    bench.replica.promised(5, 0)
    bench.replica.take()
    given = bench.says(Fetch(epoch=5, session=1, first=4, end=7, previous_epoch=1))
    assert given == [Stream(OWNER, Fetched(epoch=5, session=1, first=4, count=3, runs=((1, 4), (2, 5))))]
    assert bench.says(Fetch(epoch=5, session=1, first=1, end=9, previous_epoch=0)) == [Transfer(OWNER, 5, 1, 1)]
    assert isinstance(sent(bench.says(Fetch(epoch=5, session=1, first=6, end=9, previous_epoch=1)))[0], Gap)


def test_what_an_earlier_life_may_have_lost_is_trusted_again_once_it_is_here() -> None:
    bench = Bench(end=2, runs=((1, 1),), promised=1, unclean=True).joined()
    bench.durable()
    assert bench.replica.snapshot().unclean
    bench.append(2, 2, previous=1, watermark=2)
    bench.durable()
    assert not bench.replica.snapshot().unclean


def forced(base: int, base_epoch: int) -> Assignment:
    """Epoch 5, given to ``o`` by an operator who keeps what lies up to ``base``."""
    kept = Forced(epoch=Epoch(5), base=Index(base), base_epoch=Epoch(base_epoch), accepted_by="somebody")
    replicas = (OWNER, BrokerId("f"))
    return Assignment(
        partition=PartitionId(1), item="orders", owner=OWNER, epoch=Epoch(5), level="replica_durable", replicas=replicas, isr=(OWNER,), forced=(kept,)
    )


def test_who_has_nothing_that_a_forced_election_keeps_begins_anew() -> None:
    for base, base_epoch, anew in ((5, 2, True), (8, 2, True), (9, 2, True), (9, 3, False), (11, 3, False)):
        bench = Bench(start=10, end=14, high_watermark=13, promised=3, base_epoch=3, runs=((3, 10),))
        bench.replica.assigned(forced(base, base_epoch), 0)
        bench.says(NewEpoch(epoch=5, session=1))
        bench.replica.promised(5, 0)
        bench.says(NewEpoch(epoch=5, session=2))
        bench.replica.assigned(forced(base, base_epoch), 0)
        assert (bench.replica.follower.phase.name == "RENEWING") == anew, (base, base_epoch)


def test_it_is_asked_for_once_and_answers_nothing_meanwhile() -> None:
    bench = Bench(start=10, end=14, high_watermark=13, promised=3, base_epoch=3, runs=((3, 10),))
    bench.replica.assigned(forced(5, 2), 0)
    first = bench.says(NewEpoch(epoch=5, session=1))
    assert [type(e) for e in first] == [Promise, Renew]
    bench.replica.promised(5, 0)
    assert not bench.replica.take()
    assert not bench.says(NewEpoch(epoch=5, session=2))


def test_it_begins_anew_when_it_hears_of_the_election_later_than_of_its_owner() -> None:
    bench = Bench(start=10, end=14, high_watermark=13, promised=3, base_epoch=3, runs=((3, 10),))
    bench.says(NewEpoch(epoch=5, session=1))
    bench.replica.promised(5, 0)
    assert isinstance(bench.replica.take()[-1], Send)
    bench.replica.assigned(forced(5, 2), 0)
    assert [type(e) for e in bench.replica.take()] == [Renew]
