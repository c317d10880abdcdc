"""Subscriptions: one client's reading of one queue or stream over all its partitions here, with a credit window they share.

A queue subscription is a ``Consumer`` in each partition's machine; a stream subscription a ``Reader``. Both keep the sink through which they deliver,
None while away.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from headrace.broker.catalogue import Item
from headrace.broker.session import Session
from headrace.broker.sink import Sink
from headrace.core.queue import Consumer, Credit
from headrace.model import limits
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.queue_partition import QueuePartition
    from headrace.broker.stream_partition import StreamPartition


CREDIT_BYTES_MAX = 1 << 40


def member_id(session: Session, token: int) -> str:
    """Names a member of a group, the same at every broker that the client uses with this session, and after a restart."""
    return f"{session.owner_token(token):016x}"


class Subscription(ABC):
    """What both kinds share."""

    def __init__(self, id: int, session: Session, sink: Sink, channel: int, item: Item) -> None:
        self.id = id
        self.session = session
        self.sink: Sink | None = sink
        self.channel = channel
        self.item = item
        self.token = 0
        self.closed = False
        self.group: str = ""
        self.member: str = ""
        self.unclaimed_ms = 0
        """Since when its session is back without having subscribed again, 0 = it has."""

    @abstractmethod
    def leave(self, now_ms: int, wall_ms: int) -> None:
        """Ends it: leased messages return at once."""

    @abstractmethod
    def suspend(self) -> None:
        """The connection broke: grant nothing, keep everything."""

    @abstractmethod
    def wake(self) -> None:
        """There may be something to send: let each partition look in this tick."""

    @abstractmethod
    def block(self) -> None:
        """Its socket takes nothing more for now."""

    def unblock(self) -> None:
        """Its socket has room again."""
        self.wake()


class Membership(Subscription):
    """A member of a group of a cluster: it is told what is its own, and subscribes to that where it is served."""

    def __init__(self, id: int, session: Session, sink: Sink, item: Item, asked: control.Join) -> None:
        super().__init__(id, session, sink, asked.channel, item)
        self.token = asked.token
        self.asked = asked
        self.group = asked.group

    def leave(self, now_ms: int, wall_ms: int) -> None:
        self.closed = True
        self.sink = None

    def suspend(self) -> None:
        self.sink = None

    def block(self) -> None:
        """Nothing to do: what it is sent is little."""

    def wake(self) -> None:
        """As ``block``."""


class Fetch:
    """A pull request in progress."""

    __slots__ = ("correlation", "delivered", "timer", "wanted")

    def __init__(self, correlation: int, wanted: int) -> None:
        self.correlation = correlation
        self.wanted = wanted
        self.delivered = 0
        self.timer: asyncio.TimerHandle | None = None
        """Ends it; cancelled when it ends before, so that quick pulls leave no timers behind."""


class QueueSubscription(Subscription):
    """A consumer of a queue."""

    def __init__(self, id: int, session: Session, sink: Sink, item: Item, asked: control.Subscribe) -> None:
        super().__init__(id, session, sink, asked.channel, item)
        self.token = asked.token
        self.asked = asked
        self.group = asked.cohort
        self.credit = Credit(0 if asked.pull else asked.prefetch, asked.prefetch_bytes)
        self.window = asked.prefetch
        """What it may have unsettled at a time, unless it pulls."""
        self.consumers: dict[int, Consumer] = {}
        """By partition number."""
        self.partitions: dict[int, QueuePartition] = {}
        self.fetches: list[Fetch] = []
        self.connection = 0
        """Grows when it loses its connection: what was on its way to the old one is not sent to the new."""

    def leave(self, now_ms: int, wall_ms: int) -> None:
        self.closed = True
        self.sink = None
        while self.fetches:
            self.end_fetch()
        for partition in self.partitions.values():
            partition.detach(self, now_ms, wall_ms)
        self.partitions.clear()

    def suspend(self) -> None:
        self.sink = None
        self.connection += 1
        while self.fetches:
            self.end_fetch()
        for partition in self.partitions.values():
            partition.machine.suspend(self.id)

    def wake(self) -> None:
        for partition in self.partitions.values():
            partition.broker.mark(partition)

    def block(self) -> None:
        for partition in self.partitions.values():
            partition.machine.suspend(self.id)

    def unblock(self) -> None:
        for partition in self.partitions.values():
            partition.machine.resume(self.id, None, partition.broker.now_ms, partition.broker.wall_ms)
        self.wake()

    def add_credit(self, messages: int, nbytes: int) -> None:
        """CREDIT: adds to the window, or takes from it, within bounds."""
        credit = self.credit
        self.window += messages
        credit.messages = max(-limits.PREFETCH_MESSAGES_MAX, min(credit.messages + messages, limits.PREFETCH_MESSAGES_MAX))
        credit.bytes = max(-CREDIT_BYTES_MAX, min(credit.bytes + nbytes, CREDIT_BYTES_MAX))
        self.wake()

    def begin_fetch(self, correlation: int, wanted: int, nbytes: int) -> Fetch:
        """Grants a pull request its messages and bytes."""
        fetch = Fetch(correlation, wanted)
        if not self.fetches:
            self.credit.bytes = 0
        self.fetches.append(fetch)
        self.credit.messages += wanted
        self.credit.bytes += nbytes
        self.wake()
        return fetch

    def delivered(self, count: int) -> None:
        """A pull counts what it was sent; a full one is answered."""
        while count and self.fetches:
            fetch = self.fetches[0]
            taken = min(count, fetch.wanted - fetch.delivered)
            fetch.delivered += taken
            count -= taken
            if fetch.delivered >= fetch.wanted:
                self.end_fetch()
            elif not taken:
                break

    def end_fetch(self, fetch: Fetch | None = None) -> None:
        """Answers a pull request (the oldest) and takes its unused credit back."""
        fetch = fetch or self.fetches[0]
        self.fetches.remove(fetch)
        if fetch.timer is not None:
            fetch.timer.cancel()
        self.credit.messages -= fetch.wanted - fetch.delivered
        if self.sink is not None:
            self.sink.fetch_end(self.channel, fetch.correlation, fetch.delivered)


class StreamSubscription(Subscription):
    """A reader of a stream."""

    def __init__(self, id: int, session: Session, sink: Sink, item: Item, asked: control.SubscribeStream) -> None:
        super().__init__(id, session, sink, asked.channel, item)
        self.token = asked.token
        self.asked = asked
        self.group = asked.group
        self.partitions: dict[int, StreamPartition] = {}
        """Those it reads here, by number; not the isolated ones."""
        self.generation = 0

    def leave(self, now_ms: int, wall_ms: int) -> None:
        self.closed = True
        self.sink = None
        for partition in self.partitions.values():
            partition.close_reader(self)
        self.partitions.clear()

    def suspend(self) -> None:
        """A stream's reader knows its own position, so nothing is kept for it but its membership."""
        self.sink = None
        for partition in self.partitions.values():
            partition.close_reader(self)
        self.partitions.clear()

    def isolated(self, number: int, why: str) -> None:
        """Tells it to go on without a partition."""
        if self.sink is not None:
            text = f"partition {number} of {self.item.name!r} is quarantined: {why}"
            self.sink.event(control.PartitionIsolated(channel=self.channel, partition=number, message=text))

    def block(self) -> None:
        """Nothing to do: each read looks at the sink first."""

    def wake(self) -> None:
        for partition in self.partitions.values():
            partition.broker.mark(partition)
