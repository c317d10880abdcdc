"""The producer table against a list of every sequence that was ever stored, with producers that retry, skip, restart and lose their connection."""

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.dedup import Duplicate, Overtaken, Partial, ProducerTable
from headrace.model.errors import Fenced, SequenceTooOld
from headrace.model.ids import SEQUENCE_MODULUS
from headrace.model.limits import PRODUCER_RANGES
from tests.property.effort import effort

PRODUCERS = st.integers(1, 3)
HORIZON = 400
"""No test goes further back than that, far less than half of the sequences there are."""


@dataclass
class Producer:
    """``offsets``: every sequence that was stored (never wrapped) and where. ``next``: one past the highest."""

    epoch: int
    next: int
    first: int
    offsets: dict[int, int] = field(default_factory=dict)

    def runs(self) -> list[tuple[int, int, int]]:
        """(first, end, base) of what was stored densely, the oldest first."""
        runs: list[tuple[int, int, int]] = []
        for sequence, offset in sorted(self.offsets.items()):
            if runs and runs[-1][1] == sequence and runs[-1][2] + sequence - runs[-1][0] == offset:
                runs[-1] = (runs[-1][0], sequence + 1, runs[-1][2])
            else:
                runs.append((sequence, sequence + 1, offset))
        return runs


class ProducersAgainstAList(RuleBasedStateMachine):
    @initialize(start=st.sampled_from([0, 1000, SEQUENCE_MODULUS - 30]))
    def begin(self, start: int) -> None:
        self.start = start + SEQUENCE_MODULUS
        self.table = ProducerTable()
        self.producers: dict[int, Producer] = {}
        self.offset = 0
        self.log: list[tuple[int, int, int, int, int]] = []
        self.checkpoint = (0, self.table.snapshot())
        self.lost: dict[tuple[int, int], int] = {}
        """By producer and epoch: what lies below was pushed out of the window by newer runs."""

    def publish(self, id: int, first: int, count: int, epoch: int) -> None:
        """One batch, judged and stored as an owner does it; every answer must be what the list says."""
        producer = self.producers.get(id)
        wire = first % SEQUENCE_MODULUS
        verdict = self.table.check(id, epoch, wire, count)
        if producer is not None and epoch < producer.epoch:
            assert isinstance(verdict, Fenced)
            return
        if producer is None or epoch > producer.epoch:
            assert verdict is None, "nothing of a new epoch is stored"
            producer = self.producers[id] = Producer(epoch, first, first)
        had = {s: producer.offsets[s] for s in range(first, first + count) if s in producer.offsets}
        if isinstance(verdict, SequenceTooOld):
            assert first < self.lost.get((id, epoch), -1), "forgotten only what left the window"
            return
        if verdict is None or isinstance(verdict, Overtaken):
            assert not had, "I11: stored twice"
            assert isinstance(verdict, Overtaken) == any(s > first for s in producer.offsets), "late is what later ones are stored of"
            self.store(id, producer, first, count)
        elif isinstance(verdict, Duplicate):
            assert had == {first + k: verdict.base_offset + k for k in range(count)}
        else:
            assert isinstance(verdict, Partial)
            parts = {(s + k) % SEQUENCE_MODULUS: base + k for s, n, base in verdict.stored for k in range(n)}
            assert parts == {s % SEQUENCE_MODULUS: offset for s, offset in had.items()}
            dense = len(had) == count and len({offset - s for s, offset in had.items()}) == 1
            assert had
            assert not dense, "what is stored densely is a plain duplicate"

    def store(self, id: int, producer: Producer, first: int, count: int) -> None:
        entry = (id, producer.epoch, first % SEQUENCE_MODULUS, count, self.offset)
        self.table.stored(*entry)
        self.log.append(entry)
        producer.offsets.update({first + k: self.offset + k for k in range(count)})
        producer.next = max(producer.next, first + count)
        self.offset += count
        # each store pushes at most the lowest run out
        key = (id, producer.epoch)
        runs = [r for r in producer.runs() if r[1] > self.lost.get(key, -1)]
        if len(runs) > PRODUCER_RANGES:
            self.lost[key] = runs[0][1]

    def current(self, id: int) -> tuple[int, int]:
        producer = self.producers.get(id)
        return (0, self.start) if producer is None else (producer.epoch, producer.next)

    # ------------------------------------------------------------ what producers do

    @rule(id=PRODUCERS, count=st.integers(1, 12))
    def goes_on(self, id: int, count: int) -> None:
        epoch, following = self.current(id)
        self.publish(id, following, count, epoch)

    @rule(id=PRODUCERS, skip=st.integers(1, 20), count=st.integers(1, 12))
    def skips_some(self, id: int, skip: int, count: int) -> None:
        epoch, following = self.current(id)
        self.publish(id, following + skip, count, epoch)

    @precondition(lambda self: self.log)
    @rule(back=st.integers(1, 40) | st.integers(60, 140))
    def retries_a_batch(self, back: int) -> None:
        id, epoch, wire, count, base = self.log[-min(back, len(self.log))]
        producer = self.producers[id]
        if producer.epoch == epoch:
            first = min(producer.offsets, key=lambda s: (s % SEQUENCE_MODULUS != wire, s))
            self.publish(id, first, count, epoch)
            if first >= self.lost.get((id, epoch), -1):
                assert self.table.check(id, epoch, wire, count) == Duplicate(base), "a retry of a whole batch is answered with its offset"

    @rule(id=PRODUCERS, back=st.integers(-HORIZON // 10, 10), count=st.integers(1, 12))
    def sends_what_overlaps(self, id: int, back: int, count: int) -> None:
        epoch, following = self.current(id)
        self.publish(id, max(self.start - 20, following + back), count, epoch)

    @rule(id=PRODUCERS, count=st.integers(1, 5), bump=st.integers(1, 3))
    def restarts_with_a_new_epoch(self, id: int, count: int, bump: int) -> None:
        self.publish(id, self.start, count, self.current(id)[0] + bump)

    @precondition(lambda self: self.producers)
    @rule(id=PRODUCERS, sequence=st.integers(-20, 40))
    def a_zombie_publishes(self, id: int, sequence: int) -> None:
        epoch, following = self.current(id)
        if epoch:
            self.publish(id, following + sequence, 1, epoch - 1)

    @rule(id=PRODUCERS, holes=st.integers(1, 8) | st.integers(PRODUCER_RANGES - 8, PRODUCER_RANGES + 40))
    def leaves_holes(self, id: int, holes: int) -> None:
        for _ in range(holes):
            epoch, following = self.current(id)
            self.publish(id, following + (id in self.producers), 1, epoch)

    @precondition(lambda self: self.producers)
    @rule(id=PRODUCERS, back=st.integers(0, 140))
    def fills_a_hole(self, id: int, back: int) -> None:
        producer = self.producers.get(id)
        if producer is not None:
            holes = [s for s in range(producer.first, producer.next) if s not in producer.offsets]
            if holes:
                self.publish(id, holes[-1 - back % len(holes)], 1, producer.epoch)

    @rule(count=st.integers(1, 9))
    def others_publish_without_a_producer(self, count: int) -> None:
        assert self.table.check(-1, 0, 0, count) is None
        self.table.stored(-1, 0, 0, count, self.offset)
        self.offset += count

    # ------------------------------------------------------------ questions, restarts

    @precondition(lambda self: self.producers)
    @rule(id=PRODUCERS, back=st.integers(-5, 140))
    def resolves(self, id: int, back: int) -> None:
        producer = self.producers.get(id)
        if producer is None:
            assert self.table.resolve(id, 0, 5) is None
            return
        sequence = producer.next - 1 - back
        answer = self.table.resolve(id, producer.epoch, sequence % SEQUENCE_MODULUS)
        if isinstance(answer, SequenceTooOld):
            assert sequence < self.lost.get((id, producer.epoch), -1)
        elif sequence in producer.offsets:
            assert answer == Duplicate(producer.offsets[sequence])
        else:
            assert answer is None

    @rule()
    def is_written(self) -> None:
        self.checkpoint = (len(self.log), self.table.snapshot())

    @rule(overlap=st.integers(0, 5))
    def restarts(self, overlap: int) -> None:
        """A snapshot and the log after it, and some before it once more."""
        at, data = self.checkpoint
        table = ProducerTable()
        table.restore(1, data)
        assert table.snapshot() == data
        for entry in self.log[max(0, at - overlap) :]:
            table.stored(*entry)
        self.same(table)
        self.table = table

    @rule()
    def the_log_alone_tells_the_same(self) -> None:
        table = ProducerTable()
        for entry in self.log:
            table.stored(*entry)
        assert table.snapshot() == self.table.snapshot() or self.same(table)

    def same(self, other: ProducerTable) -> bool:
        for id, producer in self.producers.items():
            for sequence in range(max(producer.first, producer.next - HORIZON), producer.next + 2):
                wire = sequence % SEQUENCE_MODULUS
                mine, its = (t.resolve(id, producer.epoch, wire) for t in (self.table, other))
                assert mine == its or (isinstance(mine, SequenceTooOld) and isinstance(its, SequenceTooOld))
        return True

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check_invariants()
        assert len(self.table) == len(self.producers)
        for id, producer in self.producers.items():
            assert self.table.last_sequence(id) == (producer.next - 1) % SEQUENCE_MODULUS
            window = [r for r in producer.runs() if r[1] > self.lost.get((id, producer.epoch), -1)]
            for first, end, base in window[-3:]:
                assert self.table.check(id, producer.epoch, first % SEQUENCE_MODULUS, end - first) == Duplicate(base), "the window remembers"


ProducersAgainstAList.TestCase.settings = effort(40)
TestProducersAgainstAList = ProducersAgainstAList.TestCase
