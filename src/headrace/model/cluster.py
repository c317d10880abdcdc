"""The documents that a cluster's brokers share through the coordinator: who is there, who owns and copies which partition, how placement is set,
who plans.

Owns their fields, keys, bytes and the relations that hold in every one of them. Does not know who writes them when: the controller plans
(``core.control``), the owner of a partition changes its members (``core.replica``). A value that breaks a relation is never encoded and never
accepted.

Bytes: one format version, then msgpack of the fields that differ from their defaults. Unknown fields are refused: what a newer release adds gets a
new format version, which is written only once every broker understands it.

An assignment obeys: A1 no broker twice in a list; learners are no replicas. A2 the owner, isr, elr and leaving are replicas; isr and elr share
nobody; the preferred owner is a replica or a learner. A3 isr and elr are kept for ``replica_durable`` only; there the owner is in the isr. A4 elr is
empty unless the isr is below the floor. A5 every change raises version by one and never lowers generation or epoch.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal, NewType, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from headrace.model.errors import Damaged, Invalid, UnsupportedVersion
from headrace.model.ids import Epoch, Index, PartitionId
from headrace.model.specs import Durability

BrokerId = NewType("BrokerId", str)
"""Made once, kept in the data directory."""

Incarnation = NewType("Incarnation", str)
"""Random, new at every start of a broker."""

NOBODY = BrokerId("")
FORMAT = 1
COPIES_MAX = 15
REASON_CHARACTERS_MAX = 1000
FORCED_MAX = 16
UNFIT_MAX = 65_536
ERASED_MAX = 8_192
"""Deletions that one document names; further ones wait until some of these are forgotten."""
"""Forced elections remembered per partition; of older ones a replica that comes back is told nothing, so it is quarantined instead of cut."""

CONTROLLER_KEY = "controller"
PLACEMENT_KEY = "settings/placement"
PLANNING_KEY = "settings/planning"
BROKERS_PREFIX = "brokers/"
PARTITIONS_PREFIX = "partitions/"
ERASED_PREFIX = "erased/"

Strategy = Literal["consistent_hash", "round_robin", "least_loaded"]

_Id = Annotated[BrokerId, Meta(min_length=1, max_length=63)]
_Ids = Annotated[tuple[_Id, ...], Meta(max_length=COPIES_MAX)]
_Text = Annotated[str, Meta(max_length=255)]
_Number = Annotated[int, Meta(ge=0)]
_Ms = Annotated[int, Meta(ge=0, le=30 * 24 * 3600 * 1000)]


class Registered(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A broker's registration, kept under its lease in the coordinator: present as long as the broker renews it."""

    id: _Id
    name: Annotated[str, Meta(min_length=1, max_length=63)]
    incarnation: Annotated[Incarnation, Meta(min_length=1, max_length=64)]
    addresses: dict[str, _Text] = {}
    """Advertised ``HOST:PORT`` of each listener by its name (``native``, ``admin``, ``peer``)."""
    rack: _Text = ""
    """Failure domain wider than a machine; empty = none is known, the host alone counts."""
    host: _Text = ""
    """Machine; brokers of one host fail together. Empty = a host of its own."""
    release: Annotated[str, Meta(max_length=63)] = ""
    """Version of the software."""
    started_wall_ms: _Number = 0
    writes_bytes_max: _Number = 0
    """The largest entry that it may write as an owner; 0 = it does not say."""
    takes_bytes_max: _Number = 0
    """The largest entry that its log files take; 0 = it does not say."""
    draining: bool = False
    """It is going to stop: it hands over what it owns and is given nothing."""
    unfit: Annotated[tuple[PartitionId, ...], Meta(max_length=UNFIT_MAX)] = ()
    """Partitions whose copy here is damaged, stands still or has lost what it acknowledged, ascending: it must not own them, nor count as in sync."""


class Forced(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A forced election: the loss an operator has accepted. Whoever was last in an epoch below ``epoch`` may cut its journal at ``base``, below its
    high watermark too, and sets aside what it cuts."""

    epoch: Annotated[Epoch, Meta(ge=1)]
    base: Annotated[Index, Meta(ge=0)]
    """Last index that the elected replica held, the end of what is kept."""
    base_epoch: Annotated[Epoch, Meta(ge=0)]
    """Epoch of its entry at ``base``."""
    accepted_by: _Text
    without: _Ids = ()
    """The members that were given up."""


class Assignment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who serves and copies one partition. Changed only by compare-and-swap.

    The controller writes owner and epoch, learners, leaving and preferred; an owner that restarts raises the epoch for itself; members, level and
    floor are changed by the owner, who alone knows whether the new members hold everything (ARCHITECTURE, replication).
    """

    partition: Annotated[PartitionId, Meta(ge=0)]
    item: _Text
    """Name of the queue or stream, for reasons and displays."""
    generation: Annotated[int, Meta(ge=1)] = 1
    """Raised only when an operator restores or recovers a cluster."""
    version: Annotated[int, Meta(ge=1)] = 1
    """Of this document; what goes backwards in (generation, version) is refused by the replicas."""
    epoch: Annotated[Epoch, Meta(ge=1, lt=1 << 32)] = Epoch(1)
    owner: _Id
    incarnation: Annotated[Incarnation, Meta(max_length=64)] = Incarnation("")
    """The owner's life that was given this epoch; in any other life it takes a new epoch before it serves."""
    level: Durability
    """Pinned here: an altered spec counts from the compare-and-swap by which the owner writes it here."""
    floor: Annotated[int, Meta(ge=1, le=COPIES_MAX)] = 1
    """``min_in_sync_replicas``, pinned likewise."""
    replicas: _Ids
    """The brokers that hold copies that count, in order of preference."""
    isr: _Ids = ()
    elr: _Ids = ()
    """Last members that left the isr since it fell below the floor: nothing was committed without them."""
    learners: _Ids = ()
    """Brokers that copy and count nowhere; the owner makes them replicas once they hold everything."""
    leaving: _Ids = ()
    """Replicas that the owner is asked to take out, once no learner is left, no elr names them and the isr without them reaches the floor."""
    preferred: BrokerId = NOBODY
    """The owner that placement would choose."""
    forced: Annotated[tuple[Forced, ...], Meta(max_length=FORCED_MAX)] = ()
    """Forced elections, oldest first."""
    reason: Annotated[str, Meta(max_length=REASON_CHARACTERS_MAX)] = ""
    """Why it was last changed, in one sentence."""

    @property
    def members(self) -> tuple[BrokerId, ...]:
        """Those of whom ``k`` must hold an entry before it is committed."""
        if self.level == "replica_durable":
            return self.isr
        return self.replicas if self.level == "majority_durable" else (self.owner,)

    @property
    def k(self) -> int:
        """Commit quorum."""
        count = len(self.members)
        return count // 2 + 1 if self.level == "majority_durable" else count

    @property
    def recovery_quorum(self) -> int:
        """Members that a new owner must hear: any so many share one with every commit quorum."""
        return len(self.members) - self.k + 1

    @property
    def electable(self) -> tuple[BrokerId, ...]:
        """Who may own it, the best first: isr, then elr; the replicas of a majority; nobody but the owner of a local one."""
        if self.level == "replica_durable":
            return tuple(b for b in self.replicas if b in self.isr) + tuple(b for b in self.replicas if b in self.elr)
        return self.replicas if self.level == "majority_durable" else (self.owner,)

    @property
    def copies(self) -> tuple[BrokerId, ...]:
        """All who hold or fetch data of it."""
        return self.replicas + self.learners

    @property
    def below_floor(self) -> bool:
        return self.level == "replica_durable" and len(self.isr) < self.floor


class Placement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the controller places and moves, a runtime setting of the cluster."""

    strategy: Strategy = "consistent_hash"
    """Which brokers are preferred for a partition: by a stable hash (few moves when brokers come and go), in turn, or the emptiest first."""
    virtual_nodes: Annotated[int, Meta(ge=1, le=4096)] = 150
    """Points of each broker on the ring."""
    load_percent: Annotated[int, Meta(ge=100, le=199)] = 110
    """Most copies (and owners) on one broker, in percent of an even share: what would exceed it goes to the next in its order of preference. A
    broker that lies as far below the even share is given more."""
    copies_per_broker_max: _Number = 0
    """Hard cap, 0 = none. What has no room under it is refused with a reason."""
    rebalance: bool = True
    """Whether copies and owners move for balance; what is missing or dead is replaced in any case."""
    moves_in_flight_max: Annotated[int, Meta(ge=1, le=1024)] = 4
    """Copies that are caught up at one time, in the whole cluster."""
    handovers_in_flight_max: Annotated[int, Meta(ge=1, le=1024)] = 8
    """Owners handed back to the preferred broker within a second."""
    preferred_after_ms: _Ms = 30_000
    """How long a broker must have been back before its partitions are handed back to it."""
    replace_after_ms: _Ms = 300_000
    """How long a broker must have been dead before its copies are made elsewhere."""
    registration_grace_ms: _Ms = 2_000
    """How long a registration must be gone before that alone proves its broker dead."""
    returning_wait_ms: _Ms = 10_000
    """How long a broker that was gone is given nothing after it is back, and one that was in doubt (cut off, say) no owner back after that ended."""
    freeze_window_ms: _Ms = 10_000
    """Registrations that vanish within this time of each other, while their brokers are seen alive, point to the coordinator, not to the brokers."""
    emptied: Annotated[tuple[_Id, ...], Meta(max_length=1024)] = ()
    """Brokers that an operator takes away for good: owners, then copies are moved off them."""


class Holder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who is the controller. The document is never removed, only handed on, so that its version is that of a term and never comes back."""

    broker: Annotated[BrokerId, Meta(max_length=63)] = NOBODY
    """Nobody: the last one has stepped down."""
    incarnation: Annotated[Incarnation, Meta(max_length=64)] = Incarnation("")
    since_wall_ms: _Number = 0
    """For displays."""
    reason: Annotated[str, Meta(max_length=REASON_CHARACTERS_MAX)] = ""


Mode = Literal["on", "paused", "dry_run"]


class Planning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whether the controller acts, a runtime setting of the cluster."""

    mode: Mode = "on"
    """``paused``: nothing is decided, dead owners are not replaced either; ``dry_run``: decided and told, not done."""
    by: _Text = ""
    reason: Annotated[str, Meta(max_length=REASON_CHARACTERS_MAX)] = ""
    since_wall_ms: _Number = 0


class Erased(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which recorded deletions a broker has carried out: nothing of them is on its disk any more."""

    done: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(max_length=ERASED_MAX)] = ()
    """Ids of queues and streams, ascending. What is not recorded as deleted any more is not named."""


Document = Registered | Assignment | Placement | Holder | Planning | Erased
D = TypeVar("D", Registered, Assignment, Placement, Holder, Planning, Erased)
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoders: dict[type, msgspec.msgpack.Decoder[Document]] = {
    t: msgspec.msgpack.Decoder(t) for t in (Registered, Assignment, Placement, Holder, Planning, Erased)
}


def broker_key(broker: BrokerId) -> str:
    return BROKERS_PREFIX + broker


def partition_key(partition: PartitionId) -> str:
    """Keys sort as partitions do."""
    return f"{PARTITIONS_PREFIX}{partition:020d}"


def encode(document: Document) -> bytes:
    """``document`` as bytes, the same for equal ones; ``Invalid`` if it breaks a relation or a bound (nothing was written)."""
    if isinstance(document, Assignment):
        wrong = contradictions(document)
        if wrong:
            raise Invalid(f"assignment of partition {document.partition}: " + "; ".join(wrong))
    data: bytes = _encoder.encode(document)
    try:
        _decoders[type(document)].decode(data)
    except msgspec.DecodeError as e:
        raise Invalid(f"{type(document).__name__} document: {e}") from None
    return bytes((FORMAT,)) + data


def decode(kind: type[D], data: bytes) -> D:
    """The document in ``data``. ``UnsupportedVersion`` for one written by a newer release, ``Damaged`` for anything else that is not a ``kind``."""
    if data and data[0] > FORMAT:
        raise UnsupportedVersion(f"this {kind.__name__} document has format {data[0]}, this release reads up to {FORMAT}")
    if not data or data[0] != FORMAT:
        raise Damaged(f"these {len(data)} bytes are no {kind.__name__} document")
    try:
        document = _decoders[kind].decode(memoryview(data)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Damaged(f"this {kind.__name__} document cannot be read: {e}") from None
    assert isinstance(document, kind)
    if isinstance(document, Assignment):
        wrong = contradictions(document)
        if wrong:
            raise Damaged(f"the assignment of partition {document.partition} contradicts itself: " + "; ".join(wrong))
    return document


def contradictions(a: Assignment) -> list[str]:
    """The relations of the module's head that ``a`` breaks."""
    wrong: list[str] = []
    replicas = a.replicas
    for name, listed in (("replicas", replicas), ("isr", a.isr), ("elr", a.elr), ("learners", a.learners), ("leaving", a.leaving)):
        if len(listed) > 1 and len(set(listed)) < len(listed):
            wrong.append(f"{name} names a broker twice")
        if listed and name not in ("replicas", "learners") and not set(listed).issubset(replicas):
            wrong.append(f"{name} names one that is no replica")
    if a.learners and set(a.learners) & set(replicas):
        wrong.append("a learner is a replica")
    if a.owner not in replicas:
        wrong.append("the owner is no replica")
    if a.preferred and a.preferred not in a.copies:
        wrong.append("the preferred owner holds no copy")
    if a.level == "replica_durable":
        if a.owner not in a.isr:
            wrong.append("the owner is not in sync")
        if a.elr and set(a.isr) & set(a.elr):
            wrong.append("isr and elr share a broker")
        if a.elr and not a.below_floor:
            wrong.append("elr is kept although the isr reaches the floor")
    elif a.isr or a.elr:
        wrong.append(f"isr and elr play no part at level {a.level}")
    forced = a.forced
    if forced and (any(f.epoch > a.epoch for f in forced) or any(f.epoch >= g.epoch for f, g in pairwise(forced))):
        wrong.append("forced elections are not in order of their epochs")
    return wrong


def with_isr(a: Assignment, isr: Iterable[BrokerId]) -> Assignment:
    """``a`` of a replica_durable partition with another isr (not empty), elr following from it; the version is left alone.

    Who leaves an isr that then lacks the floor goes to the elr; once the floor is reached nobody is in it.
    """
    wanted = set(isr)
    assert wanted, "an isr is never empty"
    members = tuple(b for b in a.replicas if b in wanted)
    assert a.level == "replica_durable" and len(members) == len(wanted)
    if len(members) >= a.floor:
        return replace(a, isr=members, elr=())
    last = {*a.isr, *a.elr} - wanted
    return replace(a, isr=members, elr=tuple(b for b in a.replicas if b in last))


def with_learner_promoted(a: Assignment, learner: BrokerId) -> Assignment:
    """``a`` with a learner that holds everything made a replica, in sync where that is recorded; the version is left alone."""
    assert learner in a.learners
    grown = replace(a, replicas=(*a.replicas, learner), learners=tuple(b for b in a.learners if b != learner))
    return with_isr(grown, (*a.isr, learner)) if a.level == "replica_durable" else grown


def without_replica(a: Assignment, gone: BrokerId) -> Assignment:
    """``a`` without a replica that is not the owner (what ``leaving`` asks for); the version is left alone."""
    assert gone in a.replicas and gone != a.owner
    isr = tuple(b for b in a.isr if b != gone)
    if a.level == "replica_durable":
        a = with_isr(a, isr)
    return replace(
        a,
        replicas=tuple(b for b in a.replicas if b != gone),
        elr=tuple(b for b in a.elr if b != gone),
        leaving=tuple(b for b in a.leaving if b != gone),
        preferred=NOBODY if a.preferred == gone else a.preferred,
    )
