"""What a message that leaves its queue says at its target: where it came from, why it died, how often it was tried.

Owns those headers. Only the broker writes names that begin with ``headrace.``, so what a frame that it stamped says of them is believed.
"""

from headrace.core.queue import Taken, Transfer
from headrace.log import get_logger
from headrace.model import limits
from headrace.wire.batch import Record
from headrace.wire.journal import Reason

ORIGIN = "headrace.origin"
ORIGIN_PARTITION = "headrace.origin-partition"
ORIGIN_OFFSET = "headrace.origin-offset"
REASON = "headrace.reason"
ATTEMPTS = "headrace.attempts"
FIRST_FAILURE = "headrace.first-failure-ms"
LAST_FAILURE = "headrace.last-failure-ms"
DEPTH = "headrace.dead-letter-depth"

_log = get_logger("outbox")


def stamp(queue: str, partition: int, transfer: Transfer, offset: int, taken: Taken, record: Record, *, trusted: bool) -> Record | None:
    """The record at ``offset`` of that partition as it arrives at the target; None = it has been dead-lettered too often and ends here."""
    old = {name: value for name, value in record.headers if trusted and name.startswith("headrace.")}
    headers = [(name, value) for name, value in record.headers if not name.startswith("headrace.")]
    if transfer.reason in (Reason.MOVED, Reason.REDRIVEN):
        if transfer.reason == Reason.MOVED:
            headers += list(old.items())
        return Record(key=record.key, value=record.value, headers=tuple(headers), timestamp_ms=record.timestamp_ms, offset_delta=0)
    depth = int(old.get(DEPTH, b"0")) + 1
    if depth > limits.DEAD_LETTER_DEPTH_MAX:
        _log.warning("a message of %r was dead-lettered %d times and is dropped", queue, depth)
        return None
    stamps = {
        ORIGIN: old.get(ORIGIN, queue.encode()),
        ORIGIN_PARTITION: old.get(ORIGIN_PARTITION, str(partition).encode()),
        ORIGIN_OFFSET: old.get(ORIGIN_OFFSET, str(offset).encode()),
        REASON: transfer.reason.name.lower().replace("_", "-").encode(),
        ATTEMPTS: str(int(old.get(ATTEMPTS, b"0")) + taken.attempts).encode(),
        FIRST_FAILURE: old.get(FIRST_FAILURE, str(taken.first_failed_ms or transfer.wall_ms).encode()),
        LAST_FAILURE: str(transfer.wall_ms).encode(),
        DEPTH: str(depth).encode(),
    }
    return Record(key=record.key, value=record.value, headers=(*headers, *stamps.items()), timestamp_ms=record.timestamp_ms, offset_delta=0)
