"""The shell of one MQTT connection: a socket, its back-pressure, and one write a tick; everything else is ``core.mqtt.connection``.

Bounds: nothing is buffered beyond what the machine's parser may keep; a connection that delivered ``READ_BYTES_PER_TICK`` is not read again before
the next tick, nor while the log is behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, cast

from headrace.compiling import mypyc_attr
from headrace.core.mqtt.connection import Connection
from headrace.model import limits
from headrace.model.errors import Draining, HeadraceError
from headrace.wire import control
from headrace.wire.mqtt.reasons import Reason

if TYPE_CHECKING:
    from headrace.gateways.mqtt.consuming import Consuming
    from headrace.gateways.mqtt.following import Following
    from headrace.gateways.mqtt.server import MqttServer
    from headrace.gateways.mqtt.websocket import WebSocket

LINGER_S = 1.0
"""How long a connection that is closed for an error stays half open, so that the reason reaches a peer that is still sending."""


class Nobody:
    """Stands for a connection that is over where something would still be written to it."""

    def __init__(self) -> None:
        self.dirty = True  # so it is never flushed


NOBODY: Final = Nobody()


@mypyc_attr(allow_interpreted_subclasses=True)
class MqttConnection:
    """A protocol (``asyncio.Protocol``) for the loop; to the broker one of its connections."""

    pushes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, server: MqttServer, id: int, websocket: WebSocket | None = None) -> None:
        self.server = server
        self.broker = server.broker
        self.id = id
        self.machine = Connection(server.hub, server.hub.terms, self)
        self.dirty = False
        self.in_flight_bytes = 0
        self.bytes_in = self.bytes_out = 0
        self.since_ms = self.broker.wall_ms
        self.opened_ms = self.heard_ms = self.broker.now_ms
        self.consuming: Consuming | Following | None = None
        self.take: Callable[[bytes], None] = self.machine.feed
        """Where what is read goes."""
        self._websocket = websocket
        self._peer = ""
        self._transport: asyncio.Transport | None = None
        self._tick_bytes = 0
        self._holding = False
        self._ended = False

    @property
    def blocked(self) -> bool:
        return self.machine.sending.blocked

    @property
    def peer(self) -> str:
        """Its client's address, which is asked for when somebody wants to know."""
        if not self._peer and self._transport is not None:
            peer = self._transport.get_extra_info("peername")
            self._peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer)
        return self._peer

    # ------------------------------------------------------------ the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._transport = transport
        bounds = self.broker.config.limits
        transport.set_write_buffer_limits(high=bounds.write_buffer_bytes_high, low=bounds.write_buffer_bytes_low)
        self.server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.broker.refresh()
        self.machine.lost()
        self.server.closed(self)
        self.machine.over(NOBODY)
        self.consuming = None
        self.take = self.machine.feed  # which takes nothing

    def data_received(self, data: bytes) -> None:
        machine, broker = self.machine, self.broker
        if machine.closed or self._ended:
            return
        size = len(data)
        self.bytes_in += size
        self._tick_bytes += size
        broker.tick_bytes += size
        broker.counters.bytes_in += size
        broker.refresh()
        self.heard_ms = broker.now_ms
        at_once = broker.begin_read(self, size)
        try:
            if self._websocket is not None:
                data = self._unwrap(data)
            self.take(data)
            if machine.parser.fault is not None:
                broker.counters.protocol_errors += 1
        finally:
            if at_once:
                broker.end_read()
        if self._tick_bytes >= limits.READ_BYTES_PER_TICK or broker.overloaded() or machine.sending.blocked:
            self._hold()

    def _unwrap(self, data: bytes) -> bytes:
        assert self._websocket is not None
        data, answer = self._websocket.receive(data)
        if answer and self._transport is not None:
            self._transport.write(answer)
        if self._websocket.ended:
            self.broker.loop.call_soon(self._finish, False)
        return data

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.machine.sending.blocked = True
        if self.consuming is not None:
            self.consuming.block()

    def resume_writing(self) -> None:
        self.machine.sending.blocked = False
        if self.consuming is not None:
            self.consuming.unblock()
        self.broker.touch(self)
        self.release()

    # ------------------------------------------------------------ back-pressure

    def _hold(self) -> None:
        if self._transport is not None and not self._ended:
            if not self._holding:
                self._holding = True
                self._transport.pause_reading()
            self.broker.hold(self)

    def release(self) -> None:
        """The log has caught up: read on, unless the peer reads nothing itself."""
        self._tick_bytes = 0
        if self._transport is None or not self._holding or self.machine.sending.blocked:
            return
        self._holding = False
        self._transport.resume_reading()

    # ------------------------------------------------------------ the broker's side

    def flush(self) -> None:
        transport = self._transport
        if transport is None or self._ended:
            return
        out = self.machine.output()
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            if self._websocket is not None:
                data = self._websocket.wrap(data)
            self.bytes_out += len(data)
            self.broker.counters.bytes_out += len(data)
            transport.write(data)
        if self.machine.router.changed:  # what had expired, or was too large
            self.server.hub.committed(_nothing)
        if self.machine.closed:
            self._finish(bool(out))
        elif out and self.machine.sending.more:
            self.broker.touch(self)

    def _finish(self, told: bool) -> None:
        """Ends the connection once all is written. ``told``: its peer is to read why, so its own bytes are read into nothing meanwhile."""
        transport = self._transport
        if transport is None or self._ended:
            return
        self._ended = True
        self.machine.lost()
        self.machine.closed = True
        if self._websocket is not None:
            transport.write(self._websocket.close())
        if told and transport.can_write_eof():
            with contextlib.suppress(OSError):  # its peer is gone: then ``connection_lost`` is on its way
                transport.write_eof()
            if self._holding:
                self._holding = False
                transport.resume_reading()
            self.broker.loop.call_later(LINGER_S, transport.abort)
        else:
            transport.close()

    def event(self, event: control.Event) -> None:
        """Of what clients of the native protocol are told, only that the broker goes away means something here."""
        if isinstance(event, control.GoingAway):
            self.close(Draining(event.message))

    def close(self, error: HeadraceError | None) -> None:
        """Ends the connection; a 5.0 client is told why."""
        self.broker.refresh()
        reference = self.server.hub.reference()
        reason = Reason.SERVER_SHUTTING_DOWN if error is None or isinstance(error, Draining) else error.mqtt
        self.machine.fail(reason, str(error) if error is not None else "", reference)
        self.flush()

    def beat(self, now_ms: int) -> None:
        """Called several times a second: drops a client that has not said anything for one and a half times its keep-alive."""
        machine = self.machine
        if machine.closed:
            return
        if machine.version == 0:
            if now_ms - self.opened_ms > self.broker.config.mqtt.connect_timeout_ms:
                machine.fail(Reason.KEEP_ALIVE_TIMEOUT)
        elif machine.keep_alive_ms and not self._holding and now_ms - self.heard_ms > machine.keep_alive_ms:
            machine.fail(Reason.KEEP_ALIVE_TIMEOUT, "nothing was heard for one and a half times the keep-alive")

    def info(self) -> control.ConnectionInfo:
        machine, transport = self.machine, self._transport
        return control.ConnectionInfo(
            id=self.id,
            peer=self.peer,
            client=machine.client_id[:255],
            name="",
            protocol=f"mqtt {'5.0' if machine.version == 5 else '3.1.1'}{' over WebSocket' if self._websocket is not None else ''}",
            since_ms=self.since_ms,
            publishers=0,
            subscriptions=len(machine.session.subscriptions) if machine.session is not None else 0,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            buffered_bytes=machine.parser.buffered + (transport.get_write_buffer_size() if transport is not None else 0),
        )


def _nothing() -> None:
    pass
