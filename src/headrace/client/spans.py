"""Offsets to ranges: what was settled one by one goes on the wire as few (first, count) pairs. Pure."""

from collections.abc import Iterable, Iterator

Span = tuple[int, int]
"""First offset and count."""


def spans(offsets: Iterable[int]) -> list[Span]:
    """The shortest sorted list of ranges that covers exactly ``offsets``. Linear when they come in order."""
    out: list[Span] = []
    first = end = -1
    for offset in sorted(offsets):
        if offset == end:
            end += 1
        elif offset > end:
            if end >= 0:
                out.append((first, end - first))
            first, end = offset, offset + 1
    if end >= 0:
        out.append((first, end - first))
    return out


def members(ranges: Iterable[Span]) -> Iterator[int]:
    """Every offset of the ranges, in their order."""
    for first, count in ranges:
        yield from range(first, first + count)


def contains(ranges: Iterable[Span], offset: int) -> bool:
    return any(first <= offset < first + count for first, count in ranges)
