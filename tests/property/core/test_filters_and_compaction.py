"""Filters against ``fnmatch`` and a naive reading, their text form, and compaction against a dictionary."""

from contextlib import suppress
from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from headrace.core import filters
from headrace.core.compaction import Compaction, Row
from headrace.model.errors import Invalid
from headrace.model.limits import FILTER_DEPTH_MAX
from headrace.wire.control import Filter
from tests.property.effort import effort

PATTERN = st.lists(st.sampled_from([*"ab[]!*?^\\.", "[a-b]", "[!a-b.]"]), max_size=12).map("".join)
"""Without ranges from high to low, which ``fnmatch`` may read as a negation."""
VALUE = st.text("ab[]!-^\\.\n", max_size=12)
PLAIN = st.builds(Filter, st.sampled_from(["eq", "prefix", "glob"]), st.sampled_from(["", "h", "key", "and", 'a "b"\\']), PATTERN) | st.builds(
    Filter, st.just("exists"), st.sampled_from(["", "h", "key"])
)


def joined(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.builds(lambda op, terms: Filter(op, terms=terms), st.sampled_from(["and", "or"]), several) | inner.map(
        lambda term: Filter("not", terms=(term,))
    )


FILTER = st.recursive(PLAIN, joined, max_leaves=8)
HEADERS = st.lists(st.tuples(st.sampled_from(["h", "key", "and", 'a "b"\\']), VALUE.map(str.encode)), max_size=4)


def naive(term: Filter, key: bytes | None, headers: list[tuple[str, bytes]]) -> bool:
    if term.op == "not":
        return not naive(term.terms[0], key, headers)
    if term.op in ("and", "or"):
        results = [naive(t, key, headers) for t in term.terms]
        return all(results) if term.op == "and" else any(results)
    values = [v for h, v in headers if h == term.header] if term.header else [] if key is None else [key]
    if term.op == "exists":
        return bool(values)
    if term.op == "eq":
        return term.value.encode() in values
    if term.op == "prefix":
        return any(v.startswith(term.value.encode()) for v in values)
    return any(fnmatchcase(v.decode(), term.value) for v in values)


@given(PATTERN, VALUE)
@effort(400)
def test_globs_are_those_of_fnmatch(pattern: str, value: str) -> None:
    compiled = filters.compile(Filter("glob", header="h", value=pattern))
    assert compiled.match(None, [("h", value.encode())]) == fnmatchcase(value, pattern)


@given(FILTER, st.none() | VALUE.map(str.encode), HEADERS)
@effort(250)
def test_filters_mean_what_they_say_and_their_text_means_the_same(source: Filter, key: bytes | None, headers: list[tuple[str, bytes]]) -> None:
    try:
        compiled = filters.compile(source)
    except Invalid:
        return
    assert compiled.match(key, headers) == naive(source, key, headers)
    assert filters.parse(filters.format(source)) == source


@given(st.text('ab ="~()!^\\andortxis', max_size=40))
@effort(250)
def test_any_text_is_a_filter_or_invalid(text: str) -> None:
    try:
        source = filters.parse(text)
    except Invalid:
        return
    assert filters.parse(filters.format(source)) == source


@given(st.text(max_size=60))
@effort(200)
def test_any_text_of_any_alphabet_is_a_filter_or_invalid(text: str) -> None:
    with suppress(Invalid):
        source = filters.parse(text)
        assert filters.parse(filters.format(source)) == source


LOOSE_TERM = st.builds(
    Filter,
    st.sampled_from(["eq", "prefix", "glob", "exists", "and", "or", "not", "", "EQ"]),
    st.text(st.characters(), max_size=5),
    st.text(st.characters(), max_size=8) | st.just("*" * 40 + "x"),
)
LOOSE = st.recursive(
    LOOSE_TERM,
    lambda inner: st.builds(lambda op, terms: Filter(op, terms=tuple(terms)), st.sampled_from(["and", "or", "not"]), st.lists(inner, max_size=4)),
)


@given(LOOSE, st.none() | st.binary(max_size=20), st.lists(st.tuples(st.text(max_size=4), st.binary(max_size=60)), max_size=4))
@effort(200)
def test_any_filter_is_invalid_or_matches_anything_without_an_error(source: Filter, key: bytes | None, headers: list[tuple[str, bytes]]) -> None:
    with suppress(Invalid):
        assert filters.compile(source).match(key, headers) in (True, False)


def written(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map("".join), inner.map("not {}".format), inner.map("({})".format))


@given(st.recursive(st.sampled_from(["exists a", "exists b", "exists c"]), written, max_leaves=9), st.sets(st.sampled_from("abc")))
@effort(200)
def test_words_bind_as_they_do_in_python(text: str, there: set[str]) -> None:
    try:
        compiled = filters.compile(filters.parse(text))
    except Invalid:
        assert text.count("(") + text.count("not") >= FILTER_DEPTH_MAX - 2
        return
    meant = eval(text.replace("exists ", ""), {name: name in there for name in "abc"})
    assert compiled.match(None, [(name, b"") for name in sorted(there)]) == meant


@given(
    log=st.lists(st.tuples(st.none() | st.sampled_from([b"a", b"b", b"c", b"d" * 20, b""]), st.booleans(), st.integers(0, 20)), max_size=40),
    clean=st.integers(0, 40),
    keys_max=st.integers(1, 5),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
@effort(250)
def test_compaction_keeps_the_last_of_each_key(log: list[tuple[bytes | None, bool, int]], clean: int, keys_max: int, steps: list[int]) -> None:
    clean = min(clean, len(log))
    rows = [Row(n, *r) for n, r in enumerate(log)]
    alive = survivors(rows[:clean])
    rows = [r for r in rows if r.offset >= clean or r.offset in alive]
    run = Compaction(start=0, clean_end=clean, end=len(log), wall_ms=30, tombstone_ms=15, keys_max=keys_max)
    gone: set[int] = set()
    turn = 0
    while (wanted := run.wants()) is not None:
        first, end = wanted
        upto = min(end, first + steps[turn % len(steps)])
        for start, count in run.feed([r for r in rows if first <= r.offset < upto], upto):
            gone.update(range(start, start + count))
        run.check()
        turn += 1
    assert run.clean_end == len(log)
    assert {r.offset for r in rows} - gone == survivors(rows)


def survivors(rows: list[Row]) -> set[int]:
    last = {r.key: r for r in rows if r.key is not None}
    return {r.offset for r in rows if r.key is None} | {r.offset for r in last.values() if not (r.tombstone and r.wall_ms <= 15)}
