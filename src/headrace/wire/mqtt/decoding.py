"""The bodies of all packets but PUBLISH and the short acknowledgements.

Owns their layouts and the rules about their form; framing is ``parser``'s. Each function takes the bytes of a read and where the body lies, and
raises ``MqttFault`` with the reason that the specification names. What is left over at a body's end is a fault.
"""

from typing import Final

from headrace.model.errors import MqttFault
from headrace.wire.mqtt.packets import (
    Ack,
    Auth,
    Connack,
    Connect,
    Control,
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from headrace.wire.mqtt.properties import AUTHENTICATION_DATA, AUTHENTICATION_METHOD, WILL, Properties, binary_at, decode, text_at
from headrace.wire.mqtt.reasons import ALLOWED, Reason, Type

_CONNECT: Final = 1
_SUBSCRIBE: Final = 8
_UNSUBSCRIBE: Final = 10
_DISCONNECT: Final = 14
"""Of the types those that each connection sends: a member of an enumeration is looked up each time."""
FILTERS_MAX: Final = 4096
"""Topic filters of one SUBSCRIBE or UNSUBSCRIBE."""


def malformed(message: str) -> MqttFault:
    return MqttFault(message, reason=Reason.MALFORMED_PACKET)


def protocol(message: str) -> MqttFault:
    return MqttFault(message, reason=Reason.PROTOCOL_ERROR)


def control(data: bytes, at: int, stop: int, first: int, version: int) -> Control:
    """The packet whose first byte is ``first`` and whose body is ``data[at:stop]``; never PUBLISH, PUBACK, PUBREC, PUBREL or PUBCOMP."""
    kind = first >> 4
    if first & 15 != (2 if kind in (_SUBSCRIBE, _UNSUBSCRIBE) else 0):
        raise malformed(f"the flags of packet type {kind} are {first & 15}")  # [MQTT-2.1.3-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1]
    if kind == _CONNECT:
        return _connect(data, at, stop)
    if kind == _DISCONNECT:
        return _disconnect(data, at, stop, version)
    if kind == Type.CONNACK:
        return _connack(data, at, stop, version)
    if kind == _SUBSCRIBE:
        return _subscribe(data, at, stop, version)
    if kind == Type.SUBACK:
        return _suback(data, at, stop, version)
    if kind == _UNSUBSCRIBE:
        return _unsubscribe(data, at, stop, version)
    if kind == Type.UNSUBACK:
        return _unsuback(data, at, stop, version)
    if kind == Type.AUTH and version == 5:
        return _auth(data, at, stop)
    if kind in (Type.PINGREQ, Type.PINGRESP):
        if stop != at:
            raise malformed("a ping has no body")
        return Pingreq() if kind == Type.PINGREQ else Pingresp()
    raise malformed(f"there is no packet type {kind} in this version")


def long_ack(data: bytes, at: int, stop: int, kind: int, packet_id: int) -> Ack:
    """An acknowledgement of 5.0 with a reason; ``at`` is behind the packet identifier."""
    reason = _reason(data[at], kind)
    properties: Properties = {}
    if stop - at > 1:
        properties, at = decode(data, at + 1, stop, kind)
        _nothing_left(at, stop)
    return Ack(kind, packet_id, reason, properties)


def _reason(code: int, kind: int) -> int:
    if code not in ALLOWED[kind]:
        raise protocol(f"{Type(kind).name} cannot have the reason {code:#04x}")
    return code


def _nothing_left(at: int, stop: int) -> None:
    if at != stop:
        raise malformed(f"{stop - at} bytes are left over at the end of a packet")


def _packet_id(data: bytes, at: int, stop: int) -> int:
    if stop - at < 2:
        raise malformed("a packet without its identifier")
    packet_id = data[at] << 8 | data[at + 1]
    if not packet_id:
        raise protocol("a packet identifier is never 0")  # [MQTT-2.2.1-3]
    return packet_id


def _after_text(data: bytes, at: int) -> int:
    return at + 2 + (data[at] << 8 | data[at + 1])


def _connect(data: bytes, at: int, stop: int) -> Connect:
    name = text_at(data, at, stop)
    at = _after_text(data, at)
    if stop - at < 4:
        raise malformed("a CONNECT is cut off")
    version, flags, keep_alive = data[at], data[at + 1], data[at + 2] << 8 | data[at + 3]
    at += 4
    if name not in ("MQTT", "MQIsdp"):
        raise MqttFault(f"the protocol is named {name[:16]!r}", reason=Reason.UNSUPPORTED_PROTOCOL_VERSION)  # [MQTT-3.1.2-1]
    if version not in (4, 5) or name != "MQTT":
        # [MQTT-3.1.2-2]: of a version that is not served nothing more is understood than that
        return Connect("", version=3 if version in (4, 5) else version)
    if flags & 1:
        raise malformed("the reserved flag of a CONNECT is set")  # [MQTT-3.1.2-3]
    has_will, will_qos, will_retain = bool(flags & 4), flags >> 3 & 3, bool(flags & 32)
    if will_qos == 3 or (not has_will and (will_qos or will_retain)):
        raise malformed("the will flags of a CONNECT contradict each other")  # [MQTT-3.1.2-11] [MQTT-3.1.2-12] [MQTT-3.1.2-13]
    has_password, has_username = bool(flags & 64), bool(flags & 128)
    if version == 4 and has_password and not has_username:
        raise malformed("a password without a user name")  # 3.1.1 [MQTT-3.1.2-22]
    properties: Properties = {}
    if version == 5:
        properties, at = decode(data, at, stop, Type.CONNECT)
        if AUTHENTICATION_DATA in properties and AUTHENTICATION_METHOD not in properties:
            raise protocol("authentication data without a method")
    client_id = text_at(data, at, stop)
    at = _after_text(data, at)
    will = None
    if has_will:
        will_properties: Properties = {}
        if version == 5:
            will_properties, at = decode(data, at, stop, WILL)
        topic = text_at(data, at, stop)
        at = _after_text(data, at)
        payload = binary_at(data, at, stop)
        at += 2 + len(payload)
        if not topic or "+" in topic or "#" in topic:
            raise MqttFault("the topic of a will is empty or has wildcards", reason=Reason.TOPIC_NAME_INVALID)
        will = Will(topic, payload, will_qos, will_retain, will_properties)
    username = password = None
    if has_username:
        username = text_at(data, at, stop)
        at = _after_text(data, at)
    if has_password:
        password = binary_at(data, at, stop)
        at += 2 + len(password)
    _nothing_left(at, stop)
    return Connect(client_id, version, bool(flags & 2), keep_alive, will, username, password, properties)


def _connack(data: bytes, at: int, stop: int, version: int) -> Connack:
    if stop - at < 2 or data[at] > 1:
        raise malformed("a CONNACK is cut off or has unknown flags")
    present, code = bool(data[at]), data[at + 1]
    at += 2
    if version != 5:
        _nothing_left(at, stop)
        if code > 5:
            raise protocol(f"there is no return code {code}")
        return Connack(present, code)
    properties, at = decode(data, at, stop, Type.CONNACK)
    _nothing_left(at, stop)
    return Connack(present, _reason(code, Type.CONNACK), properties)


def _subscribe(data: bytes, at: int, stop: int, version: int) -> Subscribe:
    packet_id = _packet_id(data, at, stop)
    at += 2
    properties: Properties = {}
    if version == 5:
        properties, at = decode(data, at, stop, Type.SUBSCRIBE)
    filters: list[Filter] = []
    while at < stop:
        filter = text_at(data, at, stop)
        at = _after_text(data, at)
        if at >= stop:
            raise malformed("a subscription without its options")
        options = data[at]
        at += 1
        if options & 3 == 3 or options & (0xC0 if version == 5 else 0xFC) or options & 0x30 == 0x30:
            raise malformed(f"there are no subscription options {options:#04x}")  # [MQTT-3.8.3-4] [MQTT-3.8.3-5], 3.1.1 [MQTT-3-8.3-4]
        filters.append(Filter(filter, options & 3, bool(options & 4), bool(options & 8), options >> 4 & 3))
        if len(filters) > FILTERS_MAX:
            raise MqttFault(f"more than {FILTERS_MAX} topic filters in one SUBSCRIBE", reason=Reason.QUOTA_EXCEEDED)
    if not filters:
        raise protocol("a SUBSCRIBE without a topic filter")  # [MQTT-3.8.3-2]
    return Subscribe(packet_id, tuple(filters), properties)


def _suback(data: bytes, at: int, stop: int, version: int) -> Suback:
    packet_id = _packet_id(data, at, stop)
    at += 2
    properties: Properties = {}
    if version == 5:
        properties, at = decode(data, at, stop, Type.SUBACK)
    if at == stop:
        raise malformed("a SUBACK without a reason")
    allowed = ALLOWED[Type.SUBACK] if version == 5 else (0, 1, 2, 0x80)
    for code in data[at:stop]:
        if code not in allowed:
            raise protocol(f"a SUBACK cannot have the reason {code:#04x}")
    return Suback(packet_id, tuple(data[at:stop]), properties)


def _unsubscribe(data: bytes, at: int, stop: int, version: int) -> Unsubscribe:
    packet_id = _packet_id(data, at, stop)
    at += 2
    properties: Properties = {}
    if version == 5:
        properties, at = decode(data, at, stop, Type.UNSUBSCRIBE)
    filters: list[str] = []
    while at < stop:
        filters.append(text_at(data, at, stop))
        at = _after_text(data, at)
        if len(filters) > FILTERS_MAX:
            raise MqttFault(f"more than {FILTERS_MAX} topic filters in one UNSUBSCRIBE", reason=Reason.QUOTA_EXCEEDED)
    if not filters:
        raise protocol("an UNSUBSCRIBE without a topic filter")  # [MQTT-3.10.3-2]
    return Unsubscribe(packet_id, tuple(filters), properties)


def _unsuback(data: bytes, at: int, stop: int, version: int) -> Unsuback:
    packet_id = _packet_id(data, at, stop)
    at += 2
    if version != 5:
        _nothing_left(at, stop)
        return Unsuback(packet_id)
    properties, at = decode(data, at, stop, Type.UNSUBACK)
    if at == stop:
        raise malformed("an UNSUBACK without a reason")
    for code in data[at:stop]:
        _reason(code, Type.UNSUBACK)
    return Unsuback(packet_id, tuple(data[at:stop]), properties)


def _disconnect(data: bytes, at: int, stop: int, version: int) -> Disconnect:
    if at == stop:
        return Disconnect()
    if version != 5:
        raise malformed("a DISCONNECT of 3.1.1 has no body")
    reason = _reason(data[at], Type.DISCONNECT)
    properties: Properties = {}
    if stop - at > 1:
        properties, at = decode(data, at + 1, stop, Type.DISCONNECT)
        _nothing_left(at, stop)
    return Disconnect(reason, properties)


def _auth(data: bytes, at: int, stop: int) -> Auth:
    if at == stop:
        return Auth()
    reason = _reason(data[at], Type.AUTH)
    properties: Properties = {}
    if stop - at > 1:
        properties, at = decode(data, at + 1, stop, Type.AUTH)
        _nothing_left(at, stop)
    return Auth(reason, properties)
