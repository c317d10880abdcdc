"""How fast what others lack is sent to them: bytes a second, more where more than that comes in.

Owns one allowance for all partitions and followers of a broker. Does not know what is sent.

I1 Over any stretch of time at most rate x time + twice what came in (+ one piece a sender) is let through. I2 Whoever lacks something catches up:
what is sent is faster than what comes in.
"""

import asyncio
from collections.abc import Callable
from typing import Final

SAVED_S: Final = 1.0
"""An allowance that is not used is kept for so long."""


class Throttle:
    """``now``: seconds of a clock that only runs forward. ``bytes_per_second`` 0 = no bound."""

    __slots__ = ("_at", "_left", "_now", "bytes_per_second", "sent")

    def __init__(self, bytes_per_second: int, now: Callable[[], float]) -> None:
        self.bytes_per_second = bytes_per_second
        self.sent = 0
        """Bytes in all."""
        self._now = now
        self._at = now()
        self._left = bytes_per_second * SAVED_S

    def came_in(self, nbytes: int) -> None:
        """So much was appended here: twice that may go out beside what may anyway."""
        self._left = min(self._left + 2 * nbytes, self.bytes_per_second * SAVED_S)

    async def spend(self, nbytes: int) -> None:
        """Returns once so much may be sent. What is larger than what is left is let through and paid for by those that come after."""
        self._gather()
        while self._left <= 0 and self.bytes_per_second:
            await asyncio.sleep(min(0.1, max(0.001, -self._left / self.bytes_per_second)))
            self._gather()
        self._left -= nbytes
        self.sent += nbytes

    def _gather(self) -> None:
        now = self._now()
        self._left = min(self._left + (now - self._at) * self.bytes_per_second, self.bytes_per_second * SAVED_S)
        self._at = now
