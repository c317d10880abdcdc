from hypothesis import given
from hypothesis import strategies as st

from headrace.client.backoff import Backoff


@given(st.lists(st.floats(0, 0.999), max_size=30))
def test_every_delay_lies_within_its_bounds_and_steps_double(fractions: list[float]) -> None:
    backoff = Backoff(0.05, 5.0)
    for i, fraction in enumerate(fractions):
        step = min(0.05 * 2**i, 5.0)
        assert step / 2 <= backoff.next_s(fraction) <= step
    backoff.reset()
    assert backoff.next_s(0.0) == 0.025
    assert backoff.attempts == 1
