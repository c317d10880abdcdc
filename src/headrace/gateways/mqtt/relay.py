"""MQTT connections whose socket is at one broker and whose session at another: bytes both ways, in the batches of ``peers``.

Owns both ends. At the owner such a connection is an ordinary ``MqttConnection`` with a ``Far`` for its transport; at the edge ``Relayed`` stands for
the machine. Back-pressure is passed on: of the client's socket, of the owner's log, and of the connection between the brokers.

Invariant: F1 a connection ends at both ends, or the conversation between the brokers does, which ends all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.gateways.mqtt.connection import MqttConnection
from headrace.wire import control
from headrace.wire import mqtt_peer as notes

if TYPE_CHECKING:
    from headrace.gateways.mqtt.edge import EdgeConnection
    from headrace.gateways.mqtt.peers import Peers


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
        if not self.closed and data:
            self._relays.peers.put(self._peer, notes.Output(self._number, bytes(data)), len(data))

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

    def event(self, event: control.Event) -> None:
        """This broker going away is nothing to a client of another: its connection ends when its session partition moves."""


class Relayed:
    """At the edge: one connection that another broker has."""

    def __init__(self, relays: Relays, peer: str, connection: EdgeConnection) -> None:
        self.peer = peer
        self.connection = connection
        self._relays = relays

    def feed(self, data: bytes) -> None:
        """What was read of the client."""
        if data:
            self._relays.peers.put(self.peer, notes.Input(self.connection.id, bytes(data)), len(data))

    def choked(self, on: bool) -> None:
        """The client reads too slowly."""
        self._relays.peers.put(self.peer, notes.Choked(self.connection.id, on))

    def leave(self, reason: int, why: str, reference: str) -> None:
        """The client is to be disconnected; ``ended`` follows."""
        self._relays.peers.put(self.peer, notes.Leave(self.connection.id, reason, why, reference))

    def gone(self) -> None:
        """The client is."""
        if self._relays.edges.pop(self.connection.id, None) is not None:
            self._relays.peers.put(self.peer, notes.Gone(self.connection.id))


class Relays:
    """See the module's head. ``make``: a connection for a client of another broker."""

    def __init__(self, peers: Peers, make: Callable[[], MqttConnection]) -> None:
        self.peers = peers
        self.edges: dict[int, Relayed] = {}
        self.fars: dict[tuple[str, int], Far] = {}
        self._make = make
        peers.handlers.update({
            notes.Open: self._open, notes.Input: self._input, notes.Gone: self._gone, notes.Choked: self._choked, notes.Leave: self._leave,
            notes.Output: self._output, notes.Ended: self._ended, notes.Paused: self._paused,
        })  # fmt: skip

    def begin(self, peer: str, connection: EdgeConnection, first: bytes) -> Relayed:
        """Has ``peer`` serve a connection that began with ``first``."""
        relayed = self.edges[connection.id] = Relayed(self, peer, connection)
        self.peers.put(peer, notes.Open(connection.id, connection.peer, first), len(first))
        return relayed

    def forget(self, peer: str, number: int) -> None:
        self.fars.pop((peer, number), None)

    def lost(self, peer: str) -> None:
        """The conversation with ``peer`` has ended."""
        for key, far in list(self.fars.items()):
            if key[0] == peer:
                far.lost(tell=False)
        for number, relayed in list(self.edges.items()):
            if relayed.peer == peer:
                del self.edges[number]
                relayed.connection.ended()

    def full(self, peer: str, on: bool) -> None:
        """Nothing more is written to ``peer``, nor read for it, for now."""
        for key, far in self.fars.items():
            if key[0] == peer:
                far.protocol.pause_writing() if on else far.protocol.resume_writing()
        for relayed in self.edges.values():
            if relayed.peer == peer:
                relayed.connection.paused(on)

    # ------------------------------------------------------------ at the owner

    def _open(self, peer: str, note: notes.Open) -> None:
        far = self.fars[peer, note.connection] = Far(self, peer, note.connection, note.peer)
        far.protocol = self._make()
        far.protocol.connection_made(far)
        if not far.closed:
            far.protocol.data_received(note.data)

    def _input(self, peer: str, note: notes.Input) -> None:
        far = self.fars.get((peer, note.connection))
        if far is not None:
            far.protocol.data_received(note.data)

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
            relayed.connection.said(note.data)

    def _ended(self, peer: str, note: notes.Ended) -> None:
        relayed = self._of(peer, note.connection)
        if relayed is not None:
            del self.edges[note.connection]
            relayed.connection.ended()

    def _paused(self, peer: str, note: notes.Paused) -> None:
        relayed = self._of(peer, note.connection)
        if relayed is not None:
            relayed.connection.paused(note.on)
