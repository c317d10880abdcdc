"""One TCP connection: bytes to frames and frames to whom they are for, in one loop per read and one write per loop iteration.

Owns the socket, the half-received frame and when something was last heard and said. Does not know sessions, publishers or consumers: channels are
looked up in ``Owner.channels``, everything else is handed to the owner. Invariants: I1 no frame larger than ``frame_bytes_max`` is ever buffered.
I2 a frame is handed on whole. I3 the owner is told exactly once that the link is lost.
"""

import asyncio
import struct
from typing import Any, Final, Protocol, cast

from headrace.model import limits
from headrace.model.errors import ConnectionLost, HeadraceError, Malformed, WrongProtocol, from_wire
from headrace.wire.frames import CONFIRM, DELIVER, FETCH_END, HEADER, PREAMBLE, PUBLISH_ERROR, RANGE, SETTLED, Op, frame

_PONG: Final = frame(Op.PONG)
_PING: Final = frame(Op.PING)


class Channel(Protocol):
    """A publisher's or a subscription's end of its channel. A kind that is never sent a frame ignores it."""

    def confirmed(self, first: int, count: int, base_offset: int, level: int, duplicate: bool) -> None: ...
    def refused(self, first: int, count: int, error: HeadraceError) -> None: ...
    def delivered(
        self, partition: int, epoch: int, attempt: int, first_offset: int, count: int, base_offset: int, blob: bytes, flags: int
    ) -> None: ...
    def settled(self, correlation: int, count: int, stale: list[tuple[int, int]]) -> None: ...
    def fetch_ended(self, correlation: int, count: int) -> None: ...


class Owner(Protocol):
    """Who a link belongs to."""

    channels: dict[int, Any]

    def answered(self, correlation: int, body: bytes, is_error: bool) -> None: ...
    def event(self, body: bytes) -> None: ...
    def link_lost(self, link: "Link", error: HeadraceError) -> None: ...
    def link_writable(self) -> None: ...


class Link(asyncio.Protocol):
    """See the module's head."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._tail = bytearray()
        self._need = 4
        self.frame_bytes_max = limits.FRAME_BYTES_MAX_BEFORE_HELLO
        self.heard_at = self.said_at = loop.time()
        self.asked_at: float | None = None
        """When a sign of life was asked for, if nothing was heard since."""
        self.writable = True
        self.lost = False
        self.error: HeadraceError | None = None
        """Why it was lost."""
        self.frames = 0

    # ------------------------------------------------------------ asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=limits.WRITE_BUFFER_BYTES_LOW, low=limits.WRITE_BUFFER_BYTES_LOW // 4)
        self._transport.write(PREAMBLE)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(ConnectionLost(f"the connection to the broker broke{f': {exc}' if exc else ' (the broker closed it)'}"))

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._owner.link_writable()

    def data_received(self, data: bytes) -> None:
        self.heard_at, self.asked_at = self._loop.time(), None
        if self._tail:
            self._tail += data
            if len(self._tail) < self._need:
                return
            data = bytes(self._tail)
            self._tail = bytearray()
        try:
            rest = self._parse(data)
        except HeadraceError as e:
            self.fail(e)
            return
        except (struct.error, ValueError) as e:
            self.fail(Malformed(f"the broker sent a frame that cannot be read: {e}"))
            return
        if rest < len(data) and not self.lost:
            self._tail = bytearray(memoryview(data)[rest:])

    # ------------------------------------------------------------ out

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self.lost:
            self.said_at = self._loop.time()
            self._transport.write(data)

    def ping(self) -> None:
        if self.asked_at is None:
            self.asked_at = self._loop.time()
        self.write(_PING)

    def fail(self, error: HeadraceError) -> None:
        """Ends the link; the owner is told why. Safe to call again."""
        if self.lost:
            return
        self.lost, self.error = True, error
        self.writable = False
        self._tail = bytearray()
        if self._transport is not None:
            self._transport.abort()
        self._owner.link_lost(self, error)

    def close(self) -> None:
        """Ends the link on purpose, after what was written; the owner is not told."""
        self.lost = True
        if self._transport is not None:
            self._transport.close()

    # ------------------------------------------------------------ in

    def _parse(self, data: bytes) -> int:
        """Hands on every whole frame of ``data`` and says where the rest begins."""
        pos, end = 0, len(data)
        channels = self._owner.channels
        while end - pos >= 12:
            length, op, flags, channel, correlation = HEADER.unpack_from(data, pos)
            stop: int = pos + 4 + length
            if stop > end:
                break
            if length < 8:
                raise self._bad(length, data, pos)
            if op == Op.CONFIRM:
                at = channels.get(channel)
                if at is not None:
                    _, _, _, _, _, count, level, duplicate, _, base = CONFIRM.unpack_from(data, pos)
                    at.confirmed(correlation, count, base, level, bool(duplicate))
            elif op == Op.DELIVER:
                at = channels.get(channel)
                if at is not None:
                    _, _, _, _, _, partition, epoch, attempt, _, first, base = DELIVER.unpack_from(data, pos)
                    at.delivered(partition, epoch, attempt, first, correlation, base, data[pos + DELIVER.size : stop], flags)
            elif op == Op.SETTLED:
                at = channels.get(channel)
                if at is not None:
                    _, _, _, _, _, count, _ = SETTLED.unpack_from(data, pos)
                    stale = list(RANGE.iter_unpack(data[pos + SETTLED.size : stop])) if stop > pos + SETTLED.size else []
                    at.settled(correlation, count, stale)
            elif op == Op.REPLY or op == Op.ERROR:
                self._owner.answered(correlation, data[pos + 12 : stop], op == Op.ERROR)
            elif op == Op.PUBLISH_ERROR:
                at = channels.get(channel)
                if at is not None:
                    _, _, _, _, _, count, code, _ = PUBLISH_ERROR.unpack_from(data, pos)
                    at.refused(correlation, count, from_wire(code, data[pos + PUBLISH_ERROR.size : stop].decode("utf-8", "replace")))
            elif op == Op.FETCH_END:
                at = channels.get(channel)
                if at is not None:
                    at.fetch_ended(correlation, FETCH_END.unpack_from(data, pos)[5])
            elif op == Op.EVENT:
                self._owner.event(data[pos + 12 : stop])
            elif op == Op.PING:
                self.write(_PONG)
            elif op != Op.PONG:
                raise self._bad(length, data, pos)
            self.frames += 1
            pos = stop
            if self.lost:
                return end
        if end - pos >= 4:
            length = int.from_bytes(data[pos : pos + 4], "big")
            if length > self.frame_bytes_max or length < 8:
                raise self._bad(length, data, pos)
            self._need = 4 + length
        else:
            self._need = 4
        return pos

    def _bad(self, length: int, data: bytes, pos: int) -> HeadraceError:
        if self.frames == 0:
            return WrongProtocol(f"what answers there does not speak this protocol (its first bytes: {data[:16]!r})")
        return Malformed(
            f"the broker sent a frame of {length} bytes with opcode {data[pos + 4] if len(data) > pos + 4 else '?'}, which this client does not know"
        )
