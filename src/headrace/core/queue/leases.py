"""Who holds what: leased ranges by owner token, their deadlines, and the leases of owners that have not come back since a restart.

Each owner has a map of its own, so that settling touches nothing of the others. Restored leases stay in one map until the machine goes live; then
each goes to its owner and its time starts anew. Deadlines are a heap with lazily discarded entries.

I10: an offset is in one map only. I1: ``count`` is the number of offsets in all maps.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from headrace.core.queue.consumers import Consumer
from headrace.core.ranges import RangeMap

STALE_DEADLINES_MIN = 4096


class Lease:
    """One grant's terms, shared by what is left of its range. ``first_failed_ms``: wall time of the messages' first failure, 0 = none yet."""

    __slots__ = ("attempt", "deadline_ms", "first_failed_ms", "lease_ms", "owner_token")

    def __init__(self, owner_token: int, attempt: int, lease_ms: int, deadline_ms: int, first_failed_ms: int) -> None:
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

    __slots__ = ("_deadlines", "by_consumer", "count", "holders", "restored")

    def __init__(self) -> None:
        self.holders: dict[int, Holder] = {}
        self.by_consumer: dict[int, Holder] = {}
        self.restored: RangeMap[Lease] = RangeMap()
        self.count = 0
        self._deadlines: list[tuple[int, int, int, int]] = []

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
        for first, end, lease in self.restored:
            holder = self.holders.get(lease.owner_token)
            if holder is None:
                holder = self.holders[lease.owner_token] = Holder(lease.owner_token)
            holder.leases.put(first, end, lease)
            lease.deadline_ms = now_ms + lease.lease_ms
            heappush(self._deadlines, (lease.deadline_ms, first, end, lease.owner_token))
        self.restored.clear()

    # ------------------------------------------------------------ ranges

    def put(self, holder: Holder, first: int, end: int, lease: Lease) -> None:
        """Leases ``[first, end)``, which nobody holds, to ``holder``."""
        holder.leases.put(first, end, lease)
        self.count += end - first
        heappush(self._deadlines, (lease.deadline_ms, first, end, holder.token))

    def put_restored(self, first: int, end: int, lease: Lease) -> None:
        """Leases ``[first, end)``, which nobody holds, to an owner that is not looked for before the machine goes live."""
        self.restored.put(first, end, lease)
        self.count += end - first

    def cut(self, holder: Holder, first: int, end: int) -> list[Piece]:
        """Takes what ``holder`` has of ``[first, end)`` out of its hands."""
        leases = holder.leases
        before = leases.count
        pieces = leases.cut(first, end)
        self.count -= before - leases.count
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
        deadlines = self._deadlines
        if not self.count:
            deadlines.clear()
            return None
        while deadlines and not self._due(deadlines[0], cut=False):
            heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def expired(self, now_ms: int) -> list[tuple[Holder, list[Piece]]]:
        """Takes out every lease whose deadline has come."""
        deadlines, gone = self._deadlines, list[tuple[Holder, list[Piece]]]()
        while deadlines and deadlines[0][0] <= now_ms:
            entry = heappop(deadlines)
            pieces = self._due(entry, cut=True)
            if pieces:
                gone.append((self.holders[entry[3]], pieces))
        return gone

    def _due(self, entry: tuple[int, int, int, int], *, cut: bool) -> list[Piece]:
        deadline_ms, first, end, token = entry
        holder = self.holders.get(token)
        if holder is None:
            return []
        pieces = [piece for piece in holder.leases.pieces(first, end) if piece[2].deadline_ms == deadline_ms]
        if cut:
            for start, stop, _ in pieces:
                self.cut(holder, start, stop)
        return pieces

    def trim(self) -> None:
        """Rebuilds the heap of deadlines when most of its entries are of leases that are gone (I17)."""
        deadlines = self._deadlines
        if len(deadlines) < STALE_DEADLINES_MIN:
            return
        live = sum(len(holder.leases) for holder in self.holders.values())
        if len(deadlines) > 4 * live + STALE_DEADLINES_MIN // 2:
            deadlines[:] = [
                (lease.deadline_ms, first, end, holder.token) for holder in self.holders.values() for first, end, lease in holder.leases
            ]
            heapify(deadlines)

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
