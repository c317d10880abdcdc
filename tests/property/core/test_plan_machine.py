"""The controller's plans against brokers that die, return, drain, are emptied, damaged and cut off from the coordinator, and owners that race it.

The model knows what nobody in the cluster knows: how much of each partition is committed, and how much of it each broker holds. Owners do what the
replication machines promise to do, in any order, and any change of the controller may come too late.
"""

import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from headrace.core.control.changes import PARTITIONS_PER_TRANSACTION, Change, transactions
from headrace.core.control.picture import Item, Picture, Seen, Stored
from headrace.core.control.planning import plan
from headrace.core.control.rehearsal import may_go
from headrace.model.cluster import (
    CONTROLLER_KEY,
    Assignment,
    BrokerId,
    Incarnation,
    Placement,
    Registered,
    contradictions,
    decode,
    encode,
    partition_key,
    with_isr,
    with_learner_promoted,
    without_replica,
)
from headrace.model.ids import PartitionId
from tests.property.effort import effort

BROKERS_MAX = 7
LEVELS = ["replica_durable", "replica_durable", "majority_durable", "local_durable"]


@dataclass
class Machine:
    registered: Registered
    up: bool = True
    present: bool = True
    since_ms: int = 0
    returned: bool = False
    doubted_ms: int | None = None
    unfit: set[PartitionId] = field(default_factory=set)

    def seen(self) -> Seen:
        return Seen(
            registered=self.registered,
            present=self.present,
            since_ms=self.since_ms,
            returned=self.returned,
            swim="alive" if self.up else "dead",
            probe_failed=not self.up,
            doubted_ms=self.doubted_ms,
            unfit=frozenset(self.unfit),
        )


class Controlled(RuleBasedStateMachine):
    @initialize(
        count=st.integers(1, 5),
        racks=st.integers(0, 3),
        strategy=st.sampled_from(["consistent_hash", "round_robin", "least_loaded"]),
        levels=st.lists(st.sampled_from(LEVELS), max_size=2),
    )
    def begin(self, count: int, racks: int, strategy: str, levels: list[str]) -> None:
        self.now = 1_000_000
        self.lives = 0
        self.at_rest = False
        self.racks = racks
        self.machines: dict[BrokerId, Machine] = {}
        self.items: list[Item] = []
        self.deleted: set[PartitionId] = set()
        self.partitions = 0
        self.stored: dict[PartitionId, Stored] = {}
        self.committed: dict[PartitionId, int] = {}
        self.held: dict[PartitionId, dict[BrokerId, int]] = {}
        self.recovered: dict[PartitionId, bool] = {}
        self.settings = Placement(strategy=strategy, virtual_nodes=20)  # type: ignore[arg-type]
        self.lagging: set[tuple[PartitionId, BrokerId]] = set()
        self.handovers: list[int] = []
        self.epochs: dict[tuple[PartitionId, int], BrokerId] = {}
        for _ in range(count):
            self.a_broker_joins()
        for level in levels:
            self.a_queue_is_declared(2, level, 3, 2)
        for change in plan(self.picture()).changes:
            self.apply(change)

    def picture(self, chance: random.Random | None = None) -> Picture:
        lists = [list(self.items), [m.seen() for m in self.machines.values()], list(self.stored.values())]
        if chance:
            for each in lists:
                chance.shuffle(each)
        items, brokers, stored = (tuple(each) for each in lists)
        return Picture(
            now_ms=self.now,
            items=items,  # type: ignore[arg-type]
            brokers=brokers,  # type: ignore[arg-type]
            stored=stored,  # type: ignore[arg-type]
            settings=self.settings,
            deleted=frozenset(self.deleted),
            recent_handovers_ms=tuple(self.handovers),
        )

    # what happens to brokers

    @precondition(lambda self: len(self.machines) < BROKERS_MAX)
    @rule()
    def a_broker_joins(self) -> None:
        number = len(self.machines)
        id = BrokerId(f"b{number}")
        rack = f"r{number % self.racks}" if self.racks else ""
        self.lives += 1
        life = Incarnation(f"life{self.lives}")
        registered = Registered(id=id, name=f"broker-{number}", incarnation=life, rack=rack, host=f"h{number // 2}")
        self.machines[id] = Machine(registered, since_ms=self.now)

    @rule(pick=st.integers(0, 100))
    def a_broker_dies(self, pick: int) -> None:
        machine = self.pick(pick, lambda m: m.up)
        if machine:
            machine.up = False

    @rule(partition=st.integers(0, 100), follower=st.integers(0, 2), chance=st.randoms(use_true_random=False))
    def a_follower_lags_or_catches_up(self, partition: int, follower: int, chance: random.Random) -> None:
        if self.stored:
            a = self.stored[sorted(self.stored)[partition % len(self.stored)]].assignment
            self.lagging ^= {(a.partition, a.replicas[follower % len(a.replicas)])}
            self.owner_acts(a.partition, chance)
            self.messages_are_committed(chance)

    @rule(partition=st.integers(0, 100), with_isr=st.booleans(), chance=st.randoms(use_true_random=False))
    def an_owner_dies(self, partition: int, with_isr: bool, chance: random.Random) -> None:
        if self.stored:
            a = self.stored[sorted(self.stored)[partition % len(self.stored)]].assignment
            for id in {a.owner: 0, **(dict.fromkeys(a.isr) if with_isr else {})}:
                self.machines[id].up = False
            self.the_controller_plans(chance)

    @rule(pick=st.integers(0, 100), together=st.booleans())
    def registrations_vanish(self, pick: int, together: bool) -> None:
        for machine in self.machines.values():
            if machine.present and (not machine.up or (together and pick % 5 == 0)):
                machine.present, machine.since_ms = False, self.now

    @rule(pick=st.integers(0, 100))
    def a_broker_returns(self, pick: int) -> None:
        machine = self.pick(pick, lambda m: not m.up or not m.present)
        if machine:
            self.lives += 1
            life = Incarnation(f"life{self.lives}")
            machine.registered = replace(machine.registered, incarnation=life, draining=False)
            machine.up = machine.present = machine.returned = True
            machine.since_ms = self.now

    @rule(pick=st.integers(0, 100))
    def a_broker_was_in_doubt(self, pick: int) -> None:
        machine = self.pick(pick, lambda m: m.up)
        if machine:
            machine.doubted_ms = self.now

    @rule(what=st.sampled_from(["drain", "drain", "empty", "damage", "damage", "settings"]), pick=st.integers(0, 100), other=st.integers(0, 100))
    def something_rare(self, what: str, pick: int, other: int) -> None:
        id = list(self.machines)[pick % len(self.machines)]
        machine = self.machines[id]
        if what == "drain":
            machine.registered = replace(machine.registered, draining=machine.up and not machine.registered.draining)
        elif what == "empty":
            self.settings = replace(self.settings, emptied=tuple(sorted(set(self.settings.emptied) ^ {id})))
        elif what == "damage" and machine.up and self.stored:
            machine.unfit ^= {sorted(self.stored)[other % len(self.stored)]}
        elif what == "settings":
            cap, moves = (0, 0, 1, 3, 10)[pick % 5], (1, 4)[other % 2]
            self.settings = replace(self.settings, copies_per_broker_max=cap, rebalance=pick % 2 == 0, moves_in_flight_max=moves)

    @rule(ms=st.sampled_from([50, 1_000, 2_500, 11_000, 31_000, 301_000]))
    def time_passes(self, ms: int) -> None:
        self.now += ms
        self.handovers = [at for at in self.handovers if self.now - at < 1_000]

    # what happens to queues

    @precondition(lambda self: self.partitions < 12)
    @rule(count=st.integers(1, 4), level=st.sampled_from(LEVELS), factor=st.integers(1, 3), floor=st.integers(1, 3))
    def a_queue_is_declared(self, count: int, level: str, factor: int, floor: int) -> None:
        factor = max(2, factor) if level == "replica_durable" else factor
        ids = tuple(PartitionId(self.partitions + n) for n in range(count))
        self.partitions += count
        number = ids[0]
        self.items.append(Item(f"id{number}", f"q{number}", ids, level, min(floor, factor), factor))  # type: ignore[arg-type]

    @rule(pick=st.integers(0, 100))
    def a_queue_is_deleted(self, pick: int) -> None:
        if self.items and pick % 4 == 0:
            self.deleted.update(self.items.pop(pick % len(self.items)).partitions)

    @rule(chance=st.randoms(use_true_random=False), count=st.integers(1, 3))
    def life_goes_on(self, chance: random.Random, count: int) -> None:
        """Owners change members, messages are committed, in any order."""
        for _ in range(count):
            for partition in list(self.stored):
                if chance.random() < 0.5:
                    self.owner_acts(partition, chance)
            self.messages_are_committed(chance)

    def messages_are_committed(self, chance: random.Random) -> None:
        for partition, stored in self.stored.items():
            a = stored.assignment
            if chance.random() < 0.3 or not self.serves(a, chance):
                continue
            held = self.held[partition]
            up = [b for b in a.members if self.machines[b].up]
            if len(up) < a.k or a.below_floor:
                continue
            others = [b for b in up if b != a.owner]
            takers = [a.owner, *chance.sample(others, chance.randint(a.k - 1, len(others)))]
            self.committed[partition] += 1
            for broker in takers:
                held[broker] = self.committed[partition]

    def serves(self, a: Assignment, chance: random.Random) -> bool:
        """Whether the owner has recovered; if it can, it recovers from as few answers as may suffice."""
        partition = a.partition
        if not self.machines[a.owner].up or partition in self.machines[a.owner].unfit:
            return False
        if self.recovered[partition]:
            return True
        held = self.held[partition]
        others = [b for b in a.members if b != a.owner and self.machines[b].up]
        if len(others) + 1 < a.recovery_quorum:
            return False
        answers = [a.owner, *chance.sample(others, a.recovery_quorum - 1)]
        assert max(held.get(b, 0) for b in answers) == self.committed[partition], f"confirmed messages of {a} are lost"
        held[a.owner] = self.committed[partition]
        self.recovered[partition] = True
        return True

    def owner_acts(self, partition: PartitionId, chance: random.Random) -> None:
        """One compare-and-swap of an owner."""
        a = self.stored[partition].assignment
        if not self.serves(a, chance):
            return
        up = [b for b in a.replicas if self.machines[b].up]
        fit = [b for b in up if partition not in self.machines[b].unfit and (b == a.owner or (partition, b) not in self.lagging)]
        new = a
        if a.level == "replica_durable" and set(fit) != set(a.isr):
            back = [b for b in fit if b in a.isr or self.at_rest or chance.random() < 0.5]
            new = with_isr(a, back)
        elif any(self.machines[b].up for b in a.learners):
            learner = next(b for b in a.learners if self.machines[b].up)
            new = with_learner_promoted(a, learner)
        elif a.leaving and not a.learners:
            going = next((b for b in a.leaving if b != a.owner and may_go(a, b)), None)
            new = without_replica(a, going) if going else a
        members = [b for b in new.members if self.machines[b].up]
        if new == a or len(members) < new.k:
            return
        for broker in members:
            self.held[partition][broker] = self.committed[partition]
        self.put(replace(new, version=a.version + 1))

    def put(self, a: Assignment) -> None:
        assert not contradictions(a)
        before = self.stored.get(a.partition)
        self.stored[a.partition] = Stored(a, before.stored_version + 1 if before else 1)
        assert self.epochs.setdefault((a.partition, a.epoch), a.owner) == a.owner, "two owners in one epoch"

    # what the controller does

    @rule(chance=st.randoms(use_true_random=False))
    def the_controller_plans(self, chance: random.Random) -> None:
        made = plan(self.picture())
        assert made == plan(self.picture(chance)), "the order of the input shows"
        for change in made.changes:
            if chance.random() < 0.2 and change.partition in self.stored:
                self.owner_acts(change.partition, chance)
            self.apply(change)

    def apply(self, change: Change) -> bool:
        before = self.stored.get(change.partition)
        if change.stored_version != (before.stored_version if before else 0):
            return False
        if change.assignment is None:
            assert change.partition in self.deleted
            del self.stored[change.partition]
            return True
        new = change.assignment
        assert decode(Assignment, encode(new)) == new
        if before is None:
            assert change.act == "assign"
            self.committed[new.partition] = 0
            self.held[new.partition] = {}
            self.recovered[new.partition] = True
        else:
            self.judge(before.assignment, new)
        if change.act == "restore":
            doubted_ms = self.machines[new.owner].doubted_ms
            assert doubted_ms is None or self.now - doubted_ms >= self.settings.returning_wait_ms, "an owner goes back to one that was just in doubt"
            self.handovers.append(self.now)
        self.put(new)
        return True

    def judge(self, old: Assignment, new: Assignment) -> None:
        """What no change of the controller may do."""
        assert new.version == old.version + 1
        assert new.level == old.level
        assert new.floor == old.floor
        assert set(old.replicas) == set(new.replicas), "only owners change members"
        assert set(new.isr) <= {*old.isr, *old.elr}
        assert set(new.elr) <= {*old.isr, *old.elr}
        if new.owner == old.owner:
            assert new.epoch == old.epoch
            assert new.isr == old.isr
            assert new.elr == old.elr
            return
        assert new.epoch == old.epoch + 1
        assert old.level != "local_durable"
        assert new.owner in old.electable
        assert self.machines[new.owner].up
        assert new.incarnation == self.machines[new.owner].registered.incarnation
        assert new.partition not in self.machines[new.owner].unfit
        self.recovered[new.partition] = False
        if old.level == "replica_durable":
            assert self.held[new.partition].get(new.owner, 0) == self.committed[new.partition], "elected one who lacks confirmed messages"

    def pick(self, number: int, which: object) -> Machine | None:
        able = [m for m in self.machines.values() if which(m)]  # type: ignore[operator]
        return able[number % len(able)] if able else None

    @invariant()
    def every_member_of_an_isr_holds_all_that_is_committed(self) -> None:
        for partition, stored in getattr(self, "stored", {}).items():
            a = stored.assignment
            for broker in (*a.isr, *a.elr):
                assert self.held[partition].get(broker, 0) == self.committed[partition], f"{broker} of {a}"

    def teardown(self) -> None:
        """Left alone, the plans end, and then nothing is missing that could be there."""
        if not hasattr(self, "machines"):
            return
        chance = random.Random(1)
        self.at_rest = True
        self.lagging.clear()
        for machine in self.machines.values():
            if machine.up != machine.present:
                machine.present, machine.since_ms = machine.up, self.now
        self.now += 400_000
        self.handovers = []
        steps = 0
        bound = 20 + 12 * len(self.stored) + 40 * self.partitions
        while True:
            before = dict(self.stored)
            made = plan(self.picture()).changes
            for change in made:
                assert self.apply(change)
            self.handovers = []
            for partition in list(self.stored):
                for _ in range(8):
                    self.owner_acts(partition, chance)
            steps += 1
            assert steps <= bound, f"no end: {[c.reason for c in made]}"
            if before == self.stored:
                break
        assert not made
        self.nothing_is_missing()

    def nothing_is_missing(self) -> None:
        found = {f.partition for f in plan(self.picture()).findings}
        for item in self.items:
            for partition in item.partitions:
                if partition not in self.stored:
                    assert partition in found
                    continue
                a = self.stored[partition].assignment
                alive = [b for b in a.electable if self.machines[b].up and partition not in self.machines[b].unfit]
                if not self.machines[a.owner].up:
                    assert partition in found
                    assert a.level == "local_durable" or len(alive) < a.recovery_quorum
                elif partition not in found and not any(partition in self.machines[b].unfit for b in a.copies):
                    gone = [b for b in a.replicas if not self.machines[b].up]
                    assert (len(a.replicas), gone, a.learners) == (item.factor, [], ()), a


def test_transactions_carry_at_most_128_operations_and_compare_the_controller() -> None:
    picture = Picture(
        now_ms=0,
        brokers=tuple(Seen(registered=Registered(id=BrokerId(n), name=n, incarnation=Incarnation("1"))) for n in "abc"),
        items=(Item("i", "q", tuple(PartitionId(n) for n in range(200)), "replica_durable", 2, 3),),
    )
    changes = plan(picture).changes
    made = list(transactions(changes, 9))
    assert [c for t in made for c in t.changes] == list(changes)
    assert [len(t.changes) for t in made] == [PARTITIONS_PER_TRANSACTION] * 3 + [200 - 3 * PARTITIONS_PER_TRANSACTION]
    for t in made:
        assert len(t.expected) + len(t.puts) <= 128
        assert t.expected[CONTROLLER_KEY] == 9
        assert all(t.expected[partition_key(c.partition)] == 0 for c in t.changes)


TestControlled = Controlled.TestCase
TestControlled.settings = effort(80, 40)
