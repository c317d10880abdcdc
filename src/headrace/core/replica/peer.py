"""What an owner knows of one other replica in its epoch: the session it is in, what it was sent, what it holds durably, when it was last heard.

Owns these facts, decides nothing. ``held`` counts towards a commit whether the replica can be reached or not: what is durable there stays there,
and only a later epoch can cut it.
"""

from enum import Enum

import msgspec

from headrace.core.replica.messages import State
from headrace.model.cluster import BrokerId, Incarnation

RETRY_MS = 200
RETRY_MS_MAX = 3_200
SILENCE_MS = 500
"""Without any frame from a replica that owes an acknowledgement."""
ISOLATION_MS = 1_000
REPLICA_LAG_TIME_MS = 10_000


class Known:
    """What is known of other brokers, of whatever partition and before this broker owned it."""

    __slots__ = ("dead", "draining", "links")

    def __init__(self) -> None:
        self.links: dict[BrokerId, Incarnation] = {}
        """Those to which a connection stands."""
        self.dead: dict[BrokerId, bool] = {}
        """Those proven dead, until they are connected again."""
        self.draining: dict[BrokerId, bool] = {}


class Pace(msgspec.Struct, frozen=True):
    """How much is sent to one follower."""

    window: int = 4_096
    """Entries sent and not acknowledged."""
    append: int = 1_024
    """Entries in one message."""


class Link(Enum):
    """Where the owner stands with a replica."""

    ABSENT = "cannot be reached"
    ASKED = "was asked what it holds"
    KNOWN = "has said what it holds"
    ALIGNING = "cuts what the owner does not have"
    INSTALLING = "is sent a checkpoint"
    STREAMING = "follows"
    QUARANTINED = "is quarantined"


class Peer:
    """See the module's head."""

    __slots__ = (
        "answer", "broker", "dead", "draining", "failures", "goal", "goal_ms", "held", "incarnation", "link", "owes_ms",
        "reset", "retry_at_ms", "retry_ms", "sent_end", "session", "suspect", "told_watermark", "up", "why",
    )  # fmt: skip

    def __init__(self, broker: BrokerId) -> None:
        self.broker = broker
        self.incarnation = Incarnation("")
        """Of the life that last said what it holds."""
        self.link = Link.ABSENT
        self.up = False
        """A connection to it stands."""
        self.reset = False
        """Its connection broke, or it refused twice in a row; it has not followed since."""
        self.dead = False
        """Proven, not suspected."""
        self.draining = False
        self.suspect = False
        self.session = 0
        self.answer: State | None = None
        self.held = 0
        """Exclusive end of what it holds durably of this owner's journal; 0 = nothing is known yet."""
        self.sent_end = 0
        self.told_watermark = 0
        self.owes_ms: int | None = None
        """Since when it owes an acknowledgement."""
        self.goal = 0
        self.goal_ms = 0
        """The owner's end at some time; if it is not reached within ``replica_lag_time`` the replica lags."""
        self.retry_ms = RETRY_MS
        self.retry_at_ms: int | None = None
        self.failures = 0
        """Sessions in a row that ended before it followed."""
        self.why = ""

    def ended(self, why: str) -> None:
        """The session is over, whatever comes of it is ignored."""
        if self.link is not Link.ABSENT:
            self.failures += 1
        self.link = Link.ABSENT
        self.answer = None
        self.why = why
        self.retry_at_ms = None

    def acknowledged(self, end: int, owner_end: int, now_ms: int) -> bool:
        """It holds everything below ``end`` of what the owner has; whether that is new."""
        self.owes_ms = None if end >= owner_end else now_ms
        if end <= self.held:
            return False
        self.held = end
        return True

    def measure(self, end: int, now_ms: int) -> bool:
        """Whether it lags: it has not reached what the owner had ``replica_lag_time`` ago."""
        if self.held >= self.goal:
            self.goal, self.goal_ms = (end, now_ms) if self.held < end else (0, 0)
        return self.goal > 0 and now_ms - self.goal_ms >= REPLICA_LAG_TIME_MS
