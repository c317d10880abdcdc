"""Which copies a broker takes in as a whole at a time, and whose turn is next.

Owns the places and who waits for one. Does not know what is taken in, nor from whom.

Y1 No place is free while somebody waits. Y2 A partition that is this broker's to serve, and that nobody serves until its copy is here, has its turn
before those that it follows; else they have it in the order in which they came.
"""

from collections.abc import Callable
from typing import Final

COMING_IN_MAX: Final = 4
"""Copies at a time."""


class Intake:
    """See the module's head."""

    def __init__(self) -> None:
        self.places: dict[int, bool] = {}
        """Partitions of which a copy is taken in."""
        self._owned: dict[int, Callable[[], None]] = {}
        self._followed: dict[int, Callable[[], None]] = {}

    def enter(self, pid: int, again: Callable[[], None], *, owned: bool) -> bool:
        """Whether its copy may be taken in now; if not, ``again`` is called once it may try again, in place of what it said before. ``owned``: it is
        this broker's to serve."""
        if pid not in self.places and len(self.places) >= COMING_IN_MAX:
            (self._followed if owned else self._owned).pop(pid, None)
            (self._owned if owned else self._followed)[pid] = again
            return False
        self._forget(pid)
        self.places[pid] = True
        return True

    def leave(self, pid: int) -> None:
        """Its copy is here, or is not taken in any more."""
        self._forget(pid)
        self.places.pop(pid, None)
        while len(self.places) < COMING_IN_MAX and (waiting := self._owned or self._followed):
            waiting.pop(next(iter(waiting)))()

    def close(self) -> None:
        """Nobody's turn comes any more."""
        self._owned.clear()
        self._followed.clear()

    def _forget(self, pid: int) -> None:
        self._owned.pop(pid, None)
        self._followed.pop(pid, None)
