"""What all MQTT connections of a broker in a cluster share: as ``hub``, for the session partitions that this broker serves.

Owns which partitions there are and who serves which. Every broker of a cluster takes part, whether it listens for MQTT or not, once there are session
partitions; they are declared when the first client connects, so that clusters without any have none.

Invariant: K1 the session of a client is at the owner of its partition, and nowhere else: epochs of partitions fence it like any data.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from headrace.broker.catalogue import MQTT as NAME
from headrace.broker.catalogue import session_spec
from headrace.core.mqtt.cluster_router import BACK_MS, ClusterRouter
from headrace.core.mqtt.connection import Connection
from headrace.core.mqtt.lending import Consumers
from headrace.gateways.mqtt.clients import Clients
from headrace.gateways.mqtt.cluster_appends import ClusterAppends
from headrace.gateways.mqtt.connection import MqttConnection
from headrace.gateways.mqtt.edge import EdgeConnection
from headrace.gateways.mqtt.following import Following
from headrace.gateways.mqtt.hub import Hub
from headrace.gateways.mqtt.partition import SessionPartition
from headrace.gateways.mqtt.peers import Peers
from headrace.gateways.mqtt.relay import Relays
from headrace.gateways.mqtt.spreading import Spreading
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.catalogue import Item
    from headrace.gateways.mqtt.server import MqttServer
    from headrace.gateways.mqtt.websocket import WebSocket

DECLARE_AGAIN_S = 1.0
TRIES = 1_000
"""Client ids that are drawn until one is of a partition that is served here."""
_log = get_logger("mqtt")


class ClusterHub(Hub):
    """See the module's head."""

    router: ClusterRouter

    def __init__(self, broker: Broker, make: Callable[[], MqttConnection]) -> None:
        """``make``: a connection for a client whose socket is at another broker."""
        super().__init__(broker)
        self.terms = replace(self.terms, back_ms=BACK_MS)
        assert broker.cluster is not None
        self.cluster = broker.cluster
        self.appends = ClusterAppends(broker)
        self.peers = Peers(broker, self)
        self.relays = Relays(self.peers, make)
        self.spreading = Spreading(self)
        self.clients = Clients(broker)
        self._declaring: asyncio.Task[None] | None = None
        self._told: set[int] = set()
        """Partitions of which it was said that nobody serves them."""

    async def start(self) -> None:
        broker = self.broker
        count = limits.MQTT_SESSION_PARTITIONS
        self.router = ClusterRouter(self.bounds, count, lambda key: zlib.crc32(key.encode()) % count)
        self._follow_bindings()
        self.spreading.start()
        self.peers.start()
        broker.makers[NAME] = self._make
        item = broker.catalogue.find(NAME)
        if item is not None:
            self.cluster.declared(item)
        self._ticking = broker.spawn(self._tick())

    async def _declare(self) -> None:
        try:
            await self.broker.catalogue.declare_own(NAME, session_spec(self.cluster.members))
        except HeadraceError as e:
            _log.warning("the session partitions cannot be declared now: %s", e)
        await asyncio.sleep(DECLARE_AGAIN_S)  # until it is known here, or may be tried again
        self._declaring = None

    # ------------------------------------------------------------ partitions

    def _make(self, item: Item, number: int) -> SessionPartition:
        partition = SessionPartition(self.broker, item, number)
        partition.served, partition.unserved = self._served, self._unserved
        return partition

    def _served(self, partition: SessionPartition) -> None:
        number = partition.number
        partition.journalled = self._journalled
        self.partitions[number] = partition
        self.router.lead(partition.shard, self.broker.wall_ms, partition.epoch)
        self.spreading.served(number)
        self.relays.served(number, self.broker.id)
        self.committed(_nothing)

    def _unserved(self, partition: SessionPartition) -> None:
        number = partition.number
        if self.partitions.get(number) is partition:
            del self.partitions[number]
            partition.journalled = _unheard
            self.router.drop(number)
            self._round = None

    def owner_of(self, client_id: str) -> str:
        """Id of the broker that serves a client's session now, and can be spoken to; "" = nobody. Without a client id: whoever can name the client
        so that it serves it. The first client of a cluster has the session partitions declared."""
        if self._declaring is None and self.broker.catalogue.find(NAME) is None:
            self._declaring = self.broker.spawn(self._declare())
        if not client_id:
            return self.broker.id if self.router.led else next((owner for owner in map(self.serving, range(len(self.router.shards))) if owner), "")
        return self.serving(self.router.number_of(client_id))

    def serving(self, number: int) -> str:
        """Id of the broker that serves a partition now, and can be spoken to; "" = nobody."""
        if number in self.router.led:
            return self.broker.id
        item = self.broker.catalogue.find(NAME)
        owner = self.cluster.owner(item.partitions[number]) if item is not None else ""
        return owner if owner and self.spreading.holders.get(number, (0, ""))[1] == owner else ""

    def unavailable(self, client_id: str) -> None:
        """A client was refused, since nobody serves its session."""
        number = self.router.number_of(client_id)
        if number not in self._told:
            self._told.add(number)
            _log.warning("MQTT clients are refused: nobody serves session partition %d", number)

    # ------------------------------------------------------------ what connections ask

    def connection(self, server: MqttServer, id: int, websocket: WebSocket | None = None) -> MqttConnection:
        return EdgeConnection(server, self, id, websocket)

    def reference(self) -> str:
        """Another broker, if none is configured."""
        others = self.cluster.control.topology.present()
        addresses = [r.addresses["mqtt"] for id, r in sorted(others.items()) if id != self.broker.id and id in self.peers and "mqtt" in r.addresses]
        return super().reference() or next(iter(addresses), "")

    def announced(self, answer: Callable[[], None]) -> None:
        self.spreading.announced(answer)

    def ticked(self) -> None:
        self.spreading.tick(self.broker.now_ms)

    async def stop(self) -> None:
        await super().stop()
        await self.clients.close()

    def consumers(self, connection: Connection) -> Consumers:
        shell: MqttConnection = connection.shell
        shell.consuming = Following(self.broker, self.clients, shell, connection)
        return shell.consuming

    def assigned_id(self) -> str:
        for _ in range(TRIES):
            client_id = super().assigned_id()
            if self.router.serves(client_id):
                break
        return client_id

    @property
    def connected(self) -> int:
        return len(self.connections) - len(self.relays.fars)

    # ------------------------------------------------------------ told of peers

    def met(self, peer: str) -> None:
        self.spreading.met(peer)

    def lost(self, peer: str) -> None:
        self.spreading.lost(peer)
        self.relays.lost(peer)

    def heard(self, peer: str) -> None:
        self.spreading.heard(peer)

    def full(self, peer: str, on: bool) -> None:
        self.relays.full(peer, on)


def _nothing() -> None:
    pass


def _unheard(_: int) -> None:
    pass
