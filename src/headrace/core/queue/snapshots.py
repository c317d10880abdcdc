"""A queue partition's state as bytes and back (format version 1): a msgpack array of the lists below.

Leases keep owner, attempt and duration, never a deadline: they start anew. Extents are kept from the floor on.
"""

import msgspec

from headrace.core.queue.consumers import Transfer
from headrace.core.queue.extents import Extents
from headrace.core.queue.leases import Lease
from headrace.core.queue.state import State
from headrace.core.repartition.holding import Holding, Kept
from headrace.model.errors import Damaged
from headrace.model.specs import QueueSpec

VERSION = 1

Triple = tuple[int, int, int]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """All lists ascend. Ranges are (first, end, ...)."""

    end: int
    nbytes: int
    ready: list[tuple[int, int]]
    delayed: list[Triple]
    """(first, end, due wall ms)"""
    leases: list[tuple[int, int, int, int, int, int]]
    """(first, end, owner token, attempt, lease ms, first failure wall ms)"""
    attempts: list[tuple[int, int, int, int]]
    """(first, end, deliveries, first failure wall ms)"""
    priorities: list[Triple]
    expiries: list[Triple]
    extents: list[Triple]
    """(first, bytes below it, append wall ms) of each chunk"""
    extents_end: int
    total_bytes: int
    next_number: int
    transfers: list[Transfer]
    holding: Kept | None = None
    held: list[Triple] = []
    """(first, end, key slot)"""


def snapshot(state: State) -> bytes:
    """The state as bytes; equal states give equal bytes."""
    ready = sorted((first, end) for level in state.levels for first, end in level.ranges())
    leases: list[tuple[int, int, int, int, int, int]] = []
    for first, end, lease in state.leases:
        terms = (lease.owner_token, lease.attempt, lease.lease_ms, lease.first_failed_ms)
        if leases and leases[-1][1] == first and leases[-1][2:] == terms:
            leases[-1] = (leases[-1][0], end, *terms)
        else:
            leases.append((first, end, *terms))
    return msgspec.msgpack.encode(
        Snapshot(
            state.end,
            state.nbytes,
            ready,
            list(state.delayed),
            leases,
            [(first, end, *failures) for first, end, failures in state.attempts],
            list(state.priorities),
            list(state.expiries),
            state.extents.kept(state.floor()),
            state.extents.end,
            state.extents.total,
            state.transfers.next_number,
            [transfer for _, transfer in sorted(state.transfers.pending.items())],
            state.holding.kept(),
            list(state.held),
        )
    )


def restore(spec: QueueSpec, version: int, data: bytes) -> State:
    """A state from bytes, for a machine with these settings. ``Damaged`` if they are none or contradict themselves."""
    if version != VERSION:
        raise Damaged(f"a queue snapshot of version {version}; this release reads version {VERSION}")
    try:
        kept = msgspec.msgpack.decode(data, type=Snapshot)
        state = _state(spec, kept)
        state.check()
        state.transfers.check()
    except (msgspec.DecodeError, ValueError, OverflowError, AssertionError, IndexError) as e:
        raise Damaged(f"a queue snapshot that contradicts itself: {e}") from e
    return state


def _state(spec: QueueSpec, kept: Snapshot) -> State:
    state = State(spec)
    state.end, state.nbytes = kept.end, kept.nbytes
    state.extents = Extents.of(kept.extents, kept.extents_end, kept.total_bytes)
    for first, end, priority in kept.priorities:
        state.priorities.put(first, end, priority)
    state.holding = Holding.of(kept.holding)
    for first, end, slot in kept.held:
        state.held.put(first, end, slot)
    for first, end in kept.ready:
        state.make_ready(first, end)
    for first, end, due_ms in kept.delayed:
        state.make_delayed(first, end, due_ms)
    for first, end, attempts, failed_ms in kept.attempts:
        state.set_failures(first, end, attempts, failed_ms)
    for first, end, expires_ms in kept.expiries:
        state.set_expiry(first, end, expires_ms)
    for first, end, token, attempt, lease_ms, failed_ms in kept.leases:
        state.leases.put_restored(first, end, Lease(token, attempt, lease_ms, 0, failed_ms))
    for transfer in kept.transfers:
        state.transfers.add(transfer)
    state.transfers.next_number = max(state.transfers.next_number, kept.next_number)
    return state
