"""The coordinator of a lone broker: documents in its own data directory, one writer, compare-and-swap decided in memory.

A transaction is checked against what is stored or about to be stored, then committed in group with others; it answers once durable.
Invariant: a version is read only from ``_latest`` (transactions under way) or the store, in this order, so two overlapping transactions on one key
never both succeed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Protocol

from headrace.cluster.coordinator import RANGE_KEYS_MAX, TRANSACTION_OPERATIONS_MAX, VALUE_BYTES_MAX, Change, Document, Page
from headrace.model.errors import Invalid

_VERSION = Struct(">Q")
_SPACE = b"doc/"


class _Reads(Protocol):
    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]: ...


class LocalRegistration:
    """A lone broker is always present."""

    def __init__(self) -> None:
        self.alive = True

    async def release(self) -> None:
        self.alive = False


class LocalCoordinator:
    """Implements ``Coordinator`` over a state store's reads and a group-committing write."""

    def __init__(self, reads: _Reads, commit: Callable[[Mapping[bytes, bytes | None]], Coroutine[Any, Any, None]]) -> None:
        self._reads = reads
        self._commit = commit
        self._latest: dict[str, list[Document | None]] = {}
        self._revision = 0
        self._watches: list[tuple[str, asyncio.Queue[Sequence[Change]]]] = []

    def peek(self, key: str) -> Document | None:
        """The committed document, at once: what only the local coordinator can do, used to look names up lazily."""
        raw = self._reads.get(_SPACE + key.encode())
        return None if raw is None else Document(key, raw[8:], _VERSION.unpack_from(raw)[0])

    async def get(self, key: str) -> Document | None:
        return self.peek(key)

    async def range(self, prefix: str, *, after: str = "", limit: int = RANGE_KEYS_MAX) -> Page:
        limit = min(limit, RANGE_KEYS_MAX)
        found: list[Document] = []
        for key, raw in self._reads.scan(_SPACE + prefix.encode(), _SPACE + after.encode() if after else b""):
            if len(found) == limit:
                return Page(tuple(found), True, self._revision)
            found.append(Document(key[len(_SPACE) :].decode(), raw[8:], _VERSION.unpack_from(raw)[0]))
        return Page(tuple(found), False, self._revision)

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None]) -> bool:
        if len(expected) + len(puts) > TRANSACTION_OPERATIONS_MAX or any(v is not None and len(v) > VALUE_BYTES_MAX for v in puts.values()):
            raise Invalid(f"a transaction has at most {TRANSACTION_OPERATIONS_MAX} operations on values of at most {VALUE_BYTES_MAX} bytes")
        versions = {key: self._version(key) for key in {*expected, *puts}}
        if any(versions[key] != version for key, version in expected.items()):
            return False
        documents = {key: None if value is None else Document(key, value, versions[key] + 1) for key, value in puts.items()}
        for key, document in documents.items():
            self._latest.setdefault(key, []).append(document)
        try:
            await self._commit({_SPACE + k.encode(): None if d is None else _VERSION.pack(d.version) + d.value for k, d in documents.items()})
        finally:
            for key in documents:
                under_way = self._latest[key]
                under_way.pop(0)
                if not under_way:
                    del self._latest[key]
        self._revision += 1
        self._notify([Change(k, d, self._revision) for k, d in documents.items()])
        return True

    async def register(self, key: str, value: bytes, *, ttl_ms: int) -> LocalRegistration:
        return LocalRegistration()

    async def watch(self, prefix: str, *, from_revision: int = 0) -> AsyncIterator[Sequence[Change]]:
        queue: asyncio.Queue[Sequence[Change]] = asyncio.Queue()
        entry = (prefix, queue)
        self._watches.append(entry)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watches.remove(entry)

    async def close(self) -> None:
        self._watches.clear()

    def _version(self, key: str) -> int:
        under_way = self._latest.get(key)
        document = under_way[-1] if under_way else self.peek(key)
        return 0 if document is None else document.version

    def _notify(self, changes: list[Change]) -> None:
        for prefix, queue in self._watches:
            mine = [c for c in changes if c.key.startswith(prefix)]
            if mine:
                queue.put_nowait(mine)
