"""A broker that was alone becomes the first member of a cluster: everything it has goes on, and the others get copies when that is asked for."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import headrace
from headrace.client.client import Client
from headrace.model.errors import StaleSettle
from headrace.wire.frames import Level
from tests.integration.cluster.members import WAIT_S, Member, Three


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    made = Three(tmp_path)
    try:
        yield made
    finally:
        made.end()


async def alone(member: Member) -> None:
    """Starts it without a cluster."""
    command = [sys.executable, "-m", "headrace.cli", "start", "--data-dir", str(member.data), "--listen", member.native, "--admin", member.admin]
    command += ["--mqtt", "127.0.0.1:0", "--mqtt-ws", "off"]  # its session partitions have numbers that nobody else gets
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    with member.log.open("ab") as log:
        member.process = subprocess.Popen([*command, "--ready-file", str(member.ready_file)], stdout=log, stderr=log, env=env)
    await member.ready()


async def fill(client: Client) -> None:
    await client.declare_queue("orders", partitions=2, max_deliveries=7)
    await client.declare_stream("log")
    async with client.publisher("orders") as publisher:
        for number in range(40):
            await publisher.send(b"%02d" % number, partition=number % 2)
    for number in range(10):
        await client.publish("log", b"r%d" % number)
    async with client.read("log", cursor="mine", start="earliest") as reader:
        for _ in range(4):
            record = await reader.__anext__()
            await record.ack(confirmed=True)
    async with client.consume("orders", prefetch=1) as consumer:
        for _ in range(15):
            await (await consumer.__anext__()).ack(confirmed=True)


@contextlib.asynccontextmanager
async def served(client: Client, name: str) -> AsyncIterator[None]:
    """Its broker answers and reads that queue all the time, over one connection."""

    async def asks() -> None:
        while True:
            async with asyncio.timeout(WAIT_S):
                assert await client.inspect(name, limit=1)
            await asyncio.sleep(0.02)

    asking = asyncio.ensure_future(asks())
    try:
        yield
        assert not asking.done(), asking.exception()
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking


async def left(client: Client, count: int) -> list[bytes]:
    got: dict[bytes, bool] = {}
    async with asyncio.timeout(WAIT_S), client.consume("orders") as consumer:
        async for message in consumer:
            with contextlib.suppress(StaleSettle):  # its owner changed once more: it comes again, or an ack that was under way counted
                await message.ack(confirmed=True)
            got[message.value] = True
            if len(got) == count:
                break
    return sorted(got)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
async def test_a_lone_brokers_data_go_on_in_a_cluster(three: Three, tmp_path: Path, sig: signal.Signals) -> None:
    a = three["a"]
    await alone(a)
    async with headrace.connect(f"headrace://{a.native}") as client:
        await fill(client)
        before = await client.describe("orders")
    assert (before.ready + before.leased, before.spec["max_deliveries"]) == (25, 7)
    await a.signalled(sig)

    declared = three.declare(1, "abc", tmp_path / "cluster.toml")
    declared.write_text('gospel = "a"\n' + declared.read_text())
    three.start("a", declared=declared)
    await a.ready()  # at once, with nobody else there
    async with headrace.connect(f"headrace://{a.native}") as client, served(client, "orders"):
        three.start("bc", declared=declared)
        await three.ready("bc")
        async with asyncio.timeout(WAIT_S):
            while (await a.cluster())["consensus_members"] != dict.fromkeys("abc", "voter"):
                await asyncio.sleep(0.1)
    async with three.connect() as client:
        async with asyncio.timeout(WAIT_S):
            while (info := await client.describe("orders")).ready + info.leased != 25:
                await asyncio.sleep(0.1)
        assert info.id == before.id
        assert info.spec == before.spec
        for name in ("orders", "log"):
            await client.alter_queue(name, replication_factor=3) if name == "orders" else await client.alter_stream(name, replication_factor=3)
        await client.alter_queue("orders", durability="replica_durable", min_in_sync_replicas=2)
        async with asyncio.timeout(WAIT_S):
            while (await client.publish("orders", b"new", partition=0)).level != Level.REPLICA:
                await asyncio.sleep(0.1)
        async with client.read("log", cursor="mine") as reader:
            assert (await reader.__anext__()).value == b"r4"
        await a.signalled(signal.SIGKILL)
        taken = await left(client, 26)
        assert len(taken) == 26
        assert taken[-1] == b"new"
        assert len(set(taken[:25])) == 25
