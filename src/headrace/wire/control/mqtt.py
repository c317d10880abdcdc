"""Control messages about MQTT: sessions, subscriptions, retained messages, publishing; part of ``control``'s unions.

Lists are in order, bounded by ``limit``, and go on after the last one that was got. Times are wall clock in milliseconds, 0 = never or unknown.
"""

from typing import Final

import msgspec

from headrace.wire.control.message import Message

FOR_EVER: Final = 0xFFFF_FFFF
"""An expiry that does not expire."""


class MqttSessions(Message, frozen=True, tag="mqtt.sessions"):
    """Asks for sessions in order of their client ids. ``pattern``: a glob over client ids."""

    pattern: str = "*"
    after: str = ""
    limit: int = 1000


class MqttSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One session."""

    client_id: str
    connected: bool = False
    peer: str = ""
    version: str = ""
    """Of its connection: 3.1.1 or 5.0."""
    expiry_s: int = 0
    """How long it outlives its connection; ``FOR_EVER`` = 4294967295."""
    away_ms: int = 0
    """Since when its client is away."""
    expires_ms: int = 0
    subscriptions: int = 0
    waiting: int = 0
    """Messages in its inbox."""
    waiting_bytes: int = 0
    in_flight: int = 0
    """Deliveries that its client has not acknowledged."""
    dropped: int = 0
    """Messages for which its inbox had no room, since the broker started."""
    will: bool = False


class MqttSessionList(Message, frozen=True, tag="mqtt.session_list"):
    items: tuple[MqttSession, ...]
    more: bool = False


class MqttSubscriptions(Message, frozen=True, tag="mqtt.subscriptions"):
    """Asks for subscriptions in order of client id and filter. ``pattern``: a glob over client ids; ``filter``: a glob over filters."""

    pattern: str = "*"
    filter: str = "*"
    after_client_id: str = ""
    after_filter: str = ""
    limit: int = 1000


class MqttSubscription(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One subscription, as its client wrote it."""

    client_id: str
    filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    identifier: int = 0
    """0 = none."""


class MqttSubscriptionList(Message, frozen=True, tag="mqtt.subscription_list"):
    items: tuple[MqttSubscription, ...]
    more: bool = False


class MqttRetained(Message, frozen=True, tag="mqtt.retained"):
    """Asks for the retained messages that an MQTT topic filter matches, in order of their topics."""

    filter: str = "#"
    after: str = ""
    limit: int = 1000
    payload_bytes_max: int = 0
    """Bytes of each payload that are shown."""


class MqttRetainedMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One retained message."""

    topic: str
    payload: bytes = b""
    """Its beginning."""
    payload_bytes: int = 0
    qos: int = 0
    publisher: str = ""
    """Client id."""
    expires_ms: int = 0
    content_type: str = ""
    response_topic: str = ""
    user_properties: tuple[tuple[str, str], ...] = ()


class MqttRetainedList(Message, frozen=True, tag="mqtt.retained_list"):
    items: tuple[MqttRetainedMessage, ...]
    more: bool = False


class MqttClear(Message, frozen=True, tag="mqtt.retained.clear"):
    """Clears the retained messages that an MQTT topic filter matches; nobody is told. Answered once that is durable, with how many there were."""

    filter: str


class MqttKick(Message, frozen=True, tag="mqtt.kick"):
    """Ends a client's connection: DISCONNECT 0x98 in 5.0, and its will is published. ``forget``: ends its session too, also of one that is away."""

    client_id: str
    forget: bool = False


class MqttPublish(Message, frozen=True, tag="mqtt.publish"):
    """Publishes as a client would. Answered once it is durable for every session that it matched, with how many those are."""

    topic: str
    payload: bytes = b""
    qos: int = 1
    retain: bool = False
    expiry_s: int = 0
    """0 = it does not expire."""
    content_type: str = ""
    user_properties: tuple[tuple[str, str], ...] = ()


MqttRequest = MqttSessions | MqttSubscriptions | MqttRetained | MqttClear | MqttKick | MqttPublish
MqttReply = MqttSessionList | MqttSubscriptionList | MqttRetainedList
