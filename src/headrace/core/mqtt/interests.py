"""What the session partitions of a cluster want: the filters of each, as its owner tells all other brokers.

Owns both sides: what the partitions served here want, with what was not told yet, and what others want, by the epoch of the partition. A filter of a
shared subscription stands as its subscribers write it. Decides nothing.

Invariants: I1 what was told of a partition in an older epoch never replaces what was told in a newer one. I2 of a partition nobody has told anything
of yet everything is thought to be wanted: its owner knows better.
"""

from collections.abc import Callable, Iterator
from typing import Final

GONE: Final = 0
AWAY: Final = 1
"""Of a shared subscription: nobody of its members has a connection."""
WANTED: Final = 2
EVERYTHING: Final = {"#": WANTED}


class Own:
    """Of the partitions that are served here."""

    def __init__(self) -> None:
        self.wants: dict[int, dict[str, int]] = {}
        self._counts: dict[int, dict[str, int]] = {}
        self._news: dict[int, dict[str, int]] = {}
        self.stir: Callable[[], None] = _still
        """Called when there is something new."""

    def begin(self, number: int) -> None:
        self.wants[number], self._counts[number] = {}, {}

    def end(self, number: int) -> dict[str, int]:
        """What it wanted last."""
        self._news.pop(number, None)
        del self._counts[number]
        return self.wants.pop(number)

    def count(self, number: int, filter: str, change: int) -> None:
        """One subscription to a filter more or less."""
        counts = self._counts[number]
        now = counts[filter] = counts.get(filter, 0) + change
        if not now:
            del counts[filter]
        self.set(number, filter, WANTED if now else GONE)

    def set(self, number: int, filter: str, state: int) -> None:
        wants = self.wants[number]
        if wants.get(filter, GONE) == state:
            return
        if state == GONE:
            del wants[filter]
        else:
            wants[filter] = state
        self._news.setdefault(number, {})[filter] = state
        self.stir()

    @property
    def told(self) -> bool:
        """Whether there is nothing new."""
        return not self._news

    def take_news(self) -> dict[int, dict[str, int]]:
        """What has changed since the last call; ``GONE`` of what is not wanted any more."""
        news, self._news = self._news, {}
        return news


class Others:
    """Of all other partitions."""

    def __init__(self) -> None:
        self.wants: dict[int, dict[str, int]] = {}
        self._epochs: dict[int, int] = {}

    def forget(self, number: int) -> dict[str, int]:
        """It is served here from now on; what it wanted."""
        self._epochs.pop(number, None)
        return self.wants.pop(number, {})

    def told(self, number: int, epoch: int, whole: bool, changes: dict[str, int]) -> Iterator[tuple[str, int]]:
        """What is different now, as (filter, state)."""
        if epoch < self._epochs.get(number, 0):
            return
        wants = self.wants.setdefault(number, {})
        self._epochs[number] = epoch
        if whole:
            for filter in [f for f in wants if f not in changes]:
                del wants[filter]
                yield filter, GONE
        for filter, state in changes.items():
            if wants.get(filter, GONE) != state:
                if state == GONE:
                    del wants[filter]
                else:
                    wants[filter] = state
                yield filter, state


def _still() -> None:
    pass
