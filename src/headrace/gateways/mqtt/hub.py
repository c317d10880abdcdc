"""What all MQTT connections of a broker share: the router, its session partitions on the log, and the time.

Owns when something counts as durable and what is due when. Invariants: H1 ``committed`` calls back once the journal of every shard that has changed
is durable, in the order of the calls for one shard. H2 the partitions are in the broker from the start to the stop of the listener.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace import __version__
from headrace.broker.catalogue import MQTT
from headrace.core.mqtt.bounds import Bounds
from headrace.core.mqtt.connection import Connection
from headrace.core.mqtt.lending import Consumers
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.router import Router
from headrace.core.mqtt.terms import Terms
from headrace.gateways.mqtt.appends import Appends
from headrace.gateways.mqtt.connection import MqttConnection
from headrace.gateways.mqtt.consuming import Consuming
from headrace.gateways.mqtt.partition import SessionPartition, item
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.errors import Damaged, HeadraceError, Malformed, Quarantined
from headrace.wire.mqtt.packets import Connect

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.catalogue import Item
    from headrace.gateways.mqtt.server import MqttServer
    from headrace.gateways.mqtt.websocket import WebSocket

TICK_S = 0.25
BEAT_MS = 500
OVERHEAD_BYTES = 64 * 1024
"""What an entry may take beside the packet that is in it."""


def _packet_room(flush_bytes_max: int) -> int:
    """The largest packet whose entry fits into a flush."""
    return max(flush_bytes_max - OVERHEAD_BYTES, flush_bytes_max // 2)


_log = get_logger("mqtt")


Answer = Callable[[], None]


class _Round:
    """Answers that wait for the same entries: all that the shards of one turn journal."""

    __slots__ = ("answers", "landed_count", "shards")

    def __init__(self) -> None:
        self.answers: list[tuple[Answer, Answer | None]] = []
        self.shards: dict[int, None] = {}
        self.landed_count = 0

    def landed(self) -> None:
        """One of its entries is durable."""
        self.landed_count += 1
        if self.landed_count == len(self.shards):
            for answer, _ in self.answers:
                answer()

    def lost(self, why: HeadraceError) -> None:
        """Whether one of them is nobody will know. Who has to hear of that does at once: what he does next would come before what he does again."""
        doubted = [unsure for _, unsure in self.answers if unsure is not None]
        self.answers = [(answer, None) for answer, unsure in self.answers if unsure is None]
        for unsure in doubted:
            unsure()
        self.landed()


class Hub:
    """A ``core.mqtt.connection.Host``. ``start`` before the first connection."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        settings = broker.config.mqtt
        self.bounds = Bounds(
            inbox_messages_max=settings.inbox_messages_max,
            inbox_bytes_max=settings.inbox_bytes_max,
            inbox_overflow=settings.inbox_overflow,
            subscriptions_max=settings.subscriptions_max,
            retained_messages_max=settings.retained_messages_max,
            retained_bytes_max=settings.retained_bytes_max,
            session_expiry_s_max=settings.session_expiry_s_max,
        )
        room = broker.config.storage.flush_bytes_max
        if broker.cluster is not None:
            room = min(room, limits.FRAME_BYTES_MAX)  # between brokers it goes in one frame
        packet_bytes_max = min(settings.packet_bytes_max, _packet_room(room))
        self.terms = Terms(
            packet_bytes_max=packet_bytes_max,
            connect_bytes_max=min(limits.MQTT_CONNECT_BYTES_MAX, packet_bytes_max),
            receive_maximum=settings.receive_maximum,
            topic_alias_maximum=settings.topic_alias_maximum,
            keep_alive_s_max=settings.keep_alive_s_max,
            write_bytes_high=broker.config.limits.write_buffer_bytes_high,
            refused_filters=settings.refused_filters,
            server_reference=settings.server_reference,
        )
        self.partitions: dict[int, SessionPartition] = {}
        """Those that are served here, by number."""
        self.router: Router
        self.appends: Appends = Appends(broker)
        self.connections: dict[int, MqttConnection] = {}
        self._ticking: asyncio.Task[None] | None = None
        self._told_ms = self._beat_ms = 0
        self._round: _Round | None = None
        self._past = (0, 0, 0)
        """Received, sent and dropped by connections that are gone."""

    async def start(self) -> None:
        """Loads the session partitions; sessions of before the restart are there from then on. Raises ``Quarantined`` if one is damaged."""
        broker = self.broker
        pids = await broker.catalogue.allotted("mqtt", limits.MQTT_SESSION_PARTITIONS)
        described = item(MQTT, pids)
        for number, pid in enumerate(pids):
            partition = SessionPartition(broker, described, number)
            damage = broker.store.damaged().get(pid)
            try:
                if damage is not None:
                    raise Damaged(damage.why)
                partition.recover(broker.store.replay(pid), broker.now_ms, broker.wall_ms)
            except (Damaged, Malformed) as e:
                raise Quarantined(f"session partition {number} (partition {pid}) is damaged, so MQTT is not served: {e}") from e
            partition.journalled = self._journalled
            broker.partitions[pid] = partition
            self.partitions[number] = partition
        count = len(self.partitions)
        self.router = Router(self.bounds, [p.shard for p in self.partitions.values()], lambda key: zlib.crc32(key.encode()) % count)
        self._follow_bindings()
        self.router.recovered(broker.wall_ms)
        self.committed(_nothing)
        sessions = self.sessions
        if sessions or self.router.retained.count:
            _log.info("%d MQTT sessions and %d retained messages were there before", sessions, self.router.retained.count)
        self._ticking = broker.spawn(self._tick())

    def _follow_bindings(self) -> None:
        broker = self.broker
        self.router.keep = self.appends.keep
        for name, (kind, filters) in broker.catalogue.bound.items():
            self.router.bind(kind, name, filters)
        broker.catalogue_watchers.append(self._catalogue_changed)

    def _catalogue_changed(self, item: Item, change: str) -> None:
        self.router.bind(item.kind, item.name, () if change == "deleted" else item.spec.bindings)

    async def stop(self) -> None:
        """The partitions stay until the broker stops: what is under way is journalled by its last turn."""
        if self._ticking is not None:
            self._ticking.cancel()

    async def _tick(self) -> None:
        broker = self.broker
        while True:
            await asyncio.sleep(TICK_S)
            broker.refresh()
            due_ms = self.router.next_deadline_ms()
            if due_ms and due_ms <= broker.wall_ms:
                self.router.tick(broker.wall_ms)
                self.committed(_nothing)
            if broker.now_ms - self._beat_ms >= BEAT_MS:
                self._beat_ms = broker.now_ms
                for i, connection in enumerate(list(self.connections.values())):
                    connection.beat(broker.now_ms)
                    if i % 512 == 511:
                        await asyncio.sleep(0)
                        broker.refresh()
            self.ticked()
            interval_ms = broker.config.mqtt.sys_interval_s * 1000
            if interval_ms and broker.now_ms - self._told_ms >= interval_ms:
                self._told_ms = broker.now_ms
                self._tell()

    def ticked(self) -> None:
        """Several times a second."""

    def connection(self, server: MqttServer, id: int, websocket: WebSocket | None = None) -> MqttConnection:
        """For a client that has just connected."""
        return MqttConnection(server, id, websocket)

    def reference(self) -> str:
        """Where a client of 5.0 is sent when this broker goes away; empty = nowhere."""
        return self.terms.server_reference

    # ------------------------------------------------------------ what connections ask (``Host``)

    @property
    def wall_ms(self) -> int:
        return self.broker.wall_ms

    def committed(self, answer: Answer, unsure: Answer | None = None) -> None:
        self.appends.flush()
        changed = self.router.changed
        if not changed:
            answer()
            return
        round = self._round
        if round is None:
            round = self._round = _Round()
        round.answers.append((answer, unsure))
        for number in changed:
            if number not in round.shards:
                round.shards[number] = None
                partition = self.partitions[number]
                self.broker.mark(partition)
                partition.when_committed(round.landed, round.lost)

    def _journalled(self, number: int) -> None:
        """A partition has taken what its shard had to journal; what changes from now on waits for the next round."""
        self.router.changed.pop(number, None)
        self._round = None

    def announced(self, answer: Answer) -> None:
        answer()

    def touch(self, connection: Any) -> None:
        self.broker.touch(connection)

    def assigned_id(self) -> str:
        return f"headrace-{self.broker.ambient.token(16)}"

    def refusing(self) -> bool:
        return self.broker.refusing

    def consumers(self, connection: Connection) -> Consumers:
        shell: MqttConnection = connection.shell
        shell.consuming = Consuming(self.broker, shell, connection)
        return shell.consuming

    def authenticate(self, asked: Connect) -> int:
        return 0

    # ------------------------------------------------------------ figures

    def closed(self, connection: MqttConnection) -> None:
        """A connection is gone; what it has counted stays."""
        if self.connections.pop(connection.id, None) is not None:
            machine = connection.machine
            self._past = (self._past[0] + machine.published, self._past[1] + machine.sending.delivered, self._past[2] + machine.sending.dropped)

    @property
    def connected(self) -> int:
        """Connections of clients to this broker."""
        return len(self.connections)

    @property
    def sessions(self) -> int:
        return sum(len(p.shard.sessions) for p in self.partitions.values())

    @property
    def received(self) -> int:
        """Publishes that clients sent since the start."""
        return self._past[0] + sum(c.machine.published for c in self.connections.values())

    @property
    def sent(self) -> int:
        """Publishes that were sent to clients."""
        return self._past[1] + sum(c.machine.sending.delivered for c in self.connections.values())

    @property
    def dropped(self) -> int:
        """Messages for which there was no room."""
        return self._past[2] + self.router.dropped + sum(c.machine.sending.dropped for c in self.connections.values())

    # ------------------------------------------------------------ $SYS

    def _tell(self) -> None:
        router, broker = self.router, self.broker
        if not router.tree.match("$SYS/broker/version"):
            return
        connected = self.connected
        known = self.sessions
        figures = {
            "version": f"headrace {__version__}",
            "uptime": f"{(broker.now_ms - broker.started_ms) // 1000} seconds",
            "clients/connected": connected,
            "clients/total": known,
            "clients/disconnected": max(0, known - connected),
            "subscriptions/count": router.subscriptions,
            "retained messages/count": router.retained.count,
            "messages/received": self.received,
            "messages/sent": self.sent,
            "publish/messages/dropped": self.dropped,
        }
        for name, value in figures.items():
            router.publish(Message(f"$SYS/broker/{name}", str(value).encode(), 0, False), broker.wall_ms)


def _nothing() -> None:
    pass
