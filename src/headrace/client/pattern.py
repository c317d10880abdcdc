"""Reading all streams whose name matches a pattern, those included that appear later.

One reader and one task per stream; a bounded queue of chunks joins them, so a full one holds every reader back. What was missed while the
connection was down is found by listing again.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from headrace.client.reader import Reader, Record
from headrace.model.config import glob_matches
from headrace.model.errors import HeadraceError, NotConnected, NotFound
from headrace.wire import control

if TYPE_CHECKING:
    from typing import Self

    from headrace.client.client import Client

log = logging.getLogger("headrace.client.pattern")

CHUNK = 256
CHUNKS_MAX = 16
STREAMS_MAX = 1000


class PatternReader:
    """An async iterator of the records of many streams (``record.stream`` names each one's). Made by ``client.read_pattern``."""

    def __init__(self, client: "Client", pattern: str, options: dict[str, Any]) -> None:
        self.pattern = pattern
        self._client = client
        self._options = options
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._chunks: asyncio.Queue[list[Record] | None] = asyncio.Queue(CHUNKS_MAX)
        self._here: list[Record] = []
        self._changed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._error: HeadraceError | None = None
        self._first = True

    @property
    def streams(self) -> list[str]:
        """Names of the streams that are read now."""
        return sorted(self._tasks)

    async def __aenter__(self) -> "Self":
        await self.start()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Opens a reader for every stream there is."""
        self._client.add_catalogue_listener(self._on_change)
        await self._look()
        self._watcher = asyncio.create_task(self._watch(), name=f"headrace-pattern-{self.pattern}")

    def __aiter__(self) -> "Self":
        return self

    async def __anext__(self) -> Record:
        while not self._here:
            chunk = await self._chunks.get()
            if chunk is None:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            chunk.reverse()
            self._here = chunk
        return self._here.pop()

    def _on_change(self, change: control.CatalogueChanged | None) -> None:
        if change is None or (change.kind == "stream" and glob_matches(self.pattern, change.name)):
            self._changed.set()

    async def _watch(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._look()
            except HeadraceError as e:
                log.info("the streams matching %r could not be listed: %s", self.pattern, e)

    async def _look(self) -> None:
        """Opens readers for streams that are new. What appears later is read from its beginning, so that nothing of it is missed."""
        first, self._first = self._first, False
        for info in await self._client.list(self.pattern, kind="stream", limit=STREAMS_MAX):
            if info.name in self._tasks:
                continue
            options = dict(self._options)
            if not first and not options.get("cursor") and not options.get("group"):
                options["start"] = "earliest"
            reader = self._client.read(info.name, **options)
            try:
                await reader.start()
            except NotFound:
                continue
            task = asyncio.create_task(self._pump(reader), name=f"headrace-read-{info.name}")
            self._tasks[info.name] = task

    async def _pump(self, reader: Reader) -> None:
        try:
            while records := await reader.take(CHUNK):
                await self._chunks.put(records)
        except NotFound:
            pass  # deleted; it may be declared again
        except HeadraceError as e:
            self._error = e
            await self._chunks.put(None)
        finally:
            self._tasks.pop(reader.name, None)
            await reader.close()

    async def close(self) -> None:
        """Ends all readers."""
        self._client.remove_catalogue_listener(self._on_change)
        tasks = [*self._tasks.values(), *([self._watcher] if self._watcher is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._error = self._error or NotConnected(f"the reader of {self.pattern!r} was closed")
