"""Consumers of queues and readers of streams for one MQTT connection: a ``Sink`` of the broker on one side, lent deliveries on the other.

Owns which subscriptions the connection has open and how its acknowledgements become settlements. Invariants: N1 what is lent was granted to this
connection and is not settled but as its client said. N2 when the connection ends, all that it holds returns at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.broker.attach import Attachments
from headrace.broker.subscription import QueueSubscription, StreamSubscription
from headrace.core.mqtt.capture import addressed
from headrace.core.mqtt.captured import Capture
from headrace.core.mqtt.connection import Connection
from headrace.core.mqtt.lending import Lent, Opened
from headrace.core.mqtt.subscription import Subscription
from headrace.gateways.mqtt.asked import Asked, asked_of, message_id, parse_message_id
from headrace.gateways.mqtt.records import properties_of
from headrace.model.errors import Conflict, HeadraceError, Invalid, Malformed, NotFound, Refused
from headrace.wire import control
from headrace.wire.batch import iter_records
from headrace.wire.frames import Settle
from headrace.wire.mqtt import properties as prop

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.gateways.mqtt.connection import MqttConnection


class Consumed:
    """One subscription."""

    __slots__ = ("capture", "channel", "closed", "explicit", "subscription")

    def __init__(self, channel: int, subscription: Subscription, capture: Capture) -> None:
        self.channel = channel
        self.subscription = subscription
        self.capture = capture
        self.explicit = ("settle", "explicit") in subscription.options
        self.closed = False


class Consuming:
    """See the module's head; a ``core.mqtt.lending.Consumers``."""

    pushes: frozenset[str] = frozenset()

    def __init__(self, broker: Broker, shell: MqttConnection, machine: Connection) -> None:
        self.broker = broker
        self.shell = shell
        self.machine = machine
        self.blocked = shell.blocked
        self.dirty = False
        self.in_flight_bytes = 0
        self.session, _ = broker.sessions.open("", machine.client_id[:255], self)
        self.attachments = Attachments(broker, self.session, self)
        self._by_filter: dict[str, Consumed] = {}
        self._by_channel: dict[int, Consumed] = {}
        self._settling: dict[int, Opened] = {}
        self._last_channel = self._last_settle = 0
        self._ended = False

    # ------------------------------------------------------------ opening and closing

    def begin(self, subscription: Subscription, opened: Opened, *, again: bool = False) -> None:
        self.cease(subscription.filter)
        capture = addressed(subscription.path)
        assert capture is not None
        channel = self._last_channel % 65_535 + 1
        while channel in self._by_channel:  # ``channels_max`` bounds them below that
            channel = channel % 65_535 + 1
        self._last_channel = channel
        consumed = Consumed(channel, subscription, capture)
        self._by_filter[subscription.filter] = self._by_channel[channel] = consumed
        self.broker.spawn(self._open(consumed, opened))

    async def _open(self, consumed: Consumed, opened: Opened) -> None:
        try:
            asked = asked_of(consumed.subscription, self.machine.client_id, self.broker.config.limits.prefetch_messages_max)
            if asked.kind == "queue":
                await self.attachments.subscribe(self._queue(consumed.channel, asked))
            else:
                await self.attachments.subscribe_stream(self._stream(consumed.channel, asked))
        except HeadraceError as e:
            self._forget(consumed)
            opened(e)
            return
        if consumed.closed:
            self.attachments.unsubscribe(control.Unsubscribe(channel=consumed.channel))
        opened(None)

    def _queue(self, channel: int, asked: Asked) -> control.Subscribe:
        return control.Subscribe(channel=channel, name=asked.name, prefetch=asked.prefetch, auto_ack=not asked.acks, cohort=asked.group)

    def _stream(self, channel: int, asked: Asked) -> control.SubscribeStream:
        return control.SubscribeStream(
            channel=channel, name=asked.name, start=asked.start, cursor=asked.cursor, group=asked.group, prefetch=asked.prefetch
        )

    def cease(self, filter: str) -> None:
        consumed = self._by_filter.get(filter)
        if consumed is not None:
            self._forget(consumed)
            self.attachments.unsubscribe(control.Unsubscribe(channel=consumed.channel))
            self.machine.sending.take_back(consumed)

    def _forget(self, consumed: Consumed) -> None:
        consumed.closed = True
        if self._by_filter.get(consumed.subscription.filter) is consumed:
            del self._by_filter[consumed.subscription.filter]
        self._by_channel.pop(consumed.channel, None)

    def end(self) -> None:
        self._ended = True
        for consumed in list(self._by_channel.values()):
            self._forget(consumed)
        self.broker.sessions.lost(self.session, self)

    # ------------------------------------------------------------ from the broker (``Sink``)

    def deliver(
        self,
        channel: int,
        partition: int,
        epoch: int,
        first_offset: int,
        count: int,
        attempt: int,
        base_offset: int,
        blobs: Sequence[bytes | memoryview],
        nbytes: int,
        flags: int,
    ) -> None:
        consumed = self._by_channel.get(channel)
        if consumed is None or self._ended:
            return
        capture, subscription, lent = consumed.capture, consumed.subscription, self.machine.sending.lent
        reached, end = first_offset, first_offset + count
        try:
            for offset, record, _ in iter_records(b"".join(blobs), base_offset, first=first_offset, end=end):
                about = [("message-id", message_id(partition, epoch, offset)), (capture.kind, capture.name)]
                if capture.kind == "queue":
                    about.append(("delivery-count", str(attempt)))
                properties = properties_of(record, about)
                if subscription.identifier:
                    properties[prop.SUBSCRIPTION_IDENTIFIER] = [subscription.identifier]
                lent.append(Lent(subscription.path, record.value or b"", properties, subscription.qos, consumed, partition, epoch, offset))
                reached = offset + 1
        except Malformed:  # a publisher's nonsense: to the dead letters, and on
            self._settle(consumed, partition, epoch, (reached, end - reached), Settle.REJECT)
        self.broker.touch(self.shell)

    def settled(self, channel: int, correlation: int, count: int, stale: Sequence[tuple[int, int]]) -> None:
        told = self._settling.pop(correlation, None)
        if told is not None:
            told(None if count else Refused("that delivery is not held any more: its lease has run out, or it was settled"))

    def event(self, event: control.Event) -> None:
        if not isinstance(event, control.SubscriptionClosed):
            return  # what else there is has no word in MQTT
        consumed = self._by_channel.get(event.channel)
        session = self.machine.session
        if consumed is not None and session is not None:
            self._forget(consumed)  # the caller is not done with this sink yet
            self.broker.loop.call_soon(self.machine.natives.ended, session, consumed.subscription, event.message)

    def flush(self) -> None:
        self.shell.flush()

    def confirmed(self, channel: int, first: int, count: int, base_offset: int, level: int, duplicate: bool) -> None:
        raise AssertionError("it publishes nothing")

    def confirmed_all(self, frames: bytes) -> None:
        raise AssertionError("it publishes nothing")

    def refused(self, channel: int, first: int, count: int, error: HeadraceError) -> None:
        raise AssertionError("it publishes nothing")

    def close(self, error: HeadraceError | None) -> None:
        self.shell.close(error)

    def fetch_end(self, channel: int, correlation: int, count: int) -> None:
        raise AssertionError("it pulls nothing")

    # ------------------------------------------------------------ from the client

    def given(self, lent: Lent) -> None:
        subscription = self.session.channels.get(lent.consumed.channel)
        if isinstance(subscription, QueueSubscription):
            subscription.add_credit(1, len(lent.payload))
        elif isinstance(subscription, StreamSubscription) and lent.partition in subscription.partitions:
            subscription.partitions[lent.partition].credit(subscription, 1, len(lent.payload))

    def acked(self, lent: Lent, failed: bool) -> None:
        if not lent.qos:
            self.given(lent)
        elif failed or not lent.consumed.explicit:
            action = Settle.RETRY if failed else Settle.ACK
            self._settle(lent.consumed, lent.partition, lent.epoch, (lent.offset, 1), action)

    def _settle(self, consumed: Consumed, number: int, epoch: int, range: tuple[int, int], action: Settle, told: Opened | None = None) -> None:
        """Settles a range; of a stream: its cursor moves over it."""
        subscription = self.session.channels.get(consumed.channel)
        correlation = 0
        if told is not None:
            correlation = self._last_settle = self._last_settle % 0xFFFF_FFFF + 1
            self._settling[correlation] = told
        if isinstance(subscription, QueueSubscription):
            partition = subscription.partitions.get(number)
            if partition is not None and partition.epoch == epoch:
                partition.settle(
                    subscription, action, [range], up_to=False, delay_ms=None, drop=False, correlation=correlation, confirm=told is not None
                )
                return
        elif isinstance(subscription, StreamSubscription):
            reader = subscription.partitions.get(number)
            if reader is not None:
                reader.ack(subscription, [range], up_to=False, epoch=epoch, correlation=correlation, confirm=told is not None)
                return
        self.settled(consumed.channel, correlation, 0, [range])

    def settle(self, name: str, id: str, action: int, settled: Opened) -> None:
        consumed = next((c for c in self._by_channel.values() if c.capture.kind == "queue" and c.capture.name == name), None)
        if consumed is None:
            settled(NotFound(f"this connection has not subscribed to $queue/{name}"))
            return
        if not consumed.explicit:
            settled(Conflict("PUBACK settles here: subscribe with the user property settle = explicit"))
            return
        try:
            partition, epoch, offset = parse_message_id(id)
        except Invalid as e:
            settled(e)
            return
        self._settle(consumed, partition, epoch, (offset, 1), Settle(action), settled)

    # ------------------------------------------------------------ back-pressure

    def block(self) -> None:
        self.blocked = True
        self.attachments.block()

    def unblock(self) -> None:
        self.blocked = False
        self.attachments.wake()

