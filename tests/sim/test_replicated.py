"""Replicated logs under drawn faults: nothing that is committed is lost, whatever was killed, cut, slow, damaged, moved or without power.

By hand: ``python -m headrace.sim.replicated FIRST LAST``.
"""

import pytest

from headrace.sim.replicated import Run, Totals

SEEDS = 24
GROUPS = 4


@pytest.mark.parametrize("group", range(GROUPS))
def test_nothing_committed_is_lost(group: int) -> None:
    totals = Totals()
    for seed in range(group, SEEDS, GROUPS):
        totals.add(Run(seed).go())
    assert totals.confirmed > 100
    assert totals.led > SEEDS // GROUPS
    assert totals.replaced > 0


def test_a_seed_is_repeated() -> None:
    assert Run(3).go() == Run(3).go()
