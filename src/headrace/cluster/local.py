"""The coordinator of a lone broker: documents in its own data directory, one writer, compare-and-swap decided in memory.

A transaction is checked against what is stored or about to be stored, then committed in group with others; it answers once durable. Revisions count
from 0 at every start, older ones are not kept, and what is held under a registration is in memory only.
Invariant: a version is read only from ``_latest`` (transactions under way), what is held, or the store, in this order, so two overlapping
transactions on one key never both succeed.
"""

import asyncio
import heapq
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from struct import Struct
from typing import Any, Protocol

from headrace.cluster.coordinator import (
    RANGE_KEYS_MAX,
    Change,
    Document,
    Endpoint,
    Member,
    Page,
    Registration,
    Status,
    WatchEvent,
    check_transaction,
)
from headrace.cluster.feed import Feed
from headrace.cluster.presence import Presence
from headrace.model.errors import Conflict, Invalid, RevisionGone

_VERSION = Struct(">Q")
_SPACE = b"doc/"
_ME = Member(1, "local", "", "", False)


class _Reads(Protocol):
    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]: ...


class LocalRegistration(Presence):
    """A lone broker is present until it says otherwise."""

    def __init__(self, coordinator: "LocalCoordinator", key: str, incarnation: int) -> None:
        super().__init__(key, incarnation, asyncio.get_running_loop().time())
        self._coordinator = coordinator

    @property
    def silent_ms(self) -> int:
        return 0

    async def update(self, value: bytes) -> None:
        await self._coordinator.transact({}, {self.key: value}, under=self)

    async def release(self) -> None:
        if self.end("it was released"):
            self._coordinator.drop(self)


class LocalCoordinator:
    """Implements ``Coordinator`` over a state store's reads and a group-committing write."""

    def __init__(self, reads: _Reads, commit: Callable[[Mapping[bytes, bytes | None]], Coroutine[Any, Any, None]]) -> None:
        self._reads = reads
        self._commit = commit
        self._latest: dict[str, list[Document | None]] = {}
        self._held: dict[str, tuple[Document, LocalRegistration]] = {}
        self._feed = Feed()
        self._incarnations = 0

    def peek(self, key: str) -> Document | None:
        """The committed document, at once: what only the local coordinator can do, used to look names up lazily."""
        held = self._held.get(key)
        if held is not None:
            return held[0]
        raw = self._reads.get(_SPACE + key.encode())
        return None if raw is None else Document(key, raw[8:], _VERSION.unpack_from(raw)[0])

    async def get(self, key: str) -> Document | None:
        return self.peek(key)

    async def range(self, prefix: str, *, after: str = "", limit: int = RANGE_KEYS_MAX, revision: int = 0) -> Page:
        if revision and revision != self._feed.revision:
            raise RevisionGone(f"revision {revision} is not kept; the newest is {self._feed.revision}")
        limit = max(1, min(limit, RANGE_KEYS_MAX))
        found: list[Document] = []
        for document in self._documents(prefix, after):
            if len(found) == limit:
                return Page(tuple(found), True, self._feed.revision)
            found.append(document)
        return Page(tuple(found), False, self._feed.revision)

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None], *, under: Registration | None = None) -> bool:
        check_transaction(expected, puts)
        holder = self._holder(under)
        versions = {key: self._version(key) for key in {*expected, *puts}}
        if any(versions[key] != version for key, version in expected.items()):
            return False
        documents = {key: None if value is None else Document(key, value, versions[key] + 1) for key, value in puts.items()}
        for key, document in documents.items():
            self._latest.setdefault(key, []).append(document)
        stored = documents if holder is None else {k: None for k in documents if self._reads.get(_SPACE + k.encode()) is not None}
        try:
            if stored:
                await self._commit({_SPACE + k.encode(): None if d is None else _VERSION.pack(d.version) + d.value for k, d in stored.items()})
        except BaseException:
            self._feed.restore(self._feed.revision)  # it may have been written all the same: whoever watches must look
            raise
        finally:
            for key in documents:
                under_way = self._latest[key]
                under_way.pop(0)
                if not under_way:
                    del self._latest[key]
        for key, document in documents.items():
            if holder is not None and document is not None and holder.alive:
                self._held[key] = (document, holder)
            else:
                self._held.pop(key, None)
        self._tell({k: d if holder is None or holder.alive else None for k, d in documents.items() if d is not None or versions[k]})
        return True

    async def register(self, key: str, value: bytes, *, ttl_ms: int) -> LocalRegistration:
        held = self._held.get(key)
        self._incarnations += 1
        registration = LocalRegistration(self, key, self._incarnations)
        await self.transact({}, {key: value}, under=registration)
        if held is not None and held[1].key == key and held[1].end("another incarnation registered"):
            self.drop(held[1])
        return registration

    def drop(self, registration: LocalRegistration) -> None:
        """Removes what is held under it."""
        gone: dict[str, Document | None] = {k: None for k, (_, holder) in self._held.items() if holder is registration}
        for key in gone:
            del self._held[key]
        self._tell(gone)

    def forget(self, revision: int) -> None:
        """Watches can begin after ``revision`` only."""
        self._feed.compact(revision)

    def watch(self, prefix: str, *, from_revision: int = 0) -> AsyncGenerator[WatchEvent, None]:
        return self._feed.watch(prefix, from_revision)

    async def members(self) -> tuple[Member, ...]:
        return (_ME,)

    async def add_member(self, peer_addr: str) -> Member:
        raise _alone()

    async def promote_member(self, member: int) -> None:
        raise _alone()

    async def remove_member(self, member: int) -> None:
        raise _alone()

    async def status(self) -> Status:
        me = Endpoint("local", True, member=_ME.id, leader=_ME.id, revision=self._feed.revision)
        return Status(_ME.id, 0, self._feed.revision, (me,))

    async def close(self) -> None:
        for _, holder in list(self._held.values()):
            holder.end("the coordinator was closed")
        self._held.clear()
        self._feed.close()

    def _documents(self, prefix: str, after: str) -> Iterator[Document]:
        stored = (
            Document(key[len(_SPACE) :].decode(), raw[8:], _VERSION.unpack_from(raw)[0])
            for key, raw in self._reads.scan(_SPACE + prefix.encode(), _SPACE + after.encode() if after else b"")
        )
        held = sorted((d for k, (d, _) in self._held.items() if k.startswith(prefix) and k > after), key=_order) if self._held else []
        return heapq.merge(stored, held, key=_order) if held else stored

    def _holder(self, under: Registration | None) -> LocalRegistration | None:
        if under is None:
            return None
        if not isinstance(under, LocalRegistration):
            raise Invalid("that registration is another coordinator's")
        if not under.alive:
            raise Conflict(f"the registration of {under.key} is lost", hint="register again")
        return under

    def _version(self, key: str) -> int:
        under_way = self._latest.get(key)
        document = under_way[-1] if under_way else self.peek(key)
        return 0 if document is None else document.version

    def _tell(self, documents: Mapping[str, Document | None]) -> None:
        if documents:
            revision = self._feed.revision + 1
            self._feed.append(tuple(Change(k, d, revision) for k, d in documents.items()))


def _order(document: Document) -> str:
    return document.key  # text sorts as its UTF-8 does


def _alone() -> Conflict:
    return Conflict("a lone broker has no voters to change", hint="start it as a member of a cluster first: docs/operations.md")
