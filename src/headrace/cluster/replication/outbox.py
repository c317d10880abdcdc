"""What is said to one other broker: gathered for a turn, out in one frame, held back while its connection is full.

Owns the order of what waits. Does not know what is said. A connection that ends takes what waits with it: the machines begin anew.

I1 Messages go out in the order in which they came; acknowledgements first, of each partition the last one. I2 While the peer is full nothing with
entries is taken, so what waits is small; beyond ``WAITING_MAX`` messages the newest are dropped, as if lost: they are asked for again.
"""

from collections.abc import Sequence
from typing import Final

from headrace.cluster.replication.interface import Peers
from headrace.model import limits
from headrace.model.cluster import BrokerId
from headrace.wire import replication as wire
from headrace.wire.peer import Service

TURN_BYTES: Final = 4 * 1024 * 1024
"""Of entries to one peer in one turn; more goes out in the next, other partitions' first."""
WAITING_MAX: Final = 100_000
ENTRY_BYTES_MAX: Final = limits.PEER_FRAME_BYTES_MAX - 256 * 1024
assert TURN_BYTES <= limits.PEER_QUEUE_BYTES_MAX


class Outbox:
    """See the module's head."""

    __slots__ = ("_acks", "_items", "dropped", "frames", "full", "nbytes", "peer")

    def __init__(self, peer: BrokerId) -> None:
        self.peer = peer
        self.full = False
        self.nbytes = 0
        self.frames = self.dropped = 0
        self._acks: dict[int, wire.Row] = {}
        self._items: list[wire.Item] = []

    @property
    def room(self) -> int:
        """Bytes of entries that it takes now."""
        return 0 if self.full else max(0, TURN_BYTES - self.nbytes)

    def acknowledge(self, pid: int, epoch: int, session: int, end: int) -> None:
        self._acks[pid] = (pid, epoch, session, end)

    def add(self, pid: int, head: bytes, entries: Sequence[bytes] = ()) -> None:
        if len(self._items) >= WAITING_MAX:
            self.dropped += 1
            return
        self._items.append(wire.Item(pid, head, entries))
        self.nbytes += sum(map(len, entries))

    def flush(self, peers: Peers) -> None:
        """Sends what has gathered: one frame, but for entries that do not fit in one together."""
        while (self._acks or self._items) and not self.full:
            items, nbytes = self._items, 0
            for count, item in enumerate(items):
                nbytes += len(item.head) + sum(map(len, item.entries)) + wire.ITEM.size
                if count and nbytes > ENTRY_BYTES_MAX:
                    items = items[:count]
                    break
            if not peers.send(self.peer, Service.REPLICAS, *wire.encode(list(self._acks.values()), items)):
                self.full = True  # or not connected, which ``clear`` follows or has preceded
                return
            self.frames += 1
            self._acks.clear()
            self._items = self._items[len(items) :]
        if not self._items:
            self.nbytes = 0

    def clear(self) -> None:
        """There is a new connection, or none any more."""
        self._acks.clear()
        self._items.clear()
        self.nbytes = 0
        self.full = False
