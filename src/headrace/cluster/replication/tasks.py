"""What goes on between replicas beside their turns: reads for others, copies given and taken, data set aside.

Owns the tasks, and which of them outlast the end of the driver.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from headrace.log import get_logger

_log = get_logger("replicas")


class Tasks:
    """See the module's head."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._passing: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Something for another broker, which may end at any time."""
        self._begin(work, self._passing)

    def settle(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something that goes on to its end although this broker stops."""
        return self._begin(work, self._settling)

    def stop(self) -> None:
        """What may end at any time ends."""
        for task in self._passing:
            task.cancel()

    async def settled(self) -> None:
        """Returns once nothing goes on any more that must come to its end."""
        while self._settling:
            await asyncio.wait(self._settling)

    def _begin(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.warning("what goes on between replicas has failed: %s", error, exc_info=error)

        task.add_done_callback(done)
        return task
