"""Brokers of one cluster on this machine: the first ones vote, each in a process of its own on a fresh data directory, stopped by their ids."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import machine
from bench.targets import BIN, ROOT, alive
from headrace.cli.ports import neighbours

PORTS = 4
"""A member's peer port and its neighbours: gossip, etcd for clients, etcd for voters."""
READY_S = 600.0
STOP_S = 60.0
OBTAIN = Path(__file__).resolve().parent.parent / "scripts" / "etcd"


def obtained() -> str:
    """The etcd that ``scripts/etcd`` fetches where none is on the PATH; "" = one is. ``RuntimeError``: there is none to be had."""
    done = subprocess.run([OBTAIN], capture_output=True, text=True, check=False, env={**os.environ, "VENV": sys.prefix})
    if not done.stdout.strip() and shutil.which("etcd") is None:
        raise RuntimeError("there is no etcd on the PATH, and scripts/etcd could not fetch one: install it, or name one with --etcd")
    return done.stdout.strip()


class Member:
    """One broker: its ports, its directory and, while it runs, its process."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.data, self.log, self.ready = root / name, root / f"{name}.log", root / f"{name}.json"
        self.peer = neighbours(PORTS)
        self.listen = neighbours(2)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"headrace://127.0.0.1:{self.listen}"

    def start(self, config: Path, secret: Path, *options: str) -> None:
        self.ready.unlink(missing_ok=True)
        command = [
            str(BIN / "headrace"), "start", "--name", self.name, "--cluster", str(config), "--secret-file", str(secret), "--data-dir", str(self.data),
            "--listen", f"127.0.0.1:{self.listen}", "--admin", f"127.0.0.1:{self.listen + 1}", "--ready-file", str(self.ready), *options,
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True)

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return bool(json.loads(self.ready.read_text())["url"])
        return False

    def broker_pids(self) -> set[int]:
        return {self.process.pid} if self.process is not None else set()

    def etcd_pids(self) -> set[int]:
        """Of the consensus member on its directory, which outlives a killed broker."""
        mark = f"--data-dir={self.data}/".encode()
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes():
                    found.add(int(path.parent.name))
        return found

    def kill(self) -> None:
        """The broker alone, at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Members:
    """A cluster of ``count`` brokers of which the first ``voters`` vote."""

    def __init__(self, count: int, voters: int = 3, *, root: Path = ROOT / "cluster", etcd: str = "") -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        self.root = root
        found = etcd or obtained()
        self.options = ("--set", f"coordination.etcd.binary={found}") if found else ()
        self.secret = root / "secret"
        self.secret.touch(0o600)
        self.secret.write_text(secrets.token_hex(32))
        self.all = [Member(f"m{number:02d}", root) for number in range(count)]
        roles = ["voter" if number < voters else "observer" for number in range(count)]
        rows = [f'{m.name} = {{ role = "{role}", address = "127.0.0.1:{m.peer}" }}\n' for m, role in zip(self.all, roles, strict=True)]
        self.config = root / "cluster.toml"
        self.config.write_text("version = 1\n[members]\n" + "".join(rows))

    @property
    def running(self) -> list[Member]:
        return [m for m in self.all if m.process is not None]

    @property
    def url(self) -> str:
        """Of all that run."""
        return "headrace://" + ",".join(m.url.removeprefix("headrace://") for m in self.running)

    def start(self) -> float:
        """Starts those that do not run; the seconds until all serve. ``RuntimeError``: one does not."""
        began = time.monotonic()
        for member in self.all:
            if member.process is None:
                member.start(self.config, self.secret, *self.options)
        while not all(m.is_ready() for m in self.all):
            for member in self.all:
                assert member.process is not None
                if member.process.poll() is not None or time.monotonic() > began + READY_S:
                    raise RuntimeError(f"{member.name} does not serve: {member.log.read_text(errors='replace')[-800:]}")
            time.sleep(0.05)
        return time.monotonic() - began

    def broker_pids(self) -> set[int]:
        return set().union(*(m.broker_pids() for m in self.running))

    def etcd_pids(self) -> set[int]:
        return set().union(*(m.etcd_pids() for m in self.all))

    def memory_mib(self) -> list[float]:
        """What is resident of each broker now, its etcd left out."""
        return [machine.memory_mib(m.broker_pids(), "VmRSS") for m in self.running]

    def stop(self) -> None:
        """All of them and every etcd; by force after a while. The data goes."""
        pids = self.broker_pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while any(alive(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(0.05)
        for member in self.all:
            member.kill()
        for pid in self.etcd_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)
