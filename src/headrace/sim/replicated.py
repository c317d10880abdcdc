"""Replicated logs of some brokers on simulated disks and a simulated network: driver, transport and store as they are, under drawn faults.

Owns a coordinator with compare-and-swap whose answers get lost, a controller that elects and moves copies, publishers, faults. What runs on the
brokers is ``sim.replicating``'s. First faults and load, then all is healed and everything must come together again. Everything comes from the seed.

L1 What is committed at an index is the same for every broker and for ever. L2 What was confirmed at the queue's level is committed, as it was
published. L3 After all is healed every replica's log is the owner's, and everything that was ever committed is in it, or in its checkpoint.
L4 When an owner says that an entry is committed, a commit quorum has it on its disks. L5 Offsets of committed records are without gap or overlap.
L6 What a life loads, and what a copy that was given as a whole begins with, is the state that the committed entries up to there come to; the records
above its floor are those that were committed.
"""

import asyncio
import sys
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from headrace.cluster.replication.interface import Answered
from headrace.core.replica.effects import Outcome
from headrace.core.replica.follower import Phase
from headrace.core.replica.peer import Pace
from headrace.model.cluster import Assignment, BrokerId, Forced, Incarnation, contradictions, with_isr
from headrace.model.config import KIB, MIB, Config, Storage
from headrace.model.ids import Epoch, Index, PartitionId
from headrace.model.specs import Durability
from headrace.sim.chance import Chance
from headrace.sim.replicating import Broken, Ledger, Life, Node
from headrace.sim.world import DATA, World
from headrace.storage.index import POSITION_BITS, POSITION_MASK
from headrace.storage.walfiles import name_of
from headrace.storage.walformat import ENTRY_BYTES

NAMES: Final = ("a", "b", "c", "d")
HEALED_S: Final = 60.0
KINDS: Final = ("kill", "power", "stop", "cut", "one-way", "reset", "slow", "all", "off", "pause", "away", "pass", "damage")


def config(wal_file_bytes: int) -> Config:
    storage = Storage(
        wal_file_bytes=wal_file_bytes, flush_bytes_max=wal_file_bytes // 2, segment_own_bytes_min=64 * KIB, segment_file_bytes=128 * KIB,
        disk_free_bytes_min=0, ballast_bytes=0,
    )  # fmt: skip
    return Config(storage=storage)


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
    pauses: int = 0
    passes: int = 0
    damaged: int = 0
    renewed: int = 0
    replaced: int = 0
    """Copies that were given as a whole."""
    moves: int = 0
    forced: int = 0
    set_aside: int = 0
    """Files of what was given up."""

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
        self.values = 0
        self.hurt = ""
        """The broker on whose disk something was damaged, until it has everything again."""
        self.renewed: dict[tuple[str, int], bool] = {}
        self.healing = False
        self.slow_swaps = chance.choice([0.0, 0.1, 0.3])
        self.suspicion = chance.choice([0.0, 0.02, 0.1])
        self.pace = chance.choice([Pace(), Pace(window=40, append=10), Pace(window=7, append=2)])
        self.memory = chance.choice([1 << 25, 20_000, 2_000])
        self.part_bytes = chance.choice([500, 5_000, 50_000, 1 * MIB])
        self.throttle = chance.choice([0, 1 << 26, 200_000])
        self.kinds = [k for k in KINDS if chance.happens(0.6)] or ["kill"]
        self.moving = chance.choice([0.0, 0.02, 0.1])
        self.forcing = chance.choice([0.0, 0.0, 0.0, 0.02])
        self.fault_s = chance.choice([0.3, 0.8, 2.0])
        delay = chance.between(0.0001, 0.005)
        world.network.shape(delay, delay * chance.random(), chance.pick([(2.0, 0.0), (1.0, 0.3)]))
        flush = chance.choice([(0.0002, 0.002), (0.002, 0.02), (0.01, 0.06)])
        self.nodes: dict[str, Node] = {}
        settings = config(chance.choice([1 * MIB, 64 * KIB]))
        for name in NAMES:
            node = self.nodes[name] = Node(world, name, settings)
            node.run = self
            node.speeds = replace(node.speeds, flush=flush)
            world.brokers[name] = node
        self.documents: dict[int, Assignment] = {}
        self.ledgers: dict[int, Ledger] = {}
        self.off: dict[str, bool] = {}
        self.away: dict[str, float] = {}
        """Brokers that do not come back before that time."""
        for pid in range(1, chance.choice([1, 2, 4]) + 1):
            level: Durability = chance.pick([(4.0, "majority_durable"), (4.0, "replica_durable"), (1.0, "local_durable")])
            replicas = tuple(BrokerId(name) for name in chance.sample(NAMES, 3))
            owner = chance.choice(replicas)
            isr = replicas if level == "replica_durable" else ()
            self.ledgers[pid] = Ledger(pid)
            self.documents[pid] = Assignment(
                partition=PartitionId(pid), item="orders", epoch=Epoch(1), owner=owner, level=level, floor=chance.choice([1, 2]),
                replicas=replicas, isr=isr,
            )  # fmt: skip

    def quorum(self, document: Assignment, index: int) -> None:
        """L4; who is down may have it."""
        if self.ledgers[document.partition].lost(index, document.epoch):
            return
        lives = [self.nodes[broker].life for broker in document.members]
        have = sum(life is None or life.durable_index(document.partition) >= index for life in lives)
        have += sum((broker, document.partition) in self.renewed for broker in document.members)  # it had it, before it began anew
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
        """Gives partitions to others, rightly or not, as a controller may, and moves their copies."""
        for pid in self.documents:
            self._move(pid)
            self._force(pid)
            document = self.documents[pid]
            owner = self.nodes[document.owner]
            if (owner.life is None and self.meta.happens(0.4)) or (not self.healing and self.meta.happens(self.suspicion)):
                able = [b for b in document.electable if b != document.owner and self._fit(b, pid)]
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
                        left = [b for b in document.isr if self._fit(b, pid) and b != document.owner]
                        elected = with_isr(elected, left if chosen in left else [*left, chosen])
                    self.record(elected)
            life = self.nodes[document.owner].life
            others = [b for b in document.electable if b != document.owner]
            if document.owner in document.leaving and not document.learners and life is not None and others and self.meta.happens(0.3):
                self.nodes[document.owner].call(life.copies[pid].partition.hand_over, self.meta.choice(others))
            if self.meta.happens(0.01) and not self.healing:
                for node in self.nodes.values():
                    if node.life is not None:
                        node.call(node.life.copies[pid].partition.hand_over, self.meta.choice(document.copies))

    def _move(self, pid: int) -> None:
        """A copy is to leave a broker for another."""
        document = self.documents[pid]
        if self.healing or document.learners or document.leaving or not self.meta.happens(self.moving):
            return
        outside = [BrokerId(name) for name in NAMES if name not in document.replicas]
        able = [b for b in document.replicas if b != document.owner and b not in document.elr]
        if outside and able:
            self.totals.moves += 1
            moved = replace(
                document, version=document.version + 1, learners=(self.meta.choice(outside),), leaving=(self.meta.choice(able),), reason="moves"
            )
            self.record(moved)

    def _force(self, pid: int) -> None:
        """An operator accepts that what others have is lost, rightly or not."""
        document = self.documents[pid]
        if self.healing or document.forced or not self.meta.happens(self.forcing):  # a second one may bring back what the first gave up
            return
        able = [b for b in document.copies if b != document.owner and self._fit(b, pid)]
        if not able:
            return
        chosen = self.meta.choice(able)
        life = self.nodes[chosen].life
        assert life is not None
        journal = life.copies[pid].partition.replica.journal
        base, others = journal.durable_end - 1, tuple(b for b in document.copies if b != chosen)
        epoch = Epoch(document.epoch + 1)
        forced = Forced(epoch=epoch, base=Index(base), base_epoch=Epoch(max(0, journal.history.epoch_at(base))), accepted_by="op", without=others)
        majority = document.level == "majority_durable"
        replicas = (chosen,) if majority else tuple(dict.fromkeys((*document.replicas, chosen)))
        self.totals.forced += 1
        self.record(
            replace(
                document, version=document.version + 1, epoch=epoch, owner=chosen, incarnation=life.incarnation, replicas=replicas,
                learners=tuple(b for b in document.copies if b not in replicas), leaving=(), elr=(),
                isr=(chosen,) if document.level == "replica_durable" else (), forced=(*document.forced, forced), reason="forced",
            )
        )  # fmt: skip

    def _fit(self, broker: BrokerId, pid: int) -> bool:
        """What the controller knows of a broker: whether it lives and does not call its copy unfit."""
        life = self.nodes[broker].life
        return life is not None and not life.driver.unfit(pid)

    def _operate(self) -> None:
        """Whoever will not go on by itself, because a forced election has cut below what it has moved, is made to begin anew."""
        for node in self.nodes.values():
            for pid, copy in (node.life.copies if node.life is not None else {}).items():
                quarantined = copy.partition.replica.follower.phase is Phase.QUARANTINED
                if quarantined and not copy.partition.halted and self.documents[pid].forced:
                    assert node.life is not None
                    node.life.renew(pid, "its log was given up")

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
        elif kind == "pause":
            self.totals.pauses += 1
            node.pause()
            world.loop.post(None, lasts, node.resume)
        elif kind == "away":
            node.kill()
            self.away[name] = world.loop.time() + faults.between(0.5, 4.0)
        elif kind == "pass":
            for each in self.nodes.values():
                if each.life is not None:
                    self.totals.passes += 1
                    each.call(partial(each.life.store._mover.wake, force=True))
        elif kind == "damage":
            self.damage(node)
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

    def damage(self, node: Node) -> None:
        """A byte of a partition goes bad on a disk whose broker dies, if others have everything that was committed."""
        life = node.life
        if self.hurt or life is None or not all(self._others_hold(node, pid) for pid in self.documents):
            return
        pid = self.faults.choice(list(self.ledgers))
        part = life.store._ground.part(pid)
        rows = [(place, size) for place, size, _ in part.rows_from(0) if size > ENTRY_BYTES]
        refs = [ref for ref in part.moved.refs if ref.nbytes > ENTRY_BYTES]
        if not rows and not refs:
            return
        self.totals.damaged += 1
        self.hurt = node.name
        node.kill()
        if rows and (not refs or self.faults.happens(0.6)):
            place, size = self.faults.choice(rows)
            path, at = f"{DATA}/wal/{name_of(place >> POSITION_BITS)}", place & POSITION_MASK
        else:
            ref = self.faults.choice(refs)
            path, at, size = f"{DATA}/segments/segment-{ref.file:016x}.seg", ref.position, ref.nbytes
        if node.disk.exists(path):
            node.disk.flip(path, at + self.faults.randint(0, size - 1), 1 << self.faults.randint(0, 7))

    def _others_hold(self, node: Node, pid: int) -> bool:
        document, end = self.documents[pid], len(self.ledgers[pid].entries)
        if document.owner == node.name and document.level != "majority_durable":
            return False
        others = [self.nodes[b] for b in document.members if b != node.name]
        return all(other.life is not None and other.life.durable_index(pid) >= end for other in others)

    def _healed(self) -> None:
        """Whether the broker that was hurt has everything again."""
        life = self.nodes[self.hurt].life if self.hurt else None
        if life is None:
            return
        for pid, copy in life.copies.items():
            journal = copy.partition.replica.journal
            member = self.hurt in self.documents[pid].copies
            if copy.partition.halted or (member and (journal.suspect or journal.unclean or journal.durable_end <= len(self.ledgers[pid].entries))):
                return
        self.hurt = ""
        self.renewed.clear()

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
                self.totals.set_aside += len(node.disk.files(f"{DATA}/set-aside/"))
        for ledger in self.ledgers.values():
            try:
                ledger.check()
            except Broken as e:
                wrong.append(str(e))
            self.totals.committed += len(ledger.entries)
            self.totals.confirmed += len(ledger.confirmed)
            self.totals.unknown += ledger.unknown
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
            self._healed()
            if self.meta.happens(0.1):
                self.control()
            if self.forcing and self.meta.happens(0.05):
                self._operate()
            await asyncio.sleep(self.load.between(0.002, 0.03))
        self.healing = True
        self.off.clear()
        self.away.clear()
        self.world.network.heal_all()
        for node in self.nodes.values():
            self.fast(node)
            node.resume()
        end = loop.time() + HEALED_S
        wrong = "nothing was looked at"
        while wrong and loop.time() < end and not self.broken:
            self._start_some(1.0)
            self._healed()
            self._operate()
            self.control()
            for _ in range(5):
                self._publish()
                await asyncio.sleep(0.1)
            wrong = await self._together()
        if wrong:
            self.broken.append(f"L3 {HEALED_S} s after the last fault: {wrong}")

    def _start_some(self, often: float) -> None:
        for node in self.nodes.values():
            away = self.away.get(node.name, 0.0) > self.world.loop.time()
            if not node.alive and not away and (node.incarnation == 0 or self.faults.happens(often)):
                node.start()

    def _publish(self) -> None:
        for node in self.nodes.values():
            if node.life is not None:
                for copy in node.life.copies.values():
                    if self.load.happens(0.5):
                        node.call(copy.publish, self.load.randint(1, 4), self.load.choice([20, 100, 3000]))

    async def _together(self) -> str:
        """What is not yet as it must be."""
        for pid, document in self.documents.items():
            lives = {name: node.life for name, node in self.nodes.items()}
            down = [name for name, life in lives.items() if life is None]
            leading = [name for name, life in lives.items() if life is not None and life.copies[pid].leading]
            if down or leading != [document.owner]:
                return f"{down} are down, {leading} lead partition {pid}, {document.owner} owns it"
            if document.learners or document.leaving:
                return f"partition {pid} still moves: {document}"
            if document.level == "replica_durable" and set(document.isr) != set(document.replicas):
                return f"only {document.isr} are in sync, partition {pid}"
            for name in document.replicas:
                life = lives[name]
                assert life is not None
                wrong = await self._whole(name, life, pid)
                if wrong:
                    return wrong
        return "" if not self.hurt else f"{self.hurt} has not everything again"

    async def _whole(self, name: str, life: Life, pid: int) -> str:
        """What a replica lacks."""
        ledger, copy = self.ledgers[pid], life.copies[pid]
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
                if ledger.entries[e.index - 1] != (e.epoch, e.kind, e.payload):
                    return f"{name} holds something else at {e.index} of partition {pid}"
            have = max(have + len(found), journal.start)
        return await copy.stored()


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
