"""Whether one registration is alive, and who waits to hear that it is not: the part that all registrations share.

Owns the way from alive to lost, which is gone once. Does not know why, nor who renews it.
"""

import asyncio


class Presence:
    """See the module's head; times are the running loop's."""

    def __init__(self, key: str, incarnation: int, asked_at: float) -> None:
        self.key = key
        self.incarnation = incarnation
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._asked_at = asked_at

    @property
    def alive(self) -> bool:
        return not self._ended.done()

    @property
    def silent_ms(self) -> int:
        return int((self._loop.time() - self._asked_at) * 1000)

    def renewed(self, asked_at: float) -> None:
        """The question asked then was answered: it is alive."""
        self._asked_at = max(self._asked_at, asked_at)

    def end(self, reason: str) -> bool:
        """It is lost or released. Whether that is news."""
        if self._ended.done():
            return False
        self._ended.set_result(reason)
        return True

    async def lost(self) -> str:
        return await asyncio.shield(self._ended)
