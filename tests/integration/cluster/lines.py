"""MQTT clients that say exactly what they are told to, at any of several brokers."""

import asyncio
from typing import Any

from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Ack, Connack, Connect, Disconnect, Filter, Suback
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.publish import Publish
from tests.integration.cluster.members import WAIT_S, Member

AGAIN_S = 0.1


class Lines:
    """All connections of a test: they end with it."""

    def __init__(self) -> None:
        self._made: list[Line] = []

    def __call__(self, member: Member, client_id: str, version: int = 5) -> "Line":
        line = Line(member, client_id, version)
        self._made.append(line)
        return line

    async def end(self) -> None:
        for line in self._made:
            for writer in line.writers:
                writer.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


class Line:
    """One connection."""

    def __init__(self, member: Member, client_id: str, version: int = 5) -> None:
        self.member = member
        self.client_id = client_id
        self.version = version
        self.parser = Parser(1 << 28, version=version)
        self.waiting: list[Any] = []
        self.number = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.early: list[Publish] = []
        """Messages that came while something else was waited for."""

    async def open(self, **more: Any) -> Connack:
        """Connects, again while it is told that nobody serves its session, or nobody listens."""
        async with asyncio.timeout(WAIT_S):
            while True:
                port = int(self.member.said()["mqtt"].rpartition(":")[2])
                self.parser = Parser(1 << 28, version=self.version)
                self.waiting.clear()
                self.early.clear()
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
                self.writers.append(self.writer)
                self.send(encoding.connect(Connect(self.client_id, self.version, **more)))
                found = await self.next()
                if isinstance(found, Connack) and not found.reason:
                    return found
                self.writer.close()
                await asyncio.sleep(AGAIN_S)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def next(self) -> Any:
        """The next packet, or None once the connection is over."""
        async with asyncio.timeout(WAIT_S):
            while not self.waiting:
                try:
                    data = await self.reader.read(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    self.writer.close()
                    return None
                self.waiting += self.parser.feed(data)
                assert self.parser.fault is None
        return self.waiting.pop(0)

    async def answer(self) -> Any:
        """The next packet that is no message."""
        while isinstance(found := await self.next(), Publish):
            self.early.append(found)
        return found

    async def subscribe(self, filter: str, qos: int = 1, **more: Any) -> None:
        self.number += 1
        self.send(encoding.subscribe(self.version, self.number, [Filter(filter, qos, **more)]))
        found = await self.answer()
        assert found == Suback(self.number, (qos,)), found

    async def publish(self, topic: str, payload: bytes, qos: int = 1, **more: Any) -> bool:
        """Whether it was acknowledged; False: the connection ended first."""
        self.number += 1
        self.send(encoding.publish(self.version, topic, payload, qos=qos, packet_id=self.number, **more))
        if not qos:
            return True
        found = await self.answer()
        if found is None or isinstance(found, Disconnect):
            return False
        assert isinstance(found, Ack), found
        assert found.packet_id == self.number
        assert found.reason < 0x80
        if qos == 2:
            self.send(encoding.ack(encoding.PUBREL, self.number))
            done = await self.answer()
            assert isinstance(done, Ack), done
        return True

    async def take(self, count: int) -> list[bytes]:
        """The payloads of the next so many messages, each acknowledged."""
        found = []
        while len(found) < count:
            publish = self.early.pop(0) if self.early else await self.next()
            if isinstance(publish, Ack):
                self.send(encoding.ack(encoding.PUBCOMP, publish.packet_id))
                continue
            assert isinstance(publish, Publish), publish
            found.append(bytes(publish.payload))
            if publish.qos:
                self.send(encoding.ack(encoding.PUBACK if publish.qos == 1 else encoding.PUBREC, publish.packet_id))
        return found

    async def until(self, last: bytes) -> list[bytes]:
        """As ``take``, up to and with ``last``."""
        found = await self.take(1)
        while found[-1] != last:
            found += await self.take(1)
        return found

    def drop(self) -> None:
        """Without a DISCONNECT."""
        self.writer.transport.abort()

    async def close(self) -> None:
        self.send(encoding.disconnect(self.version))
        while await self.next() is not None:
            pass
