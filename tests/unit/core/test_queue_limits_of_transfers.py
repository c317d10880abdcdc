"""What is moved into a queue with limits: it cannot be divided, so it must not wait for room that there never is."""

from headrace.core.queue import QueueMachine
from headrace.model.errors import QueueFull
from headrace.model.specs import QueueSpec


def test_an_empty_partition_takes_a_transfer_beyond_its_limits_and_no_publish() -> None:
    machine = QueueMachine(QueueSpec(max_messages=3, overflow="refuse"))
    assert isinstance(machine.admit(29, 2900, 0), QueueFull)
    assert machine.admit(29, 2900, 0, whole=True) is None
    machine.enqueue(0, 29, 2900, wall_ms=0, now_ms=0)
    assert isinstance(machine.admit(1, 100, 0), QueueFull)
    assert isinstance(machine.admit(1, 100, 0, whole=True), QueueFull), "only an empty one does"


def test_what_was_admitted_and_is_not_enqueued_counts() -> None:
    machine = QueueMachine(QueueSpec(max_messages=3, overflow="refuse"))
    assert machine.admit(1, 100, 0) is None
    assert isinstance(machine.admit(29, 2900, 0, whole=True), QueueFull)
