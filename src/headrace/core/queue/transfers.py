"""Messages that left for another queue or stream and have not arrived yet (dead letters, moves, redrives): ARCHITECTURE 6, "moving messages".

A transfer is journalled when its messages count as settled here, and again when the target has committed them; in between their payloads are kept.
Dead letters of one tick, target and reason are gathered into one transfer. Numbers count messages (see ``Transfer.number``) from 1, over all targets.

I1: numbers of pending transfers do not overlap and lie below ``next_number``.
"""

from msgspec.structs import replace

from headrace.core.queue.consumers import Taken, Transfer
from headrace.core.queue.journalling import Journal
from headrace.core.ranges import RangeSet
from headrace.model.errors import Malformed
from headrace.wire.journal import Reason, TransferStart, pack_transfer

COUNT_MAX = 1 << 30
"""Messages in one transfer: below half the sequence modulus, so that a target never takes a retry for something new."""


class Transfers:
    """Pending transfers of one partition."""

    __slots__ = ("_gathering", "_low", "_to_hand_out", "next_number", "pending")

    def __init__(self) -> None:
        self.pending: dict[int, Transfer] = {}
        self.next_number = 1
        self._gathering: dict[tuple[str, Reason], tuple[int, list[Taken]]] = {}
        self._to_hand_out: list[int] = []
        self._low: int | None = None
        """Lowest offset in transit, None = to be found anew."""

    def gather(self, target: str, reason: Reason, taken: Taken, wall_ms: int) -> None:
        """Adds dead letters to the transfer that starts at the end of this tick."""
        ranges = self._gathering.setdefault((target, reason), (wall_ms, []))[1]
        last = ranges[-1] if ranges else None
        alike = last is not None and (last.attempts, last.first_failed_ms) == (taken.attempts, taken.first_failed_ms)
        if last is not None and alike and last.first + last.count == taken.first:
            ranges[-1] = Taken(last.first, last.count + taken.count, taken.attempts, taken.first_failed_ms)
        else:
            ranges.append(taken)
        self._low = None

    def flush(self, journal: Journal) -> None:
        """Starts what was gathered."""
        if self._gathering:
            gathered, self._gathering = self._gathering, {}
            for (target, reason), (wall_ms, ranges) in gathered.items():
                self.start(journal, target, reason, ranges, wall_ms, {})

    def start(self, journal: Journal, target: str, reason: Reason, ranges: list[Taken], wall_ms: int, extra: dict[str, object]) -> int:
        """Journals a transfer (in pieces of at most ``COUNT_MAX`` messages) and returns the first number."""
        first_number = self.next_number
        batch: list[Taken] = []
        room = COUNT_MAX
        for taken in ranges:
            while taken.count >= room:
                batch.append(replace(taken, count=room))
                taken = replace(taken, first=taken.first + room, count=taken.count - room)
                self._start(journal, target, reason, batch, wall_ms, extra)
                batch, room = [], COUNT_MAX
            if taken.count:
                batch.append(taken)
                room -= taken.count
        if batch:
            self._start(journal, target, reason, batch, wall_ms, extra)
        return first_number

    def _start(self, journal: Journal, target: str, reason: Reason, ranges: list[Taken], wall_ms: int, extra: dict[str, object]) -> None:
        transfer = Transfer(self.next_number, target, reason, tuple(ranges), wall_ms, extra)
        self.add(transfer)
        self._to_hand_out.append(transfer.number)
        rows: list[tuple[int, ...]] = [(taken.first, taken.count, taken.attempts, taken.first_failed_ms) for taken in ranges]
        journal.transfer(pack_transfer(TransferStart(transfer.number, target, reason, rows, wall_ms, extra)))

    def add(self, transfer: Transfer) -> None:
        """Takes a transfer into the books."""
        self.pending[transfer.number] = transfer
        self.next_number = max(self.next_number, transfer.number + transfer.count)
        self._low = None

    def replay_start(self, entry: TransferStart) -> Transfer | None:
        """The transfer a journal entry tells of; None if it ended long ago or is known."""
        if entry.number < self.next_number:
            return None
        try:
            ranges = tuple(Taken(*taken) for taken in entry.ranges)
            transfer = Transfer(entry.number, entry.target, Reason(entry.reason), ranges, entry.wall_ms, entry.extra)
        except (TypeError, ValueError) as e:
            raise Malformed(f"a transfer entry that is none: {e}") from None
        self.add(transfer)
        return transfer

    def done(self, number: int) -> bool:
        """The target has committed it: its payloads are not needed any more. False if it was not pending."""
        if self.pending.pop(number, None) is None:
            return False
        self._low = None
        return True

    def take(self) -> list[Transfer]:
        """Transfers to carry out that were not handed out yet."""
        if not self._to_hand_out:
            return []
        numbers, self._to_hand_out = self._to_hand_out, []
        return [self.pending[number] for number in numbers if number in self.pending]

    def hand_out_again(self) -> None:
        """After a restart: everything pending is to be carried out (again)."""
        self._to_hand_out = sorted(self.pending)

    def low(self, otherwise: int) -> int:
        """Lowest offset in transit, at most ``otherwise``."""
        if not (self.pending or self._gathering):
            return otherwise
        if self._low is None:
            pending = [taken.first for transfer in self.pending.values() for taken in transfer.ranges]
            self._low = min(pending + [taken.first for _, ranges in self._gathering.values() for taken in ranges])
        return min(self._low, otherwise)

    def check(self) -> None:
        """Asserts I1 and that no message travels twice."""
        end, seen = 1, RangeSet()
        for number in sorted(self.pending):
            transfer = self.pending[number]
            assert number == transfer.number >= end
            end = number + transfer.count
            for taken in transfer.ranges:
                assert not seen.pieces(taken.first, taken.first + taken.count)
                seen.add(taken.first, taken.first + taken.count)
        assert end <= self.next_number
