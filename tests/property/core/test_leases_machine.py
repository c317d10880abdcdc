"""The leases of a partition against a dict from each leased offset to who has it and until when."""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.queue.consumers import Consumer, Credit
from headrace.core.queue.leases import STALE_DEADLINES_MIN, Holder, Lease, Leases
from tests.property.effort import effort

TOKENS = st.integers(1, 4)
FIRSTS = st.integers(0, 50)
COUNTS = st.integers(1, 12)
DURATIONS = st.sampled_from([10, 50, 50, 200])
DEADLINES_KEPT_MAX = 4 * STALE_DEADLINES_MIN


@dataclass(frozen=True)
class Held:
    token: int
    attempt: int
    lease_ms: int
    deadline_ms: int
    failed_ms: int


class LeasesAgainstADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.leases = Leases()
        self.now = 0
        self.held: dict[int, Held] = {}
        self.attached: dict[int, int] = {}
        """Consumer to token."""
        self.cold = False
        """After a restart, before the first look at the clock: nobody can hold anything yet."""

    def told(self, pieces: list[tuple[int, int, Lease]]) -> list[tuple[int, Held]]:
        return [
            (o, Held(lease.owner_token, lease.attempt, lease.lease_ms, lease.deadline_ms, lease.first_failed_ms))
            for first, end, lease in pieces
            for o in range(first, end)
        ]

    def kept(self, first: int, end: int, token: int | None = None) -> list[tuple[int, Held]]:
        return [(o, h) for o, h in sorted(self.held.items()) if first <= o < end and token in (None, h.token)]

    def holder(self, token: int) -> Holder:
        return self.leases.holders.get(token) or self.leases.attach(Consumer(self.attach_id(token), owner_token=token, credit=Credit(9)))

    def attach_id(self, token: int) -> int:
        self.attached = {c: t for c, t in self.attached.items() if t != token}
        self.attached[token + 100] = token
        return token + 100

    def give(self, token: int, first: int, end: int, held: Held) -> None:
        """Leases what of the range is free, one lease a run as the queue does it."""
        free = [o for o in range(first, end) if o not in self.held]
        while free:
            count = next((k for k in range(1, len(free)) if free[k] != free[k - 1] + 1), len(free))
            run, free = free[:count], free[count:]
            lease = Lease(token, held.attempt, held.lease_ms, held.deadline_ms, held.failed_ms)
            self.leases.put(self.holder(token), run[0], run[-1] + 1, lease)
            self.held.update(dict.fromkeys(run, held))

    # ------------------------------------------------------------ consumers

    @rule(id=st.integers(1, 5), token=TOKENS)
    def attaches(self, id: int, token: int) -> None:
        self.attached = {c: t for c, t in self.attached.items() if c != id and t != token}
        self.attached[id] = token
        holder = self.leases.attach(Consumer(id, owner_token=token, credit=Credit(9)))
        assert holder.token == token
        assert self.told(list(holder.leases)) == ([] if self.cold else self.kept(0, 1 << 60, token)), "its leases are its own again"

    # ------------------------------------------------------------ leases

    @precondition(lambda self: not self.cold)
    @rule(token=TOKENS, first=FIRSTS, count=COUNTS, lease_ms=DURATIONS, attempt=st.integers(1, 3), failed=st.sampled_from([0, 7]))
    def grants(self, token: int, first: int, count: int, lease_ms: int, attempt: int, failed: int) -> None:
        self.give(token, first, first + count, Held(token, attempt, lease_ms, self.now + lease_ms, failed))

    @precondition(lambda self: not self.cold)
    @rule(token=TOKENS, first=FIRSTS, count=COUNTS)
    def settles(self, token: int, first: int, count: int) -> None:
        holder = self.leases.holders.get(token)
        wanted = self.kept(first, first + count, token)
        if holder is None:
            assert not wanted, "who leases something is known"
            return
        assert self.told(self.leases.cut(holder, first, first + count)) == wanted
        for o, _ in wanted:
            del self.held[o]

    @precondition(lambda self: not self.cold and self.held)
    @rule(pick=FIRSTS, count=st.integers(1, 5), lease_ms=DURATIONS)
    def extends(self, pick: int, count: int, lease_ms: int) -> None:
        """From any leased offset on: often a part of a lease only."""
        first = sorted(self.held)[pick % len(self.held)]
        token = self.held[first].token
        holder = self.leases.holders[token]
        for start, stop, lease in self.leases.cut(holder, first, first + count):
            longer = replace(self.held[start], lease_ms=lease_ms, deadline_ms=self.now + lease_ms)
            self.leases.put(holder, start, stop, Lease(token, lease.attempt, lease_ms, self.now + lease_ms, lease.first_failed_ms))
            self.held.update(dict.fromkeys(range(start, stop), longer))

    @rule(first=FIRSTS, count=COUNTS)
    def revokes(self, first: int, count: int) -> None:
        wanted = self.kept(first, first + count)
        assert self.told(self.leases.cut_any(first, first + count)) == wanted
        for o, _ in wanted:
            del self.held[o]

    @precondition(lambda self: not self.cold)
    @rule(token=TOKENS, seldom=st.integers(0, 19))
    def extends_one_all_the_time(self, token: int, seldom: int) -> None:
        """Deadlines of leases that are gone must not pile up (I17)."""
        free = next(o for o in range(60, 200) if o not in self.held)
        for k in range(3 * STALE_DEADLINES_MIN if seldom == 7 else 3):
            self.give(token, free, free + 1, Held(token, 1, 10_000, self.now + 10_000 - k % 2, 0))
            self.leases.cut(self.holder(token), free, free + 1)
            del self.held[free]
            self.leases.trim()
        assert len(self.leases._line) + len(self.leases._heap) <= DEADLINES_KEPT_MAX

    # ------------------------------------------------------------ time

    @rule(ms=st.sampled_from([0, 1, 9, 10, 50, 200]))
    def time_passes(self, ms: int) -> None:
        self.now += ms
        if self.cold:
            self.goes_live()
        wanted = [(o, h) for o, h in sorted(self.held.items()) if h.deadline_ms <= self.now]
        gone = []
        for holder, pieces in self.leases.expired(self.now):
            assert all(lease.owner_token == holder.token for _, _, lease in pieces)
            gone += self.told(pieces)
            self.leases.drop_if_unused(holder)
        assert sorted(gone, key=lambda item: item[0]) == wanted, "those whose time is up, each once"
        for o, _ in wanted:
            del self.held[o]
        self.leases.trim()

    @rule()
    def restarts(self) -> None:
        """Only who, how often and for how long is kept."""
        kept = self.told(list(self.leases))
        self.leases = Leases()
        for o, h in kept:
            self.leases.put_restored(o, o + 1, Lease(h.token, h.attempt, h.lease_ms, 0, h.failed_ms))
            self.held[o] = replace(h, deadline_ms=0)
        self.attached.clear()
        self.cold = True

    @precondition(lambda self: self.cold)
    @rule()
    def goes_live(self) -> None:
        self.leases.activate(self.now)
        self.held = {o: replace(h, deadline_ms=self.now + h.lease_ms) for o, h in self.held.items()}
        self.cold = False

    # ------------------------------------------------------------ always

    @rule(first=FIRSTS, count=COUNTS, limit=st.integers(1, 3))
    def is_looked_at(self, first: int, count: int, limit: int) -> None:
        pieces = self.leases.pieces(first, first + count)
        assert self.told(pieces) == self.kept(first, first + count)
        assert self.leases.pieces(first, first + count, limit) == pieces[:limit]

    @invariant()
    def is_the_dict(self) -> None:
        leases = self.leases
        leases.check()
        assert leases.count == len(self.held)
        assert self.told(list(leases)) == sorted(self.held.items())
        assert {id: holder.token for id, holder in leases.by_consumer.items()} == self.attached
        if not self.cold:
            assert leases.next_deadline_ms() == min((h.deadline_ms for h in self.held.values()), default=None)
            for holder in leases.holders.values():
                for _, _, lease in holder.leases:
                    assert lease.left == sum(stop - start for start, stop, other in holder.leases if other is lease)


LeasesAgainstADict.TestCase.settings = effort(50)
TestLeasesAgainstADict = LeasesAgainstADict.TestCase
