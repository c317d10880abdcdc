"""Members of cohorts and groups come and go while brokers do: one holder of a partition at a time, and everything is consumed.

By hand: ``python -m headrace.sim.members FIRST LAST``.
"""

import pytest

from headrace.sim.members import Members


@pytest.mark.parametrize("seed", [3, 12, 101])
def test_members_share_what_there_is(seed: int) -> None:
    run = Members(seed)
    totals = run.go()
    assert totals.confirmed > 100
    assert totals.acked > 50
    assert totals.read > 50
    assert totals.deaths + totals.cuts > 0
    assert run.moves > 5
