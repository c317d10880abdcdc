"""Three brokers that the command line makes a cluster: their owner is killed, all are stopped and started again, and nothing confirmed is lost."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import headrace
from headrace.cli.perf_load import run
from headrace.cli.perf_plan import Plan
from headrace.client.client import Client
from headrace.model import limits
from headrace.model.errors import NotConnected, NotFound, StaleSettle
from headrace.wire.frames import Level
from tests.integration.cluster.members import WAIT_S, Member, Three
from tests.today import TODAY

pytestmark = pytest.mark.timeout(600)  # three brokers are started up to three times over


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    made = Three(tmp_path)
    try:
        yield made
    finally:
        made.end()


async def take(client: Client, name: str, count: int) -> list[bytes]:
    """The first so many different messages, each acked for certain."""
    got: dict[bytes, bool] = {}
    async with asyncio.timeout(WAIT_S), client.consume(name) as consumer:
        async for message in consumer:
            await message.ack(confirmed=True)
            got[message.value] = True
            if len(got) == count:
                break
    return sorted(got)


@pytest.mark.timeout(1200 if os.environ.get("HEADRACE_FULL_STOPS") else 600)
async def test_a_killed_owner_loses_nothing_and_all_can_be_started_again(three: Three) -> None:
    three.start("abc")
    await three.ready()
    async with three.connect() as client:
        await client.declare_queue("orders", replication_factor=3, durability="replica_durable", min_in_sync_replicas=2)
        sent: list[bytes] = []
        async with client.publisher("orders", confirm_timeout=WAIT_S) as publisher:
            for sig in (signal.SIGKILL, signal.SIGTERM, None):
                for _ in range(100):
                    value = b"%04d" % len(sent)
                    assert (await publisher.send(value)).level == Level.REPLICA
                    sent.append(value)
                if sig is None:
                    break
                owner = await three.owner(client, "orders")
                publishing = [asyncio.ensure_future(publisher.send(b"%04d" % (len(sent) + n))) for n in range(100)]
                assert await owner.signalled(sig) == (-sig if sig is signal.SIGKILL else 0)
                receipts = await asyncio.gather(*publishing)
                assert {r.level for r in receipts} == {Level.REPLICA}
                sent += [b"%04d" % (len(sent) + n) for n in range(100)]
                three.start(owner.name)
                await owner.ready()
        assert await take(client, "orders", 250) == sent[:250]
    assert await three.stop() == [0, 0, 0]
    assert [m.etcds() for m in three.members.values()] == [0, 0, 0]
    assert not any(m.ready_file.exists() for m in three.members.values())

    three.start("c")  # alone it has no quorum, and says so
    async with asyncio.timeout(WAIT_S):
        while (status := await three["c"].cluster())["code"] != "no_quorum":
            await asyncio.sleep(0.1)
    assert {w["name"] for w in status["waits_for"]} >= {"a", "b"}, status
    assert (await three["c"].get("live")).status_code == 200
    assert (await three["c"].get("ready")).status_code == 503
    with pytest.raises(NotConnected):
        await headrace.connect(f"headrace://{three['c'].native}")
    three.start("b")
    await three.ready("cb")
    three.start("a")
    await three.ready("a")
    async with three.connect() as client:
        assert await take(client, "orders", 250) == sent[250:]
    for order, sig in full_stops():
        await stopped_and_started(three, order, sig)
    assert await three.stop() == [0, 0, 0]


def full_stops() -> list[tuple[str, signal.Signals]]:
    """A kill -9 of all and an order of starts, of today; HEADRACE_FULL_STOPS=all: all six orders, killed and stopped."""
    orders = ["".join(order) for order in itertools.permutations("abc")]
    if os.environ.get("HEADRACE_FULL_STOPS") == "all":
        return list(itertools.product(orders, (signal.SIGKILL, signal.SIGTERM)))
    return [(orders[TODAY % len(orders)], signal.SIGKILL)]


async def stopped_and_started(three: Three, order: str, sig: signal.Signals) -> None:
    """All go, whoever is started first before the others have confirmed more: what was confirmed last is there afterwards."""
    stale, rest = three[order[0]], [three[name] for name in order[1:]]
    sent = [b"%s-%d-%02d" % (order.encode(), sig, n) for n in range(40)]

    async def ends(member: Member) -> None:
        await member.signalled(sig)
        if sig is signal.SIGKILL:
            member.end()

    async with three.connect() as client:
        async with client.publisher("orders", confirm_timeout=WAIT_S) as publisher:
            for value in sent[:20]:
                await publisher.send(value)
            await ends(stale)
            for value in sent[20:]:
                assert (await publisher.send(value)).level == Level.REPLICA
        await asyncio.gather(*(ends(member) for member in rest))
    for name in order:
        three.start(name)
        assert (await three[name].get("live")).status_code == 200
    await three.ready()
    async with three.connect() as client:
        assert await take(client, "orders", len(sent)) == sent, (order, sig)


async def test_a_member_that_is_removed_gives_all_it_has_to_the_others_first(three: Three, tmp_path: Path) -> None:
    three.start("abc")
    await three.ready()
    async with three.connect() as client:
        await client.declare_queue("orders", partitions=3, replication_factor=2, durability="replica_durable")
        sent = [b"%04d" % n for n in range(60)]
        for value in sent:
            await client.publish("orders", value)
        assert await three["a"].signalled(signal.SIGTERM) == 0
        three.start("a", declared=three.declare(2, "ab", tmp_path / "cluster.toml"))
        async with asyncio.timeout(WAIT_S):
            while (status := await three["c"].cluster())["state"] != "removed":
                await asyncio.sleep(0.1)
        assert "version 2 removed it" in status["reason"]
        assert (await three["c"].get("live")).status_code == 200
        assert (await three["c"].get("ready")).status_code == 503
        left = {f"headrace://{three[name].native}" for name in "ab"}
        async with asyncio.timeout(WAIT_S):  # whoever is asked hears of it when its registration has ended
            info = await client.topology("orders")
            while {url for urls in info.brokers.values() for url in urls} != left:
                await asyncio.sleep(0.1)
                info = await client.topology("orders")
        assert len(info.partitions) == 3
        assert await take(client, "orders", len(sent)) == sent
    await three["c"].without_etcd()
    assert not three["c"].ready_file.exists()
    assert await three.stop() == [0, 0, 0]


async def test_what_is_deleted_is_gone_everywhere(three: Three) -> None:
    three.start("cab")
    await three.ready()
    async with three.connect() as client:
        await client.declare_queue("orders", replication_factor=3, durability="replica_durable")
        for n in range(10):
            await client.publish("orders", b"%d" % n)
        async with client.consume("orders") as consumer:
            await consumer.__anext__()
            async with await headrace.connect(f"headrace://{three['b'].native}") as other:
                await other.delete("orders")
            async with asyncio.timeout(WAIT_S):
                with pytest.raises(NotFound):
                    async for _ in consumer:
                        pass
    for member in three.members.values():
        async with await headrace.connect(f"headrace://{member.native}") as client:
            with pytest.raises(NotFound):
                await client.publish("orders", b"too late")
    async with three.connect() as client:
        await client.declare_queue("orders", replication_factor=3, durability="majority_durable")
        await client.publish("orders", b"anew")
        assert await take(client, "orders", 1) == [b"anew"]
    assert await three.stop() == [0, 0, 0]


async def test_the_load_generator_follows_owners_and_a_connection_may_send_any_amount(three: Three) -> None:
    three.start("abc")
    await three.ready()
    url = "headrace://" + ",".join(m.native for m in three.members.values())
    plan = Plan(url=url, name="load", replication_factor=3, size=1024, count=20_000, idle_s=WAIT_S)
    assert plan.size * plan.count > limits.IN_FLIGHT_BYTES_MAX
    figures = await asyncio.to_thread(run, plan)
    assert (figures["confirmed"], figures["lost"], figures["refused"], figures["why"]) == (20_000, 0, 0, "")
    many = Plan(url=url, name="many", replication_factor=2, partitions=6, consume=True, count=3_000, idle_s=WAIT_S)
    figures = await asyncio.to_thread(run, many)
    assert (figures["delivered"], figures["lost"], figures["dup"], figures["refused"], figures["why"]) == (3_000, 0, 0, 0, "")
    assert await three.stop() == [0, 0, 0]


async def test_a_cohort_over_three_brokers_goes_on_when_one_is_killed(three: Three) -> None:
    three.start("abc")
    await three.ready()
    async with three.connect() as client, three.connect() as other:
        settings = {"partitions": 3, "replication_factor": 3, "durability": "replica_durable", "min_in_sync_replicas": 2}
        await client.declare_queue("orders", **settings)
        await client.declare_queue("archive", **settings)
        got: dict[bytes, bool] = {}
        wanted = 100
        members: list[headrace.Consumer] = []

        async def work(by: Client) -> set[int]:
            seen: set[int] = set()
            async with by.consume("orders", cohort="team", prefetch=5) as consumer:
                members.append(consumer)
                while len(got) < wanted:
                    try:
                        async with asyncio.timeout(0.5):
                            message = await consumer.__anext__()
                    except TimeoutError:
                        continue
                    try:
                        await message.ack(confirmed=True)
                    except StaleSettle:
                        continue
                    seen.add(message.partition)
                    got[message.value] = True
                return seen

        working = [asyncio.ensure_future(work(by)) for by in (client, other)]
        async with asyncio.timeout(WAIT_S):
            while len(members) < 2 or not all(member.assigned for member in members):  # else one of them may be done before the other begins
                await asyncio.sleep(0.05)
        async with client.publisher("orders", confirm_timeout=WAIT_S) as publisher, asyncio.timeout(WAIT_S):
            await asyncio.gather(*(publisher.post(b"%d" % n, partition=n % 3) for n in range(50)))
            while len(got) < 50:
                await asyncio.sleep(0.05)
            assert await three["b"].signalled(signal.SIGKILL) == -signal.SIGKILL
            await asyncio.gather(*(publisher.post(b"%d" % n, partition=n % 3) for n in range(50, 100)))
            first, second = await asyncio.gather(*working)
        assert first | second == {0, 1, 2}
        assert first
        assert second
        assert sorted(got) == sorted(b"%d" % n for n in range(100))

        for n in range(30):
            await client.publish("orders", b"%d" % n, partition=n % 3)
        three.start("b")
        await three["b"].ready()
        async with await headrace.connect(f"headrace://{three['b'].native}", request_timeout=WAIT_S) as asked:
            async with asyncio.timeout(WAIT_S):
                while (await asked.describe("orders")).ready != 30:  # who has just begun may not reach everybody yet
                    await asyncio.sleep(0.1)
            moving = await asked.move("orders", "archive")
            async with asyncio.timeout(WAIT_S):
                while (await client.transfer(moving.id)).state == "running":
                    await asyncio.sleep(0.05)
            assert (await asked.describe("archive")).ready == 30
    response = await three["c"].get("queues/archive")
    assert response.json()["ready"] == 30, "admin says the same, wherever it is asked"
    assert await three.stop() == [0, 0, 0]
