"""Who owns and copies what, for this broker and for those who ask it: the view that redirects, displays and the replication driver are fed from.

Owns the joining of assignments, registrations and routing versions, and who is told when an assignment of this broker changes. Nothing here decides
who is owner; what is told is what the coordinator has recorded, in the order in which it was, steps that followed closely perhaps as one.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from headrace.cluster.control.mirror import Mirror
from headrace.cluster.control.picturing import Picturing
from headrace.cluster.coordinator import Document
from headrace.core.control.picture import Stored
from headrace.model.cluster import NOBODY, PARTITIONS_PREFIX, BrokerId, Registered
from headrace.model.ids import Epoch, PartitionId


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One partition, as clients and displays are told."""

    partition: PartitionId
    item: str
    owner: BrokerId
    """Nobody: it has no assignment yet."""
    epoch: Epoch
    version: int
    replicas: tuple[BrokerId, ...]
    isr: tuple[BrokerId, ...]
    learners: tuple[BrokerId, ...]
    preferred: BrokerId
    addresses: Mapping[str, str]
    """Of the owner, by listener; empty while it is not registered."""
    routing_version: int
    reason: str


class Reassigned(msgspec.Struct, frozen=True):
    """An assignment in which this broker is, or was, owner, replica or learner. ``now`` None: it was removed. ``recorded``: whether the removal
    goes with a recorded deletion of the queue or stream; where it does not, nothing may be erased."""

    partition: PartitionId
    before: Stored | None
    now: Stored | None
    recorded: bool = False


Told: TypeAlias = Callable[[tuple[Reassigned, ...]], None]


class Topology:
    """See the module's head. ``version`` grows with every change of anything shown here."""

    def __init__(self, me: BrokerId, mirror: Mirror, picturing: Picturing) -> None:
        """Made after ``picturing``, whose state it shows: the mirror tells in that order."""
        self._me = me
        self._picturing = picturing
        self._mine: dict[PartitionId, Stored] = {}
        self._dirty: dict[PartitionId, None] = {}
        self._changed = False
        self._told: list[Told] = []
        self._turned: list[Callable[[], None]] = []
        self.version = 0
        mirror.on_change("", self._note)
        mirror.on_turn(self._turn)

    def on_reassigned(self, told: Told) -> None:
        """At once for what this broker has already, then for every change, those of one transaction together."""
        self._told.append(told)
        if self._mine:
            told(tuple(Reassigned(p, None, s) for p, s in sorted(self._mine.items())))

    def on_change(self, told: Callable[[], None]) -> None:
        """Whenever ``version`` has grown."""
        self._turned.append(told)

    def mine(self) -> dict[PartitionId, Stored]:
        """What this broker owns or copies."""
        return dict(sorted(self._mine.items()))

    def stored(self, partition: PartitionId) -> Stored | None:
        return self._picturing.stored.get(partition)

    def place(self, partition: PartitionId, *, item: str = "", routing_version: int = 1) -> Place:
        stored = self._picturing.stored.get(partition)
        if stored is None:
            return Place(
                partition=partition, item=item, owner=NOBODY, epoch=Epoch(0), version=0, replicas=(), isr=(), learners=(), preferred=NOBODY,
                addresses={}, routing_version=routing_version, reason="it has no owner yet",
            )  # fmt: skip
        a = stored.assignment
        owner = self._picturing.registered(a.owner)
        declared = self._picturing.declared.get(a.item)
        return Place(
            partition=partition, item=a.item, owner=a.owner, epoch=a.epoch, version=a.version, replicas=a.replicas, isr=a.isr, learners=a.learners,
            preferred=a.preferred, addresses={} if owner is None else owner.addresses,
            routing_version=routing_version if declared is None else declared.routing_version, reason=a.reason,
        )  # fmt: skip

    def item(self, name: str) -> tuple[Place, ...]:
        """The partitions of a queue or stream in order; empty if there is none."""
        declared = self._picturing.declared.get(name)
        if declared is None:
            return ()
        return tuple(self.place(p, item=name, routing_version=declared.routing_version) for p in declared.partitions)

    def number(self, partition: PartitionId) -> int | None:
        """Which one of its queue or stream a partition is; None if nothing says that there is one."""
        stored = self._picturing.stored.get(partition)
        declared = None if stored is None else self._picturing.declared.get(stored.assignment.item)
        return declared.partitions.index(partition) if declared is not None and partition in declared.partitions else None

    def present(self) -> dict[BrokerId, Registered]:
        """The brokers that are registered now."""
        return self._picturing.present()

    def places(self) -> tuple[Place, ...]:
        """All of the cluster, by partition."""
        return tuple(self.place(p) for p in sorted(self._picturing.stored))

    def _note(self, key: str, before: Document | None, now: Document | None) -> None:
        self._changed = True
        digits = key[len(PARTITIONS_PREFIX) :]
        if key.startswith(PARTITIONS_PREFIX) and digits.isdecimal():
            self._dirty[PartitionId(int(digits))] = None

    def _turn(self) -> None:
        if not self._changed:
            return
        self._changed = False
        self.version += 1
        dirty, self._dirty = self._dirty, {}
        news: list[Reassigned] = []
        for partition in dirty:
            before, now = self._mine.get(partition), self._picturing.stored.get(partition)
            if now is None and before is not None and not self._picturing.is_removed(partition):
                continue  # unreadable: what was known of it stands
            mine = now is not None and self._me in now.assignment.copies
            if now == before or (before is None and not mine):
                continue
            if now is not None and mine:
                self._mine[partition] = now
            else:
                self._mine.pop(partition, None)
            recorded = now is None and self._picturing.is_deleted(partition)
            news.append(Reassigned(partition, before, now, recorded))
        if news:
            for told in self._told:
                told(tuple(news))
        for turned in self._turned:
            turned()
