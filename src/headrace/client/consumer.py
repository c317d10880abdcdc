"""A consumer of a queue: messages as they come, settlements as ranges, leases kept over broken connections.

Invariants: I1 ``held`` are exactly the messages delivered here whose settlement was not yet sent. I2 a resumed subscription names what it holds, so
nothing it still works on is given to others and nothing it lost stays leased. I3 when it stops, messages that were not handed out go back at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from headrace.client.connection import Connection
from headrace.client.message import NOTHING, Message
from headrace.client.payload import Duration, milliseconds
from headrace.client.routing import Router
from headrace.client.settlements import EXTENSION, Settlements
from headrace.client.spans import Span, spans
from headrace.client.subscription import AUTO_ACK, CLOSE_TIMEOUT_S, Delivery, Subscription
from headrace.core.filters import parse
from headrace.model import limits
from headrace.model.errors import HeadraceError, Invalid, NotConnected
from headrace.wire import control
from headrace.wire.frames import CREDIT, EXTEND, FETCH, RANGE, Op, SettleFlag

if TYPE_CHECKING:
    from typing import Self

_DELAY = int(SettleFlag.DELAY)


class Consumer(Subscription):
    """An async iterator of messages. Made by ``client.consume``; leave it (or ``close``) to return what was prefetched."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        prefetch: int = limits.PREFETCH_MESSAGES,
        prefetch_bytes: int = limits.PREFETCH_BYTES,
        auto_ack: bool = False,
        lease: Duration | None = None,
        filter: str | control.Filter | None = None,
        cohort: str = "",
        member: str = "",
        auto_extend: bool = False,
        pull: bool = False,
        on_event: Callable[[control.Event], None] | None = None,
        partitions: tuple[int, ...] = (),
        router: Router | None = None,
    ) -> None:
        super().__init__(connection, name, on_event, router=router, partitions=partitions)
        if not 1 <= prefetch <= limits.PREFETCH_MESSAGES_MAX:
            raise Invalid(f"prefetch is {prefetch}; it lies in 1..{limits.PREFETCH_MESSAGES_MAX}")
        self.prefetch = prefetch
        self.auto_ack = auto_ack
        self.auto_extend = auto_extend
        self.lease_ms = milliseconds(lease, what="lease", most=limits.LEASE_MS_MAX)
        self._asked_lease_ms = self.lease_ms
        self._prefetch_bytes = prefetch_bytes
        self._filter = parse(filter) if isinstance(filter, str) else filter
        self._cohort = cohort
        self._member = member
        self._pull = pull
        self._token = 0 if auto_ack else connection.ambient.bits(63) | 1
        # without leases there is nothing to resume: a new subscription starts with its whole credit
        self._once_open = False
        self._held: dict[int, set[int]] = {}
        self._settlements = Settlements()
        self._credit_messages = 0
        self._credit_bytes = 0
        self._extend_at_ms = 0
        self._fetches: dict[int, asyncio.Future[int]] = {}
        self._fetch_correlation = 0
        self._fetching = asyncio.Lock()

    async def __aenter__(self) -> "Self":
        await self.start()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    def __aiter__(self) -> "Self":
        return self

    async def __anext__(self) -> Message:
        while True:
            message = self.next_ready()
            if message is not None:
                return message
            await self._wait()

    # ------------------------------------------------------------ handing out

    def next_ready(self) -> Message | None:
        """The next message if one is here already, without waiting."""
        current = self._current
        item = None if current is None or self._stopping else next(current.items, None)
        if item is None:
            found = self._next()
            if found is None:
                return None
            current, offset, record = found
        else:
            assert current is not None
            offset, record, _ = item
            current.first = offset + 1
        if current.auto_acked:
            self._credit_messages += 1
            if self._credit_messages * 2 >= self.prefetch:
                self._connection.mark(self)
        return Message(self, current.partition, offset, record, current.attempt, current.auto_acked, current.epoch)

    async def take(self, most: int) -> list[Message]:
        """Those that are here, at least one and at most ``most``; none only once the consumer was stopped or closed."""
        try:
            messages = [await self.__anext__()]
        except StopAsyncIteration:
            return []
        while len(messages) < most and (message := self.next_ready()) is not None:
            messages.append(message)
        return messages

    def _exhausted(self, delivery: Delivery) -> None:
        if delivery.auto_acked:
            self._credit_bytes += delivery.nbytes
            self._connection.mark(self)

    def delivered(self, partition: int, epoch: int, attempt: int, first_offset: int, count: int, base_offset: int, blob: bytes, flags: int) -> None:
        self._epochs[partition] = epoch
        delivery = Delivery(self._opener, partition, epoch, attempt, first_offset, count, base_offset, blob, flags)
        if not flags & AUTO_ACK:
            held = self._held.get(partition)
            if held is None:
                held = self._held[partition] = set()
            if attempt > 1:
                delivery.again = held.intersection(range(first_offset, first_offset + count))
            held.update(range(first_offset, first_offset + count))
        self._buffer.append(delivery)
        if self._waiters:
            self._wake()

    # ------------------------------------------------------------ settling

    def settle(self, partition: int, offset: int, action: int, delay: Duration | None, confirmed: bool) -> Awaitable[None]:
        flags, delay_ms = action, 0
        if delay is not None:
            delay_ms = milliseconds(delay, what="delay", most=0xFFFF_FFFF)
            flags |= _DELAY
        held = self._held.get(partition)
        if held is not None:
            held.discard(offset)
        waiter: asyncio.Future[None] | None = None
        if self._connection.closed or (self._stopping and not self.channel):
            if not confirmed:
                return NOTHING
            waiter = self._connection.loop.create_future()
            waiter.set_exception(
                self._error or NotConnected(f"the consumer of {self.name!r} is closed, so its messages went back", hint="settle before leaving it")
            )
            return waiter
        if confirmed:
            waiter = self._connection.loop.create_future()
        self._settlements.add(partition, flags, delay_ms, offset, waiter)
        if not self.marked:
            self._connection.mark(self)
        return NOTHING if waiter is None else waiter

    def extend(self, partition: int, offset: int, lease: Duration | None) -> Awaitable[None]:
        waiter: asyncio.Future[None] = self._connection.loop.create_future()
        lease_ms = milliseconds(lease, what="lease", most=limits.LEASE_MS_MAX) or self.lease_ms
        if not self._open:
            waiter.set_exception(
                NotConnected(
                    "there is no connection: the lease cannot be extended now", hint="the session keeps leases for the broker's reconnect_grace"
                )
            )
            return waiter
        self._connection.send([self._extend_frame(partition, [(offset, 1)], lease_ms, [(offset, waiter)])])
        return waiter

    def _extend_frame(self, partition: int, ranges: list[Span], lease_ms: int, waiters: list[Any]) -> bytes:
        correlation = self._settlements.expect((partition, EXTENSION, 0), ranges, waiters)
        body = b"".join([RANGE.pack(first, count) for first, count in ranges])
        return EXTEND.pack(20 + len(body), Op.EXTEND, 0, self.channel, correlation, partition, self._epochs.get(partition, 0), lease_ms) + body

    def owed(self) -> int | None:
        return self._settlements.oldest

    def settled(self, correlation: int, count: int, stale: list[Span]) -> None:
        self._settlements.settled(correlation, stale)
        if self._stopping and self._settlements.settled_all:
            self._wake()

    def flush(self, out: list[bytes], writable: bool) -> None:
        if not self._open:
            return
        self._settlements.take(self.channel, self._epochs, out)
        if self._credit_bytes or self._credit_messages:
            if self._credit_messages * 2 >= self.prefetch or self._current is None:
                out.append(CREDIT.pack(16, Op.CREDIT, 0, self.channel, 0, self._credit_messages, min(self._credit_bytes, 0x7FFF_FFFF)))
                self._credit_messages = self._credit_bytes = 0

    def tick(self, now_ms: int) -> None:
        if self.auto_extend and self._open and now_ms >= self._extend_at_ms:
            self._extend_at_ms = now_ms + max(self.lease_ms // 3, 50)
            for partition, offsets in self._held.items():
                if offsets:
                    found = spans(offsets)
                    parts = (found[i : i + limits.SETTLE_RANGES_MAX] for i in range(0, len(found), limits.SETTLE_RANGES_MAX))
                    self._connection.send([self._extend_frame(partition, part, self.lease_ms, []) for part in parts])

    # ------------------------------------------------------------ opening, losing, ending

    def opening(self, *, resumed: bool) -> control.Message:
        again = self._once_open and not self.auto_ack
        if again and not resumed:
            self._drop_buffer()
        held: dict[int, set[int]] = {p: set(offsets) for p, offsets in self._held.items()}
        for partition, offsets in self._settlements.outstanding().items():
            held.setdefault(partition, set()).update(offsets)
        return control.Subscribe(
            channel=self.channel,
            name=self.name,
            prefetch=self.prefetch,
            prefetch_bytes=self._prefetch_bytes,
            pull=self._pull,
            auto_ack=self.auto_ack,
            lease_ms=self._asked_lease_ms,
            filter=self._filter,
            cohort=self._cohort,
            member=self._member,
            partitions=self._partitions,
            resume=again,
            held=tuple(control.Held(partition=p, ranges=tuple(spans(o))) for p, o in sorted(held.items()) if o) if again else (),
            token=self._token,
        )

    def opened(self, reply: Any) -> None:
        self._once_open = True
        self.lease_ms = self._asked_lease_ms or reply.lease_ms or self.lease_ms
        super().opened(reply)
        if self._stopping:
            self._refuse_more()
        again: list[bytes] = []
        self._settlements.again(self.channel, self._epochs, again)
        if again:
            self._connection.send(again)

    def lost(self) -> None:
        super().lost()
        self._credit_messages = self._credit_bytes = 0
        fetches, self._fetches = self._fetches, {}
        for fetch in fetches.values():
            if not fetch.done():
                fetch.set_result(-1)

    def event(self, event: control.Event) -> None:
        if isinstance(event, control.Assigned):
            self.assigned, self.generation = event.partitions, event.generation
            self._drop_buffer(frozenset(event.revoked))
        super().event(event)

    def end(self, error: HeadraceError | None) -> None:
        if error is not None:
            self._settlements.fail(error)
            self._held.clear()
        for fetch in self._fetches.values():
            if not fetch.done():
                fetch.set_result(-1)
        super().end(error)

    def _drop_buffer(self, partitions: frozenset[int] | None = None) -> None:
        """Forgets messages that were not handed out: the broker gives them to somebody else, or again. What was handed out as an earlier attempt is
        held: a broker that has lost the later one in a crash may count that."""
        if self.auto_ack and partitions is None:
            return
        kept = []
        for delivery in ([self._current] if self._current is not None else []) + list(self._buffer):
            if partitions is None or delivery.partition in partitions:
                held = self._held.get(delivery.partition)
                if held is not None:
                    held.difference_update(offset for offset in range(delivery.first, delivery.end) if offset not in delivery.again)
            else:
                kept.append(delivery)
        self._current = None
        self._buffer.clear()
        self._buffer.extend(kept)

    def stop(self) -> None:
        """Ends the iteration; messages in hand can still be settled until ``close``."""
        self._stopping = True
        self._refuse_more()
        self._wake()

    def _refuse_more(self) -> None:
        if self._open and not self._pull:
            self._connection.send([CREDIT.pack(16, Op.CREDIT, 0, self.channel, 0, -self.prefetch, 0)])

    async def close(self, unused: Iterable[Message] = ()) -> None:
        """Sends what was settled, gives everything else back and ends the subscription. ``unused``: messages taken that nobody looked at."""
        self._stopping = True
        if self.channel and self._open:
            self._connection.mark(self)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    while self._unanswered():
                        waiter = self._connection.loop.create_future()
                        self._waiters.append(waiter)
                        await waiter
            except TimeoutError:
                pass
        channel, undelivered = self.channel, self._undelivered(unused)
        await self._connection.part(self, control.Unsubscribe(channel=channel, undelivered=undelivered), CLOSE_TIMEOUT_S)
        self._open = False
        self._settlements.fail(NotConnected(f"the consumer of {self.name!r} was closed before this was confirmed"))
        self._buffer.clear()
        self._current = None
        self._held.clear()
        self.end(None)

    def _unanswered(self) -> bool:
        return self._open and not self._settlements.settled_all

    def _undelivered(self, unused: Iterable[Message]) -> tuple[control.Held, ...]:
        """What was never handed out: it goes back without counting as an attempt."""
        offsets: dict[int, set[int]] = {}
        for message in unused:
            if not message.settled:
                offsets.setdefault(message.partition, set()).add(message.offset)
        for delivery in ([self._current] if self._current is not None else []) + list(self._buffer):
            if delivery.first < delivery.end and not delivery.auto_acked:
                offsets.setdefault(delivery.partition, set()).update(range(delivery.first, delivery.end))
        return tuple(control.Held(partition=p, ranges=tuple(spans(o))) for p, o in sorted(offsets.items()))

    # ------------------------------------------------------------ pulling

    async def fetch(self, max_messages: int, *, wait_ms: int, max_bytes: int = limits.PREFETCH_BYTES) -> list[Message]:
        """Up to ``max_messages``, as many as there are within ``wait_ms``. One at a time per consumer; fewer come back when the connection breaks."""
        async with self._fetching:
            until = self._connection.loop.time() + wait_ms / 1000
            while True:
                await self._connection.wait_up(max(until, self._connection.loop.time() + 1.0))
                if self._stopping:
                    raise self._error or NotConnected(f"the consumer of {self.name!r} is closed")
                left_ms = max(0, int((until - self._connection.loop.time()) * 1000))
                if not self._open:
                    if not left_ms:
                        return []
                    try:
                        async with asyncio.timeout_at(until):
                            await self._wait()  # the channel is being opened again on a new connection
                    except TimeoutError:
                        return []
                    continue
                self._fetch_correlation += 1
                ended: asyncio.Future[int] = self._connection.loop.create_future()
                self._fetches[self._fetch_correlation] = ended
                frame = FETCH.pack(
                    20,
                    Op.FETCH,
                    0,
                    self.channel,
                    self._fetch_correlation,
                    max_messages,
                    min(max_bytes, 0xFFFF_FFFF),
                    min(left_ms, limits.FETCH_WAIT_MS_MAX),
                )
                self._connection.send([frame])
                count = await ended
                messages: list[Message] = []
                while len(messages) < max_messages and (message := self.next_ready()) is not None:
                    messages.append(message)
                if messages or (count >= 0 and (wait_ms <= limits.FETCH_WAIT_MS_MAX or self._connection.loop.time() >= until)):
                    return messages

    def fetch_ended(self, correlation: int, count: int) -> None:
        ended = self._fetches.pop(correlation, None)
        if ended is not None and not ended.done():
            ended.set_result(count)
