"""Whole brokers of a cluster under drawn faults: nothing that was confirmed is lost, whatever was killed, cut, slow or without power.

By hand: ``python -m headrace.sim.clustered FIRST LAST``.
"""

import pytest

from headrace.sim.clustered import Run, Totals

SEEDS = ((1, 3), (2, 4))
"""Short ones: longer ones are run by ``make sim-cluster``."""


@pytest.mark.parametrize("seeds", SEEDS)
def test_nothing_confirmed_is_lost(seeds: tuple[int, ...]) -> None:
    totals = Totals()
    for seed in seeds:
        totals.add(Run(seed).go())
    assert totals.confirmed > 1000
    assert totals.acked > 500
    assert totals.deaths + totals.cuts > len(seeds)


def test_a_seed_is_repeated() -> None:
    assert Run(3).go() == Run(3).go()
