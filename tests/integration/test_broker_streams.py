"""What a stream promises (SEMANTICS 2), seen through the client on a real broker, on disk and in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

import headrace
from headrace import testing
from headrace.cli.perf_link import Link
from headrace.client.client import Client
from headrace.wire import control
from headrace.wire.frames import DELIVER, Op, frame

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["disk", "memory"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with testing.broker(storage=request.param) as running, headrace.connect(running.url) as connected:
        yield connected


async def texts(client: Client, count: int, **options: object) -> list[str]:
    async with client.read("s", **options) as records:  # type: ignore[arg-type]
        return [(await asyncio.wait_for(anext(aiter(records)), 10)).text for _ in range(count)]


async def fill(client: Client, count: int) -> None:
    publisher = client.publisher("s")
    for i in range(count):
        await publisher.send(str(i), headers={"parity": "even" if i % 2 == 0 else "odd"})


@pytest.mark.parametrize("tier", ["durable", "speculative", "ephemeral"])
async def test_every_subscriber_reads_everything(client: Client, tier: str) -> None:
    await client.declare_stream("s", tier=tier)
    await fill(client, 30)
    for _ in range(2):
        assert await texts(client, 30, start="earliest") == [str(i) for i in range(30)]


async def test_start_positions(client: Client) -> None:
    await client.declare_stream("s")
    await fill(client, 10)
    assert await texts(client, 2, start="offset:7") == ["7", "8"]
    assert await texts(client, 2, start="last:3") == ["7", "8"]
    assert await texts(client, 1, start="timestamp:0") == ["0"]
    async with client.read("s", start="latest") as records:
        await client.publish("s", "new")
        assert (await asyncio.wait_for(anext(aiter(records)), 10)).text == "new"


async def test_live_reader_gets_new_records(client: Client) -> None:
    await client.declare_stream("s")
    reading = asyncio.create_task(texts(client, 5, start="earliest"))
    await fill(client, 5)
    assert await reading == ["0", "1", "2", "3", "4"]


async def test_filter_is_evaluated_at_the_broker(client: Client) -> None:
    await client.declare_stream("s")
    await fill(client, 10)
    assert await texts(client, 5, start="earliest", filter="parity = odd") == ["1", "3", "5", "7", "9"]


async def test_cursor_moves_only_over_contiguous_acks(client: Client) -> None:
    await client.declare_stream("s")
    await fill(client, 5)
    async with client.read("s", start="cursor", cursor="c", commit="explicit") as records:
        got = [await anext(aiter(records)) for _ in range(5)]
        await got[0].ack(confirmed=True)
        await got[2].ack(confirmed=True)
    [cursor] = await client.cursors("s")
    assert cursor.offset == 1


async def test_trim_and_offset_for_time(client: Client) -> None:
    await client.declare_stream("s")
    await fill(client, 10)
    await client.trim("s", partition=0, offset=4)
    assert await texts(client, 1, start="earliest") == ["4"]
    assert (await client.offset_for_time("s", 0))[0] in (0, 4)


async def test_groups_divide_partitions(client: Client) -> None:
    await client.declare_stream("s", partitions=4)
    seen: dict[str, set[int]] = {"a": set(), "b": set()}
    readers: list[headrace.Reader] = []

    async def read(name: str) -> None:
        async with client.read("s", start="cursor", cursor="g", group="g") as records:
            readers.append(records)
            async for record in records:
                seen[name].add(record.partition)

    tasks = [asyncio.create_task(read(name)) for name in seen]
    async with asyncio.timeout(20):
        while [len(reader.assigned) for reader in readers] != [2, 2]:
            await asyncio.sleep(0.02)
    publisher = client.publisher("s")
    for i in range(80):
        await publisher.send(str(i), key=str(i))
    async with asyncio.timeout(20):
        while len(seen["a"]) + len(seen["b"]) < 4:
            await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert seen["a"] | seen["b"] == {0, 1, 2, 3}
    assert not seen["a"] & seen["b"]
    assert len(seen["a"]) == 2


async def test_a_cursor_outlives_the_group_that_moved_it(client: Client) -> None:
    await client.declare_stream("s")
    await fill(client, 6)
    options = {"start": "cursor", "cursor": "c"}
    async with AsyncExitStack() as until_the_first_goes:
        await until_the_first_goes.enter_async_context(client.read("s", group="g", start="cursor", cursor="c"))
        async with client.read("s", group="g", start="cursor", cursor="c") as second:
            await until_the_first_goes.aclose()
            await asyncio.wait_for(anext(aiter(second)), 10)
    assert len(await texts(client, 1, group="g", **options)) == 1, "the group begins anew"
    assert len(await texts(client, 1, group="other", **options)) == 1
    assert len(await texts(client, 1, **options)) == 1, "and somebody without a group"


async def test_cursor_verbs(client: Client) -> None:
    await client.declare_stream("s")
    await fill(client, 10)
    await client.set_cursor("s", "c", "offset:6")
    assert await texts(client, 1, start="cursor", cursor="c") == ["6"]
    await client.set_cursor("s", "c", "earliest")
    assert [c.offset for c in await client.cursors("s")] == [0]
    await client.delete_cursor("s", "c")
    assert await client.cursors("s") == ()


def read_again(url: str, starts: dict[int, int], epochs: dict[int, int]) -> tuple[list[tuple[int, int]], int]:
    """What a reader is told that comes back: (partition, from) of retractions, and where its first delivery begins."""
    link = Link(url)
    try:
        request = control.SubscribeStream(channel=1, name="s", starts=starts, epochs=epochs)
        link.socket.sendall(frame(Op.REQUEST, control.encode(request), correlation=9))
        retracted = []
        while True:
            for op, _flags, _channel, _correlation, begin, end in link.frames():
                if op == Op.DELIVER:
                    return retracted, DELIVER.unpack_from(link.view, begin - 12)[9]
                if op == Op.EVENT and isinstance(event := control.decode_event(link.view[begin:end]), control.Retracted):
                    retracted.append((event.partition, event.from_offset))
            assert link.receive()
    finally:
        link.close()


async def test_a_reader_that_comes_back_is_told_what_a_newer_epoch_put_in_its_place() -> None:
    async with testing.broker() as broker:
        async with headrace.connect(broker.url) as client:
            await client.declare_stream("s", tier="speculative")
        for _ in range(3):  # epochs 1 to 3 begin at 0, 5 and 10
            async with headrace.connect(broker.url) as client:
                await client.publisher("s").send_many([b"x"] * 5)
            await broker.restart()
        for position, epoch, back_to in ((8, 1, 5), (12, 2, 10), (12, 3, None), (4, 1, None), (12, 1, 5), (12, 0, None)):
            told, first = ([], position) if back_to is None else ([(0, back_to)], back_to)
            assert await asyncio.to_thread(read_again, broker.url, {0: position}, {0: epoch}) == (told, first), (position, epoch)
