"""Which copies a broker of a cluster takes up although nobody uses them."""

import pytest
from msgspec.structs import replace

from headrace.broker.catalogue import Item
from headrace.broker.dormant import Dormant
from headrace.model.cluster import Assignment, BrokerId
from headrace.model.ids import PartitionId
from headrace.model.specs import QueueSpec

A, B, C, D = (BrokerId(name) for name in "abcd")
IDLE = Assignment(partition=PartitionId(7), item="orders", owner=A, level="replica_durable", floor=2, replicas=(A, B, C), isr=(A, B, C))
SPEC = QueueSpec(replication_factor=3, durability="replica_durable", min_in_sync_replicas=2)
ITEM = Item(name="orders", kind="queue", id="x", partitions=(7,), queue=SPEC)


def nothing(pid: int) -> bool:
    """There is nothing to do for it."""
    return False


@pytest.mark.parametrize(
    ("document", "spec", "owners", "followers"),
    [
        (IDLE, SPEC, False, False),
        (replace(IDLE, learners=(D,)), SPEC, True, False),
        (replace(IDLE, leaving=(C,)), SPEC, True, False),
        (replace(IDLE, isr=(A, B)), SPEC, True, False),
        (replace(IDLE, isr=(A,), elr=(B,)), SPEC, True, False),
        (IDLE, replace(SPEC, min_in_sync_replicas=1), True, False),
        (replace(IDLE, level="majority_durable", isr=()), replace(SPEC, durability="majority_durable"), False, False),
    ],
)
def test_only_who_can_change_something_takes_it_up(document: Assignment, spec: QueueSpec, owners: bool, followers: bool) -> None:
    item = replace(ITEM, queue=spec)
    for me, wanted in ((A, owners), (B, followers)):
        assert Dormant(me, nothing).note(document, item) is wanted
    late = Dormant(A, nothing)
    assert late.note(IDLE, None) is False
    assert late.declared(7, item) is (spec is not SPEC and spec.durability == "replica_durable") or document.level == "majority_durable"


def test_what_the_store_has_something_to_do_for_is_taken_up_by_all() -> None:
    for me in (A, B):
        assert Dormant(me, lambda pid: pid == 7).note(IDLE, ITEM)


def test_a_copy_that_is_given_to_others_is_forgotten() -> None:
    dormant = Dormant(C, nothing)
    dormant.note(IDLE, ITEM)
    assert (dormant.document(7), dormant.owned(7)) == (IDLE, False)
    assert dormant.note(replace(IDLE, replicas=(A, B), isr=(A, B)), ITEM) is False
    assert dormant.document(7) is None
    assert dormant.take(7) is None
