"""The client against a real broker that breaks connections, restarts and goes away."""

import asyncio
from collections.abc import AsyncIterator

import pytest

import headrace
from headrace.testing import TestBroker, broker


@pytest.fixture
async def running() -> AsyncIterator[TestBroker]:
    async with broker() as made:
        yield made


@pytest.fixture
async def client(running: TestBroker) -> AsyncIterator[headrace.Client]:
    async with headrace.connect(running.url, confirm_timeout=20) as connected:
        yield connected


async def test_a_restart_in_the_middle_loses_and_doubles_no_publish(running: TestBroker, client: headrace.Client) -> None:
    await client.declare_queue("orders")
    publisher = client.publisher("orders")
    waiting = []
    for burst in range(6):
        waiting += [publisher.post(burst * 200 + i) for i in range(200)]
        await asyncio.sleep(0)
        if burst in (2, 4):
            await running.restart()
    receipts = await asyncio.gather(*waiting)
    assert sorted(r.offset for r in receipts) == list(range(1200))
    async with client.consume("orders", prefetch=1000) as messages:
        assert [(await anext(messages)).json() for _ in range(1000)] == list(range(1000))


async def test_cut_connections_lose_and_double_nothing(running: TestBroker, client: headrace.Client) -> None:
    await client.declare_queue("orders")
    seen: list[int] = []
    count = 2000

    async def consume() -> None:
        async with client.consume("orders", prefetch=50) as messages:
            async for message in messages:
                async with message:
                    seen.append(message.json())
                await asyncio.sleep(0)

    consuming = asyncio.create_task(consume())
    async with client.publisher("orders") as publisher:
        for i in range(count):
            publisher.post(i, receipt=False)
            if i % 50 == 0:
                await asyncio.sleep(0.001)
            if i % 500 == 250:
                running.cut()
        await publisher.flush()
    async with asyncio.timeout(20):
        while len(seen) < count:
            await asyncio.sleep(0.005)
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)
    assert sorted(seen) == list(range(count))


async def test_messages_in_hand_survive_a_broken_connection(running: TestBroker, client: headrace.Client) -> None:
    await client.declare_queue("orders")
    await client.publish("orders", b"1")
    await client.publish("orders", b"2")
    async with client.consume("orders") as messages:
        first, second = await anext(messages), await anext(messages)
        running.cut()
        first.ack()
        await second.ack(confirmed=True)
    info = await client.describe("orders")
    assert (info.ready, info.leased, info.settled) == (0, 0, 2)


async def test_messages_in_hand_survive_a_restart(running: TestBroker, client: headrace.Client) -> None:
    await client.declare_queue("orders")
    async with client.publisher("orders") as publisher:
        await publisher.send_many(range(5))
    async with client.consume("orders") as messages:
        held = [await anext(messages) for _ in range(3)]
        await running.restart()
        for message in held:
            await message.ack(confirmed=True)
        rest = [await anext(messages) for _ in range(2)]
        assert [(m.json(), m.attempt) for m in rest] == [(3, 1), (4, 1)]
        for message in rest:
            await message.ack(confirmed=True)
    assert (await client.describe("orders")).settled == 5


async def test_streams_resume_where_the_reader_is(running: TestBroker, client: headrace.Client) -> None:
    await client.declare_stream("events")
    async with client.publisher("events") as publisher:
        await publisher.send_many(range(1000))
        for options in ({"start": "earliest"}, {"cursor": "a"}, {"cursor": "b", "commit": "explicit"}):
            async with client.read("events", prefetch=100, **options) as records:  # type: ignore[arg-type]
                found = []
                async with asyncio.timeout(20):
                    while len(found) < 1000:
                        record = await anext(records)
                        found.append(record.json())
                        if options.get("commit"):
                            record.commit()
                        if len(found) in (150, 600):
                            running.cut()
                        if len(found) == 400:
                            await running.restart()
                assert found == list(range(1000))


@pytest.mark.parametrize("how", ["ack", "commit"])
async def test_what_is_done_with_records_without_a_connection_counts(running: TestBroker, client: headrace.Client, how: str) -> None:
    await client.declare_stream("events")
    async with client.publisher("events") as publisher:
        await publisher.send_many([b"x" * 200_000] * 40)  # the broker sends them again in several turns
    async with client.read("events", cursor="c", commit="explicit") as records:
        found = [await anext(records) for _ in range(36)]
        running.cut()
        while client.connected:
            await asyncio.sleep(0)
        done = [r.ack(confirmed=True) for r in found] if how == "ack" else [found[-1].commit(confirmed=True)]
        async with asyncio.timeout(20):
            await asyncio.gather(*map(asyncio.ensure_future, done))
    async with client.read("events", cursor="c") as records:
        assert (await anext(records)).offset == 36


async def test_going_away_is_told_and_publishes_reach_the_next_broker(running: TestBroker, client: headrace.Client) -> None:
    told: list[tuple[int, str]] = []
    client.on_going_away(lambda grace_ms, message: told.append((grace_ms, message)))
    await client.declare_queue("orders")
    publisher = client.publisher("orders")
    await publisher.send(0)
    stopping = asyncio.create_task(running.stop(100, "upgrade"))
    while not told:
        await asyncio.sleep(0.001)
    assert told == [(100, "upgrade")]
    late = publisher.post(1)
    await stopping
    await running.start()
    assert (await late).offset == 1


async def test_a_consumer_that_is_gone_for_long_gets_its_messages_again(running: TestBroker, client: headrace.Client) -> None:
    await client.declare_queue("orders")
    await client.publish("orders", b"x")
    async with client.consume("orders") as messages:
        await anext(messages)
        async with headrace.connect(running.url) as other, other.consume("orders") as theirs:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await anext(theirs)
            await messages.close()
            async with asyncio.timeout(20):
                assert (await anext(theirs)).value == b"x"


async def test_pull_goes_on_after_a_restart(running: TestBroker, client: headrace.Client) -> None:
    await client.declare_queue("orders")
    assert await client.fetch("orders") == []
    fetching = asyncio.create_task(client.fetch("orders", 1, wait=20))
    await asyncio.sleep(0)
    await running.restart()
    await client.publish("orders", b"x")
    (message,) = await fetching
    await message.ack(confirmed=True)
