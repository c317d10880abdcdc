"""Commit quorums, recovery quorums, and both of two configurations while a change is in flight: all assignments of up to five brokers."""

from collections.abc import Iterator
from itertools import combinations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from headrace.core.replica.configuration import NEVER, committed, configuration, majority, only_fewer, recorded
from headrace.model.cluster import Assignment, BrokerId, contradictions
from headrace.model.ids import PartitionId
from tests.property.effort import effort

NAMES = tuple(BrokerId(n) for n in "abcde")


def assignments() -> Iterator[Assignment]:
    for count in range(1, 6):
        replicas = NAMES[:count]
        for floor in range(1, count + 1):
            for level in ("local_durable", "majority_durable"):
                yield Assignment(partition=PartitionId(1), item="q", owner=NAMES[0], level=level, floor=floor, replicas=replicas)  # type: ignore[arg-type]
            for size in range(1, count + 1):
                for isr in combinations(replicas, size):
                    others = [b for b in replicas if b not in isr]
                    for left in range(len(others) + 1):
                        made = Assignment(
                            partition=PartitionId(1), item="q", owner=isr[0], level="replica_durable", floor=floor, replicas=replicas, isr=isr,
                            elr=tuple(others[:left]),
                        )  # fmt: skip
                        if not contradictions(made):
                            yield made


ALL = list(assignments())


@pytest.mark.parametrize("level", ["local_durable", "majority_durable", "replica_durable"])
def test_a_recovery_quorum_shares_a_replica_with_every_commit_quorum(level: str) -> None:
    for a in ALL:
        if a.level != level:
            continue
        required = configuration(a)
        # an elr is only kept while nothing is committed: whatever was, was held by isr and elr together
        members = required.members if not a.elr else recorded(a)
        k = required.k if not a.elr else len(members)
        for holders in combinations(members, k):
            for asked in combinations(recorded(a), a.recovery_quorum):
                assert set(holders) & set(asked), a


@given(st.sampled_from(ALL), st.sampled_from(ALL), st.lists(st.integers(1, 9), min_size=5, max_size=5))
@effort(300)
def test_what_both_configurations_hold_each_of_them_holds(one: Assignment, other: Assignment, ends: list[int]) -> None:
    held = dict(zip(NAMES, ends, strict=True)).__getitem__
    end = committed([configuration(one), configuration(other)], held)
    for a in (one, other):
        required = configuration(a)
        if required.frozen:
            assert end == NEVER
        elif end != NEVER:
            assert sum(held(b) >= end for b in required.members) >= required.k
            alone = committed([required], held)
            assert alone >= end
            assert sum(held(b) > alone for b in required.members) < required.k


@given(st.sampled_from(ALL), st.lists(st.integers(1, 9), min_size=5, max_size=5))
@effort(200)
def test_more_than_half_of_the_replicas_hold_what_a_majority_does(a: Assignment, ends: list[int]) -> None:
    held = dict(zip(NAMES, ends, strict=True)).__getitem__
    end = majority(a, held)
    assert sum(held(b) >= end for b in a.replicas) * 2 > len(a.replicas)
    assert sum(held(b) > end for b in a.replicas) * 2 <= len(a.replicas)


def test_below_the_floor_and_with_an_elr_nothing_is_committed() -> None:
    for a in ALL:
        assert configuration(a).frozen == (a.level == "replica_durable" and (len(a.isr) < a.floor or bool(a.elr)))


@given(st.sampled_from(ALL), st.sampled_from(ALL))
@effort(300)
def test_only_who_was_recorded_stays_when_members_only_leave(old: Assignment, new: Assignment) -> None:
    if only_fewer(old, new):
        assert set(recorded(new)) <= set(recorded(old))
