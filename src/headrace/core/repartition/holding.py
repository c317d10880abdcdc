"""Which key slots one partition holds back, for whom, and since which offset.

With a new routing version the partition notes where its messages of that version begin (``cut``). Messages of a slot that other partitions had before
are held from there on, until each of these has said that it has nothing of the slot in hand any more. What is said of another version counts for
nothing, and saying a thing twice is as good as once.

Invariants: H1 the version never goes back. H2 within a version slots are only taken out of ``waiting``. H3 ``mask`` is the union of ``waiting``.
"""

from typing import Final

import msgspec

from headrace.core.repartition import slots
from headrace.wire.journal import RoutingBegun, RoutingEntry, RoutingFreed

EVERYBODY: Final = -1
"""In place of a source: what is held is held no longer, whoever it is held for."""


class Holding:
    """See the module's head. Version 0: nothing was ever noted."""

    __slots__ = ("after", "before", "cut", "mask", "number", "version", "waiting")

    def __init__(self) -> None:
        self.version = 0
        self.number = 0
        self.before = self.after = 0
        """Partitions that publishes went to, and go to now."""
        self.cut = 0
        self.waiting: dict[int, int] = {}
        """Old partition to the slots it has not given up."""
        self.mask = 0

    def begin(self, entry: RoutingBegun) -> bool:
        """A version begins here; False, and no change, if it is known."""
        if entry.version <= self.version:
            return False
        self.version, self.number, self.before, self.after, self.cut = entry.version, entry.number, entry.before, entry.after, entry.cut
        moved = {source: slots.moving(source, entry.number, entry.before, entry.after) for source in range(entry.before)}
        self.waiting = {source: mask for source, mask in moved.items() if mask}
        self._unite()
        return True

    def free(self, entry: RoutingFreed) -> int:
        """``source`` has no more than these slots behind; the slots that are free since."""
        if entry.version != self.version or not self.waiting:
            return 0
        held, left = self.mask, slots.unpack(entry.behind)
        for source in [*self.waiting] if entry.source == EVERYBODY else [entry.source]:
            mask = self.waiting.pop(source, 0) & left
            if mask:
                self.waiting[source] = mask
        self._unite()
        return held & ~self.mask

    def news(self, source: int, behind: int) -> bool:
        """Whether it would free anything of what is held for ``source``."""
        return bool(self.waiting.get(source, 0) & ~behind)

    def _unite(self) -> None:
        self.mask = 0
        for mask in self.waiting.values():
            self.mask |= mask

    def holds(self, key_slot: int, offset: int) -> bool:
        """Whether a message of that key slot (0 = no key) at ``offset`` is held."""
        return key_slot != 0 and offset >= self.cut and bool(self.mask >> slots.slot_of(key_slot) & 1)

    def apply(self, entry: RoutingEntry) -> int:
        """An entry of the journal; the slots that are free since."""
        if isinstance(entry, RoutingBegun):
            self.begin(entry)
            return 0
        return self.free(entry)

    def kept(self) -> "Kept | None":
        """For a snapshot; None: nothing was ever noted."""
        if not self.version:
            return None
        waiting = [(source, slots.pack(mask)) for source, mask in sorted(self.waiting.items())]
        return Kept(self.version, self.number, self.before, self.after, self.cut, waiting)

    @classmethod
    def of(cls, kept: "Kept | None") -> "Holding":
        """As it was kept."""
        made = cls()
        if kept is not None:
            made.version, made.number, made.before, made.after, made.cut = kept.version, kept.number, kept.before, kept.after, kept.cut
            made.waiting = {source: mask for source, data in kept.waiting if (mask := slots.unpack(data))}
            made._unite()
        return made

    def check(self) -> None:
        """Asserts H3, and that nothing is held for itself."""
        union = 0
        for source, mask in self.waiting.items():
            assert mask and 0 <= source < self.before and source != self.number
            union |= mask
        assert union == self.mask


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A ``Holding`` in a snapshot."""

    version: int
    number: int
    before: int
    after: int
    cut: int
    waiting: list[tuple[int, bytes]] = []
