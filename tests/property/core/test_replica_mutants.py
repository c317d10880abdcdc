"""Known bugs of replication: each is caught in the small world, within so many seeds from the one named. All of them from seed 0 on:
``python -m headrace.sim.replicas --mutants``."""

import pytest

from headrace.sim.mutants.planting import Mutant
from headrace.sim.replicas.mutants import REPLICATION, hunt

FIRST = {"epoch-not-checked": 200, "highest-index-wins": 1900, "own-answer-after-an-unclean-stop": 100}
"""Where to begin with those that few seeds show."""
SEEDS = 200


@pytest.mark.slow
@pytest.mark.parametrize("mutant", REPLICATION, ids=lambda mutant: mutant.name)
def test_a_known_bug_is_caught(mutant: Mutant) -> None:
    first = FIRST.get(mutant.name, 0)
    caught = hunt(mutant, first=first, seeds_max=SEEDS)
    assert caught.seed >= 0, f"{mutant.wrong}: not seen in the seeds {first} to {first + SEEDS}"
