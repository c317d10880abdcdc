"""Payloads of journal entries: what a partition writes besides the records themselves, as ranges.

Owns their byte layouts. Knows neither machines nor storage. A malformed payload raises ``Malformed``, never anything else.
An entry is (partition u64, epoch u32, index u64 dense from 1, kind u8, payload).
"""

from enum import IntEnum
from struct import Struct
from typing import Any, Final

import msgspec

from headrace.model.errors import Malformed


class Kind(IntEnum):
    """What an entry holds."""

    RECORDS = 1
    LEASE = 2
    SETTLEMENT = 3
    CURSOR = 4
    CONFIG = 5
    EPOCH_START = 6
    TRUNCATE = 7
    PROMISE = 8
    TRANSFER = 9
    GROUP = 10
    SESSIONS = 11
    """Changes of MQTT sessions and retained messages (``core.mqtt.ops``)."""
    ROUTING = 12
    """A repartition of the queue: a routing version begins here, or key slots are held no longer."""


class Action(IntEnum):
    """What a settlement does to its range."""

    ACK = 0
    RETURN = 1
    """Back to ready now; ``attempts`` is the delivery count that is kept."""
    DELAY = 2
    """As RETURN, but not before ``when_ms``."""
    DROP = 3
    PURGE = 4
    TRANSFERRED = 5
    """A transfer took it."""
    EXTEND = 6
    """The lease runs ``when_ms`` milliseconds from here."""


class Reason(IntEnum):
    """Why."""

    NONE = 0
    RETRY = 1
    LEASE_EXPIRED = 2
    CONSUMER_GONE = 3
    REJECTED = 4
    EXPIRED = 5
    MAX_DELIVERIES = 6
    OVERFLOW = 7
    PURGED = 8
    MOVED = 9
    REDRIVEN = 10
    AUTO_ACK = 11
    DROPPED = 12


RECORDS_HEAD: Final = Struct(">QIIqI4x")
"""base_offset u64, record_count u32, frame_count u32, wall_ms i64, number of runs u32; the run table follows, then the frames (``wire.entry``)."""

LEASE: Final = Struct(">QIHxxIQ")
"""first u64, count u32, attempt u16 (the delivery count after this grant), lease_ms u32, owner token u64."""

SETTLEMENT: Final = Struct(">BBHIQq")
"""action u8, reason u8, attempts u16, count u32, first u64, when_ms i64."""

TRUNCATE: Final = Struct(">QI")
"""from_index u64, epoch u32."""

OBEYED: Final = Struct(">QQ")
"""Payload of a PROMISE: generation u64 and version u64 of the newest document of the partition that was obeyed."""

Lease = tuple[int, int, int, int, int]
Settlement = tuple[int, int, int, int, int, int]


def pack_records_head(base_offset: int, record_count: int, frame_count: int, wall_ms: int, runs: int) -> bytes:
    return RECORDS_HEAD.pack(base_offset, record_count, frame_count, wall_ms, runs)


def unpack_records_head(payload: bytes | memoryview) -> tuple[int, int, int, int, int]:
    """(base_offset, record_count, frame_count, wall_ms, runs)."""
    if len(payload) < RECORDS_HEAD.size:
        raise Malformed(f"a records entry of {len(payload)} bytes has no head")
    head: tuple[int, int, int, int, int] = RECORDS_HEAD.unpack_from(payload)
    return head


def pack_leases(leases: list[Lease]) -> bytes:
    """``(first, count, attempt, lease_ms, owner)`` each."""
    pack = LEASE.pack
    return b"".join([pack(*lease) for lease in leases])


def unpack_leases(payload: bytes) -> list[Lease]:
    if len(payload) % LEASE.size:
        raise Malformed(f"a lease entry of {len(payload)} bytes")
    return list(LEASE.iter_unpack(payload))


def pack_settlements(settlements: list[Settlement]) -> bytes:
    """``(action, reason, attempts, count, first, when_ms)`` each."""
    pack = SETTLEMENT.pack
    return b"".join([pack(*settlement) for settlement in settlements])


def unpack_settlements(payload: bytes) -> list[Settlement]:
    if len(payload) % SETTLEMENT.size:
        raise Malformed(f"a settlement entry of {len(payload)} bytes")
    return list(SETTLEMENT.iter_unpack(payload))


class CursorEntry(msgspec.Struct, frozen=True, array_like=True):
    """A cursor's position; ``next_offset`` -1 = deleted. ``acked_above``: (first, count) ranges acked beyond a gap."""

    name: str
    next_offset: int
    acked_above: list[tuple[int, int]] = []
    wall_ms: int = 0


class TransferStart(msgspec.Struct, frozen=True, tag="start", array_like=True):
    """Messages leave for ``target``; ``ranges`` as the queue machine keeps them."""

    number: int
    target: str
    reason: int
    ranges: list[tuple[int, ...]]
    wall_ms: int
    extra: dict[str, Any] = {}


class TransferDone(msgspec.Struct, frozen=True, tag="done", array_like=True):
    """The target has committed transfer ``number``."""

    number: int


class GroupState(msgspec.Struct, frozen=True, tag="state", array_like=True):
    """A group that has its home in this partition, as ``core.groups`` snapshots it."""

    name: str
    state: bytes


class GroupGone(msgspec.Struct, frozen=True, tag="gone", array_like=True):
    """Its last member has left; no group of this partition begins at or below ``generation`` any more."""

    name: str
    generation: int


class GroupHolder(msgspec.Struct, frozen=True, tag="holder", array_like=True):
    """Of that group only this member, or one of a later generation, may use this partition."""

    name: str
    generation: int
    member: str


GroupEntry = GroupState | GroupGone | GroupHolder

class RoutingBegun(msgspec.Struct, frozen=True, tag="begun", array_like=True):
    """From offset ``cut`` on, partition ``number`` takes publishes of this version alone: they go to ``after`` partitions, and went to ``before``."""

    version: int
    number: int
    before: int
    after: int
    cut: int


class RoutingFreed(msgspec.Struct, frozen=True, tag="freed", array_like=True):
    """Partition ``source`` (-1 = each) has of the key slots that are held here for it no others in hand than ``behind``."""

    version: int
    source: int
    behind: bytes = b""


RoutingEntry = RoutingBegun | RoutingFreed

_encode = msgspec.msgpack.Encoder().encode
_routing: msgspec.msgpack.Decoder[RoutingEntry] = msgspec.msgpack.Decoder(RoutingEntry)
_cursors = msgspec.msgpack.Decoder(list[CursorEntry])
_group: msgspec.msgpack.Decoder[GroupEntry] = msgspec.msgpack.Decoder(GroupEntry)
_transfer: msgspec.msgpack.Decoder[TransferStart | TransferDone] = msgspec.msgpack.Decoder(TransferStart | TransferDone)


def pack_cursors(cursors: list[CursorEntry]) -> bytes:
    return _encode(cursors)


def unpack_cursors(payload: bytes) -> list[CursorEntry]:
    try:
        return _cursors.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"a cursor entry cannot be read: {e}") from None


def pack_transfer(transfer: TransferStart | TransferDone) -> bytes:
    return _encode(transfer)


def unpack_transfer(payload: bytes) -> TransferStart | TransferDone:
    try:
        return _transfer.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"a transfer entry cannot be read: {e}") from None


def pack_group(entry: GroupEntry) -> bytes:
    return _encode(entry)


def unpack_group(payload: bytes) -> GroupEntry:
    try:
        return _group.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"a group entry cannot be read: {e}") from None


def pack_routing(entry: RoutingEntry) -> bytes:
    return _encode(entry)


def unpack_routing(payload: bytes) -> RoutingEntry:
    try:
        return _routing.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"a routing entry cannot be read: {e}") from None
