"""The shell of an MQTT connection at a broker of a cluster: its client may be served by another broker, which its CONNECT decides.

Owns what is read until the CONNECT is whole, the search for who serves the client's session partition, and the client's socket while another broker
has the connection.

Invariant: G1 a connection is served by one machine, here or there, which gets every byte of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.gateways.mqtt.connection import MqttConnection
from headrace.model.errors import Draining, HeadraceError
from headrace.wire.mqtt.packets import Connect
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.reasons import Reason

if TYPE_CHECKING:
    from headrace.gateways.mqtt.cluster import ClusterHub
    from headrace.gateways.mqtt.relay import Relayed
    from headrace.gateways.mqtt.server import MqttServer
    from headrace.gateways.mqtt.websocket import WebSocket

WAIT_S = 5.0
"""So long somebody is looked for who serves a session; then its client is refused."""
LOOK_S = 0.05
KEPT_BYTES_MAX = 1024 * 1024
"""A client that sends so much before it is answered is not read on until it is."""


class EdgeConnection(MqttConnection):
    """See the module's head."""

    def __init__(self, server: MqttServer, hub: ClusterHub, id: int, websocket: WebSocket | None = None) -> None:
        super().__init__(server, id, websocket)
        self.hub = hub
        self.relayed: Relayed | None = None
        self._first = Parser(hub.terms.packet_bytes_max, hub.terms.connect_bytes_max)
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._looking: asyncio.Task[None] | None = None
        self._paused = False
        self.take = self._place

    # ------------------------------------------------------------ whose it is

    def _place(self, data: bytes) -> None:
        self._kept.append(data)
        self._kept_bytes += len(data)
        if self._looking is not None:
            if self._kept_bytes > KEPT_BYTES_MAX:
                self.paused(True)
            return
        packets = self._first.feed(data)
        if self._first.fault is None and not packets:
            return
        asked = packets[0] if packets else None
        client_id = asked.client_id if isinstance(asked, Connect) else ""
        if not self._settle(client_id):
            self._looking = self.broker.spawn(self._look(client_id))

    def _settle(self, client_id: str) -> bool:
        """Whether it is known who serves it: then that is done."""
        owner = self.hub.owner_of(client_id)
        if not owner:
            return False
        data = b"".join(self._kept)
        self._kept.clear()
        if owner == self.broker.id:
            self.take = self.machine.feed
            self.machine.feed(data)
        else:
            self.relayed = self.hub.relays.begin(owner, self, data)
            self.take = self.relayed.feed
            if self.blocked:
                self.relayed.choked(True)
        return True

    async def _look(self, client_id: str) -> None:
        until = self.broker.loop.time() + WAIT_S
        while not self._over():
            await asyncio.sleep(LOOK_S)
            self.broker.refresh()
            if self._over() or self._settle(client_id):
                break
            if self.broker.loop.time() >= until:
                self.hub.unavailable(client_id)
                self.take = self.machine.feed  # which refuses it
                self.machine.feed(b"".join(self._kept))
                break
        self._kept.clear()
        self._looking = None
        self.paused(False)

    def _over(self) -> bool:
        return self._ended or self._transport is None

    # ------------------------------------------------------------ what the owner says

    def said(self, data: bytes) -> None:
        """Goes to the client."""
        transport = self._transport
        if transport is None or self._ended:
            return
        if self._websocket is not None:
            data = self._websocket.wrap(data)
        self.bytes_out += len(data)
        self.broker.counters.bytes_out += len(data)
        transport.write(data)

    def ended(self) -> None:
        """The owner has ended it, or is gone."""
        self._finish(True)

    def paused(self, on: bool) -> None:
        """The client is not to be read for now, or is again."""
        self._paused = on
        if on:
            self._hold()
        else:
            self.release()

    # ------------------------------------------------------------ what differs while it is elsewhere

    def release(self) -> None:
        if not self._paused:
            super().release()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.relayed is not None:
            self.relayed.choked(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.relayed is not None:
            self.relayed.choked(False)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.relayed is not None:
            self.relayed.gone()

    def beat(self, now_ms: int) -> None:
        if self.relayed is None and self._looking is None:  # else who has it watches it
            super().beat(now_ms)

    def close(self, error: HeadraceError | None) -> None:
        if self.relayed is None:
            super().close(error)
            return
        reason = Reason.SERVER_SHUTTING_DOWN if error is None or isinstance(error, Draining) else error.mqtt
        self.relayed.leave(reason, str(error) if error is not None else "", self.hub.reference())
        if error is None:  # this broker stops, so no answer comes
            self.relayed.gone()
            self._finish(False)
