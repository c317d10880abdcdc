"""Clients that carry on by themselves under drawn faults: what they post is confirmed and stored once, in order, and what they read has no gap.

By hand: ``python -m headrace.sim.following FIRST LAST``.
"""

import pytest

from headrace.sim.following import Following


@pytest.mark.parametrize("seed", [1, 3, 8])
def test_a_client_carries_on(seed: int) -> None:
    totals = Following(seed).go()
    assert totals.confirmed > 500
    assert totals.acked > 300
    assert totals.read > 300
    assert totals.deaths + totals.cuts > 0
