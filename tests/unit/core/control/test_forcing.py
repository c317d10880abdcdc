"""Forced election: shown, accepted, recorded; refused while it is needless or not what was accepted."""

import pytest
from msgspec.structs import replace

from headrace.core.control.forcing import Acceptance, Risk, Tail, force, risk
from headrace.core.control.picture import Picture
from headrace.model.cluster import Assignment, BrokerId, decode, encode, with_isr
from headrace.model.errors import Conflict, NotFound
from headrace.model.ids import Epoch, Index, PartitionId
from tests.unit.core.control.clusters import A, B, C, D, P, dead, owned, picture, seen


def tail(broker: BrokerId, index: int, *, epoch: int = 1, promised: int = 1) -> Tail:
    return Tail(broker, Epoch(epoch), Index(index), Epoch(promised))


STUCK = picture(with_isr(owned(floor=1), (A, B)), dead(A), dead(B))
TAILS = (tail(C, 40, promised=6),)


def forced(shown: Picture, chosen: BrokerId, tails: tuple[Tail, ...]) -> Assignment:
    at_risk = risk(shown, P, chosen, tails)
    change = force(shown, at_risk, Acceptance(version=at_risk.version, chosen=chosen, accepted_by="ops"), tails)
    assert change.assignment is not None
    assert (change.act, change.stored_version) == ("force", 70)
    assert decode(Assignment, encode(change.assignment)) == change.assignment
    return change.assignment


def test_what_would_be_lost_is_shown() -> None:
    shown = risk(STUCK, P, C, (*TAILS, tail(B, 50)))
    assert shown.given_up == (A, B)
    assert shown.reason == (
        "broker-c holds partition 0 of orders up to entry 40 of epoch 1; whatever only broker-a holds beyond that is lost, confirmed messages too; "
        "broker-b holds entries up to 50 of epoch 1, which would be set aside"
    )


def test_the_election_is_recorded_above_every_promised_epoch() -> None:
    new = forced(STUCK, C, TAILS)
    assert (new.owner, new.epoch, new.isr, new.elr, new.incarnation) == (C, 7, (C,), (), "life-c")
    (record,) = new.forced
    assert (record.epoch, record.base, record.base_epoch, record.accepted_by, record.without) == (7, 40, 1, "ops", (A, B))


def test_a_majority_starts_again_from_the_one_that_is_left() -> None:
    new = forced(picture(owned("majority_durable"), dead(A), dead(B)), C, TAILS)
    assert (new.members, new.k, set(new.learners)) == ((C,), 1, {A, B})


def test_a_warm_copy_of_a_local_partition_and_a_learner_may_be_forced() -> None:
    new = forced(picture(owned("local_durable", floor=1, replicas=(A, B), learners=(C,)), dead(A)), C, TAILS)
    assert (new.owner, new.members, new.learners) == (C, (C,), ())


@pytest.mark.parametrize("acceptance", [Acceptance(version=6, chosen=C, accepted_by="ops"), Acceptance(version=7, chosen=B, accepted_by="ops")])
def test_only_what_was_shown_can_be_accepted(acceptance: Acceptance) -> None:
    with pytest.raises(Conflict, match="has changed since"):
        force(STUCK, risk(STUCK, P, C, TAILS), acceptance, TAILS)


def test_what_changed_since_it_was_shown_is_not_forced() -> None:
    shown = risk(STUCK, P, C, TAILS)
    later = replace(STUCK, stored=(replace(STUCK.stored[0], assignment=replace(STUCK.stored[0].assignment, version=8)),))
    with pytest.raises(Conflict):
        force(later, shown, Acceptance(version=7, chosen=C, accepted_by="ops"), TAILS)


@pytest.mark.parametrize(
    ("shown", "chosen", "word"),
    [
        (picture(owned(), dead(A)), C, "can serve"),
        (picture(owned("majority_durable"), dead(A)), C, "can serve"),
        (STUCK, D, "no copy"),
        (STUCK, B, "cannot be asked"),
        (picture(with_isr(owned(floor=1), (A, B)), dead(A), dead(B), seen(C, unfit=frozenset({P}))), C, "damaged"),
    ],
)
def test_it_is_refused_where_it_is_needless_or_impossible(shown: Picture, chosen: BrokerId, word: str) -> None:
    with pytest.raises(Conflict, match=word):
        risk(shown, P, chosen, (tail(B, 50), tail(C, 40)))


def test_a_partition_nobody_knows() -> None:
    with pytest.raises(NotFound):
        risk(STUCK, PartitionId(9), C, TAILS)


def test_a_risk_is_a_value() -> None:
    assert risk(STUCK, P, C, TAILS) == Risk(partition=P, version=7, chosen=C, given_up=(A, B), reason=risk(STUCK, P, C, TAILS).reason)
