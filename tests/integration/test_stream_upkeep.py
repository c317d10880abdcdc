"""Retention and compaction of streams at work on a real disk store."""

import asyncio

import msgspec
import pytest

import headrace
from headrace import testing
from headrace.broker import compacting
from headrace.broker.stream_partition import StreamPartition
from headrace.model.config import MIB, Config, Storage

pytestmark = pytest.mark.timeout(60)


def partition_of(broker: testing.TestBroker, name: str) -> StreamPartition:
    assert broker._running is not None
    found = broker._running.broker
    partition = found.loading.partition(found.catalogue.get(name), 0)
    assert isinstance(partition, StreamPartition)
    return partition


async def everything(client: headrace.Client, name: str, count: int) -> list[tuple[int, str | None, str]]:
    async with client.read(name, start="earliest") as records:
        return [(r.offset, r.key, r.text) for r in [await asyncio.wait_for(anext(aiter(records)), 10) for _ in range(count)]]


@pytest.mark.parametrize("codec", ["none", "lz4"])
async def test_compaction_keeps_the_last_record_of_every_key_and_all_offsets(codec: str) -> None:
    async with testing.broker() as broker, headrace.connect(broker.url) as client:
        await client.declare_stream("s", compaction=True)
        async with client.publisher("s", compression=codec) as publisher:  # type: ignore[arg-type]
            for i in range(2000):
                publisher.post(str(i), key=f"k{i % 7}")
            await publisher.flush()
        partition = partition_of(broker, "s")
        assert compacting.due(partition)
        dropped = await compacting.run(partition)
        assert dropped == 2000 - 7
        wanted = [(i, f"k{i % 7}", str(i)) for i in range(1993, 2000)]
        assert await everything(client, "s", 7) == wanted
        await client.publish("s", "new", key="k0")
        assert (await everything(client, "s", 8))[-1] == (2000, "k0", "new")
        async with client.read("s", start="cursor", cursor="c", commit="explicit", prefetch=3) as records:
            for _ in range(8):
                record = await asyncio.wait_for(anext(aiter(records)), 10)
                await record.ack(confirmed=True)
        assert [c.offset for c in await client.cursors("s")] == [2001]
        await broker.restart()
        await client.wait_connected(10)
        assert await everything(client, "s", 8) == [*wanted, (2000, "k0", "new")]


async def test_retention_by_bytes_drops_the_oldest_and_moves_cursors() -> None:
    config = Config(storage=msgspec.structs.replace(Storage(), wal_file_bytes=32 * MIB, segment_file_bytes=MIB, segment_own_bytes_min=MIB))
    async with testing.broker(config=config) as broker, headrace.connect(broker.url) as client:
        await client.declare_stream("s", retention_bytes=4 * MIB)
        await client.set_cursor("s", "c", "earliest")
        async with client.publisher("s") as publisher:
            for _ in range(45):
                await publisher.send_many([b"x" * 10_000] * 100)
        partition = partition_of(broker, "s")
        for _ in range(400):
            if partition.machine.start_offset > 3000:
                break
            await asyncio.sleep(0.02)
        assert partition.machine.start_offset > 3000
        [cursor] = await client.cursors("s")
        assert cursor.offset == partition.machine.start_offset
        async with client.read("s", start="earliest") as records:
            assert (await anext(aiter(records))).offset == partition.machine.start_offset
