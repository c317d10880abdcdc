"""MQTT connections whose socket is at one broker and whose session at another: bytes both ways, in the batches of ``peers``.

Owns both ends. At the owner such a connection is an ordinary ``MqttConnection`` with a ``Far`` for its transport; at the edge ``Relayed`` stands for
the machine. Back-pressure is passed on: of the client's socket, of the owner's log, and of the connection between the brokers.

Invariants: F1 a connection ends at both ends, or the conversation between the brokers does, which takes all of them from their owner. F2 what is said
of a connection by one owner is not taken for what another one says: each has a number of its own for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from headrace.core.mqtt.held import NOT_MOVABLE, Held, Moved
from headrace.core.mqtt.resuming import resume
from headrace.core.mqtt.session import Session
from headrace.gateways.mqtt.connection import MqttConnection
from headrace.model.errors import HeadraceError
from headrace.wire import control
from headrace.wire import mqtt_peer as notes

if TYPE_CHECKING:
    from headrace.gateways.mqtt.edge import EdgeConnection
    from headrace.gateways.mqtt.peers import Peers
    from headrace.gateways.mqtt.server import MqttServer

PIECE_BYTES: Final = 256 * 1024
"""Of what is given to another owner, in one note."""


class Far(asyncio.Transport):
    """What a connection writes to whose socket is at another broker."""

    def __init__(self, relays: Relays, peer: str, number: int, address: str) -> None:
        super().__init__({"peername": address})
        self.protocol: MqttConnection
        """Given right after it is made."""
        self.closed = False
        self._relays = relays
        self._peer = peer
        self._number = number

    def write(self, data: Any) -> None:
        machine = self.protocol.machine
        self._say(data, machine.sending.sent if machine.movable else NOT_MOVABLE)

    def _say(self, data: Any, sent: int) -> None:
        if not self.closed:
            answers, sending = self.protocol.machine.answers, self.protocol.machine.sending
            aliases, answers.aliases = answers.aliases, {}
            note = notes.Output(self._number, bytes(data), answers.heard, sent, list(sending.skipped), aliases)
            self._relays.peers.put(self._peer, note, len(data))

    def bound(self, session: Session, begun: int) -> None:
        """The client is accepted."""
        self._relays.peers.put(self._peer, notes.Bound(self._number, session.client_id, session.epoch, begun))

    def refuse(self) -> None:
        """The session is not served here."""
        self._relays.peers.put(self._peer, notes.Astray(self._number))
        self.lost(tell=False)

    def astray(self) -> None:
        """The connection goes on elsewhere. What its machine has to say still was durable before."""
        if not self.closed:
            sending = self.protocol.machine.sending
            self._say(b"".join(sending.out), sending.sent)
            self.refuse()

    def pause_reading(self) -> None:
        self._relays.peers.put(self._peer, notes.Paused(self._number, True))

    def resume_reading(self) -> None:
        self._relays.peers.put(self._peer, notes.Paused(self._number, False))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.lost(tell=True)

    def abort(self) -> None:
        self.close()

    def lost(self, *, tell: bool) -> None:
        """The connection is over; ``tell``: the edge does not know yet."""
        if not self.closed:
            self.closed = True
            if tell:
                self._relays.peers.put(self._peer, notes.Ended(self._number))
            self._relays.forget(self._peer, self._number)
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


class FarConnection(MqttConnection):
    """At the owner: one whose socket is at another broker."""

    def __init__(self, server: MqttServer, id: int) -> None:
        super().__init__(server, id)
        self.machine.astray = self._astray
        self._bound = False
        self._told = 0
        """How far its edge knows that it is answered."""

    def flush(self) -> None:
        far, machine = self._transport, self.machine
        if not isinstance(far, Far) or machine.closed:
            super().flush()
            return
        sending, answers = machine.sending, machine.answers
        if not self._bound and sending.accepted and machine.session is not None:
            self._bound = True
            far.bound(machine.session, sending.begun)
        before = self.bytes_out
        super().flush()
        if self.bytes_out == before and answers.heard != self._told and not machine.closed:
            far.write(b"")
        self._told = answers.heard

    def close(self, error: HeadraceError | None) -> None:
        if error is None and self.machine.movable:  # this broker stops: the next owner goes on
            self.machine.leave()
            self._astray()
        else:
            super().close(error)

    def _astray(self) -> None:
        far = self._transport
        if isinstance(far, Far):
            far.astray()

    def event(self, event: control.Event) -> None:
        """This broker going away is nothing to a client of another: its connection goes on when its session partition moves."""


class Relayed:
    """At the edge: one connection that another broker has."""

    def __init__(self, relays: Relays, number: int, peer: str, connection: EdgeConnection) -> None:
        self.number = number
        self.peer = peer
        self.connection = connection
        self._relays = relays

    def feed(self, data: bytes) -> None:
        """What was read of the client."""
        if data:
            self._relays.peers.put(self.peer, notes.Input(self.number, bytes(data)), len(data))

    def choked(self, on: bool) -> None:
        """The client reads too slowly."""
        self._relays.peers.put(self.peer, notes.Choked(self.number, on))

    def leave(self, reason: int, why: str, reference: str) -> None:
        """The client is to be disconnected; ``ended`` follows."""
        self._relays.peers.put(self.peer, notes.Leave(self.number, reason, why, reference))

    def gone(self) -> None:
        """The client is."""
        if self._relays.edges.pop(self.number, None) is not None:
            self._relays.peers.put(self.peer, notes.Gone(self.number))

    def left(self) -> None:
        """The connection goes on elsewhere."""
        if self._relays.edges.pop(self.number, None) is not None:
            self._relays.peers.put(self.peer, notes.Left(self.number))


class Relays:
    """See the module's head. ``make``: a connection for a client of another broker."""

    def __init__(self, peers: Peers, make: Callable[[], MqttConnection]) -> None:
        self.peers = peers
        self.edges: dict[int, Relayed] = {}
        self.fars: dict[tuple[str, int], Far] = {}
        self._make = make
        self._last = 0
        peers.handlers.update({
            notes.Open: self._open, notes.Input: self._input, notes.Gone: self._gone, notes.Choked: self._choked, notes.Leave: self._leave,
            notes.Rebind: self._rebind, notes.Left: self._left, notes.Bound: self._bound, notes.Astray: self._astray,
            notes.Output: self._output, notes.Ended: self._ended, notes.Paused: self._paused,
        })  # fmt: skip

    def begin(self, peer: str, connection: EdgeConnection, first: bytes) -> Relayed:
        """Has ``peer`` serve a connection that began with ``first``."""
        relayed = self._relayed(peer, connection)
        self.peers.put(peer, notes.Open(relayed.number, connection.peer, first), len(first))
        return relayed

    def go_on(self, peer: str, connection: EdgeConnection, held: Held) -> Relayed:
        """Has ``peer`` serve a connection that another broker had."""
        relayed = self._relayed(peer, connection)
        m = held.moved()
        note = notes.Rebind(
            relayed.number, connection.peer, m.connect, m.client_id, m.epoch, m.begun, m.sent, m.skipped, m.aliases, m.heard
        )  # fmt: skip
        self.peers.put(peer, note, len(m.connect))
        for data, again in ((held.again(), True), (held.fresh(), False)):
            for at in range(0, len(data), PIECE_BYTES):
                piece = data[at : at + PIECE_BYTES]
                self.peers.put(peer, notes.Input(relayed.number, piece, again), len(piece))
        return relayed

    def _relayed(self, peer: str, connection: EdgeConnection) -> Relayed:
        self._last += 1
        relayed = self.edges[self._last] = Relayed(self, self._last, peer, connection)
        return relayed

    def forget(self, peer: str, number: int) -> None:
        self.fars.pop((peer, number), None)

    def lost(self, peer: str) -> None:
        """The conversation with ``peer`` has ended."""
        for key, far in list(self.fars.items()):
            if key[0] == peer:
                if far.protocol.machine.movable:
                    far.protocol.machine.leave()
                far.lost(tell=False)
        for number, relayed in list(self.edges.items()):
            if relayed.peer == peer:
                del self.edges[number]
                relayed.connection.adrift()

    def served(self, partition: int, owner: str) -> None:
        """A session partition has another owner: connections that the last one has, and does not know it, go on there."""
        for relayed in list(self.edges.values()):
            if relayed.peer != owner and relayed.connection.partition == partition:
                relayed.left()
                relayed.connection.adrift()

    def full(self, peer: str, on: bool) -> None:
        """Nothing more is written to ``peer``, nor read for it, for now."""
        for key, far in self.fars.items():
            if key[0] == peer:
                far.protocol.pause_writing() if on else far.protocol.resume_writing()
        for relayed in self.edges.values():
            if relayed.peer == peer:
                relayed.connection.paused("peer", on)

    # ------------------------------------------------------------ at the owner

    def _far(self, peer: str, number: int, address: str) -> Far:
        far = self.fars[peer, number] = Far(self, peer, number, address)
        far.protocol = self._make()
        far.protocol.connection_made(far)
        return far

    def _open(self, peer: str, note: notes.Open) -> None:
        far = self._far(peer, note.connection, note.peer)
        if not far.closed:
            far.protocol.data_received(note.data)

    def _rebind(self, peer: str, note: notes.Rebind) -> None:
        far = self._far(peer, note.connection, note.peer)
        n = note
        moved = Moved(n.connect, n.client_id, n.epoch, n.begun, n.sent, n.skipped, n.aliases, n.heard)
        if not far.closed and not resume(far.protocol.machine, moved):
            far.refuse()

    def _input(self, peer: str, note: notes.Input) -> None:
        far = self.fars.get((peer, note.connection))
        if far is not None:
            machine = far.protocol.machine
            machine.again = note.again
            far.protocol.data_received(note.data)
            machine.again = False

    def _left(self, peer: str, note: notes.Left) -> None:
        far = self.fars.get((peer, note.connection))
        if far is not None:
            far.protocol.machine.leave()
            far.lost(tell=False)

    def _gone(self, peer: str, note: notes.Gone) -> None:
        far = self.fars.get((peer, note.connection))
        if far is not None:
            far.lost(tell=False)

    def _choked(self, peer: str, note: notes.Choked) -> None:
        far = self.fars.get((peer, note.connection))
        if far is not None:
            far.protocol.pause_writing() if note.on else far.protocol.resume_writing()

    def _leave(self, peer: str, note: notes.Leave) -> None:
        far = self.fars.get((peer, note.connection))
        if far is not None:
            far.protocol.machine.fail(note.reason, note.why, note.reference)

    # ------------------------------------------------------------ at the edge

    def _of(self, peer: str, number: int) -> Relayed | None:
        relayed = self.edges.get(number)
        return relayed if relayed is not None and relayed.peer == peer else None

    def _output(self, peer: str, note: notes.Output) -> None:
        relayed = self._of(peer, note.connection)
        if relayed is not None:
            relayed.connection.held.progress(note.heard, note.sent, note.skipped, note.aliases)
            relayed.connection.said(note.data)

    def _bound(self, peer: str, note: notes.Bound) -> None:
        relayed = self._of(peer, note.connection)
        if relayed is not None:
            relayed.connection.bound(note.client_id, note.epoch, note.begun)

    def _astray(self, peer: str, note: notes.Astray) -> None:
        relayed = self._of(peer, note.connection)
        if relayed is not None:
            del self.edges[note.connection]
            relayed.connection.adrift()

    def _ended(self, peer: str, note: notes.Ended) -> None:
        relayed = self._of(peer, note.connection)
        if relayed is not None:
            del self.edges[note.connection]
            relayed.connection.ended()

    def _paused(self, peer: str, note: notes.Paused) -> None:
        relayed = self._of(peer, note.connection)
        if relayed is not None:
            relayed.connection.paused("owner", note.on)
