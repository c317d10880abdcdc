"""Compaction against a dict from key to its last value: a log that grows, is trimmed and compacted again and again, with runs that are cut off."""

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.compaction import Compaction, Row, worthwhile
from tests.property.effort import effort

KEYS = st.none() | st.sampled_from([b"a", b"b", b"c", b"", b"d" * 20, b"e" * 20])
TOMBSTONE_MS = 15


class CompactionAgainstADict(RuleBasedStateMachine):
    """``truth``: all that was ever appended; ``log``: what is still there."""

    @initialize(keys_max=st.integers(1, 7))
    def begin(self, keys_max: int) -> None:
        self.keys_max = keys_max
        self.now = 100
        self.start = self.end = self.clean = 0
        self.truth: list[Row] = []
        self.log: dict[int, Row] = {}
        self.run: Compaction | None = None
        self.gone: list[int] = []
        self.began = 0

    # ------------------------------------------------------------ the log

    @rule(records=st.lists(st.tuples(KEYS, st.sampled_from([False, False, True])), min_size=1, max_size=10))
    def appends(self, records: list[tuple[bytes | None, bool]]) -> None:
        for key, tombstone in records:
            row = Row(self.end, key, tombstone and key is not None, self.now)
            self.truth.append(row)
            self.log[self.end] = row
            self.end += 1

    @rule(ms=st.sampled_from([1, 10, 20]))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @precondition(lambda self: self.run is None and self.end > 20)
    @rule(count=st.integers(1, 5))
    def retention_passes(self, count: int) -> None:
        self.start = min(self.end, self.start + count)
        self.log = {o: row for o, row in self.log.items() if o >= self.start}

    # ------------------------------------------------------------ runs

    @precondition(lambda self: self.run is None)
    @rule()
    def begins(self) -> None:
        self.began = self.now
        self.run = Compaction(
            start=self.start, clean_end=self.clean, end=self.end, wall_ms=self.now, tombstone_ms=TOMBSTONE_MS, keys_max=self.keys_max
        )
        self.gone = []

    @precondition(lambda self: self.run is not None)
    @rule(slices=st.lists(st.integers(1, 9), min_size=1, max_size=8), too_much=st.booleans())
    def reads_on(self, slices: list[int], too_much: bool) -> None:
        assert self.run is not None
        for size in slices:
            wanted = self.run.wants()
            assert self.run.done == (wanted is None)
            if wanted is None:
                self.ends()
                return
            first, end = wanted
            assert self.run.start <= first < end <= self.run.end
            upto = min(end, first + size)
            rows = [row for o, row in sorted(self.log.items()) if first <= o < (self.end if too_much else upto)]
            for low, count in self.run.feed(rows, upto):
                self.gone += range(low, low + count)
            self.run.check()

    @precondition(lambda self: self.run is not None)
    @rule()
    def reads_to_the_end(self) -> None:
        while self.run is not None:
            self.reads_on([7] * 8, False)

    def ends(self) -> None:
        assert self.run is not None
        assert self.run.clean_end == self.run.end
        assert set(self.gone) <= set(self.log), "only what is there can go"
        keyed = {row.key: row for row in self.truth[: self.run.end] if row.key is not None}
        for o in list(self.log):
            row = self.log[o]
            if o >= self.run.end or row.key is None:
                stays = True
            else:
                stays = keyed[row.key].offset == o and not (row.tombstone and row.wall_ms <= self.began - TOMBSTONE_MS)
            assert stays == (o not in self.gone), f"{row} must {'stay' if stays else 'go'}"
            if not stays:
                del self.log[o]
        self.clean = self.run.clean_end
        self.run = None
        assert not worthwhile(self.start, self.clean, self.clean)

    @precondition(lambda self: self.run is not None)
    @rule(forgets=st.booleans())
    def is_cut_off(self, forgets: bool) -> None:
        """Nothing was dropped; after a restart not even how far the last whole run had come is known."""
        self.run = None
        if forgets:
            self.clean = 0

    @precondition(lambda self: self.run is None)
    @rule()
    def forgets_how_far_it_came(self) -> None:
        self.clean = 0

    # ------------------------------------------------------------ always

    @invariant()
    def readers_see_the_same_values(self) -> None:
        """Whoever reads the log to its end has of every key what was written last, and of deleted keys nothing."""
        if not hasattr(self, "log"):
            return
        wanted = {row.key: row.offset for row in self.truth[self.start :] if row.key is not None}
        found = {row.key: row.offset for _, row in sorted(self.log.items()) if row.key is not None}
        for key, offset in wanted.items():
            if self.truth[offset].tombstone:
                assert found.get(key, offset) == offset, "K3: a deleted key came back"
            else:
                assert found.get(key) == offset, "K1: the last value of a key is lost"
        assert all(o in self.log for o in range(self.start, self.end) if self.truth[o].key is None), "K2: records without a key stay"


CompactionAgainstADict.TestCase.settings = effort(50)
TestCompactionAgainstADict = CompactionAgainstADict.TestCase
