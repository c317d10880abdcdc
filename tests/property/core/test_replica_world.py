"""The replication machines in their small world: crashes, lost and repeated messages, slow and lying disks, moves, lost answers of the coordinator.

Many more seeds: ``python -m headrace.sim.replicas --seeds 0-20000``.
"""

import pytest

from headrace.sim.replicas.run import run
from tests.property.effort import FACTOR

SEEDS = 160


@pytest.mark.parametrize("first", range(0, SEEDS * FACTOR, 40))
def test_nothing_committed_is_lost(first: int) -> None:
    for seed in range(first, first + 40):
        result = run(seed)
        assert not result.invariant, f"seed {seed}: {result.text}"


def test_a_seed_is_the_same_run_each_time() -> None:
    one: list[str] = []
    other: list[str] = []
    assert run(11, trace=one).events == run(11, trace=other).events
    assert one == other
    assert len(one) > 100
