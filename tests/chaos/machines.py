"""Three machines on one: a broker with its etcd each, in a network of its own where this host permits it; any can die, stand still or be cut off.

Owns processes, namespaces and mounts, and who plays which part at the moment (owner, controller, etcd's leader). Draws nothing and judges nothing.

I1 only processes that were started here, or by those, are signalled, each by its id. I2 ``close`` leaves no process, namespace, link or mount behind.
"""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import httpx
import msgspec

import headrace
from headrace.client.client import Client, Connecting
from headrace.cluster.coordinator import RANGE_KEYS_MAX
from headrace.cluster.etcd.child import Child, Record
from headrace.cluster.etcd.client import EtcdCoordinator
from headrace.cluster.formation.addresses import ETCD_CLIENT, ETCD_PEER, GOSSIP
from headrace.model.cluster import BROKERS_PREFIX, CONTROLLER_KEY, PARTITIONS_PREFIX, Assignment, Holder, Registered, decode
from headrace.model.errors import HeadraceError
from headrace.model.ports import DefaultPort
from tests.integration.coordination.etcds import flags
from tests.integration.formation.nodes import ports
from tests.plain import PLAIN

NAMES: Final = ("a", "b", "c")
WAIT_S: Final = 240.0
LOOK_S: Final = 0.05
CONFIRM_FOREVER_S: Final = 3600.0
Way = Literal["all", "peers", "etcd"]
"""What a cut concerns: every packet; replication and gossip between brokers; etcd."""

_made = itertools.count()


def run(*command: str) -> None:
    """Runs a command of the system; ``RuntimeError`` with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def why_no_network() -> str:
    """Why machines cannot have networks of their own here, "" if they can: root and network namespaces are needed."""
    name = f"hr{os.getpid()}x"
    try:
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "rule", "add", "dport", "1", "ipproto", "tcp", "blackhole")
    except (OSError, RuntimeError) as e:
        return f"no network namespaces here: {e}"
    finally:
        with suppress(OSError, RuntimeError):
            run("ip", "netns", "del", name)
    return ""


class Machine:
    """One broker with its etcd: where they listen, their directory and, while it runs, the broker's process."""

    def __init__(self, name: str, folder: Path, *, host: str, base: int, space: str) -> None:
        self.name, self.host, self.space = name, host, space
        self.data = folder / name
        self.log = folder / f"{name}.log"
        self.ready_file = folder / f"{name}.json"
        self.peer = f"{host}:{base}"
        self.etcd = f"{host}:{base + ETCD_CLIENT}"
        listens = DefaultPort.NATIVE if space else ports()
        self.native, self.admin = f"{host}:{listens}", f"{host}:{listens + 1}"
        self.mqtt = f"{host}:{DefaultPort.MQTT if space else listens + 2}"
        self.base = base
        self.process: subprocess.Popen[bytes] | None = None
        self.paused = False
        self.quota_bytes = 0
        """Of a file system of its own, 0 = it has none."""

    @property
    def url(self) -> str:
        return f"headrace://{self.native}"

    @property
    def up(self) -> bool:
        """Whether its broker runs and is not paused."""
        return self.process is not None and not self.paused

    def start(self, *arguments: str) -> None:
        assert self.process is None
        self.ready_file.unlink(missing_ok=True)
        command = [
            *(("ip", "netns", "exec", self.space) if self.space else ()), sys.executable, "-m", "headrace.cli", "start", "--name", self.name,
            "--data-dir", str(self.data), "--listen", self.native, "--admin", self.admin, "--ready-file", str(self.ready_file), *arguments,
            *flags(),
        ]  # fmt: skip
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    async def ready(self) -> None:
        """Returns once it serves; ``AssertionError`` with its log if it ends or takes too long."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not self.ready_file.exists():
                    assert self.process is not None
                    assert self.process.poll() is None, self.tail()
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise AssertionError(f"{self.name} does not serve after {WAIT_S:.0f} s:\n{self.tail()}") from None

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    # ------------------------------------------------------------ faults of processes

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Ends the broker and not its etcd (which a signal other than SIGKILL has it end as well); its exit code."""
        process = self.process
        assert process is not None
        process.send_signal(number)
        if self.paused:
            process.send_signal(signal.SIGCONT)
        return await self.reap()

    async def reap(self) -> int:
        """Returns its exit code once the broker has ended."""
        process = self.process
        assert process is not None
        code = await asyncio.to_thread(process.wait, WAIT_S)
        if self.process is process:
            self.process, self.paused = None, False
        return code

    async def die(self) -> None:
        """As if the machine did: broker and etcd at the same moment."""
        process, found = self.process, self.etcd_child()
        assert process is not None
        process.send_signal(signal.SIGKILL)
        if found is not None:
            found.send(signal.SIGKILL)
        await self.reap()
        if found is not None:
            await found.wait()

    def pause(self) -> None:
        """The broker stands still; its etcd runs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        if self.process is not None and self.paused:
            self.process.send_signal(signal.SIGCONT)
        self.paused = False

    def memory_mib(self) -> float:
        """What of its broker is resident, 0 = it does not run."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if self.process is not None else ():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def etcd_child(self) -> Child | None:
        """Its etcd, as the broker recorded it."""
        for path in self.data.glob("etcd/*/etcd.pid"):
            with suppress(OSError, msgspec.MsgspecError):
                child = Child(msgspec.json.decode(path.read_bytes(), type=Record), own=False)
                if child.alive:
                    return child
        return None

    async def get(self, what: str) -> httpx.Response:
        """Asks its admin interface."""
        async with httpx.AsyncClient(timeout=10, verify=PLAIN) as http:
            return await http.get(f"http://{self.admin}/admin/api/{what}")

    async def post(self, what: str, body: object) -> httpx.Response:
        async with httpx.AsyncClient(timeout=30, verify=PLAIN) as http:
            return await http.post(f"http://{self.admin}/admin/api/{what}", json=body)

    def end(self) -> None:
        """With its etcd, whatever state they are in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        found = self.etcd_child()
        if found is not None:
            found.send(signal.SIGKILL)
            while found.alive:
                time.sleep(LOOK_S)


class Cluster:
    """All of them. ``networks``: each in a namespace of its own, behind a bridge, which cuts need; ``quota_bytes``: each with a file system that
    can be filled; ``mqtt``: they listen for its clients."""

    def __init__(
        self, folder: Path, *, networks: bool = False, quota_bytes: int = 0, settings: Sequence[str] = (), mqtt: bool = False
    ) -> None:
        self.folder, self.mqtt = folder, mqtt
        self.secret = folder / "cluster-secret"
        self.secret.write_text("a secret of the tests' cluster\n")
        self.secret.chmod(0o600)
        self.settings = tuple(part for text in settings for part in ("--set", text))
        number = next(_made)
        self._bridge = f"hr{os.getpid()}x{number}" if networks else ""
        self._net = f"10.{180 + (os.getpid() // 250) % 64}.{(os.getpid() + number) % 250}"
        self._cuts: list[tuple[str, ...]] = []
        self._coordinator: EtcdCoordinator | None = None
        self.machines: dict[str, Machine] = {}
        for index, name in enumerate(NAMES, 1):
            host = f"{self._net}.{index}" if networks else "127.0.0.1"
            space = f"{self._bridge}{name}" if networks else ""
            self.machines[name] = Machine(name, folder, host=host, base=DefaultPort.PEER if networks else ports(), space=space)
        try:
            if networks:
                self._wire()
            for machine in self:
                machine.data.mkdir()
                if quota_bytes:
                    run("mount", "-t", "tmpfs", "-o", f"size={quota_bytes},mode=700", "tmpfs", str(machine.data))
                    machine.quota_bytes = quota_bytes
        except BaseException:
            self.close_processes()
            raise

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines.values())

    def _wire(self) -> None:
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self._net}.254/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")
        for machine in self.machines.values():
            run("ip", "netns", "add", machine.space)
            run("ip", "link", "add", f"{machine.space}v", "type", "veth", "peer", "name", "eth0", "netns", machine.space)
            run("ip", "link", "set", f"{machine.space}v", "master", self._bridge, "up")
            run("ip", "-n", machine.space, "addr", "add", f"{machine.host}/24", "dev", "eth0")
            run("ip", "-n", machine.space, "link", "set", "eth0", "up")
            run("ip", "-n", machine.space, "link", "set", "lo", "up")

    # ------------------------------------------------------------ life

    def start(self, names: Iterable[str] = NAMES) -> None:
        voters = ",".join(f"{m.name}={m.peer}" for m in self.machines.values())
        for name in names:
            listens = ("--mqtt", self[name].mqtt) if self.mqtt else ()
            self[name].start("--voters", voters, "--secret-file", str(self.secret), *listens, *self.settings)

    async def ready(self, names: Iterable[str] = NAMES) -> None:
        for name in names:
            await self[name].ready()

    def close_processes(self) -> None:
        self.heal()
        for machine in self.machines.values():
            machine.end()
            if machine.quota_bytes:
                run("umount", str(machine.data))
                machine.quota_bytes = 0
            if machine.space:
                with suppress(RuntimeError):
                    run("ip", "link", "del", f"{machine.space}v")
                with suppress(RuntimeError):
                    run("ip", "netns", "del", machine.space)
        if self._bridge:
            with suppress(RuntimeError):
                run("ip", "link", "del", self._bridge)

    async def close(self) -> None:
        if self._coordinator is not None:
            await self._coordinator.close()
        self.close_processes()

    def connect(self, *, only: Machine | None = None) -> Connecting:
        """By all of their addresses, or by one alone."""
        hosts = ",".join(m.native for m in ((only,) if only is not None else self.machines.values()))
        return headrace.connect(f"headrace://{hosts}", wait=WAIT_S)

    # ------------------------------------------------------------ cuts

    def cut(self, source: Machine, target: Machine, way: Way = "all") -> None:
        """Packets from ``source`` to ``target`` are dropped, not those the other way."""
        rules: list[tuple[str, ...]]
        if way == "all":
            rules = [("to", target.host)]
        else:
            first, last = (0, GOSSIP) if way == "peers" else (ETCD_CLIENT, ETCD_PEER)
            rules = [
                ("to", target.host, end, f"{at + first}-{at + last}", "ipproto", proto)
                for end, at in (("dport", target.base), ("sport", source.base))
                for proto in (("tcp", "udp") if way == "peers" else ("tcp",))
            ]
        for rule in rules:
            run("ip", "-n", source.space, "rule", "add", *rule, "blackhole")
            self._cuts.append((source.space, *rule))

    def heal(self) -> None:
        """All cuts are over."""
        for space, *rule in self._cuts:
            with suppress(RuntimeError):
                run("ip", "-n", space, "rule", "del", *rule, "blackhole")
        self._cuts.clear()

    # ------------------------------------------------------------ who plays which part

    @property
    def coordinator(self) -> EtcdCoordinator:
        """A client of all of their etcds. Within the loop."""
        if self._coordinator is None:
            self._coordinator = EtcdCoordinator([m.etcd for m in self.machines.values()])
        return self._coordinator

    async def leader(self) -> Machine:
        """Whose etcd leads, as soon as there is one."""
        machines = list(self.machines.values())
        async with asyncio.timeout(WAIT_S):
            while True:
                with suppress(HeadraceError):
                    status = await self.coordinator.status()
                    for endpoint, machine in zip(status.endpoints, machines, strict=True):
                        if endpoint.reachable and endpoint.member == status.leader != 0:
                            return machine
                await asyncio.sleep(LOOK_S)

    async def ids(self) -> dict[str, Machine]:
        """Brokers that are registered now, by id."""
        page = await self.coordinator.range(BROKERS_PREFIX)
        found = (decode(Registered, d.value) for d in page.documents)
        return {r.id: self[r.name] for r in found}

    async def controller(self) -> Machine | None:
        document = await self.coordinator.get(CONTROLLER_KEY)
        holder = decode(Holder, document.value) if document is not None else Holder()
        return (await self.ids()).get(holder.broker)

    async def assignments(self) -> list[Assignment]:
        """Of all partitions."""
        page = await self.coordinator.range(PARTITIONS_PREFIX, limit=RANGE_KEYS_MAX)
        return [decode(Assignment, d.value) for d in page.documents]

    async def owners(self) -> dict[str, list[Machine]]:
        """Name of a queue or stream to the owners of its partitions, as the coordinator has it."""
        ids = await self.ids()
        found: dict[str, list[Machine]] = {}
        for assignment in await self.assignments():
            if assignment.owner in ids:
                found.setdefault(assignment.item, []).append(ids[assignment.owner])
        return found

    async def placed(self, name: str) -> None:
        """Returns once a queue or stream that was just declared has owners."""
        async with asyncio.timeout(WAIT_S):
            while True:
                if name in await self.owners():
                    return
                await asyncio.sleep(LOOK_S)

    async def in_sync(self, copies: int = len(NAMES)) -> None:
        """Returns once every partition has an owner and so many copies in sync."""
        behind: list[str] = []
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    with suppress(HeadraceError):
                        behind = [
                            f"{a.item}: owner {a.owner or 'nobody'}, in sync {a.isr}, {a.reason}" for a in await self.assignments()
                            if not a.owner or len(a.replicas) < copies or (a.level != "majority_durable" and len(a.isr) < copies)
                        ]  # fmt: skip
                        if not behind:
                            return
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise AssertionError(f"copies do not get in sync: {behind}") from None


async def declared(client: Client, name: str, *, partitions: int = 1, durability: str = "replica_durable") -> None:
    """A queue of three copies."""
    await client.declare_queue(name, partitions=partitions, replication_factor=3, durability=durability, min_in_sync_replicas=2)
