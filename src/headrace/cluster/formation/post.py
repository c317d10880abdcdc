"""Messages of the formation between brokers that are known by name and address: each in an envelope, over visits.

Owns who is visited, which visit belongs to which name, and what is told of those that cannot be reached. Does not know what is said, nor when: the
machine greets, repeats and gives up.

I1 one dial to a name at a time, and no name waits for another. I2 nothing is taken from an envelope that is for somebody else, or whose sender
changes within a visit. I3 what waits for a dial is bounded; the oldest goes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from headrace.cluster.transport import Lost, Transport, Visit
from headrace.core.formation.messages import MESSAGE_BYTES_MAX, AnyMessage, decode, encode
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.config import Address, parse_address
from headrace.model.errors import Conflict, HeadraceError, Malformed

_log = get_logger("formation")

WAITING_MAX: Final = 8
WHO_S: Final = 5.0
ENVELOPE_BYTES_MAX: Final = MESSAGE_BYTES_MAX + 256

_Name = Annotated[str, Meta(min_length=1, max_length=63)]


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """Who speaks to whom; the body is a message of ``core.formation``."""

    to: Annotated[str, Meta(max_length=63)]
    """"" = whoever is there: he answers with his name and an empty body."""
    sender: _Name
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Envelope)


def parse_envelope(data: bytes) -> Envelope:
    """``Malformed`` if it is none."""
    if len(data) > ENVELOPE_BYTES_MAX:
        raise Malformed(f"a message about the formation has at most {ENVELOPE_BYTES_MAX} bytes, this one has {len(data)}")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"this is no message about the formation: {e}") from None


class _Line:
    """What is open to one name."""

    __slots__ = ("address", "came", "dial", "paid", "trouble", "waiting")

    def __init__(self) -> None:
        self.paid: Visit | None = None
        self.came: Visit | None = None
        self.address = ""
        """Where the paid one was dialed."""
        self.dial: asyncio.Task[None] | None = None
        self.waiting: deque[bytes] = deque(maxlen=WAITING_MAX)
        self.trouble = ""

    @property
    def idle(self) -> bool:
        return self.paid is None and self.came is None and self.dial is None


class Post:
    """See the module's head. Implements ``transport.Host``."""

    def __init__(self, name: str, transport: Transport, heard: Callable[[str, AnyMessage], None], lost: Callable[[str], None]) -> None:
        self._name = name
        self._transport = transport
        self._heard = heard
        self._lost = lost
        self._lines: dict[str, _Line] = {}
        self._names: dict[Visit, str] = {}
        self._asked: dict[Visit, asyncio.Future[str]] = {}
        """Visits to addresses of which no name is known."""
        self._stopped = False
        transport.on_visit(self)

    def send(self, to: str, address: str, message: AnyMessage) -> None:
        """Over a visit that is open, else by a new one to ``address``; "" = only if one is open."""
        data = _encode(Envelope(to, self._name, encode(message)))
        line = self._line(to)
        if line is None or self._stopped:
            return
        if line.paid is not None and address and line.address != address:
            paid, line.paid = line.paid, None
            self._names.pop(paid, None)
            paid.close()
        for visit in (line.paid, line.came):
            if visit is not None and visit.send(data):
                return
        if not address:
            return
        line.waiting.append(data)
        if line.dial is None:
            line.dial = asyncio.get_running_loop().create_task(self._dial(to, line, address), name=f"visit to {to}")

    async def who(self, at: Address) -> str:
        """The name of the broker at that address, this one's own if it is this one. OSError, TimeoutError and ``HeadraceError`` say why there is
        none."""
        async with asyncio.timeout(WHO_S):
            try:
                visit = await self._transport.visit(at)
            except Conflict:  # both ends are of one data directory
                return self._name
            answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            self._asked[visit] = answered
            try:
                visit.send(_encode(Envelope("", self._name, b"")))
                return await answered
            finally:
                del self._asked[visit]
                visit.close()

    def troubles(self) -> dict[str, str]:
        """Why names cannot be reached, as far as that is known."""
        return {name: line.trouble for name, line in sorted(self._lines.items()) if line.trouble}

    async def stop(self) -> None:
        self._stopped = True
        for line in self._lines.values():
            if line.dial is not None:
                line.dial.cancel()
                with suppress(asyncio.CancelledError):
                    await line.dial
        for visit in list(self._names):
            visit.close()

    # ------------------------------------------------------------ visits

    def came(self, visit: Visit) -> None:
        """It has no name before its first envelope."""

    def said(self, visit: Visit, body: bytes) -> None:
        envelope = parse_envelope(body)
        sender = envelope.sender
        if not envelope.to:
            visit.send(_encode(Envelope(sender, self._name, b"")))
            return
        asked = self._asked.get(visit)
        if asked is not None:
            if not asked.done():
                asked.set_result(sender)
            return
        if envelope.to != self._name:
            raise Malformed(f"this is {self._name}, not {envelope.to}", hint="correct the addresses in the cluster config")
        if sender == self._name:
            raise Malformed(f"another broker is called {sender} too", hint="names in a cluster config are given once: correct broker.name")
        known = self._names.get(visit)
        if known is not None and known != sender:
            raise Malformed(f"this is said by {sender}, not {known}", hint="correct the addresses in the cluster config")
        message = decode(envelope.body)
        line = self._line(sender)
        if line is None:
            return
        if known is None:
            if visit.dialed:
                return  # it was given up for another address
            before, line.came = line.came, visit
            self._names[visit] = sender
            if before is not None:
                self._names.pop(before, None)
                before.close()
        line.trouble = ""
        self._heard(sender, message)

    def ended(self, visit: Visit, why: Lost) -> None:
        asked = self._asked.get(visit)
        if asked is not None and not asked.done():
            asked.set_exception(ConnectionError(why.text))
        name = self._names.pop(visit, None)
        line = self._lines.get(name) if name is not None else None
        if name is None or line is None:
            return
        if line.paid is visit:
            line.paid = None
        if line.came is visit:
            line.came = None
        if why.kind != "closed":
            line.trouble = why.text
        if line.paid is None and line.came is None and not self._stopped:
            self._lost(name)

    async def _dial(self, name: str, line: _Line, address: str) -> None:
        try:
            visit = await self._transport.visit(parse_address(address))
        except (OSError, HeadraceError) as e:
            text = f"{e}; {e.hint}" if isinstance(e, HeadraceError) and e.hint else str(e) or "it does not answer"
            if text != line.trouble:
                level = "warning" if isinstance(e, HeadraceError) and not e.retriable else "debug"
                getattr(_log, level)("%s cannot be reached at %s: %s", name, address, text)
            line.trouble = text
            line.waiting.clear()
            return
        finally:
            line.dial = None
        line.paid, line.address, line.trouble = visit, address, ""
        self._names[visit] = name
        while line.waiting:
            visit.send(line.waiting.popleft())

    def _line(self, name: str) -> _Line | None:
        line = self._lines.get(name)
        if line is None:
            if len(self._lines) >= limits.PEERS_MAX:
                for other in [n for n, known in self._lines.items() if known.idle]:
                    del self._lines[other]
                if len(self._lines) >= limits.PEERS_MAX:
                    return None
            line = self._lines[name] = _Line()
        return line
