"""Who gets what of the ready messages: highest priority first, oldest first, equal shares among consumers that have credit.

Shares are max-min fair (a consumer with little credit takes that, the others divide the rest) and each consumer's share is one run of messages. The
turn moves on with every grant, so that few messages reach everybody in time. Consumers without credit cost a look and hold nobody up.
"""

from headrace.core.queue.consumers import Consumer, Grant
from headrace.core.queue.leases import Holder, Lease
from headrace.core.queue.lookahead import Lookahead
from headrace.core.queue.state import FRESH, State
from headrace.wire.journal import Action, Reason

ATTEMPTS_MAX = 65_535
"""Delivery counts are u16 on the wire and in the journal; they stop there."""


class Round:
    """One call of grant: the ring of consumers and what was given so far."""

    __slots__ = ("_now_ms", "_ring", "_state", "_turn", "grants")

    def __init__(self, state: State, ring: list[Holder], turn: int, now_ms: int) -> None:
        self._state = state
        self._ring = ring
        self._turn = turn
        self._now_ms = now_ms
        self.grants: list[Grant] = []

    def run(self, ready: int) -> int:
        """Grants all that can be granted of the ``ready`` messages there are; returns the next turn."""
        state = self._state
        lookahead = state.lookahead
        if lookahead is not None and lookahead.needed:
            self._one_by_one(lookahead)
            if lookahead.keyed:
                return self._turn
            ready = state.ready_count
        if len(self._ring) == 1:
            holder = self._ring[0]
            consumer = holder.consumer
            if consumer is not None and not holder.suspended and consumer.filter is None:
                self._hand_out(holder, ready)
            return 0
        while ready > 0:
            candidates = self._candidates(ready)
            if not candidates:
                break
            if len(candidates) == 1:
                handed = self._hand_out(candidates[0], ready)
            else:
                handed = self._divide(candidates, ready)
            if not handed:
                break
            ready -= handed
        return self._turn

    def _candidates(self, wanted: int) -> list[Holder]:
        """Up to ``wanted`` consumers that may be given any ready message, from the turn on; moves the turn behind the last looked at if there were
        enough."""
        ring, turn = self._ring, self._turn
        if turn >= len(ring):
            turn = 0
        found: list[Holder] = []
        for at in range(turn, turn + len(ring)):
            holder = ring[at - len(ring) if at >= len(ring) else at]
            consumer = holder.consumer
            if consumer is None or holder.suspended or consumer.filter is not None or consumer.credit.messages <= 0 or consumer.credit.bytes <= 0:
                continue
            found.append(holder)
            if len(found) == wanted:
                self._turn = (at + 1) % len(ring)
                return found
        self._turn = (turn + 1) % len(ring)
        return found

    def _divide(self, candidates: list[Holder], ready: int) -> int:
        left, remaining = len(candidates), ready
        share = -(-ready // left)
        if any(_credit(holder) < share for holder in candidates):
            return self._divide_unevenly(candidates, ready)
        handed = 0
        for holder in candidates:
            share = -(-remaining // left)
            remaining -= share
            left -= 1
            handed += self._hand_out(holder, share)
        return handed

    def _divide_unevenly(self, candidates: list[Holder], ready: int) -> int:
        """Those with the least credit take all of it, the others divide what is left."""
        shares: dict[int, int] = {}
        left, remaining = len(candidates), ready
        for holder in sorted(candidates, key=_credit):
            share = shares[holder.token] = min(_credit(holder), -(-remaining // left))
            remaining -= share
            left -= 1
        return sum(self._hand_out(holder, shares[holder.token]) for holder in candidates if shares[holder.token])

    def _hand_out(self, holder: Holder, count: int) -> int:
        """Grants up to ``count`` messages of the highest priorities, within the credit."""
        consumer, state = holder.consumer, self._state
        assert consumer is not None
        credit, handed, extents, levels = consumer.credit, 0, state.extents, state.levels
        level = levels[0]
        while handed < count and credit.messages > 0 and credit.bytes > 0:
            if len(levels) > 1:
                level = next((level for level in reversed(levels) if level), level)
            if not level:
                break
            first, end, _ = level.take(min(count - handed, credit.messages))
            size = extents.size(first, end)
            if size > credit.bytes:
                stop = max(first + 1, extents.fit(first, credit.bytes))
                if stop < end:
                    level.put(stop, end, True)
                    end = stop
                    size = extents.size(first, end)
            credit.messages -= end - first
            credit.bytes -= size
            handed += end - first
            self._deliver(holder, consumer, first, end)
        return handed

    def _one_by_one(self, lookahead: Lookahead) -> None:
        """Grants opened messages, one to each consumer in turn."""
        state, ring = self._state, self._ring
        turn = self._turn if self._turn < len(ring) else 0
        open_to = [
            holder
            for holder in ring[turn:] + ring[:turn]
            if not holder.suspended and holder.consumer is not None and (lookahead.keyed or holder.consumer.filter is not None)
        ]
        while open_to:
            still_open = []
            for holder in open_to:
                consumer = holder.consumer
                if consumer is None or consumer.credit.messages <= 0 or consumer.credit.bytes <= 0:
                    continue
                offset = lookahead.next_for(consumer)
                if offset is None:
                    continue
                state.cut_ready(offset, offset + 1)
                consumer.credit.messages -= 1
                consumer.credit.bytes -= state.extents.size(offset, offset + 1)
                self._deliver(holder, consumer, offset, offset + 1)
                still_open.append(holder)
            open_to = still_open
        self._turn = (turn + 1) % len(ring)

    def _deliver(self, holder: Holder, consumer: Consumer, first: int, end: int) -> None:
        """Records that ``[first, end)``, just taken from the ready, is delivered to ``holder``."""
        state, grants = self._state, self.grants
        for start, stop, (attempts, failed_ms) in state.failures(first, end) if state.attempts else ((first, end, FRESH),):
            attempt = attempts + 1 if attempts < ATTEMPTS_MAX else ATTEMPTS_MAX
            if consumer.auto_ack:
                state.journal.settle(Action.ACK, Reason.AUTO_ACK, attempt, start, stop)
                state.settle(start, stop)
            else:
                lease_ms = consumer.lease_ms or state.spec.lease_ms
                if attempts:
                    state.attempts.cut(start, stop)
                state.leases.put(holder, start, stop, Lease(holder.token, attempt, lease_ms, self._now_ms + lease_ms, failed_ms))
                state.journal.lease(start, stop, attempt, lease_ms, holder.token)
                if state.lookahead is not None:
                    state.lookahead.leased(start, stop)
            if grants:
                last = grants[-1]
                if last.first + last.count == start and last.consumer_id == consumer.id and last.attempt == attempt:
                    grants[-1] = Grant(consumer.id, last.first, last.count + stop - start, attempt, last.auto_ack)
                    continue
            grants.append(Grant(consumer.id, start, stop - start, attempt, consumer.auto_ack))


def _credit(holder: Holder) -> int:
    assert holder.consumer is not None
    return holder.consumer.credit.messages
