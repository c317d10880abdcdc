"""The producer table against a dict that never forgets."""

import hypothesis.strategies as st
from hypothesis import given

from headrace.core.dedup import Duplicate, Overtaken, Partial, ProducerTable
from headrace.model.errors import Fenced, SequenceTooOld
from headrace.model.ids import SEQUENCE_MODULUS
from headrace.model.limits import PRODUCER_RANGES
from tests.property.effort import effort

publishes = st.lists(
    st.tuples(st.integers(1, 2), st.integers(0, 2), st.integers(-40, 25), st.integers(1, 12), st.booleans(), st.integers(0, 1)),
    min_size=1,
    max_size=120,
)


@effort(200)
@given(start=st.sampled_from([0, 1000, SEQUENCE_MODULUS - 30]), publishes=publishes)
def test_every_sequence_is_stored_once(start: int, publishes: list[tuple[int, int, int, int, bool, int]]) -> None:
    table = ProducerTable()
    epochs: dict[int, int] = {}
    stored: dict[int, dict[int, int]] = {}
    nexts: dict[int, int] = {}
    offset = 0
    log: list[tuple[int, int, int, int, int]] = []
    for producer, bump, back, count, reload, gap in publishes:
        if producer not in epochs or bump == 2:
            epochs[producer] = epochs.get(producer, -1) + 1
            stored[producer], nexts[producer] = {}, start + SEQUENCE_MODULUS
        mine = stored[producer]
        first = nexts[producer] + (back if back < 0 or gap else 0)
        verdict = table.check(producer, epochs[producer], first % SEQUENCE_MODULUS, count)
        had = [s for s in range(first, first + count) if s in mine]
        if verdict is None or isinstance(verdict, Overtaken):
            assert not had, "stored twice"
            assert isinstance(verdict, Overtaken) == any(s > first for s in mine)
            table.stored(producer, epochs[producer], first % SEQUENCE_MODULUS, count, offset)
            log.append((producer, epochs[producer], first % SEQUENCE_MODULUS, count, offset))
            if not mine:
                nexts[producer] = first
            mine.update({first + k: offset + k for k in range(count)})
            nexts[producer] = max(nexts[producer], first + count)
            offset += count + gap * 3
        elif isinstance(verdict, Duplicate):
            assert [mine[s] for s in range(first, first + count)] == list(range(verdict.base_offset, verdict.base_offset + count))
        elif isinstance(verdict, Partial):
            assert had
            found = {sequence + k: base + k for sequence, n, base in verdict.stored for k in range(n)}
            assert {s % SEQUENCE_MODULUS for s in had} == {s % SEQUENCE_MODULUS for s in found}
            assert all(mine[s] == found[s % SEQUENCE_MODULUS if s % SEQUENCE_MODULUS in found else s] for s in had if s % SEQUENCE_MODULUS in found)
        else:
            assert isinstance(verdict, SequenceTooOld), "the window holds 64 ranges"
        if mine:
            last = nexts[producer] - 1
            assert table.last_sequence(producer) == last % SEQUENCE_MODULUS
            assert table.resolve(producer, epochs[producer], last % SEQUENCE_MODULUS) == Duplicate(mine[last])
        assert table.resolve(producer, epochs[producer], nexts[producer] % SEQUENCE_MODULUS) is None
        if epochs[producer]:
            assert isinstance(table.check(producer, epochs[producer] - 1, 0, 1), Fenced) or not mine
        if reload:
            other = ProducerTable()
            other.restore(1, table.snapshot())
            assert other.snapshot() == table.snapshot()
            table = other
        table.check_invariants()
    again = ProducerTable()
    for entry in log:
        again.stored(*entry)
    assert again.snapshot() == table.snapshot(), "the log alone rebuilds the table"
    for entry in log[-5:]:
        again.stored(*entry)
    assert again.last_sequence(log[-1][0]) == table.last_sequence(log[-1][0])


def test_the_window_holds_64_ranges_and_then_the_outcome_is_unknown() -> None:
    table = ProducerTable()
    for k in range(PRODUCER_RANGES + 1):
        table.stored(7, 0, k * 10, 5, k * 100)
    assert isinstance(table.check(7, 0, 0, 5), SequenceTooOld)
    assert table.check(7, 0, 10, 5) == Duplicate(100)
