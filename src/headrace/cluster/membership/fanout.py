"""Events to any number of readers, each with a bound: who is behind loses the oldest and is told so."""

import asyncio
from collections import deque

from headrace.cluster.membership.interface import EVENTS_MAX, Event, Reread


class Reader:
    """One of them; an async iterator. What happened since it was made is not missed."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._wakes = asyncio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        if len(self._events) >= EVENTS_MAX:
            self._events.clear()
            event = Reread()
        self._events.append(event)
        self._wakes.set()

    def end(self) -> None:
        self._ended = True
        self._wakes.set()

    def __aiter__(self) -> "Reader":
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._wakes.clear()
            await self._wakes.wait()
        return self._events.popleft()


class Fanout:
    def __init__(self) -> None:
        self._readers: list[Reader] = []

    def reader(self) -> Reader:
        made = Reader()
        self._readers.append(made)
        return made

    def put(self, event: Event) -> None:
        self._readers = [reader for reader in self._readers if not reader._ended]
        for reader in self._readers:
            reader.put(event)

    def end(self) -> None:
        for reader in self._readers:
            reader.end()
