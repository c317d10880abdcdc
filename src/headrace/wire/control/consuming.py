"""Subscriptions to queues and streams, and membership of cohorts and groups of readers. Deliveries and settlements are frames (``wire.egress``)."""

import msgspec

from headrace.wire.control.message import Message


class Filter(msgspec.Struct, frozen=True, omit_defaults=True):
    """One term or a combination. ``op``: eq, prefix, glob, exists (on ``header``, or on the key when header is ""), and, or, not (on ``terms``)."""

    op: str
    header: str = ""
    value: str = ""
    terms: tuple["Filter", ...] = ()


class Held(msgspec.Struct, frozen=True):
    """What a resuming subscription still holds of one partition: ranges (first, count) of delivered, unsettled messages."""

    partition: int
    ranges: tuple[tuple[int, int], ...]


class Subscribe(Message, tag="subscribe"):
    """Opens a subscription on a channel (client's choice, 1-65535) to a queue."""

    channel: int
    name: str
    prefetch: int = 100
    prefetch_bytes: int = 16 * 1024 * 1024
    pull: bool = False
    """Deliver only on FETCH."""
    auto_ack: bool = False
    lease_ms: int = 0
    """0 = the queue's."""
    filter: Filter | None = None
    cohort: str = ""
    member: str = ""
    """Static member name within the cohort ("" = dynamic)."""
    partitions: tuple[int, ...] = ()
    """() = all, or in a cluster those that this broker serves now; named ones that another serves are refused as ``elsewhere``. With a cohort only
    those that ``seat`` was given."""
    resume: bool = False
    held: tuple[Held, ...] = ()
    token: int = 0
    """u64 of the client's choice that names this subscription within its session over reconnects and broker restarts."""
    seat: int = 0
    """In a cluster, with a cohort: ``Join.token`` of the member, which shows the ``generation`` in which it was last given these partitions."""
    generation: int = 0


class SubscribeStream(Message, tag="subscribe.stream"):
    """Opens a subscription on a channel to a stream. ``start``: cursor, earliest, latest, offset:N, timestamp:MS, last:N.
    Credit is ``prefetch`` records beyond what was acked (or, with ``auto_commit`` and no cursor, granted by CREDIT)."""

    channel: int
    name: str
    partitions: tuple[int, ...] = ()
    """() = all, or those a group assigns."""
    start: str = "latest"
    starts: dict[int, int] = {}
    """Offset per partition that overrides ``start`` (a resuming reader's own position)."""
    epochs: dict[int, int] = {}
    """Epoch of the last record before the offset in ``starts``: what newer ones took back of it is told by ``Retracted``."""
    cursor: str = ""
    """Name of the durable cursor, "" = none."""
    auto_commit: bool = False
    """The cursor follows what was delivered and credited, without SETTLE."""
    group: str = ""
    member: str = ""
    strategy: str = "sticky"
    """range, round_robin, sticky or cooperative."""
    prefetch: int = 10_000
    prefetch_bytes: int = 16 * 1024 * 1024
    filter: Filter | None = None
    token: int = 0
    seat: int = 0
    """As of ``Subscribe``, with a group."""
    generation: int = 0


class Join(Message, tag="group.join"):
    """In a cluster: becomes a member of a cohort of a queue or of a group of readers of a stream, at the broker that serves the group's home; others
    refuse it as ``elsewhere``. The home is the partition that murmur2 of the group's name, for a cohort of the queue's name, chooses as a key does.
    Answered by ``Subscribed``, then ``event.assigned`` on this channel; ``Unsubscribe`` leaves. The member subscribes to each partition that it is
    given where that is served, with ``seat``."""

    channel: int
    name: str
    group: str
    member: str = ""
    """Static member name ("" = dynamic)."""
    strategy: str = "sticky"
    """Of a group of readers; a cohort is sticky."""
    token: int = 0
    """u64 of the client's choice that names this member within its session, over reconnects and brokers; not 0."""


class Released(Message, tag="group.released"):
    """The member of that channel has ended its subscriptions to everything that is not assigned to it in ``generation``: others may have it."""

    channel: int
    generation: int


class Subscribed(Message, tag="subscribed"):
    partitions: int
    assigned: tuple[int, ...]
    generation: int = 0
    lease_ms: int = 0
    starts: dict[int, int] = {}
    """Streams: first offset each assigned partition is read from."""
    epochs: dict[int, int] = {}
    tier: str = ""


class Unsubscribe(Message, tag="unsubscribe"):
    channel: int
    undelivered: tuple[Held, ...] = ()
    """What the client was sent and never handed to its application: returned without counting as an attempt."""
