"""The verbs of operators and of the runtime's housekeeping: purge, peek, transfers, journal, snapshot, and going live."""

from collections.abc import Iterable

from headrace.core.queue import fates, peeking, replaying, snapshots
from headrace.core.queue.admission import Admission
from headrace.core.queue.consumers import Peek, Range, Taken, Transfer
from headrace.core.queue.figures import Figures
from headrace.core.queue.lookahead import Lookahead
from headrace.core.repartition import slots
from headrace.core.repartition.behind import Stand
from headrace.core.repartition.holding import EVERYBODY
from headrace.wire.journal import Action, Kind, Reason, RoutingBegun, RoutingFreed, TransferDone, pack_routing, pack_transfer

ALL = 1 << 64


class Administration(Figures):
    """A machine without its consumers."""

    __slots__ = ()

    def _warm(self, now_ms: int) -> None:
        """Takes up restored leases and looks for what must be opened."""
        if not self._cold:
            return
        self._cold, self._live = False, True
        state = self._state
        state.leases.activate(now_ms)
        self._expiry.reset()
        state.transfers.hand_out_again()
        self._open_eyes()

    def _open_eyes(self) -> None:
        """Begins to look ahead if keys or filters ask for it."""
        state = self._state
        seekers = [holder.consumer for holder in self._ring if holder.consumer is not None and holder.consumer.filter is not None]
        if state.lookahead is None and (state.spec.ordered_by_key or seekers):
            state.lookahead = lookahead = self._look()
            for consumer in seekers:
                lookahead.attach(consumer)

    def _look(self) -> Lookahead:
        """What lies ahead: everything ready, and in an ordered queue what blocks its key."""
        state = self._state
        lookahead = Lookahead(keyed=state.spec.ordered_by_key, is_ready=state.is_ready, priority_of=state.priority_of)
        for level in state.levels:
            for first, end in level.ranges():
                lookahead.readied(first, end)
        for first, end, _ in state.leases:
            lookahead.block(first, end)
        for first, end, _ in state.delayed:
            for start, stop, (attempts, _) in state.failures(first, end):
                if attempts:
                    lookahead.block(start, stop)
        return lookahead

    # ------------------------------------------------------------ administration

    def purge(self, leased: bool = False, *, now_ms: int = 0, wall_ms: int = 0) -> int:
        """Drops all ready and delayed messages, with ``leased`` the leased ones too; returns how many."""
        self._warm(now_ms)
        state = self._state
        pieces = state.cut_ready(0, ALL) + state.cut_delayed(0, ALL)
        if leased:
            pieces += self._revoke(0, ALL)
        for first, end in pieces:
            state.journal.settle(Action.PURGE, Reason.PURGED, 0, first, end, wall_ms)
            state.settle(first, end)
        return sum(end - first for first, end in pieces)

    def drop_unreadable(self, first: int, count: int, now_ms: int, wall_ms: int) -> int:
        """Settles messages whose payload cannot be had any more, whatever their state; returns how many."""
        self._warm(now_ms)
        state, end = self._state, first + count
        pieces = state.cut_ready(first, end) + state.cut_delayed(first, end) + self._revoke(first, end)
        for start, stop in pieces:
            state.journal.settle(Action.DROP, Reason.DROPPED, 0, start, stop, wall_ms)
            state.settle(start, stop)
        return sum(stop - start for start, stop in pieces)

    def _revoke(self, first: int, end: int) -> list[tuple[int, int]]:
        """Takes leased messages out of everybody's hands."""
        pieces = self._state.leases.cut_any(first, end)
        for piece in pieces:
            holder = self._state.leases.holders.get(piece[2].owner_token)
            if holder is not None:
                fates.repay(self._state, holder, (piece,))
        return [(start, stop) for start, stop, _ in pieces]

    def peek(self, state: str = "ready", after: int = -1, limit: int = 20, *, now_ms: int = 0, wall_ms: int = 0) -> list[Peek]:
        """Unsettled messages above offset ``after`` in one state (ready, leased, delayed, any), ascending; ``lease_until_ms`` is on the wall clock if
        both times
        are given, else monotonic."""
        return peeking.peek(self._state, state, after, limit, wall_ms - now_ms)

    # ------------------------------------------------------------ transfers

    def start_transfer(self, target: str, reason: Reason, ranges: Iterable[Range], wall_ms: int, extra: dict[str, object] | None = None) -> int:
        """Takes what is ready of ``ranges`` out of the queue, to be published to ``target``; returns the transfer's number, 0 if nothing was
        ready."""
        state = self._state
        self._live = True
        taken = []
        for first, count in ranges:
            for start, stop in state.cut_ready(first, first + count):
                for low, high, (attempts, failed_ms) in state.failures(start, stop):
                    taken.append(Taken(low, high - low, attempts, failed_ms))
                state.settle(start, stop)
        return state.transfers.start(state.journal, target, reason, taken, wall_ms, extra or {}) if taken else 0

    def take_transfers(self) -> list[Transfer]:
        """Transfers to carry out: those begun since last asked, after a restart all pending ones."""
        self._state.transfers.flush(self._state.journal)
        return self._state.transfers.take()

    def transfer_done(self, number: int) -> bool:
        """The target has committed a transfer; False if it was not pending."""
        if not self._state.transfers.done(number):
            return False
        self._state.journal.transfer(pack_transfer(TransferDone(number)))
        return True

    def pending_transfers(self) -> list[Transfer]:
        """All transfers whose target has not committed yet, oldest first."""
        self._state.transfers.flush(self._state.journal)
        return [transfer for _, transfer in sorted(self._state.transfers.pending.items())]

    # ------------------------------------------------------------ repartition

    def begin_routing(self, version: int, *, number: int, before: int, after: int, cut: int) -> bool:
        """Messages from offset ``cut`` on are of this routing version, and wait for what is behind in other partitions; False if that is known."""
        if version <= self._state.holding.version:
            return False
        self._live = True
        entry = RoutingBegun(version, number, before, after, cut)
        self._state.journal.routing(pack_routing(entry))
        self._state.routed(entry)
        return True

    def let_go(self, version: int, source: int, behind: int) -> int:
        """Partition ``source`` (``EVERYBODY``: each) has no more than these slots in hand; returns how many are free since."""
        state = self._state
        holding = state.holding
        if version != holding.version or not (holding.waiting if source == EVERYBODY else holding.news(source, behind)):
            return 0
        entry = RoutingFreed(version, source, slots.pack(behind))
        state.journal.routing(pack_routing(entry))
        return slots.count(state.routed(entry))

    def stand(self, offset: int) -> Stand:
        """How a message stands for who waits until a key slot is let go of."""
        return self._state.stand(offset)

    # ------------------------------------------------------------ journal

    def take_journal(self) -> list[tuple[Kind, bytes]]:
        """Entries for what happened since last asked, in the order in which they must be appended."""
        self._state.transfers.flush(self._state.journal)
        return self._state.journal.take()

    def replay(self, kind: int, payload: bytes, now_ms: int = 0, wall_ms: int = 0) -> None:
        """Applies a journal entry without effects (records: ``enqueue``). The machine is cold afterwards. Raises ``Malformed``."""
        self._cold, self._live = True, False
        self._state.lookahead = None
        replaying.replay(self._state, kind, payload)

    def snapshot(self) -> bytes:
        """The whole state (version 1); take the journal first, so that entries and snapshot tell the same."""
        self._state.transfers.flush(self._state.journal)
        return snapshots.snapshot(self._state)

    def restore(self, version: int, data: bytes, now_ms: int = 0, wall_ms: int = 0) -> None:
        """Becomes what the snapshot says. Consumers must attach anew. Raises ``Damaged``."""
        self._state = snapshots.restore(self._state.spec, version, data)
        self._admission = Admission()
        self._ring, self._turn, self._gate = [], 0, None
        self._cold, self._live = True, False
