"""What a session partition journals: the changes of its durable sessions and of its retained messages.

Owns their layout (msgpack arrays with a tag; fields are only ever added at the end). A list of them is the payload of one entry. A malformed payload
raises ``Malformed``, never anything else.
"""

from typing import Any

import msgspec

from headrace.core.mqtt.message import Message
from headrace.core.mqtt.origins import Origin
from headrace.core.mqtt.subscription import Subscription
from headrace.model.errors import Malformed


class Op(msgspec.Struct, frozen=True, array_like=True):
    """Base of all."""


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """A message."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: dict[int, Any] | None = None
    expires_ms: int = 0
    publisher: str = ""


class StoredWill(msgspec.Struct, frozen=True, array_like=True):
    message: Stored
    delay_s: int = 0
    expiry_s: int = 0
    """Of the message, from its publication on; 0 = none."""
    number: int = 0
    """Of its ``Origin``; 0 = it has none."""


class Opened(Op, frozen=True, tag="o", array_like=True):
    """A client has connected; ``anew`` if its session began with that. Also a session without expiry, for its will."""

    client_id: str
    epoch: int
    expiry_s: int
    anew: bool
    will: StoredWill | None = None


class Closed(Op, frozen=True, tag="c", array_like=True):
    """Its connection is gone."""

    client_id: str
    wall_ms: int
    expiry_s: int
    will_ms: int = 0
    """When its will is due, 0 = it has none (any more)."""


class Ended(Op, frozen=True, tag="e", array_like=True):
    client_id: str


class WillDone(Op, frozen=True, tag="w", array_like=True):
    """Its will was published, or will not be."""

    client_id: str


class Subscribed(Op, frozen=True, tag="s", array_like=True):
    client_id: str
    subscription: Subscription


class Unsubscribed(Op, frozen=True, tag="u", array_like=True):
    client_id: str
    filter: str


class To(msgspec.Struct, frozen=True, array_like=True):
    """One session that a message was queued for."""

    client_id: str
    sequence: int
    qos: int
    retain: bool
    ids: tuple[int, ...] = ()
    group: str = ""


class Queued(Op, frozen=True, tag="q", array_like=True):
    """A message, once, with all sessions here that get it."""

    message: Stored
    to: list[To]
    source: tuple[str, int] | None = None
    """Of one that another broker has sent: which life of a broker, and its number there for this partition."""
    origin: Origin | None = None
    """Of a publish of QoS 2 and of a will in a cluster."""


class Done(Op, frozen=True, tag="d", array_like=True):
    """Deliveries that ended: acknowledged, expired, dropped."""

    client_id: str
    sequences: list[int]


class Released(Op, frozen=True, tag="r", array_like=True):
    """PUBREC of the client."""

    client_id: str
    sequence: int


class Received(Op, frozen=True, tag="i", array_like=True):
    """A QoS 2 publish of the client was taken."""

    client_id: str
    packet_id: int


class Receiving(Op, frozen=True, tag="n", array_like=True):
    """A QoS 2 publish of the client is about to be given to all who want it, under that number."""

    client_id: str
    packet_id: int
    number: int


class Completed(Op, frozen=True, tag="p", array_like=True):
    """Its PUBREL came."""

    client_id: str
    packet_id: int


class Retained(Op, frozen=True, tag="t", array_like=True):
    """None: cleared."""

    topic: str
    message: Stored | None
    source: tuple[str, int] | None = None
    """As of ``Queued``."""
    origin: Origin | None = None


class Epoch(Op, frozen=True, tag="f", array_like=True):
    """A client of that session partition has published in that epoch what is to be retained; what one published in an earlier one is not any more."""

    partition: int
    epoch: int


AnyOp = (
    Opened | Closed | Ended | WillDone | Subscribed | Unsubscribed
    | Queued | Done | Released | Receiving | Received | Completed | Retained | Epoch
)  # fmt: skip


class SessionImage(msgspec.Struct, frozen=True, array_like=True):
    """A session in a snapshot. ``inbox`` and ``in_flight``: (message number, where to, sent, released)."""

    client_id: str
    epoch: int
    expiry_s: int
    away_ms: int
    next_sequence: int
    connected: bool
    will: StoredWill | None
    will_ms: int
    subscriptions: list[Subscription]
    received: list[int]
    deliveries: list[tuple[int, To, bool, bool]]
    intents: list[tuple[int, int]] = []
    """Packet identifiers and numbers of ``Receiving``."""


class Image(msgspec.Struct, frozen=True, array_like=True):
    """A whole session partition."""

    messages: list[Stored]
    sessions: list[SessionImage]
    retained: list[Stored]
    taken: list[tuple[str, int]] = []
    """Of each broker's life the last message that was taken from it."""
    publishers: list[tuple[str, tuple[int, list[tuple[int, str]]]]] = []
    wills: list[tuple[str, int, str]] = []
    """As ``origins`` has them."""
    epochs: list[tuple[int, int]] = []
    """Of ``Epoch``."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[AnyOp])
_images = msgspec.msgpack.Decoder(Image)


def pack(ops: list[AnyOp]) -> bytes:
    return _encoder.encode(ops)


def unpack(payload: bytes) -> list[AnyOp]:
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError) as e:
        raise Malformed(f"an entry of sessions cannot be read: {e}") from None


def pack_image(image: Image) -> bytes:
    return _encoder.encode(image)


def unpack_image(payload: bytes) -> Image:
    try:
        return _images.decode(payload)
    except (msgspec.DecodeError, RecursionError) as e:
        raise Malformed(f"the state of a session partition cannot be read: {e}") from None


def stored(message: Message) -> Stored:
    return Stored(message.topic, message.payload, message.qos, message.retain, message.properties, message.expires_ms, message.publisher)


def message_of(kept: Stored) -> Message:
    properties = kept.properties
    if properties and 0x26 in properties:  # pairs come back as lists
        properties = {**properties, 0x26: [(name, text) for name, text in properties[0x26]]}
    return Message(kept.topic, kept.payload, kept.qos, kept.retain, properties, kept.expires_ms, kept.publisher)
