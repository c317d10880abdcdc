"""A reader of one stream partition: position, credit, and what it was sent and has not settled.

Owns the arithmetic of one reader's credit and held ranges. Knows neither the log's bounds nor which reader is due: the machine does.

Invariants: R1 ``held`` lies below ``position``. R2 ``held_bytes`` is what the held records took of the byte credit, spread evenly over them.
"""

import msgspec

from headrace.core.ranges import RangeSet
from headrace.core.stream.cursor import Cursor
from headrace.model import limits

READER_RANGES_MAX = limits.SETTLE_RANGES_MAX
"""A reader whose unsettled records lie in more ranges than this is sent nothing until it settles some."""
CREDIT_MAX = limits.PREFETCH_MESSAGES_MAX
CREDIT_BYTES_MAX = 1 << 40
RETRACTIONS_MAX = 16


class Read(msgspec.Struct, frozen=True):
    """What the runtime should read and send now: records of [from_offset, end), at most ``max_messages`` of them and about ``max_bytes`` (but always
    at least one). ``ticket``: ``StreamMachine.valid(read)`` says whether it still stands after a wait for the disk."""

    reader_id: int
    from_offset: int
    end: int
    max_messages: int
    max_bytes: int
    ticket: int


class Opened(msgspec.Struct, frozen=True):
    """An opened reader: where it starts, and which reader lost the cursor to it (-1 = none; that one reads on, but its acks are stale)."""

    position: int
    superseded: int = -1


class Moved(msgspec.Struct, frozen=True):
    """A reader (``reader_id``, cursor "") or a cursor (``reader_id`` -1) that goes on elsewhere than it stood."""

    reader_id: int
    cursor: str
    from_offset: int
    to_offset: int


class Retraction(msgspec.Struct, frozen=True):
    """A reader that was sent records from ``from_offset`` on which the new ``epoch`` took back."""

    reader_id: int
    from_offset: int
    epoch: int


class RetentionWish(msgspec.Struct, frozen=True):
    """What may go: whole segments older than ``age_ms``, above ``bytes_max``, above ``records_max`` (0 = no bound), never past the high watermark.
    ``before_wall_ms``: append times below it are too old (0 = none are); ``before_offset``: offsets below it are too many."""

    age_ms: int
    bytes_max: int
    records_max: int
    before_wall_ms: int
    before_offset: int


class Reader:
    """See the module's head. ``fifo``: CREDIT settles the oldest held records (automatic commit, or no cursor); else only acks do."""

    __slots__ = (
        "cursor",
        "fenced",
        "fifo",
        "filtered",
        "generation",
        "held",
        "held_bytes",
        "id",
        "messages",
        "nbytes",
        "parked",
        "position",
        "retractions",
        "ticket",
    )

    def __init__(self, id: int, position: int, messages: int, nbytes: int, *, fifo: bool, filtered: bool, generation: int) -> None:
        self.id = id
        self.position = position
        self.messages = messages
        self.nbytes = nbytes
        self.fifo = fifo
        self.filtered = filtered
        self.generation = generation
        self.cursor: Cursor | None = None
        self.fenced = False
        self.parked = False
        self.held = RangeSet()
        self.held_bytes = 0
        self.ticket = 0
        self.retractions: list[tuple[int, int]] = []

    def may_read(self) -> bool:
        """Whether it has credit and room for more."""
        return self.messages > 0 and self.nbytes > 0 and not self.parked and len(self.held) < READER_RANGES_MAX

    def hold(self, first: int, end: int) -> None:
        """It is sent [first, end)."""
        self.held.add(first, end)
        self.messages -= end - first

    def give_back(self, count: int, *, credit: bool) -> None:
        """``count`` records just left ``held``: takes their bytes out, and with ``credit`` gives credit for both back."""
        before = self.held.count + count
        nbytes = self.held_bytes if count == before else self.held_bytes * count // before
        self.held_bytes -= nbytes
        if credit:
            self.grant(count, nbytes)

    def grant(self, messages: int, nbytes: int) -> None:
        """Adds to the window (or takes from it), within bounds."""
        self.messages = max(-CREDIT_MAX, min(CREDIT_MAX, self.messages + messages))
        self.nbytes = max(-CREDIT_BYTES_MAX, min(CREDIT_BYTES_MAX, self.nbytes + nbytes))

    def jump(self, position: int) -> None:
        """Goes on at ``position``; reads under way are void."""
        self.position = position
        self.ticket += 1

    def retracted(self, offset: int, epoch: int) -> None:
        """Records from ``offset`` on were taken back; acks for them from older epochs will be stale."""
        self.release(offset, 1 << 64)
        self.jump(min(self.position, offset))
        self.retractions.append((epoch, offset))
        del self.retractions[:-RETRACTIONS_MAX]

    def release(self, first: int, end: int) -> None:
        """Nothing of [first, end) is held any more, without being acked; credit comes back."""
        count = sum(stop - start for start, stop, _ in self.held.cut(first, end))
        if count:
            self.give_back(count, credit=True)

    def acks_below(self, epoch: int) -> int:
        """Acks that name ``epoch`` are good for offsets below this."""
        return min((offset for newer, offset in self.retractions if newer > epoch), default=1 << 64)

    def check(self) -> None:
        """Asserts R1 and R2."""
        self.held.check()
        assert not self.held or self.held.end <= self.position, f"reader {self.id} holds past its position {self.position}"
        assert self.held_bytes >= 0
        assert self.held or self.held_bytes == 0, f"reader {self.id} holds nothing but {self.held_bytes} bytes"
