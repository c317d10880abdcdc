"""Publishing to one queue or stream: values to records, partitions by key, natural batches, receipts and back-pressure.

Owns a producer id and one lane per partition in use; the lanes own what is unconfirmed. Every publish is idempotent but those of level none: what
is sent again after a broken connection is stored once. Invariants: I1 at most ``max_in_flight`` messages and ``max_in_flight_bytes`` bytes are
unanswered: the awaiting calls wait for room, ``post`` refuses. I2 messages of one publisher reach a partition in the order in which they were
posted. I3 when the queue is repartitioned nothing is routed anew before all that was sent is answered by who it was sent to: what is stored there is
confirmed, and the rest follows in order.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, overload

import msgspec

from headrace.client.connection import Connection
from headrace.client.lane import BATCH_BYTES_MAX, Envelope, Frame, Lane, Receipt, Waiter
from headrace.client.lane_user import LaneUser
from headrace.client.payload import Duration, Headers, encode_headers, encode_key, encode_value, milliseconds
from headrace.client.routing import Router
from headrace.core.partitioner import key_slot, partition_for
from headrace.model import limits
from headrace.model.errors import ConfirmTimeout, HeadraceError, Invalid, LimitExceeded, NotConnected, NotFound, TooLarge
from headrace.model.ids import NO_PRODUCER
from headrace.wire import control
from headrace.wire.batch import Record
from headrace.wire.frames import Level

if TYPE_CHECKING:
    from typing import Self

Confirm = Literal["queue", "none", "accepted", "local", "majority", "replica"]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
_LEVELS: Final = {
    "queue": int(Level.QUEUE),
    "none": int(Level.NONE),
    "accepted": int(Level.ACCEPTED),
    "local": int(Level.LOCAL),
    "majority": int(Level.MAJORITY),
    "replica": int(Level.REPLICA),
}
_NONE: Final = int(Level.NONE)
_CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
_RECORD_OVERHEAD: Final = 24

MAX_IN_FLIGHT: Final = 100_000
MAX_IN_FLIGHT_BYTES: Final = 64 * 1024 * 1024


class Outgoing:
    """One message for ``send_many`` with settings of its own; a plain value does where it needs none."""

    __slots__ = ("delay", "headers", "key", "priority", "timestamp_ms", "ttl", "value")

    def __init__(
        self,
        value: Any,
        *,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        delay: Duration | None = None,
        ttl: Duration | None = None,
        priority: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        self.value = value
        self.key = key
        self.headers = headers
        self.delay = delay
        self.ttl = ttl
        self.priority = priority
        self.timestamp_ms = timestamp_ms


class Publisher:
    """Publishes to one name. Made by ``client.publisher``; use it as a context manager to be sure that everything posted is confirmed on leaving."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        router: Router,
        confirm: Confirm = "queue",
        compression: Compression = "none",
        confirm_timeout: float = limits.CONFIRM_TIMEOUT_MS / 1000,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
        headers: Mapping[str, str | bytes] | None = None,
        idempotent: bool = True,
    ) -> None:
        if compression not in _CODECS:
            raise Invalid(f"compression {compression!r} is unknown; it is one of {', '.join(_CODECS)}")
        if max_in_flight < 1 or max_in_flight_bytes < 1 or confirm_timeout <= 0:
            raise Invalid("max_in_flight, max_in_flight_bytes and confirm_timeout must be above 0")
        self.name = name
        self.kind = ""
        self.partitions = 0
        """0 until the first publish learned it from the broker."""
        self._connection = connection
        """The client's own; each lane has its own way."""
        self._router = router
        self._level = _level(confirm)
        self._codec = compression
        self._plain = Envelope(level=self._level, codec=compression)
        self._pinned = Envelope(level=self._level, codec=compression, pinned=True)
        self._headers: Headers = encode_headers(headers) if headers else ()
        self._timeout_ms = int(confirm_timeout * 1000)
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._producer_id = connection.ambient.bits(62) if idempotent else NO_PRODUCER
        self._message_bytes_max = (connection.welcome.message_bytes_max if connection.welcome is not None else limits.MESSAGE_BYTES_MAX) - 128
        self._lanes: dict[tuple[int, bool], LaneUser] = {}
        self.routing_version = -1
        """Under which messages are routed to partitions, -1 = not known (yet, or while a repartition is followed)."""
        self._moving = False
        """The routing is out of date; what was sent is being settled."""
        self._unrouted: list[tuple[Envelope, Record, int, Waiter | None, int, int]] = []
        """The last: the partition that was named, -1 = none was."""
        self._sticky = connection.ambient.bits(16)
        self._in_flight = 0
        self._wall_ms = self._deadline_ms = 0
        self._in_flight_bytes = 0
        self._room: list[asyncio.Future[None]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._first_error: HeadraceError | None = None
        self.closed = False

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    # ------------------------------------------------------------ publishing

    async def send(
        self,
        value: Any,
        *,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        delay: Duration | None = None,
        ttl: Duration | None = None,
        priority: int | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        confirm: Confirm | None = None,
    ) -> Receipt:
        """Publishes one message and waits for its confirm. Raises what the broker refused it for, or ``ConfirmTimeout`` (outcome unknown)."""
        while self.full:
            await self.room()
        return await self.post(
            value, key=key, headers=headers, delay=delay, ttl=ttl, priority=priority, partition=partition, timestamp_ms=timestamp_ms, confirm=confirm
        )

    @overload
    def post(
        self,
        value: Any,
        *,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        delay: Duration | None = None,
        ttl: Duration | None = None,
        priority: int | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        confirm: Confirm | None = None,
        receipt: Literal[True] = True,
    ) -> "asyncio.Future[Receipt]": ...

    @overload
    def post(
        self,
        value: Any,
        *,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        delay: Duration | None = None,
        ttl: Duration | None = None,
        priority: int | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        confirm: Confirm | None = None,
        receipt: Literal[False],
    ) -> None: ...

    def post(
        self,
        value: Any,
        *,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        delay: Duration | None = None,
        ttl: Duration | None = None,
        priority: int | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        confirm: Confirm | None = None,
        receipt: bool = True,
    ) -> "asyncio.Future[Receipt] | None":
        """Publishes one message without waiting; the future gives its receipt. With ``receipt=False`` there is none: ``flush`` raises the first
        error.

        Raises ``LimitExceeded`` when ``max_in_flight`` is reached (``await publisher.room()`` before, or use ``send``).
        """
        if self._in_flight >= self._max_in_flight or self._in_flight_bytes >= self._max_in_flight_bytes:
            raise LimitExceeded(
                f"{self._in_flight} messages ({self._in_flight_bytes} bytes) to {self.name!r} wait for their confirm",
                hint="`await publisher.room()` before post(), use `await publisher.send()`, or raise max_in_flight",
            )
        waiter: asyncio.Future[Receipt] | None = self._connection.loop.create_future() if receipt else None
        self.post_to(waiter, value, key, headers, delay, ttl, priority, partition, timestamp_ms, confirm)
        return waiter

    def post_to(
        self,
        waiter: Waiter | None,
        value: Any,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        delay: Duration | None = None,
        ttl: Duration | None = None,
        priority: int | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        confirm: Confirm | None = None,
    ) -> None:
        """As ``post``, telling ``waiter`` (anything with done, set_result and set_exception, called on the loop) what became of it;
        it refuses nothing for lack of room."""
        if self.closed or self._connection.closed:
            raise NotConnected(f"the publisher to {self.name!r} is closed", hint="open another with client.publisher()")
        if (
            key is None
            and headers is None
            and timestamp_ms is None
            and partition is None
            and type(value) is bytes
            and self.partitions
            and not self._headers
        ):
            nbytes = _RECORD_OVERHEAD + len(value)
            envelope = self._envelope(delay, ttl, priority, confirm)
            user = self._lanes.get((self._sticky % self.partitions, envelope.level != _NONE))
            if user is not None and user.channel and nbytes <= self._message_bytes_max:
                if not user.marked:  # once per loop iteration: later posts of the same one share the time
                    self._look()
                    user.connection.mark(user)
                user.lane.add(envelope, Record(None, value, (), self._wall_ms), nbytes, waiter, self._deadline_ms)
                self._in_flight += 1
                self._in_flight_bytes += nbytes
                return
        self._look()
        record, nbytes = self._record(value, key, headers, timestamp_ms)
        envelope = self._envelope(delay, ttl, priority, confirm)
        if partition is not None and not 0 <= partition < limits.PARTITIONS_MAX:
            raise Invalid(f"partition {partition} lies outside 0..{limits.PARTITIONS_MAX - 1}")
        if partition is not None:
            envelope = self._pinned if envelope is self._plain else msgspec.structs.replace(envelope, pinned=True)
        if self._moving:
            self._unrouted.append((envelope, record, nbytes, waiter, self._deadline_ms, -1 if partition is None else partition))
        elif partition is not None:
            self._add(partition, envelope, record, nbytes, waiter, self._deadline_ms)
        elif self.partitions:
            self._route(envelope, record, nbytes, waiter, self._deadline_ms)
        else:
            self._unrouted.append((envelope, record, nbytes, waiter, self._deadline_ms, -1))
            told = self._lane(0, envelope.level != _NONE).told
            if told is not None:
                self._learned(told)
        self._in_flight += 1
        self._in_flight_bytes += nbytes

    def _look(self) -> None:
        """Looks at the clocks."""
        self._wall_ms = self._connection.ambient.wall_ns() // 1_000_000
        self._deadline_ms = int(self._connection.loop.time() * 1000) + self._timeout_ms

    def _record(self, value: Any, key: str | bytes | None, headers: Mapping[str, str | bytes] | None, timestamp_ms: int | None) -> tuple[Record, int]:
        """The record of a value and about how many bytes it takes."""
        raw, kind = encode_value(value)
        head = kind
        if headers is not None:
            own = encode_headers(headers)
            head = own if not kind or any(name == kind[0][0] for name, _ in own) else kind + own
        if self._headers:
            head = head + self._headers
        raw_key = encode_key(key)
        nbytes = _RECORD_OVERHEAD + len(raw or b"") + len(raw_key or b"")
        for name, text in head:
            nbytes += len(name) + len(text) + 4
        if nbytes > self._message_bytes_max:
            raise TooLarge(
                f"a message of {nbytes} bytes; the broker takes at most {self._message_bytes_max}",
                hint="split it, or publish a reference to where it is kept",
            )
        return Record(raw_key, raw, head, self._wall_ms if timestamp_ms is None else timestamp_ms), nbytes

    async def send_many(self, values: Iterable[Any], *, confirm: Confirm | None = None) -> list[Receipt]:
        """Publishes many values (or ``Outgoing`` messages) in order and waits for all confirms; raises the first error after all were answered."""
        waiting: list[asyncio.Future[Receipt]] = []
        for value in values:
            if self.full:
                await self.room()
            if isinstance(value, Outgoing):
                waiting.append(
                    self.post(
                        value.value,
                        key=value.key,
                        headers=value.headers,
                        delay=value.delay,
                        ttl=value.ttl,
                        priority=value.priority,
                        timestamp_ms=value.timestamp_ms,
                        confirm=confirm,
                    )
                )
            else:
                waiting.append(self.post(value, confirm=confirm))
        receipts: list[Receipt] = []
        error: BaseException | None = None
        for future in waiting:
            try:
                receipts.append(await future)
            except HeadraceError as e:
                error = error or e
        if error is not None:
            raise error
        return receipts

    async def flush(self) -> None:
        """Waits until everything posted is answered; raises the first error of messages that were posted without receipt."""
        while self._in_flight:
            idle = self._connection.loop.create_future()
            self._idle.append(idle)
            await idle
        error, self._first_error = self._first_error, None
        if error is not None:
            raise error

    async def room(self) -> None:
        """Returns when ``post`` may be called again."""
        while self.full and not self._connection.closed:
            room = self._connection.loop.create_future()
            self._room.append(room)
            await room

    async def close(self) -> None:
        """Flushes and gives its channels back."""
        if self.closed:
            return
        try:
            await self.flush()
        finally:
            self.closed = True
            for user in self._lanes.values():
                self._router.leave(user)
            self._lanes.clear()

    @property
    def in_flight(self) -> int:
        """Messages that are not answered yet."""
        return self._in_flight

    @property
    def full(self) -> bool:
        """Whether ``post`` would refuse now."""
        return self._in_flight >= self._max_in_flight or self._in_flight_bytes >= self._max_in_flight_bytes

    # ------------------------------------------------------------ routing

    def _envelope(self, delay: Duration | None, ttl: Duration | None, priority: int | None, confirm: Confirm | None) -> Envelope:
        if delay is None and ttl is None and priority is None and confirm is None:
            return self._plain
        if priority is not None and not 0 <= priority <= limits.PRIORITY_MAX:
            raise Invalid(f"priority is {priority}; it lies in 0..{limits.PRIORITY_MAX}")
        return Envelope(
            level=self._level if confirm is None else _level(confirm),
            not_before_ms=milliseconds(delay, what="delay"),
            expires_at_ms=milliseconds(ttl, what="ttl"),
            priority=priority or 0,
            codec=self._codec,
        )

    def _route(self, envelope: Envelope, record: Record, nbytes: int, waiter: Waiter | None, deadline_ms: int) -> None:
        """To the key's partition, or to the current sticky one."""
        key, partitions = record.key, self.partitions
        if key is not None:
            partition = partition_for(key, partitions) if partitions > 1 else 0
            if self.kind == "queue":
                # the slot is what a repartition holds back; frames are homogeneous in it
                slot, codec = key_slot(key), envelope.codec
                envelope = Envelope(envelope.level, envelope.not_before_ms, envelope.expires_at_ms, envelope.priority, slot, codec=codec)
        else:
            partition = self._sticky % partitions
        self._add(partition, envelope, record, nbytes, waiter, deadline_ms)

    def _add(self, partition: int, envelope: Envelope, record: Record, nbytes: int, waiter: Waiter | None, deadline_ms: int) -> None:
        user = self._lane(partition, envelope.level != _NONE)
        user.lane.add(envelope, record, nbytes, waiter, deadline_ms)
        if not user.marked:
            user.connection.mark(user)

    def _lane(self, partition: int, confirmed: bool) -> LaneUser:
        user = self._lanes.get((partition, confirmed))
        if user is None:
            lane = Lane(partition, self._producer_id if confirmed else NO_PRODUCER, self._done, keeps=confirmed)
            lane.bytes_max = min(BATCH_BYTES_MAX, self._message_bytes_max)
            user = self._lanes[(partition, confirmed)] = LaneUser(self, lane)
        if not user.channel:
            self._router.place(user)
        return user

    def _learned(self, reply: control.PublisherOpened) -> None:
        if reply.message_bytes_max:
            self._message_bytes_max = reply.message_bytes_max
        if self.routing_version not in (-1, reply.routing_version):
            self._outdated()
        if self._moving:
            return
        self.kind, self.partitions, self.routing_version = reply.kind, reply.partitions, reply.routing_version
        waiting, self._unrouted = self._unrouted, []
        for envelope, record, nbytes, waiter, deadline_ms, partition in waiting:
            if partition >= 0:
                self._add(partition, envelope, record, nbytes, waiter, deadline_ms)
            else:
                self._route(envelope, record, nbytes, waiter, deadline_ms)

    # ------------------------------------------------------------ repartitions

    def _outdated(self) -> None:
        """The queue has another routing version: nothing more is sent before all that was sent is settled, where it was sent to."""
        if not self._moving:
            self._moving, self.partitions = True, 0
            for user in self._lanes.values():
                user.lane.stopped = True
        self._look_if_settled()

    def _look_if_settled(self) -> None:
        """Routes anew what is not stored, once there is an answer to everything that was sent."""
        if not self._moving or self.closed or any(user.lane.sent for user in self._lanes.values()):
            return
        again: list[tuple[Envelope, Record, int, Waiter | None, int, int]] = []
        for user in self._lanes.values():
            number = user.lane.partition
            again += [(*left, number if left[0].pinned else -1) for left in user.lane.leftovers()]
            user.leave()
        self._moving, self.routing_version = False, -1
        self._unrouted = again + self._unrouted
        self._ask()

    def _ask(self) -> None:
        """Opens a channel, if none is open, for what waits to learn the partitions."""
        if self._unrouted and not self._moving:
            self._lane(0, self._unrouted[0][0].level != _NONE)

    # ------------------------------------------------------------ answers

    def _done(self, frame: Frame, error: HeadraceError | None) -> None:
        self._in_flight -= len(frame.waiters)
        self._in_flight_bytes -= frame.nbytes
        self._sticky += 1
        if error is not None and self._first_error is None and None in frame.waiters:
            self._first_error = error
        if self._room and not self.full:
            _wake(self._room)
        if self._idle and not self._in_flight:
            _wake(self._idle)

    def _refused_whole(self, user: LaneUser, error: HeadraceError) -> None:
        """The channel could not be opened, or was closed: everything on it fails, and so does what waited to learn the partitions."""
        self._fail_unrouted(error)
        user.lane.fail(error)
        self.partitions = 0
        if type(error) is NotFound:
            self._deleted()
        self._look_if_settled()

    def _deleted(self) -> None:
        """Something does not exist, perhaps the queue or stream any more: how many partitions another one of that name has is not known."""
        self.partitions = 0
        for user in self._lanes.values():
            if user.channel:
                user.renew()

    def _fail_unrouted(self, error: HeadraceError, until_ms: int = 1 << 62) -> None:
        """Fails what waits to be routed, and no longer than ``until_ms``."""
        waiting = [one for one in self._unrouted if one[4] <= until_ms]
        self._unrouted = [one for one in self._unrouted if one[4] > until_ms]
        if waiting:
            frame = Frame(self._plain, 0)
            for _, _, nbytes, waiter, _, _ in waiting:
                frame.waiters.append(waiter)
                frame.nbytes += nbytes
                if waiter is not None and not waiter.done():
                    waiter.set_exception(type(error)(str(error), hint=error.hint))
            self._done(frame, error)

    def _expire_unrouted(self, now_ms: int) -> None:
        if any(one[4] <= now_ms for one in self._unrouted):
            whys = (u.lane.why or self._router.why(u) for u in self._lanes.values())
            why = next((str(why) for why in whys if why is not None), "the broker did not open the publisher")
            self._fail_unrouted(
                ConfirmTimeout(
                    f"messages to {self.name!r} could not be sent in time: {why}",
                    hint="they were not stored; publish again when the broker is back, or raise confirm_timeout",
                ),
                now_ms,
            )

    def fail(self, error: HeadraceError) -> None:
        """Answers everything that waits with ``error``: the client is closing."""
        self.closed = True
        for user in self._lanes.values():
            self._refused_whole(user, error)
            self._router.forget(user)


def _wake(waiting: list["asyncio.Future[None]"]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
    waiting.clear()


def _level(confirm: str) -> int:
    level = _LEVELS.get(confirm)
    if level is None:
        raise Invalid(f"confirm {confirm!r} is unknown; it is one of {', '.join(_LEVELS)}")
    return level


assert BATCH_BYTES_MAX < limits.MESSAGE_BYTES_MAX
