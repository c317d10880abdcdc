import itertools

from hypothesis import given
from hypothesis import strategies as st

from headrace.client.spans import contains, members, spans


@given(st.sets(st.integers(0, 60), max_size=25))
def test_spans_cover_exactly_and_are_shortest(offsets: set[int]) -> None:
    found = spans(offsets)
    assert list(members(found)) == sorted(offsets)
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(found))
    assert all(contains(found, o) == (o in offsets) for o in range(61))


def test_duplicates_do_not_matter() -> None:
    assert spans([3, 1, 2, 2, 7]) == [(1, 3), (7, 1)]
