"""MQTT clients at three brokers that stay connected while the owner of their session is killed, drains, and has the session back: with traffic both
ways, of which nothing is lost, nothing of QoS 2 comes twice, and nothing that was sent on the connection is sent on it again."""

import asyncio
import signal
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from headrace.model import limits
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Ack, Disconnect, Suback
from headrace.wire.mqtt.publish import Publish
from headrace.wire.mqtt.reasons import Type
from tests.integration.cluster.lines import Line, Lines
from tests.integration.cluster.members import WAIT_S, Member, Three
from tests.integration.cluster.test_mqtt_sessions import settled

pytestmark = pytest.mark.timeout(600)
KEPT = {"clean_start": False, "properties": {prop.SESSION_EXPIRY_INTERVAL: 3600}}


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    made = Three(tmp_path, "--mqtt", "127.0.0.1:0")
    try:
        yield made
        assert set(asyncio.run(made.stop())) == {0}
    finally:
        made.end()


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    made = Lines()
    yield made
    await made.end()


async def owners(three: Three, asked: str) -> list[str]:
    """Who serves each session partition, by name."""
    picture = (await three[asked].get("topology?name=$mqtt")).json()
    names = {b["id"]: b["name"] for b in picture["brokers"]}
    rows = sorted(picture["partitions"], key=lambda row: row["partition"])
    return [names.get(row["owner"], "") for row in rows]


class Busy:
    """A client that is never allowed to lose its connection: it publishes and is told what others publish, all at once."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.got: list[bytes] = []
        self.acked: list[int] = []
        self.wrong: list[str] = []
        self.incoming: dict[int, bytes] = {}
        self.waiting: dict[int, asyncio.Future[None]] = {}
        self.reading: asyncio.Task[None] | None = None

    async def begin(self, filter: str) -> None:
        await self.line.open(**KEPT)
        await self.line.subscribe(filter, 2)
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        send = self.line.send
        while True:
            try:
                packet = await self.line.next()
            except TimeoutError:
                continue
            if packet is None or isinstance(packet, Disconnect):
                self.wrong.append(f"{self.line.client_id} lost its connection: {packet}")
                for future in self.waiting.values():
                    future.cancel()
                return
            if isinstance(packet, Publish):
                if packet.dup:
                    self.wrong.append(f"{self.line.client_id} was sent {bytes(packet.payload)!r} again")
                if packet.qos == 2 and packet.packet_id in self.incoming:
                    self.wrong.append(f"{self.line.client_id} was given the packet identifier {packet.packet_id} that it has")
                self.got.append(bytes(packet.payload))
                if packet.qos == 2:
                    self.incoming[packet.packet_id] = bytes(packet.payload)
                send(encoding.ack(encoding.PUBACK if packet.qos == 1 else encoding.PUBREC, packet.packet_id))
            elif isinstance(packet, Ack) and packet.type == Type.PUBREL:
                if packet.reason or self.incoming.pop(packet.packet_id, None) is None:
                    self.wrong.append(f"{self.line.client_id} was told to release {packet.packet_id}, with {packet.reason}")
                send(encoding.ack(encoding.PUBCOMP, packet.packet_id))
            elif isinstance(packet, Ack) and packet.type == Type.PUBREC:
                if packet.reason:
                    self.wrong.append(f"{self.line.client_id} was refused with {packet.reason}")
                send(encoding.ack(encoding.PUBREL, packet.packet_id))
            else:
                assert isinstance(packet, Ack | Suback)
                waiting = self.waiting.pop(packet.packet_id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)

    async def publish(self, topic: str, n: int) -> None:
        """Returns once it is done; every second one has QoS 2."""
        line = self.line
        line.number += 1
        future = self.waiting[line.number] = asyncio.get_running_loop().create_future()
        line.send(encoding.publish(5, topic, b"%s/%d" % (line.client_id.encode(), n), qos=1 + n % 2, packet_id=line.number))
        with suppress(asyncio.CancelledError):
            await future
            self.acked.append(n)

    async def end(self) -> None:
        if self.reading is not None:
            self.reading.cancel()
            await asyncio.gather(self.reading, return_exceptions=True)


async def crowd(three: Three, lines: Lines, victim: str, count: int) -> list[Busy]:
    """Clients at the other brokers whose sessions the victim serves."""
    served = await owners(three, victim)
    others = [name for name in "abc" if name != victim]
    ids = (name for name in (f"busy-{n}" for n in range(10_000)) if served[zlib.crc32(name.encode()) % limits.MQTT_SESSION_PARTITIONS] == victim)
    found = [Busy(lines(three[others[n % 2]], next(ids))) for n in range(count)]
    for busy in found:
        await busy.begin("busy/#")
    return found


async def talk(some: list[Busy], first: int, count: int) -> None:
    async def one(busy: Busy) -> None:
        for n in range(first, first + count):
            if busy.wrong:
                return
            await busy.publish(f"busy/{busy.line.client_id}", n)

    async with asyncio.timeout(2 * WAIT_S):
        await asyncio.gather(*map(one, some))


async def all_came(some: list[Busy], count: int) -> None:
    """Everything that was acknowledged has come to everybody, in order, and once if it had QoS 2."""
    wanted = len(some) * count
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while any(len(set(busy.got)) < wanted for busy in some) and not any(busy.wrong for busy in some):
                await asyncio.sleep(0.05)
    for busy in some:
        assert busy.wrong == []
        assert busy.acked == list(range(count))
        for other in some:
            name = other.line.client_id.encode() + b"/"
            numbers = [int(p.removeprefix(name)) for p in busy.got if p.startswith(name)]
            assert sorted(set(numbers)) == list(range(count)), f"of {name!r} at {busy.line.client_id}"
            assert [n for n in numbers if n % 2] == list(range(1, count, 2)), "QoS 2: once, in order"
            firsts = list(dict.fromkeys(numbers))
            assert firsts == sorted(firsts)


async def test_who_is_connected_elsewhere_stays_while_the_owner_of_its_session_is_killed_and_when_it_is_back(three: Three, lines: Lines) -> None:
    three.start("abc")
    await settled(three, "abc")
    some = await crowd(three, lines, "a", 4)
    try:
        await talk(some, 0, 20)
        killing = asyncio.ensure_future(three["a"].signalled(signal.SIGKILL))
        await talk(some, 20, 40)
        await killing
        three.start("a")
        back = asyncio.ensure_future(settled(three, "abc"))  # it has its partitions again
        n = 60
        while not back.done():
            await talk(some, n, 10)
            n += 10
        await back
        assert {(await owners(three, "b"))[zlib.crc32(b.line.client_id.encode()) % limits.MQTT_SESSION_PARTITIONS] for b in some} == {"a"}
        await talk(some, n, 10)
        await all_came(some, n + 10)
    finally:
        for busy in some:
            await busy.end()


async def test_who_is_connected_elsewhere_stays_while_the_owner_of_its_session_drains(three: Three, lines: Lines) -> None:
    three.start("abc")
    await settled(three, "abc")
    some = await crowd(three, lines, "c", 4)
    try:
        await talk(some, 0, 20)
        leaving: Member = three["c"]
        draining = asyncio.ensure_future(leaving.signalled(signal.SIGTERM))
        n = 20
        while not draining.done():
            await talk(some, n, 10)
            n += 10
        assert await draining == 0
        await talk(some, n, 10)
        await all_came(some, n + 10)
    finally:
        for busy in some:
            await busy.end()
