"""Queues and streams themselves: declaring, altering, deleting, listing, and what one looks like now."""

from typing import Any

import msgspec

from headrace.model.specs import QueueSpec, StreamSpec
from headrace.wire.control.message import Message


class DeclareQueue(Message, tag="queue.declare"):
    name: str
    spec: QueueSpec = QueueSpec()
    given: tuple[str, ...] = ()
    """Fields of ``spec`` that are meant although they have the built-in value; any other such field gets the broker's or the cluster's default."""


class AlterQueue(Message, tag="queue.alter"):
    """``changes``: field name to new value."""

    name: str
    changes: dict[str, Any]


class DeclareStream(Message, tag="stream.declare"):
    name: str
    spec: StreamSpec = StreamSpec()
    given: tuple[str, ...] = ()
    """As in ``DeclareQueue``."""


class AlterStream(Message, tag="stream.alter"):
    name: str
    changes: dict[str, Any]


class Delete(Message, tag="delete"):
    name: str
    kind: str = ""
    """"" = either."""
    if_empty: bool = False


class List(Message, tag="list"):
    """Names in order, ``after`` exclusive, at most ``limit``; ``pattern`` is a glob. ``idle``: False leaves out what is not loaded from the figures
    (never from the list)."""

    kind: str = ""
    pattern: str = "*"
    after: str = ""
    limit: int = 1000


class Describe(Message, tag="describe"):
    name: str


class PartitionInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One partition's state. Queues use ready, leased, delayed, settled; streams start_offset and readers."""

    partition: int
    id: int
    epoch: int
    state: str
    """idle (not loaded), serving, paused, quarantined, or unavailable: nobody serves it now, or who does has not answered."""
    start_offset: int = 0
    high_watermark: int = 0
    next_offset: int = 0
    ready: int = 0
    leased: int = 0
    delayed: int = 0
    settled: int = 0
    bytes: int = 0
    consumers: int = 0
    oldest_ms: int = 0
    """Age of the oldest unsettled message or retained record."""
    why: str = ""
    held: int = 0
    """Of the delayed, those that wait until older messages of their keys are settled in another partition (a repartition)."""
    holding: int = 0
    """Key slots, of 1,024, that are held so."""
    retiring: bool = False
    """It is given up: it takes no publishes, and goes once it is empty."""


class RoutingInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A repartition under way."""

    before: int
    after: int
    phase: str
    """announced, cutting or draining."""
    since_ms: int
    """Wall clock, when the phase began."""
    waits_for: str = ""
    """"" = nothing."""
    holding: int = 0
    """Key slots that are held, over all partitions."""
    force: bool = False


class Info(Message, tag="info"):
    """A queue or stream: settings, totals and partitions. Rates are per second over the last few seconds."""

    name: str
    kind: str
    id: str
    spec: dict[str, Any]
    routing_version: int = 1
    paused: bool = False
    ready: int = 0
    leased: int = 0
    delayed: int = 0
    settled: int = 0
    records: int = 0
    bytes: int = 0
    consumers: int = 0
    publishers: int = 0
    publish_rate: float = 0.0
    deliver_rate: float = 0.0
    settle_rate: float = 0.0
    partitions: tuple[PartitionInfo, ...] = ()
    attention: tuple[str, ...] = ()
    oldest_ms: int = 0
    """Age of the oldest unsettled message or retained record of the loaded partitions."""
    routing: RoutingInfo | None = None
    """A repartition, while one is under way."""


class Listing(Message, tag="listing"):
    items: tuple[Info, ...]
    more: bool = False


class Done(Message, tag="done"):
    """Plain success. ``count``: how many messages or things it touched; ``detail``: anything else worth showing."""

    count: int = 0
    detail: dict[str, Any] = {}
