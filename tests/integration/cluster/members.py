"""Three brokers of a cluster in processes of their own, by the command line alone: started, killed, stopped, and used by ordinary clients."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec

import headrace
from headrace.client.client import Client, Connecting
from headrace.cluster.etcd.child import Child, Record
from tests.integration.coordination.etcds import flags
from tests.integration.formation.nodes import ports
from tests.plain import PLAIN

NAMES = ("a", "b", "c")
WAIT_S = 120.0


class Member:
    """One of them: its directory, its command line and, while it runs, its process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.data = folder / name
        self.log = folder / f"{name}.log"
        self.ready_file = folder / f"{name}.json"
        self.peer = f"127.0.0.1:{ports()}"
        listens = ports()
        self.native, self.admin = f"127.0.0.1:{listens}", f"127.0.0.1:{listens + 1}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *declared: str, secret: Path, runs: Iterable[str] = ("headrace.cli",)) -> None:
        """``runs``: the module that is started, and what it gets before the command."""
        assert self.process is None
        self.ready_file.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", *runs, "start", "--name", self.name, *declared, "--secret-file", str(secret), "--data-dir",
            str(self.data), "--listen", self.native, "--admin", self.admin, "--ready-file", str(self.ready_file),
            *flags(),
        ]  # fmt: skip
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)

    async def ready(self) -> None:
        """Returns once it serves."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not self.ready_file.exists():
                    assert self.process is not None
                    assert self.process.poll() is None, self.log.read_text()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(self.log.read_text()) from None
        said = self.said()
        assert {name: said[name] for name in ("url", "admin")} == {"url": f"headrace://{self.native}", "admin": f"http://{self.admin}"}

    def said(self) -> dict[str, str]:
        """Its ready file."""
        found: dict[str, str] = json.loads(self.ready_file.read_text())
        return found

    async def get(self, what: str) -> httpx.Response:
        """Asks its admin interface, once that listens."""
        async with asyncio.timeout(2 * WAIT_S), httpx.AsyncClient(timeout=WAIT_S, verify=PLAIN) as http:
            while True:
                with suppress(httpx.ConnectError):
                    return await http.get(f"http://{self.admin}/admin/api/{what}")
                await asyncio.sleep(0.05)

    async def cluster(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.get("cluster")).json()
        return found

    async def signalled(self, number: signal.Signals) -> int:
        """Its exit code after that signal."""
        assert self.process is not None
        self.process.send_signal(number)
        code = await asyncio.to_thread(self.process.wait, WAIT_S)
        self.process = None
        return code

    def end(self) -> None:
        """With its etcd, whatever state they are in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for path in self.data.glob("etcd/*/etcd.pid"):
            with suppress(OSError, msgspec.MsgspecError):
                Child(msgspec.json.decode(path.read_bytes(), type=Record), own=False).send(signal.SIGKILL)

    def etcds(self) -> int:
        """How many processes of etcd run on its directory."""
        mark = f"--data-dir={self.data}/".encode()
        count = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                count += mark in path.read_bytes()
        return count

    async def without_etcd(self) -> None:
        """Returns once none runs: it is ended after what its broker says."""
        async with asyncio.timeout(WAIT_S):
            while self.etcds():
                await asyncio.sleep(0.05)


class Three:
    def __init__(self, folder: Path, *flags: str) -> None:
        """``flags``: what else each is started with."""
        self.flags = flags
        self.secret = folder / "cluster-secret"
        self.secret.write_text("a secret of the tests' cluster\n")
        self.secret.chmod(0o600)
        self.members = {name: Member(name, folder) for name in NAMES}
        self.voters = ",".join(f"{m.name}={m.peer}" for m in self.members.values())

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def start(self, names: Iterable[str], *, declared: Path | None = None, runs: Iterable[str] = ("headrace.cli",)) -> None:
        """With all as voters, or with the config in that file."""
        for name in names:
            known = ("--voters", self.voters) if declared is None else ("--cluster", str(declared))
            self[name].start(*known, *self.flags, secret=self.secret, runs=runs)

    def declare(self, version: int, names: Iterable[str], path: Path) -> Path:
        """A config with these voters."""
        rows = "".join(f'{name} = {{ role = "voter", address = "{self[name].peer}" }}\n' for name in names)
        path.write_text(f"version = {version}\n[members]\n{rows}")
        return path

    async def ready(self, names: Iterable[str] = NAMES) -> None:
        for name in names:
            await self[name].ready()

    async def stop(self) -> list[int]:
        """All that run, at the same moment; their exit codes."""
        running = [m for m in self.members.values() if m.process is not None]
        return await asyncio.gather(*(m.signalled(signal.SIGTERM) for m in running))

    def connect(self) -> Connecting:
        """By all of their addresses."""
        return headrace.connect("headrace://" + ",".join(m.native for m in self.members.values()), wait=WAIT_S)

    async def owner(self, client: Client, name: str) -> Member:
        """Who serves the only partition."""
        async with asyncio.timeout(WAIT_S):
            while True:
                info = await client.topology(name)
                urls = info.brokers.get(info.partitions[0].owner, ()) if info.partitions else ()
                for member in self.members.values():
                    if member.process is not None and f"headrace://{member.native}" in urls:
                        return member
                await asyncio.sleep(0.05)

    def end(self) -> None:
        for member in self.members.values():
            member.end()
