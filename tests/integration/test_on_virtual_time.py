"""Rare orders of events in a whole broker, each found by chaos under a seed: here they are made on purpose, on virtual time."""

import asyncio

import pytest

import headrace
from headrace.errors import DiskFull
from headrace.testing import Simulation, simulated


@simulated(seeds=3)
async def test_what_is_stored_is_not_refused_for_a_full_disk(sim: Simulation) -> None:
    """A publish whose confirm was lost is sent again; meanwhile the disk is full. ``DiskFull`` would say that it is not stored."""
    async with headrace.connect(sim.url, confirm_timeout=300) as client:
        await client.declare_queue("q")
        await client.publish("q", b"first")
        sim.cut(sim.broker.name, "test", one_way=True)
        sending = asyncio.create_task(client.publish("q", b"second"))
        await asyncio.sleep(2)
        sim.broker.disk_full()
        await asyncio.sleep(2)
        sim.broker.disconnect()
        await asyncio.sleep(0.1)
        sim.heal()
        receipt = await sending
        assert (receipt.offset, receipt.duplicate) == (1, True)
        with pytest.raises(DiskFull):
            await client.publish("q", b"third")
        assert (await client.describe("q")).ready == 2


@simulated(seeds=3)
async def test_a_broker_stops_on_a_full_disk(sim: Simulation) -> None:
    """The checkpoints of the end do not fit: they are not needed, and nothing is raised where nobody can see it."""
    async with headrace.connect(sim.url, wait=60) as client:
        await client.declare_queue("q")
        for i in range(10):
            await client.publish("q", str(i))
        sim.broker.disk_full()
        await asyncio.sleep(2)
        await sim.broker.stop()
        sim.broker.disk_freed()
        await sim.broker.start()
        messages = await client.fetch("q", max_messages=10, wait=5)
        assert [message.text for message in messages] == [str(i) for i in range(10)]
