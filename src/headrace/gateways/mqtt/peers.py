"""The other brokers of the cluster, as MQTT here sees them: who can be spoken to, and one batch a peer and tick of what is said.

Owns the beginning of each conversation. Both sides say ``Hello`` after each connection and each start, and answer it; what is said to a peer between
the loss of a connection and the next Hello is not sent.

Invariant: E1 a peer takes everything after a Hello, in order and whole, or the conversation ends and ``lost`` is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from headrace.model.cluster import BrokerId
from headrace.wire import mqtt_peer as notes
from headrace.wire.peer import Introduction, Service

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.cluster.transport import Transport
    from headrace.cluster.transport.link import Lost

NOTE_BYTES = 64
"""What a note counts for beside its data."""


class Listening(Protocol):
    """Who is told of peers."""

    def met(self, peer: str) -> None:
        """A conversation has begun: nothing that was said before holds."""

    def lost(self, peer: str) -> None:
        """It has ended."""

    def heard(self, peer: str) -> None:
        """All of one batch was taken."""

    def full(self, peer: str, on: bool) -> None:
        """More is said to it than it takes, or no longer."""


class _Batch:
    """What is said to one peer in this tick; a ``broker.sink.Written``."""

    def __init__(self, transport: Transport, peer: BrokerId) -> None:
        self.dirty = False
        self.notes: list[notes.Note] = []
        self.sizes: list[int] = []
        self._transport = transport
        self._peer = peer

    def flush(self) -> None:
        while self.notes:
            count = nbytes = 0
            for size in self.sizes:
                if count and nbytes + size > notes.BATCH_BYTES_MAX:
                    break
                count += 1
                nbytes += size
            if not self._transport.send(self._peer, Service.MQTT, notes.encode(self.notes[:count])):
                return  # it waits until the peer has drained
            del self.notes[:count], self.sizes[:count]


class Peers:
    """See the module's head. ``handlers``: what takes each kind of note."""

    def __init__(self, broker: Broker, told: Listening) -> None:
        assert broker.cluster is not None
        self.broker = broker
        self.handlers: dict[type, Callable[[str, Any], None]] = {}
        self._cluster = broker.cluster
        self._transport = broker.cluster.transport
        self._told = told
        self._batches: dict[str, _Batch] = {}
        """Of those with whom there is a conversation."""
        self._incarnations: dict[str, str] = {}

    def start(self) -> None:
        """From now on others are heard."""
        self._cluster.gateway = self._take
        self._transport.watch(self)
        for view in self._transport.view():
            if view.connected:
                self._hello(view.broker, answer=False)

    def __contains__(self, peer: str) -> bool:
        return peer in self._batches

    def __iter__(self) -> Any:
        return iter(list(self._batches))

    def incarnation(self, peer: str) -> str:
        """Of the life of ``peer`` with which there is a conversation."""
        return self._incarnations.get(peer, "")

    def put(self, peer: str, note: notes.Note, nbytes: int = 0) -> None:
        """Said at the end of this tick; to nobody, if there is no conversation with ``peer``."""
        batch = self._batches.get(peer)
        if batch is not None:
            batch.notes.append(note)
            batch.sizes.append(nbytes + NOTE_BYTES)
            self.broker.touch(batch)

    # ------------------------------------------------------------ conversations

    def _hello(self, peer: BrokerId, *, answer: bool) -> None:
        self._transport.send(peer, Service.MQTT, notes.encode([notes.Hello(self.broker.incarnation, answer)]))

    def _take(self, peer: BrokerId, body: bytes) -> None:
        self.broker.refresh()
        for note in notes.decode(body):
            if isinstance(note, notes.Hello):
                self._met(peer, note)
            elif peer in self._batches:
                self.handlers[type(note)](peer, note)
        if peer in self._batches:
            self._told.heard(peer)

    def _met(self, peer: BrokerId, hello: notes.Hello) -> None:
        if not hello.answer:
            self._hello(peer, answer=True)  # it has heard nothing of what was said before
        if peer in self._batches and self._incarnations[peer] == hello.incarnation and hello.answer:
            return
        self._end(peer)
        self._batches[peer] = _Batch(self._transport, peer)
        self._incarnations[peer] = hello.incarnation
        self._told.met(peer)

    def _end(self, peer: str) -> None:
        if self._batches.pop(peer, None) is not None:
            self._told.lost(peer)

    # ------------------------------------------------------------ told by the transport

    def connected(self, peer: BrokerId, who: Introduction) -> None:
        self._end(peer)
        self._hello(peer, answer=False)

    def lost(self, peer: BrokerId, why: Lost) -> None:
        self.broker.refresh()
        self._end(peer)

    def full(self, peer: BrokerId) -> None:
        if peer in self._batches:
            self._told.full(peer, True)

    def drained(self, peer: BrokerId) -> None:
        batch = self._batches.get(peer)
        if batch is not None:
            self._told.full(peer, False)
            self.broker.touch(batch)
