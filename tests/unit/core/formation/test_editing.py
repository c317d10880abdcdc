"""The next version of a config: a voter more or less; and what is written is what is read."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.formation.editing import as_table, as_toml, proposed, with_voter, without, without_vote
from headrace.core.formation.parsing import parse, parse_text
from headrace.model.errors import Conflict, Invalid, NotFound
from headrace.model.formation import Declared


def config(**table: Any) -> Declared:
    parsed = parse({"version": 4, **table})
    assert parsed.config is not None, parsed.mistakes
    return parsed.config


THREE = {"a": "voter", "b": {"role": "voter", "address": "b.example:7000"}, "c": {"role": "observer", "address": "c.example:7100"}}


def roles(changed: Declared) -> dict[str, str]:
    return {m.name: f"{m.role} {m.address}" for m in changed.members}


def test_a_voter_more() -> None:
    promoted = with_voter(config(members=THREE), "c")
    assert promoted.version == 5
    assert roles(promoted)["c"] == "voter c.example:7100", "where it is stays as it was"
    assert roles(with_voter(config(members=THREE), "d"))["d"] == "voter d:7582"
    assert roles(with_voter(config(members=THREE), "d", "d.example:7300"))["d"] == "voter d.example:7300"
    with pytest.raises(Conflict, match="a voter already"):
        with_voter(config(members=THREE), "b")
    with pytest.raises(Invalid, match="has the address of a: a:7582"):
        with_voter(config(members=THREE), "d", "a:7582")
    with pytest.raises(Invalid, match="no name of a member"):
        with_voter(config(members=THREE), "no name")
    with pytest.raises(Invalid, match="10 voters"):
        with_voter(config(members=[f"n{i}" for i in range(9)]), "n9")


def test_a_voter_less() -> None:
    assert roles(without_vote(config(members=THREE), "b"))["b"] == "observer b.example:7000"
    assert set(roles(without(config(members=THREE), "b"))) == {"a", "c"}
    assert set(roles(without(config(members=THREE), "c"))) == {"a", "b"}
    for change in (without_vote, without):
        with pytest.raises(NotFound, match="does not list d"):
            change(config(members=THREE), "d")
        with pytest.raises(Conflict, match="the last voter"):
            change(config(members={"a": "voter", "c": "observer"}), "a")
    with pytest.raises(Conflict, match="an observer"):
        without_vote(config(members=THREE), "c")


@pytest.mark.parametrize(("members", "voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (6, 3), (7, 5), (21, 5)])
def test_of_brokers_that_were_found_the_first_few_vote(members: int, voters: int) -> None:
    made = proposed({f"n{i:02}": f"host-{i}:7582" for i in reversed(range(members))}).config
    assert made is not None
    assert (made.version, made.voters) == (1, tuple(f"n{i:02}" for i in range(voters)))
    assert len(made.members) == members
    assert proposed({"a": "x:1", "b": "x:1"}).mistakes


def test_a_gospel_is_of_its_version_and_other_options_stay() -> None:
    assert without(config(members=THREE, gospel="b", wipe_policy="auto"), "b").gospel == ""
    assert without(config(members=THREE, gospel="a", on_removed="exit"), "b").gospel == "a"
    before = config(members=THREE, gospel="reset", reset_policy="always", confirm_discard=["x"], discard_keep="12h", options={"members": "open"})
    after = without_vote(before, "b")
    assert (after.gospel, after.reset_policy, after.confirm_discard, after.undeclared) == ("", "always", ("x",), "open"), "a change resets nothing"
    assert after.discard_keep_ms == before.discard_keep_ms == 12 * 3600 * 1000


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True).filter(lambda name: name != "reset")
members = st.dictionaries(names, st.sampled_from(["voter", "observer"]), min_size=1, max_size=6).filter(lambda m: "voter" in m.values())


@given(
    st.integers(1, (1 << 63) - 1), members, st.booleans(), st.lists(st.text(min_size=1, max_size=20), max_size=3),
    st.sampled_from(["open", "closed"]),
    st.sampled_from(["confirm", "auto"]), st.sampled_from(["all", "voters"]), st.sampled_from(["0ms", "90s", "12h", "30d"]),
)  # fmt: skip
def test_what_is_written_is_what_is_read(
    version: int, listed: dict[str, str], gospel: bool, confirmed: list[str], undeclared: str, wipe: str, requires: str, keep: str
) -> None:
    before = config(
        version=version, members=listed, gospel="reset" if gospel else "", confirm_discard=confirmed, options={"members": undeclared},
        wipe_policy=wipe, form_requires=requires, discard_keep=keep,
    )  # fmt: skip
    assert parse(as_table(before)).config == before
    assert parse_text(as_toml(before)).config == before
