"""Every row of the benchmark still runs and loses nothing; how fast does not matter here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.coordination.etcds import binary

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_tiny_run_of_every_row(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--only", "headrace", "--rounds", "1", "--tiny", "--results", str(tmp_path)]
    environment = os.environ | {"BENCH_ROOT": str(tmp_path / "data")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = tmp_path.glob("*.jsonl")
    _head, *rows = [json.loads(line) for line in results.read_text().splitlines()]
    expected = {"publish-100", "both", "queues", "backlog", "paced", "flood", "append", "replay"}
    if shutil.which("gcc"):
        mqtt = ("idle", "connects", "qos0", "qos1-publish", "qos1", "fan-out", "fan-in", "filters-10", "filters-many", "paced")
        expected |= {f"mqtt-{key}" for key in mqtt}
    assert {row["row"] for row in rows} >= expected
    for row in rows:
        assert "error" not in row, row
        assert row["rate"] > 0, row
        assert (row["lost"], row["dup"], row["misorder"], row["refused"]) == (0, 0, 0, 0), row


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_tiny_run_of_the_client(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.client", "--messages", "3000", "--rounds", "1", "--dry"]
    environment = os.environ | {"BENCH_ROOT": str(tmp_path / "data")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| ") == 5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_tiny_run_of_failovers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.failover", "--kinds", "owner,paused", "--times", "1", "--json", "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["kind"] for row in rows] == ["owner", "paused"]
    assert all(row["gap_s"] > 0 and not row["failures"] for row in rows)


def _etcd() -> list[str]:
    return ["--etcd", str(binary())] if binary() else []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_tiny_run_of_three_brokers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.cluster", "--rounds", "1", "--secs", "0.3", "--dry", *_etcd()]
    environment = os.environ | {"BENCH_ROOT": str(tmp_path / "data")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| publish") + done.stdout.count("\n| confirms") == 6


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_five_brokers_share_partitions_out_and_survive_kills(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.many", "--brokers", "5", "--partitions", "40", "--queues", "4", "--used", "2", "--kills", "2", "--dry"]
    environment = os.environ | {"BENCH_ROOT": str(tmp_path / "data")}
    done = subprocess.run([*command, *_etcd()], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=390, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 60 confirmed messages delivered" in done.stdout
