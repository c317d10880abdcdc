"""Which publishes a session partition has taken already, by where they come from: what is given to it again by another owner is taken once.

Owns this memory; it follows from the journal (``Queued.origin``, ``Retained.origin``). An origin is durable before its message leaves its broker
(``Receiving``, ``StoredWill.number``), and its number is never given to another one: it has the epoch of the publisher's partition in it.

Invariant: T1 bounded: of a publisher what is not done there, at most the newest ``TAKEN_MAX``, of all the newest ``PUBLISHERS_MAX`` publishers and
``WILLS_MAX`` wills. What is forgotten, and given again, is taken again.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

PUBLISHERS_MAX: Final = 1024
WILLS_MAX: Final = 1024
TAKEN_MAX: Final = 8192
UNFINISHED_MAX: Final = 1024
"""So many others of QoS 2 a client may publish while it does not go on with one that an earlier connection of it has left; then that is forgotten."""
WILL: Final = -1
"""``Origin.floor`` of a will."""
EPOCH_BITS: Final = 32
RETAINED: Final = "\0"
"""Tag of a message that is kept as the last of its topic."""


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """Of a publish of QoS 2 or a will of ``client_id``. Everything of that client below ``floor`` is done: all who were to get it have it."""

    client_id: str
    number: int
    floor: int


class Kept(msgspec.Struct):
    """Of one publisher: what was taken at or above its floor."""

    floor: int = 0
    taken: set[tuple[int, str]] = set()


class Origins:
    """See the module's head. ``tag``: a message may come to a partition as itself (""), for a shared subscription (its name), or to be retained."""

    def __init__(self) -> None:
        self.publishers: dict[str, Kept] = {}
        self.wills: dict[tuple[str, int, str], None] = {}

    def known(self, origin: Origin, tag: str) -> bool:
        """Whether it was taken."""
        if origin.floor == WILL:
            return (origin.client_id, origin.number, tag) in self.wills
        kept = self.publishers.get(origin.client_id)
        return kept is not None and (origin.number < kept.floor or (origin.number, tag) in kept.taken)

    def take(self, origin: Origin, tag: str) -> None:
        """It is taken from now on."""
        if origin.floor == WILL:
            self.wills[origin.client_id, origin.number, tag] = None
            if len(self.wills) > WILLS_MAX:
                del self.wills[next(iter(self.wills))]
            return
        kept = self.publishers.pop(origin.client_id, None)
        if kept is None:
            kept = Kept()
            if len(self.publishers) >= PUBLISHERS_MAX:
                del self.publishers[next(iter(self.publishers))]
        self.publishers[origin.client_id] = kept
        if origin.floor > kept.floor:
            kept.floor = origin.floor
            kept.taken = {(number, tag) for number, tag in kept.taken if number >= origin.floor}
        kept.taken.add((origin.number, tag))
        if len(kept.taken) > TAKEN_MAX:
            kept.taken = set(sorted(kept.taken)[-TAKEN_MAX // 2 :])

    def image(self) -> list[tuple[str, tuple[int, list[tuple[int, str]]]]]:
        """The publishers, in an order that depends on nothing else: of each its floor and what was taken."""
        return [(client_id, (kept.floor, sorted(kept.taken))) for client_id, kept in self.publishers.items()]

    def restore(self, publishers: Iterable[tuple[str, tuple[int, list[tuple[int, str]]]]], wills: Iterable[tuple[str, int, str]]) -> None:
        """What ``image`` and ``wills`` said."""
        self.publishers = {client_id: Kept(floor, set(taken)) for client_id, (floor, taken) in publishers}
        self.wills = dict.fromkeys(wills)
