"""A cohort over the partitions of a queue against one row per message: gates arrive late and out of order, and still only one member is served.

The model knows for each partition which gate with which generation counts, and for each member what it leases. Members that were static come back for
their seat; the broker that plans may restart.
"""

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.groups import Group
from headrace.core.queue import Consumer, Credit, QueueMachine
from headrace.model.specs import QueueSpec
from headrace.wire.frames import Settle
from tests.property.effort import effort

LEASE_MS = 100
WALL = 1_000_000
GRACE_MS, RECONNECT_MS = 150, 50
NAMES = st.sampled_from(["a", "b", "c", "d", "static-e", "static-f"])


@dataclass
class Row:
    state: str = "ready"
    member: str = ""
    deadline: int = 0
    acked: int = 0


@dataclass
class Member:
    """``number`` is its consumer at every partition and its owner token."""

    number: int
    seat: int
    """When its seat was taken: order of age."""
    away_until: int | None = None


class Cohort(RuleBasedStateMachine):
    @initialize(partitions=st.integers(1, 6), served=st.integers(0, 3))
    def begin(self, partitions: int, served: int) -> None:
        self.now = 0
        self.numbers = 0
        self.target = served
        self.group = self.planner(partitions)
        self.queues = [QueueMachine(QueueSpec(lease_ms=LEASE_MS)) for _ in range(partitions)]
        self.rows: list[dict[int, Row]] = [{} for _ in self.queues]
        self.members: dict[str, Member] = {}
        self.gates: list[tuple[int | None, int] | None] = [None] * partitions
        """What counts at each partition."""
        self.sent: list[tuple[int, int | None, int]] = []
        """Gates on their way: (partition, consumer, generation)."""
        self.before: dict[str, tuple[int, ...]] = {}
        for partition in range(partitions):
            self.is_published(partition, 4)

    def planner(self, partitions: int) -> Group:
        return Group(partitions, grace_ms=GRACE_MS, reconnect_grace_ms=RECONNECT_MS, target=self.target)

    @property
    def wall(self) -> int:
        return WALL + self.now

    # ------------------------------------------------------------ membership

    def planned(self) -> None:
        """A gate for each partition is sent."""
        for partition in range(len(self.queues)):
            held = self.group.holder(partition)
            number = self.members[held[0]].number if held is not None and held[0] in self.members else None
            self.sent.append((partition, number, self.group.generation))

    def shares(self) -> dict[str, tuple[int, ...]]:
        return {name: found.partitions for name in self.members if (found := self.group.assignment(name)) is not None}

    @rule(name=NAMES)
    def joins(self, name: str) -> None:
        if name in self.members:
            self.comes_back(name)
            return
        before = self.shares()
        self.numbers += 1
        self.group.join(name, name if name.startswith("static") else "", self.now)
        member = self.members[name] = Member(self.numbers, self.numbers)
        for queue in self.queues:
            queue.attach(Consumer(member.number, owner_token=member.number, credit=Credit(3)))
        self.planned()
        after = self.shares()
        # to make place for one, nobody is given anything, and not more is taken than the newcomer gets
        assert all(set(after[other]) <= set(before[other]) for other in before)
        assert sum(map(len, before.values())) - sum(len(after[other]) for other in before) in (0, len(after[name]))
        assert sum(map(len, after.values())) == len(self.queues)

    @rule(names=st.lists(NAMES, min_size=2, max_size=4, unique=True), late=st.booleans())
    def several_join(self, names: list[str], late: bool) -> None:
        for name in names:
            self.joins(name)
        while late and self.sent:
            # the newest first: the others come too late
            self.arrives(*self.sent.pop())

    @rule(name=NAMES)
    def leaves(self, name: str) -> None:
        if name in self.members:
            before = self.shares()
            self.group.leave(name, self.now)
            self.gone(name)
            after = self.shares()
            assert all(set(before[other]) <= set(after[other]) for other in after), "nobody loses anything by another's leaving"

    def gone(self, name: str) -> None:
        member = self.members.pop(name)
        for partition, queue in enumerate(self.queues):
            queue.detach(member.number, self.now, self.wall)
            for row in self.rows[partition].values():
                if row.state == "leased" and row.member == name:
                    row.state, row.member = "ready", ""
        self.planned()

    @rule(name=NAMES)
    def loses_its_connection(self, name: str) -> None:
        member = self.members.get(name)
        if member is not None and member.away_until is None:
            before = self.shares()
            member.away_until = self.now + (GRACE_MS if name.startswith("static") else RECONNECT_MS)
            self.group.suspend(name, self.now)
            assert self.shares() == before, "nothing moves while a grace runs"
            for queue in self.queues:
                queue.suspend(member.number)

    @rule(name=NAMES)
    def comes_back(self, name: str) -> None:
        member = self.members.get(name)
        if member is not None and member.away_until is not None:
            before = self.shares()
            self.group.join(name, name if name.startswith("static") else "", self.now)
            member.away_until = None
            assert self.shares() == before, "who comes back within its grace moves nothing"
            for queue in self.queues:
                queue.resume(member.number, None, self.now, self.wall)
            self.planned()

    @rule(ms=st.sampled_from([1, 20, 60, 100]))
    def time_passes(self, ms: int) -> None:
        self.now += ms
        self.group.tick(self.now)
        for name in [name for name, m in self.members.items() if m.away_until is not None and m.away_until <= self.now]:
            assert self.group.assignment(name) is None
            self.gone(name)
        for partition, queue in enumerate(self.queues):
            queue.tick(self.now, self.wall)
            for row in self.rows[partition].values():
                if row.state == "leased" and row.deadline <= self.now:
                    row.state, row.member = "ready", ""

    @rule(served=st.integers(0, 3))
    def is_altered(self, served: int) -> None:
        self.target = served
        self.group.configure(self.now, target=served)
        self.planned()

    @rule()
    def the_planner_restarts(self) -> None:
        """From its last journal entry; its members count as away until they show up."""
        self.group.take_journal()
        data = self.group.snapshot()
        before = self.shares()
        self.group = self.planner(len(self.queues))
        self.group.restore(1, data, self.now)
        assert self.shares() == before
        for name, member in self.members.items():
            member.away_until = self.now + (GRACE_MS if name.startswith("static") else RECONNECT_MS)
            for queue in self.queues:
                queue.suspend(member.number)

    # ------------------------------------------------------------ gates

    @precondition(lambda self: self.sent)
    @rule(count=st.integers(1, 8), picks=st.lists(st.integers(0, 30), min_size=8, max_size=8))
    def gates_arrive_in_any_order(self, count: int, picks: list[int]) -> None:
        for pick in picks[:count]:
            if self.sent:
                self.arrives(*self.sent.pop(pick % len(self.sent)))

    @rule()
    def all_gates_arrive(self) -> None:
        while self.sent:
            self.arrives(*self.sent.pop(0))

    def arrives(self, partition: int, number: int | None, generation: int) -> None:
        current = self.gates[partition]
        counts = current is None or generation >= current[1]
        assert self.queues[partition].gate(number, generation) == counts, "a gate of an older generation changes nothing"
        if counts:
            self.gates[partition] = (number, generation)

    # ------------------------------------------------------------ messages

    @rule(partition=st.integers(0, 5), count=st.integers(1, 4))
    def is_published(self, partition: int, count: int) -> None:
        partition %= len(self.queues)
        queue, rows = self.queues[partition], self.rows[partition]
        queue.enqueue(queue.end, count, 10 * count, wall_ms=self.wall, now_ms=self.now)
        rows.update({len(rows) + k: Row() for k in range(count)})

    @rule()
    def is_granted(self) -> None:
        numbers = {m.number: name for name, m in self.members.items()}
        for partition, queue in enumerate(self.queues):
            gate = self.gates[partition]
            for grant in queue.grant(self.now, self.wall):
                name = numbers[grant.consumer_id]
                assert gate is None or gate[0] == grant.consumer_id, "only the holder is served"
                assert self.members[name].away_until is None
                for offset in range(grant.first, grant.first + grant.count):
                    row = self.rows[partition][offset]
                    assert row.state == "ready", "I10"
                    row.state, row.member, row.deadline = "leased", name, self.now + LEASE_MS

    @rule(name=NAMES, every=st.integers(1, 3))
    def acks(self, name: str, every: int) -> None:
        member = self.members.get(name)
        if member is None:
            return
        for partition, queue in enumerate(self.queues):
            # whoever lost the partition may still settle what it leases
            mine = [(o, 1) for o, row in self.rows[partition].items() if row.state == "leased" and row.member == name][::every]
            answer = queue.settle(member.number, Settle.ACK, mine, now_ms=self.now, wall_ms=self.wall)
            assert (answer.count, answer.stale) == (len(mine), [])
            for offset, _ in mine:
                row = self.rows[partition][offset]
                row.state, row.acked = "settled", row.acked + 1

    # ------------------------------------------------------------ always

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "members"):
            return
        self.group.check()
        by_age = sorted(self.members, key=lambda name: self.members[name].seat)
        assert self.group.members() == by_age
        served = min(len(self.queues), self.target or len(by_age), len(by_age))
        assert self.group.standby() == by_age[served:], "the youngest stand by"
        shares = self.shares()
        assert all(not shares[name] for name in by_age[served:])
        sizes = [len(shares[name]) for name in by_age[:served]]
        assert not sizes or (sum(sizes) == len(self.queues) and max(sizes) - min(sizes) <= 1)
        for partition, queue in enumerate(self.queues):
            queue.check()
            rows = self.rows[partition]
            assert {p.offset: p.state for p in queue.peek("any", limit=10_000)} == {o: r.state for o, r in rows.items() if r.state != "settled"}

    @precondition(lambda self: self.members)
    @rule()
    def in_the_end_everything_is_served(self) -> None:
        """When everybody is back and all gates are there, each holder gets all that is left."""
        for name in list(self.members):
            self.comes_back(name)
        self.planned()
        self.all_gates_arrive()
        for _ in range(200):
            self.is_granted()
            for name in list(self.members):
                self.acks(name, 1)
            if all(r.state == "settled" for rows in self.rows for r in rows.values()):
                break
        else:
            raise AssertionError("something is never served")


Cohort.TestCase.settings = effort(40, steps=40)
TestCohort = Cohort.TestCase
