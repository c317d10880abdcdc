"""One session: its subscriptions, what waits for its client, what is in flight to it, and which of its QoS 2 publishes are under way.

Owns the books of both directions; knows no connection but whether there is one, no other session, no disk: ``shard`` journals what changes here.

Invariants: S1 at most ``receive_maximum`` deliveries are in flight [MQTT-3.3.4-9], but for those that an earlier connection has received. S2 a
packet identifier is 1 + (sequence mod 65,535), and no two in flight share one. S3 deliveries are sent in the order of their sequences, and resent
in that order [MQTT-4.6.0-1] [MQTT-4.6.0-6]. S4 the inbox is within its bounds but for what was sent before. S5 what was sent once is never dropped
for a bound or for its expiry.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from headrace.core.mqtt.message import Message
from headrace.core.mqtt.subscription import Subscription
from headrace.model.errors import HeadraceError

PACKET_IDS: Final = 65_535
NEVER: Final = 0xFFFF_FFFF
"""Session expiry that does not expire."""


class Delivery:
    """One message for one session. ``sequence`` -1: QoS 0, which has none."""

    __slots__ = ("group", "ids", "message", "qos", "released", "retain", "sent", "sequence")

    def __init__(self, message: Message, qos: int, retain: bool, ids: tuple[int, ...], group: str, sequence: int) -> None:
        self.message = message
        self.qos = qos
        self.retain = retain
        self.ids = ids
        self.group = group
        """The shared subscription it came by (as written by its subscribers), for another member to get it when this one leaves."""
        self.sequence = sequence
        self.sent = False
        self.released = False
        """QoS 2: the client has it, PUBREL is under way."""

    @property
    def packet_id(self) -> int:
        return 1 + self.sequence % PACKET_IDS


class Session:
    """See the module's head. Made and ended by its shard."""

    def __init__(self, client_id: str, expiry_s: int, number: int) -> None:
        self.client_id = client_id
        self.expiry_s = expiry_s
        self.number = number
        """Of the session partition that it is in."""
        self.epoch = 0
        """Of its connection: grows with each."""
        self.outlet: Any = None
        """Its connection while it has one (``router.Outlet``)."""
        self.away_ms = 0
        """Wall clock at which its connection was lost."""
        self.back_ms = 0
        """Wall clock until which the connection that it had may go on at this broker, 0 = it may not."""
        self.subscriptions: dict[str, Subscription] = {}
        self.inbox: deque[Delivery] = deque()
        self.inbox_bytes = 0
        self.in_flight: dict[int, Delivery] = {}
        """By packet identifier, in the order in which they were sent."""
        self.lent: dict[int, Any] = {}
        """By packet identifier: deliveries of queues and streams, which keep them. Gone with the connection."""
        self._lent_id = PACKET_IDS
        self.received: dict[int, None] = {}
        """Packet identifiers of QoS 2 publishes of the client that wait for its PUBREL."""
        self.intents: dict[int, int] = {}
        """Packet identifiers of those that are or were about to be given to all who want them, in a cluster, with their numbers (``origins``)."""
        self.passed_over = 0
        """Publishes of QoS 2 since one of ``intents`` was left by an earlier connection and not gone on with, as this broker has counted them."""
        self.receiving: dict[int, list[Callable[[HeadraceError | None], None]]] = {}
        """Packet identifiers of those that other brokers do not have yet, with who else waits for their PUBREC: of this broker's life alone."""
        self.once: Any = None
        """Publishes of its connections that wait to be given out (``once.Once``), from the first of QoS 2 on, in a cluster."""
        self.next_sequence = 0
        self.receive_maximum = PACKET_IDS
        self.dropped = 0

    @property
    def durable(self) -> bool:
        """Whether it outlives its connection, and so a restart."""
        return self.expiry_s > 0

    def expires_ms(self) -> int:
        """Wall clock at which it ends while its client is away; 0 = it has a connection, or never ends."""
        return 0 if self.outlet is not None or self.expiry_s == NEVER else self.away_ms + self.expiry_s * 1000

    # ------------------------------------------------------------ to the client

    def queue(self, delivery: Delivery) -> None:
        """QoS 1 or 2 only; its sequence is the session's next one."""
        assert delivery.sequence == self.next_sequence
        self.next_sequence += 1
        self.inbox.append(delivery)
        self.inbox_bytes += delivery.message.nbytes

    def oldest(self) -> Delivery:
        """Takes what has waited longest out of the inbox."""
        delivery = self.inbox.popleft()
        self.inbox_bytes -= delivery.message.nbytes
        return delivery

    def take(self, wall_ms: int, count_max: int, end_sequence: int) -> tuple[list[Delivery], list[Delivery]]:
        """What may be sent now and is in flight from now on, below ``end_sequence`` and at most ``count_max``; and what has expired meanwhile
        [MQTT-3.3.2-5]."""
        due: list[Delivery] = []
        expired: list[Delivery] = []
        inbox, in_flight = self.inbox, self.in_flight
        lent = self.lent
        while inbox and len(due) < count_max and len(in_flight) + len(lent) < self.receive_maximum:
            delivery = inbox[0]
            if delivery.sequence >= end_sequence:
                break
            if not delivery.sent and delivery.message.expired(wall_ms):
                expired.append(self.oldest())
                continue
            packet_id = delivery.packet_id
            if packet_id in in_flight or packet_id in lent:
                break  # S2: the client owes an acknowledgement since 65,535 deliveries
            in_flight[packet_id] = self.oldest()
            due.append(delivery)  # its sender says ``sent``: the first time it goes without DUP
        return due, expired

    def lend(self, lent: Any) -> int:
        """The packet identifier of a delivery of a queue or stream. They are given out downwards, the session's own upwards."""
        assert len(self.in_flight) + len(self.lent) < self.receive_maximum, "S1"
        packet_id = self._lent_id
        while packet_id in self.lent or packet_id in self.in_flight:
            packet_id = packet_id - 1 or PACKET_IDS
        self._lent_id = packet_id - 1 or PACKET_IDS
        self.lent[packet_id] = lent
        return packet_id

    def acked(self, packet_id: int) -> Delivery | None:
        """PUBACK, or a PUBREC that says it failed: the delivery, which is done, or None if the identifier is not in flight with that QoS."""
        delivery = self.in_flight.get(packet_id)
        if delivery is None or delivery.qos != 1:
            return None
        return self.in_flight.pop(packet_id)

    def refused(self, packet_id: int) -> Delivery | None:
        """PUBREC with a reason from 0x80 on: it is done."""
        delivery = self.in_flight.get(packet_id)
        if delivery is None or delivery.qos != 2 or delivery.released:
            return None
        return self.in_flight.pop(packet_id)

    def released(self, packet_id: int) -> Delivery | None:
        """PUBREC: the client has it; None if there is nothing to release."""
        delivery = self.in_flight.get(packet_id)
        if delivery is None or delivery.qos != 2:
            return None
        delivery.released = True
        return delivery

    def completed(self, packet_id: int) -> Delivery | None:
        """PUBCOMP."""
        delivery = self.in_flight.get(packet_id)
        if delivery is None or not delivery.released:
            return None
        return self.in_flight.pop(packet_id)

    def by_sequence(self, sequence: int) -> Delivery | None:
        """What is in flight or waits with that sequence."""
        delivery = self.in_flight.get(1 + sequence % PACKET_IDS)
        if delivery is not None and delivery.sequence == sequence:
            return delivery
        return next((d for d in self.inbox if d.sequence == sequence), None)

    def remove(self, sequence: int) -> None:
        """Whatever has that sequence is done."""
        delivery = self.in_flight.get(1 + sequence % PACKET_IDS)
        if delivery is not None and delivery.sequence == sequence:
            del self.in_flight[delivery.packet_id]
            return
        for i, waiting in enumerate(self.inbox):
            if waiting.sequence == sequence:
                del self.inbox[i]
                self.inbox_bytes -= waiting.message.nbytes
                return

    def parked(self) -> None:
        """Its connection is gone: what was sent and is not with the client for certain waits again, before all that waits [MQTT-4.4.0-1]."""
        self.lent.clear()
        back = [d for d in self.in_flight.values() if not d.released]
        for delivery in reversed(back):
            del self.in_flight[delivery.packet_id]
            self.inbox.appendleft(delivery)
            self.inbox_bytes += delivery.message.nbytes

    def go_on(self, begun: int, sent: int, skipped: list[int]) -> list[int]:
        """Its connection goes on: what was sent on it below ``sent`` is in flight, but for what was ``skipped``, which is done and returned. What
        is at or above ``begun`` and not below ``sent`` was never sent."""
        gone: list[int] = []
        while self.inbox and self.inbox[0].sequence < sent:
            delivery = self.oldest()
            if delivery.sequence in skipped:
                gone.append(delivery.sequence)
            else:
                delivery.sent = True
                self.in_flight[delivery.packet_id] = delivery
        for delivery in self.inbox:
            delivery.sent = delivery.sent and delivery.sequence < begun
        return gone

    # ------------------------------------------------------------ upkeep

    def check(self) -> None:
        """Asserts the invariants."""
        assert self.inbox_bytes == sum(d.message.nbytes for d in self.inbox)
        waiting = [d.sequence for d in self.inbox]
        assert waiting == sorted(set(waiting)), "S3"
        assert not self.lent.keys() & self.in_flight.keys(), "S2"
        assert all(packet_id == d.packet_id for packet_id, d in self.in_flight.items()), "S2"
        assert not waiting or waiting[-1] < self.next_sequence
        assert not waiting or all(d.sequence < waiting[0] for d in self.in_flight.values() if not d.released), "S3"
