"""``headrace start`` as a member of a cluster that is not there yet: what it refuses, what it waits for, and how that ends."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.cluster.opening import MAKE
from tests.cli.conftest import READY_S, Started
from tests.integration.formation.nodes import ports
from tests.plain import PLAIN

SEVERAL = [("--set", "coordination.mode=coordinated"), ("--voters", "a,b,c"), ("--cluster", "cluster.toml")]


@pytest.fixture
def secret(tmp_path: Path) -> str:
    subprocess.run(MAKE, shell=True, cwd=tmp_path, check=True)  # what the error says to do
    return str(tmp_path / "cluster-secret")


def asked(admin: str, what: str) -> httpx.Response:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            return httpx.get(f"http://{admin}/admin/api/{what}", verify=PLAIN, timeout=READY_S)
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def standing(admin: str, code: str) -> dict[str, Any]:
    deadline = time.monotonic() + READY_S
    while True:
        status: dict[str, Any] = asked(admin, "cluster").json()
        if status["code"] == code:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


@pytest.mark.parametrize("flags", SEVERAL)
def test_without_a_secret_it_is_refused_with_how_to_make_one(tmp_path: Path, flags: tuple[str, ...]) -> None:
    started = Started(tmp_path, "--name", "a", *flags, storage="disk")
    try:
        assert started.process.wait(READY_S) == 64
    finally:
        started.stop()
    log = started.log.read_text()
    assert "no cluster secret" in log
    assert MAKE in log
    assert "--secret-file" in log
    assert not started.ready_file.exists()


@pytest.mark.parametrize("flags", SEVERAL)
def test_it_never_keeps_a_cluster_in_memory(tmp_path: Path, flags: tuple[str, ...], secret: str) -> None:
    started = Started(tmp_path, "--name", "a", *flags, "--secret-file", secret, storage="memory")
    try:
        assert started.process.wait(READY_S) == 64
    finally:
        started.stop()
    assert "on disk" in started.log.read_text()


def test_it_waits_says_for_whom_and_a_signal_ends_it(tmp_path: Path, secret: str) -> None:
    assert os.stat(secret).st_mode & 0o077 == 0
    addresses = {name: f"127.0.0.1:{ports()}" for name in "abc"}
    voters = ",".join(f"{name}={address}" for name, address in addresses.items())
    admin = f"127.0.0.1:{ports()}"
    for n in range(2):  # and again on the directory of before
        started = Started(tmp_path, "--name", "b", "--voters", voters, "--secret-file", secret, "--admin", admin, storage="disk")
        try:
            status = standing(admin, "members_missing")
            assert [w["name"] for w in status["waits_for"]] == ["a", "c"], n
            assert all(abs(w["since_wall_ms"] / 1000 - time.time()) < READY_S for w in status["waits_for"])
            assert asked(admin, "live").json() == {"live": True}
            assert asked(admin, "health").status_code == 200
            ready = asked(admin, "ready")
            assert ready.status_code == 503
            assert ready.json()["message"] == "the broker is waiting"
            assert "a is not reachable" in ready.json()["hint"]
            refused = asked(admin, "queues")
            assert refused.status_code == 503
            assert refused.json()["retriable"]
            assert "a is not reachable" in refused.json()["message"]
            assert asked(admin, "status").json()["mode"] == "coordinated"
            assert not started.ready_file.exists()
            assert started.signalled(signal.SIGTERM) == 0
        finally:
            started.stop()
        log = started.log.read_text()
        assert "wait: a is not reachable; c is not reachable" in log
        assert "ERROR" not in log


def test_a_mistake_in_what_is_declared_is_shown_and_it_lives(tmp_path: Path, secret: str) -> None:
    (tmp_path / "cluster.toml").write_text("version = 0\n")
    admin, peer = f"127.0.0.1:{ports()}", f"127.0.0.1:{ports()}"
    flags = ["--name", "a", "--cluster", "cluster.toml", "--secret-file", secret, "--admin", admin, "--peer", peer]
    started = Started(tmp_path, *flags, storage="disk")
    try:
        status = standing(admin, "broken_config")
        assert "version" in json.dumps(status["configured"]["mistakes"])
        assert asked(admin, "live").status_code == 200
        assert asked(admin, "ready").json()["message"] == "the broker is halted"
        assert httpx.post(f"http://{admin}/admin/api/drain", json={"grace_ms": 1}, timeout=READY_S).status_code == 200
        assert started.process.wait(READY_S) == 0
    finally:
        started.stop()


def test_a_peer_address_in_use_is_named_with_what_to_do(tmp_path: Path, secret: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ["--name", "a", "--voters", f"a={address},b=127.0.0.1:7600,c=127.0.0.1:7610", "--secret-file", secret]
        started = Started(tmp_path, *flags, storage="disk")
        try:
            assert started.process.wait(READY_S) == 75
        finally:
            started.stop()
    assert f"listen.peer = {address}" in started.log.read_text()


def test_a_lone_broker_says_that_it_is_alone(broker: Started) -> None:
    refused = httpx.get(f"{broker.addresses['admin']}/admin/api/cluster", timeout=READY_S)
    assert refused.status_code == 400
    assert "alone" in refused.json()["message"]
