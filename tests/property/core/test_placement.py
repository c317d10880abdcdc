"""Placement: stable hashes, few moves when brokers come and go, even loads, spread over racks and hosts, distinct brokers for one queue, caps."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given
from msgspec.structs import replace

from headrace.core.control.picture import Item, Picture, Seen
from headrace.core.control.placement import Band, band, collisions
from headrace.core.control.planning import plan
from headrace.core.control.rehearsal import applied, rehearse
from headrace.core.control.ring import ring_order, stable_hash
from headrace.model.cluster import Assignment, BrokerId, Incarnation, Placement, Registered
from headrace.model.ids import PartitionId
from headrace.model.specs import Durability
from tests.property.effort import effort

STRATEGIES = ["consistent_hash", "round_robin", "least_loaded"]


def brokers(count: int, racks: int = 0, hosts: int = 0) -> tuple[Seen, ...]:
    return tuple(
        Seen(
            registered=Registered(
                id=BrokerId(f"b{n:02}"),
                name=f"b{n:02}",
                incarnation=Incarnation("1"),
                rack=f"r{n % racks}" if racks else "",
                host=f"h{n % hosts}" if hosts else "",
            ),
            swim="alive",
        )
        for n in range(count)
    )


def items(queues: int, partitions: int, factor: int) -> tuple[Item, ...]:
    level: Durability = "replica_durable" if factor > 1 else "majority_durable"
    return tuple(Item(f"id{q}", f"q{q}", tuple(PartitionId(q * partitions + p) for p in range(partitions)), level, 1, factor) for q in range(queues))


def placed(seen: tuple[Seen, ...], wanted: tuple[Item, ...], settings: Placement) -> Picture:
    picture = Picture(now_ms=10**6, brokers=seen, items=wanted, settings=settings)
    return applied(picture, plan(picture).changes)


def assignments(picture: Picture) -> list[Assignment]:
    return [s.assignment for s in picture.stored]


def loads(picture: Picture) -> Counter[BrokerId]:
    return Counter(b for a in assignments(picture) for b in a.replicas)


def settled(picture: Picture) -> tuple[Picture, int]:
    """The picture once nothing more is planned, and how many copies moved on the way."""
    before = {(a.partition, b) for a in assignments(picture) for b in a.replicas}
    _, picture = rehearse(picture)
    after = {(a.partition, b) for a in assignments(picture) for b in a.replicas}
    return picture, len(after - before)


@given(st.text(max_size=30))
def test_the_hash_is_a_number_of_64_bits(text: str) -> None:
    assert 0 <= stable_hash(text) < 1 << 64


def test_the_hash_is_the_same_in_every_process_and_release() -> None:
    assert stable_hash("") == 0xE4A6A0577479B2B4
    assert stable_hash("orders/0") == 0x52764D0AF027E39D
    assert ring_order(tuple(BrokerId(b) for b in "abc"), 150, "orders/0") == ("c", "b", "a")


def test_without_loads_only_what_the_newcomer_takes_has_another_first_choice() -> None:
    few, more = (tuple(BrokerId(f"b{n}") for n in range(count)) for count in (5, 6))
    keys = [f"q/{n}" for n in range(2000)]
    moved = [key for key in keys if ring_order(few, 150, key)[0] != ring_order(more, 150, key)[0]]
    assert all(ring_order(more, 150, key)[0] == "b5" for key in moved)
    assert 0.7 / 6 < len(moved) / len(keys) < 1.3 / 6


@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(100, 199))
def test_a_band_holds_an_even_share(total: int, count: int, percent: int) -> None:
    bounds = band(Placement(load_percent=percent), total, count)
    assert 0 <= bounds.low <= total // count <= -(-total // count) <= bounds.high
    assert bounds.low * count <= total <= bounds.high * count


def test_nobody_to_place_on() -> None:
    assert band(Placement(), 7, 0) == Band(0, 0)


@effort(60)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.sampled_from(STRATEGIES))
def test_loads_are_even_and_nothing_is_left_to_do(count: int, queues: int, partitions: int, factor: int, strategy: str) -> None:
    picture = placed(brokers(count), items(queues, partitions, factor), Placement(strategy=strategy))  # type: ignore[arg-type]
    after, moved = settled(picture)
    assert moved <= queues * partitions * factor // 20 + 2, "what was just placed moves again"
    assert not plan(after).changes
    assert all(len(set(a.replicas)) == min(factor, count) for a in assignments(after))
    bounds = band(picture.settings, sum(loads(after).values()), count)
    assert partitions > 1 or all(bounds.low <= loads(after)[b.id] <= bounds.high for b in picture.brokers)


@effort(60)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 3), st.sampled_from(STRATEGIES))
def test_a_queue_uses_every_broker_before_any_twice(count: int, partitions: int, factor: int, strategy: str) -> None:
    picture = placed(brokers(count), items(1, partitions, factor), Placement(strategy=strategy))  # type: ignore[arg-type]
    owners = Counter(a.owner for a in assignments(picture))
    assert max(owners.values()) - min(owners[b.id] for b in picture.brokers) <= 1


@effort(60)
@given(st.integers(2, 9), st.integers(0, 4), st.integers(0, 9), st.integers(1, 30), st.integers(2, 3))
def test_copies_lie_on_distinct_racks_then_hosts(count: int, racks: int, hosts: int, queues: int, factor: int) -> None:
    assume(count >= factor)
    seen = brokers(count, racks, hosts)
    picture = placed(seen, items(queues, 1, factor), Placement())
    places = {b.id: b.registered for b in seen}
    for a in assignments(picture):
        used = {places[b].rack or b for b in a.replicas}
        there = {b.registered.rack or b.id for b in seen}
        assert len(used) == min(factor, len(there))
    after, _ = settled(picture)
    for old, new in zip(assignments(picture), assignments(after), strict=True):
        assert collisions(places[b] for b in new.replicas) <= collisions(places[b] for b in old.replicas)


@effort(25)
@given(st.integers(3, 8), st.integers(30, 80), st.integers(1, 3), st.sampled_from(STRATEGIES))
def test_a_broker_that_joins_is_given_its_share_and_no_more_moves(count: int, queues: int, factor: int, strategy: str) -> None:
    picture = placed(brokers(count), items(queues, 1, factor), Placement(strategy=strategy))  # type: ignore[arg-type]
    picture, _ = settled(picture)
    after, moved = settled(replace(picture, brokers=brokers(count + 1)))
    total = queues * factor
    ideal = total / (count + 1)
    newcomer = brokers(count + 1)[-1].id
    bounds = band(picture.settings, total, count + 1)
    assert bounds.low <= loads(after)[newcomer] <= bounds.high
    needed = max(bounds.low, sum(max(0, load - bounds.high) for load in loads(picture).values()))
    assert moved <= needed + count, f"{moved} moved, {needed} needed"
    assert moved >= 0.9 * ideal - 1
    assert sum(1 for a in assignments(after) if a.owner == newcomer) <= band(picture.settings, queues, count + 1).high


@effort(25)
@given(st.integers(4, 8), st.integers(30, 80), st.integers(2, 3))
def test_a_broker_that_leaves_moves_only_what_it_had(count: int, queues: int, factor: int) -> None:
    picture, _ = settled(placed(brokers(count), items(queues, 1, factor), Placement()))
    gone = picture.brokers[0].id
    dead = replace(picture.brokers[0], present=False, swim="dead", probe_failed=True, since_ms=0)
    had = loads(picture)[gone]
    after, moved = settled(replace(picture, brokers=(dead, *picture.brokers[1:])))
    assert gone not in loads(after)
    assert had <= moved <= had + count
    assert all(len(a.replicas) == factor for a in assignments(after))


@effort(40)
@given(st.integers(1, 5), st.integers(1, 10), st.integers(1, 30), st.integers(1, 3))
def test_the_cap_is_never_exceeded_and_refusals_say_why(count: int, cap: int, queues: int, factor: int) -> None:
    settings = Placement(copies_per_broker_max=cap)
    picture = Picture(now_ms=10**6, brokers=brokers(count), items=items(queues, 1, factor), settings=settings)
    made = plan(picture)
    after = applied(picture, made.changes)
    assert all(load <= cap for load in loads(after).values())
    refused = {f.partition for f in made.findings if f.kind == "refused"}
    assert refused == {i.partitions[0] for i in picture.items} - {a.partition for a in assignments(after)}
    assert all(f"cap of {cap} copies" in f.reason for f in made.findings)
    assert not refused or all(loads(after)[b.id] == cap for b in picture.brokers)
    raised, _ = settled(replace(after, settings=Placement()))
    assert all(len(a.replicas) == min(factor, count) for a in assignments(raised))
    assert len(raised.stored) == queues


@pytest.mark.parametrize("rebalance", [True, False])
def test_a_paused_balance_moves_nothing(rebalance: bool) -> None:
    picture, _ = settled(placed(brokers(3), items(30, 1, 2), Placement()))
    more = replace(picture, brokers=brokers(4), settings=Placement(rebalance=rebalance))
    assert bool(plan(more).changes) == rebalance


def test_moves_are_bounded_at_any_time() -> None:
    picture, _ = settled(placed(brokers(3), items(30, 1, 2), Placement(moves_in_flight_max=2)))
    picture = replace(picture, brokers=brokers(4))
    for _ in range(5):
        picture = applied(picture, plan(picture).changes)
        assert sum(len(a.learners) for a in assignments(picture)) <= 2
