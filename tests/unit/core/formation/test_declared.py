"""The declared config as people write it."""

import pytest

from headrace.core.formation.parsing import parse, parse_text, parse_voters
from headrace.model.formation import Comparison, Declared, DeclaredMember, canonical, compare, contradictions, digest, mark


def config(**table: object) -> Declared:
    parsed = parse({"version": 1, **table})
    assert parsed.config is not None, parsed.mistakes
    return parsed.config


def test_the_example_of_the_specification() -> None:
    parsed = parse_text("""
version = 43
gospel  = "reset"
[members]
hostA = "voter"
hostB = "observer"
hostD = { role = "voter", address = "hostD.internal:7582" }
""")
    assert parsed.config is not None
    assert parsed.config.voters == ("hostA", "hostD")
    assert parsed.config.members[1] == DeclaredMember(name="hostB", role="observer", address="hostB:7582")
    assert parsed.config.gospel == "reset"
    assert "even" in parsed.warnings[0]


@pytest.mark.parametrize(
    "members",
    [
        ["b", "a"],
        {"b": "disc", "a": "disk"},
        {"a": "voter", "b": {"role": "voter"}},
        {"a": {"address": "a:7582"}, "b": "voter"},
    ],
)
def test_order_and_spelling_do_not_matter(members: object) -> None:
    assert digest(config(members=members)) == digest(config(members=["a", "b"]))
    assert canonical(config(members=members)) == canonical(config(members=["a", "b"]))


def test_roles_of_the_original_are_accepted() -> None:
    assert [m.role for m in config(members={"a": "disc", "b": "disk", "c": "ram"}).members] == ["voter", "voter", "observer"]


def test_all_mistakes_at_once_with_where() -> None:
    parsed = parse(
        {
            "version": 0,
            "gospel": "nobody",
            "members": {"a": "king", "b": {"role": "voter", "address": "nowhere", "color": "red"}, "": "voter"},
            "confirm_discard": "x",
            "wipe_policy": "never",
            "options": {"discard_keep": "soon", "members": "ajar", "wipe_policy": "auto"},
            "colour": "blue",
        }
    )
    assert parsed.config is None
    assert [m.where for m in parsed.mistakes] == [
        "colour",
        "version",
        "members.a",
        "members.b.color",
        "members.b.address",
        "members.",
        "gospel",
        "confirm_discard",
        "options.discard_keep",
        "options.members",
        "options.wipe_policy",
        "wipe_policy",
    ]


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ({"version": True, "members": ["a"]}, "version"),
        ({"version": 1 << 63, "members": ["a"]}, "version"),
        ({"version": 1}, "members"),
        ({"version": 1, "members": {"a": "ram"}}, "members"),
        ({"version": 1, "members": []}, "members"),
        ({"version": 1, "members": ["a", "a"]}, "members.a"),
        ({"version": 1, "members": ["reset"]}, "members[0]"),
        ({"version": 1, "members": {"a": {"address": "x:1"}, "b": {"address": "x:1"}}}, "members.b"),
        ({"version": 1, "members": [f"n{i}" for i in range(11)]}, "members"),
        ({"version": 1, "members": {"a": {"address": "a:70000"}}}, "members.a.address"),
    ],
)
def test_mistakes(table: dict[str, object], where: str) -> None:
    assert [m.where for m in parse(table).mistakes] == [where]


def test_no_toml_and_no_table() -> None:
    assert parse_text("version = ").config is None
    assert parse(7).config is None
    assert parse_text("x" * 300_000).config is None


def test_voters_are_a_config_of_version_one() -> None:
    parsed = parse_voters("c, a=ten:99,b")
    assert parsed.config is not None
    assert parsed.config.version == 1
    assert parsed.config.seed == "a"
    assert [m.address for m in parsed.config.members] == ["ten:99", "b:7582", "c:7582"]
    assert parse_voters("a,a").config is None
    assert parse_voters("").config is None


def test_comparison() -> None:
    one, same, other, younger = config(members=["a"]), config(members={"a": "disc"}), config(members=["b"]), config(version=2, members=["a"])
    assert compare(mark(one), mark(same)) is Comparison.SAME
    assert compare(mark(one), mark(other)) is Comparison.CONFLICT
    assert compare(mark(younger), mark(one)) is Comparison.YOUNGER
    assert compare(mark(one), mark(younger)) is Comparison.OLDER


def test_who_is_the_seed_and_who_is_required() -> None:
    assert config(members=["b", "a"], gospel="b").seed == "b"
    assert config(members={"b": "voter", "a": "observer"}, gospel="a").seed == "b"
    assert config(members={"b": "voter", "a": "observer"}).required == ("a", "b")
    assert config(members={"b": "voter", "a": "observer"}, form_requires="voters").required == ("b",)


def test_what_is_confirmed() -> None:
    assert config(members=["a"], confirm_discard=["x"]).confirms("x")
    assert not config(members=["a"], confirm_discard=["x"]).confirms("y")
    assert config(members=["a"], wipe_policy="auto").confirms("y")
    assert config(members=["a"], options={"members": "open", "discard_keep": "12h"}).discard_keep_ms == 12 * 3600 * 1000


def test_contradictions_are_seen_in_what_was_not_parsed() -> None:
    bad = Declared(version=1, members=(DeclaredMember(name="b"), DeclaredMember(name="a", role="observer")), gospel="c", confirm_discard=("y", "x"))
    assert len(contradictions(bad)) == 4
