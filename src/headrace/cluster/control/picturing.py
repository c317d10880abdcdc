"""The picture on which the controller plans, taken from the documents and from what was seen.

Owns since when each broker is there or gone, and when it was last in doubt, by this broker's own clock, and what is done with documents that cannot
be read: an unreadable assignment withholds its queue or stream from planning, an unreadable registration or setting counts as it was before. Decides
nothing.

I1 every broker keeps the times, elected or not, so that a new controller knows who has been gone for how long. I2 nothing here is lost by a reread:
it is told as differences.
"""

from typing import Final

from headrace.ambient import ambient
from headrace.cluster.control.declared import DELETED_PREFIX, NAMES_PREFIX, Declared, item, read
from headrace.cluster.control.evidence import Evidence
from headrace.cluster.control.mirror import Mirror
from headrace.cluster.coordinator import Document
from headrace.core.control.changes import Finding
from headrace.core.control.liveness import secluded, verdict
from headrace.core.control.picture import Picture, Seen, Stored
from headrace.log import get_logger
from headrace.model.cluster import (
    BROKERS_PREFIX,
    CONTROLLER_KEY,
    ERASED_PREFIX,
    PARTITIONS_PREFIX,
    PLACEMENT_KEY,
    PLANNING_KEY,
    Assignment,
    BrokerId,
    D,
    Holder,
    Placement,
    Planning,
    Registered,
    decode,
    partition_key,
)
from headrace.model.errors import HeadraceError
from headrace.model.ids import PartitionId

_log = get_logger("cluster")

PREFIXES: Final = (
    BROKERS_PREFIX, PARTITIONS_PREFIX, NAMES_PREFIX, DELETED_PREFIX, ERASED_PREFIX, PLACEMENT_KEY, PLANNING_KEY, CONTROLLER_KEY,
)  # fmt: skip
FORGET_MS: Final = 3_600_000
"""A broker that has no copy and has been gone for so long is forgotten."""


class Picturing:
    """See the module's head. Told by the mirror."""

    def __init__(self, mirror: Mirror, evidence: Evidence) -> None:
        self._ambient = ambient()
        self._evidence = evidence
        self._began_ms = 0
        self._seen: dict[BrokerId, Seen] = {}
        self._doubted_ms: dict[BrokerId, int] = {}
        """When a broker was last seen in doubt."""
        self._in_doubt: frozenset[BrokerId] = frozenset()
        """Those who were when it was last looked."""
        self._unreadable: dict[str, str] = {}
        """Key and why."""
        self.stored: dict[PartitionId, Stored] = {}
        self.declared: dict[str, Declared] = {}
        """By name."""
        self._deleted: dict[str, Declared] = {}
        self.settings = Placement()
        self.planning = Planning()
        self.holder = Holder()
        self.holder_version = 0
        mirror.on_change(BROKERS_PREFIX, self._broker)
        mirror.on_change(PARTITIONS_PREFIX, self._partition)
        mirror.on_change(NAMES_PREFIX, self._name)
        mirror.on_change(DELETED_PREFIX, self._deletion)
        for key in (PLACEMENT_KEY, PLANNING_KEY, CONTROLLER_KEY):
            mirror.on_change(key, self._setting)
        mirror.on_turn(self._turned)
        evidence.on_news(self._look)

    # ------------------------------------------------------------ looking

    def now_ms(self) -> int:
        return int(self._ambient.monotonic() * 1000)

    def registered(self, broker: BrokerId) -> Registered | None:
        """As it stands now; None if it is not registered."""
        seen = self._seen.get(broker)
        return seen.registered if seen is not None and seen.present else None

    def brokers(self) -> dict[BrokerId, Registered]:
        """Everybody who is, or was, registered."""
        return {id: seen.registered for id, seen in sorted(self._seen.items())}

    def present(self) -> dict[BrokerId, Registered]:
        return {id: seen.registered for id, seen in sorted(self._seen.items()) if seen.present}

    def seen(self, broker: BrokerId) -> Seen | None:
        """With all that speaks for and against it."""
        seen = self._seen.get(broker)
        if seen is None:
            return None
        clues = self._evidence.clues(broker, seen.incarnation)
        return Seen(
            registered=seen.registered, present=seen.present, since_ms=seen.since_ms, returned=seen.returned, swim=clues.swim,
            probe_failed=clues.probe_failed, reset_ms=clues.reset_ms, refused_ms=clues.refused_ms, frame_ms=clues.frame_ms,
            doubted_ms=self._doubted_ms.get(broker), unfit=frozenset(seen.registered.unfit),
        )  # fmt: skip

    def secluded(self) -> str:
        """Why this broker is itself cut off from most others, "" if it is not."""
        return secluded(seen for id in self._seen if (seen := self.seen(id)) is not None)

    def picture(self, recent_handovers_ms: tuple[int, ...] = ()) -> Picture:
        """How things stand now. Linear in all there is; the caller may plan on another thread."""
        self._look()
        withheld = {PartitionId(int(key[len(PARTITIONS_PREFIX) :])) for key in self._unreadable if _numbered(key)}
        items = [item(d) for _, d in sorted(self.declared.items()) if not withheld.intersection(d.partitions)]
        brokers = [seen for id in sorted(self._seen) if (seen := self.seen(id)) is not None]
        return Picture(
            now_ms=self.now_ms(),
            items=tuple(items),
            brokers=tuple(brokers),
            stored=tuple(self.stored[p] for p in sorted(self.stored)),
            settings=self.settings,
            deleted=frozenset(p for d in self._deleted.values() for p in d.partitions),
            generation=max((s.assignment.generation for s in self.stored.values()), default=1),
            began_ms=self._began_ms,
            recent_handovers_ms=recent_handovers_ms,
        )

    def is_removed(self, partition: PartitionId) -> bool:
        """Whether it has no assignment at all, not even one that cannot be read."""
        return partition not in self.stored and partition_key(partition) not in self._unreadable

    def is_deleted(self, partition: PartitionId) -> bool:
        """Whether the deletion of its queue or stream is recorded."""
        return any(partition in d.partitions for d in self._deleted.values())

    def deletions(self) -> dict[str, Declared]:
        """Queues and streams whose deletion is recorded, by id."""
        return {key[len(DELETED_PREFIX) :]: declared for key, declared in sorted(self._deleted.items())}

    def troubles(self) -> tuple[Finding, ...]:
        """Documents that cannot be read."""
        return tuple(Finding(kind="unknown", partition=None, reason=why) for _, why in sorted(self._unreadable.items()))

    # ------------------------------------------------------------ told by the mirror

    def _read(self, key: str, kind: type[D], value: bytes) -> D | None:
        try:
            found = decode(kind, value)
        except HeadraceError as e:
            self._cannot(key, e)
            return None
        self._unreadable.pop(key, None)
        return found

    def _cannot(self, key: str, error: HeadraceError) -> None:
        self._unreadable[key] = f"the document {key} is left alone: {error}"
        _log.error("%s", self._unreadable[key])

    def _broker(self, key: str, before: Document | None, now: Document | None) -> None:
        id = BrokerId(key[len(BROKERS_PREFIX) :])
        seen = self._seen.get(id)
        if now is None:
            self._unreadable.pop(key, None)
            if seen is not None and seen.present:
                self._seen[id] = Seen(registered=seen.registered, present=False, since_ms=self.now_ms(), returned=True)
            return
        registered = self._read(key, Registered, now.value)
        if registered is None or registered.id != id:
            return
        if seen is not None and seen.present and seen.incarnation == registered.incarnation:
            self._seen[id] = Seen(registered=registered, present=True, since_ms=seen.since_ms, returned=seen.returned)
            return
        held = self._began_ms > 0 and any(id in s.assignment.copies for s in self.stored.values())
        self._seen[id] = Seen(registered=registered, present=True, since_ms=self.now_ms(), returned=seen is not None or held)

    def _partition(self, key: str, before: Document | None, now: Document | None) -> None:
        if not _numbered(key):
            return
        partition = PartitionId(int(key[len(PARTITIONS_PREFIX) :]))
        if now is None:
            self._unreadable.pop(key, None)
            self.stored.pop(partition, None)
            return
        assignment = self._read(key, Assignment, now.value)
        if assignment is not None:
            self.stored[partition] = Stored(assignment, now.version)
        else:
            self.stored.pop(partition, None)

    def _name(self, key: str, before: Document | None, now: Document | None) -> None:
        self._declared(key, key[len(NAMES_PREFIX) :], self.declared, now)

    def _deletion(self, key: str, before: Document | None, now: Document | None) -> None:
        self._declared(key, key, self._deleted, now)

    def _declared(self, key: str, place: str, places: dict[str, Declared], now: Document | None) -> None:
        if now is None:
            self._unreadable.pop(key, None)
            places.pop(place, None)
            return
        try:
            places[place] = read(now.value)
            self._unreadable.pop(key, None)
        except HeadraceError as e:
            self._cannot(key, e)

    def _setting(self, key: str, before: Document | None, now: Document | None) -> None:
        if key == PLACEMENT_KEY:
            self.settings = Placement() if now is None else self._read(key, Placement, now.value) or self.settings
        elif key == PLANNING_KEY:
            self.planning = Planning() if now is None else self._read(key, Planning, now.value) or self.planning
        elif key == CONTROLLER_KEY:
            self.holder_version = 0 if now is None else now.version
            self.holder = Holder() if now is None else self._read(key, Holder, now.value) or Holder()  # unreadable: to be replaced

    def _turned(self) -> None:
        now_ms = self.now_ms()
        self._began_ms = self._began_ms or max(1, now_ms)
        gone = [id for id, seen in self._seen.items() if not seen.present and now_ms - seen.since_ms > FORGET_MS]
        if gone:
            holding = {b for s in self.stored.values() for b in s.assignment.copies}
            for id in gone:
                if id not in holding:
                    del self._seen[id]
                    self._doubted_ms.pop(id, None)
        self._look()

    def _look(self) -> None:
        """Notes who is in doubt, or was until now."""
        now_ms = self.now_ms()
        doubted = frozenset(id for id in self._seen if (seen := self.seen(id)) is not None and verdict(seen, self.settings, now_ms).state != "alive")
        self._doubted_ms.update(dict.fromkeys(doubted | (self._in_doubt & self._seen.keys()), now_ms))
        self._in_doubt = doubted


def _numbered(key: str) -> bool:
    return key.startswith(PARTITIONS_PREFIX) and key[len(PARTITIONS_PREFIX) :].isdecimal()
