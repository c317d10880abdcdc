"""The broker that is asked: how it stands, its going away, and its damaged partitions."""

import msgspec

from headrace.wire.control.message import Message


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
