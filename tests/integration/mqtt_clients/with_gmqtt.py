"""gmqtt: ``python with_gmqtt.py PORT OTHER VERSION ROOT``; of two clients the second one connects to OTHER. Ends with 0 if all came as it should."""

import asyncio
import sys
from typing import Any

import gmqtt

PORTS = {"one": int(sys.argv[1]), "two": int(sys.argv[2])}
VERSION, ROOT = int(sys.argv[3]), sys.argv[4]
LARGE = bytes(range(256)) * 2000


class Client:
    """Connected, and noting what comes."""

    def __init__(self, name: str, **more: Any) -> None:
        self.got: asyncio.Queue[tuple[str, bytes, int, bool]] = asyncio.Queue()
        self.subscribed = asyncio.Event()
        self.name = name
        self.inner = gmqtt.Client(f"{ROOT}-{name}", clean_session=True, **more)
        self.inner.set_config({"reconnect_retries": 0})
        self.inner.on_message = self.on_message
        self.inner.on_subscribe = lambda *_: self.subscribed.set()

    async def on_message(self, client: Any, topic: str, payload: bytes, qos: int, properties: dict[str, Any]) -> int:
        self.got.put_nowait((topic, payload, qos, bool(properties.get("retain"))))
        return 0

    async def connect(self) -> None:
        await self.inner.connect("127.0.0.1", PORTS[self.name], version=gmqtt.constants.MQTTv50 if VERSION == 5 else gmqtt.constants.MQTTv311)

    async def subscribe(self, filter: str, qos: int) -> None:
        self.subscribed.clear()
        self.inner.subscribe(filter, qos=qos)
        await self.subscribed.wait()

    async def expect(self, *wanted: tuple[str, bytes, int]) -> None:
        got = sorted([(await self.got.get())[:3] for _ in wanted])
        assert got == sorted(wanted), [(topic, len(payload), qos) for topic, payload, qos in got]


async def main() -> None:
    one, two = Client("one"), Client("two", will_message=gmqtt.Message(f"{ROOT}/will", b"gone", qos=1))
    await one.connect()
    await two.connect()
    one.inner.publish(f"{ROOT}/kept", b"retained", qos=1, retain=True)
    await one.subscribe(f"{ROOT}/t/#", 2)
    for qos in (0, 1, 2):
        two.inner.publish(f"{ROOT}/t/{qos}", b"%d" % qos, qos=qos)
    two.inner.publish(f"{ROOT}/t/large", LARGE, qos=1)
    await one.expect((f"{ROOT}/t/0", b"0", 0), (f"{ROOT}/t/1", b"1", 1), (f"{ROOT}/t/2", b"2", 2), (f"{ROOT}/t/large", LARGE, 1))
    await one.subscribe(f"{ROOT}/kept", 1)
    await one.expect((f"{ROOT}/kept", b"retained", 1))
    await one.subscribe(f"$share/g/{ROOT}/s", 1)
    two.inner.publish(f"{ROOT}/s", b"shared", qos=1)
    await one.expect((f"{ROOT}/s", b"shared", 1))
    await one.subscribe(f"{ROOT}/will", 1)
    two.inner._connection._transport.abort()  # a client that dies
    await one.expect((f"{ROOT}/will", b"gone", 1))
    await one.inner.disconnect()


asyncio.run(asyncio.wait_for(main(), 40))
print("ok")
