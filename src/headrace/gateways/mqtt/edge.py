"""The shell of an MQTT connection at a broker of a cluster: its client may be served by another broker, which its CONNECT decides.

Owns what is read until the CONNECT is whole, the search for who serves the client's session partition, at first and each time that it moves, and the
client's socket while another broker has the connection. What the next owner needs is kept in ``core.mqtt.held``.

Invariants: G1 a connection is served by one machine, here or there, which gets every byte of it. G2 one whose session has no owner is not read, and
ends when that lasts too long.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.core.mqtt.connection import Connection
from headrace.core.mqtt.held import Held, first_packet
from headrace.core.mqtt.resuming import resume
from headrace.gateways.mqtt.connection import MqttConnection
from headrace.log import get_logger
from headrace.model.errors import Draining, HeadraceError
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
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
"""A client that sends so much before it is answered is not read on until it is. One packet may be more."""
_log = get_logger("mqtt")


class EdgeConnection(MqttConnection):
    """See the module's head."""

    def __init__(self, server: MqttServer, hub: ClusterHub, id: int, websocket: WebSocket | None = None) -> None:
        super().__init__(server, id, websocket)
        self.hub = hub
        self.relayed: Relayed | None = None
        self.held = Held(b"")
        self.partition = -1
        """Of its session."""
        self._version = 0
        self._first = Parser(hub.terms.packet_bytes_max, hub.terms.connect_bytes_max)
        self._looking: asyncio.Task[None] | None = None
        self._adrift_s = 0.0
        """Since when it has no owner, by the loop's clock; 0 = it has one."""
        self._pauses: set[str] = set()
        """Why it is not read."""
        self.take = self._place

    # ------------------------------------------------------------ whose it is

    def _place(self, data: bytes) -> None:
        self.held.read(data)
        if self._looking is not None:
            self._bound_kept()
            return
        packets = self._first.feed(data)
        if self._first.fault is None and not packets:
            return
        asked = packets[0] if packets else None
        client_id = asked.client_id if isinstance(asked, Connect) else ""
        if isinstance(asked, Connect):
            self.held.connect, self._version = first_packet(self.held.fresh()), asked.version
        if not self._settle(client_id):
            self._looking = self.broker.spawn(self._look(client_id))

    def _settle(self, client_id: str) -> bool:
        """Whether it is known who serves it: then that is done."""
        owner = self.hub.owner_of(client_id)
        if not owner:
            return False
        data = self.held.fresh()
        if owner == self.broker.id:
            self._serve_here()
            self.machine.feed(data)
        else:
            self._relay(self.hub.relays.begin(owner, self, data))
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
                self._serve_here()  # which refuses it
                self.machine.feed(self.held.fresh())
                break
        self._looking = None
        self._bound_kept()

    def _over(self) -> bool:
        return self._ended or self._transport is None

    # ------------------------------------------------------------ who has it

    def _serve_here(self) -> None:
        self.machine.astray = self._astray
        self.take = self._feed

    def _feed(self, data: bytes) -> None:
        machine = self.machine
        self.held.read(data)
        machine.feed(data)
        self.held.dealt_with(machine.answers.heard)
        self._bound_kept()

    def _relay(self, relayed: Relayed) -> None:
        self.relayed = relayed
        self.take = self._pass_on
        if self.blocked:
            relayed.choked(True)

    def _pass_on(self, data: bytes) -> None:
        assert self.relayed is not None
        self.held.read(data)
        self.relayed.feed(data)
        self._bound_kept()

    def _bound_kept(self) -> None:
        """What is not answered is bounded: the client is not read meanwhile."""
        full = self.held.nbytes > KEPT_BYTES_MAX + self.hub.terms.packet_bytes_max
        if full != ("full" in self._pauses):
            self.paused("full", full)

    # ------------------------------------------------------------ its session moves

    def _astray(self) -> None:
        """Its machine here has the session no more."""
        old = self.machine
        out, old.sending.out = old.sending.out, []
        if out:
            self.said(b"".join(out))
        answers, sending = old.answers, old.sending
        self.held.progress(answers.heard, sending.sent, list(sending.skipped), answers.aliases)
        self.machine = self._machine()
        self.adrift()

    def _machine(self) -> Connection:
        """Another one, which goes on counting."""
        old = self.machine
        made = Connection(self.server.hub, self.hub.terms, self)
        made.published, made.sending.blocked = old.published, old.sending.blocked
        made.sending.delivered, made.sending.dropped = old.sending.delivered, old.sending.dropped
        return made

    def adrift(self) -> None:
        """Nobody has it for now. It goes on at whoever serves its session next, if that can be."""
        self.relayed = None
        if self._over():
            return
        if not self.held.movable:
            self.ended()
            return
        self.held.lost()
        self.take = self.held.read
        self._pauses -= {"owner", "peer"}
        self.paused("adrift", True)
        self._adrift_s = self._adrift_s or self.broker.loop.time()
        if self._looking is None:
            self._looking = self.broker.spawn(self._look_again())

    async def _look_again(self) -> None:
        until = self._adrift_s + self.broker.config.mqtt.owner_wait_ms / 1000
        while not self._over():
            self.broker.refresh()
            owner = self.hub.owner_of(self.held.client_id)
            if owner and self._go_on(owner):
                break
            if self.broker.loop.time() >= until:
                self.hub.unavailable(self.held.client_id)
                self._farewell(Reason.SERVER_BUSY, "nobody serves the partition of its session now")
                break
            await asyncio.sleep(LOOK_S)
        self._looking = None

    def _go_on(self, owner: str) -> bool:
        self.heard_ms = self.broker.now_ms
        if owner == self.broker.id:
            machine = self.machine
            self._serve_here()
            if not resume(machine, self.held.moved()):
                self.take = self.held.read
                return False
            if machine.session is not None:
                self.bound(machine.session.client_id, machine.session.epoch, self.held.begun)
            for data, machine.again in ((self.held.again(), True), (self.held.fresh(), False)):
                machine.feed(data)
            machine.again = False
        else:
            self._relay(self.hub.relays.go_on(owner, self, self.held))
        self.paused("adrift", False)
        return True

    def bound(self, client_id: str, epoch: int, begun: int) -> None:
        """Its owner has accepted the client, or goes on with it."""
        self.held.accepted(client_id, epoch, begun)
        self.partition = self.hub.router.number_of(client_id)
        self._adrift_s = 0.0

    # ------------------------------------------------------------ what the owner says

    def said(self, data: bytes) -> None:
        """Goes to the client."""
        self._bound_kept()
        transport = self._transport
        if not data or transport is None or self._ended:
            return
        if self._websocket is not None:
            data = self._websocket.wrap(data)
        self.bytes_out += len(data)
        self.broker.counters.bytes_out += len(data)
        transport.write(data)

    def ended(self) -> None:
        """The owner has ended it, or is gone."""
        self._finish(True)

    def _farewell(self, reason: int, why: str, reference: str = "") -> None:
        """Ends it while nobody has it."""
        if self._version == 5:
            self.said(encoding.disconnect(5, reason, {prop.SERVER_REFERENCE: reference} if reference else {}))
        _log.info("the connection of %s ends: %s", self.held.client_id, why)
        self._finish(True)

    def paused(self, why: str, on: bool) -> None:
        """The client is not to be read for now, or is again."""
        if on:
            self._pauses.add(why)
            self._hold()
        else:
            self._pauses.discard(why)
            self.release()

    # ------------------------------------------------------------ what differs while it is elsewhere

    def flush(self) -> None:
        machine = self.machine
        if not self.held.epoch and machine.session is not None and machine.sending.accepted:
            self.bound(machine.session.client_id, machine.session.epoch, machine.sending.begun)
        super().flush()
        if self.take == self._feed:
            self.held.dealt_with(machine.answers.heard)
            self._bound_kept()

    def release(self) -> None:
        if not self._pauses:
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
        reason = Reason.SERVER_SHUTTING_DOWN if error is None or isinstance(error, Draining) else error.mqtt
        if self.relayed is not None:
            self.relayed.leave(reason, str(error) if error is not None else "", self.hub.reference())
            if error is None:  # this broker stops, so no answer comes
                self.relayed.gone()
                self._finish(False)
        elif self._adrift_s:
            self._farewell(reason, "this broker ends it", self.hub.reference())
        else:
            super().close(error)
