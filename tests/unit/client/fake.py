"""A scripted broker in a few lines: speaks the native protocol on a real socket, keeps one partition per name in memory, and misbehaves when told
to."""

import asyncio
from collections.abc import Callable
from typing import Any

from headrace.model.errors import HeadraceError
from headrace.wire import batch, control, egress
from headrace.wire.frames import BATCH, CREDIT, ENVELOPE, FETCH, HEADER, PREAMBLE, RANGE, SETTLE, Op, frame


class FakeBroker:
    """``stored``: every record kept, by name. ``requests``: every control message. ``frames``: (opcode, channel, correlation) of the others."""

    def __init__(self) -> None:
        self.stored: dict[str, list[batch.Record]] = {}
        self.sequences: dict[tuple[str, int], dict[int, int]] = {}
        self.requests: list[control.Message] = []
        self.frames: list[tuple[int, int, int]] = []
        self.publishes: list[bytes] = []
        self.settles: list[tuple[int, int, list[tuple[int, int]]]] = []
        self.connections: list[FakeConnection] = []
        self.partitions = 1
        self.kind = "queue"
        self.heartbeat_ms = 10_000
        self.resumes = True
        self.confirming = True
        self.answer_settles = True
        self.refuse: HeadraceError | None = None
        self.drop_publishes = 0
        self.stands_still = False
        self.reply: Callable[[control.Message], control.Message | HeadraceError | None] = lambda m: None
        self.changed = asyncio.Condition()
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"headrace://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "FakeBroker":
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: FakeConnection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self.cut()
            self._server = None

    def cut(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()

    def notify(self) -> None:
        async def wake() -> None:
            async with self.changed:
                self.changed.notify_all()

        task = asyncio.get_running_loop().create_task(wake())
        task.add_done_callback(lambda t: None)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(condition)

    def asked(self, kind: type) -> list[Any]:
        return [r for r in self.requests if isinstance(r, kind)]


class FakeConnection(asyncio.Protocol):
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.buffer = b""
        self.greeted = False
        self.publishers: dict[int, str] = {}
        self.subscriptions: dict[int, str] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.broker.connections.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.broker.connections.remove(self)
        self.broker.notify()

    def data_received(self, data: bytes) -> None:
        if self.broker.stands_still:
            return
        self.buffer += data
        if not self.greeted:
            if len(self.buffer) < 8:
                return
            assert self.buffer[:8] == PREAMBLE
            self.buffer, self.greeted = self.buffer[8:], True
        while len(self.buffer) >= 12:
            length, op, flags, channel, correlation = HEADER.unpack_from(self.buffer)
            if len(self.buffer) < 4 + length:
                break
            whole, self.buffer = self.buffer[: 4 + length], self.buffer[4 + length :]
            self.handle(whole, op, flags, channel, correlation)
        self.broker.notify()

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def handle(self, data: bytes, op: int, flags: int, channel: int, correlation: int) -> None:
        broker = self.broker
        if op == Op.REQUEST:
            self.request(control.decode_request(data[12:]), correlation)
            return
        if op == Op.PING:
            self.send(frame(Op.PONG))
        broker.frames.append((op, channel, correlation))
        if op == Op.PUBLISH:
            self.publish(data, channel, correlation)
        elif op == Op.SETTLE:
            ranges = list(RANGE.iter_unpack(data[SETTLE.size :]))
            broker.settles.append((flags, SETTLE.unpack_from(data)[5], ranges))
            if flags & 4 and broker.answer_settles:
                self.send(egress.settled(channel, correlation, sum(n for _, n in ranges), []))
        elif op == Op.FETCH:
            name, wanted = self.subscriptions[channel], FETCH.unpack_from(data)[5]
            count = min(wanted, len(broker.stored.get(name, [])))
            if count:
                self.deliver(channel, name, 0, count)
            self.send(egress.fetch_end(channel, correlation, count))
        elif op == Op.CREDIT:
            assert len(data) == CREDIT.size

    def publish(self, data: bytes, channel: int, correlation: int) -> None:
        broker = self.broker
        broker.publishes.append(data)
        if broker.drop_publishes:
            broker.drop_publishes -= 1
            return
        if broker.refuse is not None:
            self.send(egress.publish_error(channel, correlation, 1, broker.refuse))
            return
        name = self.publishers[channel]
        info = batch.batch_info(data, ENVELOPE.size)
        seen = broker.sequences.setdefault((name, info.producer_id), {})
        log = broker.stored.setdefault(name, [])
        duplicate = info.base_sequence in seen and info.producer_id >= 0
        base = seen[info.base_sequence] if duplicate else len(log)
        if not duplicate:
            seen[info.base_sequence] = base
            log.extend(batch.decode_batch(data, ENVELOPE.size))
        if broker.confirming and data[5] & 7:
            self.send(egress.confirm(channel, correlation, 1, 2, base, duplicate))

    def deliver(
        self, channel: int, name: str, first: int, count: int, *, attempt: int = 1, epoch: int = 1, flags: int = 0, partition: int = 0
    ) -> None:
        """Sends stored records as one frame of one batch."""
        records = self.broker.stored[name][first : first + count]
        blob = batch.encode_publish(batch.encode_batch(records, base_timestamp_ms=records[0].timestamp_ms), channel=1, correlation=0, flags=7)
        head = egress.deliver_header(
            channel,
            count,
            partition=partition,
            epoch=epoch,
            attempt=attempt,
            first_offset=first,
            base_offset=first,
            blob_bytes=len(blob),
            flags=flags,
        )
        self.send(head + blob)

    def event(self, event: control.Message) -> None:
        self.send(frame(Op.EVENT, control.encode(event)))

    def request(self, message: control.Message, correlation: int) -> None:
        broker = self.broker
        broker.requests.append(message)
        if isinstance(message, (control.Subscribe, control.SubscribeStream)):
            self.subscriptions[message.channel] = message.name
        answer: Any = broker.reply(message)
        if answer is None:
            answer = self.answer(message)
        if isinstance(answer, HeadraceError):
            self.send(egress.failure(correlation, answer))
        elif answer is not None:
            self.send(frame(Op.REPLY, control.encode(answer), correlation=correlation))

    def answer(self, message: control.Message) -> control.Message | None:
        broker = self.broker
        if isinstance(message, control.Hello):
            return control.Welcome(
                version=1,
                features=(),
                broker="fake",
                incarnation="1",
                session=message.session or "0123456789abcdef0123456789abcdef",
                resumed=bool(message.session) and broker.resumes,
                heartbeat_ms=broker.heartbeat_ms,
                reconnect_grace_ms=5000,
                frame_bytes_max=1 << 24,
                message_bytes_max=(1 << 24) - 65536,
                channels_max=4096,
            )
        if isinstance(message, control.OpenPublisher):
            self.publishers[message.channel] = message.name
            return control.PublisherOpened(kind=broker.kind, partitions=broker.partitions, routing_version=1, level=2)
        if isinstance(message, (control.Subscribe, control.SubscribeStream)):
            starts = getattr(message, "starts", {}) or {0: 0}
            return control.Subscribed(partitions=1, assigned=(0,), lease_ms=30_000, epochs={0: 1}, starts=starts, tier="durable")
        return control.Done()


assert BATCH.size == 61
