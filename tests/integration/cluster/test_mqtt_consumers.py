"""Queues and streams consumed over MQTT at three brokers: from any broker, wherever the owners of their partitions are, and whoever of them dies."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Ack, Disconnect, Filter, Suback, Subscribe, Unsuback, Unsubscribe
from headrace.wire.mqtt.publish import Publish
from tests.integration.cluster.lines import Line, Lines
from tests.integration.cluster.members import WAIT_S, Member, Three

pytestmark = pytest.mark.timeout(600)
KEPT: dict[str, Any] = {"clean_start": False, "properties": {prop.SESSION_EXPIRY_INTERVAL: 3600}}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    """One for all tests here; one of its brokers may have been killed by another test, and stays so."""
    folder: Path = tmp_path_factory.mktemp("three")
    made = Three(folder, "--mqtt", "127.0.0.1:0")
    try:
        made.start(made.members)
        asyncio.run(made.ready())
        yield made
        assert set(asyncio.run(made.stop())) == {0}
    finally:
        made.end()


@pytest.fixture
async def client(three: Three) -> AsyncIterator[headrace.Client]:
    async with three.connect() as client:
        yield client


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    made = Lines()
    yield made
    await made.end()


def up(three: Three) -> list[Member]:
    return [member for member in three.members.values() if member.process is not None]


async def subscribed(line: Line, filter: str, qos: int = 1, **options: str) -> int:
    """Subscribes with user properties, and gives the reason."""
    line.number += 1
    properties = {0x26: [(name.replace("_", "-"), value) for name, value in options.items()]} if options else {}
    line.send(encoding.control(Subscribe(line.number, (Filter(filter, qos),), properties), line.version))
    found = await line.answer()
    assert isinstance(found, Suback), found
    return int(found.reasons[0])


async def delivered(line: Line) -> Publish:
    """The next delivery, not acknowledged."""
    async with asyncio.timeout(WAIT_S):
        found = line.early.pop(0) if line.early else await line.next()
    assert isinstance(found, Publish), found
    return found


def about(publish: Publish) -> dict[str, str]:
    assert publish.properties is not None
    return dict(publish.properties[0x26])


def ack(line: Line, publish: Publish, reason: int = 0) -> None:
    line.send(encoding.ack(encoding.PUBACK, publish.packet_id, reason, line.version))


async def empty(client: headrace.Client, name: str) -> None:
    """Returns once everything of a queue is settled."""
    async with asyncio.timeout(WAIT_S):
        while True:
            info = await client.describe(name)
            if not (info.ready or info.leased or info.delayed):
                return
            await asyncio.sleep(0.05)


async def test_a_queue_is_consumed_at_every_broker_from_all_its_owners(three: Three, client: headrace.Client, lines: Lines) -> None:
    await client.declare_queue("jobs", partitions=6)
    members = up(three)
    workers = [lines(members[n % len(members)], f"works-{n}", 5 - n % 2) for n in range(4)]
    for line in workers:
        await line.open()
        assert await subscribed(line, "$queue/jobs") == 1
    got: list[bytes] = []

    async def work(line: Line) -> None:
        while True:
            found = await delivered(line)
            assert found.topic == "$queue/jobs"
            if line.version == 5:
                assert {"queue": "jobs", "delivery-count": "1", "kind": "a"}.items() <= about(found).items()
            got.append(bytes(found.payload))
            ack(line, found)

    working = [asyncio.ensure_future(work(line)) for line in workers]
    async with client.publisher("jobs", headers={"kind": "a"}) as publisher:
        await publisher.send_many([b"%d" % n for n in range(200)])
    await empty(client, "jobs")
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    assert sorted(got, key=int) == [b"%d" % n for n in range(200)], "each to one of them, once"


async def test_it_is_settled_by_who_holds_it_wherever_its_owner_is(three: Three, client: headrace.Client, lines: Lines) -> None:
    await client.declare_queue("dead")
    await client.declare_queue("orders", max_deliveries=5, dead_letter="dead")
    owner = await three.owner(client, "orders")
    away = next(member for member in up(three) if member is not owner)
    line = lines(away, "explicit")
    await line.open()
    assert await subscribed(line, "$queue/orders", settle="explicit") == 1
    await client.publish("orders", b"one")
    first = await delivered(line)
    ack(line, first)
    which = {0x26: [("message-id", about(first)["message-id"])]}
    assert await line.publish("$queue/orders/$retry", b"", properties=which)
    second = await delivered(line)
    ack(line, second)
    assert (second.payload, about(second)["delivery-count"]) == (b"one", "2")
    assert await line.publish("$queue/orders/$reject", about(second)["message-id"].encode(), 2)
    await empty(client, "orders")
    assert [m.value for m in await client.fetch("dead", wait=20)] == [b"one"]
    line.number += 1
    line.send(encoding.publish(5, "$queue/orders/$ack", about(second)["message-id"].encode(), qos=1, packet_id=line.number))
    refused = await line.answer()
    assert isinstance(refused, Ack)
    assert refused.reason == 0x83, "it is not held any more"
    other = lines(owner, "retries")
    await other.open()
    assert await subscribed(other, "$queue/dead") == 1
    for wrong, why in (("$queue/none", 0x83), ("$queue/orders/+", 0x8F), ("$queue/orders?", 0x83)):
        assert await subscribed(line, wrong) == why, wrong
    assert await subscribed(line, "$queue/orders", prefetch="many") == 0x83


async def test_what_is_not_settled_goes_back_at_once(three: Three, client: headrace.Client, lines: Lines) -> None:
    await client.declare_queue("brief", lease_ms=600_000)
    owner = await three.owner(client, "brief")
    away = next(member for member in up(three) if member is not owner)
    line, other = lines(away, "leaves"), lines(owner, "stays")
    await line.open(properties={prop.RECEIVE_MAXIMUM: 2})
    assert await subscribed(line, "$queue/brief") == 1
    for n in range(4):
        await client.publish("brief", b"%d" % n)
    held = [await delivered(line) for _ in range(2)]  # two more wait for room
    await other.open()
    assert await subscribed(other, "$queue/brief") == 1
    line.number += 1
    line.send(encoding.control(Unsubscribe(line.number, ("$queue/brief",)), 5))
    assert await line.answer() == Unsuback(line.number, (0,))
    async with asyncio.timeout(WAIT_S):
        back = [await delivered(other) for _ in range(4)]
    assert sorted((bytes(p.payload), about(p)["delivery-count"]) for p in back) == [(b"0", "2"), (b"1", "2"), (b"2", "1"), (b"3", "1")]
    for found in held:
        ack(line, found)  # too late to settle anything
    line.number += 2
    both = encoding.subscribe(5, line.number - 1, [Filter("$queue/brief", 1)])
    line.send(both + encoding.control(Unsubscribe(line.number, ("$queue/brief",)), 5))
    assert [await line.answer(), await line.answer()] == [Suback(line.number - 1, (1,)), Unsuback(line.number, (0,))], "both are answered"
    for found in back[:2]:
        ack(other, found)
    other.drop()
    assert await subscribed(line, "$queue/brief") == 1
    async with asyncio.timeout(WAIT_S):
        again = [await delivered(line) for _ in range(2)]
    assert {bytes(p.payload) for p in again} == {bytes(p.payload) for p in back[2:]}
    for found in again:
        ack(line, found)
    await empty(client, "brief")


async def test_a_stream_is_read_at_every_broker_and_its_cursor_is_the_same(three: Three, client: headrace.Client, lines: Lines) -> None:
    await client.declare_stream("readings", partitions=3, bindings=("sensors/#",))
    members = up(three)
    writer = lines(members[0], "measures")
    await writer.open()
    for n in range(12):
        assert await writer.publish(f"sensors/{n}", b"%d" % n)
    line = lines(members[0], "reads")
    await line.open(**KEPT)
    assert await subscribed(line, "$stream/readings") == 1
    for _ in range(12):
        found = await delivered(line)
        assert about(found)["mqtt-topic"] == f"sensors/{found.payload.decode()}"
        ack(line, found)
    await line.close()
    for n in range(12, 18):
        assert await writer.publish(f"sensors/{n}", b"%d" % n)
    line.member = members[-1]
    assert (await line.open(**KEPT)).session_present, "it subscribes again by itself"
    assert sorted([int((await delivered(line)).payload) for _ in range(6)]) == list(range(12, 18))
    thief = lines(members[0], "thief")
    await thief.open()
    assert await subscribed(thief, "$stream/readings", cursor="reads") == 1
    ended = await line.next()
    assert isinstance(ended, Disconnect)
    assert ended.reason == 0x98, "another reader has its cursor"
    once = lines(members[-1], "once", 4)
    await once.open()
    assert await subscribed(once, "$stream/readings", 0) == 0
    assert await writer.publish("sensors/x", b"now")
    assert (await delivered(once)).payload == b"now"


async def test_a_group_shares_the_partitions_out_and_qos_0_settles_by_itself(three: Three, client: headrace.Client, lines: Lines) -> None:
    await client.declare_queue("teams", partitions=4)
    members = up(three)
    team = [lines(members[n % len(members)], f"member-{n}") for n in range(2)]
    for line in team:
        await line.open()
        assert await subscribed(line, "$queue/teams", 0, consumer_group="team") == 0
    got: list[list[bytes]] = [[], []]

    async def work(at: int) -> None:
        while True:
            got[at].append(bytes((await delivered(team[at])).payload))

    working = [asyncio.ensure_future(work(at)) for at in range(2)]
    async with asyncio.timeout(WAIT_S):
        n = 0
        while not all(got):
            await client.publish("teams", b"%d" % n, key=str(n))
            n += 1
            await asyncio.sleep(0.02)
    await empty(client, "teams")
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    assert sorted(map(int, got[0] + got[1])) == list(range(n))


async def test_a_killed_owner_is_followed_under_consumption(three: Three, client: headrace.Client, lines: Lines) -> None:
    await client.declare_queue("lives", partitions=3)
    await client.declare_stream("tells", partitions=3)
    victim = await three.owner(client, "lives")
    stays = next(m for m in up(three) if m is not victim)
    got: dict[str, list[bytes]] = {"lives": [], "tells": []}

    async def consume(kind: str, name: str) -> None:
        line = lines(stays, f"follows-{name}")
        await line.open(**KEPT)
        assert await subscribed(line, f"${kind}/{name}") == 1
        while True:
            found = line.early.pop(0) if line.early else await line.next()
            if isinstance(found, Publish):
                got[name].append(bytes(found.payload))
                ack(line, found)
            elif found is None or isinstance(found, Disconnect):  # its session was at the one that was killed
                await line.open(**KEPT)

    consuming = [asyncio.ensure_future(consume(kind, name)) for kind, name in (("queue", "lives"), ("stream", "tells"))]
    killing: asyncio.Future[int] | None = None
    async with client.publisher("lives", confirm_timeout=WAIT_S) as jobs, client.publisher("tells", confirm_timeout=WAIT_S) as news:
        for n in range(90):
            if n == 30:
                killing = asyncio.ensure_future(victim.signalled(signal.SIGKILL))
            await asyncio.gather(jobs.send(b"%d" % n, key=str(n)), news.send(b"%d" % n, key=str(n)))
    assert killing is not None
    assert await killing == -signal.SIGKILL
    async with asyncio.timeout(WAIT_S):
        while not all({int(v) for v in found} == set(range(90)) for found in got.values()):
            assert not any(task.done() for task in consuming)
            await asyncio.sleep(0.05)
    await empty(client, "lives")
    for task in consuming:
        task.cancel()
    await asyncio.gather(*consuming, return_exceptions=True)
