"""Clients that carry on by themselves under drawn faults: what they post is confirmed and stored once, in order, and what they read has no gap.

By hand: ``python -m headrace.sim.following FIRST LAST``.
"""

import pytest

from headrace.sim.clustered import Broken
from headrace.sim.following import Following

SLOW = 12
"""On slow disks: when all is healed more is left than is settled in a minute, one at a time. 17 and 21 are such, too."""


@pytest.mark.parametrize("seed", [1, 3, 8, SLOW])
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


class Backlog(Late):
    """3,000 are confirmed and not delivered when all was healed, and so many of them come, so many a second."""

    wait_s = 0.0

    def __init__(self, *, come: int, a_second: float) -> None:
        super().__init__(1)
        self.come, self.a_second = come, a_second

    async def _heal(self) -> None:
        book = self.books["events"]
        for number in range(-3_000, 0):
            book.sent[number] = True
        for i in range(self.come):
            self.world.loop.post(None, i / self.a_second, book.delivered.__setitem__, -3_000 + i, True)
        await super()._heal()


def test_a_backlog_is_waited_for_as_long_as_it_comes_at_the_pace_of_one_taker() -> None:
    run = Backlog(come=3_000, a_second=25)
    run.go()
    assert run.world.loop.time() > 120.0


def test_a_backlog_of_which_no_more_comes_is_noticed() -> None:
    run = Backlog(come=1_500, a_second=25)
    with pytest.raises(Broken, match=r"K1 or K5: 1500 of events .* in the last 60 s only \d+ came"):
        run.go()
    assert run.world.loop.time() < 120.0


def test_a_backlog_that_only_trickles_is_noticed() -> None:
    with pytest.raises(Broken, match=r"K1 or K5: \d+ of events .* in the last 60 s only \d+ came"):
        Backlog(come=3_000, a_second=10).go()


def test_a_confirm_is_not_waited_for_longer_because_a_backlog_comes() -> None:
    run = Backlog(come=3_000, a_second=25)
    run.wait_s = 100.0
    with pytest.raises(Broken, match="F1 1 of events"):
        run.go()
    assert run.world.loop.time() < 75.0
