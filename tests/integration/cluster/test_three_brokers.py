"""Three brokers in processes of their own, on a real etcd and real disks: their owner is killed, and nothing that was confirmed is lost."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

import headrace
from headrace.client.client import Client
from headrace.model.errors import HeadraceError, NotFound
from headrace.wire.frames import Level
from tests.integration.coordination.etcds import Member, here

NAMES = ("a", "b", "c")
WAIT_S = 30.0


class Node:
    def __init__(self, folder: Path, name: str, arguments: list[str]) -> None:
        self.folder, self.name, self.arguments = folder, name, arguments
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return (self.folder / f"{self.name}.url").read_text()

    async def start(self) -> None:
        (self.folder / f"{self.name}.url").unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.integration.cluster.node", str(self.folder), self.name, *self.arguments]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        async with asyncio.timeout(WAIT_S):
            while not (self.folder / f"{self.name}.url").exists():
                assert self.process.poll() is None, (self.folder / f"{self.name}.log").read_text()
                await asyncio.sleep(0.05)

    def send(self, sig: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(sig)

    async def ended(self) -> None:
        assert self.process is not None
        await asyncio.to_thread(self.process.wait, WAIT_S)
        self.process = None


class Three:
    def __init__(self, folder: Path, etcd: str) -> None:
        (folder / "secret").write_text("a secret of the tests' cluster\n")
        (folder / "secret").chmod(0o600)
        gossip = {name: str(here()) for name in NAMES}
        self.nodes = {name: Node(folder, name, [etcd, gossip[name], ",".join(gossip.values())]) for name in NAMES}

    async def owner(self, name: str) -> tuple[Node, Client]:
        """Who serves the only partition of a queue or stream, and a client of it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for node in self.nodes.values():
                    if node.process is None:
                        continue
                    with suppress(HeadraceError):
                        async with await headrace.connect(node.url, wait=0) as asked:
                            info = await asked.topology(name)
                        urls = info.brokers.get(info.partitions[0].owner, ()) if info.partitions else ()
                        for other in self.nodes.values():
                            if other.process is not None and other.url in urls:
                                return other, await headrace.connect(other.url, wait=0, confirm_timeout=2.0)
                await asyncio.sleep(0.1)


@pytest.fixture
async def three(tmp_path: Path, lone_etcd_of_a_test: Member) -> AsyncIterator[Three]:
    made = Three(tmp_path, str(lone_etcd_of_a_test.client))
    try:
        for node in made.nodes.values():
            await node.start()
        yield made
    finally:
        for node in made.nodes.values():
            if node.process is not None:
                node.process.kill()
                node.process.wait()


@pytest.fixture
async def lone_etcd_of_a_test(tmp_path: Path) -> AsyncIterator[Member]:
    member = Member("lone", tmp_path)
    await member.start([member])
    await member.ready()
    yield member
    await member.stop()


async def publish(three: Three, values: list[bytes], count: int) -> None:
    """Adds ``count`` confirmed messages to ``values``, wherever they have to go."""
    wanted = len(values) + count
    async with asyncio.timeout(WAIT_S):
        while len(values) < wanted:
            with suppress(HeadraceError):
                _, client = await three.owner("orders")
                async with client:
                    publisher = client.publisher("orders", confirm_timeout=2.0)
                    while len(values) < wanted:
                        value = b"%d" % len(values)
                        receipt = await publisher.send(value)
                        assert receipt.level == Level.REPLICA
                        values.append(value)


async def test_a_killed_owner_loses_nothing(three: Three) -> None:
    async with await headrace.connect(three.nodes["a"].url) as client:
        await client.declare_queue("orders", replication_factor=3, durability="replica_durable", min_in_sync_replicas=2)
    sent: list[bytes] = []
    await publish(three, sent, 100)
    for sig in (signal.SIGKILL, signal.SIGTERM):
        node, client = await three.owner("orders")
        await client.close()
        node.send(sig)
        await node.ended()
        await publish(three, sent, 100)
        await node.start()
    got: dict[bytes, bool] = {}
    async with asyncio.timeout(WAIT_S):
        while len(got) < len(sent):
            with suppress(HeadraceError):
                _, client = await three.owner("orders")
                async with client, client.consume("orders") as consumer:
                    async for message in consumer:
                        got[message.value] = True
                        await message.ack(confirmed=True)
                        if len(got) == len(sent):
                            break
    assert sorted(got) == sorted(sent)


async def test_what_is_deleted_is_gone_everywhere(three: Three) -> None:
    async with await headrace.connect(three.nodes["a"].url) as client:
        await client.declare_queue("orders", replication_factor=3, durability="replica_durable")
    await publish(three, [], 10)
    _, owner = await three.owner("orders")
    async with owner, owner.consume("orders") as consumer:
        await consumer.__anext__()
        async with await headrace.connect(three.nodes["b"].url) as client:
            await client.delete("orders")
        with pytest.raises(NotFound):
            async for _ in consumer:
                pass
    for node in three.nodes.values():
        async with await headrace.connect(node.url) as client:
            with pytest.raises(NotFound):
                await client.publish("orders", b"too late")
    async with await headrace.connect(three.nodes["c"].url) as client:
        await client.declare_queue("orders", replication_factor=3, durability="majority_durable")
    _, owner = await three.owner("orders")
    async with owner:
        await owner.publish("orders", b"anew")
        async with owner.consume("orders") as consumer:
            assert (await consumer.__anext__()).value == b"anew"
