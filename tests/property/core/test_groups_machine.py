"""Groups against what their members believe, and the sticky strategy against the optimum found by trying everything."""

from itertools import combinations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.assignment import STRATEGIES, Strategy, assign
from headrace.core.groups import Assignment, Group
from tests.property.effort import effort

GRACE_MS, RECONNECT_MS, REVOKE_MS = 100, 40, 60
MEMBERS = [f"m{n}" for n in range(6)]
STATICS = ["", "", "s0", "s1", "s2"]


@given(
    strategy=st.sampled_from(STRATEGIES),
    partitions=st.integers(0, 12),
    members=st.lists(st.integers(0, 7), unique=True, max_size=6),
    before=st.lists(st.none() | st.integers(0, 9), max_size=14),
)
@effort(400)
def test_strategies_are_balanced_and_sticky_moves_the_least(
    strategy: Strategy, partitions: int, members: list[int], before: list[int | None]
) -> None:
    plan = assign(strategy, partitions, members, before)
    assert len(plan) == partitions
    if not members:
        assert plan == [None] * partitions
        return
    shares = [plan.count(m) for m in members]
    assert sum(shares) == partitions
    assert max(shares) - min(shares) <= 1
    if strategy not in ("sticky", "cooperative"):
        return
    held = [[p for p in range(min(partitions, len(before))) if before[p] == m] for m in members]
    small, larger = divmod(partitions, len(members))
    most = max(sum(min(len(h), small + (i in bigger)) for i, h in enumerate(held)) for bigger in combinations(range(len(members)), larger))
    kept = sum(p < len(before) and plan[p] == before[p] for p in range(partitions))
    assert kept == most, "nobody could keep more under any balanced plan"
    dealt = assign("round_robin", partitions, members, before)
    assert kept >= sum(p < len(before) and dealt[p] == before[p] for p in range(partitions))
    assert assign(strategy, partitions, members, plan) == plan, "what is balanced stays"


@given(partitions=st.integers(1, 40), count=st.integers(1, 12), leaver=st.integers(0, 11))
@effort(150)
def test_one_more_or_one_less_moves_no_more_than_a_share(partitions: int, count: int, leaver: int) -> None:
    members = list(range(count))
    plan = assign("sticky", partitions, members, [])
    more = assign("sticky", partitions, [*members, 99], plan)
    assert sum(a != b for a, b in zip(plan, more, strict=True)) == more.count(99) == partitions // (count + 1)
    left = [m for m in members if m != leaver % count]
    if left:
        less = assign("sticky", partitions, left, plan)
        assert sum(a != b for a, b in zip(plan, less, strict=True)) == plan.count(leaver % count)


class GroupAgainstItsMembers(RuleBasedStateMachine):
    """Every member does what it is told; the model is what they believe."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.told: dict[str, Assignment] = {}
        """The last thing each member was told."""
        self.using: dict[str, set[int]] = {}
        """What each connected member uses: in a cooperative group what is revoked too, until released."""
        self.revoked_at: dict[tuple[str, int], int] = {}
        self.until: dict[str, int] = {}
        self.names: dict[str, str] = {}
        self.generation = 0

    @initialize(strategy=st.sampled_from(STRATEGIES), partitions=st.integers(1, 8), served=st.integers(0, 4))
    def begin(self, strategy: Strategy, partitions: int, served: int) -> None:
        self.group = Group(
            partitions, strategy=strategy, grace_ms=GRACE_MS, reconnect_grace_ms=RECONNECT_MS, revoke_timeout_ms=REVOKE_MS, target=served
        )

    def obey(self, told: list[Assignment]) -> None:
        for a in told:
            if a.member not in self.names:
                continue
            before = self.told.get(a.member)
            assert before is None or a.generation >= before.generation
            if before is not None:
                assert {*before.partitions} - {*a.partitions} == {*a.revoked}, "revoked is exactly what is lost"
            self.told[a.member] = a
            kept = set()
            if self.group.strategy == "cooperative" and a.member not in self.until:
                kept = {p for p in self.using.get(a.member, set()) if p in a.revoked or (a.member, p) in self.revoked_at}
                for p in a.revoked:
                    self.revoked_at[a.member, p] = self.now
            self.using[a.member] = {*a.partitions} | kept
            assert not kept & {*a.partitions}, "what is still being given up is not handed out"

    def forget(self, member: str) -> None:
        for book in (self.told, self.using, self.until, self.names):
            book.pop(member, None)
        self.revoked_at = {k: v for k, v in self.revoked_at.items() if k[0] != member}

    def stop_using_revoked(self, member: str) -> None:
        self.using[member] = {*self.told[member].partitions}
        self.revoked_at = {k: v for k, v in self.revoked_at.items() if k[0] != member}

    @rule(member=st.sampled_from(MEMBERS), name=st.sampled_from(STATICS))
    def joins(self, member: str, name: str) -> None:
        if member in self.names:
            name = self.names[member]
        holder = next((m for m, n in self.names.items() if name and n == name and m != member), None)
        before = {m: a for m, a in self.told.items() if m not in (member, holder)}
        old = self.told.get(holder) if holder else None
        generation = self.group.generation
        told = self.group.join(member, name, self.now)
        assert member in {a.member for a in told}
        returning = member in self.names or holder is not None
        self.names[member] = name
        if holder is not None:
            self.forget(holder)
        self.until.pop(member, None)
        self.obey(told)
        if returning:
            assert {m: self.told[m] for m in before} == before, "a return moves nothing"
        if old is not None:
            assert self.told[member].partitions == old.partitions
            assert self.group.generation > generation
            assert self.group.fence(self.group.generation, str(holder))

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def leaves(self, data: Any) -> None:
        member = data.draw(st.sampled_from(sorted(self.names)))
        self.forget(member)
        self.obey(self.group.leave(member, self.now))

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def loses_its_connection(self, data: Any) -> None:
        member = data.draw(st.sampled_from(sorted(self.names)))
        self.group.suspend(member, self.now)
        if member not in self.until:
            self.until[member] = self.now + (GRACE_MS if self.names[member] else RECONNECT_MS)
            self.stop_using_revoked(member)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def releases(self, data: Any) -> None:
        member = data.draw(st.sampled_from(sorted(self.names)))
        self.stop_using_revoked(member)
        self.obey(self.group.released(member, self.told[member].generation, self.now))

    @rule(ms=st.integers(0, 70))
    def time_passes(self, ms: int) -> None:
        deadline = self.group.next_deadline_ms()
        self.now += ms
        for member in [m for m, until in self.until.items() if until <= self.now]:
            self.forget(member)
        for member in {m for (m, _), since in self.revoked_at.items() if since + REVOKE_MS <= self.now}:
            late = {p for (m, p), since in self.revoked_at.items() if m == member and since + REVOKE_MS <= self.now}
            self.using[member] -= late
            self.revoked_at = {k: v for k, v in self.revoked_at.items() if k[0] != member or k[1] not in late}
        told = self.group.tick(self.now)
        assert not told or (deadline is not None and deadline <= self.now)
        assert {a.member for a in told} <= set(self.names)
        self.obey(told)
        rest = self.group.next_deadline_ms()
        assert rest is None or rest > self.now

    @rule(partitions=st.integers(1, 8) | st.none(), served=st.integers(0, 4) | st.none(), strategy=st.sampled_from(STRATEGIES) | st.none())
    def is_altered(self, partitions: int | None, served: int | None, strategy: Strategy | None) -> None:
        told = self.group.configure(self.now, partition_count=partitions, target=served, strategy=strategy)
        if self.group.strategy != "cooperative":
            for member in self.names:
                self.stop_using_revoked(member)
        self.obey(told)
        for member in self.using:
            self.using[member] = {p for p in self.using[member] if p < self.group.partition_count}
        self.revoked_at = {k: v for k, v in self.revoked_at.items() if k[1] < self.group.partition_count}

    @rule()
    def restarts(self) -> None:
        data = self.group.snapshot()
        self.group = Group(1, grace_ms=GRACE_MS, reconnect_grace_ms=RECONNECT_MS, revoke_timeout_ms=REVOKE_MS)
        self.group.restore(1, data, self.now)
        assert self.group.snapshot() == data
        for member, name in self.names.items():
            self.until[member] = self.now + (GRACE_MS if name else RECONNECT_MS)
            self.stop_using_revoked(member)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "group"):
            return
        group = self.group
        group.check()
        assert group.generation >= self.generation
        self.generation = group.generation
        assert sorted(group.members()) == sorted(self.names)
        used: set[int] = set()
        for member, told in self.told.items():
            actual = group.assignment(member)
            assert actual is not None
            assert (actual.partitions, actual.generation) == (told.partitions, told.generation), "everybody was told"
            assert not group.fence(told.generation, member)
            assert group.fence(told.generation - 1, member)
            assert not used & self.using[member], "one user at a time"
            used |= self.using[member]
        if group.strategy != "cooperative" and self.names:
            waits = group.view()["moving"]
            assert used | set(waits) == set(range(group.partition_count)), "every partition is served"


GroupAgainstItsMembers.TestCase.settings = effort(60, steps=40)
TestGroupAgainstItsMembers = GroupAgainstItsMembers.TestCase
