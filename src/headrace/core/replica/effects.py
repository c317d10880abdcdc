"""What a replica asks of its driver, and the words in which completions come back.

Values only. Effects are done in the order in which they were given; completions of the disk come in the order of the log. Nothing is promised to
anyone because of an effect, only because of its completion.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import msgspec

from headrace.core.replica.epochs import Run
from headrace.core.replica.messages import AnyMessage, Append, Fetched
from headrace.model.cluster import Assignment, BrokerId


class Effect(msgspec.Struct, frozen=True):
    """One of the below."""


class Send(Effect, frozen=True):
    """Send it as it is."""

    to: BrokerId
    message: AnyMessage


class Stream(Effect, frozen=True):
    """Fill in the entries from the log (its tail is in memory, appended but not durable ones included) and send it, in order with ``Send``. A
    driver whose window of bytes is full sends less and says so with ``sent_less``."""

    to: BrokerId
    message: Append | Fetched


class Transfer(Effect, frozen=True):
    """Send an ``Install`` of the newest checkpoint, which ends above ``above`` and at most at the high watermark."""

    to: BrokerId
    epoch: int
    session: int
    above: int


class Promise(Effect, frozen=True):
    """Make durable that nothing older than ``epoch`` is obeyed here, and how far the documents were obeyed; then ``promised(epoch)``."""

    epoch: int
    generation: int
    version: int


class Store(Effect, frozen=True):
    """Append a follower's entries from ``first`` on; ``durable(end)`` after a flush."""

    first: int
    runs: Sequence[Run]
    entries: Sequence[Any]


class Begin(Effect, frozen=True):
    """Append the EPOCH_START of ``epoch`` at ``index``; ``durable(end)`` after a flush."""

    epoch: int
    at: int


class Cut(Effect, frozen=True):
    """Append a TRUNCATE: nothing is held from ``at`` on; ``cut(at)`` once that is durable. ``set_aside``: an operator has accepted that committed
    entries are lost: keep a copy of them."""

    at: int
    epoch: int
    set_aside: bool = False


class Renew(Effect, frozen=True):
    """All that is here was given up by an election that an operator has forced: set it aside and begin with nothing, as a copy that has lost what it
    acknowledged; with another machine."""

    reason: str


class Stage(Effect, frozen=True):
    """Store an install beside the old data, make it durable, switch, in one step; then ``installed(end)``."""

    end: int
    history_start: int
    base_epoch: int
    runs: Sequence[Run]
    data: Any


class Swap(Effect, frozen=True):
    """Write ``document`` if the recorded version is ``expected``; then ``swapped(number, ...)``, whatever became of it."""

    number: int
    expected: int
    document: Assignment


class Committed(Effect, frozen=True):
    """The high watermark moved: entries below it may be applied and delivered."""

    high_watermark: int


class Confirmed(Effect, frozen=True):
    """These tokens have reached the level they waited for."""

    tokens: Sequence[int]


class Unknown(Effect, frozen=True):
    """The outcome of these tokens is not known and will not be: their entries may yet be committed."""

    tokens: Sequence[int]
    reason: str


class Changed(Effect, frozen=True):
    """The replica's part in the partition changed; worth a line in the log."""

    part: str
    epoch: int
    reason: str


class Alarm(Effect, frozen=True):
    """Somebody has to look at this. ``mends``: it may yet come right by itself, which makes it a warning."""

    reason: str
    mends: bool = False


AnyEffect = Send | Stream | Transfer | Promise | Store | Begin | Cut | Renew | Stage | Swap | Committed | Confirmed | Unknown | Changed | Alarm


class Outcome(Enum):
    """What became of a ``Swap``."""

    APPLIED = "applied"
    REFUSED = "refused"
    """Another version is recorded: it comes with the answer."""
    UNKNOWN = "unknown"


class Refusal(Enum):
    """Why an owner takes no publish, no lease and no settlement now."""

    NOT_OWNER = "this broker does not own the partition"
    STARTING = "its epoch is not committed yet"
    MOVING = "it is being handed over"
    BELOW_FLOOR = "fewer replicas are in sync than min_in_sync_replicas"
    ISOLATED = "its replicas have not been heard for a second"
