"""The cluster's documents: bytes and back, refusals with types, and what each level's members and quorums are."""

from contextlib import suppress

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given
from msgspec.structs import replace

from headrace.model.cluster import (
    FORMAT,
    Assignment,
    BrokerId,
    Forced,
    Incarnation,
    Placement,
    Registered,
    contradictions,
    decode,
    encode,
    partition_key,
    with_isr,
    with_learner_promoted,
    without_replica,
)
from headrace.model.errors import Damaged, Invalid, UnsupportedVersion
from headrace.model.ids import Epoch, Index, PartitionId

A, B, C, D = (BrokerId(name) for name in "abcd")
REPLICA = Assignment(
    partition=PartitionId(7), item="orders", owner=A, level="replica_durable", floor=2, replicas=(A, B, C), isr=(A, B, C), preferred=A
)
MAJORITY = replace(REPLICA, level="majority_durable", isr=())
LOCAL = replace(MAJORITY, level="local_durable", floor=1)
BROKER = Registered(id=A, name="one", incarnation=Incarnation("5f"), addresses={"native": "one:7580"}, rack="r1", host="h1", started_wall_ms=5)
DOCUMENTS = [REPLICA, MAJORITY, LOCAL, BROKER, Placement(), Placement(strategy="least_loaded", emptied=(B,))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_bytes_and_back(document: Assignment | Registered | Placement) -> None:
    assert decode(type(document), encode(document)) == document


def test_a_forced_election_is_kept() -> None:
    forced = Forced(epoch=Epoch(4), base=Index(10), base_epoch=Epoch(2), accepted_by="operator", without=(B, C))
    document = replace(REPLICA, epoch=Epoch(4), isr=(A,), forced=(forced,))
    assert decode(Assignment, encode(document)).forced == (forced,)


def test_a_newer_format_is_named() -> None:
    with pytest.raises(UnsupportedVersion, match="format 2"):
        decode(Placement, bytes((FORMAT + 1,)) + encode(Placement())[1:])


@pytest.mark.parametrize("data", [b"", b"\0", bytes((FORMAT,)), bytes((FORMAT,)) + msgspec.msgpack.encode({"unknown": 1}), encode(BROKER)])
def test_what_is_no_assignment_is_damage(data: bytes) -> None:
    with pytest.raises(Damaged):
        decode(Assignment, data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_typed_error(data: bytes) -> None:
    for kind in (Registered, Assignment, Placement):
        for sample in (data, bytes((FORMAT,)) + data):
            with suppress(Damaged, UnsupportedVersion):
                assert decode(kind, encode(decode(kind, sample))) == decode(kind, sample)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_never_makes_a_contradiction(at: int, byte: int) -> None:
    data = bytearray(encode(REPLICA))
    data[at % len(data)] = byte
    with suppress(Damaged, UnsupportedVersion):
        assert not contradictions(decode(Assignment, bytes(data)))


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (replace(REPLICA, owner=D), "owner is no replica"),
        (replace(REPLICA, isr=(B, C)), "not in sync"),
        (replace(REPLICA, replicas=(A, A, B, C)), "twice"),
        (replace(REPLICA, learners=(B,)), "learner is a replica"),
        (replace(REPLICA, isr=(A, B), elr=(C,)), "floor"),
        (replace(REPLICA, isr=(A,), elr=(A,)), "share"),
        (replace(REPLICA, leaving=(D,)), "no replica"),
        (replace(REPLICA, preferred=D), "preferred"),
        (replace(MAJORITY, isr=(A,)), "play no part"),
    ],
)
def test_a_contradiction_is_neither_written_nor_accepted(document: Assignment, word: str) -> None:
    with pytest.raises(Invalid, match=word):
        encode(document)
    with pytest.raises(Damaged, match=word):
        decode(Assignment, bytes((FORMAT,)) + msgspec.msgpack.encode(document))


def test_members_and_quorums_of_each_level_meet() -> None:
    assert (REPLICA.members, REPLICA.k, REPLICA.recovery_quorum) == ((A, B, C), 3, 1)
    assert (MAJORITY.members, MAJORITY.k, MAJORITY.recovery_quorum) == ((A, B, C), 2, 2)
    assert (LOCAL.members, LOCAL.k, LOCAL.electable) == ((A,), 1, (A,))
    for document in (REPLICA, MAJORITY, LOCAL):
        assert document.k + document.recovery_quorum > len(document.members)


def test_below_the_floor_the_last_members_stay_electable() -> None:
    two = with_isr(REPLICA, (A, B))
    assert (two.isr, two.elr) == ((A, B), ())
    one = with_isr(two, (B,))
    assert (one.isr, one.elr, one.electable) == ((B,), (A,), (B, A))
    assert with_isr(one, (B, C)).elr == ()


def test_a_learner_becomes_a_replica_and_another_leaves() -> None:
    moving = replace(REPLICA, learners=(D,), preferred=D)
    grown = with_learner_promoted(moving, D)
    assert (grown.replicas, grown.isr, grown.learners) == ((A, B, C, D), (A, B, C, D), ())
    left = without_replica(replace(grown, leaving=(C,)), C)
    assert (left.replicas, left.isr, left.leaving) == ((A, B, D), (A, B, D), ())
    assert with_learner_promoted(replace(MAJORITY, learners=(D,)), D).isr == ()


def test_keys_sort_as_partitions_do() -> None:
    numbers = [0, 9, 10, 2**32, 2**63]
    assert sorted(partition_key(PartitionId(n)) for n in reversed(numbers)) == [partition_key(PartitionId(n)) for n in numbers]
