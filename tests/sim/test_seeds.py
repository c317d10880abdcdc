"""Seeds: those that broke a promise once, and as many new ones as there is time for."""

from pathlib import Path

import pytest

from headrace.sim.sweep import seeds_of
from headrace.sim.sweep import sweep as swept
from tests.sim.conftest import MINUTES, Sweep

SEEN = Path(__file__).parent / "seeds.txt"


def test_seeds_that_failed_once() -> None:
    failed = [result for result in swept(seeds_of(str(SEEN)), jobs=1) if not result.ok]
    assert not failed, "\n".join(f"seed {result.seed}: {result.violations[0]}" for result in failed)


def test_the_first_seeds() -> None:
    failed = [result for result in swept(range(1, 301), jobs=1) if not result.ok]
    assert not failed, "\n".join(f"seed {result.seed}: {result.violations[0]}" for result in failed)


@pytest.mark.skipif(not MINUTES, reason="HEADRACE_SIM_MINUTES says for how long to run new seeds")
@pytest.mark.timeout(MINUTES * 60 + 300)
def test_seeds_that_nobody_has_seen(sweep: Sweep) -> None:
    figures, said = sweep.wait()
    assert figures, said
    assert not figures["failures"], said
    assert figures["seeds"] > 0
