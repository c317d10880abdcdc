"""Whole brokers of a cluster under drawn faults: nothing that was confirmed is lost, whatever was killed, cut, slow or without power.

By hand: ``python -m headrace.sim.clustered FIRST LAST``.
"""

import pytest

from headrace.sim.clustered import Run, Totals

SEEDS = 12
GROUPS = 4


@pytest.mark.parametrize("group", range(GROUPS))
def test_nothing_confirmed_is_lost(group: int) -> None:
    totals = Totals()
    for seed in range(group, SEEDS, GROUPS):
        totals.add(Run(seed).go())
    assert totals.confirmed > 1000
    assert totals.acked > 500
    assert totals.deaths + totals.cuts > SEEDS // GROUPS


def test_a_seed_is_repeated() -> None:
    assert Run(3).go() == Run(3).go()
