"""Entries for replicas that are behind what is in memory: read from the log in big pieces, one read a replica at a time.

Owns what was read and not yet sent. Does not decide what is sent: an owner's machine is told that less was sent, and names the range again.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from headrace.model.cluster import BrokerId
from headrace.model.errors import StorageError

Read = Callable[[int, int], Awaitable[list[bytes]]]
"""(first index, end): entries from the first on, as far as one read goes."""
Spend = Callable[[int], Awaitable[None]]
"""Returns once so many bytes may be sent."""
PAUSE_S: Final = 0.2


class CatchUp:
    """Of one partition."""

    __slots__ = ("_again", "_ahead", "_generation", "_read", "_reading", "_spawn", "_spend")

    def __init__(
        self, read: Read, spend: Spend, spawn: Callable[[Coroutine[Any, Any, None]], None], again: Callable[[float], None]
    ) -> None:
        """``again(seconds)``: the machine is to be asked again, then."""
        self._read = read
        self._spend = spend
        self._spawn = spawn
        self._again = again
        self._ahead: dict[BrokerId, tuple[int, list[bytes]]] = {}
        self._reading: dict[BrokerId, bool] = {}
        self._generation = 0

    def pieces(self, to: BrokerId, first: int, end: int, bytes_max: int) -> tuple[list[bytes], int]:
        """What was read for ``to`` from ``first`` on, and where that ends; if there is none, it is read now."""
        at, raws = self._ahead.get(to, (0, []))
        found: list[bytes] = []
        if at <= first < at + len(raws):
            for raw in raws[first - at : end - at]:
                bytes_max -= len(raw)
                if found and bytes_max < 0:
                    break
                found.append(raw)
            if first + len(found) == at + len(raws):
                del self._ahead[to]
        elif to not in self._reading:
            self._reading[to] = True
            self._spawn(self._fill(to, first, end, self._generation))
        return found, first + len(found)

    async def _fill(self, to: BrokerId, first: int, end: int, generation: int) -> None:
        raws: list[bytes] = []
        try:
            raws = await self._read(first, end)
            await self._spend(sum(map(len, raws)))
        except StorageError:
            pass  # the partition is isolated, its owner was told
        finally:
            self._reading.pop(to, None)
        if generation == self._generation and raws:
            self._ahead[to] = (first, raws)
        self._again(0.0 if raws else PAUSE_S)

    def clear(self) -> None:
        """What was read may not be in the log any more."""
        self._generation += 1
        self._ahead.clear()
