"""MQTT at three brokers: sessions are where their partition is served, whichever broker a client connects to; messages, retained messages, wills and
shared subscriptions reach every broker; and all of it survives the kill of any one."""

import asyncio
import base64
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Disconnect, Will
from headrace.wire.mqtt.publish import Publish
from tests.integration.cluster.lines import Line, Lines
from tests.integration.cluster.members import WAIT_S, Three
from tests.plain import PLAIN

pytestmark = pytest.mark.timeout(600)
NAMES = "abc"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    """One for all tests here."""
    folder: Path = tmp_path_factory.mktemp("three")
    made = Three(folder, "--mqtt", "127.0.0.1:0")
    try:
        yield made
        assert set(asyncio.run(made.stop())) == {0}
    finally:
        made.end()


@pytest.fixture
async def three(cluster: Three) -> Three:
    """All three serve, whatever the test before has done to them."""
    down = [member.name for member in cluster.members.values() if member.process is None]
    if down:
        cluster.start(down)
        await settled(cluster, NAMES)
    return cluster


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    made = Lines()
    yield made
    await made.end()


async def settled(three: Three, names: str) -> None:
    """Returns once those serve, and every session partition has its copies and the owner that it is to have."""
    await three.ready(names)
    first = Lines()(three[names[0]], "first")  # makes the session partitions
    await first.open()
    await first.close()
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = await three[names[0]].get("topology?name=$mqtt")
            rows = answer.json()["partitions"] if answer.status_code == 200 else []
            if rows and all(row["state"] == "serving" and len(row["replicas"]) == 3 and row["owner"] == row["preferred"] for row in rows):
                return
            await asyncio.sleep(0.1)


KEPT = {"clean_start": False, "properties": {prop.SESSION_EXPIRY_INTERVAL: 3600}}


async def everywhere(three: Three, lines: Lines, prefix: str, count: int, **more: object) -> list[Line]:
    """So many clients, at all brokers in turn and of many session partitions."""
    found = [lines(three[NAMES[n % 3]], f"{prefix}-{n}") for n in range(count)]
    for line in found:
        await line.open(**more)
    return found


async def test_a_session_is_the_same_at_every_broker(three: Three, lines: Lines) -> None:
    for n, first in enumerate(await everywhere(three, lines, "moves", 6, **KEPT)):
        await first.subscribe(f"to/{n}")
        second = lines(three[NAMES[(n + 1) % 3]], first.client_id)
        assert (await second.open(**KEPT)).session_present, "wherever it connects, its session is there"
        found = await first.next()
        assert isinstance(found, Disconnect)
        assert found.reason == 0x8E
        assert await second.publish(f"to/{n}", b"own")
        assert await second.take(1) == [b"own"]
        await second.close()
    anonymous = [lines(three[name], "", 4) for name in NAMES]
    for line in anonymous:
        await line.open()
        await line.close()


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_messages_reach_the_subscribers_of_every_broker_in_order(three: Three, lines: Lines, qos: int) -> None:
    subscribers = await everywhere(three, lines, f"reads-{qos}", 6)
    for line in subscribers:
        await line.subscribe(f"news/{qos}/+", qos)
    publishers = await everywhere(three, lines, f"writes-{qos}", 3)
    for at, line in enumerate(publishers):  # after SUBACK nothing is missed
        for n in range(20):
            assert await line.publish(f"news/{qos}/{at}", b"%d" % n, qos)
    for line in subscribers:
        got: dict[str, list[bytes]] = {}
        while sum(map(len, got.values())) < 60:
            found = line.early.pop(0) if line.early else await line.next()
            if isinstance(found, Publish):
                got.setdefault(found.topic, []).append(bytes(found.payload))
                if found.qos:
                    line.send(encoding.ack(encoding.PUBACK if found.qos == 1 else encoding.PUBREC, found.packet_id))
            else:
                line.send(encoding.ack(encoding.PUBCOMP, found.packet_id))
        assert got == {f"news/{qos}/{at}": [b"%d" % n for n in range(20)] for at in range(3)}


async def test_retained_messages_and_wills_reach_everybody(three: Three, lines: Lines) -> None:
    writers = await everywhere(three, lines, "keeps", 3)
    for at, line in enumerate(writers):
        for n in range(4):
            assert await line.publish(f"lamps/{n}", b"%d" % at, retain=True)
    assert await writers[0].publish("lamps/3", b"", retain=True)
    for line in await everywhere(three, lines, "sees", 3):
        await line.subscribe("lamps/+")
        assert await line.take(3) == [b"2"] * 3, "the last write of each topic, but for the one that was cleared"
        await line.subscribe("lamps/wills")
        dying = lines(three["a"], f"dies-{line.client_id}")
        await dying.open(will=Will("lamps/wills", line.client_id.encode(), 1))
        dying.drop()
        assert await line.take(1) == [line.client_id.encode()]
        await line.close()


async def test_a_shared_subscription_is_one_wherever_its_members_are(three: Three, lines: Lines) -> None:
    members = await everywhere(three, lines, "shares", 4)
    for line in members:
        await line.subscribe("$share/team/work/#")
    got: list[bytes] = []

    async def work(line: Line) -> None:
        while True:
            got.extend(await line.take(1))

    working = [asyncio.ensure_future(work(line)) for line in members[1:]]
    members[0].drop()  # what it had is others'
    for at, line in enumerate(await everywhere(three, lines, "gives", 3)):
        for n in range(20):
            assert await line.publish(f"work/{at}", b"%d/%d" % (at, n))
    async with asyncio.timeout(WAIT_S):
        while len(set(got)) < 60:
            await asyncio.sleep(0.02)
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    assert sorted(got) == sorted(b"%d/%d" % (at, n) for at in range(3) for n in range(20)), "each got to one of them"


async def test_queues_and_streams_take_what_is_published_at_any_broker(three: Three, lines: Lines) -> None:
    async with three.connect() as client:
        await client.declare_queue("jobs", partitions=3)
        await client.declare_stream("readings", partitions=3, bindings=("sensors/#",))
        for at, line in enumerate(await everywhere(three, lines, "stores", 3)):
            for n in range(6):
                assert await line.publish(f"$queue/jobs/{n}", b"%d/%d" % (at, n), qos=1 + n % 2)
                assert await line.publish(f"sensors/{n}", b"%d/%d" % (at, n), qos=1 + n % 2)
        wanted = sorted(b"%d/%d" % (at, n) for at in range(3) for n in range(6))
        got: list[bytes] = []
        async with asyncio.timeout(WAIT_S), client.consume("jobs") as consumer:
            async for message in consumer:
                await message.ack()
                got.append(message.value)
                if len(got) == len(wanted):
                    break
        assert sorted(got) == wanted
        async with asyncio.timeout(WAIT_S), client.read("readings", start="earliest") as records:
            assert sorted(r.value for r in await records.take(len(wanted))) == wanted


async def test_operators_see_and_change_all_of_it_at_any_broker(three: Three, lines: Lines) -> None:
    clients = await everywhere(three, lines, "seen", 4, **KEPT)
    for line in clients:
        await line.subscribe(f"seen/{line.client_id}")
        assert await line.publish(f"kept/{line.client_id}", b"x", retain=True)
    names = [line.client_id for line in clients]
    for member in three.members.values():
        rows = (await member.get("mqtt/sessions?pattern=seen-*")).json()
        assert [(row["client_id"], row["connected"]) for row in rows["items"]] == [(name, True) for name in names]
        rows = (await member.get("mqtt/subscriptions?pattern=seen-*&limit=3")).json()
        assert ([row["client_id"] for row in rows["items"]], rows["more"]) == (names[:3], True)
        rows = (await member.get("mqtt/retained?filter=kept/%2B")).json()
        assert [row["topic"] for row in rows["items"]] == [f"kept/{name}" for name in names]
    async with httpx.AsyncClient(verify=PLAIN, base_url=f"http://{three['b'].admin}/admin/api/mqtt", timeout=WAIT_S) as admin:
        for line in clients[:3]:
            assert (await admin.delete(f"/sessions/{line.client_id}?forget=true")).json()["count"] == 1
            found = await line.next()
            assert isinstance(found, Disconnect)
            assert found.reason == 0x98
        said = {"topic": f"seen/{names[3]}", "payload": base64.b64encode(b"by an operator").decode()}
        assert (await admin.post("/publish", json=said)).json()["count"] == 1
        assert await clients[3].take(1) == [b"by an operator"]
        assert (await admin.post("/retained/clear", json={"filter": "kept/+"})).json()["count"] == 4
    rows = (await three["c"].get("mqtt/sessions?pattern=seen-*")).json()
    assert [row["client_id"] for row in rows["items"]] == names[3:]
    assert (await three["a"].get("mqtt/retained?filter=kept/%2B")).json()["items"] == []


async def test_a_broker_that_drains_sends_its_clients_to_others(three: Three, lines: Lines) -> None:
    clients = [lines(three["c"], f"moved-{n}") for n in range(4)]
    for line in clients:
        await line.open(**KEPT)
        await line.subscribe(f"moved/{line.client_id}")
    stopping = asyncio.ensure_future(three["c"].signalled(signal.SIGTERM))
    for line in clients:
        found = await line.next()
        assert isinstance(found, Disconnect)
        assert found.reason == 0x8B
        reference = found.properties[prop.SERVER_REFERENCE]
        assert reference in {three[name].said()["mqtt"].partition("//")[2] for name in "ab"}
        line.member = next(m for m in three.members.values() if m.ready_file.exists() and reference in m.said()["mqtt"])
        assert (await line.open(**KEPT)).session_present
        while not await line.publish(f"moved/{line.client_id}", b"here"):
            await line.open(**KEPT)
        assert b"here" in await line.until(b"here")
    assert await stopping == 0


async def test_all_of_it_survives_the_kill_of_a_broker(three: Three, lines: Lines) -> None:
    away = [lines(three[NAMES[n % 3]], f"away-{n}") for n in range(6)]
    for line in away:
        await line.open(**KEPT)
        await line.subscribe("logs/#")
        await line.close()
    watcher = lines(three["c"], "watcher")
    await watcher.open(**KEPT)
    await watcher.subscribe("wills/#")
    dying = lines(three["a"], "dies-with-its-broker")
    await dying.open(will=Will("wills/dying", b"gone", 1))
    writer = lines(three["b"], "writer")
    await writer.open(**KEPT)
    killing: asyncio.Future[int] | None = None
    for n in range(60):
        if n == 20:
            assert await writer.publish("logs/last", b"before", retain=True)
            killing = asyncio.ensure_future(three["a"].signalled(signal.SIGKILL))
        while not await writer.publish("logs/all", b"%d" % n):
            await writer.open(**KEPT)
    assert killing is not None
    assert await killing == -signal.SIGKILL
    seen = lines(three["b"], "sees-last")
    await seen.open()
    await seen.subscribe("logs/last")
    assert await seen.take(1) == [b"before"]
    for line in away:
        line.member = three["c"]
        assert (await line.open(**KEPT)).session_present
        found: list[bytes] = []
        while not found or found[-1] != b"59":
            found += await line.take(1)
        numbers = [int(v) for v in found if v != b"before"]
        assert sorted(set(numbers)) == list(range(60)), "at least once"
        assert b"before" in found
        await line.close()
    while not watcher.early:
        found_will = await watcher.next()
        if found_will is None or isinstance(found_will, Disconnect):  # its own session has moved
            await watcher.open(**KEPT)
        elif isinstance(found_will, Publish):
            watcher.early.append(found_will)
    assert bytes(watcher.early[0].payload) == b"gone"
