"""Threads of storage: one lane runs one piece of work at a time, in order, off the loop, and reports back on the loop.

Owns the hand-over between loop and thread. Knows nothing of what the work does. The flusher is the lane whose work is ``pwritev_durable`` and
nothing else, so it holds the GIL only for the hand-over; slow or rare work (preparing files, LMDB commits) has lanes of its own.

I1 ``done`` of each piece of work is called exactly once, on the loop, in the order of submission. I2 a lane never drops work: ``close`` lets it end.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

Work = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]


class Lane(Protocol):
    """Runs work in order, away from the caller."""

    def submit(self, work: Work, done: Done) -> None:
        """Runs ``work()`` later, then ``done(result, error)`` on the loop (error None when it returned)."""

    def close(self) -> None:
        """No more work is taken; returns when all that was submitted has run (its ``done`` calls may still wait for the loop)."""


class ThreadLane:
    """A lane with a thread of its own, woken through a ``SimpleQueue``; about 30 us from submit to done when both sides are idle."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, name: str) -> None:
        self._loop = loop
        self._queue: SimpleQueue[tuple[Work, Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._closed = False

    def submit(self, work: Work, done: Done) -> None:
        assert not self._closed, "work for a closed lane"
        self._queue.put((work, done))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        get = self._queue.get
        post = self._loop.call_soon_threadsafe
        while (item := get()) is not None:
            work, done = item
            result: Any = None
            error: BaseException | None = None
            try:
                result = work()
            except BaseException as e:
                error = e
            try:
                post(done, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody is left to tell
            del item, work, done, result, error  # an idle lane must not keep a flush's payloads alive


class SteppedLane:
    """A lane without a thread, for simulation and tests: work runs in ``step()``, or at once when ``eager``."""

    def __init__(self, *, eager: bool = False) -> None:
        self._eager = eager
        self._waiting: deque[tuple[Work, Done]] = deque()
        self._running = False

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, work: Work, done: Done) -> None:
        self._waiting.append((work, done))
        if self._eager and not self._running:
            self._running = True
            try:
                while self.step():
                    pass
            finally:
                self._running = False

    def step(self) -> bool:
        """Runs the oldest waiting work with its ``done``; False when there is none."""
        if not self._waiting:
            return False
        work, done = self._waiting.popleft()
        result: Any = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as e:
            error = e
        done(result, error)
        return True

    def drop(self) -> None:
        """The process dies: what waits never runs."""
        self._waiting.clear()

    def close(self) -> None:
        while self.step():
            pass
