"""What goes out on one MQTT connection: the packets of this turn, deliveries among them, within the client's bounds and ours.

Owns the buffer, topic aliases towards the client, and when a delivery of the session may be sent. To the router it is the session's connection
(``router.Outlet``). Knows nothing of what the client sends.

Invariants: C1 nothing is sent before CONNACK [MQTT-3.2.0-1]. C3 a delivery of a durable session is sent once it is durable. C5 no packet is larger
than the client takes [MQTT-3.1.2-24].
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from headrace.core.mqtt.host import Host
from headrace.core.mqtt.lending import Consumers, Lent
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.session import Session
from headrace.wire.mqtt import encoding

PUMP_COUNT: Final = 64
"""Deliveries that are taken at a time while the connection has room."""
_ENDLESS: Final = 1 << 62


class Sending:
    """See the module's head. ``taken_over`` is called with the reason when it has the session no more, 0: another broker has it."""

    def __init__(self, host: Host, write_bytes_high: int, shell: Any, taken_over: Callable[[int], None]) -> None:
        self.host = host
        self.shell = shell
        self.version = 0
        self.session: Session | None = None
        self.accepted = False
        """CONNACK is on its way."""
        self.blocked = False
        """The peer reads too slowly: it is given no deliveries."""
        self.alias_max = 0
        self.packet_bytes_max = 0
        self.dropped = 0
        """Messages of QoS 0 for which there was no room, and deliveries too large for the client."""
        self.delivered = 0
        self.consumers: Consumers | None = None
        self.lent: deque[Lent] = deque()
        """Deliveries of queues and streams that wait for room; within what their consumers prefetch."""
        self.out: list[bytes] = []
        self.begun = 0
        """What the session had below this sequence may have been sent before."""
        self.sent = 0
        """What the session has below this sequence, and has still, was sent on this connection."""
        self.skipped: dict[int, None] = {}
        """But for these, which were given up; their end is not durable yet."""
        self._write_bytes_high = write_bytes_high
        self._taken_over = taken_over
        self._out_bytes = 0
        self._aliases: dict[str, int] = {}
        self._ready = 0
        self._waking = False

    def begin(self, first: list[bytes], ready: int, begun: int = -1) -> None:
        """CONNACK and what follows it at once; what the session has below ``ready`` is durable. ``begun``: of a connection that goes on."""
        assert self.session is not None
        self.accepted = True
        self.begun = ready if begun < 0 else begun
        self._ready = ready if self.session.durable else _ENDLESS
        self.out[:0] = first
        if self.session.durable and self.session.next_sequence > ready:
            self.wake()
        self.host.touch(self.shell)

    def put(self, packet: bytes) -> None:
        """Anything but a delivery."""
        self.out.append(packet)
        self.host.touch(self.shell)

    def last(self, packet: bytes) -> None:
        """Nothing comes after it, and nothing but it if the connection was not accepted."""
        if not self.accepted:
            self.out.clear()
        if packet:
            self.out.append(packet)
        self.host.touch(self.shell)

    # ------------------------------------------------------------ ``router.Outlet``

    def send(self, message: Message, retain: bool, ids: tuple[int, ...]) -> None:
        """A message of QoS 0, now or never."""
        if self.blocked or self._out_bytes > self._write_bytes_high:
            self.dropped += 1
            return
        if self.alias_max:
            frame = self._aliased(message, 0, retain, False, ids, 0)
        else:
            frame = message.frame(self.version, retain, ids, self.host.wall_ms if message.expires_ms else 0)
        if self.packet_bytes_max and len(frame) > self.packet_bytes_max:
            self.dropped += 1  # [MQTT-3.1.2-24]
            return
        self.delivered += 1
        if not self.out:
            self.host.touch(self.shell)
        self.out.append(frame)
        self._out_bytes += len(frame)

    def wake(self) -> None:
        """There is something in the session's inbox; it is sent once it is durable (C3)."""
        session = self.session
        if session is None or not session.durable:
            self.host.touch(self.shell)
            return
        if self._waking or not self.accepted:
            return
        self._waking = True
        bound = session.next_sequence

        def durable() -> None:
            self._waking = False
            if self.session is session:
                self._ready = bound
                if session.next_sequence > bound:
                    self.wake()
                self.host.touch(self.shell)

        self.host.router.await_session(session)  # it may be in the journal already, and not durable yet
        self.host.committed(durable)

    def replaced(self, reason: int) -> None:
        """It has the session no more: its own books are closed already."""
        self.session = None
        self._taken_over(reason)

    def over(self, nobody: Any) -> None:
        """Its connection is over: it refers to ``nobody`` in place of that."""
        self.session = None
        self.shell = nobody
        self._taken_over = _by_nobody

    def moved(self) -> None:
        self.session = None
        self._taken_over(0)

    def skip(self, sequences: list[int]) -> None:
        self.skipped.update(dict.fromkeys(sequences))

        def durable() -> None:
            for sequence in sequences:
                self.skipped.pop(sequence, None)

        self.host.committed(durable)

    def take_back(self, consumed: Any) -> list[Lent]:
        """Deliveries of one consumer that were not sent are not sent any more."""
        found = [lent for lent in self.lent if lent.consumed is consumed]
        if found:
            self.lent = deque([lent for lent in self.lent if lent.consumed is not consumed])
        return found

    # ------------------------------------------------------------ out

    def output(self) -> list[bytes]:
        """What is to be written now, deliveries included."""
        self._pump()
        out, self.out = self.out, []
        self._out_bytes = 0
        return out

    @property
    def more(self) -> bool:
        """Whether deliveries wait that could be sent if there were room."""
        session = self.session
        if session is None or len(session.in_flight) + len(session.lent) >= session.receive_maximum:
            return False
        return bool(session.inbox or self.lent)

    def _aliased(self, message: Message, qos: int, retain: bool, dup: bool, ids: tuple[int, ...], packet_id: int) -> bytes:
        """A PUBLISH with an alias, while there are aliases."""
        aliases = self._aliases
        alias = aliases.get(message.topic, 0)
        named = not alias
        if named and len(aliases) < self.alias_max:
            alias = len(aliases) + 1
        if not alias:
            head, tail = message.parts(self.version, qos, retain, dup, ids, self.host.wall_ms) if qos else (b"", b"")
            return head + packet_id.to_bytes(2, "big") + tail if qos else message.frame(self.version, retain, ids, self.host.wall_ms)
        frame = message.aliased(self.version, qos, retain, dup, ids, self.host.wall_ms, alias, named, packet_id)
        if not self.packet_bytes_max or len(frame) <= self.packet_bytes_max:
            aliases[message.topic] = alias  # it will be sent, so the client knows it
        return frame

    def _pump(self) -> None:
        session = self.session
        if session is None or not self.accepted or self.blocked:
            return
        wall_ms, version, most = self.host.wall_ms, self.version, self.packet_bytes_max
        gone: list[int] = []
        while self._out_bytes <= self._write_bytes_high:
            due, expired = session.take(wall_ms, PUMP_COUNT, self._ready)
            gone.extend(d.sequence for d in expired)
            for delivery in due:
                message, packet_id = delivery.message, delivery.packet_id
                if self.alias_max:
                    frame = self._aliased(message, delivery.qos, delivery.retain, delivery.sent, delivery.ids, packet_id)
                else:
                    head, tail = message.parts(version, delivery.qos, delivery.retain, delivery.sent, delivery.ids, wall_ms)
                    frame = head + packet_id.to_bytes(2, "big") + tail
                if most and len(frame) > most:
                    self.dropped += 1
                    session.remove(delivery.sequence)  # [MQTT-3.1.2-25]
                    gone.append(delivery.sequence)
                    continue
                delivery.sent = True
                self.sent = delivery.sequence + 1
                self.out.append(frame)
                self._out_bytes += len(frame)
                self.delivered += 1
            if not due:
                break
        if gone:
            self.host.router.done(session, gone)
            self.skip(gone)
        if self.lent:
            self._pump_lent(session)

    def _pump_lent(self, session: Session) -> None:
        consumers = self.consumers
        assert consumers is not None
        waiting = self.lent
        while waiting and self._out_bytes <= self._write_bytes_high:
            lent = waiting[0]
            if lent.qos and len(session.in_flight) + len(session.lent) >= session.receive_maximum:
                break
            waiting.popleft()
            packet_id = session.lend(lent) if lent.qos else 0
            properties = lent.properties if self.version == 5 else None
            frame = encoding.publish(self.version, lent.topic, lent.payload, qos=lent.qos, packet_id=packet_id, properties=properties)
            if self.packet_bytes_max and len(frame) > self.packet_bytes_max:
                self.dropped += 1
                session.lent.pop(packet_id, None)
                consumers.acked(lent, failed=True)  # [MQTT-3.1.2-25]
                continue
            self.out.append(frame)
            self._out_bytes += len(frame)
            self.delivered += 1
            if not lent.qos:
                consumers.given(lent)


def _by_nobody(_: int) -> None:
    pass
