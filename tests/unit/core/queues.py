"""Starting positions for tests of the queue machine."""

from collections.abc import Sequence

from headrace.core.queue import Consumer, Credit, QueueMachine, Settled
from headrace.model.specs import QueueSpec
from headrace.wire.frames import Settle


def given(count: int = 0, spec: QueueSpec | None = None, *, nbytes: int = 0) -> QueueMachine:
    """A machine that holds ``count`` ready messages."""
    machine = QueueMachine(spec or QueueSpec())
    if count:
        machine.enqueue(0, count, nbytes or count * 10, wall_ms=0, now_ms=0)
    return machine


def given_consumer(machine: QueueMachine, id: int = 1, *, credit: int = 100, nbytes: int = 1 << 60, lease_ms: int = 0) -> Consumer:
    """An attached consumer."""
    consumer = Consumer(id, owner_token=id + 1000, credit=Credit(credit, nbytes), lease_ms=lease_ms)
    machine.attach(consumer)
    return consumer


def ended(
    machine: QueueMachine,
    ranges: Sequence[tuple[int, int]],
    action: Settle = Settle.ACK,
    *,
    wall_ms: int = 0,
    delay_ms: int | None = None,
    drop: bool = False,
) -> Settled:
    """Consumer 1 settles."""
    return machine.settle(1, action, ranges, delay_ms=delay_ms, drop=drop, now_ms=wall_ms, wall_ms=wall_ms)


def replayed(machine: QueueMachine, onto: QueueMachine) -> QueueMachine:
    """``onto`` after the entries that ``machine`` has written."""
    for kind, payload in machine.take_journal():
        onto.replay(kind, payload)
    onto.check()
    return onto
