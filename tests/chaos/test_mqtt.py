"""A short run of faults in a real cluster with MQTT clients; `make chaos-mqtt FAULTS=200` is the long one."""

import os
from pathlib import Path

import pytest

from tests.chaos.command import run
from tests.chaos.machines import why_no_network
from tests.chaos.mqtt import Run

FAULTS = int(os.environ.get("HEADRACE_FAULTS", "4"))


@pytest.mark.slow
@pytest.mark.timeout(300 + 30 * FAULTS)
def test_no_promise_of_mqtt_is_broken_by_faults_of_a_cluster(tmp_path: Path) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", "3"))
    print(f"HEADRACE_SEED={seed}, networks: {why_no_network() or 'yes'}")
    totals = run(Run, FAULTS, seed=seed, folder=tmp_path)
    assert totals["faults"] == FAULTS
    for name in ("confirmed", "delivered", "sessions_resumed", "taken_over", "wills"):
        assert totals[name] > 0, name
