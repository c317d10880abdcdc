"""Which broker gets the next copy: spread first, then even load, then the order of preference.

Owns the books (copies and preferred owners per broker, in all and per item) and the choice. Knows no partition's state and no time: who may be given
something is told. A choice compares, in this order: racks, then hosts that the partition would use twice; how often the item already uses the
broker (as owner for a first copy); whether the load stays within its band; the order of preference. Only the cap per broker refuses.

Invariants: P1 the books equal what was added and not taken away. P2 the band holds an even share, rounded either way. P3 a partition never has two
copies on one broker.

Source of the bound: Mirrokni, Thorup, Zadimoghaddam, Consistent Hashing with Bounded Loads, 2016.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from headrace.core.control.ring import Order, order
from headrace.model.cluster import Assignment, BrokerId, Placement, Registered


class Band(msgspec.Struct, frozen=True):
    """Loads in ``[low, high]`` need no move."""

    low: int
    high: int


def band(settings: Placement, total: int, brokers: int) -> Band:
    """The loads that count as even when ``total`` is spread over ``brokers``."""
    if not brokers:
        return Band(0, 0)
    slack = settings.load_percent - 100
    low = -(-total * (100 - slack) // (100 * brokers))
    return Band(min(total // brokers, low), max(-(-total // brokers), total * settings.load_percent // (100 * brokers)))


def collisions(places: Iterable[Registered]) -> tuple[int, int]:
    """Pairs on one rack, pairs on one host. Empty racks and hosts collide with nothing."""
    seen = list(places)
    racks = Counter(r.rack for r in seen if r.rack)
    hosts = Counter((r.rack, r.host) for r in seen if r.host)
    return sum(n * (n - 1) // 2 for n in racks.values()), sum(n * (n - 1) // 2 for n in hosts.values())


class Books:
    """See the module's head. ``places``: all brokers known; ``open_brokers``: those that may be given something."""

    def __init__(self, settings: Placement, places: Mapping[BrokerId, Registered], open_brokers: Iterable[BrokerId]) -> None:
        self.settings = settings
        self.places = places
        self.open: Order = tuple(sorted(open_brokers))
        self.copies: Counter[BrokerId] = Counter()
        self.owners: Counter[BrokerId] = Counter()
        self.item_copies: Counter[tuple[str, BrokerId]] = Counter()
        self.item_owners: Counter[tuple[str, BrokerId]] = Counter()

    def add(self, a: Assignment, sign: int = 1) -> None:
        """Counts ``a`` in (or out, with ``sign`` -1). A copy that is leaving does not count, the learner that comes for it does."""
        for broker in staying(a):
            self.copies[broker] += sign
            self.item_copies[a.item, broker] += sign
        first = a.preferred or a.owner
        self.owners[first] += sign
        self.item_owners[a.item, first] += sign

    def replace(self, old: Assignment, new: Assignment) -> None:
        self.add(old, -1)
        self.add(new)

    def copies_band(self) -> Band:
        return band(self.settings, sum(self.copies[b] for b in self.open), len(self.open))

    def owners_band(self) -> Band:
        return band(self.settings, sum(self.owners[b] for b in self.open), len(self.open))

    def under_cap(self, broker: BrokerId) -> bool:
        cap = self.settings.copies_per_broker_max
        return not cap or self.copies[broker] < cap

    def order(self, item_id: str, number: int) -> Order:
        return order(self.settings, self.open, item_id, number, self.copies.__getitem__)

    def choose(
        self,
        item: str,
        preference: Sequence[BrokerId],
        taken: Sequence[BrokerId],
        *,
        beside: Sequence[BrokerId] | None = None,
        first: bool = False,
    ) -> BrokerId | None:
        """The broker for one more copy (for the first one: the preferred owner), none of ``taken``, spread from those of ``beside`` (the same unless
        given); None if all others are at their cap."""
        copies, owners = self.copies_band(), self.owners_band()
        company = [self.places[b] for b in (taken if beside is None else beside)]
        best: tuple[int, ...] | None = None
        chosen: BrokerId | None = None
        for position, broker in enumerate(preference):
            if broker in taken or not self.under_cap(broker):
                continue
            place = self.places[broker]
            rank = (
                sum(1 for p in company if p.rack and p.rack == place.rack),
                sum(1 for p in company if p.host and (p.rack, p.host) == (place.rack, place.host)),
                self.item_owners[item, broker] if first else self.item_copies[item, broker],
                _strain(self.owners[broker], owners) if first else 0,
                _strain(self.copies[broker], copies),
                position,
            )
            if best is None or rank < best:
                best, chosen = rank, broker
        return chosen


def staying(a: Assignment) -> tuple[BrokerId, ...]:
    """The brokers that will hold ``a`` once its moves are done."""
    return tuple(b for b in a.copies if b not in a.leaving)


def _strain(load: int, bounds: Band) -> int:
    """How little a broker with ``load`` should be given one more: 0 gladly (it has too little), 1 if it is its turn, 2 it has its share."""
    return 0 if load < bounds.low else 1 if load < bounds.high else 2
