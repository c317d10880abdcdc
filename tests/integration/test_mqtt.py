"""Brokers that speak MQTT, and real clients in this process: paho-mqtt, aiomqtt; over TCP and WebSocket; through restarts."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import uvloop

from headrace.broker.run import RunningBroker, start
from headrace.cli.ports import neighbours
from headrace.gateways.mqtt.connection import MqttConnection
from headrace.gateways.mqtt.server import ACCEPTS_PER_TURN
from headrace.model.config import KIB, MIB, Broker, Config, Limits, Listen, Mqtt, Storage, mqtt_address
from headrace.model.errors import SyncFailed
from headrace.model.ports import DefaultPort
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Ack, Connack, Connect, Disconnect, Filter, Suback, Will
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.publish import Publish

pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")
pytest.importorskip("aiomqtt", reason="needs aiomqtt")
pytest.importorskip("websockets", reason="needs websockets")
from tests.integration.mqtt_clients import trying

WAIT_S = 20


def config(data_dir: Path, **mqtt: Any) -> Config:
    listen = Listen(native="127.0.0.1:0", admin="off", mqtt="127.0.0.1:0", mqtt_ws="127.0.0.1:0")
    return Config(broker=Broker(data_dir=str(data_dir), drain_grace_ms=0), listen=listen, mqtt=Mqtt(**mqtt))


@asynccontextmanager
async def running(data_dir: Path, **mqtt: Any) -> AsyncIterator[RunningBroker]:
    broker = await start(config(data_dir, **mqtt), tune=False)
    try:
        yield broker
    finally:
        await broker.stop()


def port(broker: RunningBroker, name: str = "mqtt") -> int:
    return int(broker.addresses[name].split("//")[1].split("/")[0].rpartition(":")[2])


class Raw:
    """A client that says exactly what it is told to."""

    def __init__(self, version: int = 5) -> None:
        self.version = version
        self.parser = Parser(1 << 28, version=version)
        self.waiting: list[Any] = []

    async def open(self, broker: RunningBroker, client_id: str = "raw", **more: Any) -> Connack:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port(broker))
        self.send(encoding.connect(Connect(client_id, self.version, **more)))
        connack = await self.next()
        assert isinstance(connack, Connack)
        return connack

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def next(self) -> Any:
        """The next packet, or None once the broker has closed."""
        async with asyncio.timeout(WAIT_S):
            while not self.waiting:
                data = await self.reader.read(1 << 16)
                if not data:
                    self.writer.close()
                    return None
                self.waiting += self.parser.feed(data)
                assert self.parser.fault is None
        return self.waiting.pop(0)

    async def subscribe(self, filter: str, qos: int = 2) -> None:
        self.send(encoding.subscribe(self.version, 1, [Filter(filter, qos)]))
        assert await self.next() == Suback(1, (qos,))

    def drop(self) -> None:
        self.writer.transport.abort()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.01)


@pytest.mark.mqtt("4.2.0-1")
@pytest.mark.mqtt3("7.0.0-2", "7.1.1-1")
@pytest.mark.parametrize("transport", ["tcp", "websockets"])
@pytest.mark.parametrize("version", [4, 5])
async def test_paho(tmp_path: Path, version: int, transport: str) -> None:
    async with running(tmp_path) as broker:
        where = port(broker, "mqtt" if transport == "tcp" else "mqtt_ws")
        await asyncio.to_thread(trying.with_paho, (where, where), version, transport, "paho")
        await until(lambda: not broker.broker.sinks)


@pytest.mark.parametrize("transport", ["tcp", "websockets"])
@pytest.mark.parametrize("version", [4, 5])
async def test_aiomqtt(tmp_path: Path, version: int, transport: str) -> None:
    async with running(tmp_path) as broker:
        where = port(broker, "mqtt" if transport == "tcp" else "mqtt_ws")
        await trying.with_aiomqtt((where, where), version, transport, "aiomqtt")


@pytest.mark.mqtt3("4.1.0-1")
@pytest.mark.parametrize("version", [4, 5])
async def test_sessions_and_retained_messages_survive_a_restart(tmp_path: Path, version: int) -> None:
    more: dict[str, Any] = {"clean_start": False, **({"properties": {0x11: 1000}} if version == 5 else {})}
    async with running(tmp_path) as broker:
        client = Raw(version)
        assert not (await client.open(broker, "keeps", **more)).session_present
        await client.subscribe("t/#")
        client.drop()
        other = Raw(version)
        await other.open(broker, "publishes")
        for i in range(20):
            qos = 1 + i % 2
            other.send(encoding.publish(version, f"t/{i}", b"%d" % i, qos=qos, packet_id=i + 1, retain=i == 19))
            assert await other.next() == Ack(5 if qos == 2 else 4, i + 1)
            if qos == 2:
                other.send(encoding.ack(encoding.PUBREL, i + 1))
                assert await other.next() == Ack(7, i + 1)
        other.drop()
    async with running(tmp_path) as broker:
        client = Raw(version)
        assert (await client.open(broker, "keeps", **more)).session_present
        got = [await client.next() for _ in range(20)]
        assert [(p.payload, p.qos) for p in got] == [(b"%d" % i, 1 + i % 2) for i in range(20)]
        for publish in got[:10]:
            client.send(encoding.ack(encoding.PUBACK if publish.qos == 1 else encoding.PUBREC, publish.packet_id))
        released = [await client.next() for _ in range(5)]
        assert [(a.type, a.packet_id) for a in released] == [(6, p.packet_id) for p in got[:10] if p.qos == 2]
        client.drop()
        new = Raw(version)
        await new.open(broker, "new")
        await new.subscribe("t/#")
        kept = await new.next()
        assert (kept.topic, kept.payload, kept.retain) == ("t/19", b"19", True)
        new.drop()
    async with running(tmp_path) as broker:
        client = Raw(version)
        assert (await client.open(broker, "keeps", **more)).session_present
        rest = [await client.next() for _ in range(15)]
        assert [a.packet_id for a in rest[:5]] == [p.packet_id for p in got[:10] if p.qos == 2]
        assert all(isinstance(a, Ack) and a.type == 6 for a in rest[:5])
        assert [(p.payload, p.packet_id) for p in rest[5:]] == [(p.payload, p.packet_id) for p in got[10:]]
        client.drop()


async def test_a_will_is_published_when_the_client_dies_and_when_the_broker_did(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        watcher = Raw()
        await watcher.open(broker, "watcher", clean_start=False, properties={0x11: 1000})
        await watcher.subscribe("will/#", 1)
        dies = Raw()
        await dies.open(broker, "dies", will=Will("will/client", b"1", 1))
        dies.drop()
        publish = await watcher.next()
        assert (publish.topic, publish.payload) == ("will/client", b"1")
        watcher.send(encoding.ack(encoding.PUBACK, publish.packet_id))
        lives = Raw()
        await lives.open(broker, "lives", will=Will("will/broker", b"2", 1))
        broker.broker._fail(SyncFailed("the disk is gone"))
        assert (await lives.next()).reason == 0x97
        assert await lives.next() is None
        assert (await watcher.next()).reason == 0x97
        assert await watcher.next() is None
    async with running(tmp_path) as broker:
        watcher = Raw()
        assert (await watcher.open(broker, "watcher", clean_start=False, properties={0x11: 1000})).session_present
        async with asyncio.timeout(WAIT_S):
            while (publish := await watcher.next()).topic != "will/broker":
                assert publish.topic == "will/client"  # its acknowledgement may have been on its way
        watcher.drop()


@pytest.mark.mqtt3("3.1.2-24", "3.1.4-2")
async def test_a_takeover_and_a_silent_client_of_3_1_1(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        watcher, one, two, silent = Raw(4), Raw(4), Raw(4), Raw(4)
        await watcher.open(broker, "watcher")
        await watcher.subscribe("will", 0)
        await one.open(broker, "same")
        await silent.open(broker, "silent", keep_alive_s=1, will=Will("will", b"silent"))
        assert (await two.open(broker, "same")).reason == 0
        assert await one.next() is None
        assert await silent.next() is None
        assert (await watcher.next()).payload == b"silent"
        two.drop()
        watcher.drop()


@pytest.mark.mqtt("3.1.2-22", "3.1.4-3")
async def test_a_takeover_a_drain_and_a_silent_client(tmp_path: Path) -> None:
    async with running(tmp_path, server_reference="other.example:1883") as broker:
        one, two, silent = Raw(), Raw(), Raw()
        await one.open(broker, "same")
        await silent.open(broker, "silent", keep_alive_s=1)
        await two.open(broker, "same")
        assert await one.next() == Disconnect(0x8E)
        assert await one.next() is None
        said = await silent.next()
        assert (said.reason, await silent.next()) == (0x8D, None)
    goodbye = await two.next()
    assert (goodbye.reason, goodbye.properties[0x1C]) == (0x8B, "other.example:1883")
    assert await two.next() is None


async def test_hostile_connections_are_closed_and_others_served(tmp_path: Path) -> None:
    async with running(tmp_path, connect_timeout_ms=200, packet_bytes_max=100_000) as broker:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x00", b"\x10\xff\xff\xff\x7f", b"\x30\x00", b"\x10", b""):
            for name in ("mqtt", "mqtt_ws"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port(broker, name))
                writer.write(data)
                async with asyncio.timeout(WAIT_S):
                    while await reader.read(1 << 16):
                        pass
                writer.close()
        client = Raw()
        await client.open(broker, "good")
        client.send(encoding.publish(5, "t", bytes(100_001)))
        assert (await client.next()).reason == 0x95
        assert await client.next() is None
        await until(lambda: not broker.broker.sinks)


@pytest.mark.mqtt3("6.0.0-1", "6.0.0-2", "6.0.0-3", "6.0.0-4")
@pytest.mark.mqtt("6.0.0-1", "6.0.0-2", "6.0.0-3", "6.0.0-4")
async def test_websockets_need_the_subprotocol_and_binary_frames(tmp_path: Path) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.typing import Subprotocol

    async with running(tmp_path) as broker:
        url = f"ws://127.0.0.1:{port(broker, 'mqtt_ws')}/mqtt"
        with pytest.raises(InvalidStatus):
            await connect(url)
        async with connect(url, subprotocols=[Subprotocol("mqtt")]) as socket_:
            for byte in encoding.connect(Connect("slow", 4)):
                await socket_.send(bytes((byte,)))
            assert await socket_.recv() == b"\x20\x02\x00\x00"
            assert socket_.subprotocol == "mqtt"
            two_and_a_half = encoding.PINGREQ + encoding.subscribe(4, 1, [Filter("t", 0)]) + encoding.publish(4, "t", b"12")
            await socket_.send(two_and_a_half[:-2])
            await socket_.send(two_and_a_half[-2:] + encoding.PINGREQ)
            parser, got = Parser(1000, version=4), []
            while len(got) < 4:
                data = await socket_.recv()
                assert isinstance(data, bytes)
                got += parser.feed(data)
            assert sorted(type(p).__name__ for p in got) == ["Pingresp", "Pingresp", "Publish", "Suback"]
            await socket_.send("text")
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(WAIT_S):
                    await socket_.recv()


async def test_connections_that_have_ended_need_no_collection(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        collecting = gc.isenabled()
        gc.disable()
        try:
            for version in (4, 5):
                for goodbye in (True, False):
                    client = Raw(version)
                    await client.open(broker)
                    await client.subscribe("t", 1)
                    client.send(encoding.publish(version, "t", b"x", qos=1, packet_id=1))
                    assert {type(await client.next()) for _ in range(2)} == {Ack, Publish}
                    if goodbye:
                        client.send(encoding.disconnect(version))
                        assert await client.next() is None
                    else:
                        client.drop()
                    await until(lambda: not broker.broker.sinks)
            await asyncio.sleep(0)
            left = [one for one in gc.get_objects() if isinstance(one, MqttConnection) and one.broker is broker.broker]
            assert len(left) <= 1  # the broker remembers which one was read last
        finally:
            if collecting:
                gc.enable()


def test_several_connections_are_taken_in_one_turn_of_the_loop(tmp_path: Path) -> None:
    """libuv takes one for each descriptor that listens."""

    async def scenario() -> None:
        async with running(tmp_path) as broker:
            clients = [socket.create_connection(("127.0.0.1", port(broker))) for _ in range(4 * ACCEPTS_PER_TURN)]
            turns = 0
            while len(broker.broker.sinks) < len(clients):
                await asyncio.sleep(0)
                turns += 1
            assert turns <= len(clients) // 2
            for client in clients:
                client.close()

    uvloop.run(scenario())


@pytest.mark.mqtt3("4.6.0-2", "4.6.0-5", "4.6.0-6")
@pytest.mark.mqtt("4.6.0-5")
async def test_many_publishes_come_in_order_and_once(tmp_path: Path) -> None:
    async with running(tmp_path, receive_maximum=65_535) as broker:
        watcher, publisher = Raw(4), Raw(4)
        await watcher.open(broker, "w", clean_start=False)
        await watcher.subscribe("t", 1)
        await publisher.open(broker, "p")
        count = 3000
        for i in range(count):
            publisher.send(encoding.publish(4, "t", b"%d" % i, qos=1, packet_id=i + 1))
        acks = [await publisher.next() for _ in range(count)]
        assert [a.packet_id for a in acks] == list(range(1, count + 1))
        got: list[Publish] = []
        while len(got) < count:
            publish = await watcher.next()
            got.append(publish)
            watcher.send(encoding.ack(encoding.PUBACK, publish.packet_id))
        assert [p.payload for p in got] == [b"%d" % i for i in range(count)]
        watcher.drop()
        publisher.drop()


async def test_a_client_that_reads_nothing_holds_up_nobody(tmp_path: Path) -> None:
    listen = config(tmp_path)
    broker = await start(
        Config(broker=listen.broker, listen=listen.listen, limits=Limits(write_buffer_bytes_high=65_536, write_buffer_bytes_low=1024)), tune=False
    )
    try:
        stuck = socket.create_connection(("127.0.0.1", port(broker)))
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(encoding.connect(Connect("stuck", 4)) + encoding.subscribe(4, 1, [Filter("t", 0)]))
        good, publisher = Raw(4), Raw(4)
        await good.open(broker, "good")
        await good.subscribe("t", 1)
        await publisher.open(broker, "p")
        for i in range(300):
            publisher.send(encoding.publish(4, "t", bytes(20_000), qos=1, packet_id=i + 1))
            publish = await good.next()
            good.send(encoding.ack(encoding.PUBACK, publish.packet_id))
        machines = [c.machine for c in broker.broker.sinks.values() if c.machine.client_id == "stuck"]
        assert machines[0].sending.dropped > 0
        good.drop()
        publisher.drop()
        stuck.close()
    finally:
        await broker.stop()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_sessions_outlive_the_log_files_that_they_were_written_to(tmp_path: Path) -> None:
    asked = config(tmp_path)
    small = Storage(wal_file_bytes=MIB, wal_bytes_max=4 * MIB, flush_bytes_max=512 * KIB)
    limits = Limits(frame_bytes_max=128 * KIB, message_bytes_max=64 * KIB)
    asked = Config(broker=asked.broker, listen=asked.listen, storage=small, limits=limits, mqtt=Mqtt(packet_bytes_max=256 * KIB))
    broker = await start(asked, tune=False)
    try:
        keeps, publisher = Raw(4), Raw(4)
        await keeps.open(broker, "keeps", clean_start=False)
        await keeps.subscribe("few/#")
        keeps.drop()
        await publisher.open(broker, "publisher")
        reads = Raw(4)
        await reads.open(broker, "reads", clean_start=False)
        await reads.subscribe("many", 1)
        for base in range(0, 1200, 50):  # some 12 MB of log
            for i in range(base, base + 50):
                topic = "few/x" if i % 100 == 0 else "many"
                publisher.send(encoding.publish(4, topic, i.to_bytes(4, "big") + bytes(10_000), qos=1, packet_id=i + 1, retain=i == 500))
            assert [(await publisher.next()).packet_id for _ in range(50)] == list(range(base + 1, base + 51))
            for _ in range(50 - (base % 100 == 0)):
                reads.send(encoding.ack(encoding.PUBACK, (await reads.next()).packet_id))
        name = next(n for n in broker.broker.metrics().names if n.name == "$mqtt")
        assert name.kind == "stream"
        assert sorted(c.info().client for c in broker.broker.sinks.values()) == ["publisher", "reads"]
        files = list((tmp_path / "wal").iterdir())
        assert sum(f.stat().st_size for f in files) < 9 * MIB
        publisher.drop()
        reads.drop()
    finally:
        await broker.stop()
    broker = await start(asked, tune=False)
    try:
        keeps = Raw(4)
        assert (await keeps.open(broker, "keeps", clean_start=False)).session_present
        got = [int.from_bytes((await keeps.next()).payload[:4], "big") for _ in range(12)]
        assert got == list(range(0, 1200, 100))
        reads = Raw(4)
        assert (await reads.open(broker, "reads", clean_start=False)).session_present
        reads.send(encoding.subscribe(4, 2, [Filter("few/x", 0)]))
        while isinstance(found := await reads.next(), Publish):
            assert found.dup  # its acknowledgement was on its way
        assert found == Suback(2, (0,))
        assert int.from_bytes((await reads.next()).payload[:4], "big") == 500
        keeps.drop()
        reads.drop()
    finally:
        await broker.stop()


async def test_a_default_port_that_is_taken_stops_nothing_and_one_that_was_named_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(native: str, **listen: str) -> Config:
        return Config(broker=Broker(data_dir=str(tmp_path)), listen=Listen(native=native, admin="off", **listen))

    assert mqtt_address(Config(), "mqtt") == f"127.0.0.1:{DefaultPort.MQTT.value}"
    assert mqtt_address(Config(), "mqtt_ws") == f"127.0.0.1:{DefaultPort.MQTT_WEBSOCKET.value}"
    assert not mqtt_address(asked("127.0.0.1:0"), "mqtt")
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
        native = f"127.0.0.1:{neighbours(1)}"
        ours = IntEnum("Ours", {"MQTT": taken[0], "MQTT_WEBSOCKET": taken[1]})  # the real ones may be anybody's, for a moment or for long
        monkeypatch.setattr("headrace.model.config.DefaultPort", ours)
        where = {"mqtt": f"127.0.0.1:{taken[0]}", "mqtt_ws": f"127.0.0.1:{taken[1]}"}
        assert where == {"mqtt": mqtt_address(Config(), "mqtt"), "mqtt_ws": mqtt_address(Config(), "mqtt_ws")}
        with pytest.raises(OSError, match="in use"):
            await start(asked(native, mqtt=where["mqtt"], mqtt_ws="off"), tune=False)
        broker = await start(asked(native), tune=False)
        try:
            assert set(broker.addresses) == {"url", "admin"}
            said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
            assert all(any(address in line and "to another address" in line for line in said) for address in where.values())
        finally:
            await broker.stop()
