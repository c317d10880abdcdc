"""What a queue or a stream is declared to be: frozen values, their validation and their difference.

Times are integer milliseconds; 0 means "none / unlimited" wherever a field says so.
"""

from collections.abc import Collection, Iterable
from typing import Any, Literal, TypeVar

import msgspec

from headrace.model import limits
from headrace.model.errors import Invalid
from headrace.model.topics import filter_fault

Durability = Literal["local_durable", "majority_durable", "replica_durable"]
Tier = Literal["durable", "speculative", "ephemeral"]
Overflow = Literal["refuse", "drop_oldest", "dead_letter_oldest"]
Kind = Literal["queue", "stream"]


class QueueSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A queue's declared settings. Fields in ``QUEUE_FIXED`` cannot be altered after declaration."""

    partitions: int = 1
    """Units of order and of parallel consumption."""
    replication_factor: int = 1
    """Copies of each partition, on different brokers."""
    durability: Durability = "local_durable"
    """What a confirm at the level of the queue promises: synced here, by a majority of the copies, or by all that are in sync."""
    min_in_sync_replicas: int = 1
    """Copies that must be in sync for a publish at majority or replica level; 1 = off."""
    ttl_ms: int = 0
    """Default time to live of a message, 0 = for ever."""
    lease_ms: int = 30_000
    """How long a delivery holds its messages; then they return, with their delivery count one higher."""
    max_deliveries: int = 0
    """Deliveries after which a message is dead-lettered (or dropped), 0 = unlimited."""
    backoff_ms: tuple[int, ...] = ()
    """Delay before redelivery n (the last one repeats); empty = at once."""
    dead_letter: str = ""
    """Name of the queue that takes dead letters, "" = dropped."""
    max_messages: int = 0
    """Unsettled messages per partition, 0 = unlimited."""
    max_bytes: int = 0
    """Bytes of unsettled messages per partition, 0 = unlimited."""
    max_age_ms: int = 0
    """Age at which an unsettled message expires whatever its own time to live, 0 = never."""
    max_message_bytes: int = 0
    """Largest batch of records in one publish, 0 = the broker's own limit."""
    overflow: Overflow = "refuse"
    """What happens to a publish past max_messages or max_bytes: refused, or room is made at the old end."""
    ordered_by_key: bool = False
    """Messages of one key go to one consumer at a time, in order, retries included."""
    cohort_grace_ms: int = 10_000
    """A static member that returns within this keeps its partitions."""
    cohort_target: int = 0
    """Number of consumers a cohort is planned for, 0 = as many as there are."""
    bindings: tuple[str, ...] = ()
    """MQTT topic filters whose publishes this queue captures."""


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A stream's declared settings."""

    partitions: int = 1
    """Units of order and of parallel consumption."""
    replication_factor: int = 1
    """Copies of each partition, on different brokers."""
    tier: Tier = "durable"
    """When records are delivered and confirmed: once durable, delivered before they are durable, or never synced for a confirm."""
    durability: Durability = "local_durable"
    """What a confirm at the level of the stream promises: synced here, by a majority of the copies, or by all that are in sync."""
    min_in_sync_replicas: int = 1
    """Copies that must be in sync for a publish at majority or replica level; 1 = off."""
    retention_ms: int = 0
    """Age at which records may go, 0 = kept for ever."""
    retention_bytes: int = 0
    """Per partition."""
    retention_records: int = 0
    """Per partition."""
    compaction: bool = False
    """Keep only the newest record of each key."""
    tombstone_ms: int = 24 * 3600 * 1000
    """How long a record without a value (a deletion of its key) survives compaction."""
    max_message_bytes: int = 0
    """Largest batch of records in one publish, 0 = the broker's own limit."""
    bindings: tuple[str, ...] = ()
    """MQTT topic filters whose publishes this stream captures."""


Spec = QueueSpec | StreamSpec
S = TypeVar("S", bound=Spec)

COPIES = ("replication_factor", "durability", "min_in_sync_replicas")
"""Fields whose default depends on how many brokers there are; see ``replicated``."""
COPIES_DEFAULT = 3

FIXED = frozenset({"partitions", "ordered_by_key", "tier", "replication_factor"})
"""Fields that the catalogue's ``alter`` refuses (the partitions of a queue are changed by a repartition)."""


def check_name(name: str) -> None:
    """Raises ``Invalid`` unless ``name`` may name a queue or a stream: 1-255 UTF-8 bytes, no control characters, no leading ``$``."""
    raw = name.encode("utf-8", "surrogatepass")
    if not 1 <= len(raw) <= limits.NAME_BYTES_MAX:
        raise Invalid(f"a name has 1 to {limits.NAME_BYTES_MAX} bytes in UTF-8, this one has {len(raw)}")
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in name):
        raise Invalid(f"the name {name!r} holds a control character; use printable characters only")
    if name.startswith("$"):
        raise Invalid(f"the name {name!r} begins with $, which is reserved for the broker; choose another")


def check_queue(spec: QueueSpec, *, name: str = "") -> None:
    """Raises ``Invalid`` naming every field of ``spec`` that is out of bounds or contradicts another."""
    wrong: list[str] = []
    _check_common(spec, wrong)
    if not limits.LEASE_MS_MIN <= spec.lease_ms <= limits.LEASE_MS_MAX:
        wrong.append(f"lease_ms must lie in {limits.LEASE_MS_MIN}..{limits.LEASE_MS_MAX}, is {spec.lease_ms}")
    for field in ("ttl_ms", "max_deliveries", "max_messages", "max_bytes", "max_age_ms", "cohort_grace_ms", "cohort_target"):
        if getattr(spec, field) < 0:
            wrong.append(f"{field} must not be negative (0 = none)")
    if spec.max_deliveries > 65_535:
        wrong.append("max_deliveries is at most 65535")
    if len(spec.backoff_ms) > 32 or any(not 0 <= b <= limits.LEASE_MS_MAX for b in spec.backoff_ms):
        wrong.append(f"backoff_ms has at most 32 steps, each in 0..{limits.LEASE_MS_MAX}")
    if spec.overflow == "dead_letter_oldest" and not spec.dead_letter:
        wrong.append("overflow = dead_letter_oldest needs dead_letter to name a queue")
    if spec.dead_letter:
        try:
            check_name(spec.dead_letter)
        except Invalid as e:
            wrong.append(f"dead_letter: {e}")
        if spec.dead_letter == name:
            wrong.append("a queue cannot be its own dead_letter queue")
    if wrong:
        raise Invalid("queue settings: " + "; ".join(wrong))


def check_stream(spec: StreamSpec) -> None:
    """Raises ``Invalid`` naming every field of ``spec`` that is out of bounds or contradicts another."""
    wrong: list[str] = []
    _check_common(spec, wrong)
    for field in ("retention_ms", "retention_bytes", "retention_records", "tombstone_ms"):
        if getattr(spec, field) < 0:
            wrong.append(f"{field} must not be negative (0 = none)")
    if spec.compaction and spec.tier == "ephemeral":
        wrong.append("an ephemeral stream cannot be compacted")
    if wrong:
        raise Invalid("stream settings: " + "; ".join(wrong))


def meant(spec: Spec, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the fields that were named which have the built-in value: a default must not take their place."""
    builtin = type(spec)()
    return tuple(sorted(f for f in names if f in spec.__struct_fields__ and getattr(spec, f) == getattr(builtin, f)))


def replicated(spec: S, given: Collection[str], members: int, existing: Spec | None = None) -> S:
    """``spec`` with what it says nothing of its copies filled in for a cluster of ``members`` brokers: three copies, or as many as there are brokers;
    confirmed when all in sync have them, if there are two; two in sync, if there are three. ``given``: fields that are meant although they have the
    built-in value. ``existing``: what is declared under that name already; it is not asked to change by saying nothing."""
    if isinstance(spec, StreamSpec) and spec.tier == "ephemeral":
        return spec
    builtin = type(spec)()
    said = [f for f in COPIES if f in given or getattr(spec, f) != getattr(builtin, f)]
    if type(existing) is type(spec):
        return msgspec.structs.replace(spec, **{f: getattr(existing, f) for f in COPIES if f not in said})
    found: dict[str, Any] = {f: getattr(spec, f) for f in said}
    factor = found.setdefault("replication_factor", max(1, min(COPIES_DEFAULT, members)))
    durability = found.setdefault("durability", "replica_durable" if factor > 1 else "local_durable")
    found.setdefault("min_in_sync_replicas", 2 if factor > 2 and durability != "local_durable" else 1)
    return msgspec.structs.replace(spec, **found)


def difference(old: Spec, new: Spec) -> list[str]:
    """Names of the fields in which two specs of one kind differ, in declaration order."""
    return [f for f in old.__struct_fields__ if getattr(old, f) != getattr(new, f)]


def _check_common(spec: Spec, wrong: list[str]) -> None:
    if len(spec.bindings) > limits.BINDINGS_MAX:
        wrong.append(f"at most {limits.BINDINGS_MAX} bindings")
    for filter in spec.bindings:
        fault = filter_fault(filter) or ("the topics of the broker itself are not captured" if filter.startswith("$") else "")
        if fault:
            wrong.append(f"binding {filter!r}: {fault}")
    if not 1 <= spec.partitions <= limits.PARTITIONS_MAX:
        wrong.append(f"partitions must lie in 1..{limits.PARTITIONS_MAX}, is {spec.partitions}")
    if not 1 <= spec.replication_factor <= 15:
        wrong.append(f"replication_factor must lie in 1..15, is {spec.replication_factor}")
    if not 1 <= spec.min_in_sync_replicas <= max(1, spec.replication_factor):
        wrong.append("min_in_sync_replicas must lie in 1..replication_factor")
    if spec.durability == "replica_durable" and spec.replication_factor < 2:
        wrong.append("replica_durable needs at least 2 copies: raise replication_factor or use local_durable")
    if not 0 <= spec.max_message_bytes <= limits.MESSAGE_BYTES_MAX:
        wrong.append(f"max_message_bytes must lie in 0..{limits.MESSAGE_BYTES_MAX}")
