"""From packets to bytes, both versions and both directions; many packets of one kind in one call where that is what a turn makes.

Owns the layouts that ``parser`` and ``decoding`` read. Checks nothing that its callers decide (which reason, which property); what cannot be
expressed in 3.1.1 (reasons, properties) is left out. Compiled (``hot``).
"""

from struct import Struct
from typing import Any, Final

from headrace.wire.mqtt.packets import Connect, Filter
from headrace.wire.mqtt.properties import Properties, binary, encode, text, variable

PINGREQ: Final = b"\xc0\x00"
PINGRESP: Final = b"\xd0\x00"
PUBACK: Final = 0x40
PUBREC: Final = 0x50
PUBREL: Final = 0x62
PUBCOMP: Final = 0x70
_FLAGS: Final[dict[int, int]] = {4: PUBACK, 5: PUBREC, 6: PUBREL, 7: PUBCOMP}
_short = Struct(">BBH").pack
_reasoned = Struct(">BBHB").pack


def packet(first: int, body: bytes) -> bytes:
    """A packet of that first byte."""
    return bytes((first,)) + variable(len(body)) + body


def publish_head(version: int, first: int, topic: str, payload: bytes, properties: Properties | None) -> tuple[bytes, bytes]:
    """A PUBLISH of QoS 1 or 2 as what comes before its packet identifier and what comes after it: made once for all who get it."""
    name = text(topic)
    tail = encode(properties) + payload if version == 5 else payload
    return bytes((first,)) + variable(len(name) + 2 + len(tail)) + name, tail


class _Head:
    """What a plain PUBLISH of that topic and size begins with. Not changed after it was made: brokers in threads share it."""

    __slots__ = ("head", "size", "topic", "version")

    def __init__(self, version: int, topic: str, size: int) -> None:
        name = text(topic) + b"\0" if version == 5 else text(topic)
        self.head = b"\x30" + variable(len(name) + size) + name
        self.size = size
        self.topic = topic
        self.version = version


_last: Final[list[_Head]] = [_Head(4, "", 0)]
"""That of the last one: the next is mostly alike."""


def plain(version: int, topic: str, payload: bytes) -> bytes:
    """A PUBLISH of QoS 0 without RETAIN and without properties."""
    head = _last[0]
    size = len(payload)
    if size != head.size or version != head.version or topic != head.topic:
        head = _last[0] = _Head(version, topic, size)
    return head.head + payload


def publish(
    version: int,
    topic: str,
    payload: bytes,
    *,
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    packet_id: int = 0,
    properties: Properties | None = None,
) -> bytes:
    first = 0x30 | (8 if dup else 0) | qos << 1 | (1 if retain else 0)
    if qos:
        head, tail = publish_head(version, first, topic, payload, properties)
        return head + packet_id.to_bytes(2, "big") + tail
    name = text(topic)
    if version == 5:
        name += encode(properties)
    return bytes((first,)) + variable(len(name) + len(payload)) + name + payload


def ack(first: int, packet_id: int, reason: int = 0, version: int = 4, properties: Properties | None = None) -> bytes:
    """A PUBACK, PUBREC, PUBREL or PUBCOMP by its first byte; as short as it may be."""
    if version != 5 or (reason == 0 and not properties):
        return _short(first, 2, packet_id)
    if not properties:
        return _reasoned(first, 3, packet_id, reason)
    return packet(first, packet_id.to_bytes(2, "big") + bytes((reason,)) + encode(properties))


def acks(first: int, packet_ids: list[int]) -> bytes:
    """Many acknowledgements that say it worked, in one buffer."""
    count = len(packet_ids)
    if count == 1:
        return _short(first, 2, packet_ids[0])
    base: int = first << 24 | 2 << 16
    return Struct(f">{count}I").pack(*[base | id for id in packet_ids])


def connack(version: int, session_present: bool, reason: int, properties: Properties | None = None) -> bytes:
    """``reason``: for 3.1.1 its return code."""
    body = bytes((1 if session_present else 0, reason))
    return packet(0x20, body + encode(properties) if version == 5 else body)


def suback(version: int, packet_id: int, reasons: list[int], properties: Properties | None = None) -> bytes:
    """3.1.1 knows one failure: every reason from 0x80 on is 0x80 there."""
    head = packet_id.to_bytes(2, "big")
    if version == 5:
        return packet(0x90, head + encode(properties) + bytes(reasons))
    return packet(0x90, head + bytes([min(reason, 0x80) for reason in reasons]))


def unsuback(version: int, packet_id: int, reasons: list[int], properties: Properties | None = None) -> bytes:
    head = packet_id.to_bytes(2, "big")
    return packet(0xB0, head + encode(properties) + bytes(reasons) if version == 5 else head)


def disconnect(version: int, reason: int = 0, properties: Properties | None = None) -> bytes:
    if version != 5 or (reason == 0 and not properties):
        return b"\xe0\x00"
    if not properties:
        return bytes((0xE0, 1, reason))
    return packet(0xE0, bytes((reason,)) + encode(properties))


def auth(reason: int = 0, properties: Properties | None = None) -> bytes:
    if reason == 0 and not properties:
        return b"\xf0\x00"
    return packet(0xF0, bytes((reason,)) + encode(properties))


def connect(asked: Connect) -> bytes:
    will = asked.will
    flags = 2 if asked.clean_start else 0
    if will is not None:
        flags |= 4 | will.qos << 3 | (32 if will.retain else 0)
    if asked.password is not None:
        flags |= 64
    if asked.username is not None:
        flags |= 128
    five = asked.version == 5
    pieces = [text("MQTT"), bytes((asked.version, flags)), asked.keep_alive_s.to_bytes(2, "big")]
    if five:
        pieces.append(encode(asked.properties))
    pieces.append(text(asked.client_id))
    if will is not None:
        if five:
            pieces.append(encode(will.properties))
        pieces += [text(will.topic), binary(will.payload)]
    if asked.username is not None:
        pieces.append(text(asked.username))
    if asked.password is not None:
        pieces.append(binary(asked.password))
    return packet(0x10, b"".join(pieces))


def subscribe(version: int, packet_id: int, filters: list[Filter], properties: Properties | None = None) -> bytes:
    pieces: list[bytes] = [packet_id.to_bytes(2, "big")]
    if version == 5:
        pieces.append(encode(properties))
    for f in filters:
        options = f.qos
        if version == 5:
            options |= (4 if f.no_local else 0) | (8 if f.retain_as_published else 0) | f.retain_handling << 4
        pieces += [text(f.filter), bytes((options,))]
    return packet(0x82, b"".join(pieces))


def unsubscribe(version: int, packet_id: int, filters: list[str], properties: Properties | None = None) -> bytes:
    pieces: list[bytes] = [packet_id.to_bytes(2, "big")]
    if version == 5:
        pieces.append(encode(properties))
    pieces += [text(f) for f in filters]
    return packet(0xA2, b"".join(pieces))


def control(value: Any, version: int) -> bytes:
    """Any packet of ``packets``."""
    name = type(value).__name__
    if name == "Connect":
        return connect(value)
    if name == "Connack":
        return connack(version, value.session_present, value.reason, value.properties)
    if name == "Ack":
        return ack(_FLAGS[value.type], value.packet_id, value.reason, version, value.properties)
    if name == "Subscribe":
        return subscribe(version, value.packet_id, list(value.filters), value.properties)
    if name == "Suback":
        return suback(version, value.packet_id, list(value.reasons), value.properties)
    if name == "Unsubscribe":
        return unsubscribe(version, value.packet_id, list(value.filters), value.properties)
    if name == "Unsuback":
        return unsuback(version, value.packet_id, list(value.reasons), value.properties)
    if name == "Pingreq":
        return PINGREQ
    if name == "Pingresp":
        return PINGRESP
    if name == "Disconnect":
        return disconnect(version, value.reason, value.properties)
    assert name == "Auth", f"{name} is no control packet"
    return auth(value.reason, value.properties)
