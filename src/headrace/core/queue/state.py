"""The four states of a partition's messages and the moves between them. Every other module of this package decides; this one keeps the books.

Below ``end`` each offset is ready (one set per priority), leased, delayed, or, if in none of these, settled. Beside them, for unsettled messages
only: delivery counts, priorities other than 0, expiry times of their own. It journals nothing and judges no time.

I15: ready + leased + delayed + settled = enqueued (= ``end``, offsets being dense from 0), the first three disjoint. ``nbytes`` is the size of those
three.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import TypeVar

from headrace.core.queue.extents import TIME_GRAIN_MS, Extents
from headrace.core.queue.journalling import Journal
from headrace.core.queue.leases import Lease, Leases
from headrace.core.queue.lookahead import Lookahead
from headrace.core.queue.transfers import Transfers
from headrace.core.ranges import RangeMap, RangeSet, gaps
from headrace.core.repartition.behind import Stand
from headrace.core.repartition.holding import Holding
from headrace.model.limits import PRIORITY_MAX
from headrace.model.specs import QueueSpec
from headrace.wire.journal import RoutingBegun, RoutingEntry

V = TypeVar("V")

Failures = tuple[int, int]
"""(delivery count, wall ms of the first failure or 0)."""
FRESH: Failures = (0, 0)
HELD = 1 << 62
"""Due time of what waits for its key slot to be let go of (``core.repartition``): it is among the delayed until then."""


class State:
    """See the module's head. Attributes are read freely, changed only by the methods."""

    __slots__ = (
        "_floor",
        "_lowest",
        "attempts",
        "delayed",
        "dues",
        "end",
        "expiries",
        "expiring",
        "extents",
        "held",
        "holding",
        "journal",
        "leases",
        "levels",
        "lookahead",
        "nbytes",
        "priorities",
        "spec",
        "transfers",
    )

    def __init__(self, spec: QueueSpec) -> None:
        self.spec = spec
        self.end = 0
        self.nbytes = 0
        self.extents = Extents()
        self.levels: list[RangeSet] = [RangeSet()]
        """Ready messages by priority; as long as the highest priority seen needs."""
        self.delayed: RangeMap[int] = RangeMap()
        """To the wall time they are due."""
        self.dues: list[tuple[int, int, int]] = []
        """Heap of (due, first, end); entries of what is no longer delayed so are skipped."""
        self.attempts: RangeMap[Failures] = RangeMap()
        """Of ready and delayed messages that were delivered before."""
        self.priorities: RangeMap[int] = RangeMap()
        self.expiries: RangeMap[int] = RangeMap()
        self.expiring: list[tuple[int, int, int]] = []
        """Heap of (expiry, first, end) of messages with one of their own; entries are skipped likewise."""
        self.holding = Holding()
        self.held: RangeMap[int] = RangeMap()
        """Unsettled messages of held key slots, to their slot. What of them is due is delayed until ``HELD``."""
        self.leases = Leases()
        self.journal = Journal()
        self.transfers = Transfers()
        self.lookahead: Lookahead | None = None
        self._lowest: RangeMap[bool] | RangeMap[int] | RangeMap[Lease] | None = None
        """The map that held the lowest unsettled offset when last asked."""
        self._floor = -1

    # ------------------------------------------------------------ figures

    @property
    def ready_count(self) -> int:
        levels = self.levels
        return levels[0].count if len(levels) == 1 else sum(level.count for level in levels)

    @property
    def unsettled_count(self) -> int:
        return self.ready_count + self.leases.count + self.delayed.count

    def floor(self) -> int:
        """Lowest offset whose payload may still be needed; never falls. O(1) while the message found last time has not moved, else O(owners of
        leases)."""
        lowest, floor = self._lowest, self._floor
        if lowest is None or lowest.first != floor:
            lowest, floor = None, self.end
            for level in self.levels:
                if level and level.first < floor:
                    lowest, floor = level, level.first
            if self.delayed and self.delayed.first < floor:
                lowest, floor = self.delayed, self.delayed.first
            if self.leases.count:
                for held in self.leases.maps():
                    if held and held.first < floor:
                        lowest, floor = held, held.first
            self._lowest, self._floor = lowest, floor
        return self.transfers.low(floor)

    def stand(self, offset: int) -> Stand:
        """How a message stands for a key slot that others hold for this partition. In a queue ordered by key a retry that waits comes before its
        successors, so there it is in hand."""
        delayed = self.delayed.find(offset) if self.delayed else None
        if delayed is not None:
            return Stand.IN_HAND if self.spec.ordered_by_key and self.attempts.find(offset) is not None else Stand.LATER
        if self.is_ready(offset) or any(held.find(offset) is not None for held in self.leases.maps()):
            return Stand.IN_HAND
        return Stand.SETTLED

    def is_ready(self, offset: int) -> bool:
        return any(level.find(offset) is not None for level in self.levels)

    def priority_of(self, offset: int) -> int:
        found = self.priorities.find(offset) if self.priorities else None
        return found[2] if found else 0

    def failures(self, first: int, end: int) -> list[tuple[int, int, Failures]]:
        """``[first, end)`` (ready or delayed) split by delivery count and first failure."""
        if not self.attempts:
            return [(first, end, FRESH)]
        return split(self.attempts.pieces(first, end), first, end, FRESH)

    # ------------------------------------------------------------ moves

    def append(self, first: int, count: int, nbytes: int, wall_ms: int, *, priority: int, expires_at_ms: int) -> None:
        """New messages at the end; the caller puts them among the ready or the delayed next."""
        spec = self.spec
        self.end = end = first + count
        self.nbytes += nbytes
        self.extents.add(first, count, nbytes, wall_ms, grain_ms=0 if spec.ttl_ms or spec.max_age_ms else TIME_GRAIN_MS)
        if priority > 0:
            self.priorities.put(first, end, min(priority, PRIORITY_MAX))
        if expires_at_ms > 0:
            self.set_expiry(first, end, expires_at_ms)

    def set_expiry(self, first: int, end: int, expires_at_ms: int) -> None:
        """Notes when messages expire of their own."""
        self.expiries.put(first, end, expires_at_ms)
        heappush(self.expiring, (expires_at_ms, first, end))

    def make_ready(self, first: int, end: int) -> None:
        """Into the ready set of its priority; what is held waits among the delayed."""
        if self.held:
            pieces = self.held.pieces(first, end)
            for start, stop, _ in pieces:
                self.delayed.put(start, stop, HELD)
            for start, stop in gaps(pieces, first, end):
                self._make_ready(start, stop)
        else:
            self._make_ready(first, end)

    def _make_ready(self, first: int, end: int) -> None:
        if not self.priorities:
            self.levels[0].put(first, end, True)
        else:
            for start, stop, priority in split(self.priorities.pieces(first, end), first, end, 0):
                while len(self.levels) <= priority:
                    self.levels.append(RangeSet())
                self.levels[priority].put(start, stop, True)
        if self.lookahead is not None:
            self.lookahead.readied(first, end)

    def make_delayed(self, first: int, end: int, due_ms: int) -> None:
        """Delayed until ``due_ms`` (wall)."""
        self.delayed.put(first, end, due_ms)
        if due_ms != HELD:
            heappush(self.dues, (due_ms, first, end))

    def routed(self, entry: RoutingEntry) -> int:
        """A routing version begins here, or key slots are let go of; returns those that are free since. What an earlier version held is free."""
        if isinstance(entry, RoutingBegun):
            self.let_go(self.holding.mask if entry.version > self.holding.version else 0)
        free = self.holding.apply(entry)
        self.let_go(free)
        return free

    def let_go(self, mask: int) -> None:
        """What is held of those key slots is ready now, or when it is due."""
        if not mask:
            return
        free = [(first, end) for first, end, slot in self.held if mask >> slot & 1]
        for first, end in free:
            self.held.cut(first, end)
            for start, stop, due_ms in self.delayed.pieces(first, end):
                if due_ms == HELD:
                    self.delayed.cut(start, stop)
                    self.make_ready(start, stop)

    def next_due_ms(self) -> int | None:
        """Wall time at which the next delayed message is due; discards entries of what is no longer delayed so."""
        dues = self.dues
        while dues:
            due_ms, first, end = dues[0]
            if any(value == due_ms for _, _, value in self.delayed.pieces(first, end)):
                return due_ms
            heappop(dues)
        return None

    def release_due(self, wall_ms: int) -> None:
        """Makes ready what is due."""
        dues = self.dues
        while dues and dues[0][0] <= wall_ms:
            due_ms, first, end = heappop(dues)
            for start, stop, value in self.delayed.pieces(first, end):
                if value == due_ms:
                    self.delayed.cut(start, stop)
                    self.make_ready(start, stop)

    def set_failures(self, first: int, end: int, attempts: int, first_failed_ms: int) -> None:
        """Notes the delivery count of messages that are ready or delayed again."""
        if attempts > 0:
            self.attempts.put(first, end, (attempts, first_failed_ms))

    def cut_ready(self, first: int, end: int) -> list[tuple[int, int]]:
        """Takes what is ready of ``[first, end)`` out, ascending (the lookahead is told by whoever decides where it goes)."""
        levels = self.levels
        pieces = [(start, stop) for start, stop, _ in levels[0].cut(first, end)]
        if len(levels) > 1:
            for level in levels[1:]:
                pieces += [(start, stop) for start, stop, _ in level.cut(first, end)]
            pieces.sort()
        return pieces

    def cut_delayed(self, first: int, end: int) -> list[tuple[int, int]]:
        """Takes what is delayed of ``[first, end)`` out, ascending."""
        return [(start, stop) for start, stop, _ in self.delayed.cut(first, end)]

    def settle(self, first: int, end: int) -> int:
        """Messages that are in no state any more are settled: forgets all about them and returns their size."""
        size = self.extents.size(first, end)
        self.nbytes -= size
        if self.attempts:
            self.attempts.cut(first, end)
        if self.priorities:
            self.priorities.cut(first, end)
        if self.expiries:
            self.expiries.cut(first, end)
        if self.held:
            self.held.cut(first, end)
        if self.lookahead is not None:
            self.lookahead.settled(first, end)
        return size

    # ------------------------------------------------------------ proof

    def check(self) -> None:
        """Asserts I10, I15 and that nothing is remembered of settled messages."""
        unsettled = RangeSet()
        for priority, level in enumerate(self.levels):
            level.check()
            for first, end in level.ranges():
                assert all(p == priority for _, _, p in split(self.priorities.pieces(first, end), first, end, 0)), "ready under another priority"
        held: list[Iterable[tuple[int, int, object]]] = [*self.levels, self.delayed, self.leases]
        for kept in held:
            for first, end, _ in kept:
                assert 0 <= first < end <= self.end
                assert not unsettled.pieces(first, end), "I15: in two states"
                unsettled.add(first, end)
        self.leases.check()
        self.delayed.check()
        assert unsettled.count == self.unsettled_count
        assert self.nbytes == sum(self.extents.size(first, end) for first, end in unsettled.ranges())
        self.holding.check()
        for first, end, slot in self.held:
            assert self.holding.mask >> slot & 1 and first >= self.holding.cut, "held for nobody"
            assert not gaps(self.delayed.pieces(first, end), first, end), "held and given out"
        for first, end, due_ms in self.delayed:
            assert due_ms != HELD or not gaps(self.held.pieces(first, end), first, end), "held without a slot"
        for side in (self.attempts, self.priorities, self.expiries, self.held):
            side.check()
            for first, end, _ in side:
                assert not gaps(unsettled.pieces(first, end), first, end), "remembers settled messages"
        for first, end, _ in self.leases:
            assert not self.attempts.pieces(first, end), "a lease carries its own count"
        if self.lookahead is not None:
            self.lookahead.check()


def split(pieces: list[tuple[int, int, V]], first: int, end: int, otherwise: V) -> list[tuple[int, int, V]]:
    """``[first, end)`` whole: the ascending ``pieces``, the gaps between them filled with ``otherwise``."""
    whole = []
    for start, stop, value in pieces:
        if first < start:
            whole.append((first, start, otherwise))
        whole.append((start, stop, value))
        first = stop
    if first < end:
        whole.append((first, end, otherwise))
    return whole
