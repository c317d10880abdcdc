"""Whole brokers of one cluster, with gateway and client, on simulated disks and a simulated network, under drawn faults.

Owns the cluster (three brokers, one coordinator in memory), who publishes, who takes, what goes wrong, and what was promised. First faults and load,
then all is healed and everything must be delivered. A client asks any broker who serves a name and connects there.

K1 What was confirmed is delivered: a queue's message until its ack was confirmed, a stream's record to everybody who reads from the beginning. K2
Nothing is delivered that nobody sent. K3 A message whose ack was confirmed is never granted again. K4 A stream's record is at one offset, for every
reader, for ever, and at the one that its confirm named. K5 After all is healed every partition is served and everything is delivered, at ``PACE`` at
least. K6 What was rejected is in the queue of dead letters, once. K7 What was refused for certain is never delivered.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
from msgspec.structs import replace

import headrace
from headrace.client.client import Client
from headrace.cluster.coordinator import Coordinator
from headrace.cluster.membership import Membership
from headrace.cluster.memory import MemoryStore
from headrace.cluster.secret import Secrets
from headrace.cluster.transport import Me, Transport
from headrace.model import config
from headrace.model.cluster import PLACEMENT_KEY, BrokerId, Incarnation, Placement, encode
from headrace.model.config import KIB, MIB, Address, Config, Listen, Storage, parse_address
from headrace.model.errors import HeadraceError
from headrace.model.specs import Durability
from headrace.sim.chance import Chance
from headrace.sim.datagrams import Datagrams
from headrace.sim.loop import Machine
from headrace.sim.membership import SimMembership
from headrace.sim.world import PORT, SimBroker, World

NAMES: Final = ("a", "b", "c")
PEER: Final = 7582
GOSSIP: Final = 7583
SECRET: Final = b"a secret of the simulated cluster"
SETTINGS: Final = Placement(registration_grace_ms=400, returning_wait_ms=800, preferred_after_ms=1500, replace_after_ms=60_000, virtual_nodes=16)
HEALED_S: Final = 60.0
PACE: Final = 1_000
"""So much comes in each ``HEALED_S`` after all is healed, or all that is left. How much there is to take is drawn, so no fixed time is enough for all
of it. One taker that settles one at a time, each confirmed, on the slowest disks, was measured at 2,900."""
TRY_S: Final = 3.0
"""A client that heard nothing for so long looks anew who serves."""
KINDS: Final = ("kill", "power", "stop", "drain", "cut", "one-way", "reset", "slow", "off")


class Broken(Exception):
    """A promise of the module's head was broken."""


class Totals(msgspec.Struct, kw_only=True):
    """What runs were."""

    seeds: int = 0
    confirmed: int = 0
    unconfirmed: int = 0
    acked: int = 0
    rejected: int = 0
    read: int = 0
    redirected: int = 0
    deaths: int = 0
    cuts: int = 0
    virtual_s: float = 0.0

    def add(self, other: "Totals") -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Host(SimBroker):
    """A broker of the cluster; implements ``broker.cluster.Means``."""

    run: "Run"
    node_id = ""
    members = len(NAMES)
    cluster_id = "one"

    def voters(self) -> tuple[str, ...]:
        return ()

    async def coordinator(self, me: BrokerId) -> Coordinator:
        self._coordinator = self.run.store.client(self.name)
        return self._coordinator

    def transport(self, me: BrokerId, incarnation: Incarnation) -> Transport:
        self._transport = Transport(Me(broker=me, incarnation=incarnation, cluster="one"), Secrets([SECRET]))
        return self._transport

    async def admit(self) -> None:
        await self._transport.start(parse_address(self.config.listen.peer))

    async def release(self) -> None:
        await self._transport.stop()
        await self._coordinator.close()

    def membership(self, me: BrokerId, incarnation: Incarnation) -> Membership:
        return SimMembership(
            me, "one", Secrets([SECRET]), config.Membership(seeds=tuple(f"{name}:{GOSSIP}" for name in self.run.names)),
            at=Address(self.name, GOSSIP), datagrams=self.run.datagrams, meta={"incarnation": incarnation},
        )  # fmt: skip


class Book:
    """What is known of one queue or stream."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.sent: dict[int, bool] = {}
        """Message: whether it was confirmed."""
        self.offsets: dict[int, tuple[int, int]] = {}
        """Stream: message to the (partition, offset) that its confirm named or at which it was read first."""
        self.at: dict[tuple[int, int], int] = {}
        self.delivered: dict[int, bool] = {}
        self.acked: dict[int, int] = {}
        """Number to the attempt that was acked."""
        self.refused: dict[int, str] = {}
        self.acking: dict[int, bool] = {}
        """Its ack was sent and may have counted."""

    @property
    def done(self) -> dict[int, Any]:
        """What was settled, or read."""
        return self.acked if self.kind == "queue" else self.delivered

    def missing(self) -> list[int]:
        """Confirmed and not delivered yet, or not settled."""
        done = self.done
        return [m for m, confirmed in self.sent.items() if confirmed and m not in done and m not in self.acking]


class Run:
    """See the module's head."""

    names: tuple[str, ...] = NAMES
    """Of the brokers that there are at the beginning."""
    all_kinds: tuple[str, ...] = KINDS
    rests_s: tuple[float, float] = (0.0, 0.05)
    """How long a publisher waits between two bursts."""
    lasts_s: tuple[float, float] = (5.0, 20.0)
    """How long there are faults."""
    first_fault_s = 1.0
    wal_files_bytes: tuple[int, ...] = (1 * MIB, 64 * KIB)
    settings = SETTINGS

    def __init__(self, seed: int, *, rows_max: int | None = 0) -> None:
        self.world = world = World(seed, rows_max=rows_max)
        chance = Chance(seed, "clustered")
        self.faults, self.load, self.meta = chance.fork("faults"), chance.fork("load"), chance.fork("meta")
        self.totals = Totals(seeds=1)
        self.broken: list[str] = []
        self.healing = False
        self.over = False
        self.works: dict[str, asyncio.Task[None]] = {}
        """Who uses it; all of them end soon once it is over."""
        self.numbers = 0
        self.kinds = [kind for kind in self.all_kinds if chance.happens(0.5)] or ["kill"]
        self.pause_s = chance.choice([0.5, 2.0, 5.0])
        delay = chance.between(0.0001, 0.003)
        world.network.shape(delay, delay * chance.random(), chance.choice([0.0, 0.3]))
        self.datagrams = Datagrams(world.network)
        self.store: MemoryStore
        flush = chance.choice([(0.0002, 0.002), (0.002, 0.02)])
        wal_file_bytes = chance.choice(self.wal_files_bytes)
        storage = Storage(
            wal_file_bytes=wal_file_bytes, wal_bytes_max=64 * wal_file_bytes, flush_bytes_max=wal_file_bytes // 2, segment_own_bytes_min=64 * KIB,
            segment_file_bytes=128 * KIB, disk_free_bytes_min=0, ballast_bytes=0,
        )  # fmt: skip
        self.away: dict[str, float] = {}
        """Brokers that do not come back before that time."""
        bounds = config.Limits(frame_bytes_max=wal_file_bytes // 2, message_bytes_max=wal_file_bytes // 2 - 4 * KIB)
        made = Config(storage=storage, limits=bounds, coordination=config.Coordination(mode="coordinated", registration_ttl_ms=1_000))
        self.hosts: dict[str, Host] = {}
        self._made, self._flush = made, flush
        for name in self.names:
            self.host(name)
        level: Durability = chance.choice(["replica_durable", "replica_durable", "majority_durable", "local_durable"])
        self.level, self.floor = level, chance.choice([1, 2]) if level == "replica_durable" else 1
        self.partitions = chance.choice([1, 3])
        self.books = {"orders": Book("orders", "queue"), "events": Book("events", "stream"), "dead": Book("dead", "queue")}

    def host(self, name: str) -> Host:
        """One more broker, not started."""
        host = self.hosts[name] = Host(self.world, name, self._made)
        listen = Listen(native=f"{name}:{PORT}", admin="off", peer=f"{name}:{PEER}", gossip=f"{name}:{GOSSIP}")
        host.config = replace(host.config, listen=listen)
        host.run, host.means = self, lambda host=host: host
        host.speeds = replace(host.speeds, flush=self._flush)
        self.world.brokers[name] = host
        return host

    # ------------------------------------------------------------ who uses it

    @asynccontextmanager
    async def at(self, machine: Machine, name: str, partition: int) -> AsyncIterator[Client]:
        """A connection to the broker that serves that partition, as any broker says; raises what a client is told, or ``TimeoutError``."""
        url = ""
        async with asyncio.timeout(TRY_S):
            any_one = self.hosts[self.load.choice(self.names)].url
            asked = await headrace.connect(any_one, name=machine.name, wait=0)
            try:
                info = await asked.topology(name)
            finally:
                await asked.close()
            owner = [row.owner for row in info.partitions if row.partition == partition]
            url = next(iter(info.brokers.get(owner[0], ())), "") if owner else ""
        if not url:
            await asyncio.sleep(0.1)
            raise TimeoutError
        self.totals.redirected += url != any_one
        async with asyncio.timeout(TRY_S):
            client = await headrace.connect(url, name=machine.name, wait=0, confirm_timeout=TRY_S)
        try:
            yield client
        finally:
            with suppress(HeadraceError, TimeoutError):
                async with asyncio.timeout(TRY_S):
                    await client.close()

    async def publish(self, machine: Machine, book: Book, partition: int) -> None:
        while not self.over:
            try:
                async with self.at(machine, book.name, partition) as client:
                    publisher = client.publisher(book.name, confirm_timeout=TRY_S)
                    while not self.healing:
                        await self.burst(publisher, book, partition)
                        await asyncio.sleep(self.load.between(*self.rests_s))
            except (HeadraceError, TimeoutError):
                await asyncio.sleep(self.load.between(0.02, 0.2))
            if self.healing:
                return

    async def burst(self, publisher: headrace.client.publisher.Publisher, book: Book, partition: int) -> None:
        waiting: dict[int, asyncio.Future[headrace.client.lane.Receipt]] = {}
        size = self.load.choice([10, 100, 3000])
        for _ in range(self.load.randint(1, 5)):
            self.numbers += 1
            book.sent[self.numbers] = False
            waiting[self.numbers] = publisher.post((b"%d " % self.numbers).ljust(size, b"."), partition=partition)
        await asyncio.wait(waiting.values())
        error: BaseException | None = None
        for number, future in waiting.items():
            if future.exception() is not None:
                error = future.exception()
                self.totals.unconfirmed += 1
                if isinstance(error, HeadraceError) and error.definite:
                    book.refused[number] = repr(error)
                continue
            receipt = future.result()
            book.sent[number] = True
            self.totals.confirmed += 1
            if book.kind == "stream":
                self.seen(book, receipt.partition, receipt.offset, number, "a confirm")
        if isinstance(error, HeadraceError):
            raise error

    async def consume(self, machine: Machine, book: Book, partition: int) -> None:
        while not self.over:
            try:
                async with self.at(machine, book.name, partition) as client, client.consume(book.name, prefetch=20, lease=5.0) as consumer:
                    until = self.world.loop.time() + self.load.between(0.5, 8.0)
                    while self.world.loop.time() < until:
                        async with asyncio.timeout(TRY_S):
                            message = await consumer.__anext__()
                        number = int(message.value.split()[0])
                        if number not in book.sent:
                            self.broken.append(f"K2 {number} was delivered from {book.name} and nobody sent it")
                        if number in book.refused:
                            self.broken.append(f"K7 {number} was delivered from {book.name} and had been refused: {book.refused[number]}")
                        if message.attempt >= book.acked.get(number, message.attempt + 1):  # an earlier one may have been on its way
                            self.broken.append(f"K3 {number} was delivered from {book.name} after its ack was confirmed")
                        book.delivered[number] = True
                        book.acking[number] = True
                        rejected = book.name == "orders" and self.load.happens(0.1)
                        if rejected:
                            self.books["dead"].sent.setdefault(number, False)
                        if book.name == "dead" and book.offsets.setdefault(number, (partition, message.offset))[1] != message.offset:
                            self.broken.append(f"K6 {number} is a dead letter at {book.offsets[number][1]} and at {message.offset}")
                        async with asyncio.timeout(TRY_S):
                            await (message.reject(confirmed=True) if rejected else message.ack(confirmed=True))
                        del book.acking[number]
                        if rejected:
                            self.books["dead"].sent[number] = True
                            self.totals.rejected += 1
                        book.acked[number] = message.attempt
                        self.totals.acked += 1
            except (HeadraceError, TimeoutError, StopAsyncIteration):
                await asyncio.sleep(self.load.between(0.02, 0.2))

    async def read(self, machine: Machine, book: Book, partition: int) -> None:
        """From the beginning each time, so that a record that went away is missed."""
        while not self.over:
            try:
                async with self.at(machine, book.name, partition) as client:
                    reader = client.read(book.name, start="earliest", partitions=[partition])
                    async with reader:
                        until = self.world.loop.time() + self.load.between(0.5, 8.0)
                        expected = 0
                        while self.world.loop.time() < until:
                            async with asyncio.timeout(TRY_S):
                                record = await reader.__anext__()
                            number = int(record.value.split()[0])
                            if record.offset != expected:
                                self.broken.append(f"K1 {record.offset} of {book.name} is read after {expected - 1}")
                            expected = record.offset + 1
                            self.seen(book, record.partition, record.offset, number, "a reader")
                            book.delivered[number] = True
                            self.totals.read += 1
            except (HeadraceError, TimeoutError, StopAsyncIteration):
                await asyncio.sleep(self.load.between(0.02, 0.2))

    def seen(self, book: Book, partition: int, offset: int, number: int, who: str) -> None:
        if number not in book.sent:
            self.broken.append(f"K2 {number} is in {book.name} and nobody sent it")
        if number in book.refused:
            self.broken.append(f"K7 {number} is in {book.name} and had been refused: {book.refused[number]}")
        known = book.at.setdefault((partition, offset), number)
        if known != number:
            self.broken.append(f"K4 {who} has {number} at {partition}/{offset} of {book.name}, where {known} was")
        book.offsets.setdefault(number, (partition, offset))

    # ------------------------------------------------------------ faults

    def fault(self) -> None:
        self.usual(self.faults.choice(self.kinds))

    def usual(self, kind: str) -> None:
        """One of ``KINDS``."""
        faults, world = self.faults, self.world
        name, other = faults.choice(self.names), faults.choice(self.names)
        host, lasts = self.hosts[name], faults.between(0.2, 4.0)
        up = [n for n, h in self.hosts.items() if h.serving]
        if kind in ("kill", "power", "stop", "drain"):
            if len(up) < len(self.names) and faults.happens(0.7):
                return  # mostly one at a time: else there is nothing but waiting
            self.totals.deaths += 1
            if faults.happens(0.3):
                self.away[name] = world.loop.time() + faults.between(1.0, 10.0)
            if kind == "stop":
                world.loop.spawn(world.loop.world, host.stop(), "stop")
            elif kind == "drain":
                if host.running is not None and host.serving and host.machine is not None:
                    world.loop.spawn(host.machine, host.running.stop(int(lasts * 1000)), "drain")
            else:
                host.kill(power=kind == "power")
        elif kind == "reset":
            world.network.break_connections(name)
        elif kind == "slow":
            host.speeds = replace(host.speeds, slow=0.2)
            world.loop.post(None, lasts, self.fast, host)
        elif kind == "off":
            self.store.unreachable(name)
            world.loop.post(None, lasts, self.store.unreachable, name, False)
        elif name != other:
            self.totals.cuts += 1
            world.network.cut(name, other)
            world.loop.post(None, lasts, world.network.heal, name, other)
            if kind == "cut":
                world.network.cut(other, name)
                world.loop.post(None, lasts, world.network.heal, other, name)

    @staticmethod
    def fast(host: Host) -> None:
        host.speeds = replace(host.speeds, slow=0.0)

    # ------------------------------------------------------------ a run

    def go(self) -> Totals:
        """All of it; ``Broken`` with everything that was wrong."""
        with self.world as world:
            world.loop.run_until_complete(world.loop.spawn(world.loop.world, self._go(), "run"))
            wrong = self.broken + world.errors()
            self.totals.virtual_s = world.loop.time()
            for host in self.hosts.values():
                if host.failure is not None and host.name in self.names:  # who was taken away meanwhile is not to start
                    wrong.append(f"{host.name} could not start: {host.failure!r}")
                host.kill()
        if wrong:
            raise Broken("\n".join(wrong[:20]))
        return self.totals

    def make_store(self) -> MemoryStore:
        """The coordinator of all."""
        return MemoryStore(timeout_s=0.3)

    async def begin(self) -> None:
        """Starts everybody, and declares what there is."""
        self.store = self.make_store()
        self.store.write({}, {PLACEMENT_KEY: encode(self.settings)}, 0)
        for host in self.hosts.values():
            host.start()
        await self._declare()

    def employ(self) -> None:
        """Everybody who uses it begins."""
        loop, works = self.world.loop, self.works
        dead = self.world.machine("taker-dead")
        works[dead.name] = loop.spawn(dead, self.consume(dead, self.books["dead"], 0), dead.name)
        for book in (self.books["orders"], self.books["events"]):
            for partition in range(self.partitions):
                takes = self.consume if book.kind == "queue" else self.read
                for what, work in (("publisher", self.publish), ("taker", takes)):
                    machine = self.world.machine(f"{what}-{book.name}-{partition}")
                    works[machine.name] = loop.spawn(machine, work(machine, book, partition), machine.name)

    async def _go(self) -> None:
        loop = self.world.loop
        await self.begin()
        self.employ()
        end, next_fault = loop.time() + self.faults.between(*self.lasts_s), loop.time() + self.first_fault_s
        while loop.time() < end and not self.broken:
            self._start_some(0.02)
            if loop.time() >= next_fault:
                next_fault = loop.time() + self.faults.between(0.1, self.pause_s)
                self.fault()
            await asyncio.sleep(0.05)
        await self.act()
        await self._heal()
        self.over = True
        _, late = await asyncio.wait(self.works.values(), timeout=30.0)
        for name, task in self.works.items():
            if task in late:
                self.broken.append(f"K5 {name} does not end")
            elif not task.cancelled() and task.exception() is not None:
                self.broken.append(f"{name} failed: {task.exception()!r}")

    async def _declare(self) -> None:
        machine = self.world.machine("operator")

        async def declare() -> None:
            while True:
                try:
                    async with asyncio.timeout(TRY_S):
                        client = await headrace.connect(self.hosts["a"].url, name="operator", wait=0)
                        settings: dict[str, Any] = {"partitions": self.partitions, "durability": self.level, "min_in_sync_replicas": self.floor}
                        settings["replication_factor"] = 1 if self.level == "local_durable" else 3
                        await client.declare_queue("orders", dead_letter="dead", **settings)
                        await client.declare_stream("events", **settings)
                        await client.close()
                        return
                except (HeadraceError, TimeoutError):
                    await asyncio.sleep(0.1)

        await self.world.loop.spawn(machine, declare(), "declare")

    def _start_some(self, often: float) -> None:
        for host in self.hosts.values():
            if not host.alive and self.world.loop.time() >= self.away.get(host.name, 0.0) and self.faults.happens(often):
                host.start()

    def awaited(self, book: Book) -> list[int]:
        """What has to come in bounded time after all is healed."""
        return book.missing()

    async def act(self) -> None:
        """What is done to the cluster after the faults and before all is healed."""

    def mended(self) -> None:
        """Nothing is wrong any more, but who is dead is still to be started."""
        self.away.clear()
        self.world.network.heal_all()
        for name, host in self.hosts.items():
            self.fast(host)
            self.store.unreachable(name, False)

    def came(self) -> int:
        """How much was settled or read, each once; what only comes again is no progress."""
        return sum(len(book.done) for book in self.books.values())

    async def _heal(self) -> None:
        self.healing = True
        self.mended()
        loop = self.world.loop
        healed = since = loop.time()
        before = self.came()
        while loop.time() < since + HEALED_S and not self.broken:
            self._start_some(1.0)
            await asyncio.sleep(0.2)
            if not any(self.awaited(book) for book in self.books.values()):
                return
            if self.came() >= before + PACE:
                since, before = loop.time(), self.came()
        late_s, lately = loop.time() - healed, self.came() - before
        for book in self.books.values():
            missing = book.missing()
            if missing and not self.broken:
                kept = [f"{m} at {book.offsets.get(m, '?')}" for m in missing[:10]]
                self.broken.append(
                    f"K1 or K5: {len(missing)} of {book.name} were confirmed and are not delivered {late_s:.0f} s after all was healed, and in the"
                    f" last {HEALED_S:.0f} s only {lately} came: {kept}"
                )


def campaign(first: int, last: int) -> Totals:
    totals = Totals()
    for seed in range(first, last):
        try:
            totals.add(Run(seed).go())
        except Exception as e:
            print(f"seed {seed}: {type(e).__name__}: {e}", flush=True)
        if seed % 20 == 19:
            print(totals, flush=True)
    return totals


if __name__ == "__main__":
    print(campaign(int(sys.argv[1]), int(sys.argv[2])))
