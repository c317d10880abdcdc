"""What a tried-out cluster does: its demo queues and stream, the checks that it works, and traffic that goes on until it is stopped.

Owns the names and settings of the demo. Traffic is ordinary clients' work: what is refused for a while is tried again, as any program would.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import headrace
from headrace.cli.asking import ask
from headrace.errors import HeadraceError
from headrace.model.errors import Unavailable
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.cli.tryout_brokers import Brokers
    from headrace.client.client import Client

ORDERS, SHIPMENTS, EVENTS, CHECKED, TOLD = "demo.orders", "demo.shipments", "demo.events", "demo.check", "demo.check.events"
COHORT: Final = "packers"
PARTITIONS: Final = {ORDERS: 4, SHIPMENTS: 6, EVENTS: 3, CHECKED: 3, TOLD: 3}
CHECK_S: Final = 30.0
CHECK_MESSAGES: Final = 30
EVERY_S: Final = 0.1
AGAIN_S: Final = 0.5
LOOK_S: Final = 0.1


def durable(brokers: int) -> dict[str, Any]:
    """Settings by which nothing confirmed is lost with one broker, as far as so many can do that."""
    copies = min(3, brokers)
    level = "replica_durable" if copies > 1 else "local_durable"
    return {"replication_factor": copies, "durability": level, "min_in_sync_replicas": max(1, copies - 1)}


async def seed(brokers: Brokers, *, demo: bool) -> None:
    """Declares the queues and streams; again does no harm."""
    settings = durable(len(brokers.all))
    async with headrace.connect(brokers.url(), wait=CHECK_S) as client:
        for name in (CHECKED, *((ORDERS, SHIPMENTS) if demo else ())):
            await client.declare_queue(name, partitions=PARTITIONS[name], **settings)
        for name in (TOLD, *((EVENTS,) if demo else ())):
            await client.declare_stream(name, partitions=PARTITIONS[name], **settings)


# ---------------------------------------------------------------- checks


async def check(brokers: Brokers, passed: Callable[[str], None]) -> None:
    """Publishing, consuming, reading, and the picture of the cluster, of which every broker has to show the same. ``Unavailable`` for what does not
    work; ``passed`` hears what does."""
    async with headrace.connect(brokers.url(), wait=CHECK_S) as client:
        for kind, took in (("queue", _queue), ("stream", _stream)):
            try:
                async with asyncio.timeout(CHECK_S):
                    passed(await took(client))
            except TimeoutError:
                raise Unavailable(f"the {kind} check did not end within {CHECK_S:.0f} s", hint="headrace topology shows what is amiss") from None
    passed(await _picture(brokers))


async def _queue(client: Client) -> str:
    name, sent = CHECKED, [f"check {n}".encode() for n in range(CHECK_MESSAGES)]
    async with client.publisher(name, confirm_timeout=CHECK_S) as publisher:
        receipts = await publisher.send_many(sent)
    left = {(r.partition, r.offset) for r in receipts}
    async with client.consume(name) as messages:
        while left:
            message = await messages.__anext__()
            await message.ack(confirmed=True)
            left.discard((message.partition, message.offset))
    return f"{len(sent)} messages published, confirmed at level {receipts[0].level.name.lower()}, consumed and acked"


async def _stream(client: Client) -> str:
    sent = [f"check {n}".encode() for n in range(CHECK_MESSAGES)]
    async with client.publisher(TOLD, confirm_timeout=CHECK_S) as publisher:
        receipts = await publisher.send_many(sent)
    left = {(r.partition, r.offset) for r in receipts}
    async with client.read(TOLD, start="earliest") as records:
        while left:
            record = await records.__anext__()
            left.discard((record.partition, record.offset))
    return f"{len(sent)} records appended to a stream and read by another client"


async def _picture(brokers: Brokers) -> str:
    """Every broker shows all of them alive, one controller, and every partition served with all copies in sync."""
    wrong = ""
    with suppress(TimeoutError):
        async with asyncio.timeout(CHECK_S):
            while True:
                pictures = [await picture(b.url) for b in brokers.all]
                wrong = next((w for w in map(amiss, pictures) if w), "")
                owners = {tuple((row.id, row.owner, row.epoch) for row in p.partitions) for p in pictures}
                if not wrong and len(owners) == 1:
                    count = len(pictures[0].partitions)
                    return f"every broker shows the same topology: {len(brokers.all)} alive, {count} partitions served, all copies in sync"
                wrong = wrong or "two brokers show different owners"
                await asyncio.sleep(LOOK_S)
    raise Unavailable(f"the topology is not complete after {CHECK_S:.0f} s: {wrong}", hint="headrace topology shows it")


async def until(true: Callable[[], bool], timeout_s: float) -> bool:
    """Waits for it for at most that long; whether it came."""
    end = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(LOOK_S)
    return True


async def picture(url: str) -> control.ClusterTopologyInfo:
    """The whole cluster as that broker shows it."""
    return await asyncio.to_thread(ask, url, control.ClusterTopology(limit=5_000), control.ClusterTopologyInfo)


def amiss(now: control.ClusterTopologyInfo) -> str:
    """What is not as it should be, "" = nothing."""
    if now.attention:
        return now.attention[0]
    for row in now.partitions:
        if row.state not in ("serving", "idle"):
            return f"{row.name}/{row.partition} is {row.state}"
        if any(not f.in_sync or (f.lag < 0 and row.state != "idle") for f in row.followers):  # nothing is counted of what nobody uses
            return f"{row.name}/{row.partition} is not fully copied"
    return "" if now.controller else "nobody is the controller"


# ---------------------------------------------------------------- traffic


class Traffic:
    """Publishers, consumers, a cohort of two and a reader; ``counts`` says what they have done."""

    def __init__(self, brokers: Brokers) -> None:
        self._url = brokers.url()
        self._tasks: list[asyncio.Task[None]] = []
        self.counts = dict.fromkeys(("published", "consumed", "packed", "read"), 0)

    def start(self) -> None:
        doing: list[Callable[[Client], Awaitable[None]]] = [
            self._publish(ORDERS), self._publish(SHIPMENTS), self._publish(EVENTS), self._consume, self._pack("one"), self._pack("two"), self._read,
        ]  # fmt: skip
        self._tasks = [asyncio.create_task(self._carry_on(one), name="demo traffic") for one in doing]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry_on(self, doing: Callable[[Client], Awaitable[None]]) -> None:
        while True:
            with suppress(HeadraceError):
                async with headrace.connect(self._url, wait=CHECK_S) as client:
                    await doing(client)
            await asyncio.sleep(AGAIN_S)

    def _publish(self, name: str) -> Callable[[Client], Awaitable[None]]:
        async def publish(client: Client) -> None:
            async with client.publisher(name) as publisher:
                for number in itertools.count():
                    await publisher.send({"number": number, "of": name}, key=f"key-{number % 50}")
                    self.counts["published"] += 1
                    await asyncio.sleep(EVERY_S)

        return publish

    async def _consume(self, client: Client) -> None:
        async with client.consume(ORDERS) as messages:
            async for message in messages:
                await message.ack()
                self.counts["consumed"] += 1

    def _pack(self, member: str) -> Callable[[Client], Awaitable[None]]:
        async def pack(client: Client) -> None:
            async with client.consume(SHIPMENTS, cohort=COHORT, member=member) as messages:
                async for message in messages:
                    await message.ack()
                    self.counts["packed"] += 1

        return pack

    async def _read(self, client: Client) -> None:
        async with client.read(EVENTS, cursor="audit", start="earliest") as records:
            async for _ in records:
                self.counts["read"] += 1
