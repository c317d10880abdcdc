"""A replica's disk: a log of operations of which what is not synced is lost in a crash, but for some prefix.

Owns what is durable. Entries are ``(epoch, value)``, kept whole from the first; ``start`` is where the log would begin.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from headrace.core.replica.effects import Cut, Promise, Stage
from headrace.core.replica.epochs import Run
from headrace.core.replica.journal import Recovered

Entry = tuple[int, int]


class Written(NamedTuple):
    """Entries from ``first`` on."""

    first: int
    entries: Sequence[Entry]


Operation = Written | Cut | Promise | Stage


class Disk:
    """See the module's head."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.start = 1
        self.promised = self.generation = self.version = 0
        self.watermark = 1
        self.pending: list[Operation] = []
        self.flushing = 0
        """How many of the pending are in the flush that is under way."""
        self.clean = True
        self.lost = 0
        """Durable entries that a lying disk has forgotten."""

    def apply(self, operation: Operation) -> None:
        """It is durable now."""
        if isinstance(operation, Written):
            del self.entries[operation.first - 1 :]
            self.entries.extend(operation.entries)
        elif isinstance(operation, Cut):
            del self.entries[operation.at - 1 :]
        elif isinstance(operation, Promise):
            self.promised = operation.epoch
            self.generation, self.version = operation.generation, operation.version
        else:
            self.entries[:] = operation.data
            self.start = operation.end
            self.watermark = max(self.watermark, operation.end)

    def crash(self, kept: int) -> None:
        """The power fails; the first ``kept`` operations that were not synced are on the disk all the same."""
        for operation in self.pending[:kept]:
            if isinstance(operation, Stage):
                break
            self.apply(operation)
        self.pending.clear()
        self.flushing = 0
        self.clean = False

    def forget(self, count: int) -> None:
        """It lied: the last entries that it had synced are gone."""
        keep = max(self.start - 1, len(self.entries) - count)
        self.lost += len(self.entries) - keep
        del self.entries[keep:]
        self.watermark = min(self.watermark, keep + 1)

    def recovered(self) -> Recovered:
        """What is found at a start."""
        found = Recovered(
            start=self.start,
            end=len(self.entries) + 1,
            high_watermark=self.watermark,
            promised=self.promised,
            generation=self.generation,
            version=self.version,
            base_epoch=self.entries[self.start - 2][0] if self.start > 1 else 0,
            runs=runs_of(self.entries, self.start),
            unclean=not self.clean,
        )
        self.clean = True
        return found


def runs_of(entries: Sequence[Any], start: int) -> tuple[Run, ...]:
    """The epoch history of what is kept from ``start`` on."""
    runs: list[Run] = []
    for at in range(start - 1, len(entries)):
        epoch = entries[at][0]
        if not runs or runs[-1][0] != epoch:
            runs.append((epoch, at + 1))
    return tuple(runs)
