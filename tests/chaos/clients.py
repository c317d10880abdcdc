"""Clients of the cluster's chaos: the real Python client, whose every promise and delivery goes into a history.

Publishers are idempotent, one a partition, and never give up; consumers ack with confirmation and return a few; a reader follows a cursor and is
opened anew now and then. They judge only what nobody else can see: that a cursor never leaves anything out.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from headrace.client.client import Client
from headrace.client.lane import Receipt
from headrace.client.message import Message
from headrace.client.reader import Reader, Record
from headrace.model.errors import DiskFull, HeadraceError, NotConnected, StaleSettle, UnknownOutcome
from tests.chaos.history import Broken, History

TICK_S: Final = 0.05
AHEAD: Final = 4_000
"""A publisher with so many unconfirmed sends no more, nor one whose consumers are so far behind."""
CONFIRM_FOREVER_S: Final = 24 * 3600.0
TAKE: Final = 200
PAD: Final = b"x" * 92
RETURNED: Final = 0.02
REOPEN_EVERY: Final = 3_000
COMMIT_EVERY: Final = 50
CURSOR: Final = "chaos"


def value_of(partition: int, sequence: int) -> bytes:
    return b"%04x%016x" % (partition, sequence) + PAD


def sequence_of(partition: int, value: bytes) -> int:
    """``Broken`` for what nobody sent to that partition."""
    try:
        found, sequence = int(value[:4], 16), int(value[4:20], 16)
    except ValueError:
        raise Broken(f"partition {partition} delivered {value[:40]!r}, which nobody published") from None
    if found != partition or value != value_of(partition, sequence):
        raise Broken(f"partition {partition} delivered {value[:40]!r}, which was published to {found}")
    return sequence


class Publishing:
    """A producer of one partition."""

    def __init__(self, client: Client, history: History, partition: int, per_s: float) -> None:
        self.history, self.partition, self._per_s = history, partition, per_s
        self._publisher = client.publisher(history.name, confirm_timeout=CONFIRM_FOREVER_S)
        self.sent = 0
        self.confirmed = self.refused = 0
        self.unknown: set[int] = set()
        """Sequences of which the client could not say whether they are stored: sent on a connection that broke, then refused for a full disk."""
        self.confirmed_s = 0.0
        """When the last confirm came, monotonic."""
        self.gap_s = 0.0
        """The longest wait for a confirm since somebody set it to 0: from the last one, or from when there was something to confirm again."""
        self._waits_s = 0.0
        self.failure: Exception | None = None
        self.stopping = self.holding = False

    @property
    def unanswered(self) -> int:
        return self.sent - self.confirmed - self.refused - len(self.unknown)

    @property
    def undelivered(self) -> int:
        return self.sent - self.refused - len(self.unknown) + self.found - len(self.history.seen[self.partition])

    @property
    def found(self) -> int:
        """How many of which it was not known are stored."""
        return sum(self.history.stored(self.partition, sequence) for sequence in self.unknown)

    def waits(self) -> str:
        """Where its channel is, and what keeps it from going on, as far as the client knows."""
        lanes = self._publisher._lanes
        whys = [(user, user.lane.why or lanes.router.why(user)) for user in lanes.users.values()]
        return "; ".join(f"channel {user.channel} at {user.connection.target}, open: {user._open}, {why!r}" for user, why in whys)

    def give_up(self) -> None:
        """Nobody waits for its confirms any more."""
        self._publisher.fail(NotConnected("the run is over"))

    async def run(self) -> None:
        owed = 0.0
        while not self.stopping:
            await asyncio.sleep(TICK_S)
            owed = min(owed + self._per_s * TICK_S, 2 * self._per_s)
            if self.holding or self.unanswered >= AHEAD or self.undelivered >= 5 * AHEAD:
                continue
            count, owed = int(owed), owed - int(owed)
            self.history.sent(self.partition, self.sent + count)
            if not self.unanswered:
                self._waits_s = time.monotonic()
            for sequence in range(self.sent, self.sent + count):
                future = self._publisher.post(value_of(self.partition, sequence), partition=self.partition)
                future.add_done_callback(lambda done, sequence=sequence: self._done(sequence, done))  # type: ignore[misc]
            self.sent += count

    def _done(self, sequence: int, done: "asyncio.Future[Receipt]") -> None:
        if done.cancelled():
            return
        try:
            self.history.confirm(self.partition, sequence, 1, done.result().offset)
        except DiskFull:
            self.refused += 1
            self.history.refuse(self.partition, sequence)
        except Exception as e:
            if type(e) is UnknownOutcome and "disk" in str(e):
                self.unknown.add(sequence)
            else:
                self.failure = self.failure or e
        else:
            self.confirmed += 1
            self.confirmed_s = time.monotonic()
            self.gap_s = max(self.gap_s, self.confirmed_s - self._waits_s)
            self._waits_s = self.confirmed_s


async def again(work: Callable[[], Awaitable[None]]) -> None:
    """For ever; a subscription that ended by what waiting helps against is opened again."""
    while True:
        try:
            await work()
        except HeadraceError as e:
            if not e.retriable:
                raise Broken(f"a client ended: {type(e).__name__}: {e}") from e
            await asyncio.sleep(0.2)


class Consuming:
    """A consumer of a queue."""

    def __init__(self, client: Client, history: History, seed: int) -> None:
        self._client, self._history = client, history
        self._random, self._me = random.Random(seed), seed
        self.unknown = 0

    async def run(self) -> None:
        await again(self._consume)

    async def _consume(self) -> None:
        async with self._client.consume(self._history.name, prefetch=TAKE) as consumer:
            while True:
                messages = await consumer.take(TAKE)
                acked: list[tuple[Message, Awaitable[None]]] = []
                for message in messages:
                    to = (self._me, message.attempt)
                    self._history.deliver(message.partition, message.offset, sequence_of(message.partition, message.value), to=to)
                    if message.attempt == 1 and self._random.random() < RETURNED:
                        message.retry()
                    else:
                        acked.append((message, message.ack(confirmed=True)))
                answers = await asyncio.gather(*(ack for _, ack in acked), return_exceptions=True)
                for (message, _), answer in zip(acked, answers, strict=True):
                    one = [(message.offset, 1)]
                    if answer is None:
                        self._history.settle(message.partition, one, [], by=(self._me, message.attempt))
                    elif isinstance(answer, StaleSettle):
                        self._history.settle(message.partition, one, one)
                    elif isinstance(answer, HeadraceError):
                        self.unknown += 1
                    else:
                        raise answer


class Reading:
    """A reader of a stream with a cursor that it commits itself."""

    def __init__(self, client: Client, history: History) -> None:
        self._client, self._history = client, history
        self.committed: dict[int, int] = defaultdict(int)
        """Partition to the position that was confirmed."""
        self.asked: dict[int, int] = defaultdict(int)
        """Partition to the highest position that was asked for."""
        self.commits = 0
        self._committing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        await again(self._read)

    async def _read(self) -> None:
        expected: dict[int, int] = {}
        least = dict(self.committed)
        count = 0
        async with self._client.read(self._history.name, cursor=CURSOR, start="" if self.asked else "earliest", commit="explicit") as reader:
            while count < REOPEN_EVERY:
                for record in await reader.take(TAKE):
                    partition, offset = record.partition, record.offset
                    where, at = f"{self._history.name}/{partition}", expected.get(partition)
                    low, high = least.get(partition, 0), self.asked[partition]
                    if at is None and not low <= offset <= high:
                        raise Broken(f"{where}: the cursor stood between {low} and {high}, reading began at {offset}")
                    if at is not None and offset != at:
                        raise Broken(f"{where}: {at} was to be read, {offset} came")
                    expected[partition] = offset + 1
                    self._history.deliver(partition, offset, sequence_of(partition, record.value))
                    count += 1
                    if count % COMMIT_EVERY == 0:
                        self.asked[partition] = max(self.asked[partition], offset + 1)
                        task = asyncio.ensure_future(self._commit(record))
                        self._committing.add(task)
                        task.add_done_callback(self._committing.discard)

    async def _commit(self, record: Record) -> None:
        with suppress(HeadraceError):
            await record.commit(confirmed=True)
            self.committed[record.partition] = max(self.committed[record.partition], record.offset + 1)
            self.commits += 1


async def reread(client: Client, history: History, wait_s: float) -> int:
    """Reads a stream from its beginning to the last confirmed offset of each partition: how many records. ``Broken`` unless each is as confirmed."""
    left = {p: max(confirmed.values()) for p, confirmed in history.confirmed.items() if confirmed}
    expected = {p: {offset: sequence for sequence, offset in confirmed.items()} for p, confirmed in history.confirmed.items()}
    count = 0
    reader: Reader
    async with asyncio.timeout(wait_s), client.read(history.name, start="earliest") as reader:
        at: dict[int, int] = defaultdict(int)
        while left:
            for record in await reader.take(TAKE):
                if record.offset != at[record.partition]:
                    raise Broken(f"{history.name}/{record.partition}: {at[record.partition]} was to be read again, {record.offset} came")
                at[record.partition] += 1
                sequence = sequence_of(record.partition, record.value)
                confirmed = expected[record.partition].get(record.offset)
                if confirmed is not None and confirmed != sequence:
                    raise Broken(f"{history.name}/{record.partition}: {record.offset} was confirmed as {confirmed}, it reads as {sequence}")
                count += 1
                if record.offset >= left.get(record.partition, 1 << 62):
                    del left[record.partition]
    return count
