"""Whose turn it is to be taken in as a whole."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cluster.replication.intake import COMING_IN_MAX, Intake


class World:
    """Copies that wait for a place; ``gone``: those that do not want one any more when their turn comes."""

    def __init__(self) -> None:
        self.intake = Intake()
        self.waiting: dict[int, bool] = {}
        self.turns: list[int] = []
        self.gone: set[int] = set()

    def enter(self, pid: int, *, owned: bool = False) -> bool:
        self.waiting.pop(pid, None)
        entered = self.intake.enter(pid, partial(self._turn, pid, owned), owned=owned)
        if not entered:
            self.waiting[pid] = owned
        return entered

    def _turn(self, pid: int, owned: bool) -> None:
        before = self.waiting.pop(pid)
        assert before == owned, "what it said last counts"
        assert owned or True not in self.waiting.values(), "Y2"
        self.turns.append(pid)
        assert pid in self.gone or self.enter(pid, owned=owned)

    def leave(self, pid: int) -> None:
        self.waiting.pop(pid, None)
        self.intake.leave(pid)


@pytest.fixture
def world() -> World:
    """No place is free."""
    world = World()
    assert all(world.enter(pid) for pid in range(COMING_IN_MAX))
    return world


def test_the_next_one_has_its_turn_as_soon_as_a_place_is_free(world: World) -> None:
    assert [world.enter(pid) for pid in (10, 11, 12)] == [False] * 3
    world.leave(2)
    assert world.turns == [10]
    world.leave(10)
    world.leave(0)
    assert world.turns == [10, 11, 12]


def test_what_nobody_serves_until_it_is_here_comes_first(world: World) -> None:
    world.enter(10)
    world.enter(11)
    world.enter(12, owned=True)
    world.enter(11, owned=True)  # it was given to this broker meanwhile
    for pid in range(3):
        world.leave(pid)
    assert world.turns == [12, 11, 10]


def test_who_does_not_want_a_place_any_more_leaves_it_to_the_next(world: World) -> None:
    world.gone = {10, 11}
    for pid in (10, 11, 12, 13):
        world.enter(pid)
    world.leave(12)
    world.leave(0)
    assert world.turns == [10, 11, 13]


def test_who_has_a_place_keeps_it(world: World) -> None:
    world.enter(10)
    assert world.enter(3)
    assert world.turns == []


def test_in_the_end_nobody_has_a_turn(world: World) -> None:
    world.enter(10)
    world.enter(11, owned=True)
    world.intake.close()
    world.leave(0)
    assert world.turns == []


@given(st.lists(st.tuples(st.sampled_from(["enter", "own", "leave", "gone"]), st.integers(0, 12)), max_size=80))
def test_no_place_is_free_while_somebody_waits(steps: list[tuple[str, int]]) -> None:
    world = World()
    for what, pid in steps:
        if what == "leave":
            world.leave(pid)
        elif what == "gone":
            world.gone.add(pid)
        else:
            world.gone.discard(pid)
            world.enter(pid, owned=what == "own")
        places = world.intake.places
        assert len(places) <= COMING_IN_MAX
        assert not world.waiting or len(places) == COMING_IN_MAX, "Y1"
        assert not places.keys() & world.waiting.keys()
