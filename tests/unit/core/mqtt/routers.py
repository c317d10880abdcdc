"""Routers on a few session partitions, and connections that note what they get."""

from typing import Any

from headrace.core.mqtt.bounds import Bounds
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.ops import Stored, StoredWill
from headrace.core.mqtt.router import Router
from headrace.core.mqtt.session import Delivery, Session
from headrace.core.mqtt.shard import Shard
from headrace.core.mqtt.subscription import Subscription

SHARDS = 3
BOUNDS = Bounds(
    inbox_messages_max=1000,
    inbox_bytes_max=1 << 20,
    inbox_overflow="drop_oldest",
    subscriptions_max=100,
    retained_messages_max=1000,
    retained_bytes_max=1 << 20,
    session_expiry_s_max=0,
)


class Client:
    """A connection that notes everything."""

    version = 5

    def __init__(self) -> None:
        self.now: list[tuple[str, bytes, bool, tuple[int, ...]]] = []
        self.was_replaced = False
        self.woken = 0

    def send(self, message: Message, retain: bool, ids: tuple[int, ...]) -> None:
        self.now.append((message.topic, message.payload, retain, ids))

    def wake(self) -> None:
        self.woken += 1

    def replaced(self, reason: int) -> None:
        self.was_replaced = True

    def moved(self) -> None:
        self.was_replaced = True

    def skip(self, sequences: list[int]) -> None:
        self.skipped = sequences


class Net:
    """A router, its journals, and its clients by name."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self.bounds = bounds
        self.shards = [Shard(i) for i in range(SHARDS)]
        self.router = Router(bounds, self.shards, self.shard_of)
        self.journals: list[list[bytes]] = [[] for _ in range(SHARDS)]
        self.images: list[tuple[bytes, int]] = [(b"", 0)] * SHARDS
        self.wall_ms = 1_000_000

    @staticmethod
    def shard_of(key: str) -> int:
        return sum(key.encode()) % SHARDS

    def write(self) -> None:
        """Ends a turn: what changed is journalled."""
        for shard in self.shards:
            assert not shard.journalling or shard.number in self.router.changed
            self.journals[shard.number] += shard.take_journal()
        self.router.changed.clear()

    def snapshot(self) -> None:
        self.write()
        self.images = [(shard.snapshot(), len(journal)) for shard, journal in zip(self.shards, self.journals, strict=True)]

    def replayed(self) -> list[Shard]:
        """What a restart would make of the journals."""
        made = []
        for number in range(SHARDS):
            shard = Shard(number)
            image, after = self.images[number]
            if image:
                shard.restore(image)
            for payload in self.journals[number][after:]:
                shard.replay(payload)
            shard.check()
            made.append(shard)
        return made

    def restart(self, *, back_ms: int = 0) -> None:
        self.write()
        self.shards = self.replayed()
        self.router = Router(self.bounds, self.shards, self.shard_of)
        self.router.recovered(self.wall_ms, back_ms=back_ms)

    def connect(self, name: str, *, clean: bool = False, expiry_s: int = 100, **more: Any) -> tuple[Session, Client, bool]:
        client = Client()
        asked: dict[str, Any] = {"will": None, "receive_maximum": 65_535} | more
        session, present = self.router.connect(name, client, clean=clean, expiry_s=expiry_s, wall_ms=self.wall_ms, **asked)
        return session, client, present

    def publish(self, topic: str, payload: bytes = b"x", qos: int = 1, retain: bool = False, publisher: str = "", expires_ms: int = 0) -> int:
        message = Message(topic, payload, qos, retain, None, expires_ms, publisher)
        if retain:
            self.router.retain(message)
        return self.router.publish(message, self.wall_ms)

    def lose(self, session: Session, *, with_will: bool = True) -> None:
        self.router.disconnected(session, with_will=with_will, wall_ms=self.wall_ms)

    def pump(self, session: Session, count_max: int = 1000) -> list[Delivery]:
        """What the session's client is sent now."""
        due, expired = session.take(self.wall_ms, count_max, session.next_sequence)
        self.router.done(session, [d.sequence for d in expired])
        return due

    def ack(self, session: Session, delivery: Delivery) -> None:
        if delivery.qos == 1:
            assert session.acked(delivery.packet_id) is delivery
        else:
            assert session.released(delivery.packet_id) is delivery
            self.router.released(session, delivery)
            assert session.completed(delivery.packet_id) is delivery
        self.router.done(session, [delivery.sequence])

    def got(self, session: Session) -> list[bytes]:
        """Payloads of all that can be sent to the session now, acknowledged."""
        due = self.pump(session)
        for delivery in due:
            delivery.sent = True
            self.ack(session, delivery)
        return [d.message.payload for d in due]


def sub(filter: str, qos: int = 1, **more: Any) -> Subscription:
    group, path = "", filter
    if filter.startswith("$share/"):
        _, group, path = filter.split("/", 2)
    return Subscription(filter, path, group, qos, **more)


def will(topic: str, delay_s: int = 0, qos: int = 1, retain: bool = False) -> StoredWill:
    return StoredWill(Stored(topic, b"gone", qos, retain), delay_s)
