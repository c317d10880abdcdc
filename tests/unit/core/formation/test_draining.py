"""Who leaves is emptied, each time that he leaves; who is listed again before that is left alone."""

import pytest

from headrace.core.formation import effects
from headrace.sim.formation import world
from headrace.sim.formation.play import Play, declared

THREE, TWO = ["a", "b", "c"], ["a", "b"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Of whom it was asked for, by anybody."""
    found: list[tuple[str, ...]] = []

    def drain(self: world.World, broker: world.Broker, effect: effects.Drain) -> None:
        found.append(effect.names)
        if slow not in effect.names:
            world.World._drain(self, broker, effect)

    monkeypatch.setitem(world._DO, effects.Drain, drain)
    return found


slow = ""


def test_a_member_that_leaves_twice_is_emptied_twice(asked: list[tuple[str, ...]]) -> None:
    play = Play(1, "abc")
    play.formed("abc", declared(1, THREE))
    for version in (2, 4):
        asked.clear()
        play.feed("a", declared(version, TWO))
        play.expect("c is removed", lambda: play.state("c", effects.State.REMOVED))
        assert ("c",) in asked
        play.feed("a", declared(version + 1, THREE))
        play.expect("c is back", lambda: play.one_cluster("abc") and play.voters("a") == set("abc"))


def test_a_member_that_is_listed_again_is_emptied_no_more(asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.slow", "c")
    play = Play(2, "abc")
    play.formed("abc", declared(1, THREE))
    play.feed("a", declared(2, TWO))
    play.expect("c is being emptied", lambda: ("c",) in asked)
    play.feed("a", declared(3, THREE))
    play.expect("c stays", lambda: play.one_cluster("abc") and play.state("c", effects.State.ACTIVE, "serving"))
    assert asked[-1] == ()
