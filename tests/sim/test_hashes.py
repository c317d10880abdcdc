"""The same seed makes the same run, whatever strings hash to and whichever Python runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
SEEDS = (3, 17, 40, 101, 150)
SCRIPT = f"from headrace.sim.run import run_seed\nprint(*(run_seed(seed)[0].digest for seed in {SEEDS}))"
CLUSTERS = (3, 25)
WITH_MQTT = (2,)
CLUSTERED = f"""
from headrace.sim.clusters.run import Run as Cluster
from headrace.sim.mqtt.run import Run as Mqtt
for run in (*map(Cluster, {CLUSTERS}), *map(Mqtt, {WITH_MQTT})):
    run.go()
    print(run.world.trace.digest())
"""


def digests(python: str, hash_seed: str, script: str = SCRIPT) -> str:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(SOURCE)}
    made = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return made.stdout.strip()


def importable(python: str) -> bool:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    asked = subprocess.run([python, "-c", "import headrace.sim.run"], capture_output=True, check=False, env=environment)
    return asked.returncode == 0


def test_a_run_does_not_depend_on_what_strings_hash_to() -> None:
    first = digests(sys.executable, "0")
    assert len(set(first.split())) == len(SEEDS)
    assert digests(sys.executable, "1") == first
    assert digests(sys.executable, "4242") == first


def test_nor_does_one_of_a_cluster() -> None:
    first = digests(sys.executable, "0", CLUSTERED)
    assert len(set(first.split())) == len(CLUSTERS) + len(WITH_MQTT)
    assert digests(sys.executable, "1", CLUSTERED) == first


@pytest.mark.parametrize("name", ["python3.11", "python3.12", "python3.13"])
def test_a_run_does_not_depend_on_the_version_of_python(name: str) -> None:
    python = shutil.which(name)
    if python is None:
        pytest.skip(f"there is no {name} here")
    if not importable(python):
        pytest.skip(f"{name} does not have what Headrace needs")
    assert digests(python, "7") == digests(sys.executable, "7")
