"""What happened since the last look, as journal entries: one LEASE and one SETTLEMENT a tick wherever that replays to the same state.

The order kept: settlements, then leases, then transfers. A settlement of something leased since the last look would be wrong there, so it closes the
section and opens another. Acks are final for their offsets, so those of a section are sorted and joined behind everything else in it.
"""

from headrace.wire.journal import Action, Kind, Reason, pack_leases, pack_settlements

COUNT_MAX = (1 << 32) - 1
"""Counts are u32 in the journal; longer ranges are written in pieces."""
ROWS_MAX = 1024
"""Rows of one entry; more become several, so that what happened at once to any number of messages fits in any log file."""


class Journal:
    """Entries of one machine that are not taken yet."""

    __slots__ = ("_closed", "_high", "_leases", "_low", "_settlements", "_transfers", "acks")

    def __init__(self) -> None:
        self.acks: list[tuple[int, int]] = []
        """(first, end) of plainly acked ranges. Append to it: an ack needs no place among the leases, since replaying a lease of something settled
        does nothing."""
        self._settlements: list[tuple[int, int, int, int, int, int]] = []
        self._leases: list[tuple[int, int, int, int, int]] = []
        self._transfers: list[bytes] = []
        self._closed: list[tuple[Kind, bytes]] = []
        self._low = self._high = 0
        """Span of the leases in the open section, empty if there are none."""

    def lease(self, first: int, end: int, attempt: int, lease_ms: int, owner_token: int) -> None:
        """``[first, end)`` was granted."""
        leases = self._leases
        if not leases:
            self._low, self._high = first, end
        else:
            if first < self._low:
                self._low = first
            if end > self._high:
                self._high = end
        while end - first > COUNT_MAX:
            leases.append((first, COUNT_MAX, attempt, lease_ms, owner_token))
            first += COUNT_MAX
        leases.append((first, end - first, attempt, lease_ms, owner_token))

    def settle(self, action: Action, reason: Reason, attempts: int, first: int, end: int, when_ms: int = 0) -> None:
        """``[first, end)`` was settled, returned, delayed or extended."""
        if first < self._high and end > self._low:
            self._close()
        settlements = self._settlements
        if settlements:
            last = settlements[-1]
            if last[4] + last[3] == first and last[:3] == (action, reason, attempts) and last[5] == when_ms and last[3] + end - first <= COUNT_MAX:
                settlements[-1] = (action, reason, attempts, last[3] + end - first, last[4], when_ms)
                return
        while end - first > COUNT_MAX:
            settlements.append((action, reason, attempts, COUNT_MAX, first, when_ms))
            first += COUNT_MAX
        settlements.append((action, reason, attempts, end - first, first, when_ms))

    def transfer(self, payload: bytes) -> None:
        """A transfer started or ended."""
        self._transfers.append(payload)

    def routing(self, payload: bytes) -> None:
        """A repartition's entry: nothing of before is written behind it."""
        self._close()
        self._closed += [(Kind.TRANSFER, transfer) for transfer in self._transfers]
        self._transfers = []
        self._closed.append((Kind.ROUTING, payload))

    def _close(self) -> None:
        acks = self.acks
        if acks:
            self.acks = []
            if len(acks) > 1:
                acks.sort()
            held_first, held_end = acks[0]
            for first, end in acks:
                if first > held_end:
                    self._acked(held_first, held_end)
                    held_first = first
                held_end = end
            self._acked(held_first, held_end)
        if self._settlements:
            settlements, self._settlements = self._settlements, []
            for at in range(0, len(settlements), ROWS_MAX):
                self._closed.append((Kind.SETTLEMENT, pack_settlements(settlements[at : at + ROWS_MAX])))
        if self._leases:
            leases, self._leases = self._leases, []
            for at in range(0, len(leases), ROWS_MAX):
                self._closed.append((Kind.LEASE, pack_leases(leases[at : at + ROWS_MAX])))
            self._low = self._high = 0

    def _acked(self, first: int, end: int) -> None:
        while end - first > COUNT_MAX:
            self._settlements.append((0, 0, 0, COUNT_MAX, first, 0))
            first += COUNT_MAX
        self._settlements.append((0, 0, 0, end - first, first, 0))

    def take(self) -> list[tuple[Kind, bytes]]:
        """All entries in the order in which they must be replayed; afterwards there are none."""
        self._close()
        if not (self._closed or self._transfers):
            return []
        taken = self._closed + [(Kind.TRANSFER, payload) for payload in self._transfers]
        self._closed = []
        self._transfers = []
        return taken

    def __bool__(self) -> bool:
        return bool(self.acks or self._settlements or self._leases or self._transfers or self._closed)


assert (Action.ACK, Reason.NONE) == (0, 0)
