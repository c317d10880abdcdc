"""What consumers of queues and readers of streams share: a channel, a buffer of deliveries that is handed out without awaiting, and an end.

A delivery is kept as the bytes that came and opened record by record as it is handed out. Invariant: once ended, the iterator first hands out
nothing more and raises the reason (or stops, when the application ended it).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from headrace.client.connection import Connection
from headrace.client.opening import Item, Opener
from headrace.client.routing import Router
from headrace.model.errors import ConnectionLost, HeadraceError, Unavailable
from headrace.wire import control
from headrace.wire.batch import Record
from headrace.wire.frames import DeliverFlag

T = TypeVar("T")

CLOSE_TIMEOUT_S: Final = 2.0
AUTO_ACK: Final = int(DeliverFlag.AUTO_ACK)


class Delivery:
    """Records of one DELIVER frame that were not all handed out yet."""

    __slots__ = ("again", "attempt", "auto_acked", "end", "epoch", "first", "flags", "items", "nbytes", "partition")

    def __init__(self, opener: Opener, partition: int, epoch: int, attempt: int, first: int, count: int, base: int, blob: bytes, flags: int) -> None:
        self.partition = partition
        self.epoch = epoch
        self.attempt = attempt
        self.first = first
        """Next offset to hand out."""
        self.end = first + count
        self.flags = flags
        self.auto_acked = bool(flags & AUTO_ACK)
        self.nbytes = len(blob)
        self.items: Iterator[Item] = opener.records(partition, blob, base, first, first + count)
        self.again: set[int] = set()
        """Offsets of which an earlier delivery was here, unsettled, when this one came."""


class Subscription:
    """See the module's head."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        on_event: Callable[[control.Event], None] | None,
        *,
        router: Router | None = None,
        partitions: tuple[int, ...] = (),
    ) -> None:
        """``router``: in a cluster, who leads it to the owner of the first of ``partitions``."""
        self.name = name
        self.partition = partitions[0] if partitions else 0
        self.channel = 0
        self.marked = False
        self.assigned: tuple[int, ...] = ()
        """Partitions this subscription has now."""
        self.generation = 0
        self._partitions = partitions
        self._router = router
        self._connection = connection
        self._on_event = on_event
        self._buffer: deque[Delivery] = deque()
        self._opener = Opener()
        self._current: Delivery | None = None
        self._epochs: dict[int, int] = {}
        self._open = False
        self._waiters: list[asyncio.Future[None]] = []
        self._ready: asyncio.Future[None] | None = None
        self._error: HeadraceError | None = None
        self._stopping = False

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Opens it; raises what the broker refuses it for."""
        self._ready = self._connection.loop.create_future()
        if self._router is None:
            self._connection.attach(self)
        else:
            self._router.place(self)
        try:
            await self._ready
        except asyncio.CancelledError:
            if self._router is not None:
                self._router.forget(self)
            self._connection.detach(self, control.Unsubscribe(channel=self.channel))
            raise

    @property
    def connection(self) -> Connection:
        """Where it sits now."""
        return self._connection

    @connection.setter
    def connection(self, connection: Connection) -> None:
        self._connection = connection

    def goodbye(self) -> control.Message:
        return control.Unsubscribe(channel=self.channel)

    def _follows(self, error: HeadraceError) -> bool:
        """Goes to who serves its partition, if ``error`` says that this is not who it was asked of."""
        router = self._router
        if router is None or self._stopping or not router.follows(self, error):
            return False
        self.lost()
        self._connection.forget(self)
        router.moved(self, error)
        return True

    def opening(self, *, resumed: bool) -> control.Message:
        raise NotImplementedError

    def opened(self, reply: Any) -> None:
        self._open = True
        if self._router is not None:
            self._router.sat_down(self)
        self.assigned, self.generation = tuple(reply.assigned), reply.generation
        self._epochs.update(reply.epochs)
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        self._wake()
        self._connection.mark(self)

    def open_failed(self, error: HeadraceError) -> bool:
        if self._follows(error):
            return False
        if isinstance(error, ConnectionLost) or (isinstance(error, Unavailable) and error.retriable):
            return True
        self.end(error)
        return False

    def lost(self) -> None:
        self._open = False

    def closed_by_broker(self, error: HeadraceError | None) -> None:
        self._open = False
        if error is not None and self._follows(error):
            return
        if isinstance(error, Unavailable) and error.retriable and not self._stopping:  # a partition was repaired
            self.lost()
            self._connection.reopen(self, resumed=False)
        elif error is not None:
            self._connection.forget(self)
            self.end(error)

    def settled(self, correlation: int, count: int, stale: list[tuple[int, int]]) -> None:
        raise NotImplementedError

    def delivered(self, partition: int, epoch: int, attempt: int, first_offset: int, count: int, base_offset: int, blob: bytes, flags: int) -> None:
        raise NotImplementedError

    def flush(self, out: list[bytes], writable: bool) -> None:
        raise NotImplementedError

    def end(self, error: HeadraceError | None) -> None:
        """Nothing more will come."""
        self._error = self._error or error
        self._stopping = True
        if self._router is not None:
            self._router.forget(self)
        if self._ready is not None and not self._ready.done():
            if error is not None:
                self._ready.set_exception(error)
            else:
                self._ready.cancel()
        self._wake()

    @property
    def ended(self) -> bool:
        """It was left, or the broker ended it."""
        return self._stopping and not self.channel

    # ------------------------------------------------------------ handing out

    def _next(self) -> tuple[Delivery, int, Record] | None:
        """The next record that is here already."""
        while not self._stopping:
            current = self._current
            if current is None:
                if not self._buffer:
                    return None
                current = self._current = self._buffer.popleft()
            item = next(current.items, None)
            if item is not None:
                current.first = item[0] + 1
                return current, item[0], item[1]
            self._current = None
            self._exhausted(current)
        return None

    def _exhausted(self, delivery: Delivery) -> None:
        """All of ``delivery`` was handed out."""

    async def _wait(self) -> None:
        """Returns when there may be something to hand out; raises how it ended, ``StopAsyncIteration`` when on purpose."""
        if self._stopping:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        waiter = self._connection.loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters = self._waiters
        if waiters:
            self._waiters = []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # ------------------------------------------------------------ frames for the other kinds of channels

    def confirmed(self, first: int, count: int, base_offset: int, level: int, duplicate: bool) -> None:
        pass

    def refused(self, first: int, count: int, error: HeadraceError) -> None:
        pass

    def fetch_ended(self, correlation: int, count: int) -> None:
        pass

    def idle(self) -> bool:
        return False

    def owed(self) -> int | None:
        return None

    def tick(self, now_ms: int) -> None:
        pass

    def event(self, event: control.Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
