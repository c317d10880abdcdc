"""The control packets of MQTT as values, all but PUBLISH (``publish``), for both versions and both directions.

Owns which fields a packet has. ``properties`` is empty for 3.1.1. A packet says nothing about who may send it, or when.
"""

import msgspec

from headrace.wire.mqtt.properties import Properties


class Will(msgspec.Struct, frozen=True):
    """What is published for a client that is gone."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = {}


class Connect(msgspec.Struct, frozen=True):
    """``version``: 4 for 3.1.1, 5 for 5.0; 3 for the older MQIsdp, which is answered like 3.1.1 that it is not served."""

    client_id: str
    version: int = 5
    clean_start: bool = True
    keep_alive_s: int = 0
    will: Will | None = None
    username: str | None = None
    password: bytes | None = None
    properties: Properties = {}


class Connack(msgspec.Struct, frozen=True):
    """``reason`` of a 3.1.1 packet is its return code, 0 to 5."""

    session_present: bool = False
    reason: int = 0
    properties: Properties = {}


class Ack(msgspec.Struct, frozen=True):
    """PUBACK, PUBREC, PUBREL or PUBCOMP, as ``type`` says."""

    type: int
    packet_id: int
    reason: int = 0
    properties: Properties = {}


class Filter(msgspec.Struct, frozen=True):
    """One topic filter of a SUBSCRIBE with its options."""

    filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0
    """0: send retained messages; 1: only if the subscription is new; 2: do not."""


class Subscribe(msgspec.Struct, frozen=True):
    packet_id: int
    filters: tuple[Filter, ...]
    properties: Properties = {}


class Suback(msgspec.Struct, frozen=True):
    packet_id: int
    reasons: tuple[int, ...]
    properties: Properties = {}


class Unsubscribe(msgspec.Struct, frozen=True):
    packet_id: int
    filters: tuple[str, ...]
    properties: Properties = {}


class Unsuback(msgspec.Struct, frozen=True):
    """3.1.1 has no reasons."""

    packet_id: int
    reasons: tuple[int, ...] = ()
    properties: Properties = {}


class Pingreq(msgspec.Struct, frozen=True):
    pass


class Pingresp(msgspec.Struct, frozen=True):
    pass


class Disconnect(msgspec.Struct, frozen=True):
    reason: int = 0
    properties: Properties = {}


class Auth(msgspec.Struct, frozen=True):
    reason: int = 0
    properties: Properties = {}


Control = Connect | Connack | Ack | Subscribe | Suback | Unsubscribe | Unsuback | Pingreq | Pingresp | Disconnect | Auth
