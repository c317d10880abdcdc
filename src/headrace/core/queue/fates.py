"""What becomes of messages that leave a lease, run out of time or must make room: ready again, delayed, dead-lettered or dropped, each journalled.

Rules: a counted return at ``max_deliveries`` or past the expiry buries the message; burying is dead-lettering if the queue names where to, else
dropping. A message's first failure is journalled as the time of a RETURN, so a first failure with a delay writes a RETURN and a DELAY.
"""

from collections.abc import Sequence

from headrace.core.queue.consumers import Taken
from headrace.core.queue.expiry import expiries
from headrace.core.queue.leases import Holder, Piece
from headrace.core.queue.state import State
from headrace.model.limits import DELAY_MS_MAX
from headrace.wire.journal import Action, Reason


def charge(state: State, holder: Holder) -> None:
    """Takes the credit of what a consumer's token leases already from its window: it is given back like that of any other."""
    consumer = holder.consumer
    if consumer is not None and consumer.replenish:
        size = state.extents.size
        restored = ((first, end) for first, end, lease in state.leases.restored if lease.owner_token == holder.token)
        for first, end in (*((first, end) for first, end, _ in holder.leases), *restored):
            consumer.credit.messages -= end - first
            consumer.credit.bytes -= size(first, end)


def repay(state: State, holder: Holder, pieces: Sequence[Piece]) -> None:
    """Gives a consumer's window the credit of ``pieces`` back."""
    consumer = holder.consumer
    if consumer is not None and consumer.replenish:
        size = state.extents.size
        for first, end, _ in pieces:
            consumer.credit.messages += end - first
            consumer.credit.bytes += size(first, end)


def backoff_ms(state: State, attempts: int) -> int:
    """The queue's delay after delivery number ``attempts`` failed."""
    steps = state.spec.backoff_ms
    return steps[min(attempts, len(steps)) - 1] if steps else 0


def give_back(state: State, pieces: Sequence[Piece], reason: Reason, wall_ms: int, *, counted: bool = True, delay_ms: int | None = 0) -> None:
    """Leased messages (already out of their holder's hands) return. ``counted``: that delivery counts; ``delay_ms`` None = the queue's back-off."""
    attempts_max = state.spec.max_deliveries
    for first, end, lease in pieces:
        attempts = lease.attempt if counted else lease.attempt - 1
        failed_ms = lease.first_failed_ms or (wall_ms if counted else 0)
        if counted and attempts_max and attempts >= attempts_max:
            bury(state, first, end, (attempts, failed_ms), Reason.MAX_DELIVERIES, wall_ms)
            continue
        delay = min(backoff_ms(state, attempts) if delay_ms is None else delay_ms, DELAY_MS_MAX)
        for start, stop, expires_ms in expiries(state, first, end):
            if expires_ms <= wall_ms:
                bury(state, start, stop, (attempts, failed_ms), Reason.EXPIRED, wall_ms)
                continue
            state.set_failures(start, stop, attempts, failed_ms)
            if delay <= 0:
                state.journal.settle(Action.RETURN, reason, attempts, start, stop, failed_ms)
                state.make_ready(start, stop)
                continue
            if not lease.first_failed_ms:
                state.journal.settle(Action.RETURN, reason, attempts, start, stop, failed_ms)
            state.journal.settle(Action.DELAY, reason, attempts, start, stop, wall_ms + delay)
            state.make_delayed(start, stop, wall_ms + delay)


def reject(state: State, pieces: Sequence[Piece], wall_ms: int, *, drop: bool) -> None:
    """A consumer refused leased messages for good."""
    for first, end, lease in pieces:
        bury(state, first, end, (lease.attempt, lease.first_failed_ms or wall_ms), Reason.REJECTED, wall_ms, drop=drop)


def bury(state: State, first: int, end: int, failures: tuple[int, int], reason: Reason, wall_ms: int, *, drop: bool = False) -> None:
    """Dead-letters (or drops) messages that are in no state any more."""
    attempts, failed_ms = failures
    if state.spec.dead_letter and not drop:
        state.transfers.gather(state.spec.dead_letter, reason, Taken(first, end - first, attempts, failed_ms), wall_ms)
    else:
        state.journal.settle(Action.DROP, reason, attempts, first, end, wall_ms)
    state.settle(first, end)


def bury_idle(state: State, pieces: Sequence[tuple[int, int]], reason: Reason, wall_ms: int, *, drop: bool = False) -> int:
    """The same for messages just taken from the ready or the delayed; returns how many."""
    count = 0
    for first, end in pieces:
        count += end - first
        for start, stop, failures in state.failures(first, end):
            bury(state, start, stop, failures, reason, wall_ms, drop=drop)
    return count
