"""Range sets and maps against plain dicts of single offsets."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.ranges import RangeMap, RangeSet, gaps
from tests.property.effort import effort

operations = st.lists(
    st.tuples(st.sampled_from(["put", "put", "cut", "take", "pieces"]), st.integers(0, 120), st.integers(0, 30), st.integers(0, 2)), max_size=120
)


def plain(pieces: list[tuple[int, int, int]]) -> dict[int, int]:
    return {offset: value for first, end, value in pieces for offset in range(first, end)}


@effort(150)
@given(operations=operations, block=st.sampled_from([2, 3, 512]))
def test_a_range_map_is_a_dict_of_offsets(operations: list[tuple[str, int, int, int]], block: int) -> None:
    held: RangeMap[int] = RangeMap(block_ranges=block)
    model: dict[int, int] = {}
    for name, first, count, value in operations:
        end = first + count
        inside = {offset: v for offset, v in model.items() if first <= offset < end}
        if name == "put":
            held.put(first, end, value)
            model.update(dict.fromkeys(range(first, end), value))
        elif name == "cut":
            assert plain(held.cut(first, end)) == inside
            model = {offset: v for offset, v in model.items() if offset not in inside}
        elif name == "pieces":
            pieces = held.pieces(first, end)
            assert plain(pieces) == inside
            assert pieces == sorted(pieces)
            assert held.pieces(first, end, 2) == pieces[:2]
            missing = {offset for low, high in gaps(pieces, first, end) for offset in range(low, high)}
            assert missing == set(range(first, end)) - set(inside)
        elif model:
            low, high, v = held.take(max(1, count))
            assert low == min(model)
            assert 1 <= high - low <= max(1, count)
            for offset in range(low, high):
                assert model.pop(offset) == v
        held.check()
        assert held.count == len(model)
        assert plain(list(held)) == model
        assert (held.first, held.end) == ((min(model), max(model) + 1) if model else (-1, -1))
        assert bool(held) == bool(model)
        assert (first in held) == (first in model)
    whole = list(held)
    assert all(a[1] < b[0] or a[2] != b[2] for a, b in pairwise(whole)), "neighbours of equal value are joined"


def test_a_hundred_million_offsets_are_one_range() -> None:
    held = RangeSet()
    for first in range(0, 100_000_000, 1_000_000):
        held.add(first, first + 1_000_000)
    assert len(held) == 1
    assert held.count == 100_000_000


def test_a_hundred_thousand_holes_stay_cheap_to_find() -> None:
    held = RangeSet()
    held.add(0, 300_000)
    for offset in range(0, 300_000, 3):
        assert held.cut(offset, offset + 1) == [(offset, offset + 1, True)]
    held.check()
    assert len(held) == 100_000
    assert held.find(150_001) == (150_001, 150_003, True)
    assert held.find(150_000) is None
    for offset in range(0, 300_000, 3):
        held.add(offset, offset + 1)
    assert held.ranges() == [(0, 300_000)]
