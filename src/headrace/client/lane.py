"""One publisher's way into one partition: gathers messages into batches, numbers them, keeps what is unconfirmed and says what to send again.

A lane whose routing is out of date (``stopped``) sends nothing new; once all that was sent is answered, what is not stored is taken out to be routed
again (``leftovers``). Its sequences go on, so what it sends later is never taken for what it sent before.

Pure: bytes and times come in, bytes go out; a *waiter* is anything that can be told a receipt or an error (asyncio futures in the shells).

Invariants: I1 correlation ids and producer sequences are given out in the order of ``add``, the ids growing by one a frame, the sequences by the
records in it. I2 a frame that is sent again after a broken connection has the bytes it had before, so the broker stores it once. I3 a frame leaves
``sent`` exactly once: by confirm, refusal, or giving up. I4 at most ``PIPELINE`` frames are unconfirmed while the last batch still has room: what
comes meanwhile joins it, so batches grow with the round trip and a lone message waits for nothing. I5 ``count`` and ``nbytes`` are those of all
messages not yet answered.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

import msgspec

from headrace.model.errors import ConfirmTimeout, Draining, Elsewhere, HeadraceError, QueueFull, StaleRouting, Unavailable, UnknownOutcome
from headrace.model.ids import NO_PRODUCER, SEQUENCE_MODULUS
from headrace.wire.batch import Record, decode_batch, encode_batch, encode_publish
from headrace.wire.frames import ENVELOPE, Level

PIPELINE: Final = 4
BATCH_RECORDS_MAX: Final = 2048
BATCH_BYTES_MAX: Final = 256 * 1024
QUEUE_BATCH_RECORDS_MAX: Final = 128
"""A queue shares batches out in parts, and each part travels as the whole batch: small ones keep that cheap, and are large enough for the rest."""
_CORRELATIONS: Final = 1 << 32
_CHANNEL: Final = slice(6, 8)
"""Where a frame names its channel."""
PASSING: Final = (Elsewhere, Unavailable)
"""Exactly these: some errors derived from them are for good."""
_PERHAPS: Final = "whether they are stored is not known; publish again if a duplicate does no harm"


class Receipt(msgspec.Struct, frozen=True):
    """Where a message is stored and what that promises. ``offset`` is -1 where no confirm was asked for; ``duplicate``: it had been stored by an
    earlier attempt."""

    partition: int
    offset: int
    level: Level
    duplicate: bool = False


class Waiter(Protocol):
    """Who is told what became of one message."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class Envelope(msgspec.Struct, frozen=True):
    """What all records of one frame share."""

    level: int = int(Level.QUEUE)
    not_before_ms: int = 0
    expires_at_ms: int = 0
    priority: int = 0
    key_slot: int = 0
    pinned: bool = False
    """Its partition was named, so it goes there under any routing."""
    codec: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"


class Frame:
    """Messages on their way: gathered while ``data`` is empty, sent from then on."""

    __slots__ = ("again", "correlation", "count", "data", "deadline_ms", "doubtful", "envelope", "nbytes", "records", "repeated", "waiters")

    def __init__(self, envelope: Envelope, deadline_ms: int) -> None:
        self.envelope = envelope
        self.deadline_ms = deadline_ms
        self.records: list[Record] = []
        self.waiters: list[Waiter | None] = []
        self.count = 0
        self.nbytes = 0
        self.data = b""
        self.correlation = 0
        self.again = False
        """Refused for certain, because the broker is going away or does not serve the partition (now): to be sent to who does."""
        self.doubtful = False
        """The broker that had it does not know what became of it: to be sent again."""
        self.repeated = False
        """Sent before, on a connection that broke without an answer: it may be stored already."""


class Lane:
    """See the module's head. ``settled(frame, error)`` is called once for every frame that is answered, after its waiters."""

    __slots__ = (
        "_correlation",
        "_given_up",
        "_on_done",
        "_sequence",
        "bytes_max",
        "channel",
        "count",
        "gathered",
        "keeps",
        "late",
        "nbytes",
        "partition",
        "producer_id",
        "records_max",
        "sent",
        "stopped",
        "why",
    )

    def __init__(self, partition: int, producer_id: int, on_done: Callable[[Frame, HeadraceError | None], None], *, keeps: bool = True) -> None:
        self.partition = partition
        self.producer_id = producer_id
        self.keeps = keeps
        """False: nothing is confirmed (level none), so nothing is kept."""
        self.channel = 0
        self.records_max = QUEUE_BATCH_RECORDS_MAX
        self.bytes_max = BATCH_BYTES_MAX
        self.gathered: deque[Frame] = deque()
        self.sent: dict[int, Frame] = {}
        self.stopped = False
        """Its routing is out of date."""
        self.late: list[Frame] = []
        """Refused for certain because they were routed under an earlier version, in order."""
        self._given_up: dict[int, int] = {}
        """Frames sent on this connection that waited for too long, with how many records: a confirm may still count them in."""
        self.count = 0
        self.nbytes = 0
        self.why: HeadraceError | None = None
        """Why nothing was taken the last time, until something is."""
        self._correlation = 0
        self._sequence = 0
        self._on_done = on_done

    # ------------------------------------------------------------ in

    def add(self, envelope: Envelope, record: Record, nbytes: int, waiter: Waiter | None, deadline_ms: int) -> None:
        """Gathers one message of about ``nbytes`` bytes on the wire."""
        gathered = self.gathered
        frame = gathered[-1] if gathered else None
        if (
            frame is None
            or (frame.envelope is not envelope and frame.envelope != envelope)
            or len(frame.records) >= self.records_max
            or frame.nbytes + nbytes > self.bytes_max
        ):
            frame = Frame(envelope, deadline_ms)
            gathered.append(frame)
        frame.records.append(record)
        frame.waiters.append(waiter)
        frame.nbytes += nbytes
        self.count += 1
        self.nbytes += nbytes

    # ------------------------------------------------------------ out

    def take(self, out: list[bytes], bytes_max: int) -> int:
        """Appends to ``out`` the frames that may be sent now, about ``bytes_max`` bytes at most, and says how many bytes that was."""
        gathered, sent, keeps = self.gathered, self.sent, self.keeps
        size = 0
        if self.stopped:
            return 0
        while gathered and size < bytes_max:
            if len(gathered) == 1 and len(sent) >= PIPELINE:
                break
            frame = gathered.popleft()
            data = self._encode(frame)
            out.append(data)
            size += len(data)
            if keeps:
                frame.data = data
                sent[frame.correlation] = frame
            else:
                self._finish(frame, -1, Level.NONE, False, None)
        return size

    def bind(self, channel: int) -> None:
        """What is sent from now on names ``channel``, also what was sent on another before. No other byte of it changes."""
        self.channel = channel
        number = channel.to_bytes(2, "big")
        for frame in self.sent.values():
            if frame.data[_CHANNEL] != number:
                frame.data = frame.data[: _CHANNEL.start] + number + frame.data[_CHANNEL.stop :]

    def again(self, out: list[bytes]) -> None:
        """Appends every unconfirmed frame in order: the channel is new."""
        self._given_up.clear()
        for frame in self.sent.values():
            frame.repeated = frame.repeated or not frame.again
            frame.again = frame.doubtful = False
            out.append(frame.data)

    def returned(self, out: list[bytes]) -> None:
        """Appends the frames that were answered without an end, for the same channel."""
        for frame in self.sent.values():
            if frame.again or frame.doubtful:
                frame.again = frame.doubtful = False
                out.append(frame.data)

    def _encode(self, frame: Frame) -> bytes:
        envelope, records = frame.envelope, frame.records
        count = len(records)
        idempotent = self.producer_id != NO_PRODUCER
        batch = encode_batch(
            records,
            base_timestamp_ms=records[0].timestamp_ms,
            producer_id=self.producer_id,
            producer_epoch=0 if idempotent else -1,
            base_sequence=self._sequence if idempotent else -1,
            codec=envelope.codec,
        )
        frame.correlation = self._correlation
        frame.count = count
        frame.records = []
        self._correlation = (self._correlation + 1) % _CORRELATIONS
        self._sequence = (self._sequence + count) % SEQUENCE_MODULUS
        return encode_publish(
            batch,
            channel=self.channel,
            correlation=frame.correlation,
            flags=envelope.level,
            not_before_ms=envelope.not_before_ms,
            expires_at_ms=envelope.expires_at_ms,
            priority=envelope.priority,
            key_slot=envelope.key_slot,
        )

    # ------------------------------------------------------------ answers

    def confirmed(self, first: int, count: int, base_offset: int, level: int, duplicate: bool) -> None:
        """``count`` frames from ``first`` on are stored densely from ``base_offset`` on."""
        sent, given = self.sent, Level(level)
        self.why = None
        for i in range(first, first + count):
            frame = sent.pop(i % _CORRELATIONS, None)
            if frame is None:
                base_offset += self._given_up.pop(i % _CORRELATIONS, 0)
                continue
            self._finish(frame, base_offset, given, duplicate, None)
            base_offset += frame.count

    def refused(self, first: int, count: int, error: HeadraceError) -> None:
        """``count`` frames from ``first`` on were not stored. A broker that is going away, or does not serve the partition (now), is no answer: they
        are sent to its successor. Neither is one that does not know, if a second time does no harm."""
        for i in range(first, first + count):
            i %= _CORRELATIONS
            frame = self.sent.get(i)
            if frame is None:
                self._given_up.pop(i, None)
                continue
            if isinstance(error, Draining) or type(error) in PASSING:
                frame.again, self.why = True, error
            elif type(error) is UnknownOutcome and self.producer_id != NO_PRODUCER:
                frame.doubtful = frame.repeated = True
                self.why = error
            elif type(error) is StaleRouting and (not frame.repeated or self.producer_id != NO_PRODUCER):
                # what an idempotent publisher has stored there is confirmed, whatever its version
                del self.sent[i]
                self.late.append(frame)
            else:
                del self.sent[i]
                # Whether an idempotent message is stored already is looked up before there is room for it, and after everything else.
                sure = not frame.repeated or (self.producer_id != NO_PRODUCER and isinstance(error, QueueFull))
                self._finish(frame, -1, Level.NONE, False, error if sure or not error.definite else _perhaps(frame, error))

    def expire(self, now_ms: int) -> int:
        """Gives up what has waited for too long and says when to look again (0 = nothing waits)."""
        sent, gathered = self.sent, self.gathered
        while sent:
            correlation = next(iter(sent))
            frame = sent[correlation]
            if frame.deadline_ms > now_ms:
                break
            del sent[correlation]
            self._given_up[correlation] = frame.count
            error: HeadraceError = ConfirmTimeout(
                f"no confirm for {frame.count} message(s) to partition {self.partition} came in time: whether they are stored is not known",
                hint="publish again if a duplicate does no harm, raise confirm_timeout, or see whether the broker is overloaded",
            )
            if frame.again and not frame.repeated and type(self.why) in PASSING:
                error = Unavailable(f"{frame.count} message(s) to partition {self.partition} were not taken in time, nor stored: {self.why}")
            self._finish(frame, -1, Level.NONE, False, error)
        while self.late and self.late[0].deadline_ms <= now_ms:
            late = StaleRouting("the queue was repartitioned, and its publisher could not send this anew in time; it is not stored")
            self._finish(self.late.pop(0), -1, Level.NONE, False, late)
        while gathered and gathered[0].deadline_ms <= now_ms:
            frame = gathered.popleft()
            unsent = ConfirmTimeout(
                f"{len(frame.records)} message(s) could not be sent in time: {self.why or 'there was no connection, or the broker took nothing'}",
                hint="they were not stored; publish again when the broker is back, or raise confirm_timeout",
            )
            self._finish(frame, -1, Level.NONE, False, unsent)
        heads = [f.deadline_ms for f in (next(iter(sent.values()), None), gathered[0] if gathered else None) if f is not None]
        return min(heads) if heads else 0

    def fail(self, error: HeadraceError) -> None:
        """Answers everything with ``error``; what was sent and not answered may be stored, whatever the error says of itself."""
        sent, gathered = [*self.sent.values()], [*self.late, *self.gathered]
        self.sent.clear()
        self.late.clear()
        self.gathered.clear()
        for frame in sent:
            says_so = frame.again or not error.definite
            self._finish(frame, -1, Level.NONE, False, error if says_so else _unknown(frame, error))
        for frame in gathered:
            self._finish(frame, -1, Level.NONE, False, error)

    def forsake(self, error: HeadraceError) -> None:
        """What was sent and not answered cannot be asked about any more."""
        sent = [*self.sent.values()]
        self.sent.clear()
        for frame in sent:
            self._finish(frame, -1, Level.NONE, False, _unknown(frame, error))

    def leftovers(self) -> list[tuple[Envelope, Record, int, Waiter | None, int]]:
        """Takes out everything that is not stored, in order, once there is an answer to all that was sent: (envelope, record, bytes, waiter,
        deadline)."""
        assert not self.sent
        found: list[tuple[Envelope, Record, int, Waiter | None, int]] = []
        for frame in [*self.late, *self.gathered]:
            records = frame.records or decode_batch(frame.data, ENVELOPE.size)
            each, rest = divmod(frame.nbytes, len(records))
            for n, (record, waiter) in enumerate(zip(records, frame.waiters, strict=True)):
                found.append((frame.envelope, record, each + (rest if n == 0 else 0), waiter, frame.deadline_ms))
            self.count -= len(records)
            self.nbytes -= frame.nbytes
        self.late.clear()
        self.gathered.clear()
        self.stopped = False
        assert self.count == self.nbytes == 0
        return found

    def _finish(self, frame: Frame, offset: int, level: Level, duplicate: bool, error: HeadraceError | None) -> None:
        self.count -= len(frame.waiters)
        self.nbytes -= frame.nbytes
        assert self.count >= 0 and self.nbytes >= 0
        if error is not None:
            for waiter in frame.waiters:
                if waiter is not None and not waiter.done():
                    waiter.set_exception(type(error)(str(error), hint=error.hint))
        else:
            partition = self.partition
            step = 1 if offset >= 0 else 0
            for waiter in frame.waiters:
                if waiter is not None and not waiter.done():
                    waiter.set_result(Receipt(partition, offset, level, duplicate))
                offset += step
        self._on_done(frame, error)


def _unknown(frame: Frame, error: HeadraceError) -> UnknownOutcome:
    return UnknownOutcome(
        f"{frame.count} message(s) were sent and not answered before the end: {error}",
        hint=_PERHAPS,
    )


def _perhaps(frame: Frame, error: HeadraceError) -> UnknownOutcome:
    return UnknownOutcome(f"{frame.count} message(s) were sent on a connection that broke, and were refused the second time: {error}", hint=_PERHAPS)
