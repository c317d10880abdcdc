"""Looking at messages without touching them."""

from collections.abc import Iterable, Iterator
from heapq import merge

from headrace.core.queue.consumers import Peek
from headrace.core.queue.state import HELD, State

PEEK_MAX = 10_000


def peek(state: State, which: str, after: int, limit: int, wall_offset_ms: int) -> list[Peek]:
    """Up to ``limit`` (at most ``PEEK_MAX``) messages above ``after`` in one state or any; an unknown state has none."""
    limit = max(0, min(limit, PEEK_MAX))
    first = max(0, after + 1)
    kinds = {"ready": _ready, "leased": _leased, "delayed": _delayed}
    sources: list[Iterator[Peek]] = [kinds[name](state, first, limit, wall_offset_ms) for name in kinds if which in (name, "any")]
    return [item for item, _ in zip(merge(*sources, key=_offset), range(limit), strict=False)]


def _offset(item: Peek) -> int:
    return item.offset


def _ready(state: State, first: int, limit: int, _: int) -> Iterator[Peek]:
    pieces = sorted((start, end) for level in state.levels for start, end, _ in level.pieces(first, state.end, limit))
    return _idle(state, ((start, end, 0) for start, end in pieces), "ready")


def _delayed(state: State, first: int, limit: int, _: int) -> Iterator[Peek]:
    return _idle(state, state.delayed.pieces(first, state.end, limit), "delayed")


def _idle(state: State, pieces: Iterable[tuple[int, int, int]], name: str) -> Iterator[Peek]:
    for first, end, due_ms in pieces:
        for offset in range(first, end):
            known = state.attempts.find(offset)
            yield Peek(offset, name, known[2][0] if known else 0, 0, 0 if due_ms == HELD else due_ms)


def _leased(state: State, first: int, limit: int, wall_offset_ms: int) -> Iterator[Peek]:
    for start, end, lease in state.leases.pieces(first, state.end, limit):
        for offset in range(start, end):
            yield Peek(offset, "leased", lease.attempt, lease.deadline_ms + wall_offset_ms, 0)
