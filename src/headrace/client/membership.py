"""A client's membership of a cohort or a group of readers of a cluster: where the group has its home, and what it was given there.

Owns the channel at the home's broker, which it follows as it moves, and the newest assignment. Does not use what it is given: ``sharing`` does.
Invariant: of two assignments told on one channel the one of the higher generation counts.
"""

from collections.abc import Callable
from typing import Any

from headrace.client.connection import Connection
from headrace.client.routing import Router
from headrace.client.subscription import CLOSE_TIMEOUT_S, Subscription
from headrace.core.group_records import home
from headrace.model.errors import HeadraceError
from headrace.wire import control


class Membership(Subscription):
    """See the module's head."""

    def __init__(self, connection: Connection, name: str, *, router: Router, key: str, group: str, count: int) -> None:
        """``key``: what chooses the home among ``count`` partitions, as far as they are known."""
        super().__init__(connection, name, None, router=router, partitions=(home(key, max(1, count)),))
        self.token = connection.ambient.bits(63) | 1
        self.known = False
        """Whether anything was assigned yet, be it nothing."""
        self.static_name = ""
        self.strategy = "sticky"
        self._group = group
        self.told: Callable[[], None] = _nobody
        """Called whenever there is another assignment, or it has ended for good."""
        self._heard = -1
        """Generation of the newest assignment told on this channel."""

    def opening(self, *, resumed: bool) -> control.Message:
        self._heard = -1
        return control.Join(
            channel=self.channel, name=self.name, group=self._group, member=self.static_name, strategy=self.strategy, token=self.token
        )

    def _follows(self, error: HeadraceError) -> bool:
        rows = error.detail.get("partitions")  # it says where the home is, of a queue that was just made, too
        number = rows[0].get("partition") if isinstance(rows, (list, tuple)) and rows and isinstance(rows[0], dict) else None
        if isinstance(number, int):
            self.partition = number
        return super()._follows(error)

    def opened(self, reply: Any) -> None:
        self._open = True
        if self._router is not None:
            self._router.sat_down(self)
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def event(self, event: control.Event) -> None:
        if isinstance(event, control.Assigned) and event.generation >= self._heard:
            self._heard = self.generation = event.generation
            self.assigned = event.partitions
            self.known = True
            self.told()

    def release(self, generation: int) -> None:
        """Nothing is used any more that was not assigned in ``generation``. Said on this channel; on the next one it has to be said again."""
        if self.channel and self._connection.up:
            self._connection.tell(control.Released(channel=self.channel, generation=generation))

    def end(self, error: HeadraceError | None) -> None:
        super().end(error)
        self.told()

    async def close(self) -> None:
        """Leaves the group: others may have at once what was assigned."""
        self._stopping = True
        await self._connection.part(self, control.Unsubscribe(channel=self.channel), CLOSE_TIMEOUT_S)
        self.end(None)

    def settled(self, correlation: int, count: int, stale: list[tuple[int, int]]) -> None:
        """Nothing is settled on this channel."""

    def delivered(self, partition: int, epoch: int, attempt: int, first_offset: int, count: int, base_offset: int, blob: bytes, flags: int) -> None:
        """Nothing is delivered on this channel."""

    def flush(self, out: list[bytes], writable: bool) -> None:
        """There is nothing to send."""


def _nobody() -> None:
    pass
