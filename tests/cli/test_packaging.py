"""Dockerfile, compose file and systemd unit, as far as that goes without an engine: their commands are parsed by the real command line, their
settings by the real configuration, their health checks asked of a real broker."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from headrace.cli.app import app
from headrace.cluster.formation import declaring
from headrace.cluster.formation.addresses import settled
from headrace.config import load
from headrace.model.config import Config
from headrace.model.ports import DefaultPort
from tests.cli.conftest import READY_S, Started

ROOT = Path(__file__).resolve().parents[2]
PORTS = {7580, 7581, *map(int, (DefaultPort.PEER, DefaultPort.GOSSIP, DefaultPort.ETCD_CLIENT, DefaultPort.ETCD_PEER))}


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: words and what follows them, lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in joined)]


def said(word: str) -> str:
    """The last one, which counts."""
    return [rest for one, rest in instructions() if one == word][-1]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(said("ENV")))


def parsed(argv: list[str]) -> dict[str, Any]:
    """What the command line makes of ``headrace ARGV``; it raises for what is no command or no flag."""
    command = typer.main.get_command(app)
    name, start, rest = command.resolve_command(command.make_context("headrace", ["status"]), argv)  # type: ignore[attr-defined]
    assert name == "start"
    made: dict[str, Any] = start.make_context("start", rest).params
    return {key: value for key, value in made.items() if value not in (None, False, ())}


def configured(argv: list[str], env: dict[str, str]) -> Config:
    """The configuration that a broker of that command would have."""
    names = {"data_dir": "broker.data_dir", "name": "broker.name", "voters": "cluster.voters", "secret_file": "peers.secret_file"}
    names |= {"advertise": "listen.native_advertise", "admin_advertise": "listen.admin_advertise"}
    given = {names[key]: (f"--{key}", str(value)) for key, value in parsed(argv).items() if key in names}
    if "cluster.voters" in given:
        given["coordination.mode"] = ("--voters", "coordinated")
    return load(None, {k: v for k, v in env.items() if k.startswith("HEADRACE_")}, given).config


def test_the_image_starts_a_broker_that_is_reached_from_outside() -> None:
    argv = [*json.loads(said("ENTRYPOINT")), *json.loads(said("CMD"))]
    assert argv[0] == "headrace"
    config = configured(argv[1:], environment())
    assert config.coordination.mode == "standalone"
    assert (config.listen.native, config.listen.admin) == ("0.0.0.0:7580", "0.0.0.0:7581")
    assert json.loads(said("VOLUME")) == [config.broker.data_dir]
    assert {int(port.partition("/")[0]) for port in said("EXPOSE").split()} == PORTS
    assert f"{int(DefaultPort.GOSSIP)}/udp" in said("EXPOSE").split()
    assert f"--uid {said('USER')}" in said("RUN")
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source.removeprefix('./')}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_its_health_check_asks_a_broker_whether_it_lives(broker: Started) -> None:
    check = json.loads(said("HEALTHCHECK").partition("CMD ")[2])
    assert check[0] == "python"
    port = broker.addresses["admin"].rpartition(":")[2]

    def asked(at: str) -> tuple[int, str]:
        argv = [sys.executable, *(part.replace("7581", at) for part in check[1:])]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stderr

    end = time.monotonic() + READY_S  # an engine asks again as well
    while (said_so := asked(port)) != (0, "") and time.monotonic() < end:
        pass
    assert said_so == (0, "")
    assert asked("1")[0] != 0


def test_compose_declares_one_cluster_of_three() -> None:
    compose = yaml.safe_load((ROOT / "compose.cluster.yaml").read_text())
    services = compose["services"]
    assert sorted(services) == ["a", "b", "c"]
    declared, seen = set(), set()
    for name, service in services.items():
        config = configured(service["command"], environment())
        assert config.broker.name == name
        found = declaring.read(config)
        assert found.mistakes == found.warnings == ()
        assert found.config is not None
        assert found.config.voters == ("a", "b", "c")
        declared.add(found.config)
        listen = settled(config, next(m.address for m in found.config.members if m.name == name)).listen
        assert (listen.peer, listen.peer_advertise, listen.gossip) == ("0.0.0.0:7582", f"{name}:7582", "0.0.0.0:7583")
        (secret,) = service["secrets"]
        assert config.peers.secret_file == f"/run/secrets/{secret['source']}"
        assert secret["uid"] == said("USER")
        assert list(compose["secrets"]) == [secret["source"]]
        (volume,) = service["volumes"]
        assert volume == f"{name}:{config.broker.data_dir}"
        assert name in compose["volumes"]
        native, admin = (port.rpartition(":") for port in service["ports"])
        assert (native[0], native[2]) == (config.listen.native_advertise, "7580")
        assert (admin[0], admin[2]) == (config.listen.admin_advertise, "7581")
        assert native[0].startswith("127.0.0.1:")
        assert admin[0].startswith("127.0.0.1:")
        seen |= {native[0], admin[0]}
        assert service["healthcheck"]["test"] == ["CMD", *json.loads(said("HEALTHCHECK").partition("CMD ")[2])]
        assert (service["build"], service["init"]) == (".", True)
    assert len(declared) == 1
    assert len(seen) == 6


def test_the_unit_starts_a_broker_that_tells_systemd_itself(tmp_path: Path) -> None:
    text = (ROOT / "packaging" / "headrace.service").read_text()
    unit = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    program, *argv = shlex.split(unit["ExecStart"])
    assert program == "/opt/headrace/bin/headrace"
    assert parsed(argv) == {"config": parsed(argv)["config"], "data_dir": f"/var/lib/{unit['StateDirectory']}", "quiet": True}
    assert str(parsed(argv)["config"]) == "/etc/headrace/headrace.toml"
    assert unit["Type"] == "notify"  # ``headrace start`` says READY=1: tests/cli/test_start.py
    assert unit["KillMode"] == "mixed"
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed: the unit was parsed, not verified")
    copy = tmp_path / "headrace.service"
    copy.write_text(text.replace(program, sys.executable))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
