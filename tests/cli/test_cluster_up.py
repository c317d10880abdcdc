"""``headrace cluster up`` with real processes: what it starts, says, checks and verifies, and that nothing is left of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.cli.asking import ask
from headrace.wire import control
from tests.integration.coordination.etcds import binary

pytestmark = pytest.mark.timeout(600)

WAIT_S = 120.0
ETCD = "HEADRACE_COORDINATION__ETCD__BINARY"


class Up:
    """A running ``headrace cluster up --json``."""

    def __init__(self, folder: Path, *options: str, etcd: str = "") -> None:
        self.data = folder / "cluster"
        self.told = folder / "told.txt"
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        if etcd or binary():
            env[ETCD] = etcd or binary()
        argv = [sys.executable, "-m", "headrace.cli", "cluster", "up", "--json", "--data-dir", str(self.data), *options]
        with self.told.open("a") as told:
            self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=told, env=env, text=True)

    def result(self) -> dict[str, Any]:
        """What it prints, once it does."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.told.read_text()
        found: dict[str, Any] = json.loads(line)
        return found

    def says(self, text: str) -> None:
        """Waits until it does."""
        until(lambda: text in self.told.read_text(), self.told.read_text)

    def ended(self, number: signal.Signals | None = None) -> int:
        """Its exit code, after that signal."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def processes(self) -> list[int]:
        """All that run on its directory, itself left out."""
        mark, found = str(self.data).encode(), []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if mark in path.read_bytes() and int(path.parent.name) != self.process.pid:
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def until(true: Callable[[], bool], why: Callable[[], str]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*options: str, etcd: str = "") -> Up:
        started.append(Up(tmp_path, *options, etcd=etcd))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        for pid in one.processes():
            os.kill(pid, signal.SIGKILL)
        assert one.process.stdout is not None
        one.process.stdout.close()


async def test_three_brokers_serve_a_demo_until_it_is_stopped(up: Callable[..., Up]) -> None:
    cluster = up()
    found = cluster.result()
    assert found["data_dir"] == str(cluster.data)
    assert [(b["name"], b["role"]) for b in found["brokers"]] == [("a", "voter"), ("b", "voter"), ("c", "voter")]
    assert [what.split()[0] for what in found["checks"]] == ["30", "30", "every"]
    assert found["healthy_ms"] > 0
    assert found["url"] == "headrace://" + ",".join(b["url"].removeprefix("headrace://") for b in found["brokers"])
    for broker in found["brokers"]:
        now = ask(broker["url"], control.ClusterTopology(), control.ClusterTopologyInfo)
        assert {b.state for b in now.brokers} == {"alive"}
        assert {p.name for p in now.partitions} >= {"demo.orders", "demo.shipments", "demo.events"}
        assert {len(p.replicas) for p in now.partitions} == {3}
    async with headrace.connect(found["url"], wait=WAIT_S) as client:
        async with client.read("demo.events", start="latest") as records:  # traffic goes on
            assert (await records.__anext__()).json()["of"] == "demo.events"
    assert len(cluster.processes()) == 6
    victim = found["brokers"][1]
    os.kill(victim["pid"], signal.SIGKILL)
    cluster.says("b has ended by SIGKILL; start it again: headrace start --name b")
    assert cluster.ended(signal.SIGTERM) == 0
    assert cluster.processes() == []
    assert not cluster.data.exists()


def test_one_after_another_they_say_on_whom_they_wait(up: Callable[..., Up]) -> None:
    cluster = up("--brokers", "4", "--staggered", "--no-demo")
    found = cluster.result()
    assert [b["role"] for b in found["brokers"]] == ["voter", "voter", "voter", "observer"]
    lines = cluster.told.read_text()
    told = [
        "starting a, voter 1 of 3", "no quorum yet: a cannot form a cluster without b, c", "starting b, voter 2 of 3",
        "no quorum yet: a, b cannot form a cluster without c", "starting c, voter 3 of 3",
        "starting d, an observer", "is elected controller, term",
    ]  # fmt: skip
    where = [lines.find(text) for text in told]
    assert -1 not in where, lines
    assert where == sorted(where)
    waits = lines.find("a is wait: b is not reachable; c is not reachable")  # told when it is looked at, not by the one who starts them
    assert where[0] < waits < where[-1]
    assert "is elected leader of the consensus" in lines
    now = ask(found["brokers"][3]["url"], control.ClusterTopology(), control.ClusterTopologyInfo)
    assert {b.name: b.voter for b in now.brokers} == {"a": True, "b": True, "c": True, "d": False}
    assert "demo.orders" not in {p.name for p in now.partitions}
    assert cluster.ended(signal.SIGINT) == 0
    assert cluster.processes() == []
    assert not cluster.data.exists()


async def test_what_is_kept_goes_on(up: Callable[..., Up]) -> None:
    first = up("--brokers", "1", "--no-demo", "--keep")
    before = first.result()
    async with headrace.connect(before["url"], wait=WAIT_S) as client:
        await client.declare_queue("orders")
        await client.publish("orders", b"kept")
    assert first.ended(signal.SIGTERM) == 0
    assert first.processes() == []
    assert "the data is kept: headrace cluster up --brokers 1 --data-dir" in first.told.read_text()
    again = up("--brokers", "1", "--no-demo")
    after = again.result()
    assert after["url"] == before["url"]
    async with headrace.connect(after["url"], wait=WAIT_S) as client, client.consume("orders") as messages:
        assert (await messages.__anext__()).value == b"kept"
    assert again.ended(signal.SIGTERM) == 0
    assert again.data.exists(), "what an earlier run kept is not removed by a later one"


def test_failovers_lose_nothing(up: Callable[..., Up]) -> None:
    cluster = up("--failover-verify")
    found = cluster.result()
    assert cluster.ended() == 0, cluster.told.read_text()
    assert found["ok"]
    assert [phase["fault"] for phase in found["phases"]] == ["kill", "pause"]
    for phase in found["phases"]:
        assert phase["ok"]
        for load in phase["load"]:
            assert load["missing"] == 0
            assert load["faults"] == []
            assert load["confirmed"] + sum(load["failed"].values()) == load["sent"]
            assert load["delivered"] >= load["confirmed"] > 100
        queue = phase["load"][0]
        assert 0 in queue["partitions_of_the_owner"]
        assert queue["confirm_gap_ms"]["max"] > queue["confirm_gap_ms"]["p50"] > 0
    assert cluster.processes() == []
    assert not cluster.data.exists()


def test_stopped_while_it_starts_it_leaves_nothing(up: Callable[..., Up]) -> None:
    cluster = up()
    until(lambda: len(cluster.processes()) >= 3, cluster.told.read_text)
    assert cluster.ended(signal.SIGTERM) == 0
    assert cluster.processes() == []
    assert not cluster.data.exists()


@pytest.mark.parametrize("healthy", [True, False], ids=["healthy", "starting"])
def test_killed_it_leaves_no_process(up: Callable[..., Up], healthy: bool) -> None:
    cluster = up("--no-demo")
    if healthy:
        cluster.result()
        assert len(cluster.processes()) == 6
    else:
        until(lambda: len(cluster.processes()) >= 4, cluster.told.read_text)  # with an etcd, at least
    cluster.process.kill()
    until(lambda: cluster.processes() == [], lambda: "\n".join(log.read_text() for log in cluster.data.glob("?.log")))
    for log in cluster.data.glob("?.log"):
        assert "standard input has ended" in log.read_text()
        assert " ERROR " not in log.read_text()


def test_what_cannot_be_is_refused_with_what_to_do(up: Callable[..., Up], tmp_path: Path) -> None:
    missing = up(etcd=str(tmp_path / "etcd"))
    assert missing.ended() != 0
    error = json.loads(missing.told.read_text())
    assert error["error"] == "ProgramMissing"
    assert "apt-get install --no-install-recommends etcd-server" in error["hint"]
    assert "pip install 'headrace[tryout]'" in error["hint"]
    assert not missing.data.exists()
    missing.told.write_text("")
    few = up("--brokers", "2", "--failover-verify")
    assert few.ended() == 64
    assert "three brokers" in few.told.read_text()
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine").write_text("")
    full = up()
    assert full.ended() == 64
    assert "is not empty" in full.told.read_text()
    assert (tmp_path / "cluster" / "mine").exists()
