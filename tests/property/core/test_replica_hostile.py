"""A replica and peers that say anything at all: nothing is raised, nothing committed is given up, nothing is promised backwards."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from headrace.core.replica.effects import Begin, Cut, Outcome, Promise, Send, Stage, Store
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
from headrace.model.cluster import Assignment, BrokerId, Incarnation
from headrace.model.ids import Epoch, PartitionId
from tests.property.effort import effort

EPOCHS, SESSIONS, INDEXES, COUNTS = st.integers(-1, 6), st.integers(-1, 3), st.integers(-2, 14), st.integers(-1, 5)
RUNS = st.lists(st.tuples(EPOCHS, INDEXES), max_size=3)
ENTRIES = st.lists(st.integers(0, 3), max_size=5)
NAMES = ("a", "b", "c")
COMMON: dict[str, Any] = {"epoch": EPOCHS, "session": SESSIONS}
APPENDS = st.builds(
    lambda epoch, session, first, run, previous, watermark, count: Append(
        epoch=epoch, session=session, first=first, count=count, previous_epoch=previous, runs=((run, first),) if count > 0 else (),
        high_watermark=watermark, entries=(0,) * count,
    ),
    EPOCHS, SESSIONS, INDEXES, EPOCHS, EPOCHS, INDEXES, st.integers(0, 4),
)  # fmt: skip
"""More of them fit than of those made of anything."""
MESSAGES: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(NewEpoch, **COMMON),
    st.builds(
        State, **COMMON, incarnation=st.just("x"), start=INDEXES, end=INDEXES, high_watermark=INDEXES, history_start=INDEXES, base_epoch=EPOCHS,
        runs=RUNS, unclean=st.booleans(), suspect=st.booleans(),
    ),
    st.builds(Align, **COMMON, at=INDEXES, end=INDEXES, previous_epoch=EPOCHS),
    st.builds(Append, **COMMON, first=INDEXES, count=COUNTS, previous_epoch=EPOCHS, runs=RUNS, high_watermark=INDEXES, entries=ENTRIES),
    APPENDS,
    st.builds(Ack, **COMMON, end=INDEXES),
    st.builds(Gap, **COMMON, reason=st.just("?")),
    st.builds(Fenced, **COMMON),
    st.builds(Fetch, **COMMON, first=INDEXES, end=INDEXES, previous_epoch=EPOCHS),
    st.builds(Fetched, **COMMON, first=INDEXES, count=COUNTS, runs=RUNS, entries=ENTRIES),
    st.builds(Install, **COMMON, end=INDEXES, history_start=INDEXES, base_epoch=EPOCHS, runs=RUNS),
    st.builds(Quarantined, **COMMON, reason=st.just("?")),
)  # fmt: skip
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("message"), st.sampled_from(NAMES[1:]), MESSAGES),
        st.tuples(st.just("message"), st.sampled_from(NAMES[1:]), st.builds(NewEpoch, epoch=st.integers(2, 5), session=st.integers(1, 2))),
        st.tuples(st.just("flush"), st.none(), st.none()),
        st.tuples(st.just("append"), st.integers(1, 3), st.none()),
        st.tuples(st.just("connected"), st.sampled_from(NAMES[1:]), st.none()),
        st.tuples(st.just("disconnected"), st.sampled_from(NAMES[1:]), st.none()),
        st.tuples(st.just("later"), st.integers(1, 5_000), st.none()),
        st.tuples(st.just("swapped"), st.integers(-1, 5), st.sampled_from(list(Outcome))),
    ),
    max_size=40,
)


class Desk:
    """A driver that keeps the log in memory and looks at every effect."""

    def __init__(self, found: Recovered, document: Assignment) -> None:
        self.replica = Replica(BrokerId("a"), Incarnation("a1"), found, {})
        self.epochs = [0] * (found.end - 1)
        for at, (epoch, first) in enumerate(found.runs):
            end = found.runs[at + 1][1] if at + 1 < len(found.runs) else found.end
            self.epochs[first - 1 : end - 1] = [epoch] * (end - first)
        self.pending: list[Any] = []
        self.document = document
        self.promised = found.promised
        self.watermark = 1
        self.now_ms = 0

    def take(self) -> None:
        for effect in self.replica.take():
            if isinstance(effect, Store):
                assert effect.first == len(self.epochs) + 1
                end = effect.first + len(effect.entries)
                assert effect.runs
                for at, (epoch, first) in enumerate(effect.runs):
                    stop = effect.runs[at + 1][1] if at + 1 < len(effect.runs) else end
                    self.epochs += [epoch] * (stop - first)
                assert len(self.epochs) + 1 == end
            elif isinstance(effect, Begin):
                assert effect.at == len(self.epochs) + 1
                self.epochs.append(effect.epoch)
            elif isinstance(effect, Cut):
                assert effect.at >= self.watermark
                del self.epochs[effect.at - 1 :]
            elif isinstance(effect, Promise):
                assert effect.epoch > self.promised
            elif isinstance(effect, Send) and isinstance(effect.message, (State, Ack)):
                assert effect.message.epoch <= self.promised
                assert effect.message.end <= len(self.epochs) + 1
            if isinstance(effect, (Store, Begin, Cut, Promise, Stage)):
                self.pending.append(effect)
        journal = self.replica.journal
        assert journal.high_watermark >= self.watermark
        self.watermark = journal.high_watermark
        self.replica.check()
        assert journal.promised == self.promised
        if journal.end > journal.start:
            assert journal.end == len(self.epochs) + 1
            assert [journal.history.epoch_at(i) for i in range(journal.start, journal.end)] == self.epochs[journal.start - 1 :]

    def flush(self) -> None:
        pending, self.pending = self.pending, []
        for effect in pending:
            if isinstance(effect, Promise):
                self.promised = max(self.promised, effect.epoch)
                self.replica.promised(effect.epoch, self.now_ms)
            elif isinstance(effect, Cut):
                self.replica.cut(effect.at, self.now_ms)
            elif isinstance(effect, Stage):
                history = self.replica.journal.history
                self.epochs = [0] * (effect.end - 1)
                self.replica.installed(effect.end, self.now_ms)
                assert history is not self.replica.journal.history
            self.take()
        if not self.replica.journal.busy:
            self.replica.durable(len(self.epochs) + 1, self.now_ms)

    def step(self, kind: str, what: Any, more: Any) -> None:
        replica, owner = self.replica, self.replica.owner
        if kind == "message":
            replica.received(BrokerId(what), more, self.now_ms)
        elif kind == "flush":
            self.flush()
        elif kind == "append" and replica.refusal(2, self.now_ms) is None and owner is not None:
            self.epochs += [owner.epoch] * what
            owner.appended(what, self.now_ms)
        elif kind == "connected":
            replica.connected(BrokerId(what), Incarnation("x"), self.now_ms)
        elif kind == "disconnected":
            replica.disconnected(BrokerId(what), self.now_ms)
        elif kind == "later":
            self.now_ms += what
        elif kind == "swapped":
            replica.swapped(what, more, None, self.now_ms)
        replica.step(self.now_ms)
        due = replica.next_deadline_ms(self.now_ms)
        assert due is None or isinstance(due, int)
        replica.view()
        replica.snapshot()
        self.take()


def document(level: Any, owner: str, epoch: int) -> Assignment:
    names = tuple(BrokerId(n) for n in NAMES)
    isr = names if level == "replica_durable" else ()
    life = Incarnation("a1")
    return Assignment(
        partition=PartitionId(1), item="q", owner=BrokerId(owner), incarnation=life, epoch=Epoch(epoch), level=level, replicas=names, isr=isr
    )


@given(STEPS, st.sampled_from(["replica_durable", "majority_durable"]), st.sampled_from(NAMES), st.integers(1, 9), st.integers(1, 9))
@effort(200)
def test_nothing_that_a_peer_says_breaks_a_replica(steps: list[tuple[str, Any, Any]], level: str, owner: str, end: int, watermark: int) -> None:
    runs = ((1, 1), (2, 4)) if end > 4 else ((1, 1),) if end > 1 else ()
    asked = document(level, owner, 3)
    desk = Desk(Recovered(end=end, high_watermark=watermark, promised=2, runs=runs), asked)
    desk.replica.assigned(asked, 0)
    desk.take()
    for kind, what, more in steps:
        desk.step(kind, what, more)


@given(STEPS)
@effort(60)
def test_nothing_that_a_peer_says_breaks_an_owner_that_serves(steps: list[tuple[str, Any, Any]]) -> None:
    asked = document("majority_durable", "a", 3)
    desk = Desk(Recovered(end=4, high_watermark=2, promised=2, runs=((1, 1),)), asked)
    desk.replica.assigned(asked, 0)
    desk.take()
    desk.flush()
    for name in NAMES[1:]:
        desk.step("connected", name, None)
        held: dict[str, Any] = {"start": 1, "end": 4, "high_watermark": 2, "history_start": 1, "base_epoch": 0, "runs": ((1, 1),)}
        said = State(epoch=3, session=NAMES.index(name), incarnation="x", **held)
        desk.step("message", name, said)
    desk.flush()
    desk.step("later", 1_000, None)
    assert desk.replica.owner is not None
    for session, name in enumerate(NAMES[1:], 1):
        desk.step("message", name, Ack(epoch=3, session=session, end=5))
    assert desk.replica.refusal(3, desk.now_ms) is None
    for kind, what, more in steps:
        desk.step(kind, what, more)


