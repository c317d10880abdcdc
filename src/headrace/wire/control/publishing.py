"""Publish channels: opening and closing one, asking whether a sequence was stored. Publishes themselves are frames (``wire.frames``)."""

from headrace.wire.control.message import Message


class OpenPublisher(Message, tag="publisher.open"):
    """Binds a publish channel (client's choice, 1-65535) to one partition. ``create_as``: "" or the policy asked for undeclared names."""

    channel: int
    name: str
    partition: int = 0
    producer_id: int = -1
    producer_epoch: int = 0
    routing_version: int = 0
    """Under which its messages are routed by key. -1: not known yet. 0: this client does not follow repartitions, and its channel is closed with
    ``StaleRouting`` by one. An earlier one than the queue's: what is stored of it is confirmed, all else refused with ``StaleRouting``."""


class PublisherOpened(Message, tag="publisher.opened"):
    kind: str
    """queue or stream."""
    partitions: int
    """Those that publishes go to."""
    routing_version: int
    level: int
    """The ``Level`` that confirms name when the publish asks for ``Level.QUEUE``."""
    epoch: int = 0
    message_bytes_max: int = 0
    last_sequence: int = -1
    """Last sequence of this producer that is stored here, -1 = none."""


class ClosePublisher(Message, tag="publisher.close"):
    channel: int


class Resolve(Message, tag="publisher.resolve"):
    """Was this producer sequence stored here? Answered by ``Resolved`` ("stored", "never" or "unknown")."""

    name: str
    partition: int
    producer_id: int
    producer_epoch: int
    sequence: int


class Resolved(Message, tag="publisher.resolved"):
    outcome: str
    offset: int = -1
