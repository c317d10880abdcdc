"""What docs/decisions/017 does not promise of MQTT, found out of when session partitions changed owners and when something was wrong.

Owns these times, and how the books of a run are changed for them before they are judged (``headrace.sim.mqtt.checks``). Pure.

E1 A message of QoS 2 that was sent again before its PUBREC had come may come twice if its publisher's session went to another owner in between. E2 A
will may come once more for each time its session goes to another owner before everybody has it. E3 A goodbye that is said while something is wrong
may be lost. E4 A subscription that is acknowledged while something is wrong counts from when nothing is any more.

When an owner changed is known as a span: it is looked at now and then.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from headrace.sim.mqtt.books import NEVER, Books, Published
from headrace.sim.mqtt.checks import covers

CALM_S: Final = 3.0
"""Nothing is wrong any more so long after the last fault, and after the last change of an owner."""
SAID_S: Final = 2.0
"""What is said has arrived by then, if nothing is wrong."""
DONE_S: Final = 2.0
"""A will that everybody has is done by then."""


class Move(msgspec.Struct, frozen=True):
    """A partition had so many new epochs at some time in this span."""

    begin: float
    end: float
    count: int


class Excuses:
    """See the module's head. ``number_of`` gives the session partition of a client id."""

    def __init__(self, number_of: Callable[[str], int]) -> None:
        self._number_of = number_of
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

    def moved(self, client_id: str, since: float, until: float) -> int:
        """How often the session of a client may have gone to another owner in that time."""
        return sum(m.count for m in self.moves.get(self._number_of(client_id), ()) if m.begin <= until and m.end >= since)

    def disturbed(self, at: float) -> bool:
        """Whether what was said then may be lost."""
        since, until = at - CALM_S, at + SAID_S
        faults = [*self.faults, (self._begun, NEVER)]
        moves = [(m.begin, m.end) for some in self.moves.values() for m in some]
        return any(begin <= until and end >= since for begin, end in [*faults, *moves])

    def know(self, books: Books, now: float) -> None:
        """E4; called several times a second."""
        if self.calm(now):
            for kept in books.sessions.values():
                for wanted in kept.wanted:
                    if wanted.known_at == NEVER and wanted.acked_at != NEVER:
                        wanted.known_at = wanted.acked_at if wanted.acked_at > self.calm_since else now

    def apply(self, books: Books) -> int:
        """E1, E2 and E3, once, in the end; how many messages may come twice."""
        for message in books.messages.values():
            client_id = message.publisher.partition("/")[0]
            if message.will:
                if not message.most and message.died_at != NEVER and self.disturbed(message.died_at):
                    message.most = 1
                if message.most:
                    message.most += self.moved(client_id, message.at, _done(books, message))
            elif message.qos == 2 and message.again:
                message.unsure |= self.moved(client_id, message.at, message.acked_at) > 0
        return sum(m.unsure or m.most > 1 for m in books.messages.values())


def _done(books: Books, will: Published) -> float:
    """When it was done: all who had to get it had it then."""
    latest = will.at
    for kept in books.sessions.values():
        if kept.durable and any(covers(wanted, will) for wanted in kept.wanted if not wanted.group):
            latest = max(latest, next((got.at for got in kept.got if got.number == will.number), NEVER))
    return latest + DONE_S
