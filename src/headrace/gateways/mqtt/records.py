"""MQTT messages as records of queues and streams, and back.

A record's value is the payload. Its headers: ``content-type``, ``mqtt-topic`` (of a captured publish), ``mqtt-response-topic``,
``mqtt-correlation-data``, and the user properties by their names; names that begin with ``headrace.`` are the broker's and left out.
"""

from headrace.core.mqtt.captured import Capture
from headrace.core.mqtt.message import Message
from headrace.wire.batch import Record
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.properties import Properties

CONTENT_TYPE = "content-type"
TOPIC = "mqtt-topic"
RESPONSE_TOPIC = "mqtt-response-topic"
CORRELATION_DATA = "mqtt-correlation-data"
OWN = "headrace."


def record_of(message: Message, capture: Capture, wall_ms: int) -> Record:
    """What a queue or stream keeps of a publish."""
    headers: list[tuple[str, bytes]] = []
    found = message.properties or {}
    if prop.CONTENT_TYPE in found:
        headers.append((CONTENT_TYPE, found[prop.CONTENT_TYPE].encode()))
    if capture.bound:
        headers.append((TOPIC, message.topic.encode()))
    if prop.RESPONSE_TOPIC in found:
        headers.append((RESPONSE_TOPIC, found[prop.RESPONSE_TOPIC].encode()))
    if prop.CORRELATION_DATA in found:
        headers.append((CORRELATION_DATA, found[prop.CORRELATION_DATA]))
    headers += [(name, value.encode()) for name, value in found.get(prop.USER_PROPERTY, ()) if name and not name.startswith(OWN)]
    key = message.topic if capture.bound else capture.key
    return Record(key.encode() if key is not None else None, message.payload, tuple(headers), wall_ms)


def properties_of(record: Record, about: list[tuple[str, str]]) -> Properties:
    """The properties of a delivery; ``about``: user properties that come before the record's own."""
    properties = Properties()
    pairs = list(about)
    if record.key is not None:
        pairs.append(("key", _text(record.key)))
    for name, value in record.headers:
        if name == CONTENT_TYPE:
            properties[prop.CONTENT_TYPE] = _text(value)
        elif name == RESPONSE_TOPIC:
            properties[prop.RESPONSE_TOPIC] = _text(value)
        elif name == CORRELATION_DATA:
            properties[prop.CORRELATION_DATA] = value[:65_535]
        else:
            pairs.append((_text(name.encode()), _text(value)))
    properties[prop.USER_PROPERTY] = pairs
    return properties


def _text(raw: bytes) -> str:
    """As an MQTT string: what is no UTF-8 is replaced, and it is cut at the bound of one."""
    text = raw[:65_535].decode(errors="replace").replace("\0", "\ufffd")
    return text if len(text.encode()) <= 65_535 else text[:16_000]
