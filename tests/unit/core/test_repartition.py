"""Key slots, what is held for whom, what is behind, and the phases of a change."""

import pytest

from headrace.core.partitioner import key_slot, murmur2, partition_for
from headrace.core.repartition import slots
from headrace.core.repartition.behind import Behind, Stand
from headrace.core.repartition.change import Stands, next_phase, waits_for
from headrace.core.repartition.holding import EVERYBODY, Holding
from headrace.wire.journal import RoutingBegun, RoutingFreed

KEYS = [f"key-{n}".encode() for n in range(3000)]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 3), (2, 3), (3, 2), (4, 8), (8, 4), (6, 9), (5, 1), (7, 16), (12, 18)])
def test_every_key_that_moves_lies_in_a_slot_that_does(before: int, after: int) -> None:
    for key in KEYS:
        source, target = partition_for(key, before), partition_for(key, after)
        slot = slots.slot_of(key_slot(key))
        assert source == target or slots.moving(source, target, before, after) >> slot & 1


def test_between_powers_of_two_no_other_slot_moves() -> None:
    moved = {(s, t): slots.moving(s, t, 4, 8) for s in range(4) for t in range(8)}
    assert {pair for pair, mask in moved.items() if mask} == {(s, s + 4) for s in range(4)}
    assert sum(slots.count(mask) for mask in moved.values()) == slots.SLOTS // 2


def test_a_key_slot_is_never_0() -> None:
    zero = next(key for n in range(1 << 20) if not murmur2(key := str(n).encode()) & 0xFFFF)
    assert key_slot(zero) == 0x8000
    assert slots.slot_of(key_slot(zero)) == 0


def test_sets_of_slots_are_packed() -> None:
    for mask in (0, 1, slots.ALL, 1 << 1023, 0b1011):
        assert slots.unpack(slots.pack(mask)) == mask
    assert slots.members(0b1011) == [0, 1, 3]


def begun(number: int = 1, version: int = 2) -> Holding:
    holding = Holding()
    assert holding.begin(RoutingBegun(version, number, 1, 2, 100))
    return holding


def test_a_slot_is_free_once_every_source_has_let_go_of_it() -> None:
    holding = Holding()
    holding.begin(RoutingBegun(2, 0, 3, 2, 10))
    assert set(holding.waiting) == {1, 2}
    both = holding.waiting[1] & holding.waiting[2]
    assert both
    assert not holding.free(RoutingFreed(2, 1)) & both
    assert holding.free(RoutingFreed(2, 2)) & both == both
    assert not holding.mask


def test_what_is_said_of_another_version_or_again_changes_nothing() -> None:
    holding = begun()
    assert not holding.free(RoutingFreed(1, 0))
    assert not holding.free(RoutingFreed(3, 0))
    assert holding.free(RoutingFreed(2, 0, slots.pack(0b10)))
    assert not holding.free(RoutingFreed(2, 0, slots.pack(slots.ALL)))
    assert not holding.begin(RoutingBegun(2, 1, 1, 4, 0))
    assert holding.mask == 0b10


def test_only_messages_with_a_key_from_the_cut_on_are_held() -> None:
    holding = begun()
    assert holding.holds(1, 100)
    assert not holding.holds(1, 99)
    assert not holding.holds(0, 100)
    assert not holding.holds(2, 100), "slot 2 stays in partition 0"


def test_force_frees_all() -> None:
    holding = begun()
    assert holding.free(RoutingFreed(2, EVERYBODY))
    assert not holding.waiting


def test_what_is_kept_is_the_same_again() -> None:
    holding = begun()
    holding.free(RoutingFreed(2, 0, slots.pack(0b1000)))
    again = Holding.of(holding.kept())
    assert (again.version, again.number, again.before, again.after, again.cut) == (2, 1, 1, 2, 100)
    assert again.waiting == holding.waiting
    assert again.mask == holding.mask
    assert Holding().kept() is None


def test_a_delayed_message_is_asked_about_again() -> None:
    behind = Behind()
    behind.add(5, range(10, 13))
    behind.add(0, range(13, 20))
    stand = {10: Stand.SETTLED, 11: Stand.LATER, 12: Stand.SETTLED}
    assert behind.slots(lambda o: stand[o]) == 0
    stand[11] = Stand.IN_HAND
    assert behind.slots(lambda o: stand[o]) == 1 << 5
    stand[11] = Stand.SETTLED
    assert behind.slots(lambda o: stand[o]) == 0
    assert behind.slots(lambda o: pytest.fail("nothing is left to be asked about")) == 0


def test_phases_follow_each_other_when_nothing_is_waited_for() -> None:
    assert next_phase(Stands(phase="announced", arriving=1)) == "announced"
    assert next_phase(Stands(phase="announced", arriving=1, force=True)) == "cutting"
    assert next_phase(Stands(phase="announced")) == "cutting"
    assert next_phase(Stands(phase="cutting", uncut=1)) == "cutting"
    assert next_phase(Stands(phase="cutting", uncut=1, force=True)) == "cutting", "what is not fenced cannot be forced"
    assert next_phase(Stands(phase="cutting")) == "draining"
    for left in ({"holding": 1}, {"retiring": 1}, {"kept_ms": 1}, {"uncut": 1}):
        stands = Stands(phase="draining", **left)
        assert next_phase(stands) == "draining"
        assert waits_for(stands)
    assert next_phase(Stands(phase="draining")) == "done"
    assert not waits_for(Stands(phase="draining"))
