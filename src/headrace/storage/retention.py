"""What of a partition its retention by age, bytes and records lets go. Pure."""

from bisect import bisect_left

from headrace.storage.index import Part, live_bytes


def retained_from(part: Part, *, wall_ms: int, age_ms: int, bytes_max: int, records_max: int) -> int:
    """The start offset after retention: whole segments, then entries still in the log."""
    refs, bases, counts = part.moved.refs, part.bases, part.counts
    start = part.floor
    end = part.end_in_log() if bases else refs[-1].end_offset if refs else start
    old_before = wall_ms - age_ms if age_ms else -1
    below = end - records_max if records_max else -1
    excess = part.stored_bytes() - bytes_max if bytes_max else -1
    for ref in refs:
        if ref.end_offset <= part.floor:
            continue
        size = live_bytes(ref, part.floor)
        if not (ref.last_wall_ms < old_before or ref.end_offset <= below or 0 < size <= excess):
            return start
        start = ref.end_offset
        excess -= size
    at, first = part.dead_rows, part.first_index
    by_age = bisect_left(part.walls, old_before, at) if age_ms else at
    while at < len(bases):
        size = part.sizes[part.records[at] - first]
        if not (at < by_age or bases[at] + counts[at] <= below or size <= excess):
            break
        start = bases[at] + counts[at]
        excess -= size
        at += 1
    return start
