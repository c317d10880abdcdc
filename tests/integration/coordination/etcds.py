"""Real etcd processes for tests: supervised as a broker does it, on ports from the system, all ended by their process ids."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from headrace.cli.ports import HOST, neighbours
from headrace.cluster.coordinator import Coordinator, Registration
from headrace.cluster.etcd.calls import Access
from headrace.cluster.etcd.client import EtcdCoordinator
from headrace.cluster.etcd.command import Voter, timings
from headrace.cluster.etcd.program import Program, find
from headrace.cluster.etcd.supervisor import Pace, Supervisor
from headrace.model.config import Address

READY_S = 40
SLOW_S = 20.0
"""What an answer may take on a busy machine where a test is of what is answered."""
PACE = Pace(pause_min_s=0.05, pause_max_s=1.0, settled_s=5.0, probe_every_s=0.1, probe_timeout_s=1.0, silent_probes=20)
OBTAIN = Path(__file__).parents[3] / "scripts" / "etcd"


@cache
def binary() -> str:
    """The program to test with (HEADRACE_TEST_ETCD, or Debian's, fetched once into this environment); empty = the one that a tryout would take."""
    named = os.environ.get("HEADRACE_TEST_ETCD", "")
    if named or not OBTAIN.exists():
        return named
    done = subprocess.run([OBTAIN], capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "VENV": sys.prefix})
    return done.stdout.strip() if done.returncode == 0 else ""


def flags() -> list[str]:
    """What tells a broker of it on its command line; without such a program, that the one of a tryout will do."""
    return ["--set", f"coordination.etcd.binary={binary()}" if binary() else "coordination.etcd.tryout=true"]


@cache
def program() -> Program:
    return find(binary(), tryout=True)


def here() -> Address:
    return Address(HOST, neighbours(1))


class Member:
    """One voter with its folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.client, self.peer = here(), here()
        self.supervisor: Supervisor | None = None

    async def start(self, members: "list[Member]", *, founding: bool = True) -> None:
        """Returns before it serves, for that takes a majority."""
        peers = {m.name: m.peer for m in members}
        heartbeat_ms, election_ms = timings(list(peers.values()))
        voter = Voter(
            name=self.name, data_dir=str(self.folder / "data"), client=self.client, peer=self.peer, members=peers, founding=founding, token="tests",
            heartbeat_ms=heartbeat_ms, election_ms=election_ms, snapshot_count=10_000,
        )  # fmt: skip
        self.supervisor = Supervisor(program(), voter, self.folder, pace=PACE)
        await self.supervisor.start()

    async def ready(self) -> None:
        assert self.supervisor is not None
        await self.supervisor.ready(READY_S)

    def send(self, sig: signal.Signals) -> None:
        assert self.supervisor is not None
        os.kill(self.supervisor.pid, sig)

    async def stop(self, grace_s: float = 5.0) -> None:
        if self.supervisor is not None:
            await self.supervisor.stop(grace_s)
            self.supervisor = None

    async def down(self) -> None:
        """Dies as if its machine did: at once, and is not started again."""
        assert self.supervisor is not None
        pid = self.supervisor.pid
        await self.supervisor.leave()
        os.kill(pid, signal.SIGKILL)
        await self.stop()


class Ensemble:
    """Several voters that form one cluster."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.members = [Member(f"m{n}", folder) for n in range(count)]
        self._clients: list[EtcdCoordinator] = []

    @property
    def addresses(self) -> list[str]:
        return [str(m.client) for m in self.members]

    async def start(self) -> None:
        for member in self.members:
            await member.start(self.members)
        await asyncio.gather(*(m.ready() for m in self.members))

    def client(self, *, first: int = 0, answer_timeout_s: float = 2.0) -> EtcdCoordinator:
        made = EtcdCoordinator(self.addresses[first:] + self.addresses[:first], answer_timeout_s=answer_timeout_s)
        self._clients.append(made)
        return made

    async def leader(self) -> Member:
        """Waits for one that a majority knows."""
        client = EtcdCoordinator(self.addresses)
        try:
            async with asyncio.timeout(READY_S):
                while True:
                    status = await client.status()
                    for endpoint, member in zip(status.endpoints, self.members, strict=True):
                        if endpoint.reachable and endpoint.member == status.leader != 0:
                            return member
                    await asyncio.sleep(0.05)
        finally:
            await client.close()

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await asyncio.gather(*(m.stop(0.1) for m in self.members))


class EtcdPlace:
    """One etcd for the contract suite; every test has a space of its own in it."""

    shared, ttl_ms = True, 2000

    def __init__(self, address: str, space: str) -> None:
        self._address, self._space = address, space
        self._clients: dict[str, EtcdCoordinator] = {}

    async def client(self, broker: str = "a") -> Coordinator:
        if broker not in self._clients:
            self._clients[broker] = EtcdCoordinator([self._address], Access(), space=self._space, timeout_s=SLOW_S, answer_timeout_s=SLOW_S)
        return self._clients[broker]

    async def compact(self, revision: int) -> None:
        client = self._clients["a"]
        await client.compact(revision)

    async def drop_lease(self, registration: Registration) -> None:
        from headrace.cluster.etcd.calls import pb

        await self._clients["a"].calls.read("lease.LeaseRevoke", pb.LeaseRevokeRequest(ID=registration.incarnation), what="for the end of a lease")

    async def stop_renewing(self, broker: str) -> None:
        await self._clients[broker].calls.close()

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()


def copied(source: Path, target: Path) -> None:
    """A copy of a stopped etcd's data."""
    with suppress(FileNotFoundError):
        shutil.rmtree(target)
    shutil.copytree(source, target)
