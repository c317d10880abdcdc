"""MQTT publishes on their way into queues and streams: gathered, and appended as one batch a partition.

Owns what was gathered since the last ``flush``, and tells each publish once all its copies are committed, or that one was refused.

Invariants: A1 publishes of one topic by one client are appended in their order. A2 what was gathered is appended in the turn in which it came,
together with what the sessions journal of it. A3 ``stored`` is called once for each publish.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from headrace.core.mqtt.captured import Capture
from headrace.core.mqtt.message import Message
from headrace.core.partitioner import partition_for
from headrace.gateways.mqtt.records import record_of
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.errors import HeadraceError, LimitExceeded, TooLarge
from headrace.wire.batch import Record, encode_batch, encode_publish
from headrace.wire.frames import Level
from headrace.wire.ingress import Run

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.catalogue import Item

Stored = Callable[[HeadraceError | None], None]
BATCH_BYTES_MAX = 256 * 1024
BATCH_RECORDS_MAX = 500
UNOPENED_MAX = 10_000
"""Publishes that wait for queues or streams that are being declared."""
_log = get_logger("mqtt")


class Target(Protocol):
    """What takes a batch: a partition of this broker (``broker.partition.Partition``), or whoever gives it to another's."""

    pid: int
    item: Item
    message_bytes_max: int

    def append_own(self, run: Run, blob: bytes, done: Callable[[int, HeadraceError | None], None]) -> None:
        """``done(base_offset, error)`` is called once it is committed, or why it is not."""


class _Kept:
    """One publish, in as many queues and streams as it goes to."""

    __slots__ = ("_left", "_stored", "_why")

    def __init__(self, count: int, stored: Stored | None) -> None:
        self._left = count
        self._stored = stored
        self._why: HeadraceError | None = None

    def done(self, why: HeadraceError | None) -> None:
        self._why = self._why or why
        self._left -= 1
        if not self._left and self._stored is not None:
            self._stored(self._why)


class _Batch:
    """What was gathered for one partition; all of it expires alike."""

    __slots__ = ("expires_ms", "kept", "nbytes", "partition", "records")

    def __init__(self, partition: Target, expires_ms: int) -> None:
        self.partition = partition
        self.expires_ms = expires_ms
        self.records: list[Record] = []
        self.kept: list[_Kept] = []
        self.nbytes = 0


class Appends:
    """See the module's head."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.refused = 0
        """Copies of publishes that a queue or stream did not take."""
        self._batches: dict[int, _Batch] = {}
        self._opening: dict[str, deque[tuple[Message, Capture, _Kept]]] = {}
        self._unopened_count = 0
        self._turn = 0
        self._scheduled = False
        self._told: dict[str, str] = {}

    def partition(self, item: Item, number: int) -> Target:
        """What takes what is for that partition; raises ``HeadraceError``."""
        return self.broker.loading.partition(item, number)

    def keep(self, message: Message, captures: Sequence[Capture], stored: Stored | None) -> None:
        """Takes a publish into all of them."""
        kept = _Kept(len(captures), stored)
        for capture in captures:
            waiting = self._opening.get(capture.name)
            item = self.broker.catalogue.find(capture.name) if waiting is None else None
            if item is not None:
                self._gather(item, message, capture, kept)
            elif self._unopened_count >= UNOPENED_MAX:
                self._refuse(capture, kept, LimitExceeded(f"{UNOPENED_MAX} publishes wait for queues and streams that are being declared"))
            elif waiting is not None:
                self._unopened_count += 1
                waiting.append((message, capture, kept))
            else:
                self._unopened_count += 1
                self._opening[capture.name] = deque([(message, capture, kept)])
                self.broker.spawn(self._open(capture.name))

    async def _open(self, name: str) -> None:
        """Declares a queue or stream that nobody has declared, where a rule says so, and appends what waited for it."""
        waiting = self._opening[name]
        try:
            item = await self.broker.catalogue.use(name, waiting[0][1].kind)
        except HeadraceError as e:
            for _, capture, kept in waiting:
                self._refuse(capture, kept, e)
        else:
            for message, capture, kept in waiting:
                self._gather(item, message, capture, kept)
        finally:
            self._unopened_count -= len(waiting)
            del self._opening[name]
        self.flush()

    def _gather(self, item: Item, message: Message, capture: Capture, kept: _Kept) -> None:
        broker = self.broker
        try:
            if item.kind != capture.kind:
                raise broker.catalogue.wrong_kind(item, capture.kind)
            record = record_of(message, capture, broker.wall_ms)
            count = item.routes
            if record.key is not None:
                number = partition_for(record.key, count)
            else:
                self._turn += 1
                number = self._turn % count
            partition = self.partition(item, number)
            nbytes = len(message.payload) + sum(len(k) + len(v) + 8 for k, v in record.headers) + len(record.key or b"") + 64
            most = partition.message_bytes_max or broker.config.limits.message_bytes_max
            if nbytes > most:
                raise TooLarge(f"a message of {nbytes} bytes; {item.name!r} takes at most {most}")
        except HeadraceError as e:
            self._refuse(capture, kept, e)
            return
        expires_ms = 0
        if message.expires_ms and item.kind == "queue":
            expires_ms = min(max(1, message.expires_ms - broker.wall_ms), limits.DELAY_MS_MAX)
        batch = self._batches.get(partition.pid)
        if batch is not None and (
            batch.expires_ms != expires_ms or len(batch.records) >= BATCH_RECORDS_MAX or batch.nbytes + nbytes > BATCH_BYTES_MAX
        ):
            self._append(self._batches.pop(partition.pid))
            batch = None
        if batch is None:
            batch = self._batches[partition.pid] = _Batch(partition, expires_ms)
        batch.records.append(record)
        batch.kept.append(kept)
        batch.nbytes += nbytes
        if not self._scheduled:
            self._scheduled = True
            broker.loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Hands what was gathered to the partitions; it becomes durable with what else this turn appends."""
        while self._batches:
            batches, self._batches = self._batches, {}
            for batch in batches.values():
                self._append(batch)

    def _append(self, batch: _Batch) -> None:
        kept, item = batch.kept, batch.partition.item
        encoded = self.encoded(batch.partition, batch.records)
        blob = encode_publish(encoded, channel=0, correlation=0, flags=Level.QUEUE, expires_at_ms=batch.expires_ms)
        run = Run()
        run.record_count, run.frame_bytes, run.nbytes, run.expires_at_ms = len(batch.records), len(blob), len(blob), batch.expires_ms

        def done(_: int, error: HeadraceError | None) -> None:
            if error is not None:
                self._count(item.name, len(kept), error)
            for one in kept:
                one.done(error)

        batch.partition.append_own(run, blob, done)

    def encoded(self, partition: Target, records: list[Record]) -> bytes:
        """They as one batch for that partition."""
        return encode_batch(records, base_timestamp_ms=records[0].timestamp_ms)

    def _refuse(self, capture: Capture, kept: _Kept, error: HeadraceError) -> None:
        self._count(capture.name, 1, error)
        kept.done(error)

    def _count(self, name: str, count: int, error: HeadraceError) -> None:
        self.refused += count
        why = type(error).__name__
        if self._told.get(name) != why:  # once until it is for another reason
            if len(self._told) >= 1000:
                self._told.clear()
            self._told[name] = why
            _log.warning("a publish of an MQTT client was not taken into %r: %s", name, error)
