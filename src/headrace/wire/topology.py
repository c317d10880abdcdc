"""The whole cluster as one broker shows it: the rows of ``control.ClusterTopologyInfo``. Values only; ``broker.survey`` fills them in."""

import msgspec

UNKNOWN = -1
"""In the place of a figure that nobody has told."""


class BrokerRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A broker, as the one that was asked sees it."""

    id: str
    name: str
    state: str
    """alive, suspect (something speaks against it that proves nothing), dead; before there is a cluster: waiting, unreachable."""
    why: str = ""
    incarnation: str = ""
    release: str = ""
    rack: str = ""
    host: str = ""
    addresses: dict[str, str] = {}
    """Advertised ``HOST:PORT`` by listener: native, admin, peer."""
    voter: bool = False
    """Hosts a member of the consensus; an observer only uses it."""
    controller: bool = False
    draining: bool = False
    registered: bool = False
    for_ms: int = 0
    """Since when it is, or is not, registered, as far as the asked broker has seen."""
    owns: int = 0
    """Partitions that it owns, of the whole cluster."""
    copies: int = 0
    """Partitions of which it holds a copy, those that it owns among them."""


class CopyRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One copy of a partition that nobody may serve, as an election with accepted loss sees it."""

    broker: str
    name: str
    state: str
    """alive, suspect, dead; damaged: it is there and calls its copy so."""
    why: str = ""
    index: int = UNKNOWN
    """Of the last entry that is on its disk."""
    epoch: int = UNKNOWN
    """Of that entry."""
    committed: int = UNKNOWN
    """It knows that everything up to this entry is committed."""
    next_offset: int = UNKNOWN
    """Offset that would follow the last message that it has taken in."""
    in_sync: bool = False
    """Recorded as holding all that was confirmed."""


class FollowerRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a copy has come that is not the owner's, as its owner says."""

    broker: str
    link: str = "unknown"
    """What goes on between the two: ``follows``, ``idle`` with the partition, or what keeps it from that."""
    in_sync: bool = False
    """Whether it is recorded as in sync; of a majority, whether it follows, or is idle."""
    held: int = UNKNOWN
    """Exclusive end of the entries that it holds durably, -1 = not known."""
    lag: int = UNKNOWN
    """Entries that the owner has and it does not, -1 = not known."""
    why: str = ""


class PartitionRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A partition: what is recorded of it, and what its owner says now. Brokers are named by their ids."""

    name: str
    kind: str
    partition: int
    id: int
    owner: str = ""
    """"" = nobody has been chosen yet."""
    epoch: int = 0
    generation: int = 0
    version: int = 0
    """Of its assignment."""
    level: str = ""
    floor: int = 0
    """``min_in_sync_replicas``."""
    factor: int = 0
    """Copies that its settings ask for."""
    replicas: tuple[str, ...] = ()
    isr: tuple[str, ...] = ()
    elr: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    preferred: str = ""
    routing_version: int = 1
    state: str = "unknown"
    """serving, idle (nobody has used it since its owner started), moving, starting, below_floor (confirmed publishes are refused), isolated
    (nothing is delivered), quarantined, unavailable, unknown (its owner did not say)."""
    why: str = ""
    waits_for: tuple[str, ...] = ()
    """Brokers whose return, or answer, would help."""
    high_watermark: int = UNKNOWN
    """Exclusive end of the committed entries of its journal, -1 = not known."""
    end: int = UNKNOWN
    """Exclusive end of what its owner has, -1 = not known."""
    followers: tuple[FollowerRow, ...] = ()
    reason: str = ""
    """Why its assignment was last changed."""
