"""From the bytes of a connection to packets: the hottest loop of the broker, compiled where it can be (``hot``).

Owns the framing, what is kept of an unfinished packet, and every rule about the form of PUBLISH and of the acknowledgements; the rarer packets are
decoded by ``decoding``. Takes what comes in whatever pieces, never waits, and makes all packets of a read in one pass.

Invariants: P1 nothing is kept beyond one packet of the allowed size; a remaining length above it is refused before its bytes are. P2 the first packet
of a client is a CONNECT, known from its first byte [MQTT-3.1.0-1]. P3 after a fault nothing more is taken. P4 nothing is raised on hostile bytes.
"""

from typing import Any, Final

from headrace.model.errors import MqttFault
from headrace.wire.mqtt import decoding
from headrace.wire.mqtt.packets import Ack
from headrace.wire.mqtt.properties import PUBLISH, TOPIC_ALIAS, Properties, decode, text_of
from headrace.wire.mqtt.publish import Publish

_MALFORMED: Final = 0x81
_PROTOCOL: Final = 0x82
_TOPIC_NAME: Final = 0x90
_TOO_LARGE: Final = 0x95
_PIECE_BYTES: Final = 4096
_TOPICS_MAX: Final = 16_384
_TOPIC_BYTES_MAX: Final = 256

_topics: dict[bytes, str] = {}
"""Topic names found good, by their bytes: at most ``_TOPICS_MAX`` of ``_TOPIC_BYTES_MAX``."""


class Parser:
    """One direction of one connection.

    ``version`` is 0 until a CONNECT says it; a peer that reads a server's packets sets it at the start. ``fault`` says why nothing is taken any more.
    """

    __slots__ = ("_bytes_max", "_connect_bytes_max", "_foreign", "_have", "_need", "_parts", "fault", "version")

    def __init__(self, bytes_max: int, connect_bytes_max: int = 0, version: int = 0) -> None:
        """``bytes_max``: of a whole packet, its fixed header included; ``connect_bytes_max``: of a CONNECT (0: the same)."""
        self._bytes_max: int = bytes_max
        self._connect_bytes_max: int = connect_bytes_max or bytes_max
        self.version: int = version
        self.fault: MqttFault | None = None
        self._foreign: bool = False
        self._parts: list[Any] = []
        self._have: int = 0
        self._need: int = 0

    @property
    def buffered(self) -> int:
        """Bytes kept of an unfinished packet."""
        return self._have

    def feed(self, data: bytes) -> list[Any]:
        """The packets that ``data`` completes, in order. After a fault: those before it, and ``fault`` is set."""
        found: list[Any] = []
        if self.fault is not None or self._foreign:
            return found
        if self._have:
            size = len(data)
            self._have += size
            parts = self._parts
            if self._have < self._need:
                if size >= _PIECE_BYTES:
                    parts.append(data)
                elif type(parts[-1]) is bytearray:
                    parts[-1] += data
                else:
                    parts.append(bytearray(data))
                return found
            parts.append(data)
            data = b"".join(parts)
            self._parts = []
            self._have = 0
        try:
            pos = self._parse(data, found)
        except MqttFault as fault:
            self.fault = fault
            return found
        if pos < len(data):
            self._have = len(data) - pos
            self._parts.append(data[pos:])
        return found

    def _parse(self, data: bytes, found: list[Any]) -> int:
        """Every whole packet of ``data``; where the first partial one begins. Sets ``_need``."""
        pos: int = 0
        end: int = len(data)
        version: int = self.version
        bytes_max: int = self._bytes_max if version else self._connect_bytes_max
        while end - pos >= 2:
            first: int = data[pos]
            kind: int = first >> 4
            if version == 0 and first != 0x10:
                raise MqttFault("the first packet of a client is a CONNECT", reason=_PROTOCOL)
            length: int = data[pos + 1]
            at: int = pos + 2
            if length >= 0x80:
                length &= 0x7F
                shift: int = 7
                while True:
                    if at >= end:
                        if shift > 21:
                            raise MqttFault("a remaining length has more than four bytes", reason=_MALFORMED)
                        self._need = end - pos + 1
                        return pos
                    byte: int = data[at]
                    at += 1
                    length |= (byte & 0x7F) << shift
                    if byte < 0x80:
                        if byte == 0:
                            raise MqttFault("a remaining length is longer than it needs to be", reason=_MALFORMED)
                        break
                    shift += 7
                    if shift > 21:
                        raise MqttFault("a remaining length has more than four bytes", reason=_MALFORMED)
            stop: int = at + length
            if stop - pos > bytes_max:
                raise MqttFault(f"a packet of {stop - pos} bytes; at most {bytes_max} are taken here", reason=_TOO_LARGE)
            if stop > end:
                self._need = stop - pos
                return pos
            if kind == 3:
                publish = _publish(data, pos, at, stop, first, version)
                found.append(publish)
                if end - stop >= stop - pos and publish.properties is None and not publish.dup:
                    pos = _alike(data, pos, at, stop, publish, found)
                    continue
            elif 4 <= kind <= 7:
                found.append(_ack(data, at, stop, first, version))
            else:
                if kind == 1 and version != 0:
                    raise MqttFault("a second CONNECT", reason=_PROTOCOL)  # [MQTT-3.1.0-2]
                packet: Any = decoding.control(data, at, stop, first, version)
                if kind == 1:
                    version = packet.version
                    self.version = version
                    bytes_max = self._bytes_max
                    if version != 4 and version != 5:
                        found.append(packet)
                        self._foreign = True
                        return end  # what follows is of a protocol that is not known here
                found.append(packet)
            pos = stop
        if version == 0 and pos < end and data[pos] != 0x10:
            raise MqttFault("the first packet of a client is a CONNECT", reason=_PROTOCOL)
        self._need = 2
        return pos


def _publish(data: bytes, pos: int, at: int, stop: int, first: int, version: int) -> Publish:
    qos: int = first >> 1 & 3
    if qos == 3:
        raise MqttFault("a PUBLISH with QoS 3", reason=_MALFORMED)  # [MQTT-3.3.1-4]
    dup: bool = first & 8 != 0
    if dup and qos == 0:
        raise MqttFault("a PUBLISH of QoS 0 with DUP", reason=_MALFORMED)  # [MQTT-3.3.1-2]
    if stop - at < 2:
        raise MqttFault("a PUBLISH without a topic", reason=_MALFORMED)
    topic_at: int = at + 2
    body: int = topic_at + (data[at] << 8 | data[at + 1])
    if body > stop:
        raise MqttFault("a PUBLISH whose topic is cut off", reason=_MALFORMED)
    raw: bytes = data[topic_at:body]
    topic: str | None = _topics.get(raw)
    if topic is None:
        topic = _topic(raw, version)
    packet_id: int = 0
    if qos:
        if stop - body < 2:
            raise MqttFault("a PUBLISH without its packet identifier", reason=_MALFORMED)
        packet_id = data[body] << 8 | data[body + 1]
        body += 2
        if packet_id == 0:
            raise MqttFault("a packet identifier is never 0", reason=_PROTOCOL)  # [MQTT-2.2.1-3]
    properties: Properties | None = None
    if version == 5:
        if body >= stop:
            raise MqttFault("a PUBLISH without properties", reason=_MALFORMED)
        if data[body] == 0:
            body += 1
        else:
            properties, body = decode(data, body, stop, PUBLISH)
        if not topic and (properties is None or TOPIC_ALIAS not in properties):
            raise MqttFault("a PUBLISH without a topic and without an alias", reason=_PROTOCOL)
    return Publish(data[pos:stop], body - pos, topic, qos, first & 1 != 0, dup, packet_id, properties, version)


def _alike(data: bytes, pos: int, at: int, stop: int, publish: Publish, found: list[Any]) -> int:
    """The packets that follow ``publish`` (``data[pos:stop]``, its body from ``at`` on) with its first byte, length and topic: what was found good of
    it is not looked at again. Where the first other one begins."""
    size: int = stop - pos
    end: int = len(data)
    topic: str = publish.topic
    retain: bool = publish.retain
    qos: int = publish.qos
    version: int = publish.version
    payload_at: int = publish.payload_at
    id_at: int = at - pos + 2 + (data[at] << 8 | data[at + 1])
    head: bytes = data[pos : pos + id_at] if qos or version != 5 else data[pos : pos + payload_at]
    alike: int = len(head)
    packet_id: int = 0
    pos = stop
    stop = pos + size
    while stop <= end and data[pos : pos + alike] == head:  # cheaper than ``startswith`` with a place, compiled
        if qos:
            id_pos: int = pos + id_at
            packet_id = data[id_pos] << 8 | data[id_pos + 1]
            if packet_id == 0 or (version == 5 and data[id_pos + 2]):
                break
        found.append(Publish(data[pos:stop], payload_at, topic, qos, retain, False, packet_id, None, version))
        pos = stop
        stop += size
    return pos


def _topic(raw: bytes, version: int) -> str:
    topic = text_of(raw)
    if "+" in topic or "#" in topic:
        raise MqttFault("a topic name contains a wildcard", reason=_TOPIC_NAME)  # [MQTT-3.3.2-2]
    if not topic and version != 5:
        raise MqttFault("a topic name is empty", reason=_TOPIC_NAME)  # [MQTT-4.7.3-1]
    if topic and len(raw) <= _TOPIC_BYTES_MAX:
        if len(_topics) >= _TOPICS_MAX:
            _topics.clear()
        _topics[raw] = topic
    return topic


def _ack(data: bytes, at: int, stop: int, first: int, version: int) -> Ack:
    kind: int = first >> 4
    if first & 15 != (2 if kind == 6 else 0):
        raise MqttFault("the flags of an acknowledgement are not what they must be", reason=_MALFORMED)  # [MQTT-2.1.3-1] [MQTT-3.6.1-1]
    size: int = stop - at
    if size < 2 or (size > 2 and version != 5):
        raise MqttFault(f"an acknowledgement of {size} bytes", reason=_MALFORMED)
    packet_id: int = data[at] << 8 | data[at + 1]
    if packet_id == 0:
        raise MqttFault("a packet identifier is never 0", reason=_PROTOCOL)
    if size == 2:
        return Ack(kind, packet_id)
    return decoding.long_ack(data, at + 2, stop, kind, packet_id)
