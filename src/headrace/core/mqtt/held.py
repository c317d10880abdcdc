"""What the broker with a client's socket keeps of a connection, so that the next owner of its session goes on with it where the last one was.

Owns what was read of the client and is not dealt with for good: by its place in all that was read, from the CONNECT on. An owner says how far it has
dealt with it together with the answers to it, so what is kept was not answered; and how far it has sent what is in the session. Pure.

Invariants: H1 what is kept begins at the beginning of a packet. H2 what has been answered is not given to an owner again.
"""

from collections import deque
from typing import Final

import msgspec

NOT_MOVABLE: Final = -1
"""``sent`` of a connection that ends with its owner: its session does not outlive it, or it consumes queues or streams."""


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """A connection as its next owner is told of it."""

    connect: bytes
    """Its CONNECT, as it came."""
    client_id: str
    epoch: int
    """Of the connection, among those of its session: another one may have it by now."""
    begun: int
    """What the session had below this sequence may have been sent on an earlier connection."""
    sent: int
    """What it had below this one, and has still, was sent on this connection."""
    skipped: list[int]
    """But for these: they were given up and not sent."""
    aliases: dict[int, str]
    """Of the client."""
    heard: int
    """Place at which what is given next begins."""


class Held:
    """See the module's head. ``connect``: the first packet of the client."""

    def __init__(self, connect: bytes) -> None:
        self.connect = connect
        self.client_id = ""
        """As its owner has accepted it."""
        self.epoch = self.begun = 0
        self.heard = 0
        """Everything of the client below this place is dealt with."""
        self.given = 0
        """Everything below this one was given to an owner that is gone."""
        self.end = 0
        self.sent = NOT_MOVABLE
        self.skipped: list[int] = []
        self.aliases: dict[int, str] = {}
        self._kept: deque[tuple[int, bytes]] = deque()
        """What was read, each with the place at which it begins."""

    @property
    def movable(self) -> bool:
        """Whether another owner can go on with it."""
        return bool(self.epoch) and self.sent != NOT_MOVABLE

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return self.end - self.heard

    def read(self, data: bytes) -> None:
        """More of the client."""
        self._kept.append((self.end, data))
        self.end += len(data)

    def accepted(self, client_id: str, epoch: int, begun: int) -> None:
        """An owner has it."""
        self.client_id, self.epoch, self.begun = client_id, epoch, begun

    def progress(self, heard: int, sent: int, skipped: list[int], aliases: dict[int, str]) -> None:
        """What its owner says with what it sends. ``aliases``: the client's that are new."""
        self.sent, self.skipped = sent, skipped
        self.aliases.update(aliases)
        self.dealt_with(heard)

    def dealt_with(self, heard: int) -> None:
        """All below that place."""
        self.heard = max(heard, self.heard)
        kept = self._kept
        while kept and kept[0][0] + len(kept[0][1]) <= self.heard:
            kept.popleft()

    def lost(self) -> None:
        """Its owner has it no more."""
        self.given = self.end

    def moved(self) -> Moved:
        """What the next owner is told; ``again`` and ``fresh`` are given to it then."""
        return Moved(self.connect, self.client_id, self.epoch, self.begun, self.sent, self.skipped, dict(self.aliases), self.heard)

    def again(self) -> bytes:
        """What an owner had already and did not answer."""
        return self._between(self.heard, self.given)

    def fresh(self) -> bytes:
        """What no owner had."""
        return self._between(max(self.heard, self.given), self.end)

    def _between(self, first: int, end: int) -> bytes:
        return b"".join(data[max(0, first - at) : max(0, end - at)] for at, data in self._kept)


def first_packet(data: bytes) -> bytes:
    """The packet that ``data`` begins with, which is whole."""
    length = shift = 0
    for at in range(1, 5):
        length |= (data[at] & 0x7F) << shift
        shift += 7
        if data[at] < 0x80:
            break
    return data[: at + 1 + length]
