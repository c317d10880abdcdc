"""The queue's limits on messages and bytes: asked before anything is appended, and enforced when it has been.

Counted are all unsettled messages and those admitted but not yet enqueued. With overflow ``refuse`` a publish beyond a limit is refused whole. With
the other two it is admitted and the oldest messages that nobody leases make room: ready ones before delayed ones, never the newcomers, unless these
alone are beyond the limit.
"""

from headrace.core.queue.fates import bury_idle
from headrace.core.queue.state import State
from headrace.model.errors import QueueFull
from headrace.wire.journal import Reason


class Admission:
    """Reservations of one partition."""

    __slots__ = ("count", "nbytes")

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0

    def admit(self, state: State, count: int, nbytes: int, *, whole: bool = False) -> QueueFull | None:
        """Reserves room, or says why there is none. ``whole``: what cannot be divided is taken by an empty partition, however much it is."""
        spec = state.spec
        if spec.overflow == "refuse" and not (whole and state.unsettled_count + self.count == 0):
            if spec.max_messages and state.unsettled_count + self.count + count > spec.max_messages:
                held = state.unsettled_count + self.count
                return QueueFull(f"the queue's partition holds {held} of at most {spec.max_messages} messages; {count} more do not fit")
            if spec.max_bytes and state.nbytes + self.nbytes + nbytes > spec.max_bytes:
                held = state.nbytes + self.nbytes
                return QueueFull(f"the queue's partition holds {held} of at most {spec.max_bytes} bytes; {nbytes} more do not fit")
        self.count += count
        self.nbytes += nbytes
        return None

    def release(self, count: int, nbytes: int) -> None:
        """What was admitted is enqueued, or never will be."""
        self.count = max(0, self.count - count)
        self.nbytes = max(0, self.nbytes - nbytes) if self.count else 0


def make_room(state: State, newcomers: int, wall_ms: int) -> None:
    """Drops or dead-letters the oldest after messages from offset ``newcomers`` on were enqueued."""
    spec = state.spec
    if spec.overflow == "refuse":
        return
    drop = spec.overflow == "drop_oldest"
    excess = state.unsettled_count - spec.max_messages if spec.max_messages else 0
    if excess > 0:
        below = max(newcomers, state.end - spec.max_messages)
        excess -= _bury_oldest(state, below, excess, 1 << 62, wall_ms, drop=drop)
    excess_bytes = state.nbytes - spec.max_bytes if spec.max_bytes else 0
    if excess_bytes > 0:
        below = newcomers
        while below < state.end and state.extents.size(below, state.end) > spec.max_bytes:
            below = max(below + 1, state.extents.fit(below, state.extents.size(below, state.end) - spec.max_bytes))
        _bury_oldest(state, below, 1 << 62, excess_bytes, wall_ms, drop=drop)


def _bury_oldest(state: State, below: int, count: int, nbytes: int, wall_ms: int, *, drop: bool) -> int:
    """Buries ready, then delayed messages under ``below``, oldest first, until ``count`` messages or ``nbytes`` bytes are gone."""
    gone = 0
    extents = state.extents
    for ready in (True, False):
        while gone < count and nbytes > 0:
            candidates = [held.first for held in (state.levels if ready else (state.delayed,)) if held and held.first < below]
            if not candidates:
                break
            first = min(candidates)
            held = next(held for held in (state.levels if ready else (state.delayed,)) if held and held.first == first)
            end = min(held.pieces(first, below, 1)[0][1], first + count - gone)
            # the whole message in which the limit is reached goes
            fit = extents.fit(first, nbytes)
            if fit < end:
                end = fit if extents.size(first, fit) >= nbytes else fit + 1
            nbytes -= extents.size(first, end)
            pieces = state.cut_ready(first, end) if ready else state.cut_delayed(first, end)
            gone += bury_idle(state, pieces, Reason.OVERFLOW, wall_ms, drop=drop)
    return gone
