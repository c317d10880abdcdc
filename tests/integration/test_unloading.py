"""What nobody uses leaves memory and is still told of, but not what time alone still changes; partitions are unloaded after a minute here."""

import asyncio

import msgspec

import headrace
from headrace.model.config import MIB, Config, Storage
from headrace.testing import Simulation, simulated

WAITS_S = 300


@simulated
async def test_a_message_expires_in_a_queue_that_nobody_uses(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await client.declare_queue("q", dead_letter="dead")
        await client.publish("q", b"x", ttl=WAITS_S)
    await asyncio.sleep(WAITS_S + 5)
    async with headrace.connect(sim.url) as client:
        assert (await client.describe("dead")).ready == 1


@simulated
async def test_a_transfer_that_waits_for_its_target_for_minutes_is_made_once(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await client.declare_queue("dead", max_messages=1)
        await client.declare_queue("q", dead_letter="dead")
        await client.publish("dead", b"in the way")
        await client.publish("q", b"x", ttl=1)
    await asyncio.sleep(WAITS_S)
    async with headrace.connect(sim.url) as client:
        async with client.consume("q"):  # the queue is used again, while what it gave waits
            await client.purge("dead")
            await asyncio.sleep(WAITS_S)
        [message] = await client.fetch("dead", max_messages=10, wait=5)
        assert message.value == b"x"
        await message.ack(confirmed=True)
        assert (await client.describe("q")).ready == 0
        await client.publish("q", b"y")
    sim.broker.kill()
    await sim.broker.start()
    async with headrace.connect(sim.url) as client:
        assert [m.value for m in await client.fetch("q", max_messages=10, wait=5)] == [b"y"]
        assert await client.fetch("dead", max_messages=10, wait=5) == []


@simulated
async def test_what_a_queue_and_a_stream_hold_is_listed_when_nobody_uses_them(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await client.declare_queue("q")
        await client.declare_queue("empty")
        await client.declare_stream("s")
        for name in ("q", "s"):
            async with client.publisher(name) as publisher:
                await publisher.send_many([b"x"] * 3)
        await client.publish("empty", b"x")
        for message in await client.fetch("empty", wait=5):
            await message.ack(confirmed=True)
        before = {info.name: (info.ready, info.records) for info in await client.list()}
        assert before == {"q": (3, 3), "empty": (0, 0), "s": (0, 3)}
        await asyncio.sleep(WAITS_S)
        assert {info.name: (info.ready, info.records) for info in await client.list()} == before
        await sim.broker.stop()
        await sim.broker.start()
        assert {info.name: (info.ready, info.records) for info in await client.list()} == before


SMALL_FILES = msgspec.structs.replace(Storage(), wal_file_bytes=32 * MIB, segment_file_bytes=MIB, segment_own_bytes_min=MIB)


@simulated(config=Config(storage=SMALL_FILES))
async def test_what_is_too_old_goes_from_a_stream_that_nobody_uses(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await client.declare_stream("s", retention_ms=WAITS_S * 1000)
        async with client.publisher("s") as publisher:
            for _ in range(45):
                await publisher.send_many([b"x" * 10_000] * 100)
        assert (await client.describe("s")).partitions[0].start_offset == 0
    await asyncio.sleep(3 * WAITS_S)
    async with headrace.connect(sim.url) as client:
        assert (await client.describe("s")).partitions[0].start_offset > 3000


@simulated
async def test_queues_that_are_only_declared_and_listed_take_no_memory_of_the_store(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        for i in range(50):
            await client.declare_queue(f"q{i}")
        assert len(await client.list()) == 50
    running = sim.broker._inner.running
    assert running is not None
    assert running.broker.store.stats()["partitions_in_memory"] < 5
