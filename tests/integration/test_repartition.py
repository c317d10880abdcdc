"""Queues that get more or fewer partitions while they are used: a lone broker and the Python client."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

import headrace
from headrace.broker import repartitions
from headrace.broker.importing import _check_settled
from headrace.cluster.local import LocalCoordinator
from headrace.core.partitioner import partition_for
from headrace.model.errors import Conflict, Invalid, NotFound, Refused
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


@pytest.fixture(autouse=True)
def kept_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repartitions, "RETIRED_KEPT_MS", 50)


async def done(client: headrace.Client, name: str = "orders", within_s: float = 20) -> control.Info:
    async with asyncio.timeout(within_s):
        while (info := await client.describe(name)).routing is not None:
            await asyncio.sleep(0.02)
    return info


async def draining(client: headrace.Client, holding: int = 0) -> control.Info:
    async with asyncio.timeout(10):
        while (info := await client.describe("orders")).routing is None or info.routing.phase != "draining" or info.routing.holding != holding:
            await asyncio.sleep(0.02)
    return info


def key_of(partition: int, count: int, also: tuple[int, int] | None = None) -> str:
    """A key of that partition among ``count``, and of ``also`` (partition, count)."""
    return next(
        key
        for n in range(100_000)
        if partition_for((key := f"k{n}").encode(), count) == partition and (also is None or partition_for(key.encode(), also[1]) == also[0])
    )


class Load:
    """Publishes keyed messages and consumes them; knows what was confirmed, and what came in which order."""

    def __init__(self, client: headrace.Client, name: str = "orders", keys: int = 40) -> None:
        self.client, self.name = client, name
        self.keys = [f"key-{n}" for n in range(keys)]
        self.sent: dict[str, int] = defaultdict(int)
        self.came: dict[str, list[int]] = defaultdict(list)
        self.stop = asyncio.Event()
        self.partitions: set[int] = set()

    async def publish(self) -> None:
        async with self.client.publisher(self.name) as publisher:
            waiting = []
            while not self.stop.is_set():
                for key in self.keys:
                    waiting.append(publisher.post(self.sent[key], key=key))
                    self.sent[key] += 1
                await asyncio.sleep(0.002)
            self.partitions |= {receipt.partition for receipt in await asyncio.gather(*waiting)}

    async def consume(self, messages: headrace.Consumer) -> None:
        async for message in messages:
            assert message.key is not None
            self.came[message.key].append(message.json())
            message.ack()
            if self.stop.is_set() and sum(map(len, self.came.values())) >= sum(self.sent.values()):
                return

    def check(self) -> None:
        assert sum(self.sent.values()) > 0
        for key, count in self.sent.items():
            assert self.came[key] == list(range(count)), f"{key}: {self.came[key][:50]}"


@pytest.mark.parametrize(("counts"), [(1, 4), (3, 5), (4, 2), (2, 6, 3, 1)])
async def test_every_key_keeps_its_order_and_nothing_is_lost_or_doubled(client: headrace.Client, counts: tuple[int, ...]) -> None:
    await client.declare_queue("orders", partitions=counts[0])
    load = Load(client)
    async with client.consume("orders", prefetch=500) as messages:
        publishing, consuming = asyncio.create_task(load.publish()), asyncio.create_task(load.consume(messages))
        for count in counts[1:]:
            await asyncio.sleep(0.1)
            info = await client.repartition("orders", count)
            assert info.routing is not None
            await done(client)
        await asyncio.sleep(0.1)
        load.sent["last"] = 1
        load.stop.set()
        async with asyncio.timeout(20):
            await publishing
            await client.publish("orders", 0, key="last")
            await consuming
    load.check()
    info = await client.describe("orders")
    assert (len(info.partitions), info.spec["partitions"], info.routing_version) == (counts[-1], counts[-1], len(counts))
    assert max(load.partitions) == max(counts) - 1


async def test_a_key_waits_for_what_is_behind_in_its_old_partition_and_others_do_not(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    moved, stays = key_of(1, 2), key_of(0, 2)
    await client.publish("orders", "old", key=moved)
    async with client.consume("orders", prefetch=10) as messages:
        old = await anext(messages)
        await client.repartition("orders", 2)
        await draining(client, 1)
        assert (await client.publish("orders", "new", key=moved)).partition == 1
        await client.publish("orders", "stays", key=stays)
        await client.publish("orders", "no key", partition=1)
        assert {(await anext(messages)).value for _ in range(2)} == {b"stays", b"no key"}
        assert messages.next_ready() is None
        info = await client.describe("orders")
        assert info.routing is not None
        assert (info.routing.before, info.routing.after, info.routing.holding) == (1, 2, 1)
        assert "1 key slots" in info.routing.waits_for
        assert [(row.holding, row.held, row.retiring) for row in info.partitions] == [(0, 0, False), (1, 1, False)]
        await old.ack(confirmed=True)
        assert (await anext(messages)).value == b"new"
    await done(client)


async def test_delayed_messages_hold_nothing(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    moved = key_of(1, 2)
    await client.publish("orders", "later", key=moved, delay=60)
    await client.repartition("orders", 2)
    await done(client)
    await client.publish("orders", "new", key=moved)
    async with client.consume("orders") as messages:
        assert (await anext(messages)).value == b"new"


async def test_what_is_held_survives_a_restart(running: TestBroker, client: headrace.Client) -> None:
    await client.declare_queue("orders")
    moved = key_of(1, 2)
    await client.publish("orders", "old", key=moved)
    await client.repartition("orders", 2)
    await draining(client, 1)
    await client.publish("orders", "new", key=moved)
    for _ in range(2):
        await running.stop()
        await running.start()
        info = await draining(client, 1)
        assert info.delayed == info.partitions[1].held == 1
    async with client.consume("orders", prefetch=1) as messages:
        for value in (b"old", b"new"):
            message = await anext(messages)
            assert message.value == value
            await message.ack(confirmed=True)
    await done(client)


async def test_given_up_partitions_are_consumed_and_then_gone(client: headrace.Client) -> None:
    await client.declare_queue("orders", partitions=3)
    for partition in range(3):
        await client.publish("orders", partition, partition=partition)
    await client.repartition("orders", 1)
    info = await draining(client)
    with pytest.raises(NotFound):
        await client.publish("orders", "late", partition=2)
    assert [row.retiring for row in info.partitions] == [False, True, True]
    async with client.consume("orders") as messages:
        for _ in range(3):
            await (await anext(messages)).ack(confirmed=True)
        assert len((await done(client)).partitions) == 1
        await client.publish("orders", "after")
        assert (await anext(messages)).value == b"after"


async def test_force_lets_go_of_everything_and_moves_what_is_left(client: headrace.Client) -> None:
    await client.declare_queue("orders", partitions=4)
    for n in range(100):
        await client.publish("orders", n, key=f"k{n}")
    await client.repartition("orders", 2)
    await asyncio.sleep(0.1)
    assert (await client.describe("orders")).routing is not None
    await client.repartition("orders", 2, force=True)
    info = await done(client)
    assert (len(info.partitions), info.ready) == (2, 100)
    async with client.consume("orders", prefetch=200) as messages:
        assert {(await anext(messages)).json() for _ in range(100)} == set(range(100))
        assert messages.next_ready() is None


async def test_one_repartition_at_a_time_and_only_of_queues(client: headrace.Client) -> None:
    await client.declare_queue("orders", partitions=2)
    await client.publish("orders", "x", partition=1)
    with pytest.raises(Invalid):
        await client.repartition("orders", 0)
    assert (await client.repartition("orders", 2)).routing is None
    await client.repartition("orders", 1)
    with pytest.raises(Conflict, match="from 2 to 1"):
        await client.repartition("orders", 5)
    assert (await client.repartition("orders", 1)).routing is not None
    await client.declare_stream("events")
    with pytest.raises((Refused, Conflict)):
        await client.repartition("events", 2)
    with pytest.raises(NotFound):
        await client.repartition("nothing", 2)


async def test_altering_the_number_of_partitions_is_a_repartition(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    await client.alter_queue("orders", partitions=3, lease_ms=5000)
    info = await done(client)
    assert (len(info.partitions), info.spec["lease_ms"], info.routing_version) == (3, 5000, 2)


async def test_a_cohort_shares_the_new_partitions(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    async with client.consume("orders", cohort="c") as one, client.consume("orders", cohort="c") as two:
        await client.repartition("orders", 4)
        await done(client)
        for partition in range(4):
            await client.publish("orders", partition, partition=partition)
        came = []
        for consumer in (one, two):
            for _ in range(2):
                async with asyncio.timeout(20):
                    message = await anext(consumer)
                came.append(message.partition)
                await message.ack(confirmed=True)
        assert sorted(came) == [0, 1, 2, 3]
        await client.repartition("orders", 1)
        await done(client)
        await client.publish("orders", "x")
        await client.publish("orders", "y")
        got = [c.next_ready() for c in (one, two)]
        async with asyncio.timeout(20):
            while not any(got):
                await asyncio.sleep(0.02)
                got = [c.next_ready() for c in (one, two)]


async def test_dead_letters_on_their_way_arrive_once(client: headrace.Client) -> None:
    await client.declare_queue("dead", partitions=2)
    await client.declare_queue("orders", dead_letter="dead")
    for n in range(200):
        await client.publish("orders", n, key=f"k{n}")
    async with client.consume("orders", prefetch=200) as messages:
        for n in range(200):
            (await anext(messages)).reject()
            if n == 50:
                await client.repartition("dead", 3)
        await asyncio.sleep(0.2)
    info = await done(client, "dead")
    async with asyncio.timeout(20):
        while (info := await client.describe("dead")).ready < 200:
            await asyncio.sleep(0.05)
    assert (info.ready, len(info.partitions)) == (200, 3)


async def test_a_publisher_of_no_confirms_follows(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    moved = key_of(1, 2)
    async with client.publisher("orders", confirm="none") as publisher, client.consume("orders") as messages:
        publisher.post("before", key=moved)
        await (await anext(messages)).ack(confirmed=True)
        await client.repartition("orders", 2)
        await done(client)
        publisher.post("lost", key=moved, receipt=False)  # nobody can say that it was late
        await asyncio.sleep(0.2)
        publisher.post("after", key=moved, receipt=False)
        message = await anext(messages)
        assert (message.value, message.partition) == (b"after", 1)


async def test_a_broker_joins_no_cluster_while_a_repartition_is_under_way(running: TestBroker, client: headrace.Client) -> None:
    assert running._running is not None
    store = running._running.broker.store
    local = LocalCoordinator(store.state, store.commit_state)
    await client.declare_queue("orders", partitions=2)
    await client.publish("orders", "x", partition=1)
    await _check_settled(local)
    await client.repartition("orders", 1)
    with pytest.raises(Refused, match="'orders' is being repartitioned from 2 to 1"):
        await _check_settled(local)
    await client.purge("orders")
    await done(client)
    await _check_settled(local)


async def test_it_waits_for_transfers_that_were_begun_and_a_deletion_ends_it(client: headrace.Client) -> None:
    await client.declare_queue("dead", max_messages=1)
    await client.declare_queue("orders", dead_letter="dead")
    await client.publish("dead", "first")
    await client.publish("orders", "second")
    async with client.consume("orders") as messages:
        (await anext(messages)).reject()
        async with asyncio.timeout(10):
            while (await client.describe("orders")).settled < 1:
                await asyncio.sleep(0.02)
    await client.repartition("dead", 2)
    await asyncio.sleep(0.3)
    info = await client.describe("dead")
    assert info.routing is not None
    assert (info.routing.phase, info.routing_version) == ("announced", 1)
    assert "1 transfers" in info.routing.waits_for
    await client.delete("dead")
    await client.declare_queue("dead")
    await asyncio.sleep(0.3)
    await client.publish("orders", "third")
    async with client.consume("orders") as messages:
        (await anext(messages)).reject()
        async with asyncio.timeout(20):
            while (await client.describe("dead")).ready < 2:
                await asyncio.sleep(0.05)


async def test_a_publisher_goes_on_with_another_queue_of_the_name(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    async with client.publisher("orders") as publisher:
        await publisher.send("a", key="k")
        await client.purge("orders")  # else its key is held
        await client.repartition("orders", 3)
        await done(client)
        assert (await publisher.send("b", key=key_of(2, 3))).partition == 2
        await client.delete("orders")
        await client.declare_queue("orders", partitions=2)
        with suppress(NotFound):
            await publisher.send("c", key=key_of(1, 2))
        assert (await publisher.send("d", key=key_of(1, 2))).partition == 1
