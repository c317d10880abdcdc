"""What survives a restart of the broker (SEMANTICS 3): messages, leases, counts, delays, cursors, settings."""

import asyncio

import pytest

import headrace
from headrace import testing

pytestmark = pytest.mark.timeout(60)


async def test_messages_counts_and_settlements_survive() -> None:
    async with testing.broker() as broker:
        async with headrace.connect(broker.url) as client:
            await client.declare_queue("q", partitions=2)
            publisher = client.publisher("q")
            for i in range(50):
                await publisher.send(str(i), key=str(i))
            async with client.consume("q", prefetch=10) as messages:
                for _ in range(10):
                    message = await anext(aiter(messages))
                    await message.ack(confirmed=True)
                message = await anext(aiter(messages))
                await message.retry(delay=0, confirmed=True)
            before = await client.describe("q")
        await broker.restart()
        async with headrace.connect(broker.url) as client:
            after = await client.describe("q")
            assert (after.ready, after.settled, after.spec) == (before.ready, before.settled, before.spec)
            assert after.ready == 40
            attempts = []
            async with client.consume("q") as messages:
                for _ in range(40):
                    message = await anext(aiter(messages))
                    attempts.append(message.attempt)
                    await message.ack(confirmed=True)
            assert max(attempts) >= 2  # one more if it had been prefetched again before the consumer left
            assert (await client.describe("q")).settled == 50


async def test_delay_survives() -> None:
    async with testing.broker() as broker:
        async with headrace.connect(broker.url) as client:
            await client.declare_queue("q")
            await client.publish("q", b"later", delay=1.0)
            await client.publish("q", b"much later", delay=3600)
        await broker.restart()
        async with headrace.connect(broker.url) as client:
            async with client.consume("q") as messages:
                message = await asyncio.wait_for(anext(aiter(messages)), 20)
                assert message.value == b"later"
                await message.ack(confirmed=True)
            info = await client.describe("q")
            assert (info.ready, info.leased, info.delayed) == (0, 0, 1)


async def test_a_client_carries_on_over_a_restart_and_stores_each_publish_once() -> None:
    async with testing.broker() as broker, headrace.connect(broker.url) as client:
        await client.declare_queue("q")
        publisher = client.publisher("q")
        waiting = []
        for i in range(2000):
            waiting.append(publisher.post(str(i)))
            if i == 1000:
                restart = asyncio.create_task(broker.restart())
            if i % 50 == 0:
                await asyncio.sleep(0.001)
        await restart
        await asyncio.gather(*waiting)
        info = await client.describe("q")
        assert info.ready == 2000
        seen = []
        async with client.consume("q", prefetch=500) as messages:
            async for message in messages:
                seen.append(int(message.text))
                await message.ack()
                if len(seen) == 2000:
                    break
        assert seen == list(range(2000))


async def test_deleted_stays_deleted_and_a_new_one_of_that_name_is_empty() -> None:
    async with testing.broker() as broker:
        async with headrace.connect(broker.url) as client:
            await client.declare_queue("q")
            await client.publish("q", b"old")
            await client.delete("q")
            await client.declare_queue("q")
        await broker.restart()
        async with headrace.connect(broker.url) as client:
            assert (await client.describe("q")).records == 0


async def test_cursors_survive() -> None:
    async with testing.broker() as broker:
        async with headrace.connect(broker.url) as client:
            await client.declare_stream("s")
            for i in range(20):
                await client.publish("s", str(i))
            async with client.read("s", start="cursor", cursor="c") as records:
                for _ in range(5):
                    record = await anext(aiter(records))
                await record.commit(confirmed=True)
        await broker.restart()
        async with headrace.connect(broker.url) as client:
            [cursor] = await client.cursors("s")
            assert (cursor.cursor, cursor.offset, cursor.lag) == ("c", 5, 15)
            async with client.read("s", start="cursor", cursor="c") as records:
                assert (await anext(aiter(records))).text == "5"


async def test_members_of_a_cohort_and_of_a_group_have_their_seats_again() -> None:
    async with (
        testing.broker() as broker,
        headrace.connect(broker.url) as one,
        headrace.connect(broker.url) as two,
    ):
        await one.declare_queue("q", partitions=4)
        await one.declare_stream("s", partitions=4)
        first = one.consume("q", cohort="team")
        second = two.consume("q", cohort="team", member="fixed")
        left = one.read("s", group="billing", cursor="billing")
        right = two.read("s", group="billing", cursor="billing")
        members = (first, second, left, right)
        for member in members:
            await member.start()
        async with asyncio.timeout(10):
            while [len(m.assigned) for m in members] != [2, 2, 2, 2]:
                await asyncio.sleep(0.01)
        seats = [m.assigned for m in members]
        generations = [m.generation for m in members]
        await broker.restart()
        async with asyncio.timeout(20):
            while not (one.connected and two.connected and all(m._open for m in members)):
                await asyncio.sleep(0.01)
        assert [m.assigned for m in members] == seats, "who comes back first does not take what is another's"
        assert [m.generation for m in members] == generations
        for number in range(4):
            await one.publish("q", str(number), partition=number)
            await one.publish("s", str(number), partition=number)
        for member in members:
            async with asyncio.timeout(20):
                assert {(await anext(member)).partition for _ in range(2)} == set(member.assigned)
        for member in members:
            await member.close()
