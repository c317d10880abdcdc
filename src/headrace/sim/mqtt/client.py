"""A small MQTT client on virtual time, made of the project's own codec: what it was sent and what it said stands in the books.

Owns one client's side of the protocol: what it has in flight both ways, over its connections, as a client that forgets nothing. Decides nothing of
when it connects and what it says (``people``). A connection that it deserts stays open: its packets are not taken, but it may be asked whether
anybody still serves it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from headrace.sim.mqtt.books import NEVER, Books, Got, Kept, Published, Wanted
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Ack, Connack, Connect, Disconnect, Filter, Suback, Unsuback, Will
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.properties import Properties
from headrace.wire.mqtt.publish import Publish
from headrace.wire.mqtt.reasons import Type

PORT: Final = 1883
KEEP_ALIVE_S: Final = 2
SILENT_S: Final = 3.0
"""A broker that has said nothing for so long is thought to be gone."""
WAIT_S: Final = 8.0
"""For a CONNACK: longer than a broker looks for who serves a session."""
EXPIRY_S: Final = 3600
LAST_ID: Final = 65_000
"""Packet identifiers from here on are used on deserted connections only."""


class Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, device: Device, broker: str) -> None:
        self.device = device
        self.broker = broker
        self.over = False
        self.accepted = False
        self.heard_at = asyncio.get_running_loop().time()
        self.connack: asyncio.Future[Connack | None] = asyncio.get_running_loop().create_future()
        self.fenced: dict[int, Published] = {}
        """What was published on it after another one had the session, by packet identifier."""
        self.had: dict[int, int] = {}
        """Numbers of the messages that came on it, by packet identifier."""
        self._parser = Parser(1 << 28, version=device.version)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True
        if not self.connack.done():
            self.connack.set_result(None)
        self.device.lost(self)

    def send(self, data: bytes) -> None:
        if self._transport is not None and not self.over:
            self._transport.write(data)

    def end(self) -> None:
        """Without a word."""
        self.over = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """What was said last still arrives."""
        self.over = True
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        for packet in self._parser.feed(data):
            if self.over:
                return
            if isinstance(packet, Connack):
                if not self.connack.done():
                    self.connack.set_result(packet)
                    if not packet.reason:
                        self.device.begin(self, packet)  # at once: what follows it may be here already
            elif isinstance(packet, Disconnect):
                self.end()
                self.device.lost(self)
            elif self.device.line is self:
                self.device.take(packet)
            else:
                self._deserted(packet)
        if self._parser.fault is not None:
            self.device.books.broken.append(f"M2 {self.broker} said to {self.device.client_id} what is no MQTT: {self._parser.fault}")

    def _deserted(self, packet: Any) -> None:
        if isinstance(packet, Ack) and packet.type == Type.PUBACK and packet.packet_id in self.fenced and packet.reason < 0x80:
            message = self.fenced[packet.packet_id]
            client_id = self.device.client_id
            self.device.books.broken.append(f"M8 {self.broker} took {message.number} of {client_id}, which was served elsewhere by then")


class _Sent:
    """A publish that is not done."""

    def __init__(self, message: Published, packet_id: int) -> None:
        self.message = message
        self.packet_id = packet_id
        self.received = False
        """Its PUBREC has come."""


class Device:
    """See the module's head."""

    keep_alive_s = KEEP_ALIVE_S
    silent_s = SILENT_S

    def __init__(self, books: Books, client_id: str, version: int, qos: int, *, durable: bool) -> None:
        self.books = books
        self.client_id = client_id
        self.version = version
        self.durable = durable
        self.kept = books.sessions[client_id] = Kept(client_id, qos, durable)
        self.line: Line | None = None
        """The connection that it has: accepted, and not lost as far as it knows."""
        self.deserted: list[Line] = []
        self.resumed = self.taken_over = 0
        self.sending: dict[int, _Sent] = {}
        """By packet identifier, in the order in which they were sent first."""
        self.incoming: dict[int, int] = {}
        """QoS 2: packet identifiers that wait for PUBREL, and the numbers that came with them."""
        self.will: Published | None = None
        self._asking: dict[int, list[Wanted]] = {}
        self._known = False
        """A session of it was acknowledged, and has to be there from then on."""
        self._last_id = 0
        self._sessions = 0

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    # ------------------------------------------------------------ connections

    async def connect(self, broker: str, *, desert: bool = False, will_delay_s: int = 0, will: Published | None = None) -> bool:
        """Whether it has a connection to that broker now. ``desert``: the one that it had is left open."""
        old, self.line = self.line, None
        if old is not None:
            if desert:
                self.deserted.append(old)
            else:
                old.end()
        line = Line(self, broker)
        try:
            async with asyncio.timeout(WAIT_S):
                await asyncio.get_running_loop().create_connection(lambda: line, *self.address(broker))
                line.send(encoding.connect(self._asked(will, will_delay_s)))
                if will is not None:
                    will.most = 1  # from now on it may be published
                connack = await line.connack
        except (OSError, TimeoutError):
            line.end()
            return False
        if connack is None or connack.reason:
            line.end()
            return False
        return True

    def address(self, broker: str) -> tuple[str, int]:
        """Where that broker listens."""
        return broker, PORT

    def _asked(self, will: Published | None, delay_s: int) -> Connect:
        five = self.version == 5
        properties: Properties = {prop.SESSION_EXPIRY_INTERVAL: EXPIRY_S} if five and (self.durable or delay_s) else {}
        said = None
        if will is not None:
            delay: Properties = {prop.WILL_DELAY_INTERVAL: delay_s} if five and delay_s else {}
            said = Will(will.topic, b"%d" % will.number, will.qos, will.retain, delay)
        return Connect(self.client_id, self.version, not self.durable, self.keep_alive_s, said, properties=properties)

    def begin(self, line: Line, connack: Connack) -> None:
        """It is connected."""
        line.accepted = True
        self.line = line
        if connack.session_present and self.durable:
            self.resumed += self._known
            self._again(line)
        else:
            if connack.session_present:
                self.books.broken.append(f"M7 {self.client_id} began anew and was given an old session")
            elif self._known and self.durable:
                self.books.broken.append(f"M7 the session of {self.client_id} is lost, says {line.broker} at {self.now:.3f}")
            self._forget()
            self._sessions += 1
        self._known = True
        self.taken_over += any(not old.over for old in self.deserted)
        for old in self.deserted:
            self._ask_deserted(old)

    def _forget(self) -> None:
        """There is no session any more of what was."""
        for sent in self.sending.values():
            sent.message.refused = sent.message.acked_at == NEVER
        self.sending.clear()
        self.incoming.clear()
        self._asking.clear()
        for wanted in self.kept.wanted:
            wanted.gone_at = min(wanted.gone_at, self.now)

    def _again(self, line: Line) -> None:
        self._asking.clear()
        for sent in self.sending.values():
            if sent.received:
                line.send(encoding.ack(encoding.PUBREL, sent.packet_id))
                continue
            sent.message.again = True
            self._write(line, sent.message, sent.packet_id, dup=True)

    def _ask_deserted(self, line: Line) -> None:
        """A publish on a connection that was taken over: nobody may acknowledge it."""
        if not line.over and line.accepted:
            message = self.books.message(f"{self.client_id}-deserted", "t/0", 1)
            packet_id = LAST_ID + len(line.fenced)
            line.fenced[packet_id] = message
            self._write(line, message, packet_id)

    def lost(self, line: Line) -> None:
        """A connection has ended."""
        if self.line is line:
            self.line = None

    def beat(self) -> None:
        """Called several times a second."""
        for line in [*self.deserted, *([self.line] if self.line is not None else [])]:
            if line.over:
                continue
            if self.now - line.heard_at > self.silent_s:
                line.end()
                self.lost(line)
            elif self.now - line.heard_at > self.keep_alive_s / 2:
                line.send(encoding.PINGREQ)
        self.deserted = [line for line in self.deserted if not line.over]

    def goodbye(self, reason: int = 0) -> None:
        """DISCONNECT."""
        if self.line is not None:
            line, self.line = self.line, None
            line.send(encoding.disconnect(self.version, reason))
            line.close()

    def vanish(self) -> None:
        if self.line is not None:
            line, self.line = self.line, None
            line.end()

    # ------------------------------------------------------------ what it says

    def publish(self, topic: str, qos: int, *, retain: bool = False, clears: bool = False) -> Published:
        """While it is connected."""
        assert self.line is not None
        publisher = self.client_id if self.durable else f"{self.client_id}/{self._sessions}"  # what a session left is not in the next one's order
        message = self.books.message(publisher, topic, qos, retain=retain, clears=clears)
        packet_id = 0
        if qos:
            packet_id = self._id()
            self.sending[packet_id] = _Sent(message, packet_id)
        self._write(self.line, message, packet_id)
        return message

    def _write(self, line: Line, message: Published, packet_id: int, *, dup: bool = False) -> None:
        message.at = min(message.at, self.now)
        payload = b"" if message.clears else b"%d" % message.number
        line.send(encoding.publish(self.version, message.topic, payload, qos=message.qos, retain=message.retain, dup=dup, packet_id=packet_id))

    def subscribe(self, filters: list[str], *, retained: bool = False) -> None:
        """Asks for those that it has not. ``retained``: and for retained messages, which 3.1.1 gets in any case."""
        have = {w.filter for w in self.kept.wanted if w.gone_at == NEVER and w.acked_at != NEVER}
        asked = {w.filter for some in self._asking.values() for w in some}
        new = [f for f in filters if f not in have and f not in asked]
        if self.line is None or not new:
            return
        wanted = []
        for filter in new:
            group, path = filter.split("/", 2)[1:] if filter.startswith("$share/") else ("", filter)
            one = Wanted(filter, path, group)
            wanted.append(one)
            self.kept.wanted.append(one)
        packet_id = self._id()
        self._asking[packet_id] = wanted
        self.line.send(encoding.subscribe(self.version, packet_id, [Filter(f, self.kept.qos, retain_handling=0 if retained else 2) for f in new]))

    def unsubscribe(self, filter: str) -> None:
        if self.line is None:
            return
        for wanted in self.kept.wanted:
            if wanted.filter == filter:
                wanted.gone_at = min(wanted.gone_at, self.now)
        self.line.send(encoding.unsubscribe(self.version, self._id(), [filter]))

    def _id(self) -> int:
        while True:
            self._last_id = self._last_id % (LAST_ID - 1) + 1
            if self._last_id not in self.sending:
                return self._last_id

    # ------------------------------------------------------------ what it is told

    def take(self, packet: Any) -> None:
        """A packet of the connection that it has."""
        if isinstance(packet, Publish):
            self._message(packet)
        elif isinstance(packet, Ack):
            self._acked(packet)
        elif isinstance(packet, Suback):
            for wanted, reason in zip(self._asking.pop(packet.packet_id, []), packet.reasons, strict=False):
                if reason < 0x80:
                    wanted.acked_at = self.now
                else:
                    wanted.gone_at = 0.0
        else:
            assert isinstance(packet, Unsuback) or type(packet).__name__ == "Pingresp", packet

    def _message(self, packet: Publish) -> None:
        assert self.line is not None
        number = int(packet.payload or b"0")
        if number and packet.qos:
            if self.line.had.get(packet.packet_id) == number:
                self.books.broken.append(f"M3 {self.client_id} was sent {number} again on the connection that it came on")
            self.line.had[packet.packet_id] = number
        if packet.qos == 2:
            before = self.incoming.get(packet.packet_id)
            if before is not None and before != number:
                self.books.broken.append(f"M3 {self.client_id} was sent {number} with the packet identifier that {before} still has")
            self.line.send(encoding.ack(encoding.PUBREC, packet.packet_id))
            if before is not None:
                return
            self.incoming[packet.packet_id] = number
        elif packet.qos == 1:
            self.line.send(encoding.ack(encoding.PUBACK, packet.packet_id))
        if number:
            self.kept.got.append(Got(number, packet.qos, packet.dup, packet.retain, self.now, self._sessions))

    def _acked(self, packet: Ack) -> None:
        assert self.line is not None
        if packet.type == Type.PUBREL:
            self.incoming.pop(packet.packet_id, None)
            self.line.send(encoding.ack(encoding.PUBCOMP, packet.packet_id))
            return
        sent = self.sending.get(packet.packet_id)
        if sent is None:
            return
        if packet.reason >= 0x80 and packet.type != Type.PUBCOMP:
            sent.message.refused = True
            del self.sending[packet.packet_id]
        elif packet.type == Type.PUBREC:
            sent.received = True
            sent.message.acked_at = min(sent.message.acked_at, self.now)
            self.line.send(encoding.ack(encoding.PUBREL, packet.packet_id))
        elif packet.type == Type.PUBACK or sent.received:
            sent.message.acked_at = min(sent.message.acked_at, self.now)
            del self.sending[packet.packet_id]
