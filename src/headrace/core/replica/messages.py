"""What the replicas of a partition say to each other.

Values only. They name no partition and no sender: one frame a peer and tick carries ``(partition, message)`` of many partitions, on a connection
that knows both ends and their incarnations. Every message has the epoch of the ownership it belongs to and, but for ``Fenced``, the session: the
number that the owner gave this follower for one attempt to bring it in line. What belongs to an older one of either is ignored or refused, so no
order across connections matters.

``entries`` of ``Append`` and ``Fetched`` are filled in by the driver, from the log; ``Install`` is whole only for the receiver: how its data
travels is the drivers' affair.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.core.replica.epochs import Run


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, kw_only=True):
    """One of the below."""

    epoch: int
    session: int = 0


class NewEpoch(Message, frozen=True, tag=1):
    """The owner to a replica: promise this epoch, durably, and say what you hold (``State``)."""


class State(Message, frozen=True, tag=2):
    """A replica to the owner: the epoch is promised durably; this is what I hold, all of it durable."""

    incarnation: str
    start: int
    """Entries below are not held as such (a checkpoint stands for them)."""
    end: int
    high_watermark: int
    history_start: int
    base_epoch: int
    runs: Sequence[Run]
    unclean: bool = False
    """It was not stopped cleanly before this life, so that a disk that lied may have lost what was acknowledged."""
    suspect: bool = False
    """It is known to have lost what it acknowledged, or to be damaged."""


class Align(Message, frozen=True, tag=3):
    """The owner to a follower: cut your journal at ``at``; entries follow from there."""

    at: int
    end: int
    """Where the follower has said that its journal ends: an answer from before an install is not taken for one from after it."""
    previous_epoch: int
    """Epoch of the entry before ``at``."""


class Append(Message, frozen=True, tag=4):
    """The owner to a follower: the entries ``[first, first + count)``; with ``count`` 0 only the high watermark."""

    first: int
    count: int
    previous_epoch: int
    runs: Sequence[Run]
    high_watermark: int
    entries: Sequence[Any] = ()


class Ack(Message, frozen=True, tag=5):
    """A follower to the owner, once a flush: everything below ``end`` is durable here."""

    end: int


class Gap(Message, frozen=True, tag=6):
    """A follower to the owner: that does not follow on what I have; begin a new session."""

    reason: str


class Fenced(Message, frozen=True, tag=7):
    """To whoever acts in an older epoch: ``epoch`` is promised here."""


class Fetch(Message, frozen=True, tag=8):
    """A new owner to a replica that holds more: entries from ``first`` on, if the one before it is of that epoch."""

    first: int
    end: int
    previous_epoch: int


class Fetched(Message, frozen=True, tag=9):
    """The answer; ``count`` may be less than was asked for."""

    first: int
    count: int
    runs: Sequence[Run]
    entries: Sequence[Any] = ()


class Install(Message, frozen=True, tag=10):
    """A checkpoint at a committed index and the live records below it, for a replica that ends below the sender's start. ``data`` is the drivers'."""

    end: int
    """It stands for all entries below."""
    history_start: int
    base_epoch: int
    runs: Sequence[Run]
    data: Any = None


class Quarantined(Message, frozen=True, tag=11):
    """A replica to the owner: I take nothing more until somebody repairs me."""

    reason: str


AnyMessage = NewEpoch | State | Align | Append | Ack | Gap | Fenced | Fetch | Fetched | Install | Quarantined
