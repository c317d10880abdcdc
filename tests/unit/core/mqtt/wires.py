"""Connections of the pure machine on one router, whose journal is durable when the test says so."""

from collections.abc import Callable, Sequence
from typing import Any

from headrace.core.mqtt.captured import Capture
from headrace.core.mqtt.connection import Connection
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.router import Router
from headrace.core.mqtt.subscription import Subscription
from headrace.core.mqtt.terms import Terms
from headrace.model.errors import HeadraceError, NotFound
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Connect
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.publish import Publish
from tests.unit.core.mqtt.routers import BOUNDS, Net

TERMS = Terms(
    packet_bytes_max=100_000, connect_bytes_max=10_000, receive_maximum=4, topic_alias_maximum=3, keep_alive_s_max=0, refused_filters=("no/#",)
)


class World:
    """A host without a disk: what was asked for is durable after ``sync``, or at once while ``prompt``."""

    def __init__(self, terms: Terms = TERMS, *, prompt: bool = True) -> None:
        self.net = Net(BOUNDS)
        self.terms = terms
        self.prompt = prompt
        self.full = False
        self.waiting: list[Callable[[], None]] = []
        self.wires: list[Wire] = []
        self.number = 0

    @property
    def router(self) -> Router:
        return self.net.router

    @property
    def wall_ms(self) -> int:
        return self.net.wall_ms

    def committed(self, answer: Callable[[], None], unsure: Callable[[], None] | None = None) -> None:
        if not self.router.changed:
            answer()
        else:
            self.waiting.append(answer)

    def announced(self, answer: Callable[[], None]) -> None:
        answer()

    def touch(self, connection: Any) -> None:
        pass

    def assigned_id(self) -> str:
        self.number += 1
        return f"assigned-{self.number}"

    def refusing(self) -> bool:
        return self.full

    def consumers(self, connection: Any) -> "NoConsumers":
        return NoConsumers()

    def authenticate(self, asked: Connect) -> int:
        return 0x86 if asked.username == "stranger" else 0

    def sync(self) -> None:
        """All that was asked for is durable."""
        while self.waiting or self.router.changed:
            self.net.write()
            waiting, self.waiting = self.waiting, []
            for answer in waiting:
                answer()

    def restart(self) -> None:
        """Every connection is gone without a word."""
        self.waiting.clear()
        self.wires.clear()
        self.net.restart()

    def wire(self) -> "Wire":
        self.router.keep = _refuse
        wire = Wire(self)
        self.wires.append(wire)
        return wire

    def open(self, client_id: str = "c", version: int = 5, **more: Any) -> "Wire":
        """A client that is connected; its CONNACK is read."""
        wire = self.wire()
        wire.connect(client_id, version, **more)
        assert wire.connack.reason == 0
        return wire


def _refuse(message: Message, captures: Sequence[Capture], stored: Callable[[HeadraceError | None], None] | None) -> None:
    if stored is not None:
        stored(NotFound("there are none here"))


class NoConsumers:
    """Of a broker without queues and streams."""

    def begin(self, subscription: Subscription, opened: Callable[[HeadraceError | None], None], *, again: bool = False) -> None:
        opened(NotFound("there are none here"))

    def cease(self, filter: str) -> None:
        pass

    def given(self, lent: Any) -> None:
        raise AssertionError

    def acked(self, lent: Any, failed: bool) -> None:
        raise AssertionError

    def settle(self, name: str, id: str, action: int, settled: Callable[[HeadraceError | None], None]) -> None:
        settled(NotFound("there are none here"))

    def end(self) -> None:
        pass


class Wire:
    """A client's end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.machine = Connection(world, world.terms, self)
        self.parser = Parser(1 << 28, version=5)
        self.version = 5
        self.connack: Any = None

    def connect(self, client_id: str = "c", version: int = 5, **more: Any) -> None:
        self.version = self.parser.version = version
        self.write(encoding.connect(Connect(client_id, version, **more)))
        got = self.read()
        self.connack = got[0] if got else None
        assert len(got) <= 1

    def write(self, data: bytes) -> None:
        self.machine.feed(data)
        if self.world.prompt:
            self.world.sync()

    def send(self, packet: Any) -> None:
        self.write(encoding.control(packet, self.version))

    def publish(self, topic: str, payload: bytes = b"x", qos: int = 0, id: int = 1, **more: Any) -> None:
        self.write(encoding.publish(self.version, topic, payload, qos=qos, packet_id=id if qos else 0, **more))

    def read(self) -> list[Any]:
        """The packets that the broker wrote."""
        data = b"".join(self.machine.output())
        if self.world.prompt:
            self.world.sync()
            data += b"".join(self.machine.output())
        found = self.parser.feed(data)
        assert self.parser.fault is None, self.parser.fault
        return found

    def payloads(self) -> list[bytes]:
        return [p.payload for p in self.read() if isinstance(p, Publish)]
