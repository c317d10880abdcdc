"""Filters: what they match, what is refused, and the text form."""

import pytest

from headrace.core import filters
from headrace.model import limits
from headrace.model.errors import Invalid
from headrace.wire.control import Filter

HEADERS = [("region", b"eu"), ("kind", b"order.new"), ("kind", b"urgent"), ("raw", b"\xff\xfe"), ("empty", b"")]


def matches(text: str, key: bytes | None = b"k-1", headers: list[tuple[str, bytes]] = HEADERS) -> bool:
    return filters.compile(filters.parse(text)).match(key, headers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("region = eu", True),
        ("region = EU", False),
        ("region != eu", False),
        ("region ^= e", True),
        ("region ^= u", False),
        ("kind = urgent", True),
        ("kind ~ order.*", True),
        ("kind ~ *.n?w", True),
        ('kind ~ "[!o]*"', True),
        ("kind ~ [a-n]*", False),
        ("kind !~ order*", False),
        ("exists raw", True),
        ("exists nothing", False),
        ("nothing = x", False),
        ("nothing != x", True),
        ('empty = ""', True),
        ('empty ~ ""', True),
        ("raw ~ ??", True),
        ("raw ~ ?", False),
        ("key = k-1", True),
        ("key ^= k-", True),
        ("key ~ k-[0-9]", True),
        ("exists key", True),
        ('"key" = k-1', False),
        ("region = eu and kind = urgent", True),
        ("region = us or kind = urgent", True),
        ("region = us or region = eu and kind = none", False),
        ("(region = us or region = eu) and not kind = none", True),
        ("not not region = eu", True),
        ('region = eu and (kind ~ "ord*" or exists trace)', True),
    ],
)
def test_matching(text: str, expected: bool) -> None:
    assert matches(text) is expected


def test_a_missing_key_matches_no_term_on_the_key() -> None:
    assert not matches("exists key", None)
    assert not matches("key = k", None)
    assert not matches('key ~ "*"', None)
    assert matches("not exists key", None)
    assert matches("exists key", b"")


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("*", "", True),
        ("**", "a", True),
        ("a*b*c", "axxbyyc", True),
        ("a*b*c", "axxbyyd", False),
        ("*a*a*", "a", False),
        ("[", "[", True),
        ("[]", "[]", True),
        ("[]]", "]", True),
        ("[!]]", "x", True),
        ("[!]]", "]", False),
        ("[z-a]", "m", False),
        ("[!z-a]", "m", True),
        ("[a-]", "-", True),
        ("[^a]", "^", True),
        ("a\nb", "a\nb", True),
        ("?", "\n", True),
        ("é?", "éà", True),
        ("a.b", "axb", False),
        ("\\*", "\\x", True),
    ],
)
def test_globs(pattern: str, value: str, expected: bool) -> None:
    compiled = filters.compile(Filter("glob", header="h", value=pattern))
    assert compiled.match(None, [("h", value.encode())]) is expected


def test_a_hostile_glob_costs_no_more_than_its_length_times_the_values() -> None:
    compiled = filters.compile(Filter("glob", header="h", value="*a" * 200 + "b"))
    assert not compiled.match(None, [("h", b"a" * 20_000)])  # with backtracking this would take for ever; the test's time limit says so


def test_what_is_read_is_told() -> None:
    assert filters.compile(filters.parse("key = a")).reads_key
    assert not filters.compile(filters.parse("key = a")).reads_headers
    assert filters.compile(filters.parse("a = a or not exists b")).reads_headers


def nested(depth: int) -> Filter:
    found = Filter("exists", header="a")
    for _ in range(depth - 1):
        found = Filter("not", terms=(found,))
    return found


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (Filter("like", header="a"), "op must be one of"),
        (Filter("and"), "at least one term"),
        (Filter("or"), "at least one term"),
        (Filter("not", terms=(nested(1), nested(1))), "exactly one term"),
        (Filter("eq", header="a", terms=(nested(1),)), "takes no terms"),
        (Filter("exists", header="a", value="x"), "exists takes no value"),
        (Filter("and", header="a", terms=(nested(1),)), "neither header nor value"),
        (Filter("eq", header="a", value="x" * (limits.FILTER_VALUE_BYTES_MAX + 1)), "bytes"),
        (Filter("eq", header="a", value="\ud800"), "valid Unicode"),
        (Filter("or", terms=(nested(1),) * (limits.FILTER_TERMS_MAX + 1)), f"more than {limits.FILTER_TERMS_MAX} terms"),
        (nested(limits.FILTER_DEPTH_MAX + 1), "deeper"),
        (Filter("and", terms=(nested(1), Filter("or", terms=(nested(1), Filter("x"))))), r"filter\.and\[1\]\.or\[1\]"),
    ],
)
def test_bad_filters_are_refused_with_the_reason(source: Filter, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        filters.compile(source)


def test_the_bounds_themselves_are_allowed() -> None:
    filters.compile(nested(limits.FILTER_DEPTH_MAX))
    filters.compile(Filter("or", terms=(nested(1),) * limits.FILTER_TERMS_MAX))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the name of a header"),
        ("region", "one of ="),
        ("region =", "a value"),
        ("region = eu and", "found the end"),
        ("region = eu kind = x", "found 'kind' at character 13"),
        ("(region = eu", "closing parenthesis"),
        ("region = eu)", "the end"),
        ("and = x", "the name of a header"),
        ('"" = x', "the name of a header"),
        ('a = "open', "cannot read"),
        ("a ! b", "cannot read"),
        ("(" * 50 + "exists a" + ")" * 50, "deeper"),
        ("not " * 50 + "exists a", "deeper"),
        (" or ".join(["exists a"] * 40), "more than"),
        ("x" * (limits.FILTER_TEXT_CHARACTERS_MAX + 1), "longer"),
    ],
)
def test_bad_text_is_refused_with_the_place(text: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        filters.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        'region = eu and (kind ~ "ord*" or exists trace)',
        'not "key" = "two words"',
        'key ^= "a\\"b\\\\c" or not (a = 1 and b = 2)',
        "a = 1 or b = 2 and not c = 3",
    ],
)
def test_text_and_back(text: str) -> None:
    source = filters.parse(text)
    assert filters.parse(filters.format(source)) == source


def test_the_text_of_a_filter_is_the_plain_one() -> None:
    assert filters.format(filters.parse('( region="eu" )and((kind~ord* or exists trace))')) == "region = eu and (kind ~ ord* or exists trace)"
