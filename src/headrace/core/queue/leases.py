"""Who holds what: leased ranges by owner token, their deadlines, and the leases of owners that have not come back since a restart.

Each owner has a map of its own, so that settling touches nothing of the others. Restored leases stay in one map until the machine goes live; then
each goes to its owner and its time starts anew. Deadlines stand in a line, those out of order in a heap; entries of leases that are gone are
discarded when they come up.

I10: an offset is in one map only. I1: ``count`` is the number of offsets in all maps.
"""

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from headrace.core.queue.consumers import Consumer
from headrace.core.ranges import RangeMap

STALE_DEADLINES_MIN = 4096


class Lease:
    """One grant's terms, shared by the ``left`` messages that are left of it. ``first_failed_ms``: wall time of their first failure, 0 = none yet."""

    __slots__ = ("attempt", "deadline_ms", "first_failed_ms", "lease_ms", "left", "owner_token")

    def __init__(self, owner_token: int, attempt: int, lease_ms: int, deadline_ms: int, first_failed_ms: int) -> None:
        self.left = 0
        self.owner_token = owner_token
        self.attempt = attempt
        self.lease_ms = lease_ms
        self.deadline_ms = deadline_ms
        self.first_failed_ms = first_failed_ms


Piece = tuple[int, int, Lease]


class Holder:
    """An owner token with its leases; ``consumer`` is None while nobody with that token is attached."""

    __slots__ = ("consumer", "leases", "suspended", "token")

    def __init__(self, token: int) -> None:
        self.token = token
        self.leases: RangeMap[Lease] = RangeMap()
        self.consumer: Consumer | None = None
        self.suspended = False


class Leases:
    """All leases of a partition; see the module's head."""

    __slots__ = ("_heap", "_line", "_serial", "by_consumer", "count", "holders", "restored")

    def __init__(self) -> None:
        self.holders: dict[int, Holder] = {}
        self.by_consumer: dict[int, Holder] = {}
        self.restored: RangeMap[Lease] = RangeMap()
        self.count = 0
        self._line: deque[tuple[int, int, int, Lease]] = deque()
        """(deadline, first, end, lease), deadlines ascending."""
        self._heap: list[tuple[int, int, int, int, Lease]] = []
        """(deadline, serial, first, end, lease) of those that came out of order: shorter leases than the last."""
        self._serial = 0

    # ------------------------------------------------------------ consumers

    def attach(self, consumer: Consumer) -> Holder:
        """Binds a consumer to its token, in place of whoever had it."""
        holder = self.holders.get(consumer.owner_token)
        if holder is None:
            holder = self.holders[consumer.owner_token] = Holder(consumer.owner_token)
        elif holder.consumer is not None:
            self.by_consumer.pop(holder.consumer.id, None)
        before = self.by_consumer.pop(consumer.id, None)
        if before is not None and before is not holder:
            before.consumer = None
            self.drop_if_unused(before)
        holder.consumer = consumer
        holder.suspended = False
        self.by_consumer[consumer.id] = holder
        return holder

    def drop_if_unused(self, holder: Holder) -> None:
        """Forgets a token that neither leases anything nor is attached."""
        if holder.consumer is None and not holder.leases:
            self.holders.pop(holder.token, None)

    def activate(self, now_ms: int) -> None:
        """Gives restored leases to their owners; each lasts its whole duration from now."""
        self.count -= self.restored.count
        for first, end, lease in self.restored:
            token = lease.owner_token
            holder = self.holders.get(token)
            if holder is None:
                holder = self.holders[token] = Holder(token)
            self.put(holder, first, end, Lease(token, lease.attempt, lease.lease_ms, now_ms + lease.lease_ms, lease.first_failed_ms))
        self.restored.clear()

    # ------------------------------------------------------------ ranges

    def put(self, holder: Holder, first: int, end: int, lease: Lease) -> None:
        """Leases ``[first, end)``, which nobody holds, to ``holder`` under a lease of its own."""
        holder.leases.put(first, end, lease)
        lease.left = end - first
        self.count += end - first
        line = self._line
        if not line or line[-1][0] <= lease.deadline_ms:
            line.append((lease.deadline_ms, first, end, lease))
        else:
            self._serial += 1
            heappush(self._heap, (lease.deadline_ms, self._serial, first, end, lease))

    def put_restored(self, first: int, end: int, lease: Lease) -> None:
        """Leases ``[first, end)``, which nobody holds, to an owner that is not looked for before the machine goes live."""
        self.restored.put(first, end, lease)
        self.count += end - first

    def cut(self, holder: Holder, first: int, end: int) -> list[Piece]:
        """Takes what ``holder`` has of ``[first, end)`` out of its hands."""
        pieces = holder.leases.cut(first, end)
        for start, stop, lease in pieces:
            lease.left -= stop - start
            self.count -= stop - start
        return pieces

    def cut_any(self, first: int, end: int) -> list[Piece]:
        """Takes all that is leased of ``[first, end)``, ascending. Cost grows with the number of owners."""
        pieces = self.restored.cut(first, end)
        self.count -= sum(stop - start for start, stop, _ in pieces)
        if self.holders:
            for holder in list(self.holders.values()):
                if holder.leases:
                    pieces += self.cut(holder, first, end)
                    self.drop_if_unused(holder)
            pieces.sort(key=_first)
        return pieces

    def pieces(self, first: int, end: int, limit: int = 1 << 62) -> list[Piece]:
        """The lowest ``limit`` leased pieces of ``[first, end)``; changes nothing."""
        pieces = self.restored.pieces(first, end, limit)
        for holder in self.holders.values():
            pieces += holder.leases.pieces(first, end, limit)
        pieces.sort(key=_first)
        return pieces[:limit]

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces(0, 1 << 64))

    def maps(self) -> list[RangeMap[Lease]]:
        """Every map of leases."""
        return [self.restored, *(holder.leases for holder in self.holders.values())]

    # ------------------------------------------------------------ time

    def next_deadline_ms(self) -> int | None:
        """When the next lease runs out; discards entries of leases that are gone."""
        line, heap = self._line, self._heap
        while line and not line[0][3].left:
            line.popleft()
        if not heap:
            return line[0][0] if line else None
        while heap and not heap[0][4].left:
            heappop(heap)
        if line and heap:
            return min(line[0][0], heap[0][0])
        return line[0][0] if line else heap[0][0] if heap else None

    def expired(self, now_ms: int) -> list[tuple[Holder, list[Piece]]]:
        """Takes out every lease whose deadline has come."""
        line, heap, due = self._line, self._heap, list[tuple[int, int, Lease]]()
        while line and line[0][0] <= now_ms:
            due.append(line.popleft()[1:])
        while heap and heap[0][0] <= now_ms:
            due.append(heappop(heap)[2:])
        gone: list[tuple[Holder, list[Piece]]] = []
        for first, end, lease in due:
            if lease.left:
                holder = self.holders[lease.owner_token]
                parts = [(start, stop) for start, stop, other in holder.leases.pieces(first, end) if other is lease]
                gone.append((holder, [piece for start, stop in parts for piece in self.cut(holder, start, stop)]))
        return gone

    def trim(self) -> None:
        """Drops deadlines of leases that are gone when they may be most of them (I17); amortised O(1)."""
        ranges = sum(len(holder.leases) for holder in self.holders.values()) if len(self._line) + len(self._heap) > STALE_DEADLINES_MIN else 0
        if len(self._line) > 2 * ranges + STALE_DEADLINES_MIN:
            self._line = deque(entry for entry in self._line if entry[3].left)
        if len(self._heap) > 2 * ranges + STALE_DEADLINES_MIN:
            self._heap = [entry for entry in self._heap if entry[4].left]
            heapify(self._heap)

    def check(self) -> None:
        """Asserts I10 and the sums."""
        seen: RangeMap[Lease] = RangeMap()
        for held in self.maps():
            held.check()
            for first, end, lease in held:
                assert not seen.pieces(first, end), "I10: leased twice"
                seen.put(first, end, lease)
        assert seen.count == self.count
        for consumer_id, holder in self.by_consumer.items():
            assert holder.consumer is not None
            assert holder.consumer.id == consumer_id
            assert self.holders[holder.token] is holder
            for _, _, lease in holder.leases:
                assert lease.owner_token == holder.token


def _first(piece: Piece) -> int:
    return piece[0]
