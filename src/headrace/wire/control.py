"""Control messages: the bodies of REQUEST, REPLY, ERROR and EVENT, msgpack maps tagged by their type in the field ``t``.

Unknown fields are ignored, missing ones take their default, so additions stay compatible. The admin HTTP interface, the CLI and the client all speak
these verbs;
``broker.verbs`` carries them out. Ranges are half-open, times integer milliseconds, offsets and counts unsigned.
"""

from typing import Any

import msgspec

from headrace.model.specs import QueueSpec, StreamSpec
from headrace.wire.message import Message as Message
from headrace.wire.mqtt_control import MqttReply, MqttRequest
from headrace.wire.topology import BrokerRow, CopyRow, PartitionRow

# ---------------------------------------------------------------- opening


class Hello(Message, tag="hello"):
    """First request of a connection. ``session``: "" opens a new one, else the one to resume (its consumers and leases wait for
    ``reconnect_grace``)."""

    versions: tuple[int, int] = (1, 1)
    features: tuple[str, ...] = ()
    client: str = ""
    name: str = ""
    session: str = ""
    user: str = ""
    password: str = ""
    token: str = ""
    heartbeat_ms: int = 10_000
    push: tuple[str, ...] = ()
    """Events wanted: "catalogue", "topology"."""


class Welcome(Message, tag="welcome"):
    version: int
    features: tuple[str, ...]
    broker: str
    """Broker id."""
    incarnation: str
    session: str
    """Secret token by which this session is resumed."""
    resumed: bool
    heartbeat_ms: int
    reconnect_grace_ms: int
    frame_bytes_max: int
    message_bytes_max: int
    channels_max: int
    release: str = ""


# ---------------------------------------------------------------- publishing


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


# ---------------------------------------------------------------- consuming


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


# ---------------------------------------------------------------- catalogue


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


# ---------------------------------------------------------------- queue verbs


class Inspect(Message, tag="queue.inspect"):
    """Peeks without leasing. ``state``: ready, leased, delayed or any."""

    name: str
    state: str = "ready"
    partition: int = -1
    """-1 = all."""
    after: int = -1
    limit: int = 20
    payload_bytes_max: int = 65_536
    filter: Filter | None = None


class Peeked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    partition: int
    offset: int
    state: str
    attempts: int = 0
    key: bytes | None = None
    value: bytes = b""
    size: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int = 0
    priority: int = 0
    not_before_ms: int = 0
    expires_at_ms: int = 0
    lease_until_ms: int = 0


class Inspected(Message, tag="inspected"):
    messages: tuple[Peeked, ...]
    more: bool = False


class Purge(Message, tag="queue.purge"):
    """Drops ready (and delayed) messages; leased ones only with ``leased``."""

    name: str
    partition: int = -1
    leased: bool = False


class Repartition(Message, tag="queue.repartition"):
    """Gives a queue more or fewer partitions while it is used; answered by its ``Info`` once that is recorded. With ``force`` nothing waits for the
    order of keys, and what is left in partitions that are given up is moved."""

    name: str
    partitions: int
    force: bool = False


class Pause(Message, tag="queue.pause"):
    name: str
    paused: bool = True


class Move(Message, tag="queue.move"):
    """Moves ready messages to another queue or stream, each exactly once; ``limit`` 0 = all that are there now; ``rate`` per second, 0 = no limit."""

    name: str
    to: str
    filter: Filter | None = None
    limit: int = 0
    rate: int = 0


class Redrive(Message, tag="queue.redrive"):
    """Moves dead letters back to the queue each came from (or to ``to``)."""

    name: str
    to: str = ""
    filter: Filter | None = None
    limit: int = 0
    rate: int = 0


class Progress(Message, tag="progress"):
    """Where a long transfer stands: asked by ``TransferStatus``."""

    id: int
    done: int
    total: int
    state: str
    """running, finished, failed or cancelled."""
    why: str = ""


class TransferStatus(Message, tag="transfer.status"):
    id: int
    cancel: bool = False


# ---------------------------------------------------------------- stream verbs


class OffsetForTime(Message, tag="stream.offset_for_time"):
    """First offset whose append time is at or after ``timestamp_ms``, per partition: ``Offsets``."""

    name: str
    timestamp_ms: int


class Offsets(Message, tag="offsets"):
    offsets: dict[int, int]


class Trim(Message, tag="stream.trim"):
    """Gives up everything below ``offset`` (of one partition) or older than ``before_ms``."""

    name: str
    partition: int = -1
    offset: int = -1
    before_ms: int = -1


class CursorsList(Message, tag="cursors.list"):
    name: str


class CursorInfo(msgspec.Struct, frozen=True, kw_only=True):
    cursor: str
    partition: int
    offset: int
    """Next offset to read."""
    lag: int
    updated_ms: int


class Cursors(Message, tag="cursors"):
    cursors: tuple[CursorInfo, ...]


class CursorSet(Message, tag="cursors.set"):
    """Sets a cursor: ``to`` as ``SubscribeStream.start`` (reset: "earliest")."""

    name: str
    cursor: str
    partition: int = -1
    to: str = "earliest"


class CursorDelete(Message, tag="cursors.delete"):
    name: str
    cursor: str


# ---------------------------------------------------------------- broker verbs


class Status(Message, tag="status"):
    """Asks for ``BrokerStatus``."""


class BrokerStatus(Message, tag="broker.status"):
    broker: str
    incarnation: str
    release: str
    state: str
    """starting, serving, draining, failed."""
    uptime_ms: int
    mode: str
    storage: str
    compiled: bool
    listeners: dict[str, str]
    connections: int
    sessions: int
    queues: int
    streams: int
    loaded_partitions: int
    publish_rate: float
    deliver_rate: float
    settle_rate: float
    bytes_in_rate: float
    bytes_out_rate: float
    wal_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    flush_p50_us: int
    flush_p99_us: int
    attention: tuple[str, ...] = ()


class Drain(Message, tag="drain"):
    grace_ms: int = 5000
    message: str = ""


class QuarantineList(Message, tag="quarantine.list"):
    pass


class QuarantineItem(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    partition: int
    id: int
    why: str
    since_ms: int
    last_valid_index: int
    last_valid_offset: int
    lost_entries_max: int


class Quarantine(Message, tag="quarantine"):
    items: tuple[QuarantineItem, ...]


class QuarantineRepair(Message, tag="quarantine.repair"):
    """Cuts a damaged partition to its last valid point and serves it again; with ``dry_run`` only says what would be lost."""

    name: str
    partition: int = -1
    dry_run: bool = False


class Topology(Message, tag="topology"):
    """Asks where partitions are owned: ``TopologyInfo``. In a cluster a connection that wanted the event "topology" is told by ``event.topology`` of
    every change of these names from now on."""

    names: tuple[str, ...] = ()


class PartitionOwner(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    partition: int
    owner: str
    """Id of the broker, "" = nobody serves it now."""
    epoch: int
    routing_version: int = 1
    id: int = 0
    """Of the partition: of two answers the one with the higher id, then the higher epoch, is the newer one."""


class TopologyInfo(Message, tag="topology.info"):
    brokers: dict[str, tuple[str, ...]]
    """Where clients reach each broker that runs now, by id: addresses as ``headrace://HOST:PORT``."""
    partitions: tuple[PartitionOwner, ...] = ()


class ClusterTopology(Message, tag="topology.cluster"):
    """Asks any broker how the whole cluster stands: ``ClusterTopologyInfo``. Partitions come in order of name and number."""

    names: tuple[str, ...] = ()
    """Only these queues and streams; empty = all."""
    after: str = ""
    """Only names above this one: where the last answer ended."""
    limit: int = 1000
    """Partitions; the last name's are all there, even beyond it."""


class ClusterTopologyInfo(Message, tag="topology.cluster.info"):
    broker: str
    """Id of the broker that was asked."""
    state: str
    """Of that broker: serving, or what it is instead."""
    brokers: tuple[BrokerRow, ...]
    partitions: tuple[PartitionRow, ...] = ()
    attention: tuple[str, ...] = ()
    """What somebody should look at, in sentences, the worst first."""
    unanswered: dict[str, str] = {}
    """Brokers that were asked for what they own, or plan, and did not answer: id and why. What only they know is unknown."""
    cluster: str = ""
    controller: str = ""
    """Id, "" = nobody is elected."""
    controller_why: str = ""
    term: int = 0
    """Grows with every election of a controller."""
    planning: str = ""
    """on, paused or dry_run."""
    more: bool = False


class ForceElection(Message, tag="election.force"):
    """What it would cost to have a copy serve a partition that may lack confirmed messages, for a partition that nobody may serve otherwise; with
    ``accept_data_loss`` it is done: ``Election``. Any broker takes it; the controller carries it out."""

    name: str
    partition: int = 0
    chosen: str = ""
    """Name or id of the broker that shall own it; "" = the one whose copy reaches furthest."""
    accept_data_loss: bool = False
    version: int = 0
    """Of the answer that was looked at: what is accepted is what that showed."""
    by: str = ""
    """Who accepts it; it is recorded."""


class Election(Message, tag="election"):
    """What an election with accepted loss costs, or has cost."""

    name: str
    partition: int
    version: int
    """To be named by who accepts it."""
    chosen: str
    """Id of the broker that would own it, or does."""
    reason: str
    """What it holds, and what is lost, in a sentence."""
    given_up: tuple[str, ...] = ()
    """Members that may hold confirmed messages beyond it."""
    copies: tuple[CopyRow, ...] = ()
    elected: bool = False
    epoch: int = 0
    """In which it owns the partition; 0 = nothing was done."""


class ConnectionsList(Message, tag="connections.list"):
    pass


class ConnectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    peer: str
    client: str
    name: str
    protocol: str
    since_ms: int
    publishers: int
    subscriptions: int
    bytes_in: int
    bytes_out: int
    buffered_bytes: int


class Connections(Message, tag="connections"):
    connections: tuple[ConnectionInfo, ...]


# ---------------------------------------------------------------- answers and events


class Failure(Message, tag="failure"):
    """Body of ERROR: see ``model.errors``. ``detail`` of Elsewhere: ``brokers`` and ``partitions`` as in ``TopologyInfo``, as far as
    they are known."""

    code: int
    message: str
    hint: str = ""
    detail: dict[str, Any] = {}


class GoingAway(Message, tag="event.going_away"):
    grace_ms: int
    message: str


class SubscriptionClosed(Message, tag="event.subscription_closed"):
    """A subscription ended on the broker's side: ``code`` as in ``model.errors``; 0 = by drain."""

    channel: int
    code: int
    message: str
    detail: dict[str, Any] = {}
    """As of ``Failure``."""


class PublisherClosed(Message, tag="event.publisher_closed"):
    """A publish channel takes nothing more before it is opened anew, there or where ``detail`` says: what comes on it is refused, so that nothing
    overtakes what was refused before it."""

    channel: int
    code: int
    message: str
    detail: dict[str, Any] = {}


class Assigned(Message, tag="event.assigned"):
    """A cohort's or reader group's partitions for this member changed."""

    channel: int
    generation: int
    partitions: tuple[int, ...]
    revoked: tuple[int, ...] = ()
    starts: dict[int, int] = {}


class Retracted(Message, tag="event.retracted"):
    """Speculative or ephemeral records from this offset on were taken back by a new epoch."""

    channel: int
    partition: int
    from_offset: int
    epoch: int


class CursorMoved(Message, tag="event.cursor_moved"):
    """Retention removed what the reader had not read: it goes on at ``to_offset``."""

    channel: int
    partition: int
    from_offset: int
    to_offset: int


class PartitionIsolated(Message, tag="event.partition_isolated"):
    """A reader of all partitions or of a group goes on without this one, which is damaged. After its repair the subscription ends as ``unavailable``
    and, opened again, has it."""

    channel: int
    partition: int
    message: str


class CatalogueChanged(Message, tag="event.catalogue"):
    name: str
    kind: str
    change: str
    """declared, altered or deleted."""


class TopologyChanged(Message, tag="event.topology"):
    """Who serves these names now, after a change; a name without partitions is there no more."""

    names: tuple[str, ...]
    brokers: dict[str, tuple[str, ...]]
    partitions: tuple[PartitionOwner, ...] = ()


Request = (
    Hello
    | OpenPublisher
    | ClosePublisher
    | Resolve
    | Subscribe
    | SubscribeStream
    | Join
    | Released
    | Unsubscribe
    | DeclareQueue
    | AlterQueue
    | DeclareStream
    | AlterStream
    | Delete
    | List
    | Describe
    | Inspect
    | Purge
    | Pause
    | Repartition
    | Move
    | Redrive
    | TransferStatus
    | OffsetForTime
    | Trim
    | CursorsList
    | CursorSet
    | CursorDelete
    | Status
    | Drain
    | QuarantineList
    | QuarantineRepair
    | Topology
    | ClusterTopology
    | ForceElection
    | ConnectionsList
    | MqttRequest
)
Reply = (
    Welcome
    | PublisherOpened
    | Resolved
    | Subscribed
    | Info
    | Listing
    | Done
    | Inspected
    | Progress
    | Offsets
    | Cursors
    | BrokerStatus
    | Quarantine
    | TopologyInfo
    | ClusterTopologyInfo
    | Election
    | Connections
    | MqttReply
)
Event = GoingAway | SubscriptionClosed | PublisherClosed | Assigned | Retracted | CursorMoved | PartitionIsolated | CatalogueChanged | TopologyChanged

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
decode_event = msgspec.msgpack.Decoder(Event).decode
decode_failure = msgspec.msgpack.Decoder(Failure).decode
