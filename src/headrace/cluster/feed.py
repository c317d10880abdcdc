"""The recent changes of a store in this process, and watches that read along in it: what ``local`` and ``memory`` share.

Owns how far back a watch can begin, and when it is told to read again. Does not know documents' versions or who may see what.

I1 a watch keeps only its place, never a queue: a slow reader costs nothing and is told ``Reread`` once its place is forgotten. I2 entries and bytes
kept are bounded. I3 revisions in it are dense and ascending.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from itertools import islice

from headrace.cluster.coordinator import Change, Changes, Reread, WatchEvent, total_bytes

FEED_ENTRIES_MAX = 10_000
FEED_BYTES_MAX = 4 * 1024 * 1024
CUT_OFF, ENDED = -1, -2
"""What ``visible`` may say instead of a revision: nothing is seen now, or nothing ever again."""
EVENT_CHANGES_MAX = 1000
"""Changes after which one event ends, at a whole revision."""


class Feed:
    """See the module's head."""

    def __init__(self, *, entries_max: int = FEED_ENTRIES_MAX, bytes_max: int = FEED_BYTES_MAX) -> None:
        self.revision = 0
        self.restores = 0
        self._closed = False
        self._entries_max, self._bytes_max, self._bytes = entries_max, bytes_max, 0
        self._entries: deque[tuple[int, tuple[Change, ...]]] = deque()
        self._sleepers: list[asyncio.Future[None]] = []

    @property
    def oldest(self) -> int:
        """The first revision from which a watch sees everything."""
        return self._entries[0][0] if self._entries else self.revision + 1

    def append(self, changes: tuple[Change, ...]) -> None:
        """What the revision after the newest one did."""
        self.revision += 1
        self._entries.append((self.revision, changes))
        self._bytes += total_bytes(changes)
        while len(self._entries) > self._entries_max or self._bytes > self._bytes_max:
            self._bytes -= total_bytes(self._entries.popleft()[1])
        self.wake()

    def compact(self, revision: int) -> None:
        """Forgets what happened up to and with ``revision``."""
        while self._entries and self._entries[0][0] <= revision:
            self._bytes -= total_bytes(self._entries.popleft()[1])
        self.wake()

    def restore(self, revision: int) -> None:
        """Goes on from another state, whose revision is this."""
        self._entries.clear()
        self._bytes = 0
        self.revision = revision
        self.restores += 1
        self.wake()

    def close(self) -> None:
        """Ends every watch."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Lets every watch look again."""
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def watch(self, prefix: str, from_revision: int, visible: Callable[[], int] | None = None) -> AsyncGenerator[WatchEvent, None]:
        """As ``Coordinator.watch``. ``visible`` says up to which revision this reader sees anything now; whoever moves it calls ``wake``."""
        restores = self.restores
        place = from_revision or self.revision + 1
        while not self._closed:
            limit = self.revision if visible is None else min(self.revision, visible())
            if limit == ENDED:
                return
            if limit != CUT_OFF and (self.restores != restores or place > self.revision + 1):
                yield Reread("restored")
                return
            if limit >= place:
                if place < self.oldest:
                    yield Reread("compacted")
                    return
                found: list[Change] = []
                for revision, changes in islice(self._entries, place - self.oldest, limit + 1 - self.oldest):
                    found += [c for c in changes if c.key.startswith(prefix)]
                    place = revision + 1
                    if len(found) >= EVENT_CHANGES_MAX:
                        break
                if found:
                    yield Changes(tuple(found), place - 1)
                continue
            sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._sleepers.append(sleeper)
            try:
                await sleeper
            finally:
                if sleeper in self._sleepers:
                    self._sleepers.remove(sleeper)
