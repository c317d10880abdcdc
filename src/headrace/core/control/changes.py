"""What a plan consists of: changes, findings, and the transactions that carry the changes to the coordinator.

Owns their shapes and the batching. Every change is decided on one stored version of one partition, and every transaction compares the key of the
controller too: of two controllers, or of a controller and an owner, one wins and the other reads again.

Invariants: C1 a plan changes a partition at most once. C2 a change raises the document's version by one and lowers neither epoch nor generation.
C3 a transaction has at most ``OPERATIONS_MAX`` operations, comparisons counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from headrace.model.cluster import CONTROLLER_KEY, REASON_CHARACTERS_MAX, Assignment, BrokerId, contradictions, encode, partition_key
from headrace.model.ids import PartitionId

OPERATIONS_MAX = 128
PARTITIONS_PER_TRANSACTION = (OPERATIONS_MAX - 1) // 2

Act = Literal["assign", "takeover", "handover", "restore", "copy", "leave", "drop", "keep", "prefer", "force", "delete"]
"""assign a new partition; replace a dead owner; move ownership off a live one; give it back to the preferred one; add a learner (and name the replica
it comes for); ask a replica to leave; drop a learner; let a replica stay after all; choose another preferred owner; elect with accepted loss; remove
a deleted partition's assignment."""

Kind = Literal["unavailable", "refused", "under_replicated", "stays", "unknown", "frozen"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One compare-and-swap. ``assignment`` None removes the document; ``stored_version`` 0 = there must be none."""

    act: Act
    partition: PartitionId
    stored_version: int
    assignment: Assignment | None
    reason: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What cannot be done now, and why. ``waits_for``: the brokers whose return would help."""

    kind: Kind
    partition: PartitionId | None
    reason: str
    waits_for: tuple[BrokerId, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Changes in the order in which they matter. ``look_again_ms``: when time alone may make another plan of the same picture."""

    changes: tuple[Change, ...] = ()
    findings: tuple[Finding, ...] = ()
    look_again_ms: int | None = None


class Transaction(msgspec.Struct, frozen=True):
    """Keys with the version each must have (0 = absent), and what to write where (None removes)."""

    expected: Mapping[str, int]
    puts: Mapping[str, bytes | None]
    changes: tuple[Change, ...]


def changed(old: Assignment, new: Assignment, *, act: Act, stored_version: int, reason: str) -> Change:
    """The change from ``old`` to ``new``, with the reason and the next version in the document."""
    new = replace(new, version=old.version + 1, reason=reason[:REASON_CHARACTERS_MAX])
    assert not contradictions(new), contradictions(new)
    assert new.epoch >= old.epoch and new.generation >= old.generation and new.partition == old.partition
    assert new.owner == old.owner or new.epoch > old.epoch
    return Change(act=act, partition=old.partition, stored_version=stored_version, assignment=new, reason=reason)


def transactions(changes: Sequence[Change], controller_version: int) -> Iterator[Transaction]:
    """``changes`` in order, as few transactions as the bound allows. ``controller_version``: of the controller's key as this controller wrote it."""
    for at in range(0, len(changes), PARTITIONS_PER_TRANSACTION):
        yield transaction(changes[at : at + PARTITIONS_PER_TRANSACTION], controller_version)


def transaction(changes: Sequence[Change], controller_version: int) -> Transaction:
    """One transaction of at most ``PARTITIONS_PER_TRANSACTION`` changes. When it fails, its halves tell which partition another has changed."""
    assert 0 < len(changes) <= PARTITIONS_PER_TRANSACTION and controller_version > 0
    expected = {CONTROLLER_KEY: controller_version}
    puts: dict[str, bytes | None] = {}
    for change in changes:
        key = partition_key(change.partition)
        assert key not in puts
        expected[key] = change.stored_version
        puts[key] = None if change.assignment is None else encode(change.assignment)
    return Transaction(expected, puts, tuple(changes))
