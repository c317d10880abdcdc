"""The scenarios that must pass, each in any weather and with a restart at every step.

Owns what each of them does and expects. A scenario never expects what a restart may take away (that a broker goes on without a leader), only where
everything comes to rest.
"""

from collections.abc import Callable
from itertools import permutations
from typing import Final

from headrace.core.formation.effects import State, Verdict
from headrace.core.formation.messages import Offer
from headrace.core.formation.parsing import parse
from headrace.sim.formation import options
from headrace.sim.formation.play import Play, declared
from headrace.sim.formation.violation import Violation


def s1_any_order(play: Play) -> None:
    """Three fresh, one fed: one cluster."""
    orders = list(permutations("abc"))
    for name in play.world.chance.choice(orders):
        play.start(name)
        play.world.run(play.world.chance.randrange(1, 3000))
    play.feed(play.world.chance.choice("abc"), declared(1, ["a", "b", "c"]))
    play.expect("one cluster", lambda: play.one_cluster("abc"))


def s2_two_of_three(play: Play) -> None:
    """Both wait naming the third, for ever."""
    play.start("ab")
    play.feed("a", declared(1, ["a", "b", "c"]))
    play.stays("both wait for c", lambda: play.waits_on("a", "c") and play.waits_on("b", "c"), 60_000)


def s3_third_joins_stopped_pair(play: Play) -> None:
    """C waits until A and B have a quorum, then joins."""
    cluster = play.formed("ab", declared(1, ["a", "b"]))
    play.stop("ab")
    play.start("c")
    play.feed("c", declared(2, ["a", "b", "c"], gospel="a"))
    play.stays("c waits for both", lambda: play.waits_on("c", "ab"))
    play.start("b")
    play.stays("c is a guest, a is missing", lambda: play.state("c", State.WAIT, "guest") and play.state("b", State.WAIT, "no_quorum"))
    play.start("a")
    play.expect("all three", lambda: play.one_cluster("abc") and play.voters("c") == set("abc"))
    play.same("abc", cluster)


def s4_standalone_grows(play: Play) -> None:
    """A with data, B and C fresh: A never stops serving."""
    cluster = play.standalone("a")
    play.start("bc")
    config = declared(1, ["a", "b", "c"], gospel="a")
    play.feed("b", config)
    play.expect("all three", lambda: play.one_cluster("abc") and play.voters("a") == set("abc"))
    play.same("abc", cluster)


def _pairs(play: Play) -> tuple[str, str]:
    ours = play.formed("ab", declared(1, ["a", "b"]))
    theirs = play.formed("cd", declared(1, ["c", "d"]))
    return ours, theirs


def s5_merge(play: Play) -> None:
    """Unconfirmed: C and D go on, refuse, alarm. Confirmed: their data is set aside."""
    ours, theirs = _pairs(play)
    play.feed("c", declared(5, ["a", "b", "c", "d"], gospel="a"))
    play.expect("a has committed it", lambda: play.committed("a")[0] == 5)
    play.stays(
        "c and d serve on and alarm",
        lambda: play.world.active("c", "d") and all("would_lose_data" in play.broker(n).alarms for n in "cd"),
    )
    play.same("cd", theirs)
    play.feed("d", declared(6, ["a", "b", "c", "d"], gospel="a", confirm_discard=[theirs]))
    play.expect("one cluster", lambda: play.one_cluster("abcd") and play.voters("a") == set("abcd"))
    play.same("ab", ours)
    for name in "cd":
        if play.world.cluster(name) != ours or play.broker(name).aside != [theirs]:
            raise Violation("data", f"{name}: {play.broker(name).aside}")


def s6_gospel_wiped(play: Play) -> None:
    """It comes back with the old config: the others keep their data."""
    config = declared(1, ["a", "b", "c"], gospel="b")
    cluster = play.formed("abc", config)
    before = play.world.incarnation("b")
    play.wipe("b")
    play.world.run(play.world.chance.randrange(0, 8000))
    if play.world.chance.happens(0.5):
        play.broker("b").configured = config
    play.start("b")
    play.expect("b is back", lambda: play.one_cluster("abc") and play.voters("a") == set("abc") and play.world.incarnation("b") != before)
    play.same("abc", cluster)


def s7_wiped_gospel_younger(play: Play) -> None:
    """B wiped and fed a younger config that names it gospel, unconfirmed: refused."""
    cluster = play.formed("abc", declared(1, ["a", "b", "c"]))
    play.wipe("b")
    play.world.cut(["b"], ["a", "c"])
    play.start("b")
    play.feed("b", declared(2, ["a", "b", "c"], gospel="b"))
    play.world.heal()
    play.expect("a and c refuse", lambda: all("refused" in play.broker(n).alarms for n in "ac"))
    play.stays("b waits, a and c serve", lambda: play.world.active("a", "c") and play.state("b", State.WAIT))
    if play.committed("a")[0] != 1:
        raise Violation("data", "the younger config was committed")
    play.same("ac", cluster)
    play.feed("a", declared(3, ["a", "b", "c"], gospel="a"))
    play.expect("healed by a younger one", lambda: play.one_cluster("abc"))
    play.same("abc", cluster)


def s8_full_stop(play: Play) -> None:
    """All stop, start in any order: the same cluster with the newest config."""
    cluster = play.formed("abc", declared(1, ["a", "b", "c"]))
    play.stop("c")
    play.feed("a", declared(2, ["a", "b", "c"], discard_keep="1d"))
    play.expect("version 2", lambda: play.committed("a")[0] == 2)
    play.stop("ab")
    for name in play.world.chance.choice(list(permutations("abc"))):
        play.start(name)
        play.world.run(play.world.chance.randrange(1, 9000))
    play.expect("all three", lambda: play.one_cluster("abc"))
    play.same("abc", cluster)
    if play.committed("c")[0] != 2:
        raise Violation("data", "an older config won")


def s9_two_contents(play: Play) -> None:
    """Fresh: both halted, healed by a younger one. ACTIVE: refused, service goes on."""
    play.broker("a").configured = declared(1, ["a", "b", "c"])
    play.broker("b").configured = declared(1, ["a", "b", "c"], gospel="b")
    play.start("ab")
    play.stays("both halted", lambda: all(play.state(n, State.HALTED, "config_conflict") for n in "ab"))
    play.start("c")
    play.feed("c", declared(2, ["a", "b", "c"]))
    play.expect("healed", lambda: play.one_cluster("abc"))
    other = declared(2, ["a", "b", "c"], gospel="c")
    refused = Verdict.CONFLICT
    play.expect("refused with an alarm", lambda: play.feed("a", other).verdict is refused and "config_conflict" in play.broker("a").alarms)
    play.stays("they serve", lambda: play.world.active("a", "b", "c"))
    play.feed("b", declared(3, ["a", "b", "c"], gospel="c"))
    play.expect("a younger one ends the alarm", lambda: play.committed("a")[0] == 3 and "config_conflict" not in play.broker("a").alarms)
    play.expect("they serve on", lambda: play.one_cluster("abc"))


def s10_older(play: Play) -> None:
    """The answer says which is current."""
    play.formed("abc", declared(7, ["a", "b", "c"]))
    for config, verdict in ((declared(6, ["a", "b"]), Verdict.OLDER), (declared(7, ["a", "b", "c"]), Verdict.ALREADY)):
        answer = play.feed("b", config)
        if answer.verdict is not verdict or answer.version != 7:
            raise Violation("answer", str(answer))


def s11_removed_while_stopped(play: Play) -> None:
    """It starts later: REMOVED, never serves, cannot vote."""
    play.formed("abc", declared(1, ["a", "b", "c"]))
    play.stop("c")
    play.feed("a", declared(2, ["a", "b"]))
    play.expect("c is out", lambda: play.one_cluster("ab") and play.voters("a") == set("ab"))
    play.start("c")
    play.stays("c is told", lambda: play.state("c", State.REMOVED))
    play.stop("a")
    play.stays("it cannot vote", lambda: play.state("c", State.REMOVED) and not play.world.steady("b"))
    if play.world.store.led(play.world.cluster("b"), "b") is not None:
        raise Violation("old vote", "b has a quorum without a")
    play.start("a")
    play.feed("a", declared(3, ["a", "b", "c"]))
    play.expect("c is back", lambda: play.one_cluster("abc") and play.voters("a") == set("abc"))


def s12_remove_leader_and_two(play: Play) -> None:
    """Stepwise, the quorum is kept."""
    play.formed("abcde", declared(1, list("abcde")))
    leader = next((m.name for b in play.world.brokers.values() if b.formation and (m := b.member) and b.formation.view()["leader"] == b.name), "a")
    other = next(n for n in "abcde" if n != leader)
    rest = "".join(n for n in "abcde" if n not in (leader, other))
    play.feed(rest[0], declared(2, list(rest)))
    play.expect("three are left", lambda: play.one_cluster(rest) and play.voters(rest[0]) == set(rest))
    play.expect("two are told", lambda: play.state(leader, State.REMOVED) and play.state(other, State.REMOVED))


def s13_roles(play: Play) -> None:
    """Voter to observer and back; the last voter refused."""
    play.formed("abc", declared(1, ["a", "b", "c"]))
    play.feed("a", declared(2, {"a": "voter", "b": "voter", "c": "ram"}))
    play.expect("c observes", lambda: play.one_cluster("abc") and play.voters("a") == set("ab"))
    play.feed("c", declared(3, ["a", "b", "c"]))
    play.expect("c votes", lambda: play.one_cluster("abc") and play.voters("a") == set("abc"))
    play.feed("b", declared(4, {"a": "observer", "b": "disc", "c": "observer"}))
    play.expect("one votes", lambda: play.one_cluster("abc") and play.voters("b") == {"b"})
    if parse({"version": 5, "members": {"a": "ram", "b": "ram", "c": "ram"}}).config is not None:
        raise Violation("answer", "a config without voters was taken")


def s14_reset_twice(play: Play) -> None:
    """The second does nothing."""
    first = play.formed("abc", declared(1, ["a", "b", "c"]))
    answer = play.feed("a", declared(2, ["a", "b", "c"], gospel="reset"))
    if answer.verdict is not Verdict.INVALID:
        raise Violation("discard", f"an unconfirmed reset is taken on: {answer}")
    config = declared(2, ["a", "b", "c"], gospel="reset", confirm_discard=[first])
    play.feed("b", config)
    play.expect("a new cluster", lambda: play.one_cluster("abc") and play.world.cluster("a") not in ("", first))
    second = play.world.cluster("a")
    asides = [list(play.broker(n).aside) for n in "abc"]
    if asides != [[first]] * 3:
        raise Violation("reset", f"set aside: {asides}")
    answer = play.feed("c", config)
    if answer.verdict is not Verdict.ALREADY:
        raise Violation("answer", str(answer))
    play.feed("a", declared(3, ["a", "b", "c"], gospel="reset", discard_keep="2d"))
    play.stays("nothing is reset", lambda: play.one_cluster("abc") and play.committed("a")[0] == 3)
    if {play.world.cluster(n) for n in "abc"} != {second} or [list(play.broker(n).aside) for n in "abc"] != asides:
        raise Violation("reset", "the reset was repeated")


def s15_partition_during_form(play: Play) -> None:
    """Heal: one id."""
    play.start("abcd")
    play.feed("b", declared(1, ["a", "b", "c", "d"]))
    for _ in range(4):
        play.world.run(play.world.chance.randrange(1, 1500))
        side = "".join(n for n in "abcd" if play.world.chance.happens(0.5))
        play.world.cut(side, "".join(n for n in "abcd" if n not in side))
        play.world.run(play.world.chance.randrange(1, 6000))
        play.world.heal()
    play.expect("one cluster", lambda: play.one_cluster("abcd"))


def s16_seed_dies(play: Play) -> None:
    """After the promises, before and after the bootstrap record; it comes back, or comes back wiped."""
    play.start("abc")
    play.feed("c", declared(1, ["a", "b", "c"]))
    play.world.run(play.world.chance.randrange(1, 2500))
    play.stop("a")
    play.world.run(play.world.chance.randrange(1, 10_000))
    bound = [n for n in "abc" if play.broker(n).records.acceptance is not None]
    if play.world.chance.happens(0.5) and (not bound or len(bound) == 3):
        play.wipe("a")
    play.start("a")
    play.expect("one cluster", lambda: play.one_cluster("abc"))


def s17_majority_lost(play: Play) -> None:
    """WAIT(no_quorum); recover on one; the old one that returns does not undo it."""
    first = play.formed("abc", declared(1, ["a", "b", "c"]))
    play.stop("abc")
    play.start("b")
    play.stays("b has no quorum", lambda: play.state("b", State.WAIT, "no_quorum") and play.waits_on("b", "ac"))
    play.stop("b")
    play.world.recover("b")
    play.start("b")
    play.expect("b serves", lambda: play.world.active("b") and play.voters("b") == {"b"})
    second = play.world.cluster("b")
    play.start("a")
    play.expect("a comes to b", lambda: play.world.active("a", "b") and play.voters("b") == set("ab"))
    play.start("c")
    play.expect("all three", lambda: play.one_cluster("abc") and play.voters("b") == set("abc"))
    if play.world.cluster("c") != second or second == first or play.broker("b").aside:
        raise Violation("data", "the recovery was undone")


def s18_broken_config(play: Play) -> None:
    """On a fresh and on a formed node."""
    play.formed("abc", declared(1, ["a", "b", "c"]))
    play.stop("a")
    for name in "ad":
        play.broker(name).mistakes = ("version: is missing",)
    play.start("ad")
    play.stays("d is halted", lambda: play.state("d", State.HALTED, "broken_config"))
    play.expect("a serves and alarms", lambda: play.one_cluster("abc") and "broken_config" in play.broker("a").alarms)


def s19_not_listed(play: Play) -> None:
    """At first boot: HALTED, alive."""
    play.broker("d").configured = declared(1, ["a", "b", "c"])
    play.start("d")
    play.stays("d is halted", lambda: play.state("d", State.HALTED, "not_listed"))
    play.start("abc")
    play.expect("the others form", lambda: play.one_cluster("abc"))
    play.feed("d", declared(2, list("abcd")))
    play.expect("d is in", lambda: play.one_cluster("abcd"))


def s20_status(play: Play) -> None:
    """It lists exactly who blocks, and since when."""
    play.start("abd")
    play.feed("a", declared(1, {"a": "voter", "b": "voter", "c": "voter", "d": "observer", "e": "observer"}))
    play.stays("c and e block", lambda: all(play.waits_on(n, "ce") for n in "ab"))
    view = play.broker("a").formation
    assert view is not None
    shown = view.view()
    if [w["name"] for w in shown["waits_for"]] != ["c", "e"] or any(w["since_ms"] > play.world.now_ms for w in shown["waits_for"]):
        raise Violation("status", str(shown["waits_for"]))
    play.start("ce")
    play.expect("all five", lambda: play.one_cluster("abcde") and play.voters("a") == set("abc"))


def guest_until_quorum(play: Play) -> None:
    """{A, B} with only B up and C new; also open members."""
    play.formed("ab", declared(1, ["a", "b"], options={"members": "open"}))
    play.broker("d").configured = declared(1, ["a", "b"], options={"members": "open"})
    play.start("d")
    play.expect("d joined undeclared", lambda: play.one_cluster("abd") and play.voters("a") == set("ab"))


def form_without_observers(play: Play) -> None:
    """``form_requires`` voters: observers may be missing."""
    play.start("abc")
    play.feed("a", declared(1, {"a": "voter", "b": "voter", "c": "voter", "d": "ram"}, form_requires="voters"))
    play.expect("the voters serve", lambda: play.world.active("a", "b", "c"))
    play.start("d")
    play.expect("the observer too", lambda: play.one_cluster("abcd") and play.voters("a") == set("abc"))


def replace_all_voters(play: Play) -> None:
    """Step by step from one set of machines to another."""
    cluster = play.formed("abc", declared(1, ["a", "b", "c"]))
    play.start("def")
    play.feed("a", declared(2, list("cde")))
    play.expect("c, d, e", lambda: play.one_cluster("cde") and play.voters("c") == set("cde"))
    play.feed("d", declared(3, list("def")))
    play.expect("d, e, f", lambda: play.one_cluster("def") and play.voters("d") == set("def"))
    play.same("def", cluster)
    play.expect("all are told", lambda: all(play.state(n, State.REMOVED) for n in "abc"))


def promise_ended_by_younger(play: Play) -> None:
    """A younger config with other voters while the older is being formed: one cluster in the end."""
    play.start("abcde")
    play.feed("c", declared(1, ["a", "b", "c"]))
    play.world.run(play.world.chance.randrange(1, 2000))
    play.feed("a", declared(2, ["a", "d", "e"]))
    play.expect("one cluster", lambda: play.one_cluster("ade"))


def earlier_promise_alive(play: Play) -> None:
    """A voter of a cluster that was formed behind its back is fed a younger config with others: it must not form a second one."""
    play.start("abcde")
    play.feed("b", declared(1, ["a", "b", "c"], gospel="b"))
    play.expect("the record is written", lambda: play.broker("b").records.bootstrap is not None, step_ms=1)
    play.world.cut("ade", "bc")
    play.world.run(3_000)
    if play.broker("a").records.acceptance is None:
        play.feed("a", declared(2, ["a", "d", "e"]))
        play.world.run(20_000)
    play.world.heal()
    if play.committed("b")[0] in (0, 1) and play.broker("a").records.held == play.broker("b").records.held:
        play.feed("a", declared(2, ["a", "d", "e"]))
    play.expect("one cluster", lambda: play.one_cluster("ade"))


def late_record(play: Play) -> None:
    """The record of a seed that was wiped before anybody had it comes late: it is not accepted."""
    play.start("abc")
    play.feed("b", declared(1, ["a", "b", "c"]))
    play.expect("the record is written", lambda: play.broker("a").records.bootstrap is not None, step_ms=1)
    play.world.cut("a", "bc")
    play.world.until(lambda: play.broker("a").records.acceptance is not None, 10_000)  # not if it was restarted before: then it waits for the others
    record = play.broker("a").records.bootstrap
    assert record is not None
    if any(play.broker(n).records.acceptance for n in "bc") or play.broker("a").records.acceptance is None:
        play.world.heal()
        play.expect("one cluster", lambda: play.one_cluster("abc"))
        return
    play.wipe("a")
    play.start("a")
    play.world.heal()
    play.expect("another is promised", lambda: (p := play.broker("b").records.promise) is not None and p.ballot > record.ballot, step_ms=1)
    formation = play.broker("b").formation
    if formation is not None:
        formation.heard("a", Offer(bootstrap=record), play.world.now_ms)
        play.world.pump(play.broker("b"))
    play.expect("one cluster", lambda: play.one_cluster("abc"))
    play.same("abc", play.world.cluster("a"))


def removal_keeps_the_quorum(play: Play) -> None:
    """Two of five are away, two others shall go: nobody goes before the rest are a majority."""
    play.formed("abcde", declared(1, list("abcde")))
    play.stop("de")
    play.world.run(6_000)
    play.feed("a", declared(2, ["a", "d", "e"]))
    play.expect("it is committed", lambda: play.committed("a")[0] == 2)
    play.world.run(20_000)
    play.expect("there is a quorum", lambda: play.world.store.led(play.world.cluster("a"), "a") is not None, patience_ms=10_000)
    play.start("de")
    play.expect("three are left", lambda: play.one_cluster("ade") and play.voters("a") == set("ade"))


def reset_without_the_others(play: Play) -> None:
    """One resets the cluster and goes on alone at once: the others hear that their cluster has ended, whenever they come back."""
    play.formed("abc", declared(1, ["a", "b", "c"]))
    first = play.world.cluster("a")
    play.stop("b")
    play.feed("a", declared(2, ["a"], gospel="reset", confirm_discard=[first]))
    play.expect("a is alone", lambda: play.one_cluster("a") and play.world.cluster("a") != first)
    play.expect("c has given its data up", lambda: play.broker("c").aside == [first] and play.state("c", State.HALTED, "not_listed"))
    play.start("b")
    play.expect("b has given its data up", lambda: play.broker("b").aside == [first] and play.state("b", State.HALTED, "not_listed"))


def standalone_reset(play: Play) -> None:
    """A standalone broker gives its data up for a new cluster: only if that is confirmed."""
    cluster = play.standalone("a")
    play.start("bc")
    if play.feed("a", declared(1, ["a", "b", "c"], gospel="b")).verdict is Verdict.INVALID:
        play.stays("a serves on", lambda: play.state("a", State.ACTIVE, "standalone"))
    play.feed("a", declared(2, ["a", "b", "c"], gospel="reset", confirm_discard=[cluster]))
    play.expect("one cluster", lambda: play.one_cluster("abc"))
    if play.broker("a").aside != [cluster]:
        raise Violation("data", str(play.broker("a").aside))


SCENARIOS: Final[dict[str, tuple[str, Callable[[Play], None]]]] = {
    f.__name__: (names, f)
    for names, f in (
        ("abc", s1_any_order),
        ("abc", s2_two_of_three),
        ("abc", s3_third_joins_stopped_pair),
        ("abc", s4_standalone_grows),
        ("abcd", s5_merge),
        ("abc", s6_gospel_wiped),
        ("abc", s7_wiped_gospel_younger),
        ("abc", s8_full_stop),
        ("abc", s9_two_contents),
        ("abc", s10_older),
        ("abc", s11_removed_while_stopped),
        ("abcde", s12_remove_leader_and_two),
        ("abc", s13_roles),
        ("abc", s14_reset_twice),
        ("abcd", s15_partition_during_form),
        ("abc", s16_seed_dies),
        ("abc", s17_majority_lost),
        ("abcd", s18_broken_config),
        ("abcd", s19_not_listed),
        ("abcde", s20_status),
        ("abd", guest_until_quorum),
        ("abcd", form_without_observers),
        ("abcdef", replace_all_voters),
        ("abcde", promise_ended_by_younger),
        ("abcde", earlier_promise_alive),
        ("abc", late_record),
        ("abcde", removal_keeps_the_quorum),
        ("abc", reset_without_the_others),
        ("abc", standalone_reset),
        ("abcd", options.wiped_without_asking),
        ("ab", options.reset_at_every_version),
        ("abc", options.exits),
        ("abcd", options.dead_one_replaced),
        ("abcd", options.proposed_while_cut_off),
        ("abc", options.listed_again_without_a_quorum),
        ("abcd", options.wanted_unconfirmed_and_restarted),
    )
}
