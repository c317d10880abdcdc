"""Queues and streams over MQTT: what is published there and captured from topics, as the native client finds it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.broker.run import RunningBroker
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Ack, Disconnect, Filter, Pingreq, Pingresp, Suback, Subscribe, Unsuback, Unsubscribe, Will
from headrace.wire.mqtt.publish import Publish
from tests.integration.test_mqtt import WAIT_S, Raw, running


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with running(tmp_path) as broker:
        yield broker


@pytest.fixture
async def client(broker: RunningBroker) -> AsyncIterator[headrace.Client]:
    async with headrace.connect(broker.url) as client:
        yield client


async def taken(client: headrace.Client, queue: str, count: int) -> list[Any]:
    """The next messages of a queue, acked."""
    got = []
    async with asyncio.timeout(WAIT_S), client.consume(queue) as messages:
        async for message in messages:
            await message.ack()
            got.append(message)
            if len(got) == count:
                return got
    raise AssertionError


async def raw(broker: RunningBroker, client_id: str, version: int = 5, **more: Any) -> Raw:
    made = Raw(version)
    await made.open(broker, client_id, **more)
    return made


async def published(line: Raw, topic: str, payload: bytes = b"x", qos: int = 1, id: int = 1, **more: Any) -> int:
    """Publishes with QoS 1 or 2 and gives the reason with which it was answered."""
    line.send(encoding.publish(line.version, topic, payload, qos=qos, packet_id=id, **more))
    early = []
    while not isinstance(ack := await line.next(), Ack):
        assert isinstance(ack, Publish), ack
        early.append(ack)  # deliveries
    line.waiting[:0] = early
    assert ack.packet_id == id
    if qos == 2 and ack.reason < 0x80:
        line.send(encoding.ack(encoding.PUBREL, id))
        assert (await line.next()).type == 7
    return int(ack.reason)


@pytest.mark.parametrize("version", [4, 5])
async def test_a_publish_to_a_queue_is_a_message_of_it(broker: RunningBroker, client: headrace.Client, version: int) -> None:
    await client.declare_queue("orders/new", partitions=3)
    line = await raw(broker, "writes", version)
    properties = {0x03: "text/plain", 0x26: [("kind", "a"), ("headrace.origin", "forged")]} if version == 5 else None
    assert await published(line, "$queue/orders%2Fnew/customer-7", b"one", 1, properties=properties) == 0
    assert await published(line, "$queue/orders%2Fnew", b"two", 2, id=2) == 0
    line.send(encoding.publish(version, "$queue/orders%2Fnew", b"three"))
    got = {m.value: m for m in await taken(client, "orders/new", 3)}
    assert got.keys() == {b"one", b"two", b"three"}
    assert got[b"one"].key == "customer-7"
    if version == 5:
        assert got[b"one"].headers == {"content-type": "text/plain", "kind": "a"}
    line.drop()


async def test_what_a_queue_refuses_is_not_acknowledged(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_queue("small", max_messages=1)
    await client.declare_stream("log")
    line = await raw(broker, "writes")
    assert await published(line, "$queue/small") == 0
    assert await published(line, "$queue/small", id=2) == 0x97
    assert await published(line, "$queue/small", qos=2, id=3) == 0x97
    assert await published(line, "$queue/none", id=4) == 0x90
    assert await published(line, "$queue/log", id=5) == 0x83
    assert await published(line, "$queue/", id=6) == 0x90
    assert await published(line, "t", id=7) == 0x10, "the connection goes on"
    line.drop()
    old = await raw(broker, "old", 4)
    old.send(encoding.publish(4, "$queue/small", b"x", qos=1, packet_id=1))
    assert await old.next() is None, "3.1.1 cannot say it, so the connection ends without an acknowledgement"


async def test_acknowledgements_keep_their_order_beside_queues(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_queue("q")
    line = await raw(broker, "writes")
    topics = ["$queue/q", "t", "$queue/none", "$queue/q", "t"]
    line.send(b"".join(encoding.publish(5, topic, b"x", qos=1, packet_id=i + 1) for i, topic in enumerate(topics)))
    answers = [await line.next() for _ in topics]
    assert [(a.packet_id, a.reason) for a in answers] == [(1, 0), (2, 0x10), (3, 0x90), (4, 0), (5, 0x10)]
    line.drop()


async def test_bindings_capture_what_is_published(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_stream("sensors", bindings=("sensors/#", "sensors/+/x"))
    await client.declare_queue("alarms", bindings=("sensors/+/alarm",))
    listener = await raw(broker, "listens")
    await listener.subscribe("sensors/#", 1)
    line = await raw(broker, "writes", will=Will("sensors/a/alarm", b"lost", 1))
    for i, topic in enumerate(("sensors/a/x", "sensors/a/alarm", "other/a/alarm")):
        assert await published(line, topic, b"%d" % i, 1 + i % 2, i + 1) == (0x10 if i == 2 else 0)
    line.send(encoding.publish(5, "sensors/b/x", b"at most once"))
    line.drop()
    got = [await listener.next() for _ in range(4)]
    assert [p.payload for p in got if isinstance(p, Publish)] == [b"0", b"1", b"at most once", b"lost"]
    assert [m.value for m in await taken(client, "alarms", 2)] == [b"1", b"lost"]
    async with asyncio.timeout(WAIT_S), client.read("sensors", start="earliest") as records:
        kept = await records.take(4)
    assert [(r.raw_key, r.value) for r in kept] == [
        (b"sensors/a/x", b"0"), (b"sensors/a/alarm", b"1"), (b"sensors/b/x", b"at most once"), (b"sensors/a/alarm", b"lost")
    ]  # fmt: skip
    assert kept[0].headers["mqtt-topic"] == "sensors/a/x"
    await client.alter_queue("alarms", bindings=())
    await client.delete("sensors")
    again = await raw(broker, "again")
    listener.drop()
    assert await published(again, "nobody/alarm", id=1) == 0x10
    assert not broker.broker.catalogue.bound
    again.drop()
    with pytest.raises(headrace.errors.Invalid, match="binding"):
        await client.declare_queue("wrong", bindings=("a#",))


async def test_bindings_and_what_they_captured_survive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as first, headrace.connect(first.url) as client:
        await client.declare_queue("captures", bindings=("t",))
        line = await raw(first, "writes", 4)
        assert await published(line, "t", b"before", 2) == 0
        line.drop()
    async with running(tmp_path) as second, headrace.connect(second.url) as client:
        line = await raw(second, "writes", 4)
        assert await published(line, "t", b"after", 1) == 0
        assert [m.value for m in await taken(client, "captures", 2)] == [b"before", b"after"]
        line.drop()


async def test_topics_of_the_broker_itself_are_refused(broker: RunningBroker) -> None:
    line = await raw(broker, "writes")
    assert await published(line, "$SYS/x") == 0x90
    line.send(encoding.publish(5, "$queue", b"x", qos=1, packet_id=2))
    assert (await line.next()).reason == 0x90
    line.drop()


async def subscribed(line: Raw, filter: str, qos: int = 1, **options: str) -> int:
    """Subscribes with user properties and gives the reason."""
    properties = {0x26: [(name.replace("_", "-"), value) for name, value in options.items()]} if options else {}
    line.send(encoding.control(Subscribe(1, (Filter(filter, qos),), properties), line.version))
    early = []
    while not isinstance(packet := await line.next(), Suback):
        assert isinstance(packet, Publish), packet
        early.append(packet)  # MQTT allows a delivery before the SUBACK
    line.waiting[:0] = early
    return int(packet.reasons[0])


def about(publish: Publish) -> dict[str, str]:
    assert publish.properties is not None
    return dict(publish.properties[0x26])


async def test_a_queue_is_consumed_and_settled_by_acknowledgements(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_queue("jobs", max_deliveries=2, dead_letter="dead")
    await client.publish("jobs", b"one", key="k", headers={"kind": "a", "content-type": "text/x"})
    line = await raw(broker, "works")
    assert await subscribed(line, "$queue/jobs", 2) == 1, "QoS 1 at most"
    first = await line.next()
    assert (first.topic, first.payload, first.qos, first.dup, first.properties[0x03]) == ("$queue/jobs", b"one", 1, False, "text/x")
    assert {"queue": "jobs", "delivery-count": "1", "key": "k", "kind": "a"}.items() <= about(first).items()
    line.send(encoding.ack(encoding.PUBACK, first.packet_id, 0x80, 5))
    again = await line.next()
    assert (again.payload, about(again)["delivery-count"]) == (b"one", "2")
    line.send(encoding.ack(encoding.PUBACK, again.packet_id))
    await client.publish("jobs", b"two")
    two = await line.next()
    assert two.payload == b"two"
    line.drop()
    other = await raw(broker, "other", 4)
    assert await subscribed(other, "$queue/jobs") == 1
    back = await other.next()
    assert back.payload == b"two", "what was lent returns when its connection ends"
    other.send(encoding.ack(encoding.PUBACK, back.packet_id))
    info = await until_settled(client, "jobs")
    assert (info.ready, info.leased) == (0, 0)
    other.drop()


async def until_settled(client: headrace.Client, name: str) -> Any:
    async with asyncio.timeout(WAIT_S):
        while True:
            info = await client.describe(name)
            if not (info.ready or info.leased or info.delayed):
                return info
            await asyncio.sleep(0.02)


async def test_a_delivery_is_settled_explicitly_by_who_holds_it(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_queue("dead")
    await client.declare_queue("jobs", dead_letter="dead")
    await client.publish("jobs", b"one")
    line, other = await raw(broker, "works"), await raw(broker, "other")
    assert await subscribed(line, "$queue/jobs", settle="explicit") == 1
    first = await line.next()
    line.send(encoding.ack(encoding.PUBACK, first.packet_id))
    which = {0x26: [("message-id", about(first)["message-id"])]}
    assert await published(other, "$queue/jobs/$ack", properties=which) == 0x90, "it has not subscribed"
    assert await published(line, "$queue/jobs/$retry", b"", properties=which) == 0
    again = await line.next()
    line.send(encoding.ack(encoding.PUBACK, again.packet_id))
    assert about(again)["delivery-count"] == "2"
    assert await published(line, "$queue/jobs/$reject", about(again)["message-id"].encode(), 2) == 0, "the payload may say which"
    assert await published(line, "$queue/jobs/$ack", about(again)["message-id"].encode()) == 0x83, "it is not held any more"
    assert await published(line, "$queue/jobs/$ack", b"nonsense") == 0x83
    assert [m.value for m in await taken(client, "dead", 1)] == [b"one"]
    assert await subscribed(line, "$queue/jobs", settle="never") == 0x83
    for wrong in ("$queue/+", "$queue/jobs/#", "$queue/", "$share/g/$queue/jobs"):
        assert await subscribed(line, wrong) == 0x8F, wrong
    assert await subscribed(line, "$queue/none") == 0x83
    line.drop()
    other.drop()


async def test_unsubscribing_gives_back_what_is_not_settled_and_nothing_more_is_sent(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_queue("jobs", lease_ms=600_000)
    for i in range(4):
        await client.publish("jobs", b"%d" % i)
    line = await raw(broker, "leaves", properties={0x21: 2})
    assert await subscribed(line, "$queue/jobs") == 1
    held = [await line.next() for _ in range(2)]  # two more wait for room
    line.send(encoding.control(Unsubscribe(9, ("$queue/jobs",)), 5))
    assert await line.next() == Unsuback(9, (0,))
    other = await raw(broker, "stays")
    assert await subscribed(other, "$queue/jobs") == 1
    assert {(await other.next()).payload for _ in range(4)} == {b"0", b"1", b"2", b"3"}
    for found in held:
        line.send(encoding.ack(encoding.PUBACK, found.packet_id))
    for _ in range(2):
        line.send(encoding.control(Pingreq(), 5))
        assert await line.next() == Pingresp(), "no delivery"
    assert (await client.describe("jobs")).leased == 4, "too late to settle anything"
    line.drop()
    other.drop()


async def test_deliveries_keep_to_the_receive_maximum_beside_those_of_the_session(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_queue("jobs")
    async with client.publisher("jobs") as jobs:
        await jobs.send_many([b"%d" % i for i in range(20)])
    line = await raw(broker, "works", properties={0x21: 3, 0x11: 100})
    assert await subscribed(line, "$queue/jobs") == 1
    assert await subscribed(line, "t") == 1
    writer = await raw(broker, "writes")
    for i in range(5):
        assert await published(writer, "t", b"t%d" % i, id=i + 1) == 0
    seen: list[bytes] = []
    held: dict[int, bytes] = {}
    while len(seen) < 25:
        packet = await line.next()
        assert isinstance(packet, Publish)
        assert packet.packet_id not in held
        held[packet.packet_id] = packet.payload
        seen.append(packet.payload)
        assert len(held) <= 3
        if len(held) == 3 or len(seen) > 22:
            oldest = next(iter(held))
            del held[oldest]
            line.send(encoding.ack(encoding.PUBACK, oldest))
    assert [p for p in seen if p[:1] == b"t"] == [b"t%d" % i for i in range(5)]
    assert sorted((p for p in seen if p[:1] != b"t"), key=int) == [b"%d" % i for i in range(20)]
    for packet_id in held:
        line.send(encoding.ack(encoding.PUBACK, packet_id))
    await until_settled(client, "jobs")
    line.drop()
    writer.drop()


async def test_qos_0_takes_messages_without_acknowledgement(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_queue("jobs")
    await client.declare_stream("log")
    line = await raw(broker, "works")
    assert await subscribed(line, "$queue/jobs", 0, prefetch="2") == 0
    assert await subscribed(line, "$stream/log", 0, prefetch="2", start="earliest") == 0
    for name in ("jobs", "log"):
        async with client.publisher(name) as publisher:
            await publisher.send_many([b"%d" % i for i in range(10)])
        got = [await line.next() for _ in range(10)]
        assert [(p.payload, p.qos) for p in got] == [(b"%d" % i, 0) for i in range(10)], name
    await until_settled(client, "jobs")
    line.drop()


async def test_a_stream_is_read_and_acknowledgements_move_its_cursor(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_stream("log")
    line = await raw(broker, "reads", 4, clean_start=False)
    assert await published(line, "$stream/log/k", b"0") == 0
    assert await subscribed(line, "$stream/log") == 1, "3.1.1: a cursor of its client id, from the beginning"
    for i in range(1, 4):
        assert await client.publish("log", b"%d" % i)
    got = [await line.next() for _ in range(4)]
    assert [p.payload for p in got] == [b"0", b"1", b"2", b"3"]
    for packet in got[:2]:
        line.send(encoding.ack(encoding.PUBACK, packet.packet_id))
    async with asyncio.timeout(WAIT_S):
        while [c.offset for c in await client.cursors("log")] != [2]:
            await asyncio.sleep(0.02)
    line.drop()
    back = Raw(4)
    assert (await back.open(broker, "reads", clean_start=False)).session_present
    assert [(await back.next()).payload for _ in range(2)] == [b"2", b"3"], "the session had subscribed"
    back.drop()
    other = await raw(broker, "other")
    assert await subscribed(other, "$stream/log", start="offset:3", cursor="mine") == 1
    last = await other.next()
    assert (last.payload, about(last)["stream"]) == (b"3", "log")
    assert await subscribed(other, "$stream/log", start="nowhere") == 0x83
    other.drop()


async def test_the_end_of_a_queue_ends_the_connections_that_consume_it(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_queue("jobs")
    line = await raw(broker, "works", properties={0x11: 100})
    assert await subscribed(line, "$queue/jobs") == 1
    await client.delete("jobs")
    goodbye = await line.next()
    assert isinstance(goodbye, Disconnect)
    assert (goodbye.reason, "$queue/jobs" in goodbye.properties[0x1F]) == (0x98, True)
    assert await line.next() is None
    back = Raw(5)
    assert (await back.open(broker, "works", clean_start=False, properties={0x11: 100})).session_present
    assert await published(back, "t") == 0x10, "the session goes on without it"
    back.drop()


async def test_consumers_of_both_protocols_compete(broker: RunningBroker, client: headrace.Client) -> None:
    await client.declare_queue("jobs")
    line = await raw(broker, "works")
    assert await subscribed(line, "$queue/jobs", prefetch="1") == 1
    got: list[bytes] = []
    async with asyncio.timeout(WAIT_S), client.consume("jobs", prefetch=1) as messages:
        async with client.publisher("jobs") as jobs:
            await jobs.send_many([b"%d" % i for i in range(10)])
        packet, message = await line.next(), await anext(aiter(messages))
        got += [packet.payload, message.value]
        line.send(encoding.control(Unsubscribe(9, ("$queue/jobs",)), 5))
        while not isinstance(left := await line.next(), Unsuback):
            assert isinstance(left, Publish), left
        await message.ack()
        rest = {bytes(m.value) async for m in _first(messages, 9)}
    assert rest | {message.value} == {b"%d" % i for i in range(10)}, "what the one that left held comes to the other"
    line.drop()


async def _first(messages: Any, count: int) -> AsyncIterator[Any]:
    async for message in messages:
        await message.ack()
        yield message
        count -= 1
        if not count:
            return
