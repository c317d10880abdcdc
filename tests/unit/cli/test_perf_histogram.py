"""The histogram's quantiles are within its step of the exact ones."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.perf_histogram import STEPS, Histogram


@given(st.lists(st.integers(1, 10**11), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_within_a_step(values: list[int], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, -(-int(q * len(values) * 1000) // 1000) - 1)]
    got = histogram.quantile_us(q) * 1e3
    assert min(v for v in values if v >= exact) >= got * 0.999999
    assert any(got <= v * 1.000001 and v <= got * (1 + 2 / STEPS) + 1 for v in values)


@given(st.lists(st.integers(1, 10**9)), st.lists(st.integers(1, 10**9)))
def test_merging_is_adding(left: list[int], right: list[int]) -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for value in left:
        one.add(value)
    for value in right:
        other.add(value)
    for value in left + right:
        both.add(value)
    one.merge(other)
    assert (one.counts, one.count, one.max_ns, one.sum_ns) == (both.counts, both.count, both.max_ns, both.sum_ns)


def test_counts_are_weights() -> None:
    weighted, single = Histogram(), Histogram()
    weighted.add(5_000, 3)
    for _ in range(3):
        single.add(5_000)
    assert weighted.summary() == single.summary()
    assert Histogram().summary() == {}
