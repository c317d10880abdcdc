"""A short run of faults in a real cluster, seven of different kinds; `make chaos-cluster FAULTS=500` is the long one."""

import os
from pathlib import Path

import pytest

from tests.chaos.cluster import Run
from tests.chaos.command import run
from tests.chaos.machines import why_no_network

FAULTS = int(os.environ.get("HEADRACE_FAULTS", "7"))


@pytest.mark.slow
@pytest.mark.timeout(300 + 30 * FAULTS)
def test_no_promise_is_broken_by_faults_of_a_cluster(tmp_path: Path) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", "3"))
    print(f"HEADRACE_SEED={seed}, networks: {why_no_network() or 'yes'}")
    totals = run(Run, FAULTS, seed=seed, folder=tmp_path, per_s=300)
    assert totals["faults"] == FAULTS
    assert totals["confirmed"] == totals["published"] - totals["refused"] - totals["unknown"] > 0
    assert totals["stream_read_again"] > 0
