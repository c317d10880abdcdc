"""Entries that are not committed yet are carried on to the end of the log, so that the files before them can go.

A partition that cannot commit (its owner stands still, too few of its copies are there) would keep every later log file as well, until the log is
full and publishers to all others are held back.

C1 What is carried is appended again as it was, in one row and so in one flush: after a crash the partition has it at its new place or at the old one.
C2 Nothing of the partition is on its way to the disk then, and all of it is of one epoch, since an older one after a newer one means damage. C3 The
old places are given up once the new ones are durable. What does not fit stays where it is.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from headrace.model.errors import Damaged, NotFound
from headrace.storage.gathering import SLOT_BYTES_MAX
from headrace.storage.ground import Ground
from headrace.storage.index import POSITION_BITS, Part, Row
from headrace.storage.intake import Intake
from headrace.storage.reads import stored_entries

CARRIED_BYTES_MAX: Final = SLOT_BYTES_MAX


async def carry(
    ground: Ground, part: Part, committed: int, intake: Intake, flush: Callable[[], None], durable: Callable[[Part, int], Awaitable[None]]
) -> bool:
    """Carries what follows index ``committed``; False: it cannot be carried now. ``SyncFailed`` if the log has failed."""
    rows = _uncommitted(ground, part, committed)
    if not rows or not _still(ground, part, rows):
        return False
    try:
        entries = await ground.on(ground.reader, partial(stored_entries, ground.wal, part.pid, rows))
    except (NotFound, Damaged):
        return False  # it is told where the entry is used
    if not _still(ground, part, rows) or any(entry.epoch != part.last_epoch for entry in entries):
        return False
    last = part.last_index
    for entry in entries:
        payload = bytes(entry.payload)
        intake.append(part.pid, entry.epoch, entry.index, entry.kind, (payload,), len(payload), entry.base_offset, entry.record_count)
    assert part.last_index == last, (part.last_index, last)
    flush()
    await durable(part, last)
    return True


def _uncommitted(ground: Ground, part: Part, committed: int) -> list[Row]:
    """All rows after ``committed``; none if they are too many, or some were lost."""
    begin = max(0, committed + 1 - part.first_index)
    rows = part.rows_from(begin)
    most = min(CARRIED_BYTES_MAX, ground.config.storage.flush_bytes_max // 2)
    lost = len(rows) < part.rows - begin
    return [] if lost or part.pid in ground.damaged or sum(size for _, size, _ in rows) > most else rows


def _still(ground: Ground, part: Part, rows: list[Row]) -> bool:
    """Whether these rows are the end of the partition's log, and nothing of it is on its way there."""
    at = rows[0][2] - part.first_index
    end = part.first_index + part.rows
    return (
        part.pid not in ground.damaged and part.oldest is None and not ground.wal.gathering.holds(part.pid)
        and part.last_index == part.durable_index == end - 1 and at >= 0
        and part.rows_from(at) == rows
    )  # fmt: skip


def first_file(part: Part, committed: int) -> int | None:
    """Log file of the first entry after ``committed``, None if there is no such entry."""
    rows = max(0, committed + 1 - part.first_index)
    return part.place(rows) >> POSITION_BITS if rows < part.rows else None
