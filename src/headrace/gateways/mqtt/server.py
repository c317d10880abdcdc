"""The MQTT listeners, TCP and WebSocket: accept and count connections.

Owns the listening sockets and which connections there are. One listener serves both versions: a connection's first packet says which it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

from headrace.broker.metrics import Figures
from headrace.gateways.mqtt.connection import MqttConnection
from headrace.gateways.mqtt.hub import Hub
from headrace.log import get_logger
from headrace.model.config import mqtt_address, parse_address
from headrace.model.errors import LimitExceeded

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

BACKLOG = 4096
ACCEPTS_PER_TURN = 8
"""Connections that are taken in one turn of the loop: libuv takes one for each descriptor that listens, so there are several of one socket."""
FIRST_ID = 1 << 40
"""Ids of connections count from here, so that they are no other listener's."""
_log = get_logger("mqtt")


class MqttServer:
    """See the module's head."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.hub = self._make_hub()
        self.ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._next_id = FIRST_ID

    def _make_hub(self) -> Hub:
        if self.broker.cluster is None:
            return Hub(self.broker)
        from headrace.gateways.mqtt.cluster import ClusterHub  # a lone broker needs none of it

        return ClusterHub(self.broker, self._make_far)

    def _make_far(self) -> MqttConnection:
        from headrace.gateways.mqtt.relay import FarConnection

        self._next_id += 1
        return FarConnection(self, self._next_id)

    async def start(self) -> None:
        """Opens those that are configured. Raises ``OSError`` if one that was asked for by name cannot be."""
        await self.hub.start()
        config = self.broker.config
        makers: dict[Literal["mqtt", "mqtt_ws"], Callable[[], MqttConnection]] = {"mqtt": self._make, "mqtt_ws": self._make_websocket}
        for name, make in makers.items():
            text = mqtt_address(config, name)
            if not text:
                continue
            address = parse_address(text)
            try:
                server = await self.broker.loop.create_server(cast(Callable[[], asyncio.Protocol], make), address.host, address.port, backlog=BACKLOG)
            except OSError as e:
                if getattr(config.listen, name) != "auto":
                    raise
                _log.warning("%s cannot be opened, so there is no MQTT on it (%s); set listen.%s to another address, or to off", text, e, name)
                continue
            self._servers.append(server)
            self._servers.extend(await self._again(server, make))
            self.ports[name] = server.sockets[0].getsockname()[1]

    async def _again(self, server: asyncio.Server, make: Callable[[], MqttConnection]) -> list[asyncio.Server]:
        """More descriptors for the sockets of a listener, on a loop that takes one connection for each in a turn; asyncio's own takes all."""
        loop = self.broker.loop
        if type(loop).__module__.partition(".")[0] != "uvloop":
            return []
        factory = cast(Callable[[], asyncio.Protocol], make)
        more = [sock.dup() for sock in server.sockets for _ in range(ACCEPTS_PER_TURN - 1)]
        return [await loop.create_server(factory, sock=sock, backlog=BACKLOG) for sock in more]

    def _make(self) -> MqttConnection:
        self._next_id += 1
        return self.hub.connection(self, self._next_id)

    def _make_websocket(self) -> MqttConnection:
        from headrace.gateways.mqtt.websocket import WebSocket  # its library only where there is such a listener

        self._next_id += 1
        return self.hub.connection(self, self._next_id, WebSocket(self.hub.terms.packet_bytes_max))

    def opened(self, connection: MqttConnection) -> None:
        self.hub.connections[connection.id] = connection
        self.broker.sinks[connection.id] = connection
        self.broker.counters.connections_opened += 1
        most = self.broker.config.limits.connections_max
        if len(self.broker.sinks) > most:
            self.broker.counters.connections_refused += 1
            connection.close(LimitExceeded(f"this broker takes {most} connections and has them"))

    def closed(self, connection: MqttConnection) -> None:
        self.hub.closed(connection)
        self.broker.sinks.pop(connection.id, None)
        if not self.broker.sinks:
            self.broker.all_gone.set()

    def figures(self) -> Figures:
        """For /metrics."""
        hub = self.hub
        return Figures(
            gauges={
                "mqtt_connections": float(hub.connected),
                "mqtt_sessions": float(hub.sessions),
                "mqtt_subscriptions": float(hub.router.subscriptions),
                "mqtt_retained_messages": float(hub.router.retained.count),
                "mqtt_retained_bytes": float(hub.router.retained_bytes),
            },
            totals={"mqtt_received": hub.received, "mqtt_sent": hub.sent, "mqtt_dropped": hub.dropped},
        )

    async def stop(self) -> None:
        """Stops listening and closes every connection."""
        for server in self._servers:
            server.close()
        for connection in list(self.hub.connections.values()):
            connection.close(None)
        await self.hub.stop()
        for server in self._servers:
            await server.wait_closed()
