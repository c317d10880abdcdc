"""Keeps loops over many partitions from holding the event loop."""

import asyncio
from collections.abc import Callable
from typing import Final

SLICE_NS: Final = 500_000
PAUSE_S: Final = 0.001


class Slices:
    """Keeps a loop over many partitions from holding the event loop for more than 0.5 ms."""

    __slots__ = ("_now_ns", "_until_ns")

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._until_ns = self._now_ns() + SLICE_NS

    def over(self) -> bool:
        return self._now_ns() > self._until_ns

    async def pause(self) -> None:
        await asyncio.sleep(PAUSE_S)  # a timer: sleep(0) would starve the flusher's completions
        self._until_ns = self._now_ns() + SLICE_NS
