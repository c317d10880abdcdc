"""The client against a real broker: queues."""

import asyncio
from collections.abc import AsyncIterator

import pytest

import headrace
from headrace.model.errors import Conflict, Invalid, NotFound, QueueFull, StaleSettle
from headrace.testing import TestBroker, broker


@pytest.fixture
async def running() -> AsyncIterator[TestBroker]:
    async with broker() as made:
        yield made


@pytest.fixture
async def client(running: TestBroker) -> AsyncIterator[headrace.Client]:
    async with headrace.connect(running.url) as connected:
        yield connected


async def ready(client: headrace.Client, name: str) -> tuple[int, int, int]:
    info = await client.describe(name)
    return info.ready, info.leased, info.settled


async def test_publish_consume_ack(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    receipt = await client.publish("orders", {"id": 1}, key="k", headers={"a": "b"})
    assert (receipt.partition, receipt.offset, receipt.level.name) == (0, 0, "LOCAL")
    async with client.consume("orders") as messages:
        async for message in messages:
            async with message:
                assert (message.json(), message.key, message.headers["a"], message.attempt) == ({"id": 1}, "k", "b", 1)
            break
    assert await ready(client, "orders") == (0, 0, 1)


async def test_what_is_not_settled_comes_back(client: headrace.Client) -> None:
    await client.declare_queue("orders", backoff_ms=(10,))
    await client.publish("orders", b"x")
    async with client.consume("orders") as messages:
        message = await anext(messages)
        await message.retry(confirmed=True)
        again = await anext(messages)
        assert (again.offset, again.attempt, again.redelivered) == (0, 2, True)
        await again.ack(confirmed=True)


async def test_stopping_returns_what_was_prefetched_at_once_and_uncounted(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    async with client.publisher("orders") as publisher:
        await publisher.send_many(range(50))
    async with client.consume("orders", prefetch=50) as messages:
        (await anext(messages)).ack()
    assert await ready(client, "orders") == (49, 0, 1)
    async with client.consume("orders") as messages:
        assert (await anext(messages)).attempt == 1


async def test_taking_ends_where_a_consumer_is_stopped_with_what_it_holds_still_its_own(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    await client.publish("orders", {"id": 1})
    async with client.consume("orders") as messages, asyncio.timeout(10):
        (message,) = await messages.take(250)
        waiting = asyncio.create_task(messages.take(250))
        await asyncio.sleep(0)
        messages.stop()
        assert await waiting == []
        assert await messages.take(1) == []
        await message.ack(confirmed=True)
    info = await client.describe("orders")
    assert (info.ready, info.leased, info.settled) == (0, 0, 1)


async def test_dead_letters_and_redrive(client: headrace.Client) -> None:
    await client.declare_queue("dead")
    await client.declare_queue("orders", dead_letter="dead", max_deliveries=1)
    await client.publish("orders", {"id": 1})
    async with client.consume("orders") as messages:
        (await anext(messages)).reject()
        async with client.consume("dead") as dead:
            message = await anext(dead)
            assert message.json() == {"id": 1}
            assert any(name.startswith("headrace.") for name in message.headers)
    await client.redrive("dead")
    async with client.consume("orders") as messages:
        assert (await anext(messages)).json() == {"id": 1}


async def test_delay_priority_and_ttl(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    await client.pause("orders")
    await client.publish("orders", "late", delay=0.2)
    await client.publish("orders", "low")
    await client.publish("orders", "high", priority=9)
    await client.publish("orders", "gone", ttl=0.001)
    await client.resume("orders")
    async with client.consume("orders") as messages:
        found = []
        async for message in messages:
            message.ack()
            if message.text != "gone":
                found.append(message.text)
            if message.text == "late":
                break
    assert found == ["high", "low", "late"]


async def test_fetch_waits_for_messages(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    assert await client.fetch("orders", 10, wait=0.01) == []
    fetching = asyncio.create_task(client.fetch("orders", 1, wait=10))
    await asyncio.sleep(0)
    await client.publish("orders", b"x")
    (message,) = await fetching
    await message.ack(confirmed=True)
    assert await ready(client, "orders") == (0, 0, 1)


async def test_filters_leave_the_rest(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    for kind in ("a", "b", "a"):
        await client.publish("orders", kind, headers={"kind": kind})
    async with client.consume("orders", filter="kind = b") as messages:
        async with await anext(messages) as message:
            assert message.text == "b"
    assert await ready(client, "orders") == (2, 0, 1)


async def test_a_stale_settle_is_typed(client: headrace.Client) -> None:
    await client.declare_queue("orders", lease_ms=100)
    await client.publish("orders", b"x")
    (first,) = await client.fetch("orders", wait=5)
    await client.alter_queue("orders", lease_ms=60_000)  # the second lease is not to run out as well
    async with client.consume("orders") as messages:
        second = await anext(messages)
        assert second.attempt == 2
        await second.ack(confirmed=True)
        with pytest.raises(StaleSettle):
            await first.ack(confirmed=True)


async def test_leases_can_be_kept(client: headrace.Client) -> None:
    await client.declare_queue("orders", lease_ms=300)
    await client.publish("orders", b"x")
    async with client.consume("orders", auto_extend=True) as messages:
        message = await anext(messages)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.8):
                await anext(messages)
        await message.extend(5)
        await message.ack(confirmed=True)


async def test_auto_ack_goes_on_beyond_the_prefetch(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    async with client.publisher("orders") as publisher:
        await publisher.send_many(range(200))
    async with client.consume("orders", auto_ack=True, prefetch=10) as messages:
        assert [(await anext(messages)).json() for _ in range(200)] == list(range(200))


async def test_refusals_are_typed_and_say_what_to_do(client: headrace.Client) -> None:
    with pytest.raises(NotFound) as e:
        await client.publish("nowhere", b"x")
    assert "declare" in e.value.hint
    with pytest.raises(NotFound):
        async with client.consume("nowhere"):
            pass
    with pytest.raises(Invalid, match="prefetched"):
        await client.declare_queue("orders", prefetched=1)
    await client.declare_queue("orders", max_messages=1)
    await client.declare_queue("orders", max_messages=1)
    with pytest.raises(Conflict, match="max_messages"):
        await client.declare_queue("orders", max_messages=2)
    await client.publish("orders", b"x")
    with pytest.raises(QueueFull):
        await client.publish("orders", b"x")


async def test_administration(client: headrace.Client) -> None:
    await client.declare_queue("a")
    await client.declare_queue("b", partitions=3)
    await client.declare_stream("c")
    assert [i.name for i in await client.list()] == ["a", "b", "c"]
    assert [i.name for i in await client.list(kind="stream")] == ["c"]
    assert (await client.alter_queue("a", ttl_ms=5000)).spec["ttl_ms"] == 5000
    await client.publish("a", {"x": 1}, key="k")
    (peeked,) = await client.inspect("a")
    assert (peeked.value, peeked.key) == (b'{"x":1}', b"k")
    await client.move("a", "b")
    async with client.consume("b") as messages:
        (await anext(messages)).ack()
    await client.publish("a", b"x")
    assert await client.purge("a") == 1
    assert (await client.status()).queues == 2
    assert len(await client.connections()) == 1
    assert await client.quarantine() == ()
    await client.topology()
    await client.delete("a")
    with pytest.raises(NotFound):
        await client.describe("a")


async def test_deleting_a_queue_ends_its_consumers_with_the_reason(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    async with client.consume("orders") as messages:
        waiting = asyncio.ensure_future(messages.__anext__())
        await client.delete("orders")
        with pytest.raises(NotFound):
            await waiting


async def test_cohorts_divide_the_partitions(client: headrace.Client) -> None:
    await client.declare_queue("orders", partitions=4)
    async with client.consume("orders", cohort="c") as one:
        assert sorted(one.assigned) == [0, 1, 2, 3]
        async with client.consume("orders", cohort="c") as two:
            async with asyncio.timeout(10):
                while len(one.assigned) != 2 or len(two.assigned) != 2:
                    await asyncio.sleep(0.005)
            assert sorted(one.assigned + two.assigned) == [0, 1, 2, 3]


async def test_many_posts_with_many_consumers_lose_and_double_nothing(client: headrace.Client) -> None:
    await client.declare_queue("orders", partitions=3)
    count = 3000
    seen: list[int] = []

    async def work() -> None:
        async with client.consume("orders", prefetch=20) as messages:
            async for message in messages:
                async with message:
                    seen.append(message.json())
                await asyncio.sleep(0)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    async with client.publisher("orders", compression="lz4") as publisher:
        await asyncio.gather(*[publisher.post(i) for i in range(count)])
    async with asyncio.timeout(20):
        while len(seen) < count:
            await asyncio.sleep(0.005)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert sorted(seen) == list(range(count))


async def test_a_partition_that_does_not_exist_spoils_nothing_for_what_names_none(client: headrace.Client) -> None:
    await client.declare_queue("orders", partitions=2)
    async with asyncio.timeout(20), client.publisher("orders") as publisher:
        await publisher.send(b"0", partition=0)
        with pytest.raises(NotFound, match=r"partitions 0\.\.1"):
            await publisher.send(b"x", partition=7)
        assert sorted([(await publisher.send(b"1")).partition, (await publisher.send(b"2")).partition]) == [0, 1]


async def test_a_publisher_goes_on_with_another_queue_of_that_name(client: headrace.Client) -> None:
    """Once it has been told that the first one is gone."""
    await client.declare_queue("orders", partitions=4)
    publisher = client.publisher("orders")
    async with asyncio.timeout(20):
        await publisher.send_many(b"%d" % n for n in range(40))
        await client.delete("orders")
        for _ in range(2):
            with pytest.raises(NotFound):
                await publisher.send(b"nowhere")
        await client.declare_queue("orders", partitions=2)
        receipts = [await publisher.send(b"%d" % n) for n in range(4)]
        assert sorted((r.partition, r.offset) for r in receipts) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        await client.delete("orders")
        posted = [publisher.post(b"%d" % n, partition=n % 2) for n in range(1000)]
        answers = await asyncio.gather(*posted, return_exceptions=True)
        assert {type(a) for a in answers} == {NotFound}
        await client.declare_queue("orders")
        assert (await publisher.send(b"here")).partition == 0
        await publisher.close()
