"""What of a partition its retention by age, bytes and records lets go. Pure."""

from headrace.storage.index import Part, live_bytes


def retained_from(part: Part, *, wall_ms: int, age_ms: int, bytes_max: int, records_max: int) -> int:
    """The start offset after retention: whole segments, then entries still in the log."""
    refs = part.moved.refs
    start = part.floor
    end = part.end_in_log()
    if end < 0:
        end = refs[-1].end_offset if refs else start
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
    by_age = part.row_of_time(old_before, part.dead_rows) if age_ms else part.dead_rows
    for row in range(part.dead_rows, part.rows):
        if part.count(row):
            size, ends = part.size(row), part.end_of(row + 1)
            if not (row < by_age or ends <= below or size <= excess):
                break
            start = ends
            excess -= size
    return start
