"""How one partition stands, as its owner says: what it does, what keeps it from serving, on whom it waits, how far each copy has come.

Owns the words for it. Reads the copy and its replica, and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from headrace.core.replica import term
from headrace.core.replica.effects import Refusal
from headrace.core.replica.follower import Phase
from headrace.core.replica.opening import Part
from headrace.core.replica.owner import Owner
from headrace.core.replica.peer import Link, Peer
from headrace.model.cluster import Assignment, BrokerId
from headrace.wire.frames import Level
from headrace.wire.topology import UNKNOWN, FollowerRow

if TYPE_CHECKING:
    from headrace.broker.copies import Copy


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's head; fields as of ``wire.topology.PartitionRow``."""

    partition: int
    state: str
    why: str = ""
    waits_for: tuple[str, ...] = ()
    epoch: int = 0
    high_watermark: int = UNKNOWN
    end: int = UNKNOWN
    followers: tuple[FollowerRow, ...] = ()


def standing(copy: Copy, now_ms: int) -> Standing:
    """Of a partition that this broker should own; ``now_ms`` by the clock of its replica."""
    replica = copy.replicated.replica
    owner, journal = replica.owner, replica.journal
    state, why, waits_for = _state(copy, now_ms)
    return Standing(
        partition=copy.pid,
        state=state,
        why=why,
        waits_for=waits_for,
        epoch=owner.epoch if owner is not None else copy.document.epoch,
        high_watermark=journal.high_watermark,
        end=journal.end,
        followers=tuple(_follower(owner, peer, journal.end) for _, peer in sorted(owner.peers.items())) if owner is not None else (),
    )


def idle(document: Assignment) -> Standing:
    """Of a partition that this broker should own and that nobody has used in this life: it begins to serve with the first use. Who is recorded as in
    sync has everything; of a majority nothing is recorded, and nothing is known against its replicas."""
    in_sync = document.isr if document.level == "replica_durable" else document.replicas
    others = (b for b in document.copies if b != document.owner)
    followers = tuple(FollowerRow(broker=b, link="idle", in_sync=b in in_sync) for b in others)
    return Standing(partition=document.partition, state="idle", epoch=document.epoch, followers=followers)


def _state(copy: Copy, now_ms: int) -> tuple[str, str, tuple[str, ...]]:
    replicated, partition = copy.replicated, copy.partition
    replica = replicated.replica
    owner = replica.owner
    if replica.follower.phase is Phase.QUARANTINED:
        return "quarantined", replica.follower.reason, ()
    if partition is not None and partition.quarantined:
        return "quarantined", partition.quarantined, ()
    if replicated.halted:
        return "unavailable", replicated.halted, ()
    if owner is None:
        return "starting", "its owner takes a new epoch: the coordinator has to record that", ()
    if owner.part is Part.COLLECTING:
        missing = tuple(term.missing(owner.document, owner.me, owner.peers))
        return ("unavailable" if owner.reason else "starting"), "its owner waits for what the other copies hold", missing
    if owner.part is Part.FETCHING:
        return "starting", owner.reason or owner.part.value, (owner.source.source,) if owner.source is not None else ()
    if owner.part is Part.STARTING:
        return "starting", f"its owner {owner.part.value}", _behind(owner, owner.begun_at + 1)
    if owner.part is Part.SEALED:
        return "moving", f"its owner {owner.part.value}", ()
    if owner.part is not Part.SERVING:
        return "starting", f"its owner {owner.part.value}", ()
    silent = tuple(owner.missed(now_ms))
    idle = not owner.withheld and owner.change is None and all(owner.peers[b].owes_ms is None for b in silent)
    if silent and not (idle and owner.document.level == "replica_durable"):
        return "isolated", "its owner does not hear enough of the other copies, and delivers nothing until it does", silent
    if owner.refusal(Level.MAJORITY, now_ms) is Refusal.BELOW_FLOOR:
        count, floor = owner.in_sync_count(), owner.document.floor
        why = f"{count} of the {floor} copies that a confirm needs are in sync: publishes are refused"
        return "below_floor", why, tuple(b for b in owner.document.replicas if b != owner.me and not _in_sync(owner, owner.peers[b]))
    if not copy.serving:
        return "starting", "its owner applies what is committed", ()
    if silent:
        return "serving", "its owner does not hear all copies; who stays silent is out of sync with the next message", silent
    return "serving", "", ()


def _behind(owner: Owner, end: int) -> tuple[str, ...]:
    """The members that do not hold everything below ``end`` yet."""
    return tuple(b for b in owner.document.members if b != owner.me and owner.peers[b].held < end)


def _in_sync(owner: Owner, peer: Peer) -> bool:
    if owner.document.level == "replica_durable":
        return peer.broker in owner.document.isr
    return peer.link is Link.STREAMING


def _follower(owner: Owner, peer: Peer, end: int) -> FollowerRow:
    known = bool(peer.held) or peer.link is Link.STREAMING
    return FollowerRow(
        broker=BrokerId(peer.broker),
        link=peer.link.value,
        in_sync=_in_sync(owner, peer),
        held=peer.held if known else UNKNOWN,
        lag=max(0, end - peer.held) if known else UNKNOWN,
        why="" if peer.link is Link.STREAMING else "it is proven dead" if peer.dead else peer.why,
    )
