"""What a broker knows of one other broker: its address, its connection if there is one, when it was heard, what waits for it.

Owns which connection counts when several were opened. Does not open any (``dialing``).

I1 at most one link is attached. I2 an incarnation that was replaced by another one never comes back: a process that was taken for dead, or a copy of
its data directory, is refused. I3 clocks survive a reconnect within one incarnation and start anew with another.
"""

import asyncio
from collections import deque

from headrace.cluster.transport.counters import Counters
from headrace.cluster.transport.link import Link, Lost
from headrace.cluster.transport.requests import Calls, Serve, Served
from headrace.cluster.transport.settings import Settings
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Address
from headrace.model.errors import Fenced
from headrace.wire.peer import Introduction, Service

REPLACED_MAX = 16
NOBODY_YET = Incarnation("")


class Remote:
    def __init__(self, id: BrokerId, settings: Settings, table: dict[Service, Serve]) -> None:
        self.id = id
        self.address: Address | None = None
        """Where it is dialed, None = nobody has told."""
        self.wanted = False
        """Whether it is one of the cluster's brokers, as far as this one was told."""
        self.link: Link | None = None
        self.who: Introduction | None = None
        """As it last introduced itself."""
        self.incarnation = NOBODY_YET
        self.counters = Counters()
        self.calls = Calls(id, self.counters, settings.requests_max)
        self.served = Served(id, self.counters, settings.requests_max, table)
        self.last_lost: Lost | None = None
        self.refused_ms: deque[int] = deque(maxlen=8)
        """When nobody listened at its address, the newest last."""
        self.trouble = ""
        """Why the last dial failed, "" once one succeeded."""
        self.nudge = asyncio.Event()
        """Dial it now: something about it is new."""
        self.keeping: asyncio.Task[None] | None = None
        self._heard_ms = self._answered_ms = 0
        self._replaced: deque[str] = deque(maxlen=REPLACED_MAX)

    def check(self, who: Introduction) -> None:
        """Raises ``Fenced`` if that life of it is over."""
        if who.incarnation in self._replaced:
            raise Fenced(
                f"broker {who.broker} has been started again since (as {self.incarnation}); this process ({who.incarnation}) is not it any more",
                hint="stop one of the two processes; if both shall run, start one on an empty data directory",
            )

    def attach(self, link: Link, who: Introduction) -> Link | None:
        """Takes ``link`` for its connection; the one it had before, if any, is given back to be closed."""
        self.check(who)
        if who.incarnation != self.incarnation:
            if self.incarnation:
                self._replaced.append(self.incarnation)
            self.incarnation = Incarnation(who.incarnation)
            self._heard_ms = self._answered_ms = 0
        before = self.link
        self.who, self.link, self.trouble = who, link, ""
        link.attached = True
        link.counters = self.counters
        self.counters.connects += 1
        return before

    def detach(self, link: Link, why: Lost) -> bool:
        """``link`` ended. Whether it was the connection."""
        if self.link is not link:
            return False
        self._heard_ms, self._answered_ms = self.heard_ms, self.answered_ms
        self.link, self.last_lost = None, why
        self.counters.losses += 1
        if why.kind == "silent":
            self.counters.silences += 1
        self.calls.lost(why.text)
        return True

    @property
    def heard_ms(self) -> int:
        """When its current incarnation was last heard, 0 = never."""
        return self._heard_ms if self.link is None else max(self._heard_ms, self.link.heard_ms)

    @property
    def answered_ms(self) -> int:
        """A moment at which its current incarnation surely ran and was connected, 0 = none."""
        return self._answered_ms if self.link is None else max(self._answered_ms, self.link.answered_ms)
