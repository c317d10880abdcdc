"""The client against a real broker: streams."""

import asyncio
from collections.abc import AsyncIterator

import pytest

import headrace
from headrace.testing import TestBroker, broker
from headrace.wire import control


@pytest.fixture
async def running() -> AsyncIterator[TestBroker]:
    async with broker() as made:
        yield made


@pytest.fixture
async def client(running: TestBroker) -> AsyncIterator[headrace.Client]:
    async with headrace.connect(running.url) as connected:
        yield connected


async def fill(client: headrace.Client, name: str, count: int, first: int = 0) -> None:
    async with client.publisher(name) as publisher:
        await publisher.send_many(range(first, first + count))


async def some(reader: headrace.Reader, count: int) -> list[int]:
    async with asyncio.timeout(10):
        return [(await anext(reader)).json() for _ in range(count)]


async def test_every_reader_reads_everything(client: headrace.Client) -> None:
    await client.declare_stream("events")
    await fill(client, "events", 100)
    for start, expected in (("earliest", 0), (40, 40), ("last:10", 90)):
        async with client.read("events", start=start) as records:
            assert await some(records, 100 - expected) == list(range(expected, 100))


async def test_latest_sees_only_what_comes(client: headrace.Client) -> None:
    await client.declare_stream("events")
    await fill(client, "events", 10)
    async with client.read("events") as records:
        await client.append("events", 10)
        assert await some(records, 1) == [10]


async def test_a_cursor_goes_on_where_it_was(client: headrace.Client) -> None:
    await client.declare_stream("events")
    await fill(client, "events", 20)
    async with client.read("events", cursor="billing") as records:
        assert await some(records, 8) == list(range(8))
    (cursor,) = await client.cursors("events")
    assert (cursor.cursor, cursor.offset, cursor.lag) == ("billing", 8, 12)
    async with client.read("events", cursor="billing", commit="explicit") as records:
        found = [await anext(records) for _ in range(4)]
        await found[1].commit(confirmed=True)
        await found[3].ack(confirmed=True)
    assert (await client.cursors("events"))[0].offset == 10
    await client.set_cursor("events", "billing", 15)
    async with client.read("events", cursor="billing") as records:
        assert await some(records, 1) == [15]
    await client.delete_cursor("events", "billing")
    assert await client.cursors("events") == ()


async def test_more_than_the_prefetch(client: headrace.Client) -> None:
    await client.declare_stream("events", partitions=2)
    await fill(client, "events", 5000)
    async with client.read("events", start="earliest", prefetch=50) as records:
        assert sorted(await some(records, 5000)) == list(range(5000))
    async with client.read("events", cursor="c", prefetch=50) as records:
        assert sorted(await some(records, 5000)) == list(range(5000))


async def test_filters(client: headrace.Client) -> None:
    await client.declare_stream("events")
    for i in range(6):
        await client.append("events", i, headers={"parity": str(i % 2)})
    async with client.read("events", start="earliest", filter="parity = 1") as records:
        assert await some(records, 3) == [1, 3, 5]


async def test_a_group_divides_the_partitions(client: headrace.Client) -> None:
    await client.declare_stream("events", partitions=4)
    events: list[control.Event] = []
    async with client.read("events", group="g", on_event=events.append) as one:
        async with client.read("events", group="g") as two:
            async with asyncio.timeout(10):
                while [len(one.assigned), len(two.assigned)] != [2, 2]:
                    await asyncio.sleep(0.005)
            assert sorted(one.assigned + two.assigned) == [0, 1, 2, 3]
            assert any(isinstance(e, control.Assigned) for e in events)
            for partition in range(4):
                await client.append("events", partition, partition=partition)
            assert sorted(await some(one, 2) + await some(two, 2)) == [0, 1, 2, 3]


async def test_a_pattern_follows_streams_as_they_appear(client: headrace.Client) -> None:
    await client.declare_stream("logs.a")
    await client.declare_stream("other")
    async with client.read_pattern("logs.*") as records:
        assert records.streams == ["logs.a"]
        await client.append("logs.a", 1)
        record = await anext(records)
        assert (record.stream, record.json()) == ("logs.a", 1)
        await client.declare_stream("logs.b")
        await client.append("logs.b", 2)
        async with asyncio.timeout(10):
            record = await anext(records)
        assert (record.stream, record.json()) == ("logs.b", 2)


async def test_trimming_moves_a_reader_and_tells_it(client: headrace.Client) -> None:
    await client.declare_stream("events")
    await fill(client, "events", 100)
    moved: asyncio.Future[control.CursorMoved] = asyncio.get_running_loop().create_future()

    def told(event: control.Event) -> None:
        if isinstance(event, control.CursorMoved):
            moved.set_result(event)

    async with client.read("events", cursor="c", prefetch=5, on_event=told) as records:
        await some(records, 1)
        await client.trim("events", partition=0, offset=50)
        async with asyncio.timeout(10):
            assert (await moved).to_offset == 50
            while (await anext(records)).offset < 50:
                pass


async def test_offsets_by_time(client: headrace.Client) -> None:
    await client.declare_stream("events")
    await fill(client, "events", 3)
    assert await client.offset_for_time("events", 0) == {0: 0}


async def test_taking_ends_where_a_reader_is_closed(client: headrace.Client) -> None:
    await client.declare_stream("events")
    await fill(client, "events", 3)
    async with client.read("events", start="earliest") as records, asyncio.timeout(10):
        assert [r.json() for r in await records.take(10)] == [0, 1, 2]
        waiting = asyncio.create_task(records.take(10))
        await asyncio.sleep(0)
        await records.close()
        assert await waiting == []
