"""A plan in the making: the judged brokers, the books, what has been decided so far.

Owns the rule that a partition is changed at most once in a plan and that the books follow every change. The steps (``ownership``, ``copies``,
``balance``) decide; this keeps their common state.
"""

from headrace.core.control.changes import Act, Change, Finding, Kind, Plan, changed
from headrace.core.control.liveness import Broker, judged, names_of
from headrace.core.control.picture import Item, Picture, Stored
from headrace.core.control.placement import Books
from headrace.model.cluster import Assignment, BrokerId
from headrace.model.ids import PartitionId

HANDOVERS_WINDOW_MS = 1_000


class Draft:
    """See the module's head. ``stored`` is in the order of partitions."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.settings = picture.settings
        self.brokers, self._moments = judged(picture)
        self.emptied = frozenset(self.settings.emptied)
        self.items = tuple(sorted(picture.items, key=lambda item: item.id))
        self.number: dict[PartitionId, tuple[Item, int]] = {p: (item, n) for item in self.items for n, p in enumerate(item.partitions)}
        self.stored: tuple[Stored, ...] = tuple(sorted(picture.stored, key=lambda s: s.assignment.partition))
        places = {b.id: b.seen.registered for b in self.brokers.values()}
        self.books = Books(self.settings, places, [b.id for b in self.brokers.values() if self.is_open(b)])
        for stored in self.stored:
            self.books.add(stored.assignment)
        self.owned: dict[BrokerId, int] = dict.fromkeys(self.brokers, 0)
        """Partitions served now."""
        for stored in self.stored:
            self.owned[stored.assignment.owner] += 1
        self.touched: set[PartitionId] = set()
        self.changes: list[Change] = []
        self.findings: list[Finding] = []

    def is_open(self, broker: Broker) -> bool:
        """Whether it may be given something new."""
        return broker.alive and broker.settled and not broker.draining and broker.id not in self.emptied

    def broker(self, id: BrokerId) -> Broker:
        return self.brokers[id]

    def names(self, ids: tuple[BrokerId, ...] | list[BrokerId]) -> str:
        return names_of(self.brokers, ids)

    def label(self, a: Assignment) -> str:
        """The partition in words."""
        found = self.number.get(a.partition)
        return f"partition {found[1]} of {a.item}" if found else f"partition {a.partition} of {a.item}"

    def untouched(self) -> list[Stored]:
        """Partitions of the catalogue that this plan has not changed yet."""
        return [s for s in self.stored if s.assignment.partition not in self.touched and s.assignment.partition in self.number]

    def in_sync(self, a: Assignment, broker: BrokerId) -> bool:
        """Whether ``broker`` may serve ``a`` now: recorded as holding everything, alive, and not calling its copy unfit."""
        seen = self.brokers[broker]
        return broker in a.electable and seen.alive and a.partition not in seen.seen.unfit

    def served(self, a: Assignment) -> bool:
        """Whether its owner is alive and can commit, so that learners catch up and members change."""
        owner = self.brokers[a.owner]
        return owner.alive and a.partition not in owner.seen.unfit and not self.lacks_majority(a)

    def lacks_majority(self, a: Assignment) -> bool:
        """Whether too few replicas of a majority are left to commit anything, a change of members too."""
        return a.level == "majority_durable" and sum(1 for b in a.replicas if self.brokers[b].state != "dead") < a.k

    def change(self, stored: Stored, new: Assignment, *, act: Act, reason: str) -> None:
        """Decides one change."""
        old = stored.assignment
        assert old.partition not in self.touched
        self.touched.add(old.partition)
        self.changes.append(changed(old, new, act=act, stored_version=stored.stored_version, reason=reason))
        self.books.replace(old, new)
        self.owned[old.owner] -= 1
        self.owned[new.owner] += 1

    def create(self, new: Assignment, reason: str) -> None:
        """Decides a first assignment."""
        self.touched.add(new.partition)
        self.changes.append(Change(act="assign", partition=new.partition, stored_version=0, assignment=new, reason=reason))
        self.books.add(new)
        self.owned[new.owner] += 1

    def remove(self, stored: Stored, reason: str) -> None:
        """Decides that an assignment goes."""
        a = stored.assignment
        self.touched.add(a.partition)
        self.changes.append(Change(act="delete", partition=a.partition, stored_version=stored.stored_version, assignment=None, reason=reason))
        self.books.add(a, -1)
        self.owned[a.owner] -= 1

    def find(self, kind: Kind, partition: PartitionId | None, reason: str, waits_for: tuple[BrokerId, ...] = ()) -> None:
        self.findings.append(Finding(kind=kind, partition=partition, reason=reason, waits_for=waits_for))

    def handovers_left(self) -> int:
        """How many owners may still be moved for preference's sake."""
        recent = sum(1 for at in self.picture.recent_handovers_ms if self.picture.now_ms - at < HANDOVERS_WINDOW_MS)
        return max(0, self.settings.handovers_in_flight_max - recent)

    def moves_left(self) -> int:
        """How many partitions may still begin to copy or move. Where no owner serves nothing is under way."""
        begun = {s.assignment.partition for s in self.stored if s.assignment.learners and self.served(s.assignment)}
        begun |= {c.partition for c in self.changes if c.assignment is not None and c.assignment.learners}
        return max(0, self.settings.moves_in_flight_max - len(begun))

    def plan(self) -> Plan:
        moments = list(self._moments)
        moments += [at + HANDOVERS_WINDOW_MS for at in self.picture.recent_handovers_ms if at + HANDOVERS_WINDOW_MS > self.picture.now_ms]
        return Plan(changes=tuple(self.changes), findings=tuple(self.findings), look_again_ms=min(moments, default=None))
