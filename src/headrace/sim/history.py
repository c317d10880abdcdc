"""What every client of a run saw, in the order in which it saw it, with virtual times; and the value by which a message is known again.

Owns the records only: what is right or wrong about them is decided by ``sim.checks``. Everything is appended, nothing is looked up while the run goes
on, so that noting something costs next to nothing. A message's id is in its value (or, where that is null, in a header), with bytes after it that
follow from the id: whoever sees a value knows who published it, as which of his messages, and whether it is still what it was.

H1 an id belongs to one publish: ids are given out here. H2 a publish has one outcome: the first one told.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from headrace.client.message import Content
from headrace.model.errors import HeadraceError
from headrace.model.specs import QueueSpec, Spec

NOBODY: Final = -1
"""The id of a value that no publisher of this run made."""
ID_HEADER: Final = "id"
MARK: Final = "kind"
"""Header that filters look at."""
_FILL: Final = bytes(range(97, 123)) * 64

UNSEEN: Final = 1 << 62
OPEN, CONFIRMED, REFUSED, UNKNOWN = "open", "confirmed", "refused", "unknown"
DONE, STALE = "done", "stale"


def value_of(id: int, nbytes: int) -> bytes:
    """The value of message ``id``: at least its number and length, at most 1,700 bytes."""
    head = b"%d.%d." % (id, nbytes)
    return head + _FILL[id % 26 : id % 26 + max(0, nbytes - len(head))]


def id_of(content: Content) -> int:
    """Which message this is; ``NOBODY`` if the value is not, byte for byte, what a publisher of this run makes."""
    if content.is_null:
        for name, text in content.raw_headers:
            if name == ID_HEADER and text.isdigit():
                return int(text)
        return NOBODY
    value = content.value
    parts = value.split(b".", 2)
    if len(parts) != 3 or not (parts[0].isdigit() and parts[1].isdigit()):
        return NOBODY
    id = int(parts[0])
    return id if value_of(id, int(parts[1])) == value else NOBODY


class Publish:
    """One message somebody wanted to publish. It is told its outcome by the publisher itself (a ``client.lane.Waiter``)."""

    __slots__ = (
        "at", "broker_life", "delay_ms", "duplicate", "error", "history", "id", "idempotent", "key", "level", "mark", "name", "nbytes", "null",
        "offset", "outcome", "partition", "priority", "promised", "publisher", "sequence", "told_at", "ttl_ms", "watermark",
    )  # fmt: skip

    def __init__(
        self,
        history: "History",
        *,
        id: int,
        name: str,
        publisher: int,
        sequence: int,
        at: float,
        level: str = "queue",
        key: str | None = None,
        mark: str = "",
        delay_ms: int = 0,
        ttl_ms: int = 0,
        priority: int = 0,
        idempotent: bool = True,
        null: bool = False,
        nbytes: int = 0,
    ) -> None:
        self.history = history
        self.id = id
        self.name = name
        self.publisher = publisher
        """Messages of one publisher and level class are in order; a client has several publishers."""
        self.sequence = sequence
        self.at = at
        self.level = level
        self.key = key
        self.mark = mark
        self.delay_ms = delay_ms
        self.ttl_ms = ttl_ms
        self.priority = priority
        self.idempotent = idempotent
        self.null = null
        self.nbytes = nbytes
        self.outcome = OPEN
        self.told_at = 0.0
        self.partition = self.offset = -1
        self.promised = 0
        """The level its confirm names."""
        self.duplicate = False
        self.error = ""
        self.broker_life = history.broker_life()
        """Which incarnation of the broker ran when it was posted: its confirm may be on its way when that one dies."""
        self.watermark = UNSEEN
        """Up to where its partition was durable when the confirm came."""

    def done(self) -> bool:
        return self.outcome != OPEN

    def set_result(self, receipt: Any) -> None:
        if self.outcome == OPEN:
            history = self.history
            self.outcome, self.told_at = CONFIRMED, history.now()
            self.partition, self.offset = receipt.partition, receipt.offset
            self.promised, self.duplicate = int(receipt.level), receipt.duplicate
            self.watermark = history.watermark(self.name, self.partition)

    def set_exception(self, error: BaseException) -> None:
        if self.outcome == OPEN:
            self.outcome = REFUSED if isinstance(error, HeadraceError) and error.definite else UNKNOWN
            self.told_at = self.history.now()
            self.error = type(error).__name__

    def __repr__(self) -> str:
        where = f" at {self.partition}/{self.offset} level {self.promised}" if self.outcome == CONFIRMED else f" {self.error}" if self.error else ""
        return (
            f"message {self.id} (publisher {self.publisher}, its number {self.sequence}, key {self.key!r}) to {self.name!r}, posted {self.at:.4f} s, "
            f"{self.outcome}{where} {self.told_at:.4f} s"
        )


class Arrival(NamedTuple):
    """A DELIVER frame reached a consumer's client, whether or not the application ever looked at it."""

    at: float
    consumer: int
    name: str
    partition: int
    first: int
    count: int  # type: ignore[assignment]  # the protocol's word; tuple.count is not used
    attempt: int
    epoch: int
    auto_ack: bool
    kept: bool = True
    """Whether a crash at that moment would not have given the epoch out again."""


class Delivery(NamedTuple):
    """A message was handed to the application."""

    at: float
    consumer: int
    name: str
    partition: int
    offset: int
    attempt: int
    epoch: int
    id: int
    auto_ack: bool
    reason: str = ""
    """Why it was dead-lettered, in a queue of dead letters."""
    origin: str = ""


class Leased(NamedTuple):
    """The lease that a broker has on a message. ``until``: when it runs out."""

    attempt: int
    epoch: int
    until: float


class Settle:
    """A settlement that a consumer sent. ``result``: "" = nobody asked or it was not answered."""

    __slots__ = ("action", "at", "attempt", "consumer", "delay_ms", "id", "leased", "name", "offset", "partition", "result", "told_at")

    def __init__(
        self, at: float, consumer: int, name: str, partition: int, offset: int, attempt: int, id: int, action: str, delay_ms: int = -1
    ) -> None:
        self.at = at
        self.consumer = consumer
        self.name = name
        self.partition = partition
        self.offset = offset
        self.attempt = attempt
        self.id = id
        self.action = action
        """ack, retry, reject, drop or extend."""
        self.delay_ms = delay_ms
        self.leased: Leased | None = None
        """How the message was leased when this was sent, to whomever, if that could be seen."""
        self.result = ""
        self.told_at = 0.0

    def __repr__(self) -> str:
        answer = f", {self.result} {self.told_at:.4f} s" if self.result else ""
        return f"{self.action} of attempt {self.attempt} by consumer {self.consumer} sent {self.at:.4f} s{answer}"


class Read(NamedTuple):
    """A record was handed to a reader."""

    at: float
    reader: int
    name: str
    partition: int
    offset: int
    epoch: int
    id: int
    speculative: bool
    watermark: int = UNSEEN
    """Up to where its partition was durable then."""


class Commit:
    """A reader moved its cursor past ``offset``, or acked that record alone (``single``)."""

    __slots__ = ("at", "cursor", "name", "offset", "partition", "reader", "result", "single", "told_at")

    def __init__(self, at: float, reader: int, name: str, cursor: str, partition: int, offset: int, single: bool = False) -> None:
        self.at = at
        self.reader = reader
        self.name = name
        self.cursor = cursor
        self.partition = partition
        self.offset = offset
        self.single = single
        self.result = ""
        self.told_at = 0.0


class Attached:
    """A subscription from its opening to its end. ``how``: left, abandoned (with messages in hand), ended (by the broker) or "" (it never was)."""

    __slots__ = (
        "at", "auto_ack", "client", "cursor", "explicit", "filter", "group", "how", "kind", "lease_ms", "leaving", "name", "number", "start", "until",
    )  # fmt: skip

    def __init__(self, number: int, client: str, kind: str, name: str, at: float) -> None:
        self.number = number
        self.client = client
        self.kind = kind
        """consumer, puller, reader; final = the one that empties or reads everything at the end."""
        self.name = name
        self.at = at
        self.leaving = self.until = float("inf")
        """When it began to leave, and when it was gone."""
        self.how = ""
        self.lease_ms = 0
        self.auto_ack = False
        self.filter = ""
        self.group = ""
        self.cursor = ""
        self.explicit = False
        """Only what it acks or commits itself counts as read."""
        self.start = ""


class Event(NamedTuple):
    """What a reader was told: Retracted, CursorMoved, Assigned."""

    at: float
    reader: int
    name: str
    what: str
    partition: int
    offset: int


class Link(NamedTuple):
    """A client's connection came up or went down."""

    at: float
    client: str
    up: bool


class Verb:
    """Something an operator asked for. ``outcome``: open, done, refused or unknown."""

    __slots__ = ("at", "count", "name", "outcome", "rows", "told_at", "verb", "what")

    def __init__(self, at: float, verb: str, name: str, what: Any = None) -> None:
        self.at = at
        self.verb = verb
        self.name = name
        self.what = what
        """Its particulars: a target, changed settings."""
        self.outcome = OPEN
        self.told_at = float("inf")
        self.count = -1
        self.rows: Any = None
        """What it answered."""

    def __repr__(self) -> str:
        return f"{self.verb} of {self.name!r} asked {self.at:.4f} s, {self.outcome} {self.told_at:.4f} s, count {self.count}"


class History:
    """Everything anybody saw; see the module's head. ``now`` and ``broker_life`` are given by the workload."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self.broker_life: Callable[[], int] = lambda: 0
        self.watermark: Callable[[str, int], int] = lambda name, partition: UNSEEN
        """Up to where a partition is durable now, if it can be seen."""
        self.keeps: Callable[[str, int, int], bool] = lambda name, partition, epoch: True
        """Whether an epoch of a partition is durable now."""
        self.leased: Callable[[str, int, int], Leased | None] = lambda name, partition, offset: None
        """How a message is leased now, if it can be seen."""
        self.specs: dict[str, list[tuple[float, Spec]]] = {}
        """Settings by name, with the time from which they may have held; never taken out."""
        self.publishes: dict[int, Publish] = {}
        self.arrivals: list[Arrival] = []
        self.deliveries: list[Delivery] = []
        self.settles: list[Settle] = []
        self.reads: list[Read] = []
        self.commits: list[Commit] = []
        self.attached: list[Attached] = []
        self.events: list[Event] = []
        self.links: list[Link] = []
        self.verbs: list[Verb] = []
        self.strange: list[tuple[float, str, str]] = []
        """(when, name, text) of values and outcomes that no program expected."""
        self.emptied: float | None = None
        """When nobody was waited for any more in any queue."""
        self.finished: float | None = None
        """When phase 2 ended: every queue empty, every stream read to its end."""
        self._sequences: dict[int, int] = {}

    def publish(self, name: str, publisher: int, *, order: int = 0, **particulars: Any) -> Publish:
        """Notes that a message is about to be posted and gives it its id. ``order`` tells lanes of one publisher apart that have no order among
        themselves."""
        lane = publisher * 2 + order
        sequence = self._sequences[lane] = self._sequences.get(lane, 0) + 1
        made = Publish(self, id=len(self.publishes), name=name, publisher=lane, sequence=sequence, at=self.now(), **particulars)
        self.publishes[made.id] = made
        return made

    def attach(self, client: str, kind: str, name: str) -> Attached:
        made = Attached(len(self.attached), client, kind, name, self.now())
        self.attached.append(made)
        return made

    def verb(self, verb: str, name: str, what: Any = None) -> Verb:
        made = Verb(self.now(), verb, name, what)
        self.verbs.append(made)
        return made

    def declared(self, name: str, spec: Spec) -> None:
        """From now on ``name`` may have these settings."""
        self.specs.setdefault(name, []).append((self.now(), spec))

    def queues(self) -> list[QueueSpec]:
        """All settings that queues may have had."""
        return [spec for rows in self.specs.values() for _, spec in rows if isinstance(spec, QueueSpec)]

    def asked(self, verb: str) -> bool:
        return any(v.verb == verb for v in self.verbs)

    def odd(self, name: str, text: str) -> None:
        self.strange.append((self.now(), name, text))

    def totals(self) -> dict[str, int]:
        """How much of everything there is."""
        outcomes = [p.outcome for p in self.publishes.values()]
        return {
            "published": len(outcomes), "confirmed": outcomes.count(CONFIRMED), "refused": outcomes.count(REFUSED),
            "unknown": outcomes.count(UNKNOWN), "delivered": len(self.deliveries), "settled": len(self.settles), "read": len(self.reads),
            "verbs": len(self.verbs),
        }  # fmt: skip
