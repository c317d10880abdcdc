"""Whole clusters under all faults: seeds that broke a promise once, and as many new ones as a minute allows.

By hand: ``python -m headrace.sim.clusters --seeds A-B --jobs N``.
"""

from pathlib import Path

import pytest

from headrace.sim.clusters.run import KINDS, Totals
from headrace.sim.clusters.sweep import one, sweep
from headrace.sim.sweep import seeds_of
from tests.sim.test_seeds import first_seed

SEEN = Path(__file__).parent / "clusters.txt"
NEW = 20
GROUPS = 4


def swept(seeds: list[int]) -> Totals:
    totals = Totals()
    wrong: list[str] = []
    for result in sweep(seeds, jobs=1):
        totals.add(result.totals)
        if result.wrong:
            wrong.append(f"seed {result.seed}: {result.wrong}")
    assert not wrong, "\n".join(wrong)
    return totals


@pytest.mark.parametrize("group", range(GROUPS))
def test_seeds_that_failed_once(group: int) -> None:
    totals = swept(seeds_of(str(SEEN))[group::GROUPS])
    assert totals.confirmed > 0


@pytest.mark.parametrize("group", range(GROUPS))
def test_seeds_that_nobody_has_seen(group: int) -> None:
    """They follow from the sources as they were committed; that changes of members happen is seen with known ones, below."""
    first = first_seed() + group
    totals = swept(list(range(first, first + NEW, GROUPS)))
    assert totals.seeds == NEW // GROUPS
    assert totals.confirmed > 10


def test_a_seed_is_repeated() -> None:
    first, again = one(4), one(4)
    first.totals.real_s = again.totals.real_s = 0.0
    assert first == again


def test_every_kind_of_fault_happens() -> None:
    """And is seen in what is counted: a sweep in which nothing goes wrong says nothing."""
    totals = swept(list(range(8)))
    assert len(set(KINDS)) == len(KINDS)
    faults = ("deaths", "cuts", "pauses", "disks", "outages", "absent", "joined", "acts", "nights")
    for name in (*faults, "isr", "members", "owners", "confirmed", "acked", "read"):
        assert getattr(totals, name) > 0, name
