"""What ``sim.replicated`` runs: the ledger of what was committed, partitions that keep a small state, and a broker's life around driver and store.

Owns what a partition is there: records with offsets, a floor that settlements raise, a digest of everything that was applied. Checkpoints hold it,
so that a copy that was given as a whole, or is loaded by a later life, can be compared with what everybody else had at that index.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from crc32c import crc32c

from headrace.cluster.replication.driver import Driver
from headrace.cluster.replication.interface import Answered
from headrace.cluster.replication.partition import Replicated
from headrace.cluster.replication.recent import Memory
from headrace.cluster.secret import Secrets
from headrace.cluster.transport import Known, Me, Transport
from headrace.model.cluster import Assignment, BrokerId, Incarnation
from headrace.model.config import Address
from headrace.model.errors import Fenced, StorageError
from headrace.sim.loop import Machine
from headrace.sim.world import SimBroker
from headrace.storage.api import Checkpoint, Flushed
from headrace.storage.store import DiskStore
from headrace.wire import replication as wire
from headrace.wire.frames import Level
from headrace.wire.journal import RECORDS_HEAD, Kind, pack_records_head, unpack_records_head
from headrace.wire.peer import Service

if TYPE_CHECKING:
    from headrace.sim.replicated import Run

PORT: Final = 7582
SECRET: Final = b"a secret of the simulated cluster"
LEVELS: Final = {"majority_durable": Level.MAJORITY, "replica_durable": Level.REPLICA, "local_durable": Level.LOCAL}
_RECORDS: Final = int(Kind.RECORDS)
_SETTLEMENT: Final = int(Kind.SETTLEMENT)


class Broken(Exception):
    """A law of ``sim.replicated`` was broken."""


class State(msgspec.Struct, array_like=True):
    """What entries up to ``index`` come to."""

    index: int = 0
    epoch: int = 0
    digest: int = 0
    next_offset: int = 0
    floor: int = 0

    def apply(self, index: int, epoch: int, kind: int, payload: bytes) -> None:
        self.index, self.epoch = index, epoch
        self.digest = crc32c(payload, crc32c(b"%d %d" % (epoch, kind), self.digest))
        if kind == _RECORDS:
            base, count, *_ = unpack_records_head(payload)
            if base != self.next_offset:
                raise Broken(f"L5 the records at {index} begin at offset {base}, not at {self.next_offset}")
            self.next_offset = base + count
        elif kind == _SETTLEMENT:
            self.floor = max(self.floor, int(payload.split()[1]))


class Ledger:
    """What was committed of one partition, and what was confirmed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.entries: list[tuple[int, int, bytes]] = []
        """(epoch, kind, payload) of index 1, 2, ..."""
        self.digests = [0]
        self.records: list[tuple[int, int, bytes]] = []
        """(base offset, end offset, payload)."""
        self.state = State()
        self.confirmed: dict[int, tuple[int, bytes]] = {}
        self.unknown = 0
        self.given_up: list[tuple[int, int]] = []
        """(epoch, index) of each election that was forced: what older epochs committed from there on does not count."""

    def lost(self, index: int, epoch: int) -> bool:
        """Whether an operator has given that entry up."""
        return any(epoch < forced and index >= at for forced, at in self.given_up)

    def forced(self, epoch: int, at: int) -> None:
        """An owner whose election was forced begins there."""
        self.given_up.append((epoch, at))
        before, self.entries, self.digests, self.records, self.state = self.entries, [], [0], [], State()
        for index, (of, kind, payload) in enumerate(before[: at - 1], 1):
            self.committed("", index, of, kind, payload)
        self.confirmed = {index: entry for index, entry in self.confirmed.items() if index < at}

    def committed(self, who: str, index: int, epoch: int, kind: int, payload: bytes) -> None:
        entry = epoch, kind, payload
        if self.lost(index, epoch):
            return
        if index <= len(self.entries):
            if self.entries[index - 1] != entry:
                raise Broken(f"L1 {who}: {self.entries[index - 1]} and {entry} are both committed at {index} of partition {self.pid}")
        elif index == len(self.entries) + 1:
            self.entries.append(entry)
            self.state.apply(index, epoch, kind, payload)
            self.digests.append(self.state.digest)
            if kind == _RECORDS:
                base, count, *_ = unpack_records_head(payload)
                self.records.append((base, base + count, payload))
        else:
            raise Broken(f"L1 {who} looks at {index} of partition {self.pid} before {len(self.entries) + 1}")

    def check(self) -> None:
        for index, entry in self.confirmed.items():
            if index > len(self.entries) or (self.entries[index - 1][0], self.entries[index - 1][2]) != entry:
                raise Broken(f"L2 {entry} was confirmed at {index} of partition {self.pid} and is not committed there")


class Copy:
    """A partition on one broker in one life: publishes while it leads, applies what is committed."""

    def __init__(self, life: "Life", ledger: Ledger) -> None:
        self.life = life
        self.ledger = ledger
        self.partition: Replicated
        self.state = State()
        self.end = 1
        self.looking = False
        self.leading = 0
        self.tokens: dict[int, tuple[int, tuple[int, bytes], Level]] = {}
        self._loads = 0

    @property
    def looked(self) -> int:
        return self.state.index + 1

    def load(self) -> None:
        """From the store, as in a new life."""
        name, pid = self.life.node.name, self.ledger.pid
        self._loads += 1
        found = self.life.store.replay(pid)
        self.state = msgspec.msgpack.decode(found.checkpoint.data, type=State) if found.checkpoint is not None else State()
        if found.checkpoint is not None and self.state.index != found.checkpoint.index:
            raise Broken(f"L6 {name}: the checkpoint at {found.checkpoint.index} of partition {pid} is one of index {self.state.index}")
        lost = self.ledger.lost(self.state.index, self.state.epoch)
        if not lost and (self.looked > len(self.ledger.digests) or self.state.digest != self.ledger.digests[self.state.index]):
            raise Broken(f"L6 {name} begins with another state at {self.state.index} of partition {pid} than was committed")
        start = self.partition.replica.journal.start
        for entry in found.entries:
            if entry.index < start:
                self.apply(entry.index, entry.epoch, entry.kind, entry.payload)
        if self.looked < start:
            raise Broken(f"L6 {name}: what lies between {self.looked} and {start} of partition {pid} is nowhere")
        self.end = self.partition.high_watermark
        self._begin()

    def apply(self, index: int, epoch: int, kind: int, payload: bytes) -> None:
        if index != self.looked:
            raise Broken(f"L1 {self.life.node.name} reads {index} instead of {self.looked} of partition {self.ledger.pid}")
        self.ledger.committed(self.life.node.name, index, epoch, kind, payload)
        self.state.apply(index, epoch, kind, payload)
        if kind == _SETTLEMENT:
            self.life.store.set_floor(self.ledger.pid, self.state.floor)

    def checkpoint(self) -> Checkpoint | None:
        state = self.state
        if not state.index:
            return None
        return Checkpoint(state.epoch, state.index, msgspec.msgpack.encode(state), state.floor, state.next_offset, 0)

    # ------------------------------------------------------------ told by the driver

    def leads(self, epoch: int, at: int) -> None:
        assert not self.leading, "leads twice"
        self.leading = epoch
        self.life.run.totals.led += 1
        for forced in self.partition.replica.document.forced if self.partition.replica.document is not None else ():
            if all(forced.epoch > known for known, _ in self.ledger.given_up):
                runs = self.partition.replica.journal.history.runs  # an owner of that epoch may have begun it and died before it led
                self.ledger.forced(forced.epoch, min(first for of, first in runs if of >= forced.epoch))

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
        self._begin()

    def replaced(self, end: int) -> None:
        assert not self.leading, "replaced while it leads"
        self.life.run.totals.replaced += end > 1
        self.load()

    def _over(self) -> bool:
        return bool(self.partition.halted)

    def _begin(self) -> None:
        if not self.looking:
            self.looking = True
            self.life.spawn(self.look())

    async def look(self) -> None:
        """Whatever is committed is there, and the same as everywhere."""
        name, pid = self.life.node.name, self.ledger.pid
        while self.looked < self.end and not self._over():
            loads = self._loads
            try:
                found = await self.partition.read(self.looked, self.end)
            except StorageError:
                if self._over():
                    break
                raise
            if loads != self._loads or self._over():
                continue
            start = self.partition.replica.journal.start
            if not found and self.looked < start:
                self.load()  # moved out of the log before it was applied: the store has it still
            elif not found:
                raise Broken(f"L1 {name} cannot read {self.looked} of partition {pid}, committed up to {self.end}, its log begins at {start}")
            for entry in found:
                self.apply(entry.index, entry.epoch, entry.kind, entry.payload)
        self.looking = False

    def satisfied(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            index, entry, level = self.tokens.pop(token)
            if level == Level.QUEUE and not self.ledger.lost(index, entry[0]):
                self.ledger.confirmed[index] = entry
            elif level == Level.LOCAL and self.life.durable_index(self.ledger.pid) < index:
                raise AssertionError(f"{index} of partition {self.ledger.pid} was confirmed as durable here and is not")

    def unknown(self, tokens: Sequence[int], reason: str) -> None:
        for token in tokens:
            del self.tokens[token]
            self.ledger.unknown += 1

    # ------------------------------------------------------------ publishing

    def publish(self, count: int, size: int) -> None:
        partition, run = self.partition, self.life.run
        waits = run.load.choice([Level.QUEUE, Level.QUEUE, Level.QUEUE, Level.LOCAL])
        level = LEVELS[run.documents[self.ledger.pid].level] if waits is Level.QUEUE else waits
        if not self.leading or partition.refusal(level) is not None:
            return
        for _ in range(count):
            run.values += 1
            try:
                index, payload = self._settle() if run.load.happens(0.2) else self._records(size)
            except (Fenced, StorageError):
                return
            self.tokens[run.values] = index, (self.leading, payload), waits
            partition.wait(waits, index, run.values)

    def _records(self, size: int) -> tuple[int, bytes]:
        run = self.life.run
        base, count = self.life.store._ground.part(self.ledger.pid).next_offset, run.load.randint(1, 3)
        payload = pack_records_head(base, count, count, self.life.machine.wall_ns() // 1_000_000, 0) + (b"%d " % run.values).ljust(size, b".")
        assert len(payload) > RECORDS_HEAD.size
        return self.partition.append(_RECORDS, payload, base, count), payload

    def _settle(self) -> tuple[int, bytes]:
        run, state = self.life.run, self.state
        payload = b"%d %d" % (run.values, run.load.randint(state.floor, state.next_offset))
        return self.partition.append(_SETTLEMENT, payload), payload

    async def stored(self) -> str:
        """Whether the records above the floor are those that were committed; what is wrong otherwise."""
        name, pid, state = self.life.node.name, self.ledger.pid, msgspec.structs.replace(self.state)
        wanted = [(base, payload) for base, end, payload in self.ledger.records if end > state.floor and end <= state.next_offset]
        have: list[tuple[int, bytes]] = []
        at = state.floor
        while at < state.next_offset:
            found = [e for e in await self.life.store.read(pid, at, 1 << 20, state.next_offset) if e.base_offset < state.next_offset]
            if not found:
                break
            have += [(e.base_offset, bytes(e.payload)) for e in found]
            at = found[-1].base_offset + found[-1].record_count
        if self.state.floor != state.floor or have == wanted:
            return ""
        return f"{name} has {len(have)} records of partition {pid} from offset {state.floor} on, {len(wanted)} are committed"


class Life:
    """One life of a broker."""

    def __init__(self, run: "Run", node: "Node", machine: Machine) -> None:
        self.run, self.node, self.machine = run, node, machine
        self.incarnation = Incarnation(f"{node.name}-{node.incarnation}")
        self.stopped = asyncio.Event()
        self.copies: dict[int, Copy] = {}
        self.broker = self  # what ``SimBroker`` looks at
        self.state = "stopped"
        self._renewing: dict[int, bool] = {}

    async def start(self) -> None:
        me, run = BrokerId(self.node.name), self.run
        store = self.node._store(self.machine, self.node.config, asyncio.get_running_loop())
        assert isinstance(store, DiskStore)
        self.store = store
        self.transport = Transport(Me(broker=me, incarnation=self.incarnation, cluster="one"), Secrets([SECRET]))
        self.driver = driver = Driver(
            me, self.incarnation, self.transport, self, pace=run.pace, memory=Memory(run.memory),
            catch_up_bytes_per_second=run.throttle, part_bytes=run.part_bytes,
        )  # fmt: skip
        store.reserve(driver)
        await store.open(self)
        self.transport.watch(driver)
        self.transport.on_batch(Service.REPLICAS, driver.take)
        await driver.start(store)
        for pid, ledger in run.ledgers.items():
            copy = self.copies[pid] = Copy(self, ledger)
            damaged = pid in store.damaged()
            copy.partition = driver.open(pid, copy)
            if damaged:
                self.quarantined(pid, store.damaged()[pid].why)
            else:
                self.guarded(copy.load)
        await self.transport.start(Address(self.node.name, PORT))
        self.transport.know({BrokerId(name): Known(Address(name, PORT)) for name in run.nodes if name != self.node.name})
        for document in run.documents.values():
            run.tell(self, document)

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

    def guarded(self, work: Any) -> None:
        try:
            work()
        except (Broken, AssertionError) as e:
            self.run.broken.append(str(e))

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
        copy = self.copies.get(pid)
        return copy.checkpoint() if copy is not None else None

    def flushed(self, result: Flushed) -> None:
        if result.error is not None:
            self.driver.failed(result.error)

    def pressure(self, on: bool) -> None: ...

    def disk(self, nearly_full: bool) -> None: ...

    def quarantined(self, pid: int, why: str) -> None:
        forced = pid in self.run.documents and self.run.documents[pid].forced  # it may die while it gives everything up
        if self.run.hurt != self.node.name and not forced:
            self.run.broken.append(f"{self.node.name}: partition {pid} is isolated: {why}")
        elif pid in self.copies:
            self.driver.damaged(pid, why)
            self.renew(pid, why)

    def renew(self, pid: int, why: str) -> None:
        if pid not in self._renewing:
            self._renewing[pid] = True
            self.spawn(self._renew(pid, why))

    async def _renew(self, pid: int, why: str) -> None:
        """As an operator would, after a while."""
        await asyncio.sleep(self.run.faults.between(0.001, 1.0))
        while self.driver.partitions[pid].replica.document is None:  # noqa: ASYNC110 - as somebody who looks now and then
            await asyncio.sleep(0.1)
        self.run.renewed[self.node.name, pid] = True
        self.run.totals.renewed += 1
        try:
            await self.driver.renew(pid, why)
        except StorageError:
            if not self.driver.ended:
                raise
        self._renewing.pop(pid, None)


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
