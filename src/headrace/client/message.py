"""What a consumer is handed: one message of a queue, and how to settle it. Values only; the consumer does the work.

Invariant: a message is settled at most once by the application; a second call raises ``Conflict``.
"""

from collections.abc import Awaitable, Generator
from typing import TYPE_CHECKING, Any, Final, Protocol

from headrace.client.payload import Duration, decode_headers, decode_json
from headrace.model.errors import Conflict
from headrace.wire.batch import Record
from headrace.wire.frames import Settle, SettleFlag

if TYPE_CHECKING:
    from typing import Self

ACK: Final = int(Settle.ACK)
RETRY: Final = int(Settle.RETRY)
REJECT: Final = int(Settle.REJECT)
DROP: Final = int(SettleFlag.DROP) | int(Settle.REJECT)


class _Nothing:
    """Awaiting it does nothing: an unconfirmed settlement is on its way by the end of this loop iteration anyway."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


NOTHING: Final = _Nothing()


class Settler(Protocol):
    """The consumer as a message sees it."""

    def settle(self, partition: int, offset: int, action: int, delay: Duration | None, confirmed: bool) -> Awaitable[None]: ...
    def extend(self, partition: int, offset: int, lease: Duration | None) -> Awaitable[None]: ...


class Content:
    """What messages and stream records share."""

    __slots__ = ("_record", "offset", "partition")

    partition: int
    offset: int
    _record: Record

    @property
    def value(self) -> bytes:
        """The payload; empty for a null value."""
        return self._record.value or b""

    @property
    def is_null(self) -> bool:
        """Whether it was published with ``None`` (a tombstone in a compacted stream)."""
        return self._record.value is None

    @property
    def text(self) -> str:
        return self.value.decode()

    def json(self) -> Any:
        """The payload as JSON; ``Malformed`` if it is none."""
        return decode_json(self._record.value)

    @property
    def key(self) -> str | None:
        """The key as text; see ``raw_key``."""
        return None if self._record.key is None else self._record.key.decode("utf-8", "replace")

    @property
    def raw_key(self) -> bytes | None:
        return self._record.key

    @property
    def headers(self) -> dict[str, str]:
        return decode_headers(self._record.headers)

    @property
    def raw_headers(self) -> tuple[tuple[str, bytes], ...]:
        return self._record.headers

    @property
    def timestamp_ms(self) -> int:
        """When the publisher made it, milliseconds since 1970."""
        return self._record.timestamp_ms

    @property
    def timestamp(self) -> float:
        """When the publisher made it, seconds since 1970 (as ``time.time``)."""
        return self._record.timestamp_ms / 1000


class Message(Content):
    """A message of a queue, leased to this consumer until it is settled. As a context manager: ack on success, retry on an exception."""

    __slots__ = ("_settler", "attempt", "auto_acked", "epoch", "settled")

    def __init__(self, settler: Settler, partition: int, offset: int, record: Record, attempt: int, auto_acked: bool, epoch: int = 0) -> None:
        self._settler = settler
        self.partition = partition
        self.offset = offset
        self._record = record
        self.attempt = attempt
        """1 at the first delivery."""
        self.epoch = epoch
        """Of the ownership of its partition in which it was delivered."""
        self.settled = self.auto_acked = auto_acked

    @property
    def redelivered(self) -> bool:
        return self.attempt > 1

    def ack(self, *, confirmed: bool = False) -> Awaitable[None]:
        """Done: it is never delivered again. Sent with all others of this loop iteration, whether awaited or not; awaited with ``confirmed=True`` it
        returns once the broker has it durably, or raises ``StaleSettle`` when the lease was lost."""
        return self._settle(ACK, None, confirmed)

    def retry(self, delay: Duration | None = None, *, confirmed: bool = False) -> Awaitable[None]:
        """Back to the queue: delivered again after ``delay`` (default: the queue's back-off)."""
        return self._settle(RETRY, delay, confirmed)

    def reject(self, *, drop: bool = False, confirmed: bool = False) -> Awaitable[None]:
        """Never again: to the queue's dead-letter queue (dropped if it has none, or with ``drop``)."""
        return self._settle(DROP if drop else REJECT, None, confirmed)

    def extend(self, lease: Duration | None = None) -> Awaitable[None]:
        """Keeps it for ``lease`` from now (default: the lease it came with); awaited it raises ``StaleSettle`` when the lease is lost already."""
        return self._settler.extend(self.partition, self.offset, lease)

    def _settle(self, action: int, delay: Duration | None, confirmed: bool) -> Awaitable[None]:
        if self.settled:
            raise Conflict(
                f"message {self.partition}/{self.offset} was settled already" + (" (the subscription acks automatically)" if self.auto_acked else ""),
                hint="settle each message once",
            )
        self.settled = True
        return self._settler.settle(self.partition, self.offset, action, delay, confirmed)

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self.settled:
            if kind is None:
                self.ack()
            else:
                self.retry()

    def __repr__(self) -> str:
        return f"<Message {self.partition}/{self.offset} attempt {self.attempt}, {len(self.value)} bytes{', settled' if self.settled else ''}>"
