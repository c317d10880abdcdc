"""A replica's picture of its own journal: where it starts and ends, what of it is durable and committed, who wrote it, what is promised.

Owns these numbers, which owner and follower share. Knows no other replica. Holds no entries: they are in the log.

J1 start <= high_watermark <= end, or the journal is being fetched; durable_end <= end. J2 ``promised`` is durable; ``promising`` may be on its way
there. J3 The high watermark never falls in a life of the broker, but for a forced election. J4 While a cut is on its way to the disk nothing is
appended, so a completion cannot be mistaken for one of entries that are cut.
"""

from collections.abc import Sequence

import msgspec

from headrace.core.replica.effects import Cut, Stage, Store
from headrace.core.replica.epochs import EpochHistory, Run


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker finds of a partition when it starts."""

    start: int = 1
    end: int = 1
    high_watermark: int = 1
    """A lower bound: the end of what checkpoints and moved data cover, which is committed."""
    promised: int = 0
    generation: int = 0
    version: int = 0
    base_epoch: int = 0
    runs: Sequence[Run] = ()
    unclean: bool = False
    suspect: bool = False
    """Damage was found, or the end of the journal lies below what is known to have been acknowledged."""


class Journal:
    """See the module's head."""

    __slots__ = (
        "cutting", "durable_end", "end", "generation", "high_watermark", "history",
        "promised", "promising", "staged", "suspect", "unclean", "version",
    )  # fmt: skip

    def __init__(self, found: Recovered) -> None:
        self.history = EpochHistory(found.start, found.base_epoch, found.runs)
        self.end = self.durable_end = found.end
        self.high_watermark = max(found.start, min(found.high_watermark, found.end))
        self.promised = self.promising = found.promised
        self.generation, self.version = found.generation, found.version
        self.unclean, self.suspect = found.unclean, found.suspect
        self.cutting = 0
        """Where a cut is on its way to the disk, 0 = none is."""
        self.staged: Stage | None = None
        """What is on its way to take the place of everything."""

    @property
    def start(self) -> int:
        return self.history.start

    @property
    def last_epoch(self) -> int:
        return self.history.last_epoch

    @property
    def settled(self) -> bool:
        """Nothing is on its way to the disk."""
        return self.durable_end == self.end and self.promised == self.promising and not self.busy

    @property
    def busy(self) -> bool:
        """Nothing may be appended."""
        return self.cutting > 0 or self.staged is not None

    def appended(self, epoch: int, count: int) -> None:
        """``count`` entries of ``epoch`` are in the buffer of the log."""
        assert not self.busy
        self.history.append(epoch, self.end)
        self.end += count

    def store(self, runs: Sequence[Run], count: int, entries: Sequence[object]) -> Store:
        """Takes entries at the end."""
        assert not self.busy
        first = self.end
        for epoch, at in runs:
            self.history.append(epoch, at)
        self.end += count
        return Store(first, runs, entries)

    def durable(self, end: int) -> None:
        """A flush has ended. What comes while a cut is on its way is about entries from before it."""
        if not self.busy and end > self.durable_end:
            assert end <= self.end, (end, self.end)
            self.durable_end = end

    def cut(self, at: int, epoch: int, *, set_aside: bool = False) -> Cut:
        """Gives up everything from ``at`` on."""
        assert not self.busy and self.start <= at < self.end
        self.history.truncate(at)
        self.end = self.cutting = at
        self.durable_end = min(self.durable_end, at)
        if set_aside:
            self.high_watermark = min(self.high_watermark, at)
        return Cut(at, epoch, set_aside)

    def was_cut(self, at: int) -> bool:
        """The cut is durable, and with it everything before."""
        if not self.cutting or at != self.cutting:
            return False
        self.cutting = 0
        self.durable_end = self.end
        return True

    def stage(self, stage: Stage) -> Stage:
        assert not self.busy
        self.staged = stage
        return stage

    def installed(self, end: int) -> bool:
        """The install up to ``end`` is durable and has taken the place of everything."""
        stage = self.staged
        if stage is None or stage.end != end:
            return False
        self.staged = None
        self.history = EpochHistory(stage.history_start, stage.base_epoch, stage.runs)
        self.history.trim(stage.end)
        self.history.truncate(stage.end)
        self.end = self.durable_end = stage.end
        self.high_watermark = max(self.high_watermark, stage.end)
        return True

    def commit(self, end: int) -> bool:
        """Everything below ``end`` is committed; whether that is new."""
        if end <= self.high_watermark:
            return False
        self.high_watermark = end
        return True

    def trim(self, start: int) -> None:
        """Entries below ``start`` are not held any more."""
        self.history.trim(min(start, self.high_watermark))
        self.history.truncate(self.end)

    def check(self) -> None:
        """Asserts the invariants."""
        assert 1 <= self.start <= self.high_watermark, (self.start, self.high_watermark)
        assert self.durable_end <= self.end and self.start <= self.end
        assert self.promised <= self.promising
        self.history.check(self.end)
