"""Queues and streams on one MQTT connection: subscribing to them, acknowledging and settling what they deliver.

Owns which subscriptions may be such and how their failures look on the wire. Consuming itself is the host's (``lending.Consumers``).
A delivery has QoS 1 at most: what is settled twice is settled once, so the second round trip of QoS 2 would buy nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.core.mqtt.capture import addressed, is_native
from headrace.core.mqtt.lending import Consumers
from headrace.core.mqtt.session import Session
from headrace.core.mqtt.subscription import Subscription
from headrace.model.errors import HeadraceError
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Subscribe
from headrace.wire.mqtt.publish import Publish
from headrace.wire.mqtt.reasons import ALLOWED, Reason, Type

if TYPE_CHECKING:
    from headrace.core.mqtt.connection import Connection

QOS_MAX = 1


class Natives:
    """See the module's head."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.used = False
        """Something was consumed on this connection: it holds deliveries that only its own broker can settle."""
        self._consumers: Consumers | None = None

    def subscription(self, path: str, qos: int, identifier: int, asked: Subscribe) -> Subscription | None:
        """What a filter of a SUBSCRIBE asks for; None: it names no queue or stream."""
        target = addressed(path)
        if target is None or target.key is not None or "+" in path or "#" in path:
            return None
        options = tuple((name, value) for name, value in asked.properties.get(prop.USER_PROPERTY, ()))
        return Subscription(path, path, "", min(qos, QOS_MAX), identifier=identifier, options=options)

    def subscribed(self, asked: Subscribe, reasons: list[int], opening: dict[int, Subscription]) -> None:
        """Answers a SUBSCRIBE once all it opens is open. ``opening``: by its place in ``reasons``."""
        connection = self.connection
        session, known = connection.session, connection.answers.later()
        left = len(opening)

        def opened(at: int, subscription: Subscription, error: HeadraceError | None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                reasons[at] = error.mqtt if error.mqtt in ALLOWED[Type.SUBACK] else int(Reason.IMPLEMENTATION_SPECIFIC_ERROR)
                self._forget(session, subscription)
            if not left:
                known(encoding.suback(connection.version, asked.packet_id, reasons))

        for at, subscription in opening.items():
            self.consumers.begin(subscription, _bind(opened, at, subscription))

    def resume(self, session: Session) -> None:
        """The client is back, with a session that had subscribed."""
        for subscription in list(session.subscriptions.values()):
            if is_native(subscription.path):
                self.consumers.begin(subscription, self._resumed(session, subscription), again=True)

    def _resumed(self, session: Session, subscription: Subscription) -> Callable[[HeadraceError | None], None]:
        def opened(error: HeadraceError | None) -> None:
            if error is not None:
                self.ended(session, subscription, str(error))

        return opened

    def ended(self, session: Session, subscription: Subscription, why: str) -> None:
        """A queue or stream is not delivered from any more: MQTT has no word for it but the end of the connection."""
        if self.connection.session is session:
            self._forget(session, subscription)
            self.connection.fail(Reason.ADMINISTRATIVE_ACTION, f"{subscription.filter}: {why}")

    def _forget(self, session: Session | None, subscription: Subscription) -> None:
        connection = self.connection
        if session is not None and connection.session is session and session.subscriptions.get(subscription.filter) is subscription:
            connection.router.unsubscribe(session, subscription.filter)
            connection.host.committed(_nothing)

    def unsubscribed(self, filter: str) -> None:
        if self._consumers is not None and is_native(filter):
            self._consumers.cease(filter)

    def acked(self, session: Session, packet_id: int, reason: int) -> bool:
        """Whether a PUBACK was for a delivery of a queue or stream."""
        lent = session.lent.pop(packet_id, None)
        if lent is None:
            return False
        self.consumers.acked(lent, failed=reason >= 0x80)
        if self.connection.sending.more:
            self.connection.host.touch(self.connection.shell)
        return True

    def settle(self, name: str, action: int, publish: Publish, settled: Callable[[HeadraceError | None], None]) -> None:
        """A publish that settles a delivery: which one its user property ``message-id`` says, or its payload."""
        found = dict((publish.properties or {}).get(prop.USER_PROPERTY, ()))
        self.consumers.settle(name, found.get("message-id") or publish.payload[:100].decode(errors="replace"), action, settled)

    def lost(self) -> None:
        """The connection is gone."""
        if self._consumers is not None:
            consumers, self._consumers = self._consumers, None
            consumers.end()
            self.connection.sending.lent.clear()

    @property
    def consumers(self) -> Consumers:
        if self._consumers is None:
            self.used = True
            self._consumers = self.connection.sending.consumers = self.connection.host.consumers(self.connection)
        return self._consumers


def _bind(
    opened: Callable[[int, Subscription, HeadraceError | None], None], at: int, subscription: Subscription
) -> Callable[[HeadraceError | None], None]:
    return lambda error: opened(at, subscription, error)


def _nothing() -> None:
    pass
