"""Scenarios of what a config may say beyond its members, and of changes while somebody is away.

Owns what each of them does and expects, as ``scenarios`` does for those of the specification.
"""

from headrace.core.formation.effects import State
from headrace.sim.formation.play import Play, declared
from headrace.sim.formation.violation import Violation


def wiped_without_asking(play: Play) -> None:
    """``wipe_policy`` auto: clusters meet, and the data that the gospel leaves out is set aside unconfirmed; never the gospel's."""
    ours = play.formed("ab", declared(1, ["a", "b"]))
    theirs = play.formed("cd", declared(1, ["c", "d"]))
    play.feed("c", declared(5, ["a", "b", "c", "d"], gospel="a", wipe_policy="auto"))
    play.expect("one cluster", lambda: play.one_cluster("abcd") and play.voters("a") == set("abcd"))
    play.same("ab", ours)
    for name in "cd":
        if play.world.cluster(name) != ours or play.broker(name).aside != [theirs]:
            raise Violation("data", f"{name}: {play.broker(name).aside}")


def reset_at_every_version(play: Play) -> None:
    """``reset_policy`` always: each version that says reset resets again, if it confirms the cluster of now."""
    gone: list[str] = []
    play.formed("ab", declared(1, ["a", "b"]))
    for version in (2, 3):
        before = play.world.cluster("a")
        gone.append(before)
        play.feed("ab"[version % 2], declared(version, ["a", "b"], gospel="reset", reset_policy="always", confirm_discard=[before]))
        play.expect("another cluster", lambda: play.one_cluster("ab") and play.world.cluster("a") not in gone)
    if [play.broker(n).aside for n in "ab"] != [gone, gone]:
        raise Violation("reset", f"set aside: {[play.broker(n).aside for n in 'ab']}, not {gone}")


def exits(play: Play) -> None:
    """``on_conflict`` and ``on_removed`` exit: who is halted by a conflict, or told that it is removed, ends; nobody else does."""
    play.broker("a").configured = declared(1, ["a", "b", "c"], on_conflict="exit")
    play.broker("b").configured = declared(1, ["a", "b", "c"])
    play.start("ab")
    play.expect("a ends, b is halted", lambda: bool(play.broker("a").exited) and play.state("b", State.HALTED, "config_conflict"))
    if play.broker("b").exited:
        raise Violation("exit", f"b ends: {play.broker('b').exited}")
    play.start("c")
    play.feed("c", declared(2, ["a", "b", "c"]))
    play.expect("healed", lambda: play.one_cluster("abc"))
    play.feed("b", declared(3, ["a", "b"], on_removed="exit"))
    play.expect("c is removed and ends", lambda: play.state("c", State.REMOVED) and bool(play.broker("c").exited))
    play.expect("two are left", lambda: play.one_cluster("ab") and play.voters("a") == set("ab"))
    if play.broker("b").exited:
        raise Violation("exit", f"b ends: {play.broker('b').exited}")


def dead_one_replaced(play: Play) -> None:
    """Another machine takes the place of one that is gone for good: it is brought in although a voter is away, then the dead one goes."""
    cluster = play.formed("abc", declared(1, ["a", "b", "c"]))
    play.stop("b")
    play.start("d")
    play.feed("a", declared(2, ["a", "c", "d"]))
    play.expect("d is in, b is out", lambda: play.one_cluster("acd") and play.voters("a") == set("acd"))
    play.same("acd", cluster)
    play.start("b")
    play.expect("b is told", lambda: play.state("b", State.REMOVED))


def listed_again_without_a_quorum(play: Play) -> None:
    """A broker that was removed and is listed again comes back while its cluster has no quorum: it names exactly who is away."""
    cluster = play.formed("abc", declared(1, ["a", "b", "c"]))
    play.feed("a", declared(2, ["a", "b"]))
    play.expect("c is removed", lambda: play.state("c", State.REMOVED) and play.one_cluster("ab") and play.voters("a") == set("ab"))
    play.stop("c")
    play.feed("a", declared(3, ["a", "b", "c"]))
    play.expect("a has noted it", lambda: (noted := play.broker("a").records.applied) is not None and noted.charter.config.version == 3)
    play.stop("b")
    play.start("c")
    play.expect("c waits for b", lambda: play.state("c", State.WAIT, "no_quorum") and play.waits_on("c", "b"))
    play.start("b")
    play.expect("c is taken in", lambda: play.one_cluster("abc") and play.voters("a") == set("abc"))
    play.same("abc", cluster)


def proposed_while_cut_off(play: Play) -> None:
    """A config that a member takes on while it reaches nobody is kept, also over a restart, and committed once it reaches the others."""
    cluster = play.formed("abc", declared(1, ["a", "b", "c"]))
    play.world.cut("c", "ab")
    play.world.run(6_000)
    play.feed("c", declared(2, ["a", "b", "c"], discard_keep="1d"))
    play.world.run(10_000)
    if play.committed("a")[0] != 1:
        raise Violation("quorum", "a minority has committed a config")
    play.world.restart("c")
    play.world.heal()
    play.expect("it is committed", lambda: play.committed("a")[0] == 2 and play.one_cluster("abc"))
    play.same("abc", cluster)


def wanted_unconfirmed_and_restarted(play: Play) -> None:
    """A cluster that another one wants, unconfirmed, is stopped as a whole: a part of it stands still, and with its quorum it serves again."""
    play.formed("ab", declared(1, ["a", "b"]))
    theirs = play.formed("cd", declared(1, ["c", "d"]))
    play.feed("a", declared(2, ["a", "b", "c", "d"], gospel="a"))
    play.expect("c and d refuse", lambda: all("would_lose_data" in play.broker(n).alarms for n in "cd"))
    play.stop("cd")
    play.start("c")
    play.expect("c alone stands still", lambda: play.state("c", State.HALTED, "would_lose_data"))
    play.start("d")
    play.expect("both serve and alarm", lambda: play.world.active("c", "d") and all("would_lose_data" in play.broker(n).alarms for n in "cd"))
    play.same("cd", theirs)
