"""One connection between two brokers: bytes to frames and back, the opening, beats, and what waits to be sent.

Owns its read buffer, its queue and its end. What frames mean is its owner's affair (``Ends``); who may speak is the opening's (``handshake``).

I1 before the proof a frame has at most ``PEER_FRAME_BYTES_MAX_BEFORE_PROOF`` bytes, and nothing but the opening is read. I2 nothing is sent to nor
taken from a side that is not proven. I3 sending never waits: what finds no room is refused, so that two full sides cannot block each other; and
what was sent is read although nothing can be sent. I4 beats, answers to them and errors go before queued batches, between whole frames. I5 the
owner is told of the end exactly once. I6 silence is counted in own beats, not by the clock: a broker that stood still reads what came meanwhile
before it holds anything against anybody; what the system had kept for it counts as heard, though, so ``answered_ms`` tells when the other side was
surely there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol, cast

import msgspec

from headrace.cluster.transport.counters import Counters
from headrace.cluster.transport.handshake import Opened, Opening, check_preamble, refusal
from headrace.cluster.transport.settings import Settings
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.errors import HeadraceError, Invariant, Malformed, TooLarge
from headrace.wire import peer as wire
from headrace.wire.frames import HEADER
from headrace.wire.peer import COMPRESSIBLE, LZ4, PREAMBLE, PeerFlag, PeerOp

_log = get_logger("peers")

JOIN_BYTES_MAX = 64 * 1024
"""Pieces that are no more together are joined: cheaper than a list of them."""
LINGER_S = 1.0
PINGS_MAX = 64
_HEAD = HEADER.size
_LZ4 = int(PeerFlag.LZ4)

Ending = Literal["reset", "silent", "refused", "broken", "goodbye", "replaced", "closed"]


class Lost(msgspec.Struct, frozen=True):
    """Why a connection ended. ``kind``: "reset" (cut, or ended without a word: what the death of its process looks like), "silent" (nothing heard),
    "refused" (an opening failed), "broken" (it sent what it must not), "goodbye" (it said so), "replaced" (by a newer one), "closed" (by us)."""

    kind: Ending
    text: str


class Ends(Protocol):
    """Who has links."""

    settings: Settings

    def now_ms(self) -> int: ...

    def begin_opening(self, link: Link, transport: asyncio.BaseTransport) -> Opening:
        """It is connected; may raise, which ends it unread."""

    def is_open(self, link: Link, opened: Opened) -> None:
        """The other side is proven; may raise to refuse it."""

    def is_lost(self, link: Link, why: Lost) -> None: ...

    def is_gone(self, link: Link) -> None:
        """Its transport is closed; some time after ``is_lost``."""

    def flush_soon(self, link: Link) -> None: ...

    def breathe(self, link: Link) -> None:
        """Calls ``breathed`` in the next turn of the loop."""

    def take(self, link: Link, op: PeerOp, service: int, correlation: int, body: bytes) -> None:
        """A frame of a proven peer."""

    def filled(self, link: Link) -> None:
        """The bound of what may wait for it is reached. Called from within ``send``."""

    def drained(self, link: Link) -> None:
        """What waits for it has become little again."""


class Link(asyncio.Protocol):
    def __init__(self, ends: Ends, *, dialing: bool) -> None:
        self.ends = ends
        self.dialing = dialing
        self.since_ms = ends.now_ms()
        self.opened: Opened | None = None
        self.lost: Lost | None = None
        self.error: HeadraceError | None = None
        """What was wrong, if one side refused the other."""
        self.attached = False
        """Whether its owner takes frames of it."""
        self.counters = Counters()
        """The peer's, once it is known."""
        self.heard_ms = self.since_ms
        self.answered_ms = 0
        """Sending time of the newest own ping that was answered; until then when this side began, whose nonce the proof answers. 0 = no proof yet."""
        self.round_trip_ms = 0
        self.full = self.told_full = False
        self.address = ""
        self._transport: asyncio.Transport | None = None
        self._opening: Opening | None = None
        self._buffer = bytearray()
        self._preamble_seen = dialing
        self._frame_bytes_max = limits.PEER_FRAME_BYTES_MAX_BEFORE_PROOF
        self._read_bytes = 0
        """Since it last let others go first."""
        self._breathing = self._held = False
        self._goodbye: HeadraceError | None = None
        self._urgent: list[bytes] = []
        self._out: deque[Sequence[bytes]] = deque()
        self._out_bytes = 0
        self._blocked = False
        self._silent_beats = 0
        self._ping = 0
        self._pings: deque[tuple[int, int]] = deque(maxlen=PINGS_MAX)

    # ------------------------------------------------------------ the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        if self.lost is not None:
            transport.abort()
            return
        self._transport = transport
        peername = transport.get_extra_info("peername")
        self.address = f"{peername[0]}:{peername[1]}" if isinstance(peername, tuple) else str(peername)
        transport.set_write_buffer_limits(high=min(limits.PEER_WRITE_BYTES_HIGH, self.ends.settings.queue_bytes_max // 2))
        try:
            self._opening = self.ends.begin_opening(self, transport)
        except HeadraceError as e:
            self.end(Lost("refused", str(e)))
            return
        first = self._opening.begin()
        if first:
            transport.write(first)

    def data_received(self, data: bytes) -> None:
        if self.lost is not None:
            return
        size = len(data)
        self._silent_beats = 0
        self.heard_ms = self.ends.now_ms()
        self.counters.bytes_in += size
        self._read_bytes += size
        self._read(data)
        if self._read_bytes >= limits.PEER_READ_BYTES_PER_TICK and not self._breathing and self.lost is None:
            self._breathing = True
            self._reading()
            self.ends.breathe(self)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._goodbye is not None:
            self.end(Lost("goodbye", str(self._goodbye)))
        else:
            self.end(Lost("reset", f"the connection ended without a word{f': {exc}' if exc else ''}"))
        self.ends.is_gone(self)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self.flush()

    # ------------------------------------------------------------ reading

    def _read(self, data: bytes) -> None:
        buffer = self._buffer
        try:
            if buffer:
                buffer += data
                with memoryview(buffer) as view:
                    read = self._parse(view)
                del buffer[:read]
            else:
                with memoryview(data) as view:
                    read = self._parse(view)
                    if read < len(data):
                        buffer += view[read:]
            if self.opened is None and len(buffer) > limits.PEER_FRAME_BYTES_MAX_BEFORE_PROOF + _HEAD:
                raise TooLarge("more was sent than an opening has")
        except HeadraceError as e:
            self.fail(e)
        except Exception as e:
            _log.exception("what a peer sent could not be handled")
            self.fail(Invariant(f"the broker failed on what a peer sent: {e!r}"))

    def _parse(self, view: memoryview) -> int:
        """Handles whole frames and says how many bytes they had."""
        at, end = 0, len(view)
        if not self._preamble_seen:
            begin = bytes(view[: len(PREAMBLE)])
            if not PREAMBLE.startswith(begin):
                check_preamble(begin)
            if len(begin) < len(PREAMBLE):
                return 0
            self._preamble_seen = True
            at = len(PREAMBLE)
        while end - at >= _HEAD and not self._held and self.lost is None:
            length, op, flags, service, correlation = HEADER.unpack_from(view, at)
            if not 8 <= length <= self._frame_bytes_max:
                raise (TooLarge if length > 8 else Malformed)(f"a frame's length is {length}; it lies in 8..{self._frame_bytes_max} here")
            stop = at + 4 + length
            if stop > end:
                break
            self.counters.frames_in += 1
            if self.opened is None:
                self._open(op, bytes(view[at:stop]))
            else:
                self._take(op, flags, service, correlation, bytes(view[at + _HEAD : stop]))
            at = stop
        return at

    def _open(self, op: int, frame: bytes) -> None:
        opening = self._opening
        assert opening is not None and self._transport is not None
        answer = opening.receive(op, frame)
        if opening.opened is not None:
            self.opened = opening.opened
            self.answered_ms = self.since_ms
            self._opening = None
            self._frame_bytes_max = self.ends.settings.frame_bytes_max
        if answer:
            self._transport.write(answer)
        if self.opened is not None:
            self.ends.is_open(self, self.opened)

    def _take(self, op: int, flags: int, service: int, correlation: int, body: bytes) -> None:
        if not self.attached:
            raise Malformed("a probe sends nothing but the opening")
        if op == PeerOp.PING:
            self.say(wire.pong(correlation))
        elif op == PeerOp.PONG:
            self._answered(correlation)
        elif op == PeerOp.GOODBYE:
            self._goodbye = wire.parse_failure(body)
        elif op in (PeerOp.BATCH, PeerOp.REQUEST, PeerOp.REPLY, PeerOp.ERROR):
            if flags & _LZ4:
                if op not in COMPRESSIBLE:
                    raise Malformed(f"a frame of opcode {op:#04x} is never compressed")
                body = wire.expanded(body, self._frame_bytes_max)
            self.ends.take(self, PeerOp(op), service, correlation, body)
        else:
            raise Malformed(f"opcode {op:#04x} is not expected on an open connection between brokers")

    def _answered(self, number: int) -> None:
        pings = self._pings
        while pings and pings[0][0] <= number:
            sent, sent_ms = pings.popleft()
            if sent == number:
                self.answered_ms = sent_ms
                self.round_trip_ms = self.heard_ms - sent_ms

    def hold(self) -> None:
        """Nothing more is read of it, so that in the end its queue fills up over there. While this lasts silence is not held against it."""
        self._held = True
        self._reading()

    def release(self) -> None:
        """The opposite; what was left unread comes in the next turn."""
        if self._held:
            self._held = False
            self._silent_beats = 0
            self._breathing = True
            self.ends.breathe(self)

    def breathed(self) -> None:
        """A turn of the loop has passed."""
        self._breathing = False
        self._read_bytes = 0
        if self.lost is None and not self._held:
            if self._buffer:
                self._read(b"")
            self._reading()

    def _reading(self) -> None:
        transport = self._transport
        if transport is None or self.lost is not None:
            return
        if self._held or self._breathing:
            transport.pause_reading()
        else:
            transport.resume_reading()

    # ------------------------------------------------------------ sending

    @property
    def queued_bytes(self) -> int:
        """What waits to be sent."""
        return self._out_bytes + (0 if self._transport is None else self._transport.get_write_buffer_size())

    def say(self, frame: bytes) -> None:
        """A small frame, before all that waits."""
        self._urgent.append(frame)
        self.ends.flush_soon(self)

    def send(self, op: PeerOp, parts: Sequence[bytes], *, service: int = 0, correlation: int = 0) -> None:
        """Queues one frame. Room is the caller's affair; ``TooLarge`` if no frame holds it."""
        nbytes = sum(map(len, parts))
        settings, flags = self.ends.settings, 0
        if nbytes + 8 > settings.frame_bytes_max:
            raise TooLarge(f"a frame of {nbytes} bytes between brokers; at most {settings.frame_bytes_max - 8} fit", hint="split it into several")
        if nbytes >= settings.compress_bytes_min and self.opened is not None and LZ4 in self.opened.features and op in COMPRESSIBLE:
            smaller = wire.compressed(parts)
            if smaller is not None:
                self.counters.compressed_bytes_saved += nbytes - len(smaller)
                parts, nbytes, flags = (smaller,), len(smaller), int(PeerFlag.LZ4)
        self._out.append((wire.head(op, nbytes, flags=flags, service=service, correlation=correlation), *parts))
        self._out_bytes += nbytes + _HEAD
        self.ends.flush_soon(self)
        if not self.full and self.queued_bytes >= settings.queue_bytes_max:
            self.full = True
            self.counters.times_full += 1
            self.ends.filled(self)

    def flush(self) -> None:
        """Writes what waits, as much as the transport takes, in one write."""
        transport = self._transport
        if transport is None or self.lost is not None:
            return
        counters, pieces = self.counters, self._urgent
        self._urgent = []
        counters.frames_out += len(pieces)
        nbytes = sum(map(len, pieces))
        out = self._out
        while out and not self._blocked and nbytes < limits.PEER_WRITE_BYTES_HIGH:
            frame = out.popleft()
            size = sum(map(len, frame))
            self._out_bytes -= size
            nbytes += size
            pieces.extend(frame)
            counters.frames_out += 1
        if pieces:
            counters.bytes_out += nbytes
            counters.writes_out += 1
            if nbytes <= JOIN_BYTES_MAX:
                transport.write(b"".join(pieces))
            else:
                transport.writelines(pieces)
        if out and not self._blocked:
            self.ends.flush_soon(self)
        queued, most = self.queued_bytes, self.ends.settings.queue_bytes_max
        if self.full and queued <= most // 4:
            self.ends.drained(self)
        elif queued > 2 * most:
            self.end(Lost("broken", f"it asks and does not read the answers: {queued} bytes wait for it"))

    # ------------------------------------------------------------ beats and the end

    def beat(self) -> None:
        """Called every ``beat_ms``."""
        if self.lost is not None:
            return
        settings = self.ends.settings
        if not self.attached:
            age_ms = self.ends.now_ms() - self.since_ms
            if age_ms > settings.opening_ms:
                self.end(Lost("silent", f"it has not proven who it is within {settings.opening_ms} ms"))
            return
        if not self._held:
            self._silent_beats += 1
        if self._silent_beats > settings.silent_beats_max:
            self.end(Lost("silent", f"nothing was heard of it for {self.ends.now_ms() - self.heard_ms} ms"))
            return
        self._ping += 1
        self._pings.append((self._ping, self.ends.now_ms()))
        self._urgent.append(wire.ping(self._ping))
        self.flush()

    def fail(self, error: HeadraceError) -> None:
        """It did what it must not: it is told, and the connection ends."""
        if self.lost is not None or self._transport is None:
            return
        self.error = error
        last = refusal(error) if self.opened is None else wire.failure(PeerOp.GOODBYE, error)
        self._finish(last, Lost("refused" if self.opened is None else "broken", str(error)))

    def close(self, why: HeadraceError, lost: Lost) -> None:
        """Says goodbye, and ends once what was sent so far has been taken; what found no room in the system's buffers is dropped."""
        self.flush()
        if self.lost is None and self._transport is not None and self.opened is not None:
            self._finish(wire.failure(PeerOp.GOODBYE, why), lost)
        else:
            self.end(lost)

    def _finish(self, last: bytes, lost: Lost) -> None:
        """Ends this side only, at first: with bytes unread a close would be a reset, and the other side might never see why."""
        transport = self._transport
        assert transport is not None
        transport.write(last)
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
        if self._held or self._breathing:
            self._held = self._breathing = False
            transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_S, transport.abort)
        self._end(lost)

    def end(self, lost: Lost) -> None:
        """Ends it at once."""
        if self.lost is None:
            if self._transport is not None:
                self._transport.abort()
            self._end(lost)

    def _end(self, lost: Lost) -> None:
        self.lost = lost
        self._transport = None
        self._opening = None
        self._buffer = bytearray()
        self._urgent.clear()
        self._out.clear()
        self._out_bytes = 0
        self.ends.is_lost(self, lost)
