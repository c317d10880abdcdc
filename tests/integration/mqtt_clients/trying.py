"""What real MQTT clients are tried with: all QoS, large payloads, retained messages, shared subscriptions, wills; by two clients each.

Each takes the ports at which the two connect, which are of one broker or of two of a cluster, and a word that its client ids and topics begin with:
tries may share brokers. The first client publishes and the second one listens, or the other way round.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import aiomqtt
import paho.mqtt.client as paho

HERE = Path(__file__).parent
CLIENTS = HERE.parents[2] / ".clients"
"""Where scripts/mqtt_clients puts gmqtt and MQTT.js."""
GMQTT = CLIENTS / "gmqtt"
MQTT_JS = CLIENTS / "node_modules" / "mqtt" / "build" / "index.js"
WAIT_S = 50
LARGE = bytes(range(256)) * 4000


class Paho:
    """A client with a thread of its own."""

    def __init__(self, where: int, version: int, transport: str, client_id: str, will: str = "") -> None:
        clean = {} if version == 5 else {"clean_session": True}
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=version, transport=transport, **clean)
        self.got: list[tuple[str, bytes, int, bool]] = []
        self.connected, self.subscribed = threading.Event(), threading.Event()
        self.client.on_message = lambda client, data, m: self.got.append((m.topic, m.payload, m.qos, m.retain))
        self.client.on_connect = lambda *_: self.connected.set()
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        if will:
            self.client.will_set(will, b"gone", 1)
        self.where = where

    def __enter__(self) -> "Paho":
        self.client.connect("127.0.0.1", self.where)
        self.client.loop_start()
        assert self.connected.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, filter: str, qos: int) -> None:
        self.subscribed.clear()
        self.client.subscribe(filter, qos)
        assert self.subscribed.wait(WAIT_S)

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos, retain).wait_for_publish(WAIT_S)

    def die(self) -> None:
        """Without a DISCONNECT."""
        self.client.loop_stop()
        self.client._sock_close()

    def have(self, count: int) -> list[tuple[str, bytes, int, bool]]:
        until = time.monotonic() + WAIT_S
        while len(self.got) < count and time.monotonic() < until:
            time.sleep(0.02)
        return sorted(self.got)


def with_paho(ports: tuple[int, int], version: int, transport: str, root: str) -> None:
    one, two = (Paho(port, version, transport, f"{root}-{name}", f"{root}/will") for port, name in zip(ports, ("one", "two"), strict=True))
    with two:
        with one:
            one.publish(f"{root}/kept", b"retained", 1, True)
            two.subscribe(f"{root}/#", 2)
            two.subscribe(f"$share/g/{root}-s", 1)
            for qos in (0, 1, 2):
                one.publish(f"{root}/qos", b"%d" % qos, qos)
            one.publish(f"{root}-s", b"shared", 1)
            one.publish(f"{root}/large", LARGE, 1)
            one.die()
        expected = [
            (f"{root}/kept", b"retained", 1, True),
            *((f"{root}/qos", b"%d" % qos, qos, False) for qos in (0, 1, 2)),
            (f"{root}-s", b"shared", 1, False),
            (f"{root}/large", LARGE, 1, False),
            (f"{root}/will", b"gone", 1, False),
        ]
        assert two.have(len(expected)) == sorted(expected)


async def with_aiomqtt(ports: tuple[int, int], version: int, transport: Any, root: str) -> None:
    protocol = aiomqtt.ProtocolVersion(version)
    will = aiomqtt.Will(f"{root}/will", b"gone", 1)
    async with asyncio.timeout(WAIT_S):
        async with aiomqtt.Client("127.0.0.1", ports[1], identifier=f"{root}-two", protocol=protocol, transport=transport) as client:
            async with aiomqtt.Client(
                "127.0.0.1", ports[0], identifier=f"{root}-one", protocol=protocol, transport=transport, will=will
            ) as other:  # fmt: skip
                await other.publish(f"{root}/kept", b"retained", 1, True)
                await client.subscribe(f"{root}/#", 2)
                await client.subscribe(f"$share/g/{root}-s", 2)
                for i in range(30):
                    await other.publish(f"{root}/t", b"%d" % i, i % 3)
                await other.publish(f"{root}-s", b"shared", 2)
                await other.publish(f"{root}/large", LARGE, 2)
                other._client._sock_close()  # a client that dies
            expected = sorted([b"retained", b"shared", LARGE, b"gone", *(b"%d" % i for i in range(30))])
            got = []
            async for message in client.messages:
                got.append(message.payload)
                if len(got) == len(expected):
                    break
            assert sorted(got) == expected


async def said(*command: str, **environment: str) -> str:
    """What a program said; it has to succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(WAIT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def with_gmqtt(ports: tuple[int, int], version: int, root: str) -> None:
    numbers = [str(port) for port in ports]
    assert (await said(sys.executable, str(HERE / "with_gmqtt.py"), *numbers, str(version), root, PYTHONPATH=str(CLIENTS))).endswith("ok\n")


async def with_mqtt_js(urls: tuple[str, str], version: int, root: str) -> None:
    assert await said("node", str(HERE / "with_mqttjs.mjs"), MQTT_JS.as_uri(), *urls, str(version), root) == "ok\n"


async def with_mosquitto(ports: tuple[int, int], version: str, root: str, folder: Path) -> None:
    one, two = (["-V", version, "-h", "127.0.0.1", "-p", str(port), "-q", "2"] for port in ports)
    await said("mosquitto_pub", *one, "-t", f"{root}/kept", "-m", "hello", "-r")
    assert await said("mosquitto_sub", *two, "-t", f"{root}/#", "-C", "1", "-v") == f"{root}/kept hello\n"
    kept = ["-t", f"{root}/later", "-t", f"$share/g/{root}-s", "-i", f"{root}-keeps", "-c", *(("-x", "600") if version == "5" else ())]
    await said("mosquitto_sub", *two, *kept, "-E")
    await said("mosquitto_pub", *one, "-t", f"{root}-s", "-m", "shared")
    for qos in "012":
        await said("mosquitto_pub", *one, "-q", qos, "-t", f"{root}/later", "-m", f"while away {qos}")
    found = await said("mosquitto_sub", *one, *kept, "-C", "3")
    assert sorted(found.splitlines()) == ["shared", "while away 1", "while away 2"], "its session, where it did not connect before"
    large = folder / "large"
    large.write_bytes(LARGE.replace(b"\n", b""))
    dying = await asyncio.create_subprocess_exec(
        "stdbuf", "-oL", "mosquitto_sub", *one, "-t", f"{root}/never", "--will-topic", f"{root}/will", "--will-payload", "gone", "--will-qos", "1",
        "-d", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert dying.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while b"SUBACK" not in await dying.stdout.readline():
                pass
        kept = [*two, "-t", f"{root}/will", "-t", f"{root}/large", "-i", f"{root}-last", "-c", *(("-x", "600") if version == "5" else ())]
        await said("mosquitto_sub", *kept, "-E")
        dying.send_signal(signal.SIGKILL)
    finally:
        if dying.returncode is None:
            dying.kill()
        await dying.wait()
    assert await said("mosquitto_sub", *kept, "-C", "1") == "gone\n"
    await said("mosquitto_pub", *one, "-t", f"{root}/large", "-f", str(large))
    assert await said("mosquitto_sub", *kept, "-C", "1", "-F", "%l") == f"{large.stat().st_size}\n"
