"""One native connection: frames in, verbs out; confirms, deliveries and events back, one write a tick.

Owns its read buffer, publish channels and outgoing pieces. Publishes, settlements and credit are handled in place as runs, what consumers say by
``consuming``; control requests go to a task of the connection.
Bounds: nothing is buffered beyond one frame of the allowed size; a connection that delivered ``READ_BYTES_PER_TICK`` is not read again before the
next tick, nor while the log is behind or too many of its bytes are in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from headrace.broker.attach import Attachments
from headrace.broker.publisher import Publisher, take_publishes
from headrace.gateways.native.consuming import Consuming
from headrace.gateways.native.pulse import Pulse
from headrace.gateways.native.requests import Requests
from headrace.model import limits
from headrace.model.errors import HeadraceError, LimitExceeded, Malformed, NotFound, Refused, TooLarge, Unavailable, WrongProtocol
from headrace.wire import control, egress
from headrace.wire.frames import CONFIRM, DELIVER, FETCH_END, HEADER, PREAMBLE, Op, frame
from headrace.wire.ingress import Run, scan_run

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.gateways.native.server import NativeServer

_header = HEADER.unpack_from
_confirm = CONFIRM.pack
_deliver = DELIVER.pack
_CONFIRM = int(Op.CONFIRM)
_DELIVER = int(Op.DELIVER)
JOIN_BYTES_MAX = 64 * 1024
PIECE_BYTES = 4096
"""Pieces of an unfinished frame that are smaller are gathered in one buffer: kept as they come they would take many times their bytes."""
LINGER_S = 1.0
"""How long a connection that is closed for an error stays half open, so that the error reaches a peer that is still sending."""
TEXT_MAX = 255
"""Characters kept of what a client says about itself."""
_PUSHES = frozenset({"catalogue", "topology"})
_AFTER_HELLO = frozenset({Op.PUBLISH, Op.SETTLE, Op.CREDIT, Op.EXTEND, Op.FETCH})


class NativeConnection(asyncio.Protocol):
    """A ``Sink`` for the broker and a protocol for the loop."""

    def __init__(self, server: NativeServer, id: int) -> None:
        self.server = server
        self.broker: Broker = server.broker
        self.id = id
        self.blocked = False
        self.dirty = False
        self.in_flight_bytes = 0
        self.pushes: frozenset[str] = frozenset()
        self.peer = ""
        self.client = ""
        self.name = ""
        self.heartbeat_ms = limits.HEARTBEAT_MS
        self.bytes_in = self.bytes_out = 0
        self.since_ms = self.broker.wall_ms
        self.opened_ms = self.broker.now_ms
        self.sent_ms = self.broker.now_ms
        self.attachments: Attachments | None = None
        self.requests = Requests(self)
        self.publishers: dict[int, Publisher] = {}
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes | bytearray] = []
        self._have = 0
        self._need = len(PREAMBLE)
        self._frame_bytes_max = limits.FRAME_BYTES_MAX_BEFORE_HELLO
        self._message_bytes_max = server.config.limits.message_bytes_max
        self._in_flight_bytes_max = server.config.limits.in_flight_bytes_max
        self._write_bytes_high = server.config.limits.write_buffer_bytes_high
        self._unread_bytes_max = 2 * server.config.limits.write_buffer_bytes_high
        self._preamble_seen = False
        self._tick_bytes = 0
        self._holding = False
        self._closing = False
        self._ended = False
        self._pulse = Pulse(self.broker.now_ms)
        self._room = asyncio.Event()
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._ops: dict[int, Callable[[bytes, int, int, int, int, int], None]] = {
            Op.PING: self._on_ping,
            Op.PONG: self._on_pong,
            Op.REQUEST: self._on_request,
        }
        """What there is before hello; ``ready`` adds the rest."""

    # ------------------------------------------------------------ the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer)
        bounds = self.server.config.limits
        transport.set_write_buffer_limits(high=bounds.write_buffer_bytes_high, low=bounds.write_buffer_bytes_low)
        self.server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._transport = None
        self._room.set()
        self._parts.clear()
        self._out.clear()
        self.requests.cancel()
        if self.attachments is not None:
            self.attachments.connection_lost(self)
        for publisher in self.publishers.values():
            publisher.close()
        self.publishers.clear()
        self.server.closed(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        size = len(data)
        self.bytes_in += size
        self._tick_bytes += size
        broker = self.broker
        broker.tick_bytes += size
        broker.counters.bytes_in += size
        self._have += size
        if self._have < self._need:
            parts = self._parts
            if size >= PIECE_BYTES:
                parts.append(data)
            elif parts and type(parts[-1]) is bytearray:
                parts[-1] += data
            else:
                parts.append(bytearray(data))
        else:
            if self._parts:
                self._parts.append(data)
                data = b"".join(self._parts)
                self._parts.clear()
            broker.refresh()
            at_once = broker.begin_read(self, size)
            try:
                rest = self._parse(data)
            except HeadraceError as e:
                broker.counters.protocol_errors += 1
                self.close(e)
                return
            finally:
                if at_once:
                    broker.end_read()
            self._have = len(data) - rest
            if self._have:
                self._parts.append(data[rest:] if rest else data)
            else:
                self._need = 12
        if (
            self._tick_bytes >= limits.READ_BYTES_PER_TICK
            or self.in_flight_bytes > self._in_flight_bytes_max
            or broker.overloaded()
            or self._out_bytes > JOIN_BYTES_MAX
            or self.blocked
        ):
            self._hold()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.blocked = True
        if self.attachments is not None:
            self.attachments.block()

    def resume_writing(self) -> None:
        self.blocked = False
        if self.attachments is not None:
            self.attachments.wake()
        self._room.set()
        self.release()

    # ------------------------------------------------------------ back-pressure

    def _hold(self) -> None:
        if self._transport is not None and not self._closing:
            if not self._holding:
                self._holding = True
                self._transport.pause_reading()
            self.broker.hold(self)

    def _choked(self) -> bool:
        """Its peer reads nothing of what it was sent, answers to its own requests included: it may ask for more once it does."""
        return self.blocked and self._transport is not None and self._transport.get_write_buffer_size() > self._unread_bytes_max

    async def room(self) -> None:
        """Waits while its peer reads nothing."""
        while self._choked():
            self._room.clear()
            await self._room.wait()

    def release(self) -> None:
        """The log has caught up: read on, unless too much of this connection's own is still in flight or unread."""
        self._tick_bytes = 0
        if self._transport is None or self._closing or not self._holding or self._choked():
            return
        if self.in_flight_bytes > self._in_flight_bytes_max:
            self.broker.loop.call_later(0.001, self._hold)
            return
        self._holding = False
        self._transport.resume_reading()

    # ------------------------------------------------------------ parsing

    def _parse(self, data: bytes) -> int:
        """Handles every whole frame of ``data`` and says where the first partial one begins; sets ``_need``."""
        pos, end = 0, len(data)
        if not self._preamble_seen:
            if data[: len(PREAMBLE)] != PREAMBLE:
                raise WrongProtocol(_recognise(data))
            self._preamble_seen = True
            pos = len(PREAMBLE)
        while end - pos >= 12:
            if data[pos + 4] == 1 and self.attachments is not None:
                pos = take_publishes(data, pos, end, self._message_bytes_max, self.publishers, self, self.broker.precise_ms)
                if end - pos < 12:
                    break
            length, op, flags, channel, correlation = _header(data, pos)
            stop = pos + 4 + length
            if stop > end:
                if length > self._frame_bytes_max:
                    raise TooLarge(f"a frame of {length} bytes; at most {self._frame_bytes_max} are allowed here")
                self._need = stop - pos
                return pos
            if op == 1 and length >= 8 and self.attachments is not None:
                run = scan_run(data, pos, end, self._message_bytes_max)
                publisher = self.publishers.get(channel)
                if run.error is not None or publisher is None:
                    self._refuse(channel, run, run.error or NotFound(f"no publisher is open on channel {channel}"))
                else:
                    publisher.publish(self, run, data[pos : run.next_pos], self.broker.precise_ms)
                pos = run.next_pos
                continue
            if length < 8 or length > self._frame_bytes_max:
                raise (TooLarge if length > 8 else Malformed)(f"a frame's length is {length}; it lies in 8..{self._frame_bytes_max}")
            handler = self._ops.get(op)
            if handler is None:
                raise Malformed(f"opcode {op:#04x} is not expected {'before hello is answered' if op in _AFTER_HELLO else 'here'}")
            handler(data, pos, stop, flags, channel, correlation)
            pos = stop
        self._need = 12
        return pos

    def _refuse(self, channel: int, run: Run, error: HeadraceError) -> None:
        self.broker.counters.refused += max(1, run.record_count)
        if run.flags & 7:  # level NONE is answered nothing
            self.refused(channel, run.first_correlation, run.frame_count, error)
            self.broker.touch(self)

    # ------------------------------------------------------------ frames from the client

    def _on_ping(self, data: bytes, pos: int, stop: int, flags: int, channel: int, correlation: int) -> None:
        self._write(frame(Op.PONG, correlation=correlation))
        self.broker.touch(self)

    def _on_pong(self, data: bytes, pos: int, stop: int, flags: int, channel: int, correlation: int) -> None:
        pass

    def _on_request(self, data: bytes, pos: int, stop: int, flags: int, channel: int, correlation: int) -> None:
        if stop - pos > limits.CONTROL_BYTES_MAX:
            raise TooLarge(f"a control message of {stop - pos} bytes; at most {limits.CONTROL_BYTES_MAX} are allowed")
        self.requests.take(correlation, data[pos + 12 : stop])

    # ------------------------------------------------------------ the broker's side (Sink)

    def confirmed(self, channel: int, first: int, count: int, base_offset: int, level: int, duplicate: bool) -> None:
        self._write(_confirm(24, _CONFIRM, 0, channel, first, count, level, duplicate, 0, base_offset))

    def confirmed_all(self, frames: bytes) -> None:
        self._write(frames)

    def refused(self, channel: int, first: int, count: int, error: HeadraceError) -> None:
        self._write(egress.publish_error(channel, first, count, error))

    def deliver(
        self,
        channel: int,
        partition: int,
        epoch: int,
        first_offset: int,
        count: int,
        attempt: int,
        base_offset: int,
        blobs: Sequence[bytes | memoryview],
        nbytes: int,
        flags: int,
    ) -> None:
        self._out.append(_deliver(36 + nbytes, _DELIVER, flags, channel, count, partition, epoch, attempt, 0, first_offset, base_offset))
        self._out.extend(blobs)
        self._out_bytes += 40 + nbytes
        if self._out_bytes > self._write_bytes_high:
            self.flush()

    def settled(self, channel: int, correlation: int, count: int, stale: Sequence[tuple[int, int]]) -> None:
        self._write(egress.settled(channel, correlation, count, stale))

    def fetch_end(self, channel: int, correlation: int, count: int) -> None:
        self._write(FETCH_END.pack(12, Op.FETCH_END, 0, channel, correlation, count))

    def event(self, event: control.Event) -> None:
        self._write(frame(Op.EVENT, control.encode(event)))

    def reply(self, correlation: int, reply: control.Reply) -> None:
        self._write(frame(Op.REPLY, control.encode(reply), correlation=correlation))
        self.broker.touch(self)

    def error(self, correlation: int, error: HeadraceError) -> None:
        self._write(egress.failure(correlation, error))
        self.broker.touch(self)

    def _write(self, piece: bytes) -> None:
        self._out.append(piece)
        self._out_bytes += len(piece)

    def flush(self) -> None:
        out = self._out
        if not out or self._transport is None or self._ended:
            return
        self._out = []
        size, self._out_bytes = self._out_bytes, 0
        self.bytes_out += size
        self.broker.counters.bytes_out += size
        self.sent_ms = self.broker.now_ms
        if len(out) == 1:
            self._transport.write(out[0])
        elif size <= JOIN_BYTES_MAX:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)

    def close(self, error: HeadraceError | None) -> None:
        if self._closing or self._transport is None:
            return
        self._closing = True
        self._parts.clear()
        self._have = 0
        transport = self._transport
        if error is None or len(self.broker.sinks) > self.server.lingering_max:
            self.flush()
            transport.close()
        else:
            # Closing while the peer's bytes are unread would reset the connection, and the peer might never see the error: end this side and read on
            # into nothing until the peer closes too.
            self._write(egress.failure(0, error))
            self.flush()
            self._ended = True
            transport.write_eof()
            if self._holding:
                self._holding = False
                transport.resume_reading()
        self.broker.loop.call_later(LINGER_S, transport.abort)

    # ------------------------------------------------------------ hello, heartbeat

    def ready(self, attachments: Attachments, hello: control.Hello, heartbeat_ms: int) -> None:
        """The handshake succeeded."""
        self.attachments = attachments
        consuming = Consuming(self.broker, attachments.session, self)
        self._ops |= {Op.SETTLE: consuming.settle, Op.CREDIT: consuming.credit, Op.EXTEND: consuming.extend, Op.FETCH: consuming.fetch}
        self.client, self.name = hello.client[:TEXT_MAX], hello.name[:TEXT_MAX]
        self.pushes = _PUSHES.intersection(hello.push)
        self.heartbeat_ms = heartbeat_ms
        self._frame_bytes_max = self.server.config.limits.frame_bytes_max

    def check_publisher(self, channel: int) -> None:
        """Raises if no publisher may be opened on that channel."""
        if not 1 <= channel <= 65_535:
            raise Refused(f"a publish channel lies in 1..65535, this one is {channel}")
        if channel not in self.publishers and len(self.publishers) >= self.server.config.limits.channels_max:
            raise LimitExceeded(f"this connection has {len(self.publishers)} publishers open, the most that are allowed")

    def open_publisher(self, publisher: Publisher) -> None:
        """Binds its channel to a publisher; whoever had the channel is closed."""
        old = self.publishers.pop(publisher.channel, None)
        if old is not None:
            old.close()
        if self._transport is None:  # lost meanwhile
            publisher.close()
        else:
            self.publishers[publisher.channel] = publisher

    def beat(self, now_ms: int) -> None:
        """Called once a second: pings a silent peer, drops one that gives no sign of life."""
        if self._closing:
            return
        pulse, interval_ms = self._pulse, self.heartbeat_ms
        silent_ms = pulse.silent_ms(now_ms, self.bytes_in, excused=self._holding and not self.blocked)
        if self.attachments is None:
            if now_ms - self.opened_ms > self.server.config.connection.preamble_timeout_ms:
                self.close(Unavailable("no hello came in time"))
                return
        elif pulse.lost(silent_ms, interval_ms, unread=self.blocked):
            why = "what it was sent was not read" if self._holding else "nothing was heard"
            self.close(Unavailable(f"{why} for {silent_ms} ms"))
            return
        if self._transport is None or self.blocked:
            return
        if pulse.due(now_ms, silent_ms, interval_ms) or now_ms - self.sent_ms >= interval_ms:
            pulse.asked(now_ms)
            self._write(frame(Op.PING))
            self.flush()

    def info(self) -> control.ConnectionInfo:
        transport = self._transport
        return control.ConnectionInfo(
            id=self.id,
            peer=self.peer,
            client=self.client,
            name=self.name,
            protocol="native",
            since_ms=self.since_ms,
            publishers=len(self.publishers),
            subscriptions=len(self.attachments.session.channels) if self.attachments is not None else 0,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            buffered_bytes=self._have + self._out_bytes + (transport.get_write_buffer_size() if transport is not None else 0),
        )


def _recognise(data: bytes) -> str:
    """What the peer seems to speak, in a sentence."""
    if data[:1] == b"\x16" and data[1:2] == b"\x03":
        return "this is a plaintext port and the peer began a TLS handshake; connect without TLS, or to the TLS port"
    if data[:4] in (b"GET ", b"POST", b"HEAD", b"PUT ", b"PRI "):
        return "the peer speaks HTTP; the admin interface listens on another port (7581 by default)"
    if data[:1] == b"\x10":
        return "the peer speaks MQTT; this port is for the native protocol"
    if data[:4] == b"AMQP":
        return "the peer speaks AMQP, which is not served here"
    return f"the peer did not begin with the preamble {PREAMBLE!r}; this port speaks the native protocol"
