"""Publishing to one queue or stream: values to records, settings to envelopes, receipts and back-pressure.

Owns what is unanswered, by number and bytes, and who waits for room or for the last answer. Where a message goes, and that none overtakes another,
is the business of its ``lanes``. Every publish is idempotent but those of level none: what is sent again after a broken connection is stored once.
Invariant: at most ``max_in_flight`` messages and ``max_in_flight_bytes`` bytes are unanswered: the awaiting calls wait for room, ``post`` refuses.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, overload

import msgspec

from headrace.client.connection import Connection
from headrace.client.lane import Envelope, Frame, Receipt, Waiter
from headrace.client.lanes import ANY, Lanes
from headrace.client.payload import Duration, Headers, encode_headers, encode_key, encode_value, milliseconds
from headrace.client.routing import Router
from headrace.model import limits
from headrace.model.errors import HeadraceError, Invalid, LimitExceeded, NotConnected, TooLarge
from headrace.model.ids import NO_PRODUCER
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
        self._connection = connection
        """The client's own; each lane has its own way."""
        self._level = _level(confirm)
        self._codec = compression
        self._plain = Envelope(level=self._level, codec=compression)
        self._pinned = Envelope(level=self._level, codec=compression, pinned=True)
        self._headers: Headers = encode_headers(headers) if headers else ()
        self._timeout_ms = int(confirm_timeout * 1000)
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._lanes = Lanes(
            connection,
            router,
            name,
            producer_id=connection.ambient.bits(62) if idempotent else NO_PRODUCER,
            sticky=connection.ambient.bits(16),
            done=self._done,
        )
        self._in_flight = 0
        self._wall_ms = self._deadline_ms = 0
        self._in_flight_bytes = 0
        self._room: list[asyncio.Future[None]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._first_error: HeadraceError | None = None

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
        lanes = self._lanes
        if lanes.closed or self._connection.closed:
            raise NotConnected(f"the publisher to {self.name!r} is closed", hint="open another with client.publisher()")
        if (
            key is None
            and headers is None
            and timestamp_ms is None
            and partition is None
            and type(value) is bytes
            and (partitions := lanes.partitions)
            and not self._headers
        ):
            nbytes = _RECORD_OVERHEAD + len(value)
            envelope = self._envelope(delay, ttl, priority, confirm)
            user = lanes.users.get((lanes.sticky % partitions, envelope.level != _NONE))
            if user is not None and user.channel and nbytes <= lanes.message_bytes_max:
                if not user.marked:  # once per loop iteration: later posts of the same one share the time
                    self._look()
                    user.connection.mark(user)
                user.lane.add(envelope, Record(None, value, (), self._wall_ms), nbytes, waiter, self._deadline_ms)
                self._in_flight += 1
                self._in_flight_bytes += nbytes
                return
        self._look()
        record, nbytes = self._record(value, key, headers, timestamp_ms, lanes.message_bytes_max)
        envelope = self._envelope(delay, ttl, priority, confirm)
        if partition is None:
            lanes.put(envelope, record, nbytes, waiter, self._deadline_ms, ANY)
        elif not 0 <= partition < limits.PARTITIONS_MAX:
            raise Invalid(f"partition {partition} lies outside 0..{limits.PARTITIONS_MAX - 1}")
        else:
            envelope = self._pinned if envelope is self._plain else msgspec.structs.replace(envelope, pinned=True)
            lanes.put(envelope, record, nbytes, waiter, self._deadline_ms, partition)
        self._in_flight += 1
        self._in_flight_bytes += nbytes

    def _look(self) -> None:
        """Looks at the clocks."""
        connection = self._connection
        self._wall_ms = connection.ambient.wall_ns() // 1_000_000
        self._deadline_ms = int(connection.loop.time() * 1000) + self._timeout_ms

    def _record(
        self, value: Any, key: str | bytes | None, headers: Mapping[str, str | bytes] | None, timestamp_ms: int | None, message_bytes_max: int
    ) -> tuple[Record, int]:
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
        if nbytes > message_bytes_max:
            raise TooLarge(
                f"a message of {nbytes} bytes; the broker takes at most {message_bytes_max}",
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
            self._lanes.close()

    @property
    def closed(self) -> bool:
        return self._lanes.closed

    @property
    def kind(self) -> str:
        """queue or stream, "" = not known yet."""
        return self._lanes.kind

    @property
    def partitions(self) -> int:
        """0 until the first publish learned it from the broker."""
        return self._lanes.partitions

    @property
    def in_flight(self) -> int:
        """Messages that are not answered yet."""
        return self._in_flight

    @property
    def full(self) -> bool:
        """Whether ``post`` would refuse now."""
        return self._in_flight >= self._max_in_flight or self._in_flight_bytes >= self._max_in_flight_bytes

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

    # ------------------------------------------------------------ answers

    def _done(self, frame: Frame, error: HeadraceError | None) -> None:
        self._in_flight -= len(frame.waiters)
        self._in_flight_bytes -= frame.nbytes
        self._lanes.sticky += 1
        if error is not None and self._first_error is None and None in frame.waiters:
            self._first_error = error
        if self._room and not self.full:
            _wake(self._room)
        if self._idle and not self._in_flight:
            _wake(self._idle)

    def fail(self, error: HeadraceError) -> None:
        """Answers everything that waits with ``error``: the client is closing."""
        self._lanes.fail(error)


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
