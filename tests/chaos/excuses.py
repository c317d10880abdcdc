"""What docs/decisions/017 does not promise of MQTT, found out of when session partitions changed owners and when something was wrong.

Owns these times, and how the books of a run are changed for them before they are judged (``headrace.sim.mqtt.checks``). Pure.

E1 A goodbye that is said while something is wrong may be lost. E2 A subscription that is acknowledged while something is wrong counts from when
nothing is any more.

When an owner changed is known as a span: it is looked at now and then.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from headrace.sim.mqtt.books import NEVER, Books

CALM_S: Final = 3.0
"""Nothing is wrong any more so long after the last fault, and after the last change of an owner."""
SAID_S: Final = 2.0
"""What is said has arrived by then, if nothing is wrong."""


class Move(msgspec.Struct, frozen=True):
    """A partition had so many new epochs at some time in this span."""

    begin: float
    end: float
    count: int


class Excuses:
    """See the module's head."""

    def __init__(self) -> None:
        self.moves: dict[int, list[Move]] = {}
        self.faults: list[tuple[float, float]] = []
        self._epochs: dict[int, int] = {}
        self._looked = -NEVER
        self._begun = NEVER
        self.calm_since = -NEVER

    # ------------------------------------------------------------ what happens

    def saw(self, epochs: Mapping[int, int], asked: float, now: float) -> None:
        """The epoch of each partition, as it stood at some time between ``asked`` and ``now``."""
        for number, epoch in epochs.items():
            before = self._epochs.get(number, epoch)
            if epoch > before:
                self.moves.setdefault(number, []).append(Move(self._looked, now, epoch - before))
                self.calm_since = max(self.calm_since, now + CALM_S)
            self._epochs[number] = max(before, epoch)
        self._looked = asked

    def fault(self, now: float) -> None:
        """Something is wrong from now on."""
        self._begun = now

    def over(self, now: float) -> None:
        """It is not any more."""
        self.faults.append((self._begun, now))
        self._begun = NEVER
        self.calm_since = max(self.calm_since, now + CALM_S)

    def calm(self, now: float) -> bool:
        """Whether nothing is wrong, nor was lately."""
        return self._begun == NEVER and now > self.calm_since

    # ------------------------------------------------------------ what follows

    def disturbed(self, at: float) -> bool:
        """Whether what was said then may be lost."""
        since, until = at - CALM_S, at + SAID_S
        faults = [*self.faults, (self._begun, NEVER)]
        moves = [(m.begin, m.end) for some in self.moves.values() for m in some]
        return any(begin <= until and end >= since for begin, end in [*faults, *moves])

    def know(self, books: Books, now: float) -> None:
        """E2; called several times a second."""
        if self.calm(now):
            for kept in books.sessions.values():
                for wanted in kept.wanted:
                    if wanted.known_at == NEVER and wanted.acked_at != NEVER:
                        wanted.known_at = wanted.acked_at if wanted.acked_at > self.calm_since else now

    def apply(self, books: Books) -> None:
        """E1, once, in the end."""
        for message in books.messages.values():
            if message.will and not message.most and message.died_at != NEVER and self.disturbed(message.died_at):
                message.most = 1
