"""Groups: shares, graces, standbys, fencing, the two phases of cooperative moves, and what survives."""

import msgspec
import pytest

from headrace.core.assignment import STRATEGIES, Strategy, assign
from headrace.core.groups import Assignment, Group
from headrace.model import limits
from headrace.model.errors import Damaged, Invalid, LimitExceeded
from headrace.wire.journal import Kind


def shares(group: Group) -> dict[str, tuple[int, ...]]:
    group.check()
    found = {}
    for member in group.members():
        assignment = group.assignment(member)
        assert assignment is not None
        found[member] = assignment.partitions
    return found


def joined(partition_count: int, members: str, strategy: Strategy = "sticky", **settings: int) -> Group:
    group = Group(partition_count, strategy=strategy, **settings)
    for member in members:
        group.join(member)
        for waiting in members:
            group.released(waiting, group.generation)
    return group


# ---------------------------------------------------------------- strategies


def test_range_gives_blocks() -> None:
    assert assign("range", 7, ["a", "b", "c"], []) == ["a", "a", "a", "b", "b", "c", "c"]


def test_round_robin_deals() -> None:
    assert assign("round_robin", 7, ["a", "b", "c"], []) == ["a", "b", "c", "a", "b", "c", "a"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_degenerate_shares(strategy: Strategy) -> None:
    assert assign(strategy, 3, [], ["a"]) == [None] * 3
    assert assign(strategy, 0, ["a"], []) == []
    assert assign(strategy, 2, ["a"], []) == ["a", "a"]
    assert sorted(str(m) for m in assign(strategy, 2, ["a", "b", "c"], [])) == ["a", "b"]


def test_sticky_moves_only_what_balance_needs() -> None:
    assert assign("sticky", 6, ["a", "b"], ["a"] * 6) == ["a", "a", "a", "b", "b", "b"]
    assert assign("sticky", 6, ["a", "c"], ["a", "b", "a", "b", "b", "a"]) == ["a", "c", "a", "c", "c", "a"]
    assert assign("sticky", 5, ["a", "b"], ["b", "b", "b", "a", "a"]) == ["b", "b", "b", "a", "a"], "the larger share stays where it is"


# ---------------------------------------------------------------- members


def test_the_first_gets_all_and_gives_some_to_the_second() -> None:
    group = Group(4)
    assert group.join("a") == [Assignment("a", 1, (0, 1, 2, 3))]
    assert group.join("b") == [Assignment("a", 2, (0, 1), (2, 3)), Assignment("b", 2, (2, 3))], "losers first"
    assert group.holder(3) == ("b", 2)
    assert group.holder(4) is None


def test_leaving_frees_at_once() -> None:
    group = joined(4, "ab")
    assert group.leave("a") == [Assignment("b", 3, (0, 1, 2, 3))]
    assert group.leave("a") == []
    group.leave("b")
    assert len(group) == 0
    assert group.holder(0) is None
    group.check()


def test_more_members_than_partitions_stand_by_and_take_over() -> None:
    group = joined(2, "abcd")
    assert shares(group) == {"a": (0,), "b": (1,), "c": (), "d": ()}
    assert group.standby() == ["c", "d"]
    assert group.leave("a") == [Assignment("c", 5, (0,))]
    assert group.standby() == ["d"]


def test_target_limits_who_is_served() -> None:
    group = joined(4, "abc", target=2)
    assert shares(group) == {"a": (0, 1), "b": (2, 3), "c": ()}
    told = group.configure(target=3)
    assert [a.member for a in told if a.revoked] == ["b"]
    assert sorted(len(s) for s in shares(group).values()) == [1, 1, 2]
    assert group.configure(target=3) == []


def test_a_lost_connection_moves_nothing_within_the_grace() -> None:
    group = joined(4, "ab", grace_ms=10_000, reconnect_grace_ms=5_000)
    group.suspend("a", 1_000)
    assert group.next_deadline_ms() == 6_000
    assert group.tick(5_999) == []
    assert group.join("a", now_ms=5_999) == [Assignment("a", 2, (0, 1))]
    assert group.next_deadline_ms() is None
    group.suspend("a", 7_000)
    assert group.tick(12_000) == [Assignment("b", 3, (0, 1, 2, 3))]
    assert group.fence(2, "a")


def test_a_static_member_takes_its_seat_again_under_another_id() -> None:
    group = Group(4, grace_ms=10_000)
    group.join("c1", "left")
    group.join("c2", "right")
    group.suspend("c1", 0)
    assert group.tick(9_999) == []
    assert group.join("c3", "left", 9_999) == [Assignment("c3", 3, (0, 1))]
    assert group.assignment("c2") == Assignment("c2", 2, (2, 3)), "nothing moves"
    assert group.fence(2, "c1")
    assert not group.fence(3, "c3")


def test_a_second_holder_of_a_static_name_fences_the_first() -> None:
    group = Group(2)
    group.join("c1", "one")
    assert group.join("c2", "one") == [Assignment("c1", 2, (), (0, 1)), Assignment("c2", 2, (0, 1))]
    assert group.fence(1, "c1")
    assert group.fence(2, "c1")
    assert group.leave("c1") == []
    group.check()


def test_joining_twice_is_no_change() -> None:
    group = joined(4, "ab")
    assert group.join("a") == [Assignment("a", 2, (0, 1))]
    assert group.generation == 2


def test_what_cannot_join() -> None:
    group = Group(2)
    group.join("a", "one")
    group.join("b", "two")
    for member, name in (("a", "three"), ("b", "one"), ("", ""), ("x", "bad\nname"), ("b", "")):
        with pytest.raises(Invalid):
            group.join(member, name)
        group.check()
    for n in range(limits.GROUP_MEMBERS_MAX - 2):
        group.join(str(n))
    with pytest.raises(LimitExceeded):
        group.join("too many")


def test_zombies_are_those_without_a_seat_or_with_an_older_share() -> None:
    group = joined(4, "ab")
    assert group.fence(1, "a")
    assert not group.fence(2, "a")
    assert group.fence(3, "a"), "no generation comes from the future"
    assert group.fence(2, "nobody")
    group.join("c")
    changed = [m for m in "ab" if group.fence(2, m)]
    assert changed == ["b"], "who lost nothing goes on under the generation it knows"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_repartition(strategy: Strategy) -> None:
    group = joined(4, "ab", strategy)
    group.configure(partition_count=6)
    group.tick(1 << 40)
    assert sorted(p for s in shares(group).values() for p in s) == [0, 1, 2, 3, 4, 5]
    told = group.configure(partition_count=1)
    group.tick(1 << 40)
    assert {p for a in told for p in a.revoked} >= {1, 2, 3, 4, 5}
    assert shares(group) in ({"a": (0,), "b": ()}, {"a": (), "b": (0,)})


# ---------------------------------------------------------------- cooperative


def test_cooperative_moves_in_two_phases() -> None:
    group = joined(4, "a", "cooperative")
    assert group.join("b") == [Assignment("a", 2, (0, 1), (2, 3)), Assignment("b", 2, ())]
    assert group.holder(2) is None
    assert group.tick(1) == []
    assert group.released("a", 1) == [], "it answers an older assignment"
    assert group.released("b", 2) == []
    assert group.released("a", 2) == [Assignment("b", 3, (2, 3))]
    assert group.holder(2) == ("b", 3)
    assert group.released("a", 2) == []


def test_a_release_that_never_comes_is_not_waited_for() -> None:
    group = Group(2, strategy="cooperative", revoke_timeout_ms=100)
    group.join("a", now_ms=0)
    group.join("b", now_ms=50)
    assert group.next_deadline_ms() == 150
    assert group.tick(149) == []
    assert group.tick(150) == [Assignment("b", 3, (1,))]


def test_leaving_and_losing_the_connection_release() -> None:
    group = joined(2, "a", "cooperative")
    group.join("b")
    assert group.leave("a") == [Assignment("b", 3, (0, 1))]
    group.join("c")
    group.suspend("b", 5)
    assert group.tick(5) == [Assignment("c", 5, (1,))]
    group.check()


def test_a_partition_may_come_back_to_who_is_giving_it_up() -> None:
    group = joined(2, "a", "cooperative")
    group.join("b")
    assert group.leave("b") == []
    assert group.holder(1) is None
    assert group.released("a", 2) == [Assignment("a", 4, (0, 1))]


def test_leaving_the_cooperative_strategy_ends_the_waiting() -> None:
    group = joined(2, "a", "cooperative")
    group.join("b")
    assert group.configure(strategy="sticky") == [Assignment("b", 3, (1,))]


# ---------------------------------------------------------------- what survives


def test_a_restored_group_gives_everybody_the_old_seat_within_the_grace() -> None:
    group = Group(4, grace_ms=100, reconnect_grace_ms=50)
    group.join("a")
    group.join("b", "static")
    (kind, payload), *rest = group.take_journal()
    assert kind == Kind.GROUP
    assert rest == []
    assert group.take_journal() == []
    other = Group(1, grace_ms=100, reconnect_grace_ms=50)
    other.replay(kind, payload, 1_000)
    other.replay(Kind.CONFIG, b"")
    assert shares(other) == shares(group)
    assert other.snapshot() == group.snapshot()
    assert other.next_deadline_ms() == 1_050
    assert other.join("a", now_ms=1_010) == [Assignment("a", 2, (0, 1))]
    assert other.tick(1_100) == [Assignment("a", 3, (0, 1, 2, 3))]


def test_what_was_on_the_move_arrives_after_a_restore() -> None:
    group = joined(2, "a", "cooperative")
    group.join("b")
    other = Group(1)
    other.restore(1, group.snapshot(), 10)
    other.check()
    assert other.tick(10) == [Assignment("b", 3, (1,))]


def test_damaged_snapshots_are_refused() -> None:
    good = msgspec.msgpack.decode(joined(2, "ab").snapshot())
    bad = [b"", b"\xc1", msgspec.msgpack.encode(1)]
    for place, value in ((2, -1), (2, 1 << 40), (2, 3), (1, 1), (4, -1), (6, [1, 9]), (6, [2, 1]), (3, "fancy")):
        changed = list(good)
        changed[place] = value
        bad.append(msgspec.msgpack.encode(changed))
    for place, value in ((0, 2), (1, "b"), (4, [0, 1]), (4, [7])):
        changed = msgspec.msgpack.decode(msgspec.msgpack.encode(good))
        changed[5][0][place] = value
        bad.append(msgspec.msgpack.encode(changed))
    group = joined(1, "z")
    for data in bad:
        with pytest.raises(Damaged):
            group.restore(1, data)
    with pytest.raises(Damaged, match="version"):
        group.restore(2, group.snapshot())
    assert shares(group) == {"z": (0,)}


def test_the_view() -> None:
    group = joined(2, "a", "cooperative")
    group.join("b", "static")
    group.join("c")
    group.suspend("b", 0)
    view = group.view()
    assert [m["state"] for m in view["members"]] == ["serving", "suspended", "standby"]
    assert view["moving"] == {1: 1}


# ---------------------------------------------------------------- partitions that are served elsewhere


def test_with_handover_nothing_moves_before_it_was_given_up() -> None:
    group = Group(2, handover=True, revoke_timeout_ms=100)
    group.join("a")
    assert group.join("b") == [Assignment("a", 2, (0,), (1,)), Assignment("b", 2, ())]
    assert group.holder(1) is None
    assert group.released("a", 1) == []
    assert group.released("a", 2) == [Assignment("b", 3, (1,))]
    group.check()


def test_with_handover_who_is_away_is_waited_for() -> None:
    group = Group(2, handover=True, reconnect_grace_ms=50, revoke_timeout_ms=1_000)
    group.join("a")
    group.suspend("a", 0)
    group.join("b", now_ms=10)
    assert group.tick(49) == []
    assert group.holder(1) is None
    assert group.tick(50) == [Assignment("b", 3, (0, 1))]
    group.check()


def test_with_handover_who_does_not_answer_is_waited_for_no_longer_than_allowed() -> None:
    group = Group(2, handover=True, revoke_timeout_ms=100)
    group.join("a")
    group.join("b", now_ms=10)
    assert group.tick(109) == []
    assert group.tick(110) == [Assignment("b", 3, (1,))]


def test_what_was_to_be_given_up_is_waited_for_by_the_next_home_too() -> None:
    group = Group(2, handover=True)
    group.join("a")
    group.join("b")
    other = Group(1, handover=True, reconnect_grace_ms=5_000, revoke_timeout_ms=30_000)
    other.restore(1, group.snapshot(), 10)
    other.check()
    assert other.tick(11) == []
    assert other.join("a", now_ms=12) == [Assignment("a", 2, (0,))]
    other.join("b", now_ms=12)
    assert other.released("a", 2, 13) == [Assignment("b", 3, (1,))]
    other.check()


def test_a_group_that_begins_above_a_generation_tells_a_later_one_to_who_comes_back() -> None:
    group = Group(2)
    group.join("here", now_ms=0)
    group.join("away", now_ms=0)
    group.suspend("away", 0)
    group.take_journal()
    group.begin_above(1)
    assert not group.take_journal(), "it was there already"
    group.begin_above(9)
    group.check()
    assert group.take_journal()
    here, [back] = group.assignment("here"), group.join("away", now_ms=1)
    assert here is not None
    assert here.generation < 9
    assert (back.generation, len(back.partitions)) == (9, 1)
    assert group.join("new", now_ms=1)[-1].generation == 10


def test_what_is_being_given_up_is_the_same_after_a_restore() -> None:
    for handover in (False, True):
        group = Group(2, strategy="cooperative", handover=handover)
        group.join("a", now_ms=0)
        group.join("b", now_ms=0)
        data = group.snapshot()
        again = Group(0, handover=handover)
        again.restore(1, data, 5)
        again.check()
        assert again.snapshot() == data
        assert bool(again.tick(6)) is not handover, "of a lone broker nobody is left to say that it gave something up"
