"""The queue machine against a model that keeps one object per message, through everything a queue partition can go through, restarts included."""

from dataclasses import dataclass, field
from itertools import pairwise

import hypothesis.strategies as st
import msgspec
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core import filters
from headrace.core.queue import Consumer, Credit, Grant, QueueMachine
from headrace.model.specs import QueueSpec
from headrace.wire.control import Filter
from headrace.wire.frames import Settle
from headrace.wire.journal import Reason
from tests.property.effort import effort

WALL = 1_000_000
"""Wall clock at monotonic time 0."""
SIZE_MAX = 120
BLUE = filters.compile(Filter(op="eq", header="colour", value="blue"))

specs = st.builds(
    QueueSpec,
    lease_ms=st.sampled_from([100, 300]),
    ttl_ms=st.sampled_from([0, 0, 0, 400]),
    max_age_ms=st.sampled_from([0, 0, 0, 700]),
    max_deliveries=st.sampled_from([0, 0, 3]),
    backoff_ms=st.sampled_from([(), (0, 50), (30,)]),
    dead_letter=st.sampled_from(["", "graves"]),
    max_messages=st.sampled_from([0, 0, 9]),
    max_bytes=st.sampled_from([0, 0, 0, 900]),
    overflow=st.sampled_from(["refuse", "drop_oldest", "dead_letter_oldest"]),
    ordered_by_key=st.booleans(),
)
ALTERABLE = {
    "lease_ms": [100, 300],
    "ttl_ms": [0, 400, 100],
    "max_age_ms": [10**9, 700],
    "max_deliveries": [0, 3, 1],
    "backoff_ms": [(), (0, 50), (30,)],
    "dead_letter": ["", "graves", "other graves"],
    "max_messages": [0, 9, 4],
    "max_bytes": [0, 900],
    "overflow": ["refuse", "drop_oldest", "dead_letter_oldest"],
}
AGE_MS_FOR_EVER = 10**9


@dataclass
class Message:
    offset: int
    size: int
    priority: int
    wall: int
    expires: int
    key: bytes | None
    blue: bool
    state: str = "ready"
    attempts: int = 0
    failed: int = 0
    due: int = 0
    was_due: int = 0
    """When it last became ready after a delay; wall clock."""
    token: int = 0
    lease_ms: int = 0
    deadline: int = 0


@dataclass
class Party:
    """A consumer as the model sees it."""

    consumer: Consumer
    suspended: bool = False
    window: int = 0
    window_bytes: int = 0

    @property
    def hungry(self) -> bool:
        return not self.suspended and self.consumer.credit.messages > 0 and self.consumer.credit.bytes > 0


@dataclass
class Model:
    spec: QueueSpec
    messages: dict[int, Message] = field(default_factory=dict)
    end: int = 0
    graves: dict[int, tuple[int, int, Reason, str]] = field(default_factory=dict)
    """Dead letters and moved messages: offset to (attempts, first failure, reason, where to)."""
    reserved: list[tuple[int, int]] = field(default_factory=list)
    """(count, bytes) of what was admitted and not appended yet."""

    def of(self, *states: str) -> list[Message]:
        return [m for _, m in sorted(self.messages.items()) if m.state in states]

    def bury(self, m: Message, reason: Reason, *, drop: bool = False) -> None:
        del self.messages[m.offset]
        if self.spec.dead_letter and not drop:
            self.graves[m.offset] = (m.attempts, m.failed, reason, self.spec.dead_letter)

    def expiry(self, m: Message) -> int:
        own = m.expires or (m.wall + self.spec.ttl_ms if self.spec.ttl_ms else 1 << 60)
        return min(own, m.wall + self.spec.max_age_ms) if self.spec.max_age_ms else own

    def advance(self, wall: int) -> None:
        for m in self.of("delayed"):
            if m.due <= wall:
                m.state, m.due, m.was_due = "ready", 0, m.due
        for m in self.of("ready", "delayed"):
            if self.expiry(m) <= wall:
                self.bury(m, Reason.EXPIRED)

    def give_back(self, m: Message, wall: int, *, counted: bool = True, delay: int | None = 0) -> None:
        m.token = m.deadline = m.lease_ms = 0
        if counted:
            m.failed = m.failed or wall
            if self.spec.max_deliveries and m.attempts >= self.spec.max_deliveries:
                self.bury(m, Reason.MAX_DELIVERIES)
                return
        else:
            m.attempts -= 1
        if self.expiry(m) <= wall:
            self.bury(m, Reason.EXPIRED)
            return
        if delay is None:
            steps = self.spec.backoff_ms
            delay = steps[min(m.attempts, len(steps)) - 1] if steps else 0
        m.state, m.due = ("delayed", wall + delay) if delay else ("ready", 0)

    def blocked(self, m: Message) -> bool:
        """Whether an earlier message of its key must go first."""
        if not self.spec.ordered_by_key or m.key is None:
            return False
        earlier = [e for e in self.messages.values() if e.key == m.key and e.offset < m.offset]
        return any(e.state in ("ready", "leased") or (e.state == "delayed" and e.attempts) for e in earlier)

    def make_room(self, base: int) -> None:
        if self.spec.overflow == "refuse":
            return
        drop = self.spec.overflow == "drop_oldest"
        if self.spec.max_messages:
            below = max(base, self.end - self.spec.max_messages)
            excess = len(self.messages) - self.spec.max_messages
            for m in [m for m in self.of("ready") + self.of("delayed") if m.offset < below][: max(0, excess)]:
                self.bury(m, Reason.OVERFLOW, drop=drop)
        if self.spec.max_bytes:
            excess = sum(m.size for m in self.messages.values()) - self.spec.max_bytes
            below = base
            while below < self.end and sum(m.size for o, m in self.messages.items() if o >= below and o >= base) > self.spec.max_bytes:
                below += 1
            for m in [m for m in self.of("ready") + self.of("delayed") if m.offset < below]:
                if excess <= 0:
                    break
                excess -= m.size
                self.bury(m, Reason.OVERFLOW, drop=drop)


class QueueModel(RuleBasedStateMachine):
    @initialize(spec=specs, alterable=st.booleans(), credits=st.lists(st.sampled_from([2, 5, 20]), min_size=1, max_size=3))
    def begin(self, spec: QueueSpec, alterable: bool, credits: list[int]) -> None:
        # without any limit on age append times are kept roughly, and a limit that comes later is as rough: not what the model tells
        self.alterable = alterable
        if alterable and not spec.max_age_ms:
            spec = msgspec.structs.replace(spec, max_age_ms=AGE_MS_FOR_EVER)
        self.now = self.skew = 0
        self.machine = QueueMachine(spec)
        self.model = Model(spec)
        self.parties: dict[int, Party] = {}
        self.next_id = 1
        self.appended = 0
        """Append times never fall back."""
        self.history: list[tuple[object, ...]] = []
        self.checkpoints: list[tuple[int, bytes]] = [(0, self.machine.snapshot())]
        self.keys: dict[int, bytes | None] = {}
        self.colours: dict[int, bool] = {}
        self.gated: int | str | None = "open"
        self.generation = 0
        self.paused = False
        self.arrived: dict[int, tuple[int, int, Reason, str]] = {}
        self.pending: dict[int, object] = {}
        self.put(6, 40, 0, 0, 0, b"a", False)
        for token, credit in enumerate(credits, 1):
            self.join(credit, 1 << 40, 0, False, False, token, True)

    @property
    def wall(self) -> int:
        return WALL + self.now + self.skew

    # ------------------------------------------------------------ publishing

    @rule(
        count=st.integers(1, 8),
        size=st.sampled_from([1, 40, SIZE_MAX - 1]),
        delay=st.sampled_from([0, 0, 60]),
        ttl=st.sampled_from([0, 0, 0, 200]),
        priority=st.sampled_from([0, 0, 0, 3, 9]),
        key=st.sampled_from([None, b"a", b"b"]),
        blue=st.booleans(),
    )
    def publish(self, count: int, size: int, delay: int, ttl: int, priority: int, key: bytes | None, blue: bool) -> None:
        self.put(count, size, delay, ttl, priority, key, blue)

    def put(self, count: int, size: int, delay: int, ttl: int, priority: int, key: bytes | None, blue: bool) -> None:
        nbytes = size * count + count // 2
        if not self.admitted(count, nbytes):
            return
        self.append(count, nbytes, delay, ttl, priority, key, blue)

    def admitted(self, count: int, nbytes: int) -> bool:
        model, spec = self.model, self.model.spec
        refusal = self.machine.admit(count, nbytes, self.wall)
        held = len(model.messages) + sum(n for n, _ in model.reserved)
        held_bytes = sum(m.size for m in model.messages.values()) + sum(n for _, n in model.reserved)
        full = (spec.max_messages and held + count > spec.max_messages) or (spec.max_bytes and held_bytes + nbytes > spec.max_bytes)
        assert (refusal is not None) == bool(full and spec.overflow == "refuse")
        return refusal is None

    @rule(count=st.integers(1, 4), size=st.sampled_from([1, 40]))
    def admit(self, count: int, size: int) -> None:
        """A publish that is not appended at once."""
        if self.admitted(count, count * size):
            self.model.reserved.append((count, count * size))

    @precondition(lambda self: self.model.spec.overflow == "refuse" and self.model.spec.max_messages)
    @rule()
    def admit_until_it_is_full(self) -> None:
        while self.admitted(1, 1):
            self.model.reserved.append((1, 1))

    @precondition(lambda self: self.model.reserved)
    @rule(appended=st.booleans(), which=st.integers(0, 5))
    def what_was_admitted_is_appended_or_never_will_be(self, appended: bool, which: int) -> None:
        count, nbytes = self.model.reserved.pop(which % len(self.model.reserved))
        if appended:
            self.append(count, nbytes, 0, 0, 0, b"a", False)
        else:
            self.machine.unreserve(count, nbytes)

    def append(self, count: int, nbytes: int, delay: int, ttl: int, priority: int, key: bytes | None, blue: bool) -> None:
        machine, model = self.machine, self.model
        base = model.end
        args = {
            "not_before_ms": self.wall + delay if delay else 0,
            "expires_at_ms": self.wall + ttl if ttl else 0,
            "priority": priority,
            "wall_ms": self.wall,
        }
        self.take_journal()
        machine.enqueue(base, count, nbytes, now_ms=self.now, **args)
        self.history.append(("records", base, count, nbytes, args))
        self.appended = max(self.appended, self.wall)
        for k in range(count):
            each = (k + 1) * nbytes // count - k * nbytes // count
            m = Message(base + k, each, priority, self.appended, args["expires_at_ms"], key if k % 2 else None, blue or k % 3 == 0)
            if delay:
                m.state, m.due = "delayed", self.wall + delay
            model.messages[m.offset] = m
            self.keys[m.offset], self.colours[m.offset] = m.key, m.blue
        model.end += count
        model.make_room(base)

    # ------------------------------------------------------------ consumers

    @precondition(lambda self: len(self.parties) < 4)
    @rule(
        credit=st.sampled_from([2, 5, 20]),
        nbytes=st.sampled_from([1 << 40, 60]),
        lease_ms=st.sampled_from([0, 150]),
        auto_ack=st.sampled_from([False, False, False, False, True]),
        blue_only=st.sampled_from([False, False, True]),
        token=st.integers(1, 4),
        replenish=st.sampled_from([True, True, False]),
    )
    def attach(self, credit: int, nbytes: int, lease_ms: int, auto_ack: bool, blue_only: bool, token: int, replenish: bool) -> None:
        self.join(credit, nbytes, lease_ms, auto_ack, blue_only, token, replenish)

    def join(self, credit: int, nbytes: int, lease_ms: int, auto_ack: bool, blue_only: bool, token: int, replenish: bool) -> None:
        for id in [id for id, p in self.parties.items() if p.consumer.owner_token == token]:
            del self.parties[id]
            if self.gated == id:
                self.gated = None
        consumer = Consumer(
            self.next_id,
            owner_token=token,
            credit=Credit(credit, nbytes),
            lease_ms=lease_ms,
            auto_ack=auto_ack,
            filter=BLUE if blue_only else None,
            replenish=replenish,
        )
        self.parties[self.next_id] = Party(consumer, False, credit, nbytes)
        self.machine.attach(consumer)
        self.next_id += 1

    @rule(priorities=st.lists(st.sampled_from([0, 3, 9]), min_size=2, max_size=3), credit=st.integers(1, 2), token=st.integers(1, 4))
    def somebody_picky_comes(self, priorities: list[int], credit: int, token: int) -> None:
        for priority in priorities:
            self.put(2, 40, 0, 0, priority, None, True)
        self.join(credit, 1 << 40, 0, False, True, token, True)
        self.hand_out(99)

    def party(self, pick: int) -> Party | None:
        ids = sorted(self.parties)
        return self.parties[ids[pick % len(ids)]] if ids else None

    def leased_by(self, party: Party) -> list[Message]:
        return [m for m in self.model.of("leased") if m.token == party.consumer.owner_token]

    @rule(pick=st.integers(0, 3), messages=st.integers(1, 6), nbytes=st.sampled_from([0, 100]))
    def pull(self, pick: int, messages: int, nbytes: int) -> None:
        party = self.party(pick)
        if party is not None:
            party.consumer.credit.messages += messages
            party.consumer.credit.bytes += nbytes
            party.window += messages
            party.window_bytes += nbytes

    @rule(
        what=st.sampled_from(["detach", "suspend", "resume", "resume", "go on", "take back"]),
        pick=st.integers(0, 3),
        chosen=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 6)), max_size=3),
    )
    def trouble(self, what: str, pick: int, chosen: list[tuple[int, int]]) -> None:
        party = self.party(pick)
        if party is None:
            return
        id, mine = party.consumer.id, self.leased_by(party)
        lowest = mine[0].offset if mine else 0
        chosen = [(lowest + skip, count) for skip, count in chosen]
        inside = [m for m in mine if any(first <= m.offset < first + count for first, count in chosen)]
        if what == "detach":
            self.machine.detach(id, self.now, self.wall, chosen)
            for m in mine:
                self.model.give_back(m, self.wall, counted=m not in inside)
            del self.parties[id]
            if self.gated == id:
                self.gated = None
        elif what == "suspend":
            self.machine.suspend(id)
            party.suspended = True
        elif what == "go on":
            self.machine.resume(id, None, self.now, self.wall)
            party.suspended = False
        elif what == "resume":
            self.machine.resume(id, chosen, self.now, self.wall)
            party.suspended = False
            for m in mine:
                if m not in inside:
                    self.model.give_back(m, self.wall, counted=False)
        else:
            assert self.machine.take_back(id, chosen, self.now, self.wall) == len(inside)
            for m in inside:
                self.model.give_back(m, self.wall, counted=False)

    # ------------------------------------------------------------ granting

    @rule(open_at_most=st.sampled_from([99, 99, 99, 0, 1, 3]))
    def grant(self, open_at_most: int) -> None:
        self.hand_out(open_at_most)

    @rule(pick=st.integers(0, 3), every=st.integers(1, 3), delay=st.sampled_from([None, 0, 30]))
    def hand_out_retry_and_hand_out_again(self, pick: int, every: int, delay: int | None) -> None:
        self.hand_out(99)
        party = self.party(pick)
        if party is not None:
            mine = [m.offset for m in self.leased_by(party)]
            self.settling(party, Settle.RETRY, [(offset, 1) for offset in mine[::every]], False, delay, False)
            self.hand_out(99)
            self.settling(party, Settle.ACK, [(offset, 1) for offset in mine[1::2]], False, None, False)

    def hand_out(self, open_at_most: int) -> None:
        self.machine.tick(self.now, self.wall)
        self.tick_model()
        all_open = self.open_some(open_at_most)
        before = {id: p.consumer.credit.messages for id, p in self.parties.items()}
        hungry = [p for p in self.parties.values() if p.hungry]
        grantable_before = [m for m in self.model.of("ready") if not self.model.blocked(m)]
        grants = self.machine.grant(self.now, self.wall)
        if self.paused or self.gated is None:
            assert not grants
            return
        granted: dict[int, list[tuple[int, int]]] = {}
        for g in grants:
            granted.setdefault(g.consumer_id, []).extend((-self.model.messages[o].priority, o) for o in range(g.first, g.first + g.count))
            self.apply(g)
        if not all_open:
            return
        if not self.model.spec.ordered_by_key:
            for id, took in granted.items():
                only_blue = self.parties[id].consumer.filter is not None
                passed_over = [(-m.priority, m.offset) for m in self.model.of("ready") if m.blue or not only_blue]
                assert not passed_over or max(took) < min(passed_over), "given something before what goes first"
        allowed = [p for p in hungry if self.gated in ("open", p.consumer.id)]
        plain = not self.model.spec.ordered_by_key and not any(p.consumer.filter for p in self.parties.values())
        if plain and grants:
            taken = sorted(o for g in grants for o in range(g.first, g.first + g.count))
            best = sorted(grantable_before, key=lambda m: (-m.priority, m.offset))[: len(taken)]
            assert taken == sorted(m.offset for m in best), "not the highest priority, oldest first"
            if all(p.consumer.credit.bytes > 0 for p in allowed):
                shares = {p.consumer.id: before[p.consumer.id] - p.consumer.credit.messages for p in allowed}
                sated = [shares[p.consumer.id] for p in allowed if not p.hungry]
                open_shares = [shares[p.consumer.id] for p in allowed if p.hungry]
                assert not open_shares or max(open_shares) - min(open_shares) <= 1, "unequal shares"
                assert not open_shares or all(s <= max(open_shares) + 1 for s in sated), "a sated one got more than its share"
        for p in allowed:
            if p.hungry:
                left = [m for m in self.model.of("ready") if not self.model.blocked(m) and (p.consumer.filter is None or m.blue)]
                if self.model.spec.ordered_by_key:
                    # a line moved up during this grant (auto-ack) may wait for the next one
                    left = [m for m in left if m in grantable_before]
                assert not left, "ready messages and credit, but no grant"

    def apply(self, g: Grant) -> None:
        party = self.parties[g.consumer_id]
        consumer = party.consumer
        assert not party.suspended
        assert self.gated in ("open", g.consumer_id)
        for offset in range(g.first, g.first + g.count):
            m = self.model.messages[offset]
            assert m.state == "ready", f"I10: {offset} granted while {m.state}"
            assert not self.model.blocked(m), "key order"
            assert consumer.filter is None or m.blue
            assert consumer.credit.bytes > -SIZE_MAX, "more than one message beyond the credit"
            m.attempts += 1
            assert g.attempt == m.attempts
            assert g.auto_ack == consumer.auto_ack
            if g.auto_ack or not consumer.replenish:
                party.window -= 1
                party.window_bytes -= m.size
            if g.auto_ack:
                del self.model.messages[offset]
            else:
                m.state, m.token = "leased", consumer.owner_token
                m.lease_ms = consumer.lease_ms or self.model.spec.lease_ms
                m.deadline = self.now + m.lease_ms

    def open_some(self, at_most: int) -> bool:
        """Opens up to that many messages; says whether nothing is left to open."""
        while (wanted := self.machine.wants()) is not None:
            first, count = wanted[0], min(wanted[1], at_most)
            if not count:
                return False
            at_most -= count
            self.machine.opened([(o, self.keys[o], (("colour", b"blue" if self.colours[o] else b"red"),)) for o in range(first, first + count)])
        return True

    # ------------------------------------------------------------ settling

    @rule(
        pick=st.integers(0, 3),
        action=st.sampled_from(list(Settle)),
        ranges=st.lists(st.tuples(st.integers(0, 70) | st.just((1 << 64) - 1), st.integers(0, 12) | st.just((1 << 32) - 1)), min_size=1, max_size=4),
        up_to=st.sampled_from([False, False, True]),
        delay=st.sampled_from([None, 0, 40]),
        drop=st.booleans(),
    )
    def settle(self, pick: int, action: Settle, ranges: list[tuple[int, int]], up_to: bool, delay: int | None, drop: bool) -> None:
        party = self.party(pick)
        if party is None:
            assert self.machine.settle(99, action, ranges, now_ms=self.now, wall_ms=self.wall).stale == ranges
            return
        self.settling(party, action, ranges, up_to, delay, drop)

    @rule(pick=st.integers(0, 3), action=st.sampled_from([Settle.ACK, Settle.ACK, *Settle]), skip=st.integers(0, 4), count=st.integers(1, 6))
    def settle_held(self, pick: int, action: Settle, skip: int, count: int) -> None:
        party = self.party(pick)
        if party is not None:
            self.settling(party, action, [(m.offset, 1) for m in self.leased_by(party)[skip : skip + count]], False, None, False)

    def settling(self, party: Party, action: Settle, ranges: list[tuple[int, int]], up_to: bool, delay: int | None, drop: bool) -> None:
        answer = self.machine.settle(party.consumer.id, action, ranges, up_to=up_to, delay_ms=delay, drop=drop, now_ms=self.now, wall_ms=self.wall)
        count, stale_counts = 0, 0
        ended: list[int] = []
        for first, n in ranges:
            mine = [m for m in self.leased_by(party) if (up_to or m.offset >= first) and m.offset < first + n]
            count += len(mine)
            stale_counts += (0 if mine else n) if up_to else n - len(mine)
            for m in mine:
                ended.append(m.offset)
                if action == Settle.ACK:
                    del self.model.messages[m.offset]
                elif action == Settle.RETRY:
                    self.model.give_back(m, self.wall, delay=delay)
                else:
                    m.failed = m.failed or self.wall
                    self.model.bury(m, Reason.REJECTED, drop=drop)
        assert answer.count == count
        assert sum(n for _, n in answer.stale) == stale_counts
        if not up_to and all(a + n <= b for (a, n), (b, _) in pairwise(sorted(ranges))):
            assert not any(first <= o < first + n for first, n in answer.stale for o in ended), "told to be stale, and yet settled"

    @rule(
        pick=st.integers(0, 3),
        ranges=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), min_size=1, max_size=3),
        lease_ms=st.sampled_from([0, 500]),
    )
    def extend(self, pick: int, ranges: list[tuple[int, int]], lease_ms: int) -> None:
        party = self.party(pick)
        if party is None:
            return
        answer = self.machine.extend(party.consumer.id, ranges, lease_ms, self.now)
        count = 0
        for first, n in ranges:
            for m in self.leased_by(party):
                if first <= m.offset < first + n:
                    m.lease_ms = lease_ms or party.consumer.lease_ms or self.model.spec.lease_ms
                    m.deadline = self.now + m.lease_ms
                    count += 1
        assert answer.count == count

    # ------------------------------------------------------------ time

    @rule(ms=st.sampled_from([0, 1, 20, 100, 400]))
    def pass_time(self, ms: int) -> None:
        deadline = self.machine.next_deadline_ms(self.now, self.wall)
        self.now += ms
        expected = [m.deadline for m in self.model.of("leased")] + [m.due - self.wall + self.now for m in self.model.of("delayed")]
        expected += [self.model.expiry(m) - self.wall + self.now for m in self.model.of("ready", "delayed") if self.model.expiry(m) < 1 << 60]
        if expected:
            assert deadline is not None
            assert deadline <= max(min(expected), self.now - ms), "would sleep past a deadline"
        self.tick()

    @rule(ms=st.sampled_from([-300, -50, 50]))
    def the_clock_is_set(self, ms: int) -> None:
        self.skew = max(-WALL // 2, self.skew + ms)

    def tick(self) -> None:
        self.machine.tick(self.now, self.wall)
        self.tick_model()

    def tick_model(self) -> None:
        self.model.advance(self.wall)
        for m in self.model.of("leased"):
            if m.deadline <= self.now:
                self.model.give_back(m, self.wall)

    # ------------------------------------------------------------ operators

    @precondition(lambda self: self.model.end > 20)
    @rule(leased=st.booleans())
    def purge(self, leased: bool) -> None:
        gone = self.model.of("ready", "delayed", *(["leased"] if leased else []))
        assert self.machine.purge(leased, now_ms=self.now, wall_ms=self.wall) == len(gone)
        for m in gone:
            del self.model.messages[m.offset]

    @rule(first=st.integers(0, 60), count=st.integers(1, 3))
    def drop_unreadable(self, first: int, count: int) -> None:
        gone = [m for m in self.model.messages.values() if first <= m.offset < first + count]
        assert self.machine.drop_unreadable(first, count, self.now, self.wall) == len(gone)
        for m in gone:
            del self.model.messages[m.offset]

    @rule(paused=st.sampled_from([False, False, True]))
    def pause(self, paused: bool) -> None:
        self.machine.pause(paused)
        self.paused = paused

    @rule(pick=st.integers(0, 5))
    def gate(self, pick: int) -> None:
        self.generation += 1
        assert not self.machine.gate(None, self.generation - 2) or self.gated == "open"
        if pick > 2:
            self.machine.ungate()
            self.gated = "open"
            return
        party = self.party(pick)
        self.gated = party.consumer.id if party else None
        assert self.machine.gate(self.gated, self.generation)

    @rule(first=st.integers(0, 60), count=st.integers(1, 10))
    def move(self, first: int, count: int) -> None:
        moved = [m for m in self.model.of("ready") if first <= m.offset < first + count]
        number = self.machine.start_transfer("elsewhere", Reason.MOVED, [(first, count)], self.wall)
        assert bool(number) == bool(moved)
        for m in moved:
            del self.model.messages[m.offset]
            self.model.graves[m.offset] = (m.attempts, m.failed, Reason.MOVED, "elsewhere")

    @rule(done=st.booleans())
    def carry_transfers(self, done: bool) -> None:
        for transfer in self.machine.take_transfers():
            self.pending[transfer.number] = transfer
            for taken in transfer.ranges:
                for offset in range(taken.first, taken.first + taken.count):
                    self.arrived[offset] = (taken.attempts, taken.first_failed_ms, transfer.reason, transfer.target)
        if done and self.pending:
            number = min(self.pending)
            del self.pending[number]
            assert self.machine.transfer_done(number)
            assert not self.machine.transfer_done(number)

    @precondition(lambda self: self.alterable)
    @rule(data=st.data(), field=st.sampled_from(sorted(ALTERABLE)))
    def is_altered(self, data: st.DataObject, field: str) -> None:
        self.model.spec = msgspec.structs.replace(self.model.spec, **{field: data.draw(st.sampled_from(ALTERABLE[field]))})
        self.machine.configure(self.model.spec)
        self.tick()

    @rule(state=st.sampled_from(["ready", "leased", "delayed", "any", "dead"]), after=st.integers(-1, 40), limit=st.integers(0, 12))
    def is_looked_at(self, state: str, after: int, limit: int) -> None:
        seen = self.machine.peek(state, after, limit, now_ms=self.now, wall_ms=self.wall)
        wanted = [m for m in self.model.of(*(["ready", "leased", "delayed"] if state == "any" else [state])) if m.offset > after][:limit]
        assert [(p.offset, p.state, p.attempts, p.due_ms) for p in seen] == [(m.offset, m.state, m.attempts, m.due) for m in wanted]
        assert [p.lease_until_ms for p in seen] == [m.deadline + WALL + self.skew if m.state == "leased" else 0 for m in wanted]

    # ------------------------------------------------------------ restarts

    def take_journal(self) -> None:
        self.history += [("entry", kind, payload) for kind, payload in self.machine.take_journal()]

    @rule()
    def checkpoint(self) -> None:
        self.take_journal()
        self.checkpoints.append((len(self.history), self.machine.snapshot()))

    def rebuild(self, pick: int, overlap: int) -> QueueMachine:
        """A machine from a checkpoint and the entries after it, and some before it once more."""
        # That a delay was over is in no journal: where the clock fell back before that time a rebuilt machine waits for it again, unless a checkpoint
        # knows better. Which of the two it is does not matter to anybody, and is not modelled.
        over = max((m.was_due for m in self.model.of("ready")), default=0)
        if over > self.wall:
            self.skew += over - self.wall
            self.tick()
        self.take_journal()
        at, data = self.checkpoints[pick % len(self.checkpoints)]
        machine = QueueMachine(self.model.spec)
        machine.restore(1, data)
        for event in self.history[max(0, at - overlap) :]:
            if event[0] == "records":
                machine.enqueue(event[1], event[2], event[3], now_ms=0, **event[4])
            else:
                machine.replay(event[1], event[2])
        machine.check()
        return machine

    @rule(pick=st.integers(0, 20), overlap=st.sampled_from([0, 0, 3, 100]))
    def snapshot_and_tail_are_replay(self, pick: int, overlap: int) -> None:
        self.tick()
        other = self.rebuild(pick, overlap)
        other.tick(0, self.wall)
        assert not other.take_journal()
        assert other.snapshot() == self.machine.snapshot()

    @rule(pick=st.integers(0, 20), overlap=st.sampled_from([0, 2]))
    def restart(self, pick: int, overlap: int) -> None:
        self.machine = self.rebuild(pick, overlap)
        self.parties.clear()
        self.pending.clear()
        self.model.reserved.clear()
        self.gated, self.generation, self.paused = "open", 0, False
        self.machine.next_deadline_ms(self.now, self.wall)
        for m in self.model.of("leased"):
            m.deadline = self.now + m.lease_ms
        self.tick()
        self.carry_transfers(False)
        for token in (1, 2):
            self.join(20, 1 << 40, 0, False, False, token, True)

    # ------------------------------------------------------------ always

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "machine"):
            return
        machine, model = self.machine, self.model
        machine.check()
        seen = {p.offset: p for p in machine.peek("any", -1, 10_000)}
        assert sorted(seen) == sorted(model.messages)
        for m in model.messages.values():
            p = seen[m.offset]
            assert (p.state, p.attempts, p.lease_until_ms, p.due_ms) == (m.state, m.attempts, m.deadline, m.due)
        assert machine.end == model.end
        assert machine.bytes == sum(m.size for m in model.messages.values())
        for party in self.parties.values():
            leased = self.leased_by(party) if party.consumer.replenish else []
            assert party.consumer.credit.messages == party.window - len(leased)
            assert party.consumer.credit.bytes == party.window_bytes - sum(m.size for m in leased)
        needed = [m.offset for m in model.messages.values()] + [t.first for x in machine.pending_transfers() for t in x.ranges]
        assert machine.floor == min(needed, default=machine.end)
        self.carry_transfers(False)
        assert self.arrived == model.graves


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = effort(60, steps=40)
