"""Clients that carry on by themselves under drawn faults: what they post is confirmed and stored once, in order, and what they read has no gap.

By hand: ``python -m headrace.sim.following FIRST LAST``.
"""

import pytest

from headrace.sim.clustered import Broken
from headrace.sim.following import Following


@pytest.mark.parametrize("seed", [1, 3, 8])
def test_a_client_carries_on(seed: int) -> None:
    totals = Following(seed).go()
    assert totals.confirmed > 500
    assert totals.acked > 300
    assert totals.read > 300
    assert totals.deaths + totals.cuts > 0


class Late(Following):
    """A message is posted and confirmed only so many seconds after all was healed, if ever."""

    lasts_s = (0.5, 0.5)
    wait_s: float

    async def _heal(self) -> None:
        sent = self.books["events"].sent
        sent[0] = False
        self.books["events"].delivered[0] = True
        self.world.loop.post(None, self.wait_s, sent.__setitem__, 0, True)
        await super()._heal()


def test_a_confirm_is_waited_for_in_bounded_time_after_all_was_healed() -> None:
    run = Late(1)
    run.wait_s = 20.0
    run.go()
    assert run.world.loop.time() > 20.0
    run = Late(1)
    run.wait_s = 100.0
    with pytest.raises(Broken, match="F1 1 of events"):
        run.go()
