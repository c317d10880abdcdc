"""The coordinator's documents as this broker knows them, followed without a gap.

Owns the copy in memory and who is told of what changed. Does not know what documents mean; those under other prefixes than the named ones are not
kept. Everything is followed as one, so that what was written in one transaction is seen at once.

I1 the copy is at every moment that of one revision of the store, never a mixture. I2 a listener is told of each difference between two such
revisions once, in the order of keys or changes, and then ``turned`` is called once for all of them. I3 while the coordinator is not reached the copy
stays as it was; ``synced`` says whether there is one at all.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Final, TypeAlias

from headrace.cluster.coordinator import Coordinator, Document, Snapshot, follow
from headrace.log import get_logger
from headrace.model.errors import CoordinatorUnavailable, RevisionGone

_log = get_logger("cluster")

RETRY_S: Final = 0.2

Told: TypeAlias = Callable[[str, Document | None, Document | None], None]
"""Key, the document before and after; None = absent. Called at once within the loop; must not raise."""


class Mirror:
    """See the module's head."""

    def __init__(self, coordinator: Coordinator, prefixes: tuple[str, ...]) -> None:
        self._coordinator = coordinator
        self._prefixes = prefixes
        self._documents: dict[str, Document] = {}
        self._told: list[tuple[str, Told]] = []
        self._turned: list[Callable[[], None]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self.synced = asyncio.Event()
        self.revision = 0
        self.rereads = 0
        """How often everything was read, the first time too."""

    def on_change(self, prefix: str, told: Told) -> None:
        """Of documents whose key begins with ``prefix``; to be called before ``start``."""
        self._told.append((prefix, told))

    def on_turn(self, turned: Callable[[], None]) -> None:
        self._turned.append(turned)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="the cluster's documents")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def get(self, key: str) -> Document | None:
        return self._documents.get(key)

    def follows(self, key: str) -> bool:
        """Whether a document of that key is kept here."""
        return key.startswith(self._prefixes)

    def under(self, prefix: str) -> Iterator[Document]:
        """Documents by key; the copy must not change meanwhile, so: no await."""
        return (self._documents[key] for key in sorted(self._documents) if key.startswith(prefix))

    async def moved(self, versions: Mapping[str, int], *, timeout_s: float) -> bool:
        """Waits until no document of ``versions`` has that version (0 = absent) here any more. False: that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while any(self._version(key) == version for key, version in versions.items()):
                    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(waiting)
                    await waiting
        except TimeoutError:
            return False
        return True

    def _version(self, key: str) -> int:
        document = self._documents.get(key)
        return 0 if document is None else document.version

    async def _follow(self) -> None:
        reached = True
        while True:
            try:
                async with aclosing(follow(self._coordinator, "")) as events:
                    async for event in events:
                        if not reached:
                            _log.info("the coordinator is reached again")
                        reached = True
                        if isinstance(event, Snapshot):
                            self._replace(event)
                        else:
                            self._take([(c.key, c.document) for c in event.changes], event.revision)
            except (CoordinatorUnavailable, RevisionGone) as e:
                if reached:
                    _log.warning("the cluster's documents cannot be followed: %s", e)
                reached = False
            except Exception:
                _log.exception("following the cluster's documents failed; it is begun again")
            await asyncio.sleep(RETRY_S)

    def _replace(self, snapshot: Snapshot) -> None:
        self.rereads += 1
        now = {d.key: d for d in snapshot.documents}
        changes: list[tuple[str, Document | None]] = [(key, None) for key in sorted(self._documents) if key not in now]
        changes += [(d.key, d) for d in snapshot.documents if self._documents.get(d.key) != d]
        self._take(changes, snapshot.revision)
        self.synced.set()

    def _take(self, changes: list[tuple[str, Document | None]], revision: int) -> None:
        """Makes all changes, then tells of them: who is told finds them all made."""
        told: list[tuple[str, Document | None, Document | None]] = []
        for key, document in changes:
            if self.follows(key):
                before = self._documents.get(key)
                if document is not None:
                    self._documents[key] = document
                elif before is not None:
                    del self._documents[key]
                told.append((key, before, document))
        self.revision = revision
        for key, before, document in told:
            for prefix, tell in self._told:
                if key.startswith(prefix) and before != document:
                    tell(key, before, document)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for turned in self._turned:
            turned()
