"""What a queue promises (SEMANTICS 1), seen through the client on a real broker, on disk and in memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop

import headrace
from headrace import testing
from headrace.client.client import Client
from headrace.client.message import Message
from headrace.gateways.native.consuming import Consuming
from headrace.model.errors import Conflict, Invalid, LevelUnavailable, NotFound, QueueFull, StaleSettle

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["disk", "memory"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[testing.TestBroker]:
    async with testing.broker(storage=request.param) as running:
        yield running


@pytest.fixture
async def client(broker: testing.TestBroker) -> AsyncIterator[Client]:
    async with headrace.connect(broker.url) as connected:
        yield connected


async def drain(client: Client, queue: str, count: int, **options: object) -> list[Message]:
    """``count`` messages of ``queue``, acked."""
    found: list[Message] = []
    async with client.consume(queue, **options) as messages:  # type: ignore[arg-type]
        async for message in messages:
            await message.ack(confirmed=True)
            found.append(message)
            if len(found) == count:
                return found
    raise AssertionError("the subscription ended")


async def test_declare_is_idempotent_and_names_what_differs(client: Client) -> None:
    await client.declare_queue("q", lease_ms=5000)
    await client.declare_queue("q", lease_ms=5000)
    with pytest.raises(Conflict, match="lease_ms"):
        await client.declare_queue("q", lease_ms=6000)
    with pytest.raises(Conflict, match="is a queue"):
        await client.declare_stream("q")
    await client.alter_queue("q", lease_ms=6000)
    assert (await client.describe("q")).spec["lease_ms"] == 6000
    with pytest.raises(Conflict, match="ordered_by_key"):
        await client.alter_queue("q", ordered_by_key=True)


@pytest.mark.parametrize("name", ["", "$sys", "a\nb", "x" * 256])
async def test_bad_names_are_refused(client: Client, name: str) -> None:
    with pytest.raises(Invalid):
        await client.declare_queue(name)


async def test_undeclared_names_are_not_found(client: Client) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await client.publish("nobody", b"x")


async def test_publish_consume_ack_in_order(client: Client) -> None:
    await client.declare_queue("q")
    for i in range(100):
        await client.publish("q", str(i), headers={"n": str(i)})
    found = await drain(client, "q", 100)
    assert [m.text for m in found] == [str(i) for i in range(100)]
    assert found[7].headers["n"] == "7"
    info = await client.describe("q")
    assert (info.ready, info.leased, info.settled) == (0, 0, 100)


async def test_level_above_the_queues_is_refused(client: Client) -> None:
    await client.declare_queue("q")
    with pytest.raises(LevelUnavailable):
        await client.publish("q", b"x", confirm="replica")


async def test_retry_counts_and_dead_letters_with_origin_then_redrive(client: Client) -> None:
    await client.declare_queue("dead")
    await client.declare_queue("q", max_deliveries=2, dead_letter="dead")
    await client.publish("q", b"poison", headers={"mine": "1"})
    attempts = []
    async with client.consume("q") as messages:
        async for message in messages:
            attempts.append(message.attempt)
            await message.retry(confirmed=True)
            if len(attempts) == 2:
                break
    async with client.consume("dead") as messages:
        async for message in messages:
            assert message.value == b"poison"
            assert message.headers["headrace.origin"] == "q"
            assert message.headers["headrace.reason"] == "max-deliveries"
            assert message.headers["headrace.attempts"] == "2"
            assert message.headers["mine"] == "1"
            await message.retry(confirmed=True)
            break
    assert attempts == [1, 2]
    progress = await client.redrive("dead")
    while progress.state == "running":
        await asyncio.sleep(0.01)
        progress = await client.transfer(progress.id)
    assert (progress.state, progress.done) == ("finished", 1)
    [back] = await drain(client, "q", 1)
    assert back.value == b"poison"
    assert not [name for name in back.headers if name.startswith("headrace.")]


async def test_reserved_headers_cannot_be_forged(client: Client) -> None:
    await client.declare_queue("q")
    with pytest.raises(Invalid, match=r"headrace\."):
        await client.publish("q", b"x", headers={"headrace.origin": "forged"})


async def test_delay_priority_and_ttl(client: Client) -> None:
    await client.declare_queue("dead")
    await client.declare_queue("q", dead_letter="dead")
    await client.publish("q", b"low")
    await client.publish("q", b"high", priority=9)
    await client.publish("q", b"late", delay=0.3)
    await client.publish("q", b"gone", ttl=0.05)
    await asyncio.sleep(0.1)
    found = await drain(client, "q", 3)
    assert [m.value for m in found] == [b"high", b"low", b"late"]
    [expired] = await drain(client, "dead", 1)
    assert (expired.value, expired.headers["headrace.reason"]) == (b"gone", "expired")


async def test_lease_expires_and_late_settle_is_stale(client: Client) -> None:
    await client.declare_queue("q", lease_ms=200)
    await client.publish("q", b"x")
    [first] = await client.fetch("q", 1, wait=5)
    await client.alter_queue("q", lease_ms=60_000)  # the second lease is not to run out as well
    async with client.consume("q", prefetch=1) as others:
        second = await anext(aiter(others))
        assert second.attempt == 2
        with pytest.raises(StaleSettle):
            await first.ack(confirmed=True)
        await second.ack(confirmed=True)


async def test_extended_lease_holds(client: Client) -> None:
    await client.declare_queue("q", lease_ms=200)
    await client.publish("q", b"x")
    async with client.consume("q", prefetch=1) as messages:
        message = await anext(aiter(messages))
        await message.extend(5)
        await asyncio.sleep(0.4)
        assert (await client.describe("q")).leased == 1
        await message.ack(confirmed=True)


async def test_competing_consumers_share(client: Client) -> None:
    await client.declare_queue("q")
    seen: dict[str, int] = {"a": 0, "b": 0}

    async def work(name: str) -> None:
        async with client.consume("q", prefetch=10) as messages:
            async for message in messages:
                async with message:
                    seen[name] += 1
                if sum(seen.values()) >= 200:
                    return

    tasks = [asyncio.create_task(work(name)) for name in seen]
    await asyncio.sleep(0.05)
    publisher = client.publisher("q")
    for i in range(200):
        await publisher.send(str(i))
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert min(seen.values()) >= 50, seen


async def test_leaving_returns_prefetched_messages_at_once(client: Client) -> None:
    await client.declare_queue("q")
    for i in range(10):
        await client.publish("q", str(i))
    async with client.consume("q", prefetch=10) as messages:
        await (await anext(aiter(messages))).ack(confirmed=True)
    found = await drain(client, "q", 9)
    assert sorted(int(m.text) for m in found) == list(range(1, 10))


async def test_pull_waits_and_ends(client: Client) -> None:
    await client.declare_queue("q")
    assert await client.fetch("q", 10, wait=0) == []
    waiting = asyncio.create_task(client.fetch("q", 2, wait=5))
    await asyncio.sleep(0.05)
    await client.publish("q", b"1")
    await client.publish("q", b"2")
    found = await waiting
    assert [m.value for m in found] == [b"1", b"2"]
    for message in found:
        await message.ack(confirmed=True)


async def test_filters_pick_and_leave_the_rest(client: Client) -> None:
    await client.declare_queue("q")
    for i in range(6):
        await client.publish("q", str(i), headers={"kind": "even" if i % 2 == 0 else "odd"})
    found = await drain(client, "q", 3, filter="kind = even")
    assert [m.text for m in found] == ["0", "2", "4"]
    rest = await drain(client, "q", 3)
    assert [m.text for m in rest] == ["1", "3", "5"]


async def test_key_order_holds_a_key_back_while_one_is_out(client: Client) -> None:
    await client.declare_queue("q", ordered_by_key=True)
    for i in range(3):
        await client.publish("q", f"a{i}", key="a")
        await client.publish("q", f"b{i}", key="b")
    order: dict[str, list[str]] = {"a": [], "b": []}

    async def work() -> None:
        async with client.consume("q", prefetch=1) as messages:
            async for message in messages:
                await asyncio.sleep(0.01)
                order[message.key or ""].append(message.text)
                await message.ack(confirmed=True)
                if sum(map(len, order.values())) == 6:
                    return

    tasks = [asyncio.create_task(work()) for _ in range(3)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == {"a": ["a0", "a1", "a2"], "b": ["b0", "b1", "b2"]}


async def test_full_queue_refuses_or_drops_oldest(client: Client) -> None:
    await client.declare_queue("refuse", max_messages=2)
    await client.publish("refuse", b"1")
    await client.publish("refuse", b"2")
    with pytest.raises(QueueFull):
        await client.publish("refuse", b"3")
    await client.declare_queue("drop", max_messages=2, overflow="drop_oldest")
    for i in range(5):
        await client.publish("drop", str(i))
    assert [m.text for m in await drain(client, "drop", 2)] == ["3", "4"]


async def test_purge_pause_move_delete(client: Client) -> None:
    await client.declare_queue("q")
    await client.declare_queue("other")
    for i in range(4):
        await client.publish("q", str(i))
    await client.pause("q")
    async with client.consume("q") as messages:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(aiter(messages)), 0.2)
        await client.resume("q")
        await (await asyncio.wait_for(anext(aiter(messages)), 20)).ack(confirmed=True)
    progress = await client.move("q", "other", limit=2)
    while progress.state == "running":
        await asyncio.sleep(0.01)
        progress = await client.transfer(progress.id)
    assert (progress.state, progress.done) == ("finished", 2)
    assert await client.purge("q") == 1
    assert [m.text for m in await drain(client, "other", 2)] == ["1", "2"]
    await client.delete("q")
    with pytest.raises(NotFound):
        await client.describe("q")
    await client.declare_queue("q")
    assert (await client.describe("q")).records == 0


async def test_inspect_shows_without_leasing(client: Client) -> None:
    await client.declare_queue("q")
    for i in range(5):
        await client.publish("q", str(i), key=f"k{i}")
    shown = await client.inspect("q", limit=3)
    assert [m.value for m in shown] == [b"0", b"1", b"2"]
    assert shown[1].key == b"k1"
    assert (await client.describe("q")).leased == 0


async def test_cohort_divides_partitions_and_a_standby_takes_over(client: Client, broker: testing.TestBroker) -> None:
    await client.declare_queue("q", partitions=4)
    publisher = client.publisher("q")
    for i in range(40):
        await publisher.send(str(i), key=str(i))
    seen: dict[str, set[int]] = {"a": set(), "b": set()}
    async with headrace.connect(broker.url) as second:

        async def work(connected: Client, name: str) -> None:
            async with connected.consume("q", cohort="team", prefetch=1) as messages:
                async for message in messages:
                    seen[name].add(message.partition)
                    await asyncio.sleep(0.005)
                    await message.ack(confirmed=True)

        tasks = [asyncio.create_task(work(client, "a")), asyncio.create_task(work(second, "b"))]
        while (await client.describe("q")).settled < 40:
            await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert seen["a"] | seen["b"] == {0, 1, 2, 3}


async def test_a_cohort_is_exclusive(client: Client) -> None:
    await client.declare_queue("q")
    await client.publish("q", b"x")
    async with client.consume("q", cohort="team") as members:
        await anext(aiter(members))
        with pytest.raises(Conflict, match="team"):
            async with client.consume("q") as loner:
                await anext(aiter(loner))


async def test_members_whose_name_another_took_are_served_nothing_when_that_one_leaves(client: Client, broker: testing.TestBroker) -> None:
    await client.declare_queue("q", partitions=2)
    seen: list[str] = []

    async def work(connected: Client, name: str) -> None:
        async with connected.consume("q", cohort="team", member="one", prefetch=1) as messages:
            async for message in messages:
                seen.append(name)
                await message.ack(confirmed=True)

    async with headrace.connect(broker.url) as second, headrace.connect(broker.url) as third:
        tasks = []
        for name, connected in (("a", client), ("b", second), ("c", third)):
            tasks.append(asyncio.create_task(work(connected, name)))
            await client.publish("q", b"x", key=name)
            while len(seen) < len(tasks):
                await asyncio.sleep(0.01)
        assert seen == ["a", "b", "c"], "the newest has the name"
        tasks[2].cancel()
        await asyncio.gather(tasks[2], return_exceptions=True)
        for n in range(4):
            await client.publish("q", b"x", key=str(n))
        tasks.append(asyncio.create_task(work(third, "d")))
        while len(seen) < 7:
            await asyncio.sleep(0.01)
        assert seen[3:] == ["d"] * 4
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with client.consume("q") as loner:  # all have left: it is nobody's any more
        await client.publish("q", b"y")
        assert (await anext(aiter(loner))).value == b"y"


async def test_auto_ack_settles_at_delivery(client: Client) -> None:
    await client.declare_queue("q")
    await client.publish("q", b"x")
    async with client.consume("q", auto_ack=True) as messages:
        assert (await anext(aiter(messages))).value == b"x"
    info = await client.describe("q")
    assert (info.ready, info.leased, info.settled) == (0, 0, 1)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "gzip", "snappy"])
async def test_compressed_by_the_producer(client: Client, codec: str) -> None:
    await client.declare_queue("q")
    async with client.publisher("q", compression=codec) as publisher:  # type: ignore[arg-type]
        await publisher.send_many([b"x" * 1000] * 50)
    found = await drain(client, "q", 50)
    assert all(m.value == b"x" * 1000 for m in found)


async def test_a_broken_connection_keeps_leases_within_the_grace(client: Client, broker: testing.TestBroker) -> None:
    await client.declare_queue("q")
    await client.publish("q", b"x")
    async with client.consume("q") as messages:
        message = await anext(aiter(messages))
        broker.cut()
        await client.wait_connected(20)
        await message.ack(confirmed=True)
    assert (await client.describe("q")).settled == 1


async def test_a_consumer_that_stops_reading_harms_nobody(client: Client, broker: testing.TestBroker) -> None:
    await client.declare_queue("q")
    async with headrace.connect(broker.url) as slow:
        async with slow.consume("q", prefetch=100_000, prefetch_bytes=1 << 30) as messages:
            await client.publish("q", b"first")
            await (await anext(aiter(messages))).ack(confirmed=True)
            slow._connection._link._transport.pause_reading()  # type: ignore[union-attr]
            async with client.publisher("q") as publisher:
                for _ in range(200):
                    await publisher.send_many([b"x" * 10_000] * 10)
            [sink] = [s for s in broker._running.broker.sinks.values() if s.blocked]  # type: ignore[union-attr]
            assert sink.info().buffered_bytes < 12 << 20
            assert (await client.describe("q")).ready > 0
            found = await client.fetch("q", 5, wait=1)
            assert len(found) == 5
            slow._connection._link._transport.resume_reading()  # type: ignore[union-attr]
            for _ in range(1500):
                await (await asyncio.wait_for(anext(aiter(messages)), 10)).ack()


def test_a_pull_that_waits_for_nothing_is_looked_at_before_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker held up for longer than the pull waits (other work, a busy machine) answered it empty without a look at the queue; with uvloop, where
    timers come before the tick."""
    fetch = Consuming.fetch

    def held_up(self: Consuming, *frame: Any) -> None:
        fetch(self, *frame)
        time.sleep(0.01)

    async def pull() -> None:
        async with testing.broker() as broker, headrace.connect(broker.url) as client:
            await client.declare_queue("q")
            await client.publish("q", b"here")
            assert [m.value for m in await client.fetch("q", 10, wait=0)] == [b"here"]

    monkeypatch.setattr(Consuming, "fetch", held_up)
    uvloop.run(pull())


async def test_pulling_goes_on_past_the_prefetched_bytes(client: Client) -> None:
    await client.declare_queue("q")
    async with client.publisher("q") as publisher:
        await publisher.send_many([b"x" * 1_000_000] * 40)
    seen = 0
    while seen < 40:
        found = await client.fetch("q", 10, wait=5)
        assert found
        for message in found:
            await message.ack(confirmed=True)
        seen += len(found)
    assert (await client.describe("q")).settled == 40
