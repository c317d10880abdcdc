"""Presence and controllers of five simulated brokers under drawn faults of machines and of the coordinator: whatever happened, no document ever went
backwards, and afterwards every partition has a live owner that is in sync, one controller, and the same view everywhere.

By hand: ``python -m tests.sim.test_control FIRST LAST``.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping

import msgspec
import pytest

from headrace.cluster.control.control import Control
from headrace.cluster.control.evidence import NONE, Clues
from headrace.cluster.control.topology import Reassigned
from headrace.cluster.coordinator import Change, Coordinator, Document
from headrace.cluster.membership.pauses import Pauses
from headrace.cluster.memory import MemoryStore
from headrace.core.control.rehearsal import as_owner
from headrace.model.cluster import (
    CONTROLLER_KEY,
    PARTITIONS_PREFIX,
    PLACEMENT_KEY,
    Assignment,
    BrokerId,
    Incarnation,
    Placement,
    Registered,
    decode,
    encode,
    partition_key,
)
from headrace.model.errors import HeadraceError
from headrace.model.ids import Epoch, PartitionId
from headrace.model.specs import Durability, QueueSpec
from headrace.sim.chance import Chance
from headrace.sim.loop import Machine, SimLoop

NAMES = ("a", "b", "c", "d", "e")
FAULTS_S = 10.0
HEALED_S = 25.0
QUIET_S = 1.5
SETTINGS = Placement(
    registration_grace_ms=400, returning_wait_ms=800, preferred_after_ms=1500, replace_after_ms=4000, freeze_window_ms=1000, virtual_nodes=16
)
NOTICED_S = 0.4
"""From the death of a broker to gossip's verdict on it."""


class Eyes:
    """Evidence of one broker: the truth, late, and now and then a rumour."""

    def __init__(self, run: "Run", me: str) -> None:
        self.run, self.me = run, me
        self.told: list[Callable[[], None]] = []

    def clues(self, broker: BrokerId, incarnation: Incarnation) -> Clues:
        other = self.run.lives.get(incarnation)
        if other is None:
            return NONE
        now_s = self.run.loop.time()
        machine = self.run.brokers[self.me].machine
        quiet = not other.machine.alive or other.machine.paused
        if not quiet or now_s - other.quiet_s < NOTICED_S / 4:
            return Clues(swim="dead" if now_s < self.run.rumour_s and other.name == self.run.rumoured else "alive")
        quiet_ms = int((other.quiet_s + machine.monotonic() - now_s) * 1000)
        if not other.machine.alive and other.resets:
            return Clues(swim="suspect", probe_failed=True, reset_ms=quiet_ms, refused_ms=(quiet_ms + 5, quiet_ms + 60))
        noticed = now_s - other.quiet_s >= NOTICED_S
        return Clues(swim="dead" if noticed else "suspect", probe_failed=noticed)

    def look_at(self, registered: Mapping[BrokerId, Registered], closely: frozenset[BrokerId]) -> None: ...

    def on_news(self, told: Callable[[], None]) -> None:
        self.told.append(told)


class Broker:
    """One life of a broker: control, and an owner that does at once what its assignments ask of it."""

    def __init__(self, run: "Run", name: str, life: int) -> None:
        self.run, self.name, self.life = run, name, life
        self.id, self.incarnation = BrokerId(name), Incarnation(f"{name}-{life}")
        self.machine = Machine(run.loop, name, run.chance.fork(f"{name} {life}"))
        self.quiet_s = 0.0
        self.resets = True
        self.eyes = Eyes(run, name)
        self.mine: dict[PartitionId, Assignment] = {}
        self.control: Control

    async def start(self) -> None:
        coordinator = self.run.store.client(self.name)
        me = Registered(
            id=self.id, name=f"broker-{self.name}", incarnation=self.incarnation, rack=f"rack-{ord(self.name) % 3}", addresses={"native": self.name}
        )
        self.control = Control(coordinator, self.eyes, me, ttl_ms=1500)
        self.control.topology.on_reassigned(self.reassigned)
        self.control.start()
        pauses = Pauses()
        pauses.tell(self.control.controller.stood_still)
        pauses.start()
        asyncio.get_running_loop().create_task(self.obey(coordinator))

    def reassigned(self, news: tuple[Reassigned, ...]) -> None:
        for one in news:
            before = self.mine.get(one.partition)
            self.run.must((one.before.assignment if one.before else None) == before, "a step between was not told")
            self.run.must(one.now is not None or one.recorded, "removed without a recorded deletion")
            if one.now is None or self.id not in one.now.assignment.copies:
                del self.mine[one.partition]
            else:
                self.run.must(before is None or one.now.assignment.version > before.version, "an assignment went backwards")
                self.mine[one.partition] = one.now.assignment

    async def obey(self, coordinator: Coordinator) -> None:
        """As owner: a new epoch for a new life, members as they are, learners and leavers as asked; each a compare-and-swap."""
        while True:
            await asyncio.sleep(0.05 + 0.1 * self.machine.random())
            for partition, stored in self.control.topology.mine().items():
                a = stored.assignment
                if a.owner != self.id:
                    continue
                alive = frozenset(b.id for b in self.run.brokers.values() if b.machine.alive and not b.machine.paused)
                new = as_owner(a, alive)
                if a.incarnation != self.incarnation:
                    new = msgspec.structs.replace(a, epoch=Epoch(a.epoch + 1), incarnation=self.incarnation, version=a.version + 1)
                if new != a:
                    try:
                        key = partition_key(partition)
                        await coordinator.transact({key: stored.stored_version}, {key: encode(new)})
                    except HeadraceError:
                        break


class Run:
    def __init__(self, seed: int) -> None:
        self.chance = Chance(seed)
        self.loop = SimLoop(self.chance.fork("loop"), rows_max=0)  # type: ignore[abstract]
        self.brokers: dict[str, Broker] = {}
        self.lives: dict[str, Broker] = {}
        self.numbers = dict.fromkeys(NAMES, 0)
        self.store: MemoryStore
        self.rumoured, self.rumour_s = "", 0.0
        self.items: dict[str, tuple[int, ...]] = {}
        self.next_partition = 1
        self.known: dict[str, Assignment] = {}
        self.changes = self.owners_changed = self.two_elected = 0
        self.plans = 0
        self.broken: list[str] = []
        """What must never be and was; raised at the end, since drivers outlive what is raised within them."""

    def must(self, holds: object, text: str) -> None:
        if not holds:
            self.broken.append(f"{self.loop.time():.3f}: {text}")

    async def sleep(self, seconds: float) -> None:
        future = self.loop.create_future()
        self.loop.post(None, seconds, future.set_result, None)
        await future

    # ------------------------------------------------------------ what must hold at every moment

    def check(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if not change.key.startswith(PARTITIONS_PREFIX):
                continue
            self.changes += 1
            before = self.known.pop(change.key, None)
            if change.document is None:
                self.must(before is not None and before.item not in self.items, "removed although it was not deleted")
                continue
            now = decode(Assignment, change.document.value)
            self.known[change.key] = now
            if before is None:
                self.must(now.version == 1, "it does not begin with version 1")
                continue
            self.must(now.version == before.version + 1, f"two changes of one version, or one between was lost: {before} {now}")
            self.must(now.epoch >= before.epoch and now.generation >= before.generation, f"an epoch went back: {before} {now}")
            if now.owner != before.owner:
                self.owners_changed += 1
                self.must(now.epoch == before.epoch + 1, f"another owner in the same epoch: {before} {now}")
                self.must(now.owner in before.electable, f"{now.owner} was not in sync: {before}")
        elected = [b for b in self.brokers.values() if b.machine.alive and b.control.controller.election.term]
        self.two_elected += len(elected) > 1

    # ------------------------------------------------------------ what happens

    async def start(self, name: str) -> None:
        self.numbers[name] += 1
        broker = self.brokers[name] = Broker(self, name, self.numbers[name])
        self.lives[broker.incarnation] = broker
        await self.loop.spawn(broker.machine, broker.start())

    def notice(self, delay_s: float = NOTICED_S + 0.01) -> None:
        """Lets the living see what has changed, as gossip would."""
        for broker in self.brokers.values():
            for told in broker.eyes.told:
                self.loop.post(broker.machine, delay_s, told)

    def quiet(self, broker: Broker) -> None:
        broker.quiet_s = self.loop.time()
        self.notice(NOTICED_S / 4 + 0.01)
        self.notice()

    def declare(self, chance: Chance) -> None:
        name = f"item{self.next_partition}"
        count = chance.randint(1, 6)
        partitions = tuple(range(self.next_partition, self.next_partition + count))
        self.next_partition += count
        level: Durability = chance.choice(("replica_durable", "replica_durable", "majority_durable"))
        spec = QueueSpec(partitions=count, durability=level, replication_factor=3, min_in_sync_replicas=chance.choice((1, 2, 2)))
        self.items[name] = partitions
        document = {"name": name, "kind": "queue", "id": f"id-{name}", "partitions": partitions, "queue": spec, "routing_version": 1, "paused": False}
        assert self.store.write({}, {f"names/{name}": msgspec.msgpack.encode(document)}, 0)

    def delete(self, name: str) -> None:
        document = self.store.document(f"names/{name}")
        assert document is not None
        del self.items[name]
        assert self.store.write({}, {f"names/{name}": None, f"deleted/id-{name}": document.value}, 0)

    async def fault(self, chance: Chance) -> None:
        name = chance.choice(NAMES)
        broker = self.brokers[name]
        holder = next((n for n, b in self.brokers.items() if b.machine.alive and b.control.controller.election.term), name)
        if chance.happens(0.3):
            name, broker = holder, self.brokers[holder]
        what = chance.pick(
            [(4, "kill"), (3, "pause"), (3, "unreachable"), (2, "answers"), (2, "lease"), (2, "compact"), (2, "hold"), (1, "rumour"), (1, "leader"),
             (2, "declare"), (1, "delete"), (1, "drain"), (2, "reach"), (1, "settings")]
        )  # fmt: skip
        store = self.store
        if what == "kill" and broker.machine.alive:
            broker.resets = chance.happens(0.6)
            broker.machine.kill()
            self.quiet(broker)
            self.loop.post(None, chance.between(0.05, 4), lambda: self.loop.spawn(self.loop.world, self.revive(name)))
        elif what == "pause" and broker.machine.alive and not broker.machine.paused:
            broker.machine.pause()
            self.quiet(broker)
            self.loop.post(None, chance.between(0.05, 4), self.resume, broker)
        elif what == "unreachable":
            store.unreachable(name)
        elif what == "reach":
            for other in NAMES:
                store.unreachable(other, False)
                store.hold_watches(other, False)
        elif what == "answers":
            store.lose_answers(name, chance.randint(1, 3))
        elif what == "lease":
            store.drop_lease(f"brokers/{name}")
        elif what == "compact":
            store.compact()
        elif what == "hold":
            store.hold_watches(name)
        elif what == "rumour":
            self.rumoured, self.rumour_s = name, self.loop.time() + chance.between(0.1, 2)
            self.notice(0.001)
        elif what == "leader":
            store.leader = 0
            self.loop.post(None, chance.between(0.05, 3), setattr, store, "leader", 1)
        elif what == "declare" and self.next_partition < 40:
            self.declare(chance)
        elif what == "delete" and self.items:
            self.delete(chance.choice(sorted(self.items)))
        elif what == "drain" and broker.machine.alive:
            draining = not broker.control.presence.me.draining
            broker.machine.call(broker.control.drain, draining)
        elif what == "settings":
            moves = msgspec.structs.replace(SETTINGS, moves_in_flight_max=chance.randint(1, 4), handovers_in_flight_max=chance.randint(1, 8))
            store.write({}, {PLACEMENT_KEY: encode(moves)}, 0)

    async def revive(self, name: str) -> None:
        if not self.brokers[name].machine.alive:
            await self.start(name)
            self.notice()

    def resume(self, broker: Broker) -> None:
        if broker.machine.alive and broker.machine.paused:
            broker.machine.resume()
            self.notice(0.01)

    # ------------------------------------------------------------ the whole

    def trouble(self) -> str:
        """What is not yet as it must be."""
        elected = [b.name for b in self.brokers.values() if b.control.controller.election.look()]
        if len(elected) != 1:
            return f"controllers: {elected}"
        wanted = {p for partitions in self.items.values() for p in partitions}
        stored = {int(key[len(PARTITIONS_PREFIX) :]): a for key, a in self.known.items()}
        if set(stored) != wanted:
            return f"assigned {sorted(stored)}, declared {sorted(wanted)}"
        for partition, a in stored.items():
            if self.lives[a.incarnation] is not self.brokers[a.owner] or a.owner not in a.electable:
                return f"partition {partition} has no live owner: {a}"
            if a.learners or a.leaving or (a.level == "replica_durable" and set(a.isr) != set(a.replicas)) or len(a.replicas) != 3:
                return f"partition {partition} is not whole: {a}"
        for broker in self.brokers.values():
            if not broker.control.presence.alive:
                return f"{broker.name} is not registered: {broker.control.presence.trouble}"
            shown = {int(p): s.assignment for p, s in broker.control.picturing.stored.items()}
            if shown != stored:
                return f"{broker.name} sees another topology"
            if broker.mine != {p: a for p, a in shown.items() if broker.id in a.copies}:
                return f"{broker.name} was told something else"
        return ""

    async def scenario(self) -> None:
        self.store = MemoryStore(timeout_s=0.5, latency_s=self.chance.fork("shape").between(0.0005, 0.02))
        append = self.store.feed.append

        def appended(changes: tuple[Change, ...]) -> None:
            self.check(changes)
            append(changes)

        self.store.feed.append = appended  # type: ignore[method-assign]
        self.store.write({}, {PLACEMENT_KEY: encode(SETTINGS)}, 0)
        chance = self.chance.fork("faults")
        for _ in range(chance.randint(1, 3)):
            self.declare(chance)
        for name in NAMES:
            await self.start(name)
        while self.loop.time() < FAULTS_S:
            await self.sleep(chance.between(0.005, 1.5))
            await self.fault(chance)
        self.heal()
        healed, well = self.loop.time(), self.loop.time()
        settled: Document | None = None
        while self.loop.time() - well < QUIET_S:
            await self.sleep(0.05)
            trouble = self.trouble()
            term = self.store.document(CONTROLLER_KEY)
            if not trouble and term != settled:
                settled, trouble = term, "the controller has just changed"
            if trouble:
                well = self.loop.time()
                assert well - healed < HEALED_S, trouble
                for broker in self.brokers.values():
                    self.resume(broker)
                    if not broker.machine.alive and well - healed > 5:
                        await self.revive(broker.name)
        self.plans = sum(b.control.controller.plans for b in self.brokers.values())
        self.settled()

    def heal(self) -> None:
        self.store.leader = 1
        self.rumour_s = 0.0
        for broker in self.brokers.values():
            self.store.unreachable(broker.name, False)
            self.store.hold_watches(broker.name, False)
            self.store.lose_answers(broker.name, 0)
            if broker.machine.alive:
                broker.machine.call(broker.control.drain, False)
        self.notice(0.001)

    def settled(self) -> None:
        """No plan goes on for ever."""
        done = [d for b in self.brokers.values() for d in b.control.controller.decisions.history() if d.outcome == "applied"]
        assert len(done) <= self.changes
        assert not self.broken, self.broken[:3]


def play(seed: int) -> Run:
    run = Run(seed)
    try:
        run.loop.run_until_complete(run.scenario())
        assert not run.loop.errors, run.loop.errors
        failed = [(task, task.exception()) for _, task in run.loop.unseen()]
        assert not failed, failed
        return run
    finally:
        run.loop.close()


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "headrace")


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_every_partition_has_one_live_owner_again(first: int) -> None:
    for seed in range(first, first + 10):
        play(seed)


def test_a_run_is_repeated_exactly_by_its_seed() -> None:
    one, other = play(3), play(3)
    assert one.known == other.known
    assert (one.changes, one.plans, one.loop.steps) == (other.changes, other.plans, other.loop.steps)


def test_the_faults_reach_what_they_are_meant_for() -> None:
    runs = [play(seed) for seed in range(100, 112)]
    assert sum(run.owners_changed for run in runs) > 30
    assert any(run.two_elected for run in runs)


if __name__ == "__main__":
    logging.getLogger("headrace").setLevel(logging.CRITICAL)
    begin, end = int(sys.argv[1]), int(sys.argv[2])
    count = failures = 0
    for number in range(begin, end):
        try:
            count += play(number).owners_changed
        except Exception as e:
            failures += 1
            print(f"seed {number}: {e!r}"[:1500], flush=True)
        if number % 100 == 99 or number == end - 1:
            print(f"{number + 1 - begin} seeds, {failures} failed, {count} changes of owner", flush=True)
