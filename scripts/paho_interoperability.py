"""Runs the Eclipse Paho interoperability suite against brokers of its own.

``python scripts/paho_interoperability.py [--cluster | --spread] [DIRECTORY]``. DIRECTORY is a checkout of
https://github.com/eclipse/paho.mqtt.testing, which is no part of this repository; without it one is cloned into a temporary directory. Exit 0: every
test of ``client_test5.py`` and of ``client_test.py`` passes. The brokers have the settings that the suite expects.
``--cluster``: there are three, and its clients connect to one of them; ``--spread``: to the next one each time they connect.

Two tests of MQTT 5.0 (``test_subscribe_options``, ``test_request_response``) have one client publish what another one subscribes to, and wait for a
SUBACK in between, but for that of the client that publishes, which has come long before. Of brokers where each connection is read in turn that asks
nothing more; in a cluster a subscription holds everywhere once it is acknowledged, not before. There they wait for the SUBACK of the right client
(``MISTAKEN``).
"""

import argparse
import itertools
import json
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from headrace.cli.ports import HOST, neighbours
from headrace.cluster.formation.addresses import ETCD_PEER
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Connect

SUITE = "https://github.com/eclipse/paho.mqtt.testing"
SETTINGS = {
    "mqtt.refused_filters": "test/nosubscribe",
    "mqtt.keep_alive_s_max": "60",
    "mqtt.receive_maximum": "20",
    "mqtt.topic_alias_maximum": "10",
    "mqtt.packet_bytes_max": "2000000",
}
MISTAKEN = re.compile(r"(bclient\.subscribe\(.*\n\s*self\.waitfor\(callback)(\.subscribeds)")
TEST_S = 900
START_S = 120


class Broker:
    """One in a process of its own."""

    def __init__(self, folder: Path, name: str, *declared: str) -> None:
        self.ready_file, self.log = folder / f"{name}.json", folder / f"{name}.log"
        settings = [part for setting, value in SETTINGS.items() for part in ("--set", f"{setting}={value}")]
        listeners = ["--listen", f"{HOST}:0", "--admin", f"{HOST}:0", "--mqtt", f"{HOST}:0"]
        command = [sys.executable, "-m", "headrace.cli", "start", "-d", str(folder / name), *listeners, *declared, *settings]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, "--ready-file", str(self.ready_file), "-q"], stdout=log, stderr=log)

    def ready(self) -> dict[str, str]:
        """Where it listens, once it does."""
        until = time.monotonic() + START_S
        while not self.ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"a broker did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)
        said: dict[str, str] = json.loads(self.ready_file.read_text())
        return said


@contextmanager
def started(folder: Path, count: int) -> Iterator[list[int]]:
    """The ports for MQTT of one broker, or of a cluster of several whose session partitions are where they are to be."""
    declared: dict[str, list[str]] = {"a": []}
    if count > 1:
        secret = folder / "cluster-secret"
        secret.write_text(secrets.token_hex(32) + "\n")
        secret.chmod(0o600)
        peers = {name: f"{HOST}:{neighbours(ETCD_PEER + 1)}" for name in "abcdefg"[:count]}
        voters = ",".join(f"{name}={peer}" for name, peer in peers.items())
        flags = ["--voters", voters, "--secret-file", str(secret), "--set", "coordination.etcd.tryout=true"]
        declared = {name: ["--name", name, *flags] for name in peers}
    brokers = [Broker(folder, name, *flags) for name, flags in declared.items()]
    try:
        said = [broker.ready() for broker in brokers]
        ports = [int(one["mqtt"].rpartition(":")[2]) for one in said]
        if count > 1:
            settle(ports[0], said[0]["admin"])
        yield ports
    finally:
        for broker in brokers:
            broker.process.terminate()
        for broker in brokers:
            broker.process.wait(60)


def settle(port: int, admin: str) -> None:
    """The first client of a cluster has its session partitions made: returns once each has its copies and the owner that it is to have."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with socket.create_connection((HOST, port), 10) as first, suppress(TimeoutError):
            first.sendall(encoding.connect(Connect("first", 4)))
            first.recv(100)
        with urllib.request.urlopen(f"{admin}/admin/api/topology?name=$mqtt", timeout=10) as answer:
            rows = json.loads(answer.read())["partitions"]
        if rows and all(row["state"] == "serving" and len(row["replicas"]) == 3 and row["owner"] == row["preferred"] for row in rows):
            return
        time.sleep(0.2)
    raise SystemExit("the session partitions are not served")


@contextmanager
def dealt(ports: list[int]) -> Iterator[int]:
    """A port behind which each connection goes to the next of those, in turn."""
    turns = itertools.cycle(ports)
    with socket.create_server((HOST, 0)) as server:

        def deal() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    broker = socket.create_connection((HOST, next(turns)))
                    for source, target in ((client, broker), (broker, client)):
                        threading.Thread(target=carry, args=(source, target), daemon=True).start()

        threading.Thread(target=deal, daemon=True).start()
        yield server.getsockname()[1]


def carry(source: socket.socket, target: socket.socket) -> None:
    """Bytes of one direction, and their end. What is sent to one that is gone already is thrown away, as a system does for a while."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            with suppress(OSError):
                target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def run(suite: Path, name: str, port: int, only: list[str], *, cluster: bool) -> tuple[int, int]:
    """(tests that ran, tests that failed) of one file of the suite."""
    folder = suite / "interoperability"
    # Its own option for the port is one that unittest refuses: the default is replaced as the file is read.
    text = (folder / name).read_text().replace("port = 1883", f"port = {port}")
    if cluster:
        text = MISTAKEN.sub(r"\g<1>2\2", text)
    code = "import sys; name = sys.argv[1]; sys.argv[:] = sys.argv[1:]; exec(compile(sys.stdin.read(), name, 'exec'))"
    command = [sys.executable, "-W", "ignore", "-c", code, name, *only]
    done = subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True, timeout=TEST_S, check=False)
    said = done.stderr + done.stdout
    ran = re.search(r"^Ran (\d+) tests?", said, re.MULTILINE)
    failed = re.search(r"^FAILED \((.*)\)", said, re.MULTILINE)
    count = sum(int(n) for n in re.findall(r"(?:failures|errors)=(\d+)", failed[1])) if failed else 0
    if ran is None or failed:
        print(said[-20_000:])
    return (int(ran[1]) if ran else 0), (count if ran else 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--cluster", action="store_true", help="against one broker of a cluster of three")
    parser.add_argument("--spread", action="store_true", help="against a cluster of three: each connection goes to the next broker")
    parser.add_argument("--only", action="append", default=[], help="tests to run, as unittest names them (Test.test_will_message)")
    parser.add_argument("--file", choices=("client_test5.py", "client_test.py"), help="one of the two files")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        suite = asked.directory or Path(made, "suite")
        if asked.directory is None:
            subprocess.run(["git", "clone", "--quiet", "--depth", "1", SUITE, str(suite)], check=True, timeout=300)
        ports = stack.enter_context(started(Path(made), 3 if asked.cluster or asked.spread else 1))
        port = stack.enter_context(dealt(ports)) if asked.spread else ports[0]
        failures = 0
        for name in (asked.file,) if asked.file else ("client_test5.py", "client_test.py"):
            ran, failed = run(suite, name, port, asked.only, cluster=len(ports) > 1)
            print(f"{name}: {ran - failed} of {ran} pass", flush=True)
            failures += failed
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
