"""Replicated logs of three brokers on simulated disks and a simulated network: driver, transport and store as they are, under drawn faults.

Owns the brokers' lives, a coordinator with compare-and-swap whose answers get lost, a controller, publishers, faults, and the ledger of what was
committed. First faults and load, then all is healed and everything must come together again. Everything comes from the seed.

L1 What is committed at an index is the same for every broker and for ever. L2 What was confirmed at the queue's level is committed, as it was
published. L3 After all is healed every replica's log is the owner's, and everything that was ever committed is in it.
L4 When an owner says that an entry is committed, a commit quorum has it on its disks.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from headrace.cluster.replication.driver import Driver
from headrace.cluster.replication.interface import Answered
from headrace.cluster.replication.partition import Replicated
from headrace.cluster.replication.recent import Memory
from headrace.cluster.secret import Secrets
from headrace.cluster.transport import Known, Me, Transport
from headrace.core.replica.effects import Outcome
from headrace.core.replica.peer import Pace
from headrace.model.cluster import Assignment, BrokerId, Incarnation, contradictions, with_isr
from headrace.model.config import KIB, MIB, Address, Config, Storage
from headrace.model.errors import Fenced, StorageError
from headrace.model.ids import Epoch, PartitionId
from headrace.model.specs import Durability
from headrace.sim.chance import Chance
from headrace.sim.loop import Machine
from headrace.sim.world import SimBroker, World
from headrace.storage.api import Checkpoint, Flushed
from headrace.storage.store import DiskStore
from headrace.wire import replication as wire
from headrace.wire.frames import Level
from headrace.wire.journal import Kind
from headrace.wire.peer import Service

NAMES: Final = ("a", "b", "c")
PORT: Final = 7582
SECRET: Final = b"a secret of the simulated cluster"
HEALED_S: Final = 40.0
CONFIG: Final = Config(storage=Storage(wal_file_bytes=1 * MIB, flush_bytes_max=512 * KIB, disk_free_bytes_min=0, ballast_bytes=0))
LEVELS: Final = {"majority_durable": Level.MAJORITY, "replica_durable": Level.REPLICA}


class Broken(Exception):
    """A law of the module's head was broken."""


class Ledger:
    """What was committed of one partition, and what was confirmed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.entries: list[tuple[int, bytes]] = []
        self.confirmed: dict[int, tuple[int, bytes]] = {}
        self.unknown = 0

    def committed(self, who: str, index: int, epoch: int, payload: bytes) -> None:
        entry = epoch, payload
        if index <= len(self.entries):
            if self.entries[index - 1] != entry:
                raise Broken(f"L1 {who}: {self.entries[index - 1]} and {entry} are both committed at {index} of partition {self.pid}")
        elif index == len(self.entries) + 1:
            self.entries.append(entry)
        else:
            raise Broken(f"L1 {who} looks at {index} of partition {self.pid} before {len(self.entries) + 1}")

    def check(self) -> None:
        for index, entry in self.confirmed.items():
            if index > len(self.entries) or self.entries[index - 1] != entry:
                raise Broken(f"L2 {entry} was confirmed at {index} of partition {self.pid} and is not committed there")


class Copy:
    """A partition on one broker in one life: publishes while it leads, looks at what is committed."""

    def __init__(self, life: "Life", ledger: Ledger) -> None:
        self.life = life
        self.ledger = ledger
        self.partition: Replicated
        self.end = 1
        self.looked = 1
        self.looking = False
        self.leading = 0
        self.tokens: dict[int, tuple[int, tuple[int, bytes]]] = {}

    def leads(self, epoch: int, at: int) -> None:
        assert not self.leading, "leads twice"
        self.leading = epoch
        self.life.run.led += 1

    def follows(self, owner: BrokerId, epoch: int) -> None:
        assert not self.leading, "follows while it leads"

    def fenced(self, epoch: int, reason: str) -> None:
        assert self.leading == epoch, "fenced in another epoch"
        assert not self.tokens, "waits on although it is fenced"
        self.leading = 0

    def committed(self, end: int) -> None:
        assert end > self.end, f"the high watermark goes from {self.end} to {end}"
        self.end = end
        owner = self.partition.replica.owner
        if owner is not None and owner.begun_at and end > owner.begun_at:
            self.life.run.quorum(owner.document, end - 1)
        if not self.looking:
            self.looking = True
            self.life.spawn(self.look())

    async def look(self) -> None:
        """Whatever is committed is there, and the same as everywhere."""
        name = self.life.node.name
        while self.looked < self.end:
            found = await self.partition.read(self.looked, self.end)
            start = self.partition.replica.journal.start
            if not found and self.looked < start:
                self.looked = start  # moved out of the log
            elif not found and self.partition.halted:
                return  # the broker stops, its log is closed
            elif not found:
                raise Broken(f"L1 {name} cannot read {self.looked} of partition {self.ledger.pid}, committed up to {self.end}")
            for entry in found:
                if entry.index != self.looked:
                    raise Broken(f"L1 {name} reads {entry.index} instead of {self.looked}")
                self.ledger.committed(name, entry.index, entry.epoch, entry.payload)
                self.looked += 1
        self.looking = False

    def satisfied(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            index, entry = self.tokens.pop(token)
            self.ledger.confirmed[index] = entry

    def unknown(self, tokens: Sequence[int], reason: str) -> None:
        for token in tokens:
            del self.tokens[token]
            self.ledger.unknown += 1

    def publish(self, count: int, size: int) -> None:
        partition, run = self.partition, self.life.run
        level = LEVELS[run.documents[self.ledger.pid].level]
        if not self.leading or partition.refusal(level) is not None:
            return
        for _ in range(count):
            run.values += 1
            payload = (b"%d " % run.values).ljust(size, b".")
            try:
                index = partition.append(int(Kind.SETTLEMENT), payload)
            except (Fenced, StorageError):
                return
            self.tokens[run.values] = index, (self.leading, payload)
            partition.wait(Level.QUEUE, index, run.values)


class Life:
    """One life of a broker."""

    def __init__(self, run: "Run", node: "Node", machine: Machine) -> None:
        self.run, self.node, self.machine = run, node, machine
        self.incarnation = Incarnation(f"{node.name}-{node.incarnation}")
        self.stopped = asyncio.Event()
        self.copies: dict[int, Copy] = {}
        self.broker = self  # what ``SimBroker`` looks at
        self.state = "stopped"

    async def start(self) -> None:
        me = BrokerId(self.node.name)
        store = self.node._store(self.machine, self.node.config, asyncio.get_running_loop())
        assert isinstance(store, DiskStore)
        self.store = store
        self.transport = Transport(Me(broker=me, incarnation=self.incarnation, cluster="one"), Secrets([SECRET]))
        self.driver = driver = Driver(me, self.incarnation, self.transport, self, pace=self.run.pace, memory=Memory(self.run.memory))
        store.reserve(driver)
        await store.open(self)
        self.transport.watch(driver)
        self.transport.on_batch(Service.REPLICAS, driver.take)
        await driver.start(store)
        for pid, ledger in self.run.ledgers.items():
            copy = self.copies[pid] = Copy(self, ledger)
            copy.partition = driver.open(pid, copy)
        await self.transport.start(Address(self.node.name, PORT))
        self.transport.know({BrokerId(name): Known(Address(name, PORT)) for name in NAMES if name != self.node.name})
        for document in self.run.documents.values():
            self.run.tell(self, document)

    async def stop(self) -> None:
        await self.driver.stop()
        await self.transport.stop()
        await self.store.close()
        self.stopped.set()

    def durable_index(self, pid: int) -> int:
        return self.store._ground.part(pid).durable_index

    async def held(self, pid: int, first: int, end: int) -> list[wire.Entry]:
        """Of its log on the disk."""
        raws = await self.driver.partitions[pid]._log.read(pid, first, end)
        return wire.entries(b"".join(raws), pid)

    def spawn(self, work: Any) -> None:
        self.run.world.loop.spawn(self.machine, self._watched(work), f"look {self.node.name}")

    async def _watched(self, work: Any) -> None:
        try:
            await work
        except (Broken, AssertionError) as e:
            self.run.broken.append(str(e))

    def assigned(self, document: Assignment) -> None:
        self.driver.assigned(document)
        if document.owner == self.node.name:
            self.copies[document.partition].partition.activate()

    def swap(self, document: Assignment, *, expected: int, answered: Answered) -> None:
        self.run.swap(self, document, expected, answered)

    # what the store asks

    def checkpoint(self, pid: int) -> Checkpoint | None:
        return None

    def flushed(self, result: Flushed) -> None:
        if result.error is not None:
            self.driver.failed(result.error)

    def pressure(self, on: bool) -> None: ...

    def disk(self, nearly_full: bool) -> None: ...

    def quarantined(self, pid: int, why: str) -> None:
        self.run.broken.append(f"{self.node.name}: partition {pid} is isolated: {why}")


class Node(SimBroker):
    """A broker that is nothing but replicated logs; the process comes and goes, the disk stays."""

    run: "Run"

    async def _run(self, machine: Machine) -> None:
        life: Any = Life(self.run, self, machine)
        await life.start()
        self.running = life
        self.world.loop.spawn(machine, self._watch(machine, life), f"watch {self.name}")

    @property
    def life(self) -> Life | None:
        found: Any = self.running
        return found if self.serving else None


class Totals(msgspec.Struct):
    """What runs were."""

    seeds: int = 0
    committed: int = 0
    confirmed: int = 0
    unknown: int = 0
    led: int = 0
    swaps: int = 0
    kills: int = 0
    power_losses: int = 0
    cuts: int = 0

    def add(self, other: "Totals") -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Run:
    """See the module's head."""

    def __init__(self, seed: int, *, rows_max: int | None = 0) -> None:
        self.world = world = World(seed, rows_max=rows_max)
        chance = Chance(seed, "replicated")
        self.faults, self.load, self.meta = chance.fork("faults"), chance.fork("load"), chance.fork("meta")
        self.totals = Totals(seeds=1)
        self.broken: list[str] = []
        self.values = self.led = 0
        self.healing = False
        self.slow_swaps = chance.choice([0.0, 0.1, 0.3])
        self.suspicion = chance.choice([0.0, 0.02, 0.1])
        self.pace = chance.choice([Pace(), Pace(window=40, append=10), Pace(window=7, append=2)])
        self.memory = chance.choice([1 << 25, 20_000, 2_000])
        self.kinds = [k for k in ("kill", "power", "stop", "cut", "one-way", "reset", "slow", "all", "off") if chance.happens(0.6)] or ["kill"]
        self.fault_s = chance.choice([0.3, 0.8, 2.0])
        delay = chance.between(0.0001, 0.005)
        world.network.shape(delay, delay * chance.random(), chance.pick([(2.0, 0.0), (1.0, 0.3)]))
        flush = chance.choice([(0.0002, 0.002), (0.002, 0.02), (0.01, 0.06)])
        self.nodes: dict[str, Node] = {}
        for name in NAMES:
            node = self.nodes[name] = Node(world, name, CONFIG)
            node.run = self
            node.speeds = replace(node.speeds, flush=flush)
            world.brokers[name] = node
        self.documents: dict[int, Assignment] = {}
        self.ledgers: dict[int, Ledger] = {}
        self.off: dict[str, bool] = {}
        replicas = tuple(BrokerId(name) for name in NAMES)
        for pid in range(1, chance.choice([1, 3, 6]) + 1):
            level: Durability = chance.choice(["majority_durable", "replica_durable"])
            owner = chance.choice(replicas)
            isr = replicas if level == "replica_durable" else ()
            self.ledgers[pid] = Ledger(pid)
            self.documents[pid] = Assignment(
                partition=PartitionId(pid), item="orders", epoch=Epoch(1), owner=owner, level=level, floor=chance.choice([1, 2]),
                replicas=replicas, isr=isr,
            )  # fmt: skip

    def quorum(self, document: Assignment, index: int) -> None:
        """L4; who is down may have it."""
        lives = [self.nodes[broker].life for broker in document.members]
        have = sum(life is None or life.durable_index(document.partition) >= index for life in lives)
        if have < document.k:
            self.broken.append(f"L4 only {have} of {document.members} have {index} of partition {document.partition} on their disks")

    # ------------------------------------------------------------ the coordinator

    def tell(self, life: Life, document: Assignment) -> None:
        def arrive() -> None:
            if self.off.get(life.node.name):
                self.world.loop.post(life.machine, 0.2, arrive)
            else:
                life.assigned(document)

        self.world.loop.post(life.machine, self.meta.between(0.001, 0.03), arrive)

    def record(self, document: Assignment) -> None:
        wrong = contradictions(document)
        before = self.documents[document.partition]
        if wrong or document.version != before.version + 1 or document.epoch < before.epoch:
            self.broken.append(f"{document}: {wrong}")
        self.documents[document.partition] = document
        for node in self.nodes.values():
            if node.life is not None:
                self.tell(node.life, document)

    def swap(self, life: Life, document: Assignment, expected: int, answered: Answered) -> None:
        meta, loop = self.meta, self.world.loop
        self.totals.swaps += 1
        off = self.off.get(life.node.name, False)
        lost = off or (not self.healing and meta.happens(self.slow_swaps))

        def apply() -> None:
            recorded = self.documents[document.partition]
            outcome = Outcome.REFUSED
            if recorded.version == expected:
                self.record(document)
                outcome = Outcome.APPLIED
            if not lost:
                loop.post(life.machine, meta.between(0.001, 0.01), answered, outcome, self.documents[document.partition])

        if not lost or meta.happens(0.5):
            loop.post(None, meta.between(0.001, 0.9 if lost else 0.01), apply)
        if lost:
            loop.post(life.machine, meta.between(0.05, 0.4), answered, Outcome.UNKNOWN, None)

    def control(self) -> None:
        """Gives partitions to others, rightly or not, as a controller may."""
        for pid, document in self.documents.items():
            owner = self.nodes[document.owner]
            if (owner.life is None and self.meta.happens(0.4)) or (not self.healing and self.meta.happens(self.suspicion)):
                able = [b for b in document.electable if b != document.owner and self.nodes[b].life is not None]
                if document.level == "replica_durable":
                    able = [b for b in able if b in document.isr] or able
                if able:
                    chosen = self.meta.choice(able)
                    life = self.nodes[chosen].life
                    assert life is not None
                    incarnation = life.incarnation if self.meta.happens(0.8) else Incarnation("")
                    version, epoch = document.version + 1, Epoch(document.epoch + 1)
                    elected = replace(document, version=version, epoch=epoch, owner=chosen, incarnation=incarnation, reason="elected")
                    if document.level == "replica_durable":
                        left = [b for b in document.isr if self.nodes[b].life is not None and b != document.owner]
                        elected = with_isr(elected, left if chosen in left else [*left, chosen])
                    self.record(elected)
            if self.meta.happens(0.01) and not self.healing:
                for node in self.nodes.values():
                    if node.life is not None:
                        node.life.copies[pid].partition.hand_over(self.meta.choice(document.copies))

    # ------------------------------------------------------------ faults

    def fault(self) -> None:
        faults, world = self.faults, self.world
        kind, name, other = faults.choice(self.kinds), faults.choice(NAMES), faults.choice(NAMES)
        node, lasts = self.nodes[name], faults.between(0.05, 3.0)
        self.totals.kills += kind == "kill"
        self.totals.power_losses += kind in ("power", "all")
        self.totals.cuts += kind in ("cut", "one-way")
        if kind in ("kill", "power"):
            node.kill(power=kind == "power")
        elif kind == "stop":
            world.loop.spawn(world.loop.world, node.stop(), "stop")
        elif kind == "all":
            for each in self.nodes.values():
                each.kill(power=True)
        elif kind == "reset":
            world.network.break_connections(name)
        elif kind == "slow":
            node.speeds = replace(node.speeds, slow=0.7)
            world.loop.post(None, lasts, self.fast, node)
        elif kind == "off":
            self.off[name] = True
            world.loop.post(None, lasts, self.off.pop, name, None)
        elif name != other:
            world.network.cut(name, other)
            world.loop.post(None, lasts, world.network.heal, name, other)
            if kind == "cut":
                world.network.cut(other, name)
                world.loop.post(None, lasts, world.network.heal, other, name)

    @staticmethod
    def fast(node: Node) -> None:
        node.speeds = replace(node.speeds, slow=0.0)

    # ------------------------------------------------------------ a run

    def go(self) -> Totals:
        """All of it; ``Broken`` with everything that was wrong."""
        with self.world as world:
            world.loop.run_until_complete(world.loop.spawn(world.loop.world, self._go(), "run"))
            wrong = self.broken + world.errors()
            for node in self.nodes.values():
                if node.failure is not None:
                    wrong.append(f"{node.name} could not start: {node.failure!r}")
                node.kill()
        for ledger in self.ledgers.values():
            try:
                ledger.check()
            except Broken as e:
                wrong.append(str(e))
            self.totals.committed += len(ledger.entries)
            self.totals.confirmed += len(ledger.confirmed)
            self.totals.unknown += ledger.unknown
        self.totals.led = self.led
        if wrong:
            raise Broken("\n".join(wrong[:20]))
        return self.totals

    async def _go(self) -> None:
        faults_s, loop = self.faults.between(2.0, 8.0), self.world.loop
        next_fault = loop.time() + 1.0
        begin = loop.time()
        while loop.time() < begin + faults_s and not self.broken:
            self._start_some(0.02)
            if loop.time() >= next_fault:
                next_fault = loop.time() + self.faults.between(0.05, self.fault_s)
                self.fault()
            self._publish()
            if self.meta.happens(0.1):
                self.control()
            await asyncio.sleep(self.load.between(0.002, 0.03))
        self.healing = True
        self.off.clear()
        self.world.network.heal_all()
        for node in self.nodes.values():
            self.fast(node)
        end = loop.time() + HEALED_S
        wrong = "nothing was looked at"
        while wrong and loop.time() < end and not self.broken:
            self._start_some(1.0)
            self.control()
            for _ in range(5):
                self._publish()
                await asyncio.sleep(0.1)
            wrong = await self._together()
        if wrong:
            self.broken.append(f"L3 {HEALED_S} s after the last fault: {wrong}")

    def _start_some(self, often: float) -> None:
        for node in self.nodes.values():
            if not node.alive and (node.incarnation == 0 or self.faults.happens(often)):
                node.start()

    def _publish(self) -> None:
        for node in self.nodes.values():
            if node.life is not None:
                for copy in node.life.copies.values():
                    if self.load.happens(0.5):
                        copy.publish(self.load.randint(1, 4), self.load.choice([20, 100, 3000]))

    async def _together(self) -> str:
        """What is not yet as it must be."""
        for pid, document in self.documents.items():
            lives = {name: node.life for name, node in self.nodes.items()}
            down = [name for name, life in lives.items() if life is None]
            leading = [name for name, life in lives.items() if life is not None and life.copies[pid].leading]
            if down or leading != [document.owner]:
                return f"{down} are down, {leading} lead partition {pid}, {document.owner} owns it"
            if document.level == "replica_durable" and set(document.isr) != set(NAMES):
                return f"only {document.isr} are in sync, partition {pid}"
            ledger = self.ledgers[pid]
            for name, life in lives.items():
                assert life is not None
                copy = life.copies[pid]
                if copy.looked < len(ledger.entries) - 100 or copy.looking:
                    return f"{name} knows of commits up to {copy.looked} of partition {pid}, there are {len(ledger.entries)}"
                journal = copy.partition.replica.journal
                have, upto = journal.start, min(journal.durable_end, len(ledger.entries) + 1)
                if journal.durable_end <= len(ledger.entries) - 100:
                    return f"{name} holds {journal.durable_end} of partition {pid}, {len(ledger.entries)} are committed"
                while have < upto:
                    found = await life.held(pid, have, upto)
                    if not found and have >= journal.start:
                        return f"{name} cannot read {have} of partition {pid}"
                    for e in found:
                        if ledger.entries[e.index - 1] != (e.epoch, e.payload):
                            return f"{name} holds something else at {e.index} of partition {pid}"
                    have = max(have + len(found), journal.start)
        return ""


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
