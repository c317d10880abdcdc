"""``--failover-verify``: confirmed load on a queue and a stream, an owner killed or paused in the middle of it, every confirmed message checked.

Owns the load and the verdict. A message counts as confirmed when its receipt came; what failed or timed out may be there or not, and is only counted.

What must hold: every confirmed message is delivered (queue) and read (stream), at the offset of its receipt; what comes was sent there, and lies at
one offset; of one partition, offsets follow the order of sending, and the stream is read in their order.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import headrace
from headrace.cli.tryout_demo import AGAIN_S, CHECK_S, LOOK_S, amiss, durable, picture, until
from headrace.errors import HeadraceError
from headrace.model.errors import Unavailable

if TYPE_CHECKING:
    from headrace.cli.tryout_brokers import Brokers, Local
    from headrace.client.client import Client
    from headrace.client.lane import Receipt

PARTITIONS: Final = 3
EVERY_S: Final = 0.01
"""Between two messages to a partition."""
LOAD_S: Final = 2.0
"""Of calm load before a fault, and after it is over."""
PAUSE_S: Final = 8.0
"""Of an owner: longer than its registration (``coordination.registration_ttl_ms``, 5 s) lasts."""
CONFIRM_S: Final = 60.0
SETTLED_S: Final = 60.0
DRAINED_S: Final = 60.0
SHOWN_MAX: Final = 5
MOMENT_MS: Final = 1.0

Say = Callable[[str], None]


class Book:
    """What was sent to one queue or stream, and what came of it. A payload is its partition and its number there."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.sent = [0] * PARTITIONS
        self.confirmed: list[dict[int, int]] = [{} for _ in range(PARTITIONS)]
        """By partition: number to the offset of its receipt."""
        self.confirmed_s: list[list[float]] = [[] for _ in range(PARTITIONS)]
        self.failed: dict[str, int] = {}
        self.got: list[dict[int, int]] = [{} for _ in range(PARTITIONS)]
        """By partition: number to the offset at which it came."""
        self.again = 0
        self.wrong: list[str] = []
        self._last = [-1] * PARTITIONS

    def next(self, partition: int) -> tuple[int, bytes]:
        number = self.sent[partition]
        self.sent[partition] += 1
        return number, b"%d %d" % (partition, number)

    def answered(self, partition: int, number: int, answer: asyncio.Future[Receipt]) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if error is None:
            self.confirmed[partition][number] = answer.result().offset
            self.confirmed_s[partition].append(time.monotonic())
        else:
            self.failed[type(error).__name__] = self.failed.get(type(error).__name__, 0) + 1

    def came(self, partition: int, offset: int, value: bytes | None) -> None:
        try:
            said, number = map(int, (value or b"").split())
        except ValueError:
            said, number = -1, -1
        if said != partition or not 0 <= number < self.sent[partition]:
            self.wrong.append(f"{partition}/{offset} holds {value!r}, which was not sent there")
            return
        known = self.got[partition]
        if number in known:
            self.again += 1
            if known[number] != offset:
                self.wrong.append(f"message {number} of partition {partition} came from offset {known[number]} and from {offset}")
            return
        known[number] = offset
        if self.kind == "stream" and offset <= self._last[partition]:
            self.wrong.append(f"partition {partition} was read at offset {offset} after {self._last[partition]}")
        self._last[partition] = max(self._last[partition], offset)

    @property
    def missing(self) -> list[tuple[int, int]]:
        """Confirmed, and has not come: partition and number."""
        return [(p, n) for p in range(PARTITIONS) for n in self.confirmed[p] if n not in self.got[p]]

    def faults(self) -> list[str]:
        """All that must not be, in sentences."""
        found = [f"message {n} of partition {p} was confirmed and never came" for p, n in self.missing]
        for p in range(PARTITIONS):
            got = self.got[p]
            for n, offset in self.confirmed[p].items():
                if got.get(n, offset) != offset:
                    found.append(f"message {n} of partition {p} was confirmed at offset {offset} and came from {got[n]}")
            numbers = sorted(got)
            for one, two in itertools.pairwise(numbers):
                if got[one] >= got[two]:
                    found.append(f"messages {one} and {two} of partition {p} lie at {got[one]} and {got[two]}: not as they were sent")
        return found + self.wrong

    def gaps_ms(self, partitions: list[int]) -> list[float]:
        """Between one moment of confirms and the next, on each of these partitions; what comes in one turn of the loop is one moment."""
        moments = [(b - a) * 1000 for p in partitions for a, b in itertools.pairwise(self.confirmed_s[p])]
        return [gap for gap in moments if gap >= MOMENT_MS]

    def figures(self, partitions: list[int]) -> dict[str, Any]:
        faults, gaps = self.faults(), self.gaps_ms(partitions)
        return {
            "name": self.name,
            "kind": self.kind,
            "sent": sum(self.sent),
            "confirmed": sum(map(len, self.confirmed)),
            "failed": self.failed,
            "delivered": sum(map(len, self.got)),
            "delivered_again": self.again,
            "missing": len(self.missing),
            "partitions_of_the_owner": partitions,
            "confirm_gap_ms": {"p50": round(statistics.median(gaps), 1), "max": round(max(gaps), 1)} if gaps else None,
            "faults": faults[:100],
        }


async def verify(brokers: Brokers, say: Say) -> list[dict[str, Any]]:
    """One phase a fault; each says whether it is ``ok``. ``Unavailable`` where a phase cannot be done at all."""
    settings = durable(len(brokers.all))
    loads: dict[str, list[Book]] = {}
    async with headrace.connect(brokers.url(), wait=CHECK_S) as client:
        for fault in _FAULTS:  # all of them first: who has just come back is given nothing for a while
            queue, stream = loads[fault] = [Book(f"verify.{fault}.queue", "queue"), Book(f"verify.{fault}.stream", "stream")]
            await client.declare_queue(queue.name, partitions=PARTITIONS, **settings)
            await client.declare_stream(stream.name, partitions=PARTITIONS, **settings)
    return [await _phase(brokers, fault, books, say) for fault, books in loads.items()]


async def _phase(brokers: Brokers, fault: str, books: list[Book], say: Say) -> dict[str, Any]:
    owners = await _settled(brokers)
    victim = brokers[owners[books[0].name, 0]]
    theirs = [[p for p in range(PARTITIONS) if owners[b.name, p] == victim.name] for b in books]
    say(f"{fault}: load on {books[0].name} and {books[1].name} through the others; {victim.name} owns {sum(map(len, theirs))} of their partitions")
    tasks: list[asyncio.Task[None]] = []
    stop = asyncio.Event()
    async with headrace.connect(brokers.url(but=victim.name), wait=CHECK_S) as client:
        try:
            tasks += [asyncio.create_task(_get(client, b), name=f"gets {b.name}") for b in books]
            sending = [asyncio.create_task(_send(client, b, stop), name=f"sends to {b.name}") for b in books]
            tasks += sending
            await asyncio.sleep(LOAD_S)
            began_s = time.monotonic()
            await _FAULTS[fault](brokers, victim, say)
            await until(lambda: _confirms(books, theirs, began_s), CONFIRM_S)
            await asyncio.sleep(LOAD_S)
            stop.set()
            await asyncio.gather(*sending)
            await until(lambda: not any(b.missing for b in books), DRAINED_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if victim.child is None:
        brokers.start(victim)
    await brokers.ready([victim], SETTLED_S)
    await _settled(brokers)
    say(f"{fault}: {victim.name} is back, all copies are in sync")
    figures = [b.figures(p) for b, p in zip(books, theirs, strict=True)]
    for one in figures:
        gap = one["confirm_gap_ms"]
        gaps = f", gaps in confirms p50 {gap['p50']:.0f} ms, longest {gap['max']:.0f} ms" if gap else ""
        say(f"{fault}: {one['kind']}: {one['confirmed']} confirmed of {one['sent']} sent, {one['missing']} of them missing{gaps}")
        for text in one["faults"][:SHOWN_MAX]:
            say(f"FAULT: {one['name']}: {text}")
    return {"fault": fault, "broker": victim.name, "ok": not any(one["faults"] for one in figures), "load": figures}


# ---------------------------------------------------------------- faults

KILLED: Final = "kill"
PAUSED: Final = "pause"


async def _kill(brokers: Brokers, victim: Local, say: Say) -> None:
    await victim.killed()
    say(f"{KILLED}: kill -9 of {victim.name}")


async def _pause(brokers: Brokers, victim: Local, say: Say) -> None:
    victim.send(signal.SIGSTOP)
    say(f"{PAUSED}: SIGSTOP of {victim.name} for {PAUSE_S:.0f} s")
    try:
        await asyncio.sleep(PAUSE_S)
    finally:
        victim.send(signal.SIGCONT)
    say(f"{PAUSED}: SIGCONT of {victim.name}")


_FAULTS: Final[dict[str, Callable[[Brokers, Local, Say], Awaitable[None]]]] = {KILLED: _kill, PAUSED: _pause}


# ---------------------------------------------------------------- load


async def _send(client: Client, book: Book, stop: asyncio.Event) -> None:
    """Posts at an even pace, whatever is confirmed meanwhile; returns once everything is answered."""
    async with client.publisher(book.name, confirm_timeout=CONFIRM_S) as publisher:
        while not stop.is_set():
            for partition in range(PARTITIONS):
                await publisher.room()
                number, value = book.next(partition)
                publisher.post(value, partition=partition).add_done_callback(partial(book.answered, partition, number))
            await asyncio.sleep(EVERY_S)


async def _get(client: Client, book: Book) -> None:
    """Until cancelled. A subscription that ends is opened again, as any program would."""
    while True:
        with suppress(HeadraceError):
            if book.kind == "queue":
                async with client.consume(book.name) as messages:
                    async for message in messages:
                        book.came(message.partition, message.offset, message.value)
                        await message.ack()
            else:
                async with client.read(book.name, cursor="verify", start="earliest") as records:
                    async for record in records:
                        book.came(record.partition, record.offset, record.value)
        await asyncio.sleep(AGAIN_S)


def _confirms(books: list[Book], theirs: list[list[int]], since_s: float) -> bool:
    """Whether every partition that the lost owner had has confirmed something since."""
    last = [b.confirmed_s[p][-1:] for b, ps in zip(books, theirs, strict=True) for p in ps]
    return all(times and times[0] > since_s for times in last)


async def _settled(brokers: Brokers) -> dict[tuple[str, int], str]:
    """Once nothing is amiss: who owns each partition, by name and number."""
    wrong = "nobody answers"
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLED_S):
            while True:
                try:
                    now = await picture(brokers.all[0].url)
                    wrong = amiss(now)
                    if not wrong:
                        names = {b.id: b.name for b in now.brokers}
                        return {(row.name, row.partition): names[row.owner] for row in now.partitions}
                except HeadraceError as e:
                    wrong = str(e)
                await asyncio.sleep(LOOK_S)
    raise Unavailable(f"the cluster is not settled after {SETTLED_S:.0f} s: {wrong}", hint="headrace topology shows it")
