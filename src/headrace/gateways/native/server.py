"""The native listener: accepts, counts and heartbeats connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.gateways.native.connection import NativeConnection
from headrace.gateways.native.watching import Watches
from headrace.model.config import parse_address
from headrace.model.errors import LimitExceeded

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.verbs import Verbs

BACKLOG = 4096
LINGERING_MAX = 64


class NativeServer:
    """Owns the listening socket and the set of connections."""

    def __init__(self, broker: Broker, verbs: Verbs) -> None:
        self.broker = broker
        self.verbs = verbs
        self.config = broker.config
        self.watches = Watches(broker)
        self.port = 0
        self.lingering_max = self.config.limits.connections_max + LINGERING_MAX
        """With more connections than this none is kept open to tell its peer why it is closed."""
        self._next_id = 1
        self._server: asyncio.Server | None = None
        self._beat: asyncio.Task[None] | None = None

    async def start(self) -> None:
        address = parse_address(self.config.listen.native)
        self._server = await self.broker.loop.create_server(self._make, address.host, address.port, backlog=BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]
        self._beat = self.broker.spawn(self._heartbeat())

    def _make(self) -> NativeConnection:
        connection = NativeConnection(self, self._next_id)
        self._next_id += 1
        return connection

    def opened(self, connection: NativeConnection) -> None:
        sinks = self.broker.sinks
        sinks[connection.id] = connection
        self.broker.counters.connections_opened += 1
        if len(sinks) > self.config.limits.connections_max:
            self.broker.counters.connections_refused += 1
            connection.close(LimitExceeded(f"this broker takes {self.config.limits.connections_max} connections and has them"))

    def closed(self, connection: NativeConnection) -> None:
        self.watches.drop(connection)
        sinks = self.broker.sinks
        sinks.pop(connection.id, None)
        if not sinks:
            self.broker.all_gone.set()

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.config.connection.heartbeat_ms / 1000))
            self.broker.refresh()
            now = self.broker.now_ms
            for i, connection in enumerate(list(self.broker.sinks.values())):
                connection.beat(now)
                if i % 512 == 511:
                    await asyncio.sleep(0)

    async def stop(self) -> None:
        """Stops listening and closes every connection."""
        if self._server is not None:
            self._server.close()
        if self._beat is not None:
            self._beat.cancel()
        for connection in list(self.broker.sinks.values()):
            connection.close(None)
        if self._server is not None:
            await self._server.wait_closed()
