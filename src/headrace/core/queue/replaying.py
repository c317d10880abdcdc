"""Journal entries applied to the books without any effect: at start, and at a follower.

An entry only moves messages that are not settled, wherever they are. So a settlement needs no earlier lease, and replaying entries that a snapshot
already holds changes nothing in the end (I18 holds for any overlap of snapshot and tail, as long as the tail is replayed to its end).
"""

from headrace.core.queue.leases import Lease
from headrace.core.queue.state import State
from headrace.model.errors import Malformed
from headrace.wire.journal import Action, Kind, TransferDone, TransferStart, unpack_leases, unpack_routing, unpack_settlements, unpack_transfer


def replay(state: State, kind: int, payload: bytes) -> None:
    """Applies one entry; kinds that are not a queue's business are ignored. Raises ``Malformed`` on bytes that are no such entry."""
    if kind == Kind.LEASE:
        for first, count, attempt, lease_ms, owner_token in unpack_leases(payload):
            _lease(state, first, min(first + count, state.end), attempt, lease_ms, owner_token)
    elif kind == Kind.SETTLEMENT:
        for action, _reason, attempts, count, first, when_ms in unpack_settlements(payload):
            _settlement(state, action, attempts, first, min(first + count, state.end), when_ms)
    elif kind == Kind.ROUTING:
        state.routed(unpack_routing(payload))
    elif kind == Kind.TRANSFER:
        entry = unpack_transfer(payload)
        if isinstance(entry, TransferDone):
            state.transfers.done(entry.number)
        elif isinstance(entry, TransferStart):
            transfer = state.transfers.replay_start(entry)
            if transfer is not None:
                for taken in transfer.ranges:
                    _settle(state, taken.first, min(taken.first + taken.count, state.end))


def _take(state: State, first: int, end: int) -> list[tuple[int, int, int]]:
    """Takes all that is unsettled of a range out of its state, each part with the time of its first failure."""
    taken = [(start, stop, lease.first_failed_ms) for start, stop, lease in state.leases.cut_any(first, end)] if state.leases.count else []
    idle = state.cut_ready(first, end)
    if state.delayed:
        idle += state.cut_delayed(first, end)
    for start, stop in idle:
        taken += [(low, high, failed_ms) for low, high, (_, failed_ms) in state.failures(start, stop)]
        if state.attempts:
            state.attempts.cut(start, stop)
    return taken


def _settle(state: State, first: int, end: int) -> None:
    for start, stop, _ in _take(state, first, end):
        state.settle(start, stop)


def _lease(state: State, first: int, end: int, attempt: int, lease_ms: int, owner_token: int) -> None:
    for start, stop, failed_ms in _take(state, first, end):
        state.leases.put_restored(start, stop, Lease(owner_token, attempt, lease_ms, 0, failed_ms))


def _settlement(state: State, action: int, attempts: int, first: int, end: int, when_ms: int) -> None:
    if action in (Action.ACK, Action.DROP, Action.PURGE, Action.TRANSFERRED):
        _settle(state, first, end)
    elif action in (Action.RETURN, Action.DELAY):
        for start, stop, failed_ms in _take(state, first, end):
            state.set_failures(start, stop, attempts, failed_ms or (when_ms if action == Action.RETURN else 0))
            if action == Action.RETURN:
                state.make_ready(start, stop)
            else:
                state.make_delayed(start, stop, when_ms)
    elif action == Action.EXTEND:
        for start, stop, lease in state.leases.cut_any(first, end):
            state.leases.put_restored(start, stop, Lease(lease.owner_token, lease.attempt, when_ms, 0, lease.first_failed_ms))
    else:
        raise Malformed(f"settlement with the unknown action {action}")
