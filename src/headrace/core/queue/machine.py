"""One queue partition: from committed records to settled messages, by the promises of SEMANTICS section 1.

It knows offsets, counts, sizes and times, never payloads, connections or the log. Effects are polled: grants from ``grant``, journal entries from
``take_journal``, messages to publish elsewhere from ``take_transfers``. Leases and settlements take effect when issued; the runtime promises nothing
before their entry is committed. Nothing raises on hostile input: what a consumer does not hold is stale.

A machine is cold after construction, restore and replay, and goes live with the first verb that only an owner calls; then restored leases start anew.
Cost of every verb follows the ranges it touches. I10: leased to one consumer at a time; I15: the four states are disjoint and sum to what was
enqueued.
"""

from collections.abc import Sequence

from headrace.core.queue import fates
from headrace.core.queue.administration import ALL, Administration
from headrace.core.queue.admission import make_room
from headrace.core.queue.consumers import Consumer, Grant, Range, Settled
from headrace.core.queue.granting import Round
from headrace.core.queue.leases import Holder, Lease
from headrace.core.ranges import RangeSet, gaps
from headrace.core.repartition.slots import slot_of
from headrace.model.errors import QueueFull
from headrace.model.limits import LEASE_MS_MAX, LEASE_MS_MIN
from headrace.model.specs import QueueSpec
from headrace.wire.frames import Settle
from headrace.wire.journal import Action, Reason


class QueueMachine(Administration):
    """See the module's head. ``now_ms`` is monotonic, ``wall_ms`` wall clock."""

    __slots__ = ()

    def configure(self, spec: QueueSpec) -> None:
        """Takes altered settings (``ordered_by_key`` never changes). They hold for leases granted and failures counted from now on."""
        self._state.spec = spec
        self._expiry.reset()

    # ------------------------------------------------------------ in

    def admit(self, count: int, nbytes: int, wall_ms: int, *, whole: bool = False) -> QueueFull | None:
        """Reserves room for a publish before it is appended, or says why it is refused. ``enqueue`` or ``unreserve`` must follow. ``whole``: it
        cannot be divided, so an empty partition takes it beyond its limits."""
        self._live = True
        return self._admission.admit(self._state, count, nbytes, whole=whole)

    def unreserve(self, count: int, nbytes: int) -> None:
        """What was admitted will never be enqueued."""
        self._admission.release(count, nbytes)

    def enqueue(
        self,
        base_offset: int,
        count: int,
        nbytes: int,
        *,
        not_before_ms: int = 0,
        expires_at_ms: int = 0,
        priority: int = 0,
        key_slot: int = 0,
        wall_ms: int,
        now_ms: int,
    ) -> None:
        """Committed records become ready, or delayed until ``not_before_ms``. In offset order; what is already known is skipped. ``wall_ms``: append
        time. ``key_slot``: held back with its slot, if that is."""
        state = self._state
        if self._admission.count:
            self._admission.release(count, nbytes)
        end = base_offset + count
        if base_offset < state.end:
            if end <= state.end:
                return
            nbytes = nbytes * (end - state.end) // count
            base_offset = state.end
        if base_offset >= end:
            return
        state.append(base_offset, end - base_offset, nbytes, wall_ms, priority=priority, expires_at_ms=expires_at_ms)
        if key_slot and state.holding.holds(key_slot, base_offset):
            state.held.put(base_offset, end, slot_of(key_slot))
        if not_before_ms > wall_ms:
            state.make_delayed(base_offset, end, not_before_ms)
        else:
            state.make_ready(base_offset, end)
        if self._live and (state.spec.max_messages or state.spec.max_bytes):
            make_room(state, base_offset, wall_ms)

    # ------------------------------------------------------------ consumers

    def attach(self, consumer: Consumer) -> None:
        """Adds a consumer; leases of its token are its own again, and count in its window. Whoever was attached under its id or token is replaced."""
        leases = self._state.leases
        self._live = True
        for holder in (leases.holders.get(consumer.owner_token), leases.by_consumer.get(consumer.id)):
            if holder is not None and holder.consumer is not None:
                self._leave(holder)
        holder = leases.attach(consumer)
        fates.charge(self._state, holder)
        self._ring.append(holder)
        lookahead = self._state.lookahead
        if lookahead is not None:
            if consumer.filter is not None:
                lookahead.attach(consumer)
        elif not self._cold:
            self._open_eyes()

    def _leave(self, holder: Holder) -> None:
        """Unbinds the consumer from its token; leases stay with the token."""
        assert holder.consumer is not None
        lookahead = self._state.lookahead
        if lookahead is not None:
            lookahead.detach(holder.consumer.id)
            if not lookahead.needed:
                self._state.lookahead = None
        self._state.leases.by_consumer.pop(holder.consumer.id, None)
        self._ring.remove(holder)
        holder.consumer = None
        holder.suspended = False

    def detach(self, consumer_id: int, now_ms: int, wall_ms: int, undelivered: Sequence[Range] = ()) -> None:
        """Removes a consumer; its leased messages are ready at once. For ranges in ``undelivered`` the delivery does not count."""
        self._warm(now_ms)
        leases = self._state.leases
        holder = leases.by_consumer.get(consumer_id)
        if holder is None:
            return
        for first, count in undelivered:
            self._return(holder, first, first + count, Reason.CONSUMER_GONE, wall_ms, counted=False)
        self._return(holder, 0, ALL, Reason.CONSUMER_GONE, wall_ms)
        self._leave(holder)
        leases.drop_if_unused(holder)

    def suspend(self, consumer_id: int) -> None:
        """Its connection is lost: grants nothing more, keeps its leases running."""
        holder = self._state.leases.by_consumer.get(consumer_id)
        if holder is not None:
            holder.suspended = True

    def resume(self, consumer_id: int, held_ranges: Sequence[Range] | None, now_ms: int, wall_ms: int) -> None:
        """It is back (or adopted leases after a restart): what it leases but does not hold never reached it and is released without counting.
        None: it was never away, only not to be granted more."""
        self._warm(now_ms)
        holder = self._state.leases.by_consumer.get(consumer_id)
        if holder is None:
            return
        holder.suspended = False
        if held_ranges is None:
            return
        held = RangeSet()
        for first, count in held_ranges:
            held.add(first, min(first + count, self._state.end))
        for first, end, _ in list(holder.leases):
            for start, stop in gaps(held.pieces(first, end), first, end):
                self._return(holder, start, stop, Reason.CONSUMER_GONE, wall_ms, counted=False)

    def leased(self, consumer_id: int, attempt: int, first: int, end: int) -> list[tuple[int, int]]:
        """(first, end) of what it still leases, as that delivery, of a grant that took a while to send."""
        holder = self._state.leases.by_consumer.get(consumer_id)
        return [] if holder is None else [(start, stop) for start, stop, lease in holder.leases.pieces(first, end) if lease.attempt == attempt]

    def take_back(self, consumer_id: int, ranges: Sequence[Range], now_ms: int, wall_ms: int) -> int:
        """Returns granted messages that could not be sent; the delivery does not count. Returns how many were leased."""
        self._warm(now_ms)
        holder = self._state.leases.by_consumer.get(consumer_id)
        if holder is None:
            return 0
        return sum(self._return(holder, first, first + count, Reason.CONSUMER_GONE, wall_ms, counted=False) for first, count in ranges)

    def _return(self, holder: Holder, first: int, end: int, reason: Reason, wall_ms: int, *, counted: bool = True) -> int:
        pieces = self._state.leases.cut(holder, first, end)
        fates.repay(self._state, holder, pieces)
        fates.give_back(self._state, pieces, reason, wall_ms, counted=counted)
        return sum(stop - start for start, stop, _ in pieces)

    def release_absent(self, owner_token: int, now_ms: int, wall_ms: int) -> None:
        """What is leased to other owners that have no consumer here is ready at once: they may not come back."""
        self._warm(now_ms)
        leases = self._state.leases
        for holder in [h for h in leases.holders.values() if h.consumer is None and h.token != owner_token]:
            self._return(holder, 0, ALL, Reason.CONSUMER_GONE, wall_ms)
            leases.drop_if_unused(holder)

    def gate(self, consumer_id: int | None, generation: int) -> bool:
        """Only this consumer is granted anything (None: nobody), for exclusive cohorts. False, and no change, if ``generation`` is older than the
        gate's."""
        if self._gate is not None and generation < self._gate[1]:
            return False
        self._gate = (consumer_id, generation)
        return True

    def ungate(self) -> None:
        """Any consumer may be granted messages."""
        self._gate = None

    def pause(self, paused: bool = True) -> None:
        """Stops or resumes granting; everything else goes on."""
        self.paused = paused

    # ------------------------------------------------------------ out

    def grant(self, now_ms: int, wall_ms: int) -> list[Grant]:
        """Leases ready messages to consumers with credit: highest priority first, oldest first, in equal shares."""
        state, ring = self._state, self._ring
        if self._cold or state.dues or state.expiring or state.expiries or state.spec.ttl_ms or state.spec.max_age_ms:
            self._advance(now_ms, wall_ms)
        if self._gate is not None:
            holder = state.leases.by_consumer.get(self._gate[0]) if self._gate[0] is not None else None
            ring = [holder] if holder is not None else []
        ready = state.ready_count
        if self.paused or not ring or not ready:
            return []
        turn = Round(state, ring, self._turn, now_ms)
        self._turn = turn.run(ready)
        return turn.grants

    def settle(
        self,
        consumer_id: int,
        action: int,
        ranges: Sequence[Range],
        *,
        up_to: bool = False,
        delay_ms: int | None = None,
        drop: bool = False,
        now_ms: int,
        wall_ms: int,
    ) -> Settled:
        """Ends leases of this consumer: ``action`` is a ``wire.frames.Settle``. ``up_to``: each range means all it holds below first + count (stale
        only if that is
        nothing). ``delay_ms`` None = the queue's back-off. Credit is given back at once."""
        if self._cold:
            self._warm(now_ms)
        state = self._state
        leases = state.leases
        holder = leases.by_consumer.get(consumer_id)
        if holder is None or action not in _ACTIONS:
            return Settled(0, list(ranges))
        consumer = holder.consumer
        acks = state.journal.acks
        settled = 0
        stale: list[Range] = []
        for first, count in ranges:
            end = first + count
            pieces = holder.leases.cut(0 if up_to else first, end)
            if not pieces:
                stale.append((first, count))
                continue
            found = 0
            for start, stop, lease in pieces:
                found += stop - start
                lease.left -= stop - start
            leases.count -= found
            settled += found
            if found != count and not up_to:
                stale += [(start, stop - start) for start, stop in gaps(pieces, first, end)]
            if action == 0:
                size = 0
                start, stop, _ = pieces[0]
                for low, high, _ in pieces:
                    if low > stop:
                        acks.append((start, stop))
                        size += state.settle(start, stop)
                        start = low
                    stop = high
                acks.append((start, stop))
                size += state.settle(start, stop)
                if consumer is not None and consumer.replenish:
                    consumer.credit.messages += found
                    consumer.credit.bytes += size
            else:
                fates.repay(state, holder, pieces)
                if action == Settle.RETRY:
                    fates.give_back(state, pieces, Reason.RETRY, wall_ms, delay_ms=delay_ms)
                else:
                    fates.reject(state, pieces, wall_ms, drop=drop)
        return Settled(settled, stale)

    def extend(self, consumer_id: int, ranges: Sequence[Range], lease_ms: int, now_ms: int) -> Settled:
        """Leases of this consumer end ``lease_ms`` (0 = its own) from now."""
        self._warm(now_ms)
        state = self._state
        holder = state.leases.by_consumer.get(consumer_id)
        if holder is None or holder.consumer is None:
            return Settled(0, list(ranges))
        lease_ms = min(max(lease_ms or holder.consumer.lease_ms or state.spec.lease_ms, LEASE_MS_MIN), LEASE_MS_MAX)
        extended, stale = 0, list[Range]()
        for first, count in ranges:
            pieces = state.leases.cut(holder, first, first + count)
            for start, stop, lease in pieces:
                state.leases.put(holder, start, stop, Lease(lease.owner_token, lease.attempt, lease_ms, now_ms + lease_ms, lease.first_failed_ms))
                state.journal.settle(Action.EXTEND, Reason.NONE, lease.attempt, start, stop, lease_ms)
                extended += stop - start
            stale += [(first, count)] if not pieces else [(start, stop - start) for start, stop in gaps(pieces, first, first + count)]
        return Settled(extended, stale)

    # ------------------------------------------------------------ records that must be opened

    def wants(self) -> Range | None:
        """Which messages must be opened before they can be granted (key order, filters), if any; answered with ``opened``."""
        if self._cold:
            self._open_eyes()
        lookahead = self._state.lookahead
        if lookahead is None or not self._ring or self.paused:
            return None
        return lookahead.wants()

    def opened(self, records: Sequence[tuple[int, bytes | None, Sequence[tuple[str, bytes]]]]) -> None:
        """Keys and headers of messages by offset."""
        if self._state.lookahead is not None:
            self._state.lookahead.open(records)

    # ------------------------------------------------------------ time

    def tick(self, now_ms: int, wall_ms: int) -> None:
        """Makes due what is due, expires leases and messages."""
        self._advance(now_ms, wall_ms)
        state = self._state
        for holder, pieces in state.leases.expired(now_ms):
            fates.repay(state, holder, pieces)
            fates.give_back(state, pieces, Reason.LEASE_EXPIRED, wall_ms)
            state.leases.drop_if_unused(holder)
        state.leases.trim()
        state.extents.forget(state.floor())

    def next_deadline_ms(self, now_ms: int, wall_ms: int) -> int | None:
        """When ``tick`` has something to do next (monotonic), None = never."""
        self._warm(now_ms)
        state = self._state
        best = state.leases.next_deadline_ms()
        due = state.next_due_ms() if state.dues else None
        expiry = self._expiry.next_ms(state, wall_ms) if state.expiring or state.expiries or state.spec.ttl_ms or state.spec.max_age_ms else None
        for wall_deadline_ms in (due, expiry):
            if wall_deadline_ms is not None:
                deadline_ms = now_ms + max(0, wall_deadline_ms - wall_ms)
                if best is None or deadline_ms < best:
                    best = deadline_ms
        return best

    def _advance(self, now_ms: int, wall_ms: int) -> None:
        """What wall time alone has changed."""
        if self._cold:
            self._warm(now_ms)
        state = self._state
        if state.dues:
            state.release_due(wall_ms)
        if state.expiring or state.expiries or state.spec.ttl_ms or state.spec.max_age_ms:
            for first, end in self._expiry.due(state, wall_ms):
                fates.bury_idle(state, state.cut_ready(first, end), Reason.EXPIRED, wall_ms)
                fates.bury_idle(state, state.cut_delayed(first, end), Reason.EXPIRED, wall_ms)


_ACTIONS = frozenset(int(action) for action in Settle)
