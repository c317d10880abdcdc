"""Decisions of a plan, one by one: who takes over and who never does, how copies are made and given up, when owners go back."""

import pytest
from msgspec.structs import replace

from headrace.core.control.changes import Change, Plan, transaction
from headrace.core.control.picture import Item, Picture, item_of
from headrace.core.control.planning import plan
from headrace.core.control.rehearsal import applied, rehearse
from headrace.model.cluster import CONTROLLER_KEY, NOBODY, Assignment, partition_key, with_isr
from headrace.model.ids import PartitionId
from headrace.model.specs import QueueSpec, StreamSpec
from tests.unit.core.control.clusters import NOW, A, B, C, D, E, P, dead, owned, picture, seen


def only(made: Plan) -> Change:
    (change,) = made.changes
    return change


def written(change: Change) -> Assignment:
    assert change.assignment is not None
    return change.assignment


def test_a_new_partition_is_owned_copied_and_in_sync() -> None:
    change = only(plan(picture(None)))
    new = written(change)
    assert (change.act, change.stored_version, new.version, new.epoch) == ("assign", 0, 1, 1)
    assert set(new.isr) == {A, B, C}
    assert new.owner == new.preferred == new.replicas[0]
    assert new.incarnation == f"life-{new.owner}"
    assert change.reason.startswith("partition 0 of orders is new and broker-")


def test_without_a_live_broker_a_new_partition_waits() -> None:
    made = plan(picture(None, dead(A), dead(B), seen(C, draining=True)))
    assert not made.changes
    assert made.findings[0].kind == "unavailable"


def test_a_dead_owner_is_replaced_by_one_in_sync_in_the_next_epoch() -> None:
    change = only(plan(picture(owned(), dead(A))))
    new = written(change)
    assert change.act == "takeover"
    assert (new.owner, new.epoch, new.version, change.stored_version) == (B, 2, 8, 70)
    assert (new.isr, new.elr, new.incarnation) == ((B, C), (), "life-b")
    assert change.reason == (
        "broker-b owns partition 0 of orders from epoch 2 because broker-a is dead (gossip says dead and the controller's own probe failed) "
        "and broker-b is in sync"
    )
    assert not plan(applied(picture(owned(), dead(A)), (change,))).changes


def test_below_the_floor_the_dead_stay_electable() -> None:
    new = written(only(plan(picture(with_isr(owned(), (A, B)), dead(A)))))
    assert (new.owner, new.isr, new.elr) == (B, (B,), (A,))


def test_the_last_in_sync_takes_over_when_the_isr_is_dead() -> None:
    new = written(only(plan(picture(with_isr(with_isr(owned(), (A, B)), (A,)), dead(A)))))
    assert (new.owner, new.isr, new.elr) == (B, (B,), (A,))


def test_a_replica_out_of_sync_never_takes_over() -> None:
    made = plan(picture(with_isr(owned(floor=1), (A, B)), dead(A), dead(B)))
    assert not made.changes
    (finding,) = made.findings
    assert (finding.kind, finding.waits_for) == ("unavailable", (A, B))
    assert "waits for one of broker-a, broker-b (broker-c may lack confirmed messages)" in finding.reason


def test_a_damaged_copy_never_takes_over_and_is_electable_no_more() -> None:
    made = plan(picture(owned(floor=3), dead(A), seen(B, unfit=frozenset({P}))))
    new = written(only(made))
    assert (new.owner, new.isr, new.elr) == (C, (C,), (A,))


def test_an_owner_in_doubt_keeps_its_partition() -> None:
    assert not plan(picture(owned(), seen(A, swim="dead"))).changes


@pytest.mark.parametrize(("gone", "taken"), [((A,), True), ((A, B), False)])
def test_a_majority_takes_over_while_it_can_recover(gone: tuple[str, ...], taken: bool) -> None:
    made = plan(picture(owned("majority_durable"), *(dead(b) for b in gone)))  # type: ignore[arg-type]
    assert bool(made.changes) == taken
    if not taken:
        assert "1 of its 3 replicas live and 2 are needed" in made.findings[0].reason


def test_an_owner_without_a_majority_says_so_and_nothing_moves() -> None:
    made = plan(picture(owned("majority_durable"), dead(B, ms=400_000), dead(C, ms=400_000), seen(D)))
    assert not made.changes
    (finding,) = made.findings
    assert (finding.kind, finding.waits_for) == ("unavailable", (B, C))


@pytest.mark.parametrize("what", ["dead", "draining", "emptied", "unfit"])
def test_a_local_partition_is_never_served_elsewhere(what: str) -> None:
    broker = {"dead": dead(A, ms=900_000), "draining": seen(A, draining=True), "unfit": seen(A, unfit=frozenset({P}))}.get(what, seen(A))
    made = plan(picture(owned("local_durable", floor=1), broker, settings={"emptied": (A,) if what == "emptied" else ()}))
    assert all(written(c).owner == A and written(c).epoch == 1 for c in made.changes)
    assert [f.kind for f in made.findings] == {"dead": ["unavailable"], "unfit": ["unavailable"], "emptied": ["stays"]}.get(what, [])


def test_owners_leave_a_draining_broker_first_and_copies_stay() -> None:
    change = only(plan(picture(owned(), seen(A, draining=True), seen(D))))
    assert change.act == "handover"
    assert written(change).isr == (A, B, C)
    assert "because broker-a drains" in change.reason


def test_nobody_drains_to_another_that_drains() -> None:
    made = plan(picture(owned(), *(seen(b, draining=True) for b in (A, B, C))))
    assert not made.changes
    assert [f.kind for f in made.findings] == ["stays"]


def test_an_emptied_broker_ends_without_owners_and_copies() -> None:
    changes, after = rehearse(picture(owned(), seen(D), settings={"emptied": (A,)}))
    (stored,) = after.stored
    assert set(stored.assignment.replicas) == {B, C, D}
    assert [c.act for c in changes][:2] == ["handover", "copy"]


def test_a_returning_broker_is_given_nothing_for_a_while() -> None:
    back = seen(C, returned=True, since_ms=NOW - 9_999)
    lacking = owned(replicas=(A, B), isr=(A, B))
    made = plan(picture(lacking, back))
    assert not made.changes
    assert made.look_again_ms == NOW + 1
    assert written(only(plan(picture(lacking, replace(back, since_ms=NOW - 10_000))))).learners == (C,)


def test_a_returning_broker_takes_over_only_if_no_other_can() -> None:
    back = seen(B, returned=True, since_ms=NOW - 1_000)
    assert written(only(plan(picture(owned(preferred=B), dead(A), back)))).owner == C
    assert written(only(plan(picture(owned(), dead(A), back, dead(C))))).owner == B


def test_a_missing_copy_is_made_by_a_learner() -> None:
    change = only(plan(picture(owned(replicas=(A, B), isr=(A, B)))))
    assert (change.act, written(change).learners, written(change).isr) == ("copy", (C,), (A, B))
    assert change.reason == "broker-c copies partition 0 of orders, which has 2 of 3 copies"


def test_a_dead_copy_is_made_elsewhere_only_after_a_while() -> None:
    held = with_isr(owned(), (A, B))
    soon = picture(held, dead(C, ms=299_999), seen(D))
    assert not plan(soon).changes
    new = written(only(plan(replace(soon, now_ms=NOW + 1))))
    assert (new.learners, new.leaving, new.replicas) == ((D,), (C,), (A, B, C))
    _, after = rehearse(replace(soon, now_ms=NOW + 1))
    assert set(after.stored[0].assignment.replicas) == {A, B, D}


def test_a_partition_that_nobody_serves_holds_up_no_other() -> None:
    stuck = owned(partition=PartitionId(2), owner=E, replicas=(E,), isr=(E,), preferred=E, learners=(B,))
    lacking = owned(replicas=(A, B), isr=(A, B))
    base = picture(lacking, dead(E), settings={"moves_in_flight_max": 1})
    items = (replace(base.items[0], partitions=(P, stuck.partition)),)
    made = plan(replace(base, items=items, stored=(*base.stored, replace(base.stored[0], assignment=stuck))))
    assert written(only(made)).learners == (C,)


def test_a_learner_that_dies_is_dropped_and_who_should_have_left_stays() -> None:
    moving = owned(learners=(D,), leaving=(C,), preferred=A)
    new = written(only(plan(picture(moving, dead(D)))))
    assert (new.learners, new.leaving) == ((), ())


def test_a_surplus_copy_leaves_but_not_the_owner() -> None:
    new = written(only(plan(picture(owned(), factor=2))))
    assert len(new.leaving) == 1
    assert A not in new.leaving


def test_no_copy_leaves_that_the_floor_needs() -> None:
    assert not plan(picture(owned(floor=3), factor=2)).changes


def test_the_owner_hands_over_before_its_copy_leaves() -> None:
    change = only(plan(picture(owned(leaving=(A,), replicas=(A, B, C, D), isr=(A, B, C, D), preferred=D), seen(D))))
    assert change.act == "handover"
    assert written(change).owner == D


@pytest.mark.parametrize(
    ("broker", "recent", "back"),
    [
        (seen(A, returned=True, since_ms=NOW - 30_000), (), True),
        (seen(A, returned=True, since_ms=NOW - 29_999), (), False),
        (seen(A), (), True),
        (seen(A, draining=True), (), False),
        (seen(A, swim="suspect"), (), False),
        (seen(A, doubted_ms=NOW - 9_999), (), False),
        (seen(A, doubted_ms=NOW - 10_000), (), True),
        (seen(A), (NOW - 999,) * 8, False),
        (seen(A), (NOW - 1_000,) * 8, True),
    ],
)
def test_preferred_owners_are_restored_gradually(broker: object, recent: tuple[int, ...], back: bool) -> None:
    made = plan(picture(owned(owner=B), broker, recent_handovers_ms=recent))  # type: ignore[arg-type]
    assert [c.act for c in made.changes] == (["restore"] if back else [])


def test_it_is_looked_again_when_a_preferred_owner_has_been_well_for_long_enough() -> None:
    assert plan(picture(owned(owner=B), seen(A, doubted_ms=NOW - 4_000))).look_again_ms == NOW + 6_000


def test_who_was_in_doubt_takes_over_and_is_given_what_is_new() -> None:
    """Only to go back to it can wait."""
    doubted = seen(B, doubted_ms=NOW - 1)
    assert written(only(plan(picture(owned(), dead(A), doubted, dead(C))))).owner == B
    assert B in written(only(plan(picture(None, doubted)))).replicas


def test_a_preferred_owner_out_of_sync_waits() -> None:
    assert not plan(picture(with_isr(owned(owner=B), (B, C)))).changes


def test_a_pause_stops_comfort_but_not_repair() -> None:
    paused = {"rebalance": False}
    assert not plan(picture(owned(owner=B), settings=paused)).changes
    assert plan(picture(owned(), dead(A), settings=paused)).changes
    assert plan(picture(owned(replicas=(A, B), isr=(A, B)), settings=paused)).changes


def test_a_lost_preference_is_given_to_another() -> None:
    assert only(plan(picture(owned(preferred=NOBODY)))).act == "prefer"


def test_only_a_recorded_deletion_removes_an_assignment() -> None:
    orphan = replace(picture(owned()), items=())
    made = plan(orphan)
    assert not made.changes
    assert made.findings[0].kind == "unknown"
    change = only(plan(replace(orphan, deleted=frozenset({P}))))
    assert (change.act, change.assignment) == ("delete", None)
    sent = transaction([change], 3)
    assert sent.expected == {CONTROLLER_KEY: 3, partition_key(P): 70}
    assert sent.puts == {partition_key(P): None}


def test_a_dead_owners_partitions_go_to_several() -> None:
    ids = tuple(PartitionId(n) for n in range(10))
    base = picture(None, dead(A))
    stored = tuple(replace(applied(picture(owned(partition=n)), ()).stored[0]) for n in ids)
    many = Picture(now_ms=NOW, items=(Item("id", "orders", ids, "replica_durable", 2, 3),), brokers=base.brokers, stored=stored)
    owners = [written(c).owner for c in plan(many).changes]
    assert sorted(owners) == [B] * 5 + [C] * 5


def test_ephemeral_streams_have_one_copy_that_goes_nowhere() -> None:
    assert item_of("i", "s", (P,), StreamSpec(tier="ephemeral", replication_factor=3)) == Item("i", "s", (P,), "local_durable")
    spec = QueueSpec(replication_factor=3, durability="replica_durable", min_in_sync_replicas=2)
    assert item_of("i", "q", (P,), spec) == Item("i", "q", (P,), "replica_durable", 2, 3)


def test_a_dry_run_shows_every_step_with_its_reason_and_changes_nothing() -> None:
    start = picture(owned(), dead(A, ms=400_000), seen(D), seen(E))
    changes, after = rehearse(start)
    assert [c.act for c in changes][:2] == ["takeover", "copy"]
    assert all(c.reason for c in changes)
    assert A not in after.stored[0].assignment.copies
    assert start.stored[0].assignment == owned()
