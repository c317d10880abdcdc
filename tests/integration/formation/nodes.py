"""Several brokers' formations in processes of their own, with real etcd: started, killed, wiped and asked."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from headrace.cli.ports import neighbours
from headrace.cluster.etcd.child import Child, Record
from headrace.cluster.formation.addresses import ETCD_PEER
from tests.integration.coordination.etcds import binary

SECRET = "a secret of these brokers, long enough"
PATIENCE_S = 120.0
Status = dict[str, Any]


def ports() -> int:
    """The first of a broker's four neighbours: for brokers, gossip and both of etcd."""
    return neighbours(ETCD_PEER + 1)


class Ended(AssertionError):
    """A process is no more."""


class Node:
    """One broker: its directory, its configuration and, while it runs, its process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.port = ports()
        self.process: asyncio.subprocess.Process | None = None
        self.declared: str = ""
        self.endpoints: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _configure(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "secret").write_text(SECRET)
        (self.folder / "secret").chmod(0o600)
        etcd = f'binary = "{binary()}"\n' if binary() else "tryout = true\n"
        etcd += f"endpoints = {json.dumps(self.endpoints)}\n" if self.endpoints else ""
        cluster = ""
        if self.declared and self.name == "b" and "[members]\n" in self.declared:  # as well as in a file it may stand here
            cluster = "[cluster.declared]\n" + self.declared.replace("[members]\n", "[cluster.declared.members]\n")
        elif self.declared:
            (self.folder / "cluster.toml").write_text(self.declared)
            cluster = f'[cluster]\nfile = "{self.folder}/cluster.toml"\n'
        path = self.folder / "headrace.toml"
        path.write_text(
            f'[broker]\nname = "{self.name}"\ndata_dir = "{self.data}"\n[listen]\npeer = "{self.address}"\n[coordination]\nmode = "coordinated"\n'
            f'[coordination.etcd]\n{etcd}[peers]\nsecret_file = "{self.folder}/secret"\n{cluster}'
        )
        return path

    async def start(self, *, die_at: str = "") -> None:
        assert self.process is None
        path = self._configure()
        env = {**os.environ, "HEADRACE_TEST_DIE_AT": die_at, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.integration.formation.node", str(path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=log, env=env, limit=1 << 22, start_new_session=True,
            )  # fmt: skip

    async def ask(self, **line: Any) -> Any:
        assert self.process is not None
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(line).encode() + b"\n")
        async with asyncio.timeout(PATIENCE_S):
            answer = await stdout.readline()
        if not answer:
            raise Ended(f"{self.name} has ended with {await self.process.wait()}: {self.log.read_text()[-2000:]}")
        return json.loads(answer)

    async def status(self) -> Status:
        told: Status = await self.ask(do="status")
        return told

    async def feed(self, config: dict[str, Any]) -> Any:
        return await self.ask(do="feed", config=config)

    async def until(self, holds: Callable[[Status], Any], seconds: float = PATIENCE_S) -> Status:
        status: Status = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    status = await self.status()
                    if holds(status):
                        return status
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{self.name}: {json.dumps(status, indent=1)}\n{self.log.read_text()[-4000:]}") from None

    async def active(self, seconds: float = PATIENCE_S) -> Status:
        return await self.until(lambda s: s["state"] == "active" and s["code"] == "serving", seconds)

    async def died(self) -> int:
        """Waits for its end."""
        assert self.process is not None
        async with asyncio.timeout(PATIENCE_S):
            code = await self.process.wait()
        self.process = None
        return code

    async def kill(self, *, etcd: bool = False) -> None:
        """kill -9; its etcd goes on, unless that dies with it as on a machine that loses power."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.died()
        if etcd:
            self.kill_etcd()

    def etcds(self) -> int:
        """How many processes of etcd run on this broker's directory, whoever started them."""
        mark = f"--data-dir={self.data}/".encode()
        count = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                count += mark in path.read_bytes()
        return count

    def kill_etcd(self) -> None:
        for path in self.data.glob("etcd/*/etcd.pid"):
            with suppress(OSError, msgspec.MsgspecError):
                Child(msgspec.json.decode(path.read_bytes(), type=Record), own=False).send(signal.SIGKILL)

    async def stop(self) -> None:
        """In order; its etcd is stopped too."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                await self.died()
            except TimeoutError:
                await self.kill()
                raise

    def wipe(self) -> None:
        assert self.process is None
        shutil.rmtree(self.data, ignore_errors=True)


class Nodes:
    """Those of one test."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        self.all = {name: Node(name, folder) for name in names}

    def __getitem__(self, name: str) -> Node:
        return self.all[name]

    def config(self, version: int, voters: str, *, observers: str = "", **rest: Any) -> dict[str, Any]:
        members: dict[str, Any] = {name: {"role": "voter", "address": self[name].address} for name in voters}
        members |= {name: {"role": "observer", "address": self[name].address} for name in observers}
        return {"version": version, "members": members, **rest}

    def declare(self, version: int, voters: str, *, on: str = "", **rest: Any) -> None:
        """In the configuration of ``on`` (all voters): read at their next start."""
        config = self.config(version, voters, **rest)
        lines = [f"version = {version}", *(f"{k} = {json.dumps(v)}" for k, v in rest.items()), "[members]"]
        lines += [f'{name} = {{ role = "{m["role"]}", address = "{m["address"]}" }}' for name, m in config["members"].items()]
        for name in on or voters:
            self[name].declared = "\n".join(lines) + "\n"

    async def start(self, names: str) -> None:
        for name in names:
            await self[name].start()

    async def active(self, names: str) -> list[Status]:
        return [await self[name].active() for name in names]

    async def together(self, names: str) -> str:
        """All serve, in one cluster that is as it was declared, and nothing is left to do; its id."""
        statuses = [await self[n].until(lambda s: s["code"] == "serving" and s["leader"] and not s["plan"]) for n in names]
        assert len({s["cluster_id"] for s in statuses}) == 1, statuses
        return str(statuses[0]["cluster_id"])

    async def close(self) -> None:
        for node in self.all.values():
            if node.process is not None:
                with suppress(ProcessLookupError):
                    node.process.kill()
                await node.process.wait()
            node.kill_etcd()
