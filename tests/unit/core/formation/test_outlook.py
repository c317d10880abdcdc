"""What a config would bring, said beforehand by brokers of a small world: and saying it changes nothing."""

from typing import Any

from headrace.core.formation.effects import Answer, State, Verdict
from headrace.core.formation.outlook import GivenUp, Outlook
from headrace.model.formation import Declared
from headrace.sim.formation.play import Play, declared


def look(play: Play, name: str, config: Declared) -> Outlook:
    broker = play.broker(name)
    formation = broker.formation
    assert formation is not None
    before: Any = (broker.records, formation.standing, formation.current, formation.plan())
    found = formation.outlook(config, play.world.now_ms)
    assert not formation.take(), "nothing is asked for"
    assert (broker.records, formation.standing, formation.current, formation.plan()) == before
    fed = formation.weigh(config)
    assert found.answer == fed
    return found


def steps(found: Outlook) -> list[tuple[str, str]]:
    return [(s.kind, s.name) for s in found.steps]


def test_fresh_ones_would_form_and_say_who_is_missing() -> None:
    play = Play(1, "abc")
    play.start("ab")
    play.feed("a", declared(1, ["a", "b", "c"]))
    play.world.run(5_000)
    found = look(play, "a", declared(2, ["a", "b", "c"]))
    assert (found.answer.verdict, steps(found)) == (Verdict.BEGUN, [("form", "a")])
    assert (found.steps[0].text, found.steps[0].on) == ("form a cluster of a, b, c", ("c",))
    assert look(play, "a", declared(1, ["a", "b"])) == Outlook(answer=look(play, "a", declared(1, ["a", "b"])).answer)
    assert look(play, "a", declared(1, ["a", "b"])).answer.verdict is Verdict.CONFLICT
    play.start("c")
    play.expect("a cluster", lambda: play.one_cluster("abc"))


def test_a_cluster_grows_and_shrinks_as_it_was_said() -> None:
    play = Play(2, "abcd")
    play.formed("abc", declared(1, ["a", "b", "c"]))
    play.start("d")
    play.world.run(2_000)
    grown = look(play, "b", declared(2, ["a", "b", "c", "d"]))
    assert steps(grown) == [(kind, "d") for kind in ("enrol", "seat", "add_learner", "catch_up", "promote")]
    assert (grown.given_up, grown.emptied) == ((), ())
    shrunk = look(play, "a", declared(2, {"a": "voter", "b": "voter"}))
    assert steps(shrunk) == [("drain", "c"), ("remove", "c"), ("strike", "c")]
    assert shrunk.emptied == ("c",)
    demoted = look(play, "a", declared(2, {"a": "voter", "b": "voter", "c": "observer"}))
    assert steps(demoted)[0] == ("demote", "c")
    play.stop("b")
    play.world.run(10_000)
    unsafe = look(play, "a", declared(2, {"a": "voter", "b": "voter", "c": "observer"}))
    assert "quorum would be lost: b" in unsafe.steps[0].blocked
    formation = play.broker("a").formation
    assert formation is not None
    assert "quorum would be lost: b" in formation.keeps("c")
    assert formation.keeps("b") == formation.keeps("nobody") == ""


def test_whose_data_would_be_given_up_and_whether_that_is_confirmed() -> None:
    play = Play(3, "abcd")
    ours = play.formed("ab", declared(1, ["a", "b"]))
    theirs = play.formed("cd", declared(1, ["c", "d"]))
    play.feed("a", declared(2, ["a", "b", "c", "d"], gospel="a"))
    play.expect("they have met", lambda: all("would_lose_data" in play.broker(n).alarms for n in "cd"))

    def lost(name: str, **more: Any) -> tuple[tuple[str, tuple[str, ...], bool], ...]:
        found = look(play, name, declared(3, ["a", "b", "c", "d"], **more)).given_up
        assert all(isinstance(g, GivenUp) for g in found)
        return tuple((g.cluster_id, g.brokers, g.confirmed) for g in found)

    assert lost("a", gospel="a") == ((theirs, ("c", "d"), False),)
    assert lost("a", gospel="a", confirm_discard=[theirs]) == ((theirs, ("c", "d"), True),)
    assert lost("c", gospel="a", confirm_discard=[theirs]) == ((theirs, ("c", "d"), True),), "from the other side it is the same"
    both = lost("a", gospel="reset", confirm_discard=[ours])
    assert sorted(both) == sorted([(ours, ("a", "b"), True), (theirs, ("c", "d"), False)])
    refused = look(play, "a", declared(3, ["a", "b", "c", "d"], gospel="reset"))
    assert isinstance(refused.answer, Answer)
    assert refused.answer.verdict is Verdict.INVALID


def test_the_status_says_what_a_config_waits_for_that_the_cluster_has_not_committed() -> None:
    play = Play(5, "abcd")
    ours = play.formed("ab", declared(1, ["a", "b"]))
    theirs = play.formed("cd", declared(1, ["c", "d"]))

    def proposed(name: str) -> dict[str, Any] | None:
        formation = play.broker(name).formation
        assert formation is not None
        found = formation.view()["proposed"]
        assert found is None or isinstance(found, dict)
        return found

    assert proposed("a") is None
    play.feed("a", declared(2, ["a", "b", "nobody"], gospel="nobody"))
    play.expect("a waits for nobody", lambda: (proposed("a") or {}).get("code") == "gospel_unknown")
    found = proposed("a")
    assert found is not None
    assert (found["version"], found["verdict"], found["on"]) == (2, "wait", ["nobody"])
    assert "nothing is known of nobody" in found["reason"]
    assert play.state("a", State.ACTIVE, "serving")
    play.feed("a", declared(3, ["a", "b", "c", "d"], gospel="a", confirm_discard=[theirs]))
    play.expect("it was committed", lambda: play.committed("a")[0] == 3 and proposed("a") is None)
    play.expect("one cluster", lambda: play.world.cluster("c") == ours and play.world.active("c", "d"))


def test_one_that_is_introduced_is_greeted_until_a_config_says_who_there_is() -> None:
    play = Play(4, "abd")
    cluster = play.formed("ab", declared(1, {"a": "voter", "b": "voter"}, options={"members": "open"}))
    play.start("d")
    play.world.run(5_000)
    formation = play.broker("d").formation
    assert formation is not None
    assert formation.standing.code == "no_config"
    assert formation.view()["peers"] == {}
    formation.introduced("a", "a:7582", play.world.now_ms)
    play.world.run(1)
    play.expect("d is taken in", lambda: play.world.steady("d") and play.world.cluster("d") == cluster)
