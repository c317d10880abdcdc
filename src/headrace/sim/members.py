"""Cohorts of consumers and groups of readers that share partitions out over the brokers of a cluster, while members and brokers come and go.

Owns the members: some stay, some leave, some vanish without a word. The cluster, the faults and what is kept of messages are those of
``sim.clustered``; whoever publishes carries on as in ``sim.following``.

G1 Where a partition is served one member of a group at a time is attached to it, and what is leased of a cohort's partition is leased to that one.
G2 The generation of who holds a partition never goes back, not over owners either. G3 A member hands out nothing of a partition in a generation older
than one in which another was handed something of it, once its broker and the group's home have heard of it again (checked while nothing is wrong).
G4 After all is healed every partition is held by a member that is there, and everything is consumed. G5 A member never has more messages of all its
partitions than its prefetch, or one of each. K1 to K7 of ``sim.clustered`` hold too.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeAlias

from msgspec.structs import replace

from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.client.client import Client
from headrace.client.spread import SpreadConsumer
from headrace.model.errors import HeadraceError, StaleSettle, Unavailable
from headrace.sim.clustered import Book, Totals
from headrace.sim.following import Following
from headrace.sim.loop import Machine

LOOK_S: Final = 0.5
LEASE_S: Final = 300.0
PREFETCH: Final = 20
MEMBERS: Final = 3
COHORT: Final = "team"
READERS: Final = "billing"


async def vanish(client: Client) -> None:
    """Its connections end without a goodbye, and it does not come back."""
    await client._router.close()
    await client._connection.close()


Work: TypeAlias = Callable[[Client, Book, str, float, bool], Awaitable[None]]


class Members(Following):
    """See the module's head."""

    rests_s = (0.0, 0.3)

    def __init__(self, seed: int, *, rows_max: int | None = 0) -> None:
        super().__init__(seed, rows_max=rows_max)
        self.partitions = self.meta.choice([1, 3, 5])
        grace_ms = self.meta.choice([500, 5_000])
        for host in self.hosts.values():
            host.config = replace(host.config, connection=replace(host.config.connection, reconnect_grace_ms=grace_ms))
        self.generations: dict[tuple[str, int], int] = {}
        self.handed: dict[tuple[str, int], int] = {}
        """Newest generation in which something of a partition was handed out."""
        self.quiet = False
        """Nothing is wrong any more, and nothing was for a while."""
        self.moves = 0
        self.consumers: list[SpreadConsumer] = []
        """Those that are at work."""

    # ------------------------------------------------------------ members

    async def consume(self, machine: Machine, book: Book, partition: int) -> None:
        if partition or book.name != "orders":  # nothing is rejected here
            return
        await asyncio.gather(*(self._members(machine, book, number, self._consume) for number in range(MEMBERS)))

    async def read(self, machine: Machine, book: Book, partition: int) -> None:
        if partition:
            return
        await asyncio.gather(*(self._members(machine, book, number, self._read) for number in range(MEMBERS)))

    async def _members(self, machine: Machine, book: Book, number: int, work: Work) -> None:
        """One member after the other; the first has a name of its own."""
        static = "" if number else "first"
        while not self.over:
            client = await self.client(machine)
            stays_s = self.load.between(1.0, 10.0) if self.load.happens(0.7) and not self.healing else 1e9
            until = self.world.loop.time() + stays_s
            vanishes = self.load.happens(0.4)
            try:
                await work(client, book, static, until, vanishes)
            except HeadraceError as e:
                if not isinstance(e, Unavailable) and not self.over:
                    self.broken.append(f"G4 a member of {book.name} has failed: {e!r}")
                await asyncio.sleep(self.load.between(0.0, 1.0))
            with suppress(HeadraceError):
                await client.close()

    async def _consume(self, client: Client, book: Book, static: str, until: float, vanishes: bool) -> None:
        consumer = client.consume(book.name, prefetch=PREFETCH, lease=LEASE_S, cohort=COHORT, member=static)
        assert isinstance(consumer, SpreadConsumer)
        await consumer.start()
        self.consumers.append(consumer)
        try:
            await self._take(consumer, book, until)
        finally:
            self.consumers.remove(consumer)
        await (vanish(client) if vanishes else consumer.close())

    async def _take(self, consumer: SpreadConsumer, book: Book, until: float) -> None:
        while not self.over and self.world.loop.time() < until:
            try:
                async with asyncio.timeout(LOOK_S):
                    message = await consumer.__anext__()
            except TimeoutError:
                continue
            self._handed(book, message.partition, consumer.generation)
            number = int(message.value.split()[0])
            if number not in book.sent:
                self.broken.append(f"K2 {number} was delivered from {book.name} and nobody sent it")
            if message.attempt >= book.acked.get(number, message.attempt + 1):  # an earlier one may have been on its way
                self.broken.append(f"K3 {number} was delivered from {book.name} after its ack was confirmed")
            self.at_one_place(book, message.partition, message.offset, number)
            book.acking[number] = True
            with suppress(StaleSettle):  # it comes again, to whoever has the partition now, or an ack that was under way counted
                await message.ack(confirmed=True)
                del book.acking[number]
                book.acked[number] = message.attempt
                self.totals.acked += 1

    async def _read(self, client: Client, book: Book, static: str, until: float, vanishes: bool) -> None:
        reader = client.read(book.name, group=READERS, member=static, commit="explicit")
        await reader.start()
        while not self.over and self.world.loop.time() < until:
            try:
                async with asyncio.timeout(LOOK_S):
                    record = await reader.__anext__()
            except TimeoutError:
                continue
            self._handed(book, record.partition, reader.generation)
            number = int(record.value.split()[0])
            self.at_one_place(book, record.partition, record.offset, number)
            book.delivered[number] = True
            self.totals.read += 1
            record.commit()
        await (vanish(client) if vanishes else reader.close())

    def _handed(self, book: Book, partition: int, generation: int) -> None:
        newest = self.handed.get((book.name, partition), 0)
        if generation < newest and self.quiet:
            self.broken.append(f"G3 {partition} of {book.name} was handed out in generation {generation}, after {newest}")
        if generation > newest:
            self.moves += 1
            self.handed[book.name, partition] = generation

    # ------------------------------------------------------------ checks

    def look(self) -> None:
        """G1, G2 and G5, at who serves each partition in the newest epoch and at the members."""
        for consumer in self.consumers:
            here = consumer.here()
            if here > max(PREFETCH, len(consumer.assigned)):
                self.broken.append(f"G5 a member has {here} messages, its prefetch is {PREFETCH}")
        served: dict[tuple[str, int], QueuePartition | StreamPartition] = {}
        for host in self.hosts.values():
            if not host.serving or host.running is None:
                continue
            for p in host.running.broker.partitions.values():
                if isinstance(p, (QueuePartition, StreamPartition)) and p.barred is None and p.item.name in ("orders", "events"):
                    before = served.get((p.item.name, p.number))
                    if before is None or p.epoch > before.epoch:
                        served[p.item.name, p.number] = p
        for (name, number), p in served.items():
            if len(p.subscriptions) > 1:
                self.broken.append(f"G1 {number} of {name} has {len(p.subscriptions)} subscriptions")
            if isinstance(p, QueuePartition) and p.subscriptions:
                holders = {token for token, holder in p.machine._state.leases.holders.items() if holder.leases}
                mine = {consumer.owner_token for s in p.subscriptions.values() for n, consumer in s.consumers.items() if n == number}
                if not holders <= mine:
                    self.broken.append(f"G1 {number} of {name} is leased to {len(holders - mine)} who do not hold it")
            for group, (generation, _) in p.groups.holders.items():
                if p.copy is None or p.copy.applied < p.last_index:
                    continue  # what is not committed may go again
                if generation < self.generations.get((name, number), 0):
                    self.broken.append(f"G2 {number} of {name} is held in generation {generation} of {group}, after {self.generations[name, number]}")
                self.generations[name, number] = generation

    def _start_some(self, often: float) -> None:
        super()._start_some(often)
        self.look()

    def missing_holders(self) -> list[str]:
        found = []
        for name, numbers in (("orders", range(self.partitions)), ("events", range(self.partitions))):
            for number in numbers:
                held = [
                    s
                    for h in self.hosts.values()
                    if h.serving and h.running is not None
                    for p in h.running.broker.partitions.values()
                    if isinstance(p, (QueuePartition, StreamPartition)) and p.barred is None and (p.item.name, p.number) == (name, number)
                    for s in p.subscriptions.values()
                    if s.sink is not None
                ]
                if not held:
                    found.append(f"{number} of {name}")
        return found

    async def _heal(self) -> None:
        await super()._heal()
        loop = self.world.loop
        end = loop.time() + 60.0
        while not self.broken and (missing := self.missing_holders()):
            if loop.time() > end:
                self.broken.append(f"G4 nobody holds {', '.join(missing)} 60 s after all")
            await asyncio.sleep(0.2)
        self.quiet = True
        for _ in range(20):
            self.look()
            await asyncio.sleep(0.1)


def campaign(first: int, last: int) -> Totals:
    totals = Totals()
    moves = 0
    for seed in range(first, last):
        run = Members(seed)
        try:
            totals.add(run.go())
        except (Exception, HeadraceError) as e:
            print(f"seed {seed}: {type(e).__name__}: {e}", flush=True)
        moves += run.moves
        if seed % 20 == 19:
            print(moves, "moves", totals, flush=True)
    return totals


if __name__ == "__main__":
    print(campaign(int(sys.argv[1]), int(sys.argv[2])))
