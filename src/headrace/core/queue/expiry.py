"""When messages expire, and which have, without looking at every message.

A message expires at its own expiry if it was published with one, else at its append time + the queue's ttl; and never later than append time + max
age. Ready and delayed messages are found by a heap of own expiries (kept in the state) and, since append times never fall back, by one frontier per
age limit, below which all has been dealt with. Leased messages are judged when they return; when the wall clock falls back everything is looked at
again, since one that returns then may expire once more.
"""

from heapq import heapify, heappop

from headrace.core.queue.state import State, split
from headrace.core.ranges import gaps

NEVER = 1 << 62


def expiries(state: State, first: int, end: int) -> list[tuple[int, int, int]]:
    """``[first, end)`` split by the wall time at which each part expires."""
    spec = state.spec
    if not (state.expiries or spec.ttl_ms or spec.max_age_ms):
        return [(first, end, NEVER)]
    parts = []
    for start, stop, own_ms in split(state.expiries.pieces(first, end), first, end, 0):
        while start < stop:
            chunk_end, wall_ms = state.extents.chunk(start)
            part_end = min(chunk_end, stop)
            expires_ms = own_ms or (wall_ms + spec.ttl_ms if spec.ttl_ms else NEVER)
            if spec.max_age_ms:
                expires_ms = min(expires_ms, wall_ms + spec.max_age_ms)
            parts.append((start, part_end, expires_ms))
            start = part_end
    return parts


class Expiry:
    """The frontiers; see the module's head."""

    __slots__ = ("_aged", "_outlived", "_wall_ms")

    def __init__(self) -> None:
        self._outlived = 0
        """Every message below was looked at for the queue's ttl."""
        self._aged = 0
        """... for max age."""
        self._wall_ms = 0
        """When last asked what is due."""

    def reset(self) -> None:
        """After other limits were set or a restart: looks at everything again."""
        self._outlived = self._aged = 0

    def _see(self, state: State, wall_ms: int) -> None:
        if wall_ms < self._wall_ms:
            self.reset()
            state.expiring = [(when, first, end) for first, end, when in state.expiries]
            heapify(state.expiring)
        self._wall_ms = wall_ms

    def next_ms(self, state: State, wall_ms: int) -> int | None:
        """Wall time at which something may expire next."""
        self._see(state, wall_ms)
        expiring, spec, best = state.expiring, state.spec, NEVER
        while expiring:
            when, first, end = expiring[0]
            if any(value == when for _, _, value in state.expiries.pieces(first, end)):
                best = when
                break
            heappop(expiring)
        if spec.ttl_ms or spec.max_age_ms:
            floor = state.floor()
            for limit_ms, frontier in ((spec.ttl_ms, self._outlived), (spec.max_age_ms, self._aged)):
                if limit_ms and max(frontier, floor) < state.end:
                    best = min(best, state.extents.chunk(max(frontier, floor))[1] + limit_ms)
        return best if best < NEVER else None

    def due(self, state: State, wall_ms: int) -> list[tuple[int, int]]:
        """Ranges whose ready and delayed messages have all expired (they may hold leased and settled ones too)."""
        self._see(state, wall_ms)
        expiring, spec = state.expiring, state.spec
        found: list[tuple[int, int]] = []
        while expiring and expiring[0][0] <= wall_ms:
            when, first, end = heappop(expiring)
            found += [(start, stop) for start, stop, value in state.expiries.pieces(first, end) if value == when]
        if not (spec.ttl_ms or spec.max_age_ms):
            return found
        floor = state.floor()
        if spec.ttl_ms:
            first = max(self._outlived, floor)
            self._outlived = end = self._frontier(state, first, wall_ms - spec.ttl_ms)
            found += gaps(state.expiries.pieces(first, end), first, end)
        if spec.max_age_ms:
            first = max(self._aged, floor)
            self._aged = end = self._frontier(state, first, wall_ms - spec.max_age_ms)
            if first < end:
                found.append((first, end))
        return found

    @staticmethod
    def _frontier(state: State, offset: int, appended_by_ms: int) -> int:
        """End of the messages from ``offset`` on that were appended by then."""
        while offset < state.end:
            chunk_end, wall_ms = state.extents.chunk(offset)
            if wall_ms > appended_by_ms:
                break
            offset = chunk_end
        return offset
