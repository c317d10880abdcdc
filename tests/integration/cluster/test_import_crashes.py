"""A lone broker that becomes the first member of a cluster dies as kill -9 does, at each step of it; started again, everything is there, once.

Two of these deaths a day; HEADRACE_IMPORT_CRASHES=all tries all of them, one after another on one directory too.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

import headrace
from headrace.client.client import Client
from tests.integration.cluster.members import WAIT_S, Three
from tests.integration.cluster.test_import import alone, fill, left
from tests.today import TODAY

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

WIDE = 200
"""Partitions of a queue that comes in by two transactions."""
STEPS = [
    *("Identity", "Held", "Bootstrap", "Acceptance", "StartConsensus", "Commit", "Applied"),
    *(f"transaction{number}" for number in range(1, 6)), "done",
]  # fmt: skip
"""In their order; with ``Applied`` there is another identity."""
POINTS = [f"{step}/{when}" for step in STEPS for when in ("before", "after")]
ALL = os.environ.get("HEADRACE_IMPORT_CRASHES") == "all"


def some(count: int) -> list[str]:
    """Of today."""
    return POINTS if ALL else sorted(random.Random(TODAY).sample(POINTS, count))


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    made = Three(tmp_path)
    try:
        yield made
    finally:
        made.end()


async def filled(three: Three) -> Path:
    """``a`` was alone, and was killed; the config in which it is the gospel."""
    a = three["a"]
    await alone(a)
    async with headrace.connect(f"headrace://{a.native}") as client:
        await fill(client)
        await client.declare_queue("wide", partitions=WIDE)
        await client.publish("wide", b"once")
        await client.declare_queue("gone")
        await client.publish("gone", b"x")
        await client.delete("gone")
    await a.signalled(signal.SIGKILL)
    declared = three.declare(1, "abc", a.data.parent / "cluster.toml")
    declared.write_text('gospel = "a"\n' + declared.read_text())
    return declared


async def dies(three: Three, declared: Path, point: str) -> None:
    """At that point; it may serve before it comes there, as its formation notes what it did after the import may begin."""
    a = three["a"]
    three.start("a", declared=declared, runs=("tests.integration.cluster.dying", point))
    process = a.process
    assert process is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while process.poll() is None:
                await asyncio.sleep(0.05)
    assert process.poll() is not None, f"it never came to {point}:\n{a.log.read_text()}"
    assert process.poll() == -signal.SIGKILL, a.log.read_text()
    await a.signalled(signal.SIGKILL)


async def check(client: Client) -> None:
    """What ``filled`` left is there, once."""
    async with asyncio.timeout(WAIT_S):
        while sorted(item.name for item in await client.list()) != ["log", "orders", "wide"]:
            await asyncio.sleep(0.1)
        while (orders := await client.describe("orders")).ready + orders.leased != 25:
            await asyncio.sleep(0.1)
    assert orders.spec["max_deliveries"] == 7
    assert len((await client.describe("wide")).partitions) == WIDE
    async with client.read("log", cursor="mine") as reader:
        assert [(await reader.__anext__()).value for _ in range(6)] == [b"r%d" % n for n in range(4, 10)]
    await client.publish("orders", b"new", partition=0)
    taken = await left(client, 26)
    assert len(taken) == 26
    assert taken[-1] == b"new"
    async with asyncio.timeout(WAIT_S), client.consume("wide") as consumer:
        message = await consumer.__anext__()
        assert message.value == b"once"
        await message.ack(confirmed=True)
    for name in ("orders", "wide"):
        info = await client.describe(name)
        assert info.ready + info.leased + info.delayed == 0


@pytest.mark.parametrize("point", some(2))
async def test_a_death_at_one_step(three: Three, point: str) -> None:
    declared = await filled(three)
    await dies(three, declared, point)
    three.start("a", declared=declared)
    await three.ready("a")
    async with headrace.connect(f"headrace://{three['a'].native}") as client:
        await check(client)


@pytest.mark.skipif(not ALL, reason="takes minutes; HEADRACE_IMPORT_CRASHES=all")
@pytest.mark.timeout(1200)
async def test_a_death_at_every_step_one_after_another(three: Three) -> None:
    """A life gets one step further; the import goes on with what is left, so that its first transaction is the next one each time."""
    steps = [*STEPS[:7], "Identity", *["transaction1"] * 5, "done"]
    points = [f"{step}/{when}" for step in steps for when in ("before", "after")]
    declared = await filled(three)
    for point in points:
        await dies(three, declared, point)
    three.start("abc", declared=declared)
    await three.ready("abc")
    async with three.connect() as client:
        await check(client)
