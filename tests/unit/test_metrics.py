"""Counters, histograms and the bound on names."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.broker.metrics import COUNTERS, HISTOGRAMS, Counters, Histogram, NameMetrics, bounded, upper_bound_us


@given(st.lists(st.tuples(st.integers(-5, 1 << 40), st.integers(1, 5)), max_size=50))
def test_a_histogram_keeps_every_value_within_a_quarter(values: list[tuple[int, int]]) -> None:
    histogram = Histogram()
    for us, count in values:
        histogram.observe(us, count)
    assert sum(histogram.counts) == histogram.count == sum(c for _, c in values)
    flat = sorted(min(max(us, 0), 1 << 28) for us, c in values for _ in range(c))
    if flat:
        high = histogram.percentile(1.0)
        assert flat[-1] <= high <= flat[-1] * 1.25 + 1
        median = flat[(len(flat) + 1) // 2 - 1]
        assert median <= histogram.percentile(0.5) <= median * 1.25 + 1
    assert histogram.cumulative([1 << 29])[-1] == histogram.count


def test_buckets_are_contiguous_and_ascending() -> None:
    bounds = [upper_bound_us(i) for i in range(108)]
    assert bounds == sorted(set(bounds))
    histogram = Histogram()
    for us in range(1, 5000):
        histogram.observe(us)
    assert histogram.cumulative([8, 64, 1024, 4096]) == [7, 63, 1023, 4095]


def test_rates_and_history() -> None:
    counters = Counters()
    for second in range(200):
        counters.sample(second * 1000)
        counters.published += 50
        counters.confirmed(0.5, 50)
    assert counters.rate("published") == 50
    assert counters.rate("delivered") == 0
    assert counters.history()["published"] == [50.0] * 120
    assert 500 <= counters.confirm_latency.percentile(0.99) <= 640


def test_every_series_is_a_field() -> None:
    counters = Counters()
    assert all(getattr(counters, m.name) == 0 for m in COUNTERS)
    assert all(getattr(counters, m.name).count == 0 for m in HISTOGRAMS)


@given(st.integers(0, 6), st.lists(st.integers(0, 9), max_size=8))
def test_names_are_bounded_and_nothing_is_lost(names_max: int, published: list[int]) -> None:
    names = [NameMetrics(name=f"n{i}", kind="stream" if i % 3 == 0 else "queue", published=p, ready=p, lag=p) for i, p in enumerate(published)]
    kept = bounded(names, names_max)
    assert sum(n.name != "_other" for n in kept) == min(names_max, len(names))
    assert sum(n.ready for n in kept) == sum(published)
    assert len(kept) <= names_max + 2
