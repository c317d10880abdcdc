"""The simulated network: listeners, connections in order and without loss (as TCP), links that are slow, cut or half dead.

Owns who listens where, what is on the wire, and what each side of a broken connection sees. Bytes of one direction of one connection arrive in order;
a cut link keeps them until it heals, as retransmission would; a machine that lost its power answers nothing.
Invariants: I1 what arrives was sent, once, in order. I2 a transport tells its protocol ``connection_lost`` exactly once. I3 nothing reaches a dead
machine.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from headrace.sim.chance import Chance
from headrace.sim.loop import Machine, SimLoop

CONNECT_TIMEOUT_S: Final = 5.0
PIECE_BYTES: Final = 256 * 1024
"""A read gives at most so much."""
HIGH_BYTES: Final = 64 * 1024


def _reset() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "connection reset by peer")


class Link:
    """How bytes travel from one machine to another, for a run."""

    __slots__ = ("cut", "delay_s", "split", "spread_s")

    def __init__(self) -> None:
        self.delay_s = self.spread_s = 0.0
        """What every byte takes, and up to how much more."""
        self.split = 0.0
        """How often what was written at once arrives in pieces."""
        self.cut = False


class Listener:
    """Stands for the listening socket as well."""

    def __init__(self, network: "Network", machine: Machine, factory: Callable[[], asyncio.BaseProtocol], port: int) -> None:
        self.network = network
        self.machine = machine
        self.factory = factory
        self.port = port

    @property
    def sockets(self) -> "tuple[Listener, ...]":
        return (self,)

    def getsockname(self) -> tuple[str, int]:
        return (self.machine.name, self.port)

    def is_serving(self) -> bool:
        return self.network.listeners.get((self.machine.name, self.port)) is self

    def close(self) -> None:
        if self.is_serving():
            del self.network.listeners[self.machine.name, self.port]

    async def wait_closed(self) -> None:
        pass

    def get_loop(self) -> SimLoop:
        return self.network.loop

    async def start_serving(self) -> None:
        """It does from the beginning."""

    async def serve_forever(self) -> None:
        try:
            await self.network.loop.create_future()
        finally:
            self.close()

    async def __aenter__(self) -> "Listener":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class SimTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: "Network", machine: Machine, remote: Machine, port: int, number: int) -> None:
        super().__init__()
        self.network = network
        self.machine = machine
        self.remote = remote
        self.number = number
        self.link = network.link(machine.name, remote.name)
        self.peer: SimTransport | None = None
        self.lost = False
        self.vanished = False
        """Its machine lost its power: the other side hears nothing of it."""
        self._port = port
        self._protocol: asyncio.Protocol | None = None
        self._made = False
        self._closing = self._eof_sent = False
        self._reading = True
        self._inbox: deque[bytes | None] = deque()
        """Arrived and not read; None is the end."""
        self._draining = False
        self._held: list[bytes | None] = []
        """Sent while the link was cut."""
        self._unread = 0
        """Bytes that were written here and not yet read over there."""
        self._high, self._low = HIGH_BYTES, HIGH_BYTES // 4
        self._paused = False
        self._arrives = 0.0

    # ------------------------------------------------------------ the protocol's side

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)
        self._made = True
        protocol.connection_made(self)
        if self._inbox and not self._draining:
            self._drain_soon()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return (self.remote.name, self._port)
        return (self.machine.name, self._port) if name == "sockname" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing or self.lost or self.vanished

    def is_reading(self) -> bool:
        return self._reading and not self.is_closing()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._inbox and not self._draining:
            self._drain_soon()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self._unread

    def write(self, data: Any) -> None:
        if self.lost or self._closing or self._eof_sent or not data:
            return
        self._send(bytes(data))
        if self._unread > self._high and not self._paused:
            self._paused = True
            assert self._protocol is not None
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not (self.lost or self._closing or self._eof_sent):
            self._eof_sent = True
            self._send(None)

    def close(self) -> None:
        """What was written still arrives, then both sides end."""
        if not (self.lost or self._closing):
            self._closing = True
            if not self._eof_sent:
                self._eof_sent = True
                self._send(None)
            self.network.loop.post(self.machine, 0.0, self.lose, None)

    def abort(self) -> None:
        if not self.lost:
            self.reset_peer()
            self._closing = True
            self.network.loop.post(self.machine, 0.0, self.lose, None)

    def lose(self, error: Exception | None) -> None:
        """The end, for this side."""
        if self.lost or not self.machine.alive:
            return
        self.lost = True
        self.network.forget(self)
        self._inbox.clear()
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    # ------------------------------------------------------------ the wire's side

    def reset_peer(self) -> None:
        """The other side sees a reset, when the link lets it."""
        peer = self.peer
        if peer is not None and not peer.lost and not self.link.cut:
            self.network.loop.post(peer.machine, self._delay(), peer.lose, _reset())

    def _send(self, data: bytes | None) -> None:
        self._unread += len(data or b"")
        if self.link.cut:
            self._held.append(data)
        elif data is None or not self.link.split or len(data) < 2 or not self.network.chance.happens(self.link.split):
            self._launch(data)
        else:
            at = self.network.chance.randrange(1, len(data))
            self._launch(data[:at])
            self._launch(data[at:])

    def heal(self) -> None:
        held, self._held = self._held, []
        for data in held:
            self._launch(data)

    def _delay(self) -> float:
        return self.link.delay_s + self.link.spread_s * self.network.chance.random()

    def _launch(self, data: bytes | None) -> None:
        loop, link = self.network.loop, self.link
        now_s = loop.time()
        arrives = now_s + (link.delay_s + link.spread_s * self.network.chance.random())
        if arrives > self._arrives:
            self._arrives = arrives
        peer = self.peer
        if peer is None:
            return
        if peer.machine.alive:
            loop.post(peer.machine, self._arrives - now_s, peer.arrived, data)
        elif self.network.machines[peer.machine.name].alive:  # another process of that name knows nothing of this connection
            loop.post(self.machine, 2 * self._delay(), self.lose, _reset())

    def arrived(self, data: bytes | None) -> None:
        if self.vanished or self.lost:
            return
        if self._closing:
            if self.peer is not None and data is not None:
                self.reset_peer()  # bytes for somebody who has closed
            return
        self._inbox.append(data)
        if self._made and self._reading and not self._draining:
            self._drain()

    def _drain_soon(self) -> None:
        self._draining = True
        self.network.loop.post(self.machine, 0.0, self._drain)

    def _drain(self) -> None:
        self._draining = False
        while self._inbox and self._reading and not self.lost and not self._closing:
            data = self._inbox.popleft()
            assert self._protocol is not None
            if data is None:
                self.network.note(self, "end", b"")
                if not self._protocol.eof_received():
                    self.close()
                return
            if len(data) > PIECE_BYTES:
                self._inbox.appendleft(data[PIECE_BYTES:])
                data = data[:PIECE_BYTES]
            self.network.note(self, "arrives", data)
            if self.peer is not None:
                self.peer.was_read(len(data))
            self._protocol.data_received(data)

    def was_read(self, nbytes: int) -> None:
        self._unread -= nbytes
        if self._paused and self._unread <= self._low and not self.lost:
            self.network.loop.post(self.machine, 0.0, self._writable)

    def _writable(self) -> None:
        if self._paused and self._unread <= self._low and not self.lost:
            self._paused = False
            assert self._protocol is not None
            self._protocol.resume_writing()


class Network:
    """See the module's head. One per loop."""

    def __init__(self, loop: SimLoop, chance: Chance) -> None:
        self.loop = loop
        self.chance = chance
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.machines: dict[str, Machine] = {}
        self.was_cut = False
        """Whether any link ever was."""
        """By the name others connect to; the newest of that name."""
        self._links: dict[tuple[str, str], Link] = {}
        self._transports: dict[int, SimTransport] = {}
        self._shape = 0.0001, 0.0001, 0.0
        self._number = 0
        self._port = 40_000
        loop.network = self

    def link(self, source: str, target: str) -> Link:
        found = self._links.get((source, target))
        if found is None:
            found = self._links[source, target] = Link()
            found.delay_s, found.spread_s, found.split = self._shape
        return found

    def shape(self, delay_s: float, spread_s: float, split: float) -> None:
        """Every link, from now on."""
        self._shape = delay_s, spread_s, split
        for link in self._links.values():
            link.delay_s, link.spread_s, link.split = self._shape

    @property
    def whole(self) -> bool:
        """Whether no link is cut."""
        return not any(link.cut for link in self._links.values())

    # ------------------------------------------------------------ faults

    def cut(self, source: str, target: str) -> None:
        """Nothing from ``source`` arrives at ``target`` until ``heal``."""
        self.link(source, target).cut = self.was_cut = True
        self.loop.trace.note("network", "cut", f"{source} -> {target}")

    def heal(self, source: str, target: str) -> None:
        link = self.link(source, target)
        if link.cut:
            link.cut = False
            self.loop.trace.note("network", "heal", f"{source} -> {target}")
            for transport in list(self._transports.values()):
                if transport.link is link:
                    transport.heal()

    def heal_all(self) -> None:
        for source, target in list(self._links):
            self.heal(source, target)

    def break_connections(self, machine: str, other: str = "") -> None:
        """Every connection of that machine (or those with the other only) is reset on both sides."""
        for transport in list(self._transports.values()):
            ends = (transport.machine.name, transport.remote.name)
            if machine in ends and (not other or other in ends):
                self.loop.post(transport.machine, transport._delay(), transport.lose, _reset())

    def ended(self, machine: Machine, *, silently: bool) -> None:
        """A machine died: its peers are told by its system, or never."""
        for key, listener in list(self.listeners.items()):
            if listener.machine is machine:
                del self.listeners[key]
        for transport in list(self._transports.values()):
            if transport.machine is machine:
                if not silently:
                    transport.reset_peer()
                transport.vanished = True
                self.forget(transport)

    # ------------------------------------------------------------ connecting

    def listen(self, machine: Machine, factory: Callable[[], asyncio.BaseProtocol], host: str | None, port: int | None) -> Listener:
        if not port:
            self._port += 1
            port = self._port
        if (machine.name, port) in self.listeners:
            raise OSError(errno.EADDRINUSE, f"port {port} of {machine.name} is in use")
        listener = self.listeners[machine.name, port] = Listener(self, machine, factory, port)
        return listener

    async def connect(
        self, machine: Machine, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[SimTransport, asyncio.BaseProtocol]:
        target = self.machines.get(host)
        if target is None:
            known = ", ".join(sorted(self.machines))
            raise OSError(
                errno.EHOSTUNREACH,
                f"the simulated network has no machine {host!r} (there are {known}) and no way to the real one: connect to the url that the "
                "simulation gives, and run stand-ins for other services as machines of it",
            )
        there, back = self.link(machine.name, host), self.link(host, machine.name)
        await asyncio.sleep(there.delay_s + back.delay_s + there.spread_s * self.chance.random())
        if there.cut or back.cut:
            await asyncio.sleep(CONNECT_TIMEOUT_S)
            raise TimeoutError(errno.ETIMEDOUT, f"{host} does not answer")
        listener = self.listeners.get((host, port))
        if listener is None or not listener.machine.alive:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nothing listens on port {port} of {host}")
        self._number += 1
        number = self._number
        ours = SimTransport(self, machine, listener.machine, port, 2 * number)
        theirs = SimTransport(self, listener.machine, machine, port, 2 * number + 1)
        ours.peer, theirs.peer = theirs, ours
        self._transports[ours.number], self._transports[theirs.number] = ours, theirs
        self.loop.trace.note(machine.name, "connects", host)
        protocol = factory()
        self.loop.post(theirs.machine, 0.0, self._accept, listener, theirs)
        ours.begin(protocol)
        return ours, protocol

    @staticmethod
    def _accept(listener: Listener, transport: SimTransport) -> None:
        if not transport.lost:
            transport.begin(listener.factory())

    def forget(self, transport: SimTransport) -> None:
        self._transports.pop(transport.number, None)

    def note(self, transport: SimTransport, what: str, data: bytes) -> None:
        text = f"{len(data)} bytes from {transport.remote.name}" if data else f"from {transport.remote.name}"
        self.loop.trace.note(transport.machine.name, what, text, data)
