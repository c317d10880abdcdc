"""The properties of MQTT 5.0: their types, the packets they belong to, and both directions of the codec.

A packet's properties are a dictionary from identifier to value. User properties are a list of pairs in their order, subscription identifiers a
list; no other may come twice. Owns their syntax and the bounds of their values; knows no packet but which type it is.
Source: MQTT 5.0 table 2-4 and chapters 1.5, 2.2.2. What breaks a rule raises ``MqttFault`` with the reason code the specification names.
"""

from typing import Any, Final

from headrace.model.errors import MqttFault

Properties = dict[int, Any]

PAYLOAD_FORMAT_INDICATOR: Final = 0x01
MESSAGE_EXPIRY_INTERVAL: Final = 0x02
CONTENT_TYPE: Final = 0x03
RESPONSE_TOPIC: Final = 0x08
CORRELATION_DATA: Final = 0x09
SUBSCRIPTION_IDENTIFIER: Final = 0x0B
SESSION_EXPIRY_INTERVAL: Final = 0x11
ASSIGNED_CLIENT_IDENTIFIER: Final = 0x12
SERVER_KEEP_ALIVE: Final = 0x13
AUTHENTICATION_METHOD: Final = 0x15
AUTHENTICATION_DATA: Final = 0x16
REQUEST_PROBLEM_INFORMATION: Final = 0x17
WILL_DELAY_INTERVAL: Final = 0x18
REQUEST_RESPONSE_INFORMATION: Final = 0x19
RESPONSE_INFORMATION: Final = 0x1A
SERVER_REFERENCE: Final = 0x1C
REASON_STRING: Final = 0x1F
RECEIVE_MAXIMUM: Final = 0x21
TOPIC_ALIAS_MAXIMUM: Final = 0x22
TOPIC_ALIAS: Final = 0x23
MAXIMUM_QOS: Final = 0x24
RETAIN_AVAILABLE: Final = 0x25
USER_PROPERTY: Final = 0x26
MAXIMUM_PACKET_SIZE: Final = 0x27
WILDCARD_SUBSCRIPTION_AVAILABLE: Final = 0x28
SUBSCRIPTION_IDENTIFIER_AVAILABLE: Final = 0x29
SHARED_SUBSCRIPTION_AVAILABLE: Final = 0x2A

BYTE: Final = 1
TWO_BYTES: Final = 2
FOUR_BYTES: Final = 3
VARIABLE: Final = 4
TEXT: Final = 5
BINARY: Final = 6
PAIR: Final = 7

WILL: Final = 0
"""Stands for the will of a CONNECT among the packet types."""
CONNECT: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
_ACKS: Final = (4, 5, 6, 7)
_MALFORMED: Final = 0x81
_PROTOCOL: Final = 0x82
_ALIAS: Final = 0x94
VARIABLE_MAX: Final = 268_435_455

TABLE: Final[dict[int, tuple[str, int, tuple[int, ...]]]] = {
    0x01: ("payload_format_indicator", BYTE, (PUBLISH, WILL)),
    0x02: ("message_expiry_interval", FOUR_BYTES, (PUBLISH, WILL)),
    0x03: ("content_type", TEXT, (PUBLISH, WILL)),
    0x08: ("response_topic", TEXT, (PUBLISH, WILL)),
    0x09: ("correlation_data", BINARY, (PUBLISH, WILL)),
    0x0B: ("subscription_identifier", VARIABLE, (PUBLISH, 8)),
    0x11: ("session_expiry_interval", FOUR_BYTES, (CONNECT, CONNACK, 14)),
    0x12: ("assigned_client_identifier", TEXT, (CONNACK,)),
    0x13: ("server_keep_alive", TWO_BYTES, (CONNACK,)),
    0x15: ("authentication_method", TEXT, (CONNECT, CONNACK, 15)),
    0x16: ("authentication_data", BINARY, (CONNECT, CONNACK, 15)),
    0x17: ("request_problem_information", BYTE, (CONNECT,)),
    0x18: ("will_delay_interval", FOUR_BYTES, (WILL,)),
    0x19: ("request_response_information", BYTE, (CONNECT,)),
    0x1A: ("response_information", TEXT, (CONNACK,)),
    0x1C: ("server_reference", TEXT, (CONNACK, 14)),
    0x1F: ("reason_string", TEXT, (CONNACK, *_ACKS, 9, 11, 14, 15)),
    0x21: ("receive_maximum", TWO_BYTES, (CONNECT, CONNACK)),
    0x22: ("topic_alias_maximum", TWO_BYTES, (CONNECT, CONNACK)),
    0x23: ("topic_alias", TWO_BYTES, (PUBLISH,)),
    0x24: ("maximum_qos", BYTE, (CONNACK,)),
    0x25: ("retain_available", BYTE, (CONNACK,)),
    0x26: ("user_property", PAIR, (CONNECT, CONNACK, PUBLISH, WILL, *_ACKS, 8, 9, 10, 11, 14, 15)),
    0x27: ("maximum_packet_size", FOUR_BYTES, (CONNECT, CONNACK)),
    0x28: ("wildcard_subscription_available", BYTE, (CONNACK,)),
    0x29: ("subscription_identifier_available", BYTE, (CONNACK,)),
    0x2A: ("shared_subscription_available", BYTE, (CONNACK,)),
}
"""Identifier to (name, type, packets that may have it). MQTT 5.0 table 2-4."""

_TYPES: Final[dict[int, int]] = {id: row[1] for id, row in TABLE.items()}
_PACKETS: Final[dict[int, int]] = {id: sum(1 << packet for packet in row[2]) for id, row in TABLE.items()}
"""A bit for each packet type that may have the property."""


def text_at(data: bytes, pos: int, end: int) -> str:
    """The UTF-8 string at ``pos``; it takes ``2 + its bytes``, which the caller has from its length. Raises ``MqttFault``."""
    at = pos + 2
    if at > end:
        raise MqttFault("a string's length is cut off", reason=_MALFORMED)
    stop = at + (data[pos] << 8 | data[pos + 1])
    if stop > end:
        raise MqttFault("a string is cut off", reason=_MALFORMED)
    return text_of(data[at:stop])


def text_of(raw: bytes) -> str:
    """UTF-8 as a string of the protocol: no surrogates [MQTT-1.5.4-1], no U+0000 [MQTT-1.5.4-2]; a BOM stays [MQTT-1.5.4-3]."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise MqttFault("a string is not well-formed UTF-8", reason=_MALFORMED) from None
    if "\0" in text:
        raise MqttFault("a string contains U+0000", reason=_MALFORMED)
    return text


def binary_at(data: bytes, pos: int, end: int) -> bytes:
    """The binary data at ``pos``."""
    at = pos + 2
    if at > end:
        raise MqttFault("the length of binary data is cut off", reason=_MALFORMED)
    stop = at + (data[pos] << 8 | data[pos + 1])
    if stop > end:
        raise MqttFault("binary data is cut off", reason=_MALFORMED)
    return data[at:stop]


def variable_at(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """(value, position behind it) of the variable byte integer at ``pos``, in the least number of bytes [MQTT-1.5.5-1]."""
    value = 0
    shift = 0
    while True:
        if pos >= end:
            raise MqttFault("a variable byte integer is cut off", reason=_MALFORMED)
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise MqttFault("a variable byte integer is longer than it needs to be", reason=_MALFORMED)
            return value, pos
        shift += 7
        if shift > 21:
            raise MqttFault("a variable byte integer has more than four bytes", reason=_MALFORMED)


def decode(data: bytes, pos: int, end: int, packet: int) -> tuple[Properties, int]:
    """(properties, position behind them) of a packet of that type; they begin with their length at ``pos``."""
    length, pos = variable_at(data, pos, end)
    stop = pos + length
    if stop > end:
        raise MqttFault("the properties are longer than the packet", reason=_MALFORMED)
    found: Properties = {}
    while pos < stop:
        id, pos = variable_at(data, pos, stop)
        packets = _PACKETS.get(id)
        if packets is None:
            raise MqttFault(f"there is no property {id:#04x}", reason=_MALFORMED)
        if not packets >> packet & 1:
            raise MqttFault(f"property {TABLE[id][0]} does not belong here", reason=_PROTOCOL)
        kind = _TYPES[id]
        value: Any
        if kind == BYTE:
            if pos >= stop:
                raise MqttFault("a property is cut off", reason=_MALFORMED)
            value = data[pos]
            pos += 1
            if value > 1:
                raise MqttFault(f"property {TABLE[id][0]} is 0 or 1, not {value}", reason=_PROTOCOL)
        elif kind == TWO_BYTES:
            if pos + 2 > stop:
                raise MqttFault("a property is cut off", reason=_MALFORMED)
            value = data[pos] << 8 | data[pos + 1]
            pos += 2
            if value == 0 and id in (RECEIVE_MAXIMUM, TOPIC_ALIAS):
                raise MqttFault(f"property {TABLE[id][0]} is never 0", reason=_ALIAS if id == TOPIC_ALIAS else _PROTOCOL)
        elif kind == FOUR_BYTES:
            if pos + 4 > stop:
                raise MqttFault("a property is cut off", reason=_MALFORMED)
            value = data[pos] << 24 | data[pos + 1] << 16 | data[pos + 2] << 8 | data[pos + 3]
            pos += 4
            if value == 0 and id == MAXIMUM_PACKET_SIZE:
                raise MqttFault("property maximum_packet_size is never 0", reason=_PROTOCOL)
        elif kind == VARIABLE:
            number, pos = variable_at(data, pos, stop)
            if number == 0:
                raise MqttFault("a subscription identifier is never 0", reason=_PROTOCOL)
            if packet == PUBLISH:
                found.setdefault(id, []).append(number)
                continue
            value = [number]
        elif kind == TEXT:
            value = text_at(data, pos, stop)
            pos += 2 + (data[pos] << 8 | data[pos + 1])
            if id == RESPONSE_TOPIC and (not value or "+" in value or "#" in value):
                raise MqttFault("a response topic is a topic name: not empty, without wildcards", reason=_PROTOCOL)  # [MQTT-3.3.2-14]
        elif kind == BINARY:
            value = binary_at(data, pos, stop)
            pos += 2 + len(value)
        else:
            name = text_at(data, pos, stop)
            pos += 2 + (data[pos] << 8 | data[pos + 1])
            text = text_at(data, pos, stop)
            pos += 2 + (data[pos] << 8 | data[pos + 1])
            found.setdefault(id, []).append((name, text))
            continue
        if id in found:
            raise MqttFault(f"property {TABLE[id][0]} comes twice", reason=_PROTOCOL)
        found[id] = value
    return found, stop


def variable(value: int) -> bytes:
    """``value`` (0 to 268,435,455) as a variable byte integer."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x20_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    assert value <= VARIABLE_MAX
    return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21))


def text(value: str) -> bytes:
    """``value`` with its length; at most 65,535 bytes of UTF-8."""
    raw = value.encode("utf-8")
    return len(raw).to_bytes(2, "big") + raw


def binary(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def encode(properties: Properties | None) -> bytes:
    """The properties with their length, in the order of the dictionary (of user properties in the order of their list)."""
    if not properties:
        return b"\0"
    pieces: list[bytes] = []
    for id, value in properties.items():
        kind = _TYPES[id]
        head = bytes((id,))
        if kind == BYTE:
            pieces.append(bytes((id, value)))
        elif kind == TWO_BYTES:
            pieces.append(head + value.to_bytes(2, "big"))
        elif kind == FOUR_BYTES:
            pieces.append(head + value.to_bytes(4, "big"))
        elif kind == VARIABLE:
            for number in value:
                pieces.append(head + variable(number))
        elif kind == TEXT:
            pieces.append(head + text(value))
        elif kind == BINARY:
            pieces.append(head + binary(value))
        else:
            for name, content in value:
                pieces.append(head + text(name) + text(content))
    body = b"".join(pieces)
    return variable(len(body)) + body
