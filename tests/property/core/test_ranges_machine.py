"""Range maps and sets against plain dicts and sets of single offsets, in blocks so small that every step crosses some."""

import itertools

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.ranges import RangeMap, RangeSet, gaps
from tests.property.effort import effort

OFFSETS = st.integers(0, 90)
COUNTS = st.integers(0, 25)
VALUES = st.integers(0, 2)


def plain(pieces: list[tuple[int, int, int]]) -> dict[int, int]:
    """Single offsets; two pieces never tell of the same one."""
    flat = [(offset, value) for first, end, value in pieces for offset in range(first, end)]
    assert flat == sorted(flat), "ascending"
    assert len(dict(flat)) == len(flat), "disjoint"
    return dict(flat)


class RangesAgainstADict(RuleBasedStateMachine):
    """One map and one set, changed alike; the set remembers only that an offset is there."""

    @initialize(block=st.sampled_from([2, 3, 5, 512]))
    def begin(self, block: int) -> None:
        self.map: RangeMap[int] = RangeMap(block_ranges=block)
        self.set = RangeSet(block_ranges=block)
        self.model: dict[int, int] = {}

    def inside(self, first: int, end: int) -> dict[int, int]:
        return {offset: value for offset, value in sorted(self.model.items()) if first <= offset < end}

    @rule(first=OFFSETS, count=COUNTS, value=VALUES)
    def puts(self, first: int, count: int, value: int) -> None:
        self.map.put(first, first + count, value)
        self.set.add(first, first + count)
        self.model.update(dict.fromkeys(range(first, first + count), value))

    @rule(first=OFFSETS, stride=st.integers(2, 4), count=st.integers(1, 12), value=VALUES)
    def puts_every_so_many(self, first: int, stride: int, count: int, value: int) -> None:
        for offset in range(first, first + stride * count, stride):
            self.puts(offset, 1, value)

    @rule(count=COUNTS, gap=st.integers(0, 2), value=VALUES)
    def puts_behind_the_last(self, count: int, gap: int, value: int) -> None:
        self.puts(max(self.model, default=-1) + 1 + gap, count, value)

    @rule(first=OFFSETS, count=COUNTS)
    def cuts(self, first: int, count: int) -> None:
        wanted = self.inside(first, first + count)
        assert plain(self.map.cut(first, first + count)) == wanted
        assert set(plain([(low, high, 1) for low, high, _ in self.set.cut(first, first + count)])) == set(wanted)
        for offset in wanted:
            del self.model[offset]

    @precondition(lambda self: self.model)
    @rule(limit=st.integers(1, 30))
    def takes(self, limit: int) -> None:
        first, end, value = self.map.take(limit)
        lowest = min(self.model)
        wanted = 1
        while wanted < limit and self.model.get(lowest + wanted) == self.model[lowest]:
            wanted += 1
        # what touches across two blocks may come in two goes
        assert first == lowest
        assert 1 <= end - first <= wanted
        self.set.cut(first, end)
        for offset in range(first, end):
            assert self.model.pop(offset) == value

    @rule(sometimes=st.sampled_from([False, False, False, False, True]))
    def clears(self, sometimes: bool) -> None:
        if sometimes:
            self.map.clear()
            self.set.clear()
            self.model.clear()

    @rule(first=OFFSETS, count=COUNTS, limit=st.integers(1, 4))
    def asks(self, first: int, count: int, limit: int) -> None:
        end = first + count
        pieces = self.map.pieces(first, end)
        wanted = self.inside(first, end)
        assert plain(pieces) == wanted
        assert self.map.pieces(first, end, limit) == pieces[:limit]
        missing = [offset for low, high in gaps(pieces, first, end) for offset in range(low, high)]
        assert missing == [offset for offset in range(first, end) if offset not in wanted]

    @rule(offset=OFFSETS)
    def finds(self, offset: int) -> None:
        found = self.map.find(offset)
        assert (offset in self.set) == (found is not None) == (offset in self.model)
        if found is not None:
            assert found[0] <= offset < found[1]
            assert all(self.model[at] == found[2] for at in range(found[0], found[1]))

    @invariant()
    def is_the_dict(self) -> None:
        if not hasattr(self, "model"):
            return
        for held in (self.map, self.set):
            held.check()
            assert held.count == len(self.model)
            assert bool(held) == bool(self.model)
            assert (held.first, held.end) == ((min(self.model), max(self.model) + 1) if self.model else (-1, -1))
        whole = list(self.map)
        assert plain(whole) == self.model
        assert all(a[1] < b[0] or a[2] != b[2] for a, b in itertools.pairwise(whole)), "neighbours of equal value are joined"
        runs: list[list[int]] = []
        for offset in sorted(self.model):
            if runs and runs[-1][1] == offset:
                runs[-1][1] += 1
            else:
                runs.append([offset, offset + 1])
        assert self.set.ranges() == [(first, end) for first, end in runs]


RangesAgainstADict.TestCase.settings = effort(50)
TestRangesAgainstADict = RangesAgainstADict.TestCase
