"""Consumers and readers in a cluster: one subscription a partition, at whoever serves it, handed out as one.

Owns which subscriptions there are and whose turn it is. Each follows its partition by itself, with all that belongs to it: leases and settlements, or
position and commits. Invariants: S1 what a message or record is settled with goes to the subscription it came from. S2 prefetch is shared out evenly,
at least one message a partition. S3 the whole ends with the first of its parts that ends for good.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from headrace.client.backoff import Backoff
from headrace.client.connection import Connection
from headrace.client.consumer import Consumer
from headrace.client.membership import Membership
from headrace.client.message import RETRY, Message
from headrace.client.reader import Reader, Record
from headrace.client.routing import Router
from headrace.client.settlements import EXTENSION
from headrace.client.sharing import Shared, Sharing
from headrace.client.spans import Span, contains, members
from headrace.client.subscription import Subscription
from headrace.model.errors import Invalid, NotConnected, StaleSettle, Unavailable
from headrace.wire import control
from headrace.wire.frames import SettleFlag

P = TypeVar("P", "ConsumerPart", "ReaderPart")

_ACTION: Final = int(SettleFlag.ACTION_MASK)
TURN_RECORDS: Final = 64
"""So many from one partition before another has its turn."""
PREFETCH_BYTES_MIN: Final = 64 * 1024


class Parts(list[P]):
    """The subscriptions of one consumer or reader."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0
        self._taken = 0

    def of(self, partition: int) -> P:
        """The one that has a partition; ``StaleSettle`` if none has it (any more)."""
        for part in self:
            if partition in (part._partitions or (partition,)):
                return part
        raise StaleSettle(f"partition {partition} is not read here (any more)", hint="look at reader.assigned")

    def next_part(self, ready: Callable[[P], Any]) -> Any:
        """What ``ready`` gives of the first part, from the one whose turn it is on, that has something; else None."""
        if self._taken >= TURN_RECORDS:
            self._turn, self._taken = self._turn + 1, 0
        for _ in range(len(self)):
            found = ready(self[self._turn % len(self)])
            if found is not None:
                self._taken += 1
                return found
            self._turn, self._taken = self._turn + 1, 0
        return None

    async def open(self, router: Router, until: float, loop: asyncio.AbstractEventLoop) -> None:
        """Opens all, or none; raises what one is refused for, or what is waited for when time is up."""
        tasks = [loop.create_task(part.start(), name=f"headrace-open-{part.name}") for part in self]
        try:
            done, late = await asyncio.wait(tasks, timeout=max(0.0, until - loop.time()), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if late:
                whys = [f"partition {part.partition}: {why}" for part in self if not part._open and (why := router.why(part)) is not None]
                raise Unavailable(f"{self[0].name!r} could not be opened everywhere in time; {'; '.join(whys[:3]) or 'no broker answered'}")
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for part in self:
                await part.close()
            raise

    async def wait(self, whole: Subscription) -> None:
        """Returns when there may be something; raises how a part, or the whole, has ended."""
        for part in self:
            if part._stopping and not part.fenced and not whole._stopping:
                whole.end(part._error or NotConnected(f"the subscription of {part.name!r} was closed"))
        if whole._stopping:
            if whole._error is not None:
                raise whole._error
            raise StopAsyncIteration
        waiter = whole._connection.loop.create_future()
        everybody: list[Subscription] = [whole, *self]
        for one in everybody:
            one._waiters.append(waiter)
        try:
            await waiter
        finally:
            for one in everybody:
                with suppress(ValueError):
                    one._waiters.remove(waiter)


class ConsumerPart(Shared, Consumer):
    """A consumer of one partition. When that has another owner, or another epoch, a message that is here may come a second time, since its lease was
    not committed: of two copies that are here at once the other is not handed out once one was settled."""

    def opening(self, *, resumed: bool) -> control.Message:
        self._drop_buffer()
        if self.seat:
            self.prefetch = max(1, self.share)
        self._granted = self.prefetch
        return msgspec.structs.replace(super().opening(resumed=resumed), seat=self.seat, generation=self.shown)

    def here(self) -> int:
        return sum(len(held) for held in self._held.values()) + sum(d.end - d.first for d in self._buffer if d.auto_acked)

    async def finish(self) -> None:
        await self.close()

    def at_rest(self) -> bool:
        here = sum(d.end - d.first for d in [*self._buffer, *([self._current] if self._current is not None else [])])
        return sum(len(held) for held in self._held.values()) <= here and self._settlements.settled_all

    def settled(self, correlation: int, count: int, stale: list[Span]) -> None:
        done = self._settlements.settled(correlation, stale)
        if done is not None and not done.kind[1] & EXTENSION and done.kind[1] & _ACTION != RETRY:
            held = self._held.get(done.kind[0])
            if held:  # else it did not come again
                held.difference_update(members(done.ranges) if not stale else (o for o in members(done.ranges) if not contains(stale, o)))
        if self._stopping and self._settlements.settled_all:
            self._wake()

    def next_ready(self) -> Message | None:
        while not self.retired:
            message = super().next_ready()
            if message is None or message.auto_acked or message.offset in self._held.get(message.partition, ()):
                return message
        return None


class ReaderPart(Shared, Reader):
    """A reader of one partition."""

    def opening(self, *, resumed: bool) -> control.Message:
        if self.seat:
            self._prefetch = max(1, self.share)
        self._granted = self._prefetch
        return msgspec.structs.replace(super().opening(resumed=resumed), seat=self.seat, generation=self.shown)

    def here(self) -> int:
        return sum(d.end - d.first for d in self._buffer)

    async def finish(self) -> None:
        await self.close()

    def at_rest(self) -> bool:
        return self._last is None or not self._auto

    def next_ready(self) -> Record | None:
        return None if self.retired else super().next_ready()


class SpreadConsumer(Consumer):
    """A consumer of a queue whose partitions may be served by several brokers."""

    def __init__(self, home: Connection, router: Router, name: str, options: dict[str, Any], open_s: float) -> None:
        super().__init__(home, name, **options)
        self._parts: Parts[ConsumerPart] = Parts()
        self._led_by = router
        self._options = options
        self._open_s = open_s
        self._sharing: Sharing[ConsumerPart] | None = None

    async def start(self) -> None:
        loop, router = self._connection.loop, self._led_by
        until = loop.time() + self._open_s
        numbers = await router.partitions(self.name, until)
        if self._cohort:
            if self._pull:
                raise Invalid("a cohort's members are pushed to; leave pull out")
            self._sharing = await self._share(len(numbers), until)
            return
        if not numbers:
            self._parts.append(ConsumerPart(self._connection, self.name, **self._options, router=router))
        else:
            shares = _shares(self._options, len(numbers), self.prefetch, self._prefetch_bytes)
            self._parts.extend(ConsumerPart(self._connection, self.name, **shares, partitions=(n,), router=router) for n in numbers)
        await self._parts.open(router, until, loop)
        self.assigned = tuple(sorted(p for part in self._parts for p in part.assigned))
        self.lease_ms = self._parts[0].lease_ms

    async def _share(self, count: int, until: float) -> "Sharing[ConsumerPart]":
        member = Membership(self._connection, self.name, router=self._led_by, key=self.name, group=self._cohort, count=count)
        member.static_name = self._member

        def make(number: int, count: int, share: int) -> ConsumerPart:
            shares = {**_shares(self._options, count, self.prefetch, self._prefetch_bytes), "prefetch": share}
            return ConsumerPart(self._connection, self.name, **shares, partitions=(number,), router=self._led_by)

        sharing = Sharing(self, member, self._parts, make=make, prefetch=self.prefetch)
        await _begin(sharing, self._parts, until)
        self.lease_ms = self._parts[0].lease_ms if self._parts else self.lease_ms
        return sharing

    def here(self) -> int:
        """How many messages of all partitions are here and not settled."""
        return sum(part.here() for part in (*self._parts, *(self._sharing.given_up() if self._sharing is not None else ())))

    def next_ready(self) -> Message | None:
        if self._stopping:
            return None
        found: Message | None = self._parts.next_part(_next_message)
        return found

    async def _wait(self) -> None:
        await self._parts.wait(self)

    def stop(self) -> None:
        for part in self._parts:
            part.stop()
        super().stop()

    async def close(self, unused: Iterable[Message] = ()) -> None:
        self._stopping = True
        back = list(unused)
        if self._sharing is not None:
            await self._sharing.close()
        await asyncio.gather(*(part.close([m for m in back if m._settler is part]) for part in self._parts))
        if self._sharing is not None:
            await self._sharing.membership.close()
        self.end(None)

    async def fetch(self, max_messages: int, *, wait_ms: int, max_bytes: int = 0) -> list[Message]:
        """As of one consumer; where there are several partitions each is asked in its turn until one has something."""
        options = {"max_bytes": max_bytes} if max_bytes else {}
        if len(self._parts) == 1:
            return await self._parts[0].fetch(max_messages, wait_ms=wait_ms, **options)
        async with self._fetching:
            loop, backoff = self._connection.loop, Backoff(0.01, 0.2)
            until = loop.time() + wait_ms / 1000
            while True:
                messages: list[Message] = []
                for _ in range(len(self._parts)):
                    self._parts._turn += 1
                    part = self._parts[self._parts._turn % len(self._parts)]
                    if part._stopping:
                        raise part._error or NotConnected(f"the consumer of {self.name!r} is closed")
                    if part._open and len(messages) < max_messages:
                        messages += await part.fetch(max_messages - len(messages), wait_ms=0, **options)
                left = until - loop.time()
                if messages or left <= 0:
                    return messages
                await asyncio.sleep(min(left, backoff.next_s(self._connection.ambient.random())))


class SpreadReader(Reader):
    """A reader of a stream whose partitions may be served by several brokers."""

    def __init__(self, home: Connection, router: Router, name: str, options: dict[str, Any], open_s: float) -> None:
        super().__init__(home, name, **options)
        self._parts: Parts[ReaderPart] = Parts()
        self._led_by = router
        self._options = {**options, "partitions": self._partitions}
        self._open_s = open_s
        self._before: Reader | None = None
        self._sharing: Sharing[ReaderPart] | None = None

    async def start(self) -> None:
        loop, router = self._connection.loop, self._led_by
        until = loop.time() + self._open_s
        numbers = self._partitions or await router.partitions(self.name, until)
        if self._group:
            if self._partitions:
                raise Invalid("a group assigns the partitions; name a group or partitions, not both")
            self._sharing = await self._share(len(numbers), until)
            self.tier = self._parts[0].tier if self._parts else ""
            return
        if not numbers:
            self._parts.append(ReaderPart(self._connection, self.name, **self._options, router=router))
        else:
            shares = _shares(self._options, len(numbers), self._prefetch, self._prefetch_bytes)
            self._parts.extend(ReaderPart(self._connection, self.name, **{**shares, "partitions": (n,)}, router=router) for n in numbers)
        for part in self._parts:
            part.positions = self.positions
        await self._parts.open(router, until, loop)
        self.assigned = tuple(sorted(p for part in self._parts for p in part.assigned))
        self.tier = self._parts[0].tier

    def next_ready(self) -> Record | None:
        self._passed()
        if self._stopping:
            return None
        found: Record | None = self._parts.next_part(_next_record)
        self._before = None if found is None else found._reader
        return found

    async def _share(self, count: int, until: float) -> "Sharing[ReaderPart]":
        member = Membership(self._connection, self.name, router=self._led_by, key=self._group, group=self._group, count=count)
        member.strategy, member.static_name = self._strategy, self._member

        def make(number: int, count: int, share: int) -> ReaderPart:
            shares = {**_shares(self._options, count, self._prefetch, self._prefetch_bytes), "prefetch": share, "partitions": (number,)}
            part = ReaderPart(self._connection, self.name, **shares, router=self._led_by)
            part.positions = self.positions
            return part

        sharing = Sharing(self, member, self._parts, make=make, prefetch=self._prefetch)
        await _begin(sharing, self._parts, until)
        return sharing

    def _passed(self) -> None:
        if self._before is not None:
            self._before._passed()
            self._before = None

    async def _wait(self) -> None:
        await self._parts.wait(self)

    def commit_up_to(self, partition: int, offset: int, *, confirmed: bool = False) -> Awaitable[None]:
        return self._parts.of(partition).commit_up_to(partition, offset, confirmed=confirmed)

    def ack_one(self, partition: int, offset: int, *, confirmed: bool = False) -> Awaitable[None]:
        return self._parts.of(partition).ack_one(partition, offset, confirmed=confirmed)

    async def close(self) -> None:
        self._stopping = True
        if self._sharing is not None:
            await self._sharing.close()
        await asyncio.gather(*(part.close() for part in self._parts))
        if self._sharing is not None:
            await self._sharing.membership.close()
        self.end(None)


async def _begin(sharing: "Sharing[Any]", parts: Parts[Any], until: float) -> None:
    """All that is assigned is open, or nothing."""
    try:
        await sharing.start(until)
    except BaseException:
        await sharing.close()
        await asyncio.gather(*(part.close() for part in parts))
        await sharing.membership.close()
        raise


def _next_message(part: Consumer) -> Message | None:
    return part.next_ready()


def _next_record(part: Reader) -> Record | None:
    return part.next_ready()


def _shares(options: dict[str, Any], count: int, prefetch: int, prefetch_bytes: int) -> dict[str, Any]:
    """The settings of each of ``count`` parts."""
    nbytes = min(prefetch_bytes, max(PREFETCH_BYTES_MIN, prefetch_bytes // count))
    return {**options, "prefetch": max(1, prefetch // count), "prefetch_bytes": nbytes}
