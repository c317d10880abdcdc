"""The sessions of this broker: opened, resumed, away for ``reconnect_grace``, over; and how a subscription ends.

Owns the table of sessions by their tokens. A subscription without a token of its own ends with its connection, the others wait with their session.
"""

from __future__ import annotations

from collections.abc import Iterator, ValuesView
from typing import TYPE_CHECKING

from headrace.broker.queue_partition import QueuePartition
from headrace.broker.session import Session
from headrace.broker.sink import Sink
from headrace.broker.stream_partition import StreamPartition
from headrace.broker.subscription import StreamSubscription, Subscription
from headrace.model.errors import Draining, HeadraceError, NotFound, Quarantined
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.catalogue import Item


class Sessions:
    """See the module's head."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._by_token: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_token)

    def values(self) -> ValuesView[Session]:
        return self._by_token.values()

    # ------------------------------------------------------------ sessions

    def open(self, token: str, name: str, sink: Sink) -> tuple[Session, bool]:
        """The session of that token with ``sink`` as its connection, and whether it was resumed. A second connection with a token takes it over."""
        session = self._by_token.get(token) if token else None
        if session is None:
            session = Session(token or self._broker.ambient.token(16), name, sink)
            self._by_token[session.token] = session
            return session, False
        old, session.sink = session.sink, sink
        if old is not None and old is not sink:
            self._park(session)
            old.close(Draining("another connection took this session over"))
        session.away_since_ms = 0
        return session, True

    def lost(self, session: Session, sink: Sink) -> None:
        """Suspends what the connection had; it waits for ``reconnect_grace``."""
        if session.sink is not sink:
            return
        session.sink = None
        session.away_since_ms = max(1, self._broker.now_ms)
        self._park(session)
        if not session.subscriptions:
            self._by_token.pop(session.token, None)

    def _park(self, session: Session) -> None:
        for subscription in list(session.channels.values()):
            if subscription.token:
                subscription.suspend()
                self._broker.groups.suspended(subscription, self._broker.now_ms)
            else:
                self.drop(subscription)
        session.channels.clear()

    def expire(self) -> None:
        """Ends sessions, and subscriptions of sessions that are back, for which nobody came in time."""
        grace = self._broker.config.connection.reconnect_grace_ms
        for session in list(self._by_token.values()):
            if session.sink is None and self._broker.now_ms - session.away_since_ms >= grace:
                del self._by_token[session.token]
                for subscription in list(session.subscriptions.values()):
                    self.drop(subscription)
            elif session.sink is not None:
                for subscription in list(session.subscriptions.values()):
                    if subscription.sink is None and not subscription.closed:
                        subscription.unclaimed_ms = subscription.unclaimed_ms or self._broker.now_ms
                        if self._broker.now_ms - subscription.unclaimed_ms >= grace:
                            self.drop(subscription)

    # ------------------------------------------------------------ how subscriptions end

    def drop(self, subscription: Subscription) -> None:
        """Ends a subscription for good: leases return, its group is told."""
        broker, session = self._broker, subscription.session
        if session.channels.get(subscription.channel) is subscription:
            del session.channels[subscription.channel]
        if session.subscriptions.get(subscription.token) is subscription:
            del session.subscriptions[subscription.token]
        subscription.leave(broker.now_ms, broker.wall_ms)
        broker.groups.left(subscription, broker.now_ms)

    def isolate(self, subscription: StreamSubscription, partition: StreamPartition, why: str) -> None:
        """A reader goes on without a partition that is quarantined, unless it asked for that one by its number or has no other."""
        if subscription.asked.partitions or (len(subscription.partitions) == 1 and not subscription.group):
            self.end(subscription, Quarantined(f"partition {partition.number} of {partition.item.name!r} is quarantined: {why}"))
            return
        del subscription.partitions[partition.number]
        partition.close_reader(subscription)
        subscription.isolated(partition.number, why)
        if subscription.sink is not None:
            self._broker.touch(subscription.sink)

    def end_readers(self, partition: QueuePartition | StreamPartition, error: HeadraceError) -> None:
        """Ends every subscription that has this partition, or goes on without it because it was isolated, and says why."""
        subscriptions: list[Subscription] = list(partition.subscriptions.values())
        if partition.quarantined:
            subscriptions += [
                subscription
                for session in self._by_token.values()
                for subscription in session.channels.values()
                if isinstance(subscription, StreamSubscription)
                and subscription.item.id == partition.item.id
                and partition.number not in subscription.partitions
                and partition.number in (subscription.asked.partitions or self._broker.groups.assignment(subscription)[0])
            ]
        for subscription in subscriptions:
            self.end(subscription, error)

    def end(self, subscription: Subscription, error: HeadraceError) -> None:
        """Ends a subscription and says why."""
        if subscription.sink is not None:
            event = control.SubscriptionClosed(channel=subscription.channel, code=error.code, message=str(error), detail=dict(error.detail))
            subscription.sink.event(event)
            self._broker.touch(subscription.sink)
        self.drop(subscription)

    def end_all(self, item: Item) -> HeadraceError:
        """Ends all that this broker has of a queue or stream that was deleted; what they were told."""
        gone = NotFound(f"{item.kind} {item.name!r} was deleted")
        for session in list(self._by_token.values()):
            for subscription in [*session.channels.values(), *session.subscriptions.values()]:
                if subscription.item.id == item.id and not subscription.closed:
                    if subscription.sink is not None:
                        subscription.sink.event(control.SubscriptionClosed(channel=subscription.channel, code=gone.code, message=str(gone)))
                        self._broker.touch(subscription.sink)
                    self.drop(subscription)
        return gone
