"""A reader of a stream: records in order per partition from a position it keeps, and cursors that follow what the application has done.

Invariants: I1 ``positions`` are the next offsets to hand out. Without a cursor a new connection reads on exactly there; with one it reads from the
cursor and what was handed out already is passed over, so that the cursor never skips what is not committed. I2 automatic commit covers a record
only once the next one was asked for, or the reader was left without an exception. I3 a commit or ack that was under way when the connection broke, or
was made before its record had come again, is sent when it comes (``redo``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from headrace.client.connection import Connection, log
from headrace.client.lane import Waiter
from headrace.client.message import NOTHING, Content
from headrace.client.redo import Redo
from headrace.client.routing import Router
from headrace.client.settlements import Settlements
from headrace.client.spans import Span, members
from headrace.client.subscription import CLOSE_TIMEOUT_S, Delivery, Subscription
from headrace.core.filters import parse
from headrace.model import limits
from headrace.model.errors import Conflict, ConnectionLost, HeadraceError, Invalid, NotConnected, StaleSettle
from headrace.wire import control
from headrace.wire.batch import Record as WireRecord
from headrace.wire.frames import RANGE, SETTLE, DeliverFlag, Op, Settle, SettleFlag

if TYPE_CHECKING:
    from typing import Self

Strategy = Literal["range", "round_robin", "sticky", "cooperative"]
PREFETCH = 10_000
_SPECULATIVE = int(DeliverFlag.SPECULATIVE)
_UP_TO = int(Settle.ACK) | int(SettleFlag.UP_TO)


class Record(Content):
    """A record of a stream."""

    __slots__ = ("_reader", "epoch", "speculative")

    def __init__(self, reader: "Reader", partition: int, offset: int, record: WireRecord, epoch: int, speculative: bool) -> None:
        self._reader = reader
        self.partition = partition
        self.offset = offset
        self._record = record
        self.epoch = epoch
        self.speculative = speculative
        """Not durable yet: a ``Retracted`` event may take it back."""

    @property
    def stream(self) -> str:
        return self._reader.name

    def commit(self, *, confirmed: bool = False) -> Awaitable[None]:
        """Moves the cursor past this record and all before it in its partition. Awaited with ``confirmed=True`` it returns once that is durable."""
        return self._reader.commit_up_to(self.partition, self.offset, confirmed=confirmed)

    def ack(self, *, confirmed: bool = False) -> Awaitable[None]:
        """This record is done; the cursor moves once all before it are."""
        return self._reader.ack_one(self.partition, self.offset, confirmed=confirmed)

    def __repr__(self) -> str:
        return f"<Record {self.partition}/{self.offset}{' speculative' if self.speculative else ''}, {len(self.value)} bytes>"


class Reader(Subscription):
    """An async iterator of records. Made by ``client.read``."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        start: str | int = "",
        cursor: str = "",
        group: str = "",
        member: str = "",
        strategy: Strategy = "sticky",
        partitions: Iterable[int] = (),
        commit: Literal["auto", "explicit"] = "auto",
        prefetch: int = PREFETCH,
        prefetch_bytes: int = limits.PREFETCH_BYTES,
        filter: str | control.Filter | None = None,
        on_event: Callable[[control.Event], None] | None = None,
        router: Router | None = None,
    ) -> None:
        super().__init__(connection, name, on_event, router=router, partitions=tuple(partitions))
        if commit not in ("auto", "explicit"):
            raise Invalid(f"commit is {commit!r}; it is auto or explicit")
        if not 1 <= prefetch <= limits.PREFETCH_MESSAGES_MAX:
            raise Invalid(f"prefetch is {prefetch}; it lies in 1..{limits.PREFETCH_MESSAGES_MAX}")
        self.cursor = cursor or group
        self.positions: dict[int, int] = {}
        self._read_in: dict[int, int] = {}
        """Partition to the epoch of the last record that was handed out."""
        self.tier = ""
        self._start = f"offset:{start}" if isinstance(start, int) else start or ("cursor" if self.cursor else "latest")
        self._group = group
        self._member = member
        self._strategy = strategy
        self._auto = commit == "auto"
        self._prefetch = prefetch
        self._prefetch_bytes = prefetch_bytes
        self._filter = parse(filter) if isinstance(filter, str) else filter
        self._token = connection.ambient.bits(63) | 1
        self._settlements = Settlements()
        self._commits: dict[int, int] = {}
        """Partition to the highest offset that is to be committed with all before it."""
        self._redo = Redo()
        self._last: tuple[int, int] | None = None
        self._once_open = False

    async def __aenter__(self) -> "Self":
        await self.start()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._passed()
        await self.close()

    def __aiter__(self) -> "Self":
        return self

    async def __anext__(self) -> Record:
        while True:
            record = self.next_ready()
            if record is not None:
                return record
            await self._wait()

    # ------------------------------------------------------------ handing out

    def next_ready(self) -> Record | None:
        """The next record if one is here already, without waiting."""
        if self._last is not None:
            self._passed()
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
        partition = current.partition
        self.positions[partition] = offset + 1
        self._read_in[partition] = current.epoch
        self._last = (partition, offset)
        return Record(self, partition, offset, record, current.epoch, current.flags & _SPECULATIVE != 0)

    async def take(self, most: int) -> list[Record]:
        """Those that are here, at least one and at most ``most``; none only once the reader was closed."""
        try:
            records = [await self.__anext__()]
        except StopAsyncIteration:
            return []
        while len(records) < most and (record := self.next_ready()) is not None:
            records.append(record)
        return records

    def _passed(self) -> None:
        """The application went on after the last record: it is done with it."""
        last, self._last = self._last, None
        if last is None:
            return
        if not self.cursor:
            self._commits[last[0]] = last[1]  # gives the credit back, at the latest when a delivery is through
        elif self._auto:
            self._commit(*last)

    def _exhausted(self, delivery: Delivery) -> None:
        if not self.cursor:
            self._connection.mark(self)

    def delivered(self, partition: int, epoch: int, attempt: int, first_offset: int, count: int, base_offset: int, blob: bytes, flags: int) -> None:
        self._epochs[partition] = epoch
        end = first_offset + count
        position = self.positions.get(partition, 0)
        if self.cursor:
            self._come(partition, end, min(position, end))
        first_offset = max(first_offset, position)
        if first_offset < end:
            self._buffer.append(Delivery(self._opener, partition, epoch, attempt, first_offset, end - first_offset, base_offset, blob, flags))
            if self._waiters:
                self._wake()

    def _come(self, partition: int, end: int, passed: int) -> None:
        """Everything below ``end`` has come on this channel; what the application had done below ``passed`` is told (again)."""
        self._redo.moved(partition, end)
        if self._redo:
            self._tell(partition, *self._redo.take(partition, passed))

    def _tell(self, partition: int, up_to: int, singly: list[tuple[int, Waiter | None]]) -> None:
        if up_to >= 0:
            self._commits[partition] = max(self._commits.get(partition, -1), up_to)
        for offset, waiter in singly:
            self._settlements.add(partition, int(Settle.ACK), 0, offset, waiter)
        if up_to >= 0 or singly:
            self._connection.mark(self)

    # ------------------------------------------------------------ cursors

    def commit_up_to(self, partition: int, offset: int, *, confirmed: bool = False) -> Awaitable[None]:
        """Moves the cursor of ``partition`` past ``offset``."""
        self._check_cursor()
        offset = self._commit(partition, offset)
        if not confirmed:
            return NOTHING
        waiter: asyncio.Future[None] = self._connection.loop.create_future()
        self._redo.wait(partition, offset, waiter)
        return waiter

    def _commit(self, partition: int, offset: int) -> int:
        """Up to where the commit goes: not beyond what was handed out, if that has to come again."""
        handed_out = min(offset, self.positions.get(partition, offset + 1) - 1)
        if self._once_open and self._redo.early(partition, handed_out):
            self._redo.commit(partition, handed_out)
            return handed_out
        self._commits[partition] = max(self._commits.get(partition, -1), offset)
        if not self.marked:
            self._connection.mark(self)
        return offset

    def ack_one(self, partition: int, offset: int, *, confirmed: bool = False) -> Awaitable[None]:
        """Marks one record as done."""
        self._check_cursor()
        waiter: asyncio.Future[None] | None = self._connection.loop.create_future() if confirmed else None
        if self._once_open and offset < self.positions.get(partition, 0) and self._redo.early(partition, offset):
            self._redo.ack(partition, offset, waiter)
        else:
            self._settlements.add(partition, int(Settle.ACK), 0, offset, waiter)
            self._connection.mark(self)
        return NOTHING if waiter is None else waiter

    def _check_cursor(self) -> None:
        if not self.cursor:
            raise Conflict(f"this reader of {self.name!r} has no cursor to move", hint='name one: client.read(..., cursor="billing")')
        if self._connection.closed or (self._stopping and not self.channel):
            raise NotConnected(f"the reader of {self.name!r} is closed")

    def owed(self) -> int | None:
        return self._settlements.oldest

    def settled(self, correlation: int, count: int, stale: list[Span]) -> None:
        self._settlements.settled(correlation, stale)
        if self._stopping and self._settlements.quiet:
            self._wake()

    def flush(self, out: list[bytes], writable: bool) -> None:
        if not self._open:
            return
        if self._commits:
            commits, self._commits = self._commits, {}
            for partition, offset in commits.items():
                if not self.cursor:
                    frame = SETTLE.pack(32, Op.SETTLE, _UP_TO, self.channel, 0, partition, self._epochs.get(partition, 0), 0)
                    out.append(frame + RANGE.pack(offset, 1))
                    continue
                self._settlements.add(partition, _UP_TO, 0, offset, None)
                for waiter in self._redo.waiting(partition, offset):
                    self._settlements.wait(partition, _UP_TO, 0, offset, waiter)
        self._settlements.take(self.channel, self._epochs, out)

    # ------------------------------------------------------------ opening, losing, ending

    def opening(self, *, resumed: bool) -> control.Message:
        self._forget_buffer()
        return control.SubscribeStream(
            channel=self.channel,
            name=self.name,
            partitions=self._partitions,
            start="cursor" if self.cursor and self._once_open else self._start,
            starts={} if self.cursor else {p: at for p, at in self.positions.items() if not self._partitions or p in self._partitions},
            epochs={} if self.cursor else dict(self._read_in),
            cursor=self.cursor,
            group=self._group,
            member=self._member,
            strategy=self._strategy,
            prefetch=self._prefetch,
            prefetch_bytes=self._prefetch_bytes,
            filter=self._filter,
            token=self._token,
        )

    def opened(self, reply: Any) -> None:
        self.tier = reply.tier
        for partition, offset in reply.starts.items():
            known = self.positions.get(partition, offset)
            if offset > known and self._once_open and self.cursor and not self._group:
                super().event(control.CursorMoved(channel=self.channel, partition=partition, from_offset=known, to_offset=offset))
            epoch = reply.epochs.get(partition, 0)
            other_epoch = epoch != self._epochs.get(partition)
            if offset < known and self._once_open and self.cursor and not self._group and other_epoch and self.tier != "durable":
                super().event(control.Retracted(channel=self.channel, partition=partition, from_offset=offset, epoch=epoch))
            if not self._once_open or not self.cursor or (other_epoch and self.tier != "durable"):
                self.positions[partition] = offset
                self._redo.forget(_taken_back(partition), partition, offset)
            else:
                self.positions[partition] = max(offset, self.positions.get(partition, 0))
        self._redo.opened(reply.starts)
        self._once_open = True
        super().opened(reply)

    def lost(self) -> None:
        super().lost()
        self._forget_buffer()
        if not self.cursor:
            self._commits.clear()
            return
        for (partition, flags, _), ranges in self._settlements.under_way():
            if flags & SettleFlag.UP_TO:
                self._redo.commit(partition, ranges[-1][0])
            else:
                for offset in members(ranges):
                    self._redo.ack(partition, offset)
        for partition, offset in self._commits.items():
            self._redo.commit(partition, offset)
        self._commits.clear()
        broken = ConnectionLost("the connection broke before the cursor's move was confirmed; it is repeated on the next one")
        self._settlements.fail(broken)
        self._redo.lost(broken)

    def event(self, event: control.Event) -> None:
        if isinstance(event, control.Assigned):
            self.assigned, self.generation = event.partitions, event.generation
            self._forget_buffer(frozenset(event.revoked) | frozenset(event.starts))
            for partition in event.revoked:
                self.positions.pop(partition, None)
                self._commits.pop(partition, None)
                self._redo.forget(StaleSettle(f"partition {partition} went to another member of the group"), partition)
            self.positions.update(event.starts)
            for partition, start in event.starts.items():
                self._redo.moved(partition, start)
        elif isinstance(event, control.Retracted):
            for delivery in self._here():
                if delivery.partition == event.partition and delivery.end > event.from_offset:
                    self._forget_buffer(frozenset((event.partition,)))
                    break
            self.positions[event.partition] = min(self.positions.get(event.partition, event.from_offset), event.from_offset)
            self._redo.forget(_taken_back(event.partition), event.partition, event.from_offset)
        elif isinstance(event, control.PartitionIsolated):
            log.warning("the reader of %r goes on without %s", self.name, event.message)
        elif isinstance(event, control.CursorMoved):
            self._read_in.pop(event.partition, None)
            self.positions[event.partition] = max(self.positions.get(event.partition, 0), event.to_offset)
            if self.cursor:
                self._come(event.partition, event.to_offset, event.to_offset)
        super().event(event)

    def end(self, error: HeadraceError | None) -> None:
        if error is not None:
            self._fail(error)
        super().end(error)

    def _fail(self, error: HeadraceError) -> None:
        """Nothing is committed any more: whoever waits for it is told why."""
        self._settlements.fail(error)
        self._redo.end(error)

    def _here(self) -> list[Delivery]:
        return ([self._current] if self._current is not None else []) + list(self._buffer)

    def _forget_buffer(self, partitions: frozenset[int] | None = None) -> None:
        kept = [] if partitions is None else [d for d in self._here() if d.partition not in partitions]
        self._current = None
        self._buffer.clear()
        self._buffer.extend(kept)

    async def close(self) -> None:
        """Sends what was committed and ends the subscription."""
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
        await self._connection.part(self, control.Unsubscribe(channel=self.channel), CLOSE_TIMEOUT_S)
        self._open = False
        self._fail(NotConnected(f"the reader of {self.name!r} was closed before this was confirmed"))
        self._forget_buffer()
        self.end(None)

    def _unanswered(self) -> bool:
        return self._open and bool(self.cursor) and (bool(self._commits) or bool(self._redo) or not self._settlements.quiet)


def _taken_back(partition: int) -> StaleSettle:
    return StaleSettle(f"records of partition {partition} were taken back before this was committed")
