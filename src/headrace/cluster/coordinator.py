"""The consensus store as the broker sees it: small documents, each with a version, changed only by compare-and-swap.

It holds metadata (catalogue, assignments, settings), never a message or an ack. One contract, several implementations:
``local`` (the data directory of a lone broker), ``memory`` (deterministic), and ``etcd`` in a cluster.
Keys are text paths such as ``names/orders``; ranges are by prefix, in key order, paged.

Owns the contract, its bounds and how changes are followed without a gap. Does not know who answers.

I1 a document's version grows by one with every put and starts at 1 when it is (or is again) created. I2 the revision of the whole grows with
every transaction that wrote (some made at once may share one), and falls only if an older state was restored. I3 every change of a watched prefix
is shown, in order, those of one revision together, or a ``Reread`` is shown and the watch ends. I4 an error is definite
(``CoordinatorUnavailable``, ``RevisionGone``, a refusal: nothing happened) or ``UnknownOutcome``, which only something that changes the store may
raise.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Literal, Protocol, TypeAlias

import msgspec

from headrace.model.errors import Invalid, RevisionGone

RANGE_KEYS_MAX = 1000
TRANSACTION_OPERATIONS_MAX = 128
"""Most comparisons, and most writes, of one transaction."""
REQUEST_BYTES_MAX = 1024 * 1024
"""Keys and values of one transaction must stay below this."""
OPERATION_OVERHEAD_BYTES = 32
READ_ALL_TRIES = 10

assert TRANSACTION_OPERATIONS_MAX * 2 * OPERATION_OVERHEAD_BYTES < REQUEST_BYTES_MAX


class Document(msgspec.Struct, frozen=True):
    """A value with the version under which it is compared (1 = just created; 0 never occurs)."""

    key: str
    value: bytes
    version: int


class Change(msgspec.Struct, frozen=True):
    """One change seen by a watch; ``document`` is None for a deletion."""

    key: str
    document: Document | None
    revision: int


class Changes(msgspec.Struct, frozen=True):
    """Everything that happened to a watched prefix up to and with ``revision``: a watch from ``revision + 1`` goes on after it."""

    changes: tuple[Change, ...]
    revision: int


class Reread(msgspec.Struct, frozen=True):
    """Changes cannot be shown without a gap, so all that is known of the prefix must be read again. The watch has ended.

    ``compacted``: the store has forgotten them. ``restored``: the store was put back to an older state, so that what was seen may never have been.
    """

    reason: Literal["compacted", "restored"]


WatchEvent: TypeAlias = Changes | Reread


class Page(msgspec.Struct, frozen=True):
    """Part of a range at ``revision``. ``more``: ask again with ``after`` = the last key and this revision."""

    documents: tuple[Document, ...]
    more: bool
    revision: int


class Member(msgspec.Struct, frozen=True):
    """One member of the consensus. A learner copies but does not vote; an empty name means that it was added and has not started yet."""

    id: int
    name: str
    peer_addr: str
    client_addr: str
    learner: bool


class Endpoint(msgspec.Struct, frozen=True):
    """One place at which the coordinator is asked. ``latency_ms`` of the question just put; ``fault`` says why there was no answer."""

    address: str
    reachable: bool
    latency_ms: float = 0.0
    member: int = 0
    version: str = ""
    leader: int = 0
    term: int = 0
    revision: int = 0
    data_bytes: int = 0
    learner: bool = False
    fault: str = ""


class Status(msgspec.Struct, frozen=True):
    """What the reachable members say, without agreement among them. ``leader`` 0: they know of none, so nothing can be changed."""

    leader: int
    term: int
    revision: int
    endpoints: tuple[Endpoint, ...]

    @property
    def reachable(self) -> bool:
        return any(e.reachable for e in self.endpoints)


class Registration(Protocol):
    """A broker's presence under a lease, kept alive until it is released or lost. Lost is for good: register again."""

    @property
    def key(self) -> str: ...

    @property
    def incarnation(self) -> int:
        """Tells this registration from every other, also of the same key."""
        ...

    @property
    def alive(self) -> bool:
        """Not released and not known to be lost. Silence of the coordinator is no loss: see ``silent_ms``."""
        ...

    @property
    def silent_ms(self) -> int:
        """Time since the question to which the coordinator last answered that this is alive; from the time to live on it may be gone unnoticed."""
        ...

    async def lost(self) -> str:
        """Returns the reason in one sentence once this is known to be lost (or was released)."""
        ...

    async def update(self, value: bytes) -> None:
        """Writes another value under the same lease; ``Conflict`` if it is lost."""
        ...

    async def release(self) -> None:
        """Ends it and removes its documents, at once if the coordinator is reached, else when its time to live is over."""
        ...


class Coordinator(Protocol):
    """See the module's head. All methods may raise ``CoordinatorUnavailable``; those that change something also ``UnknownOutcome``."""

    async def get(self, key: str) -> Document | None:
        """The document now: not older than anything that was answered to anyone before this was asked."""
        ...

    async def range(self, prefix: str, *, after: str = "", limit: int = RANGE_KEYS_MAX, revision: int = 0) -> Page:
        """Documents whose key begins with ``prefix``, as of ``revision`` (0 = now); at most 1,000 a page.
        ``RevisionGone`` if it is not kept any more: begin again."""
        ...

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None], *, under: Registration | None = None) -> bool:
        """Writes all of ``puts`` (None deletes) in one step if every key of ``expected`` has that version now (0 = absent). Durable when it returns
        True; False = nothing was written. ``under`` a registration, what is put goes with it. ``Invalid`` beyond the bounds,
        ``Conflict`` if the registration is lost."""
        ...

    async def register(self, key: str, value: bytes, *, ttl_ms: int) -> Registration:
        """Puts ``key`` under a new lease that lasts for ``ttl_ms`` (rounded up to whole seconds where the store counts so) after the last sign of
        life. An older registration of that key is lost by it."""
        ...

    def watch(self, prefix: str, *, from_revision: int = 0) -> AsyncGenerator[WatchEvent, None]:
        """Changes at or after ``from_revision``, as they happen (0 = from when it is first awaited). It survives a lost connection. To miss nothing,
        read first and watch from the revision of that reading + 1. Close it (``aclosing``) when done;
        it ends when the coordinator is closed."""
        ...

    async def members(self) -> tuple[Member, ...]: ...

    async def add_member(self, peer_addr: str) -> Member:
        """Adds a learner; start it with the members of now. ``Conflict`` if that address is a member, or the cluster cannot take one now."""
        ...

    async def promote_member(self, member: int) -> None:
        """Makes a learner a voter; ``CoordinatorUnavailable`` while it has not caught up, ``NotFound`` if there is no such member."""
        ...

    async def remove_member(self, member: int) -> None:
        """``Conflict`` if those that remain would be no majority of running voters."""
        ...

    async def status(self) -> Status:
        """Asks every endpoint, each for a bounded time; never raises for one that does not answer."""
        ...

    async def close(self) -> None: ...


class Snapshot(msgspec.Struct, frozen=True):
    """All documents of a prefix at one revision, in key order."""

    documents: tuple[Document, ...]
    revision: int


def check_transaction(expected: Mapping[str, int], puts: Mapping[str, bytes | None]) -> None:
    """``Invalid`` if a transaction is beyond the bounds that every implementation keeps."""
    if max(len(expected), len(puts)) > TRANSACTION_OPERATIONS_MAX:
        raise Invalid(f"a transaction has at most {TRANSACTION_OPERATIONS_MAX} comparisons and as many writes")
    nbytes = sum(len(k.encode()) + OPERATION_OVERHEAD_BYTES for k in (*expected, *puts)) + sum(len(v) for v in puts.values() if v is not None)
    if nbytes >= REQUEST_BYTES_MAX:
        raise Invalid(f"a transaction must stay below {REQUEST_BYTES_MAX} bytes; this one has {nbytes}")
    if "" in expected or "" in puts:
        raise Invalid("a key must not be empty")


async def read_all(coordinator: Coordinator, prefix: str) -> Snapshot:
    """All of a prefix at one revision, page by page; begun again when that revision goes away meanwhile."""
    for _ in range(READ_ALL_TRIES):
        found: list[Document] = []
        revision, after = 0, ""
        try:
            while True:
                page = await coordinator.range(prefix, after=after, revision=revision)
                found += page.documents
                revision = page.revision
                if not page.more:
                    return Snapshot(tuple(found), revision)
                after = found[-1].key
        except RevisionGone:
            continue
    raise RevisionGone(f"{prefix!r} changed faster than it could be read, {READ_ALL_TRIES} times")


async def follow(coordinator: Coordinator, prefix: str) -> AsyncGenerator[Snapshot | Changes, None]:
    """A ``Snapshot``, then every change after it; another ``Snapshot``, which replaces all that was known, whenever there would be a gap."""
    while True:
        snapshot = await read_all(coordinator, prefix)
        yield snapshot
        async with aclosing(coordinator.watch(prefix, from_revision=snapshot.revision + 1)) as events:
            async for event in events:
                if isinstance(event, Reread):
                    break
                yield event


def total_bytes(changes: Sequence[Change]) -> int:
    """Roughly what a record of these changes holds in memory."""
    return sum(len(c.key) + OPERATION_OVERHEAD_BYTES + (len(c.document.value) if c.document else 0) for c in changes)
