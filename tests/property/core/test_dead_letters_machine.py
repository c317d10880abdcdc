"""Messages that travel between queues (dead letters, redrives, moves) against a row for each: it is in one place at any time, whatever crashes.

Three queues: ``work`` buries in ``graves``, graves are redriven to ``work``, both are moved to ``elsewhere``. What the outbox of a broker does
is done here by hand: publish what a transfer says under its numbers, batched at will, and report it done; a crash repeats it.
"""

from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.dedup import Duplicate, Partial, ProducerTable
from headrace.core.queue import Consumer, Credit, QueueMachine, Transfer
from headrace.model.specs import QueueSpec
from headrace.wire.frames import Settle
from headrace.wire.journal import Reason
from tests.property.effort import effort

NAMES = ("work", "graves", "elsewhere")
LEASE_MS = 100
WALL = 1_000_000
PICKS = st.lists(st.booleans(), min_size=1, max_size=6)


@dataclass
class Row:
    """One message at one offset of one queue. ``state``: ready, leased, travelling, arrived (elsewhere) or ended."""

    id: int
    expires: int
    state: str = "ready"
    attempts: int = 0
    failed: int = 0
    deadline: int = 0
    reason: Reason = Reason.NONE
    target: str = ""

    def copy(self) -> "Row":
        return Row(**vars(self))


@dataclass
class Place:
    """A queue, what its disk has (``log``, ``history``, ``durable``), and the naive book ``rows`` by offset."""

    name: str
    spec: QueueSpec
    machine: QueueMachine = field(init=False)
    table: ProducerTable = field(init=False)
    rows: dict[int, Row] = field(default_factory=dict)
    durable: dict[int, Row] = field(default_factory=dict)
    history: list[tuple[Any, ...]] = field(default_factory=list)
    checkpoint: tuple[int, bytes, bytes] | None = None
    arrived: dict[tuple[str, int], int] = field(default_factory=dict)
    """(from where, number) to the offset it was given."""
    consumers: int = 0

    def begin(self) -> None:
        self.machine, self.table = QueueMachine(self.spec), ProducerTable()

    def commit(self) -> None:
        self.history += [("entry", kind, payload) for kind, payload in self.machine.take_journal()]
        self.durable = {offset: row.copy() for offset, row in self.rows.items()}

    def of(self, *states: str) -> list[tuple[int, Row]]:
        return [(offset, row) for offset, row in sorted(self.rows.items()) if row.state in states]


class DeadLetters(RuleBasedStateMachine):
    @initialize(max_deliveries=st.sampled_from([0, 1, 2]), ttl_ms=st.sampled_from([0, 0, 250]), room=st.sampled_from([0, 0, 5]))
    def begin(self, max_deliveries: int, ttl_ms: int, room: int) -> None:
        self.now = 0
        self.ids = 0
        self.places = {
            "work": Place(
                "work", QueueSpec(dead_letter="graves", max_deliveries=max_deliveries, ttl_ms=ttl_ms, lease_ms=LEASE_MS, backoff_ms=(), partitions=1)
            ),
            "graves": Place("graves", QueueSpec(lease_ms=LEASE_MS, max_messages=room)),
            "elsewhere": Place("elsewhere", QueueSpec(lease_ms=LEASE_MS)),
        }
        for place in self.places.values():
            place.begin()
            self.consume(place)
        self.publish(5)

    @property
    def wall(self) -> int:
        return WALL + self.now

    def consume(self, place: Place) -> None:
        place.consumers += 1
        place.machine.attach(Consumer(place.consumers, owner_token=7, credit=Credit(4)))

    def store(self, place: Place, ids: list[int], producer: int, first: int, origin: str = "") -> None:
        """Appended and committed in one go."""
        base = len(place.rows)
        assert place.machine.end == base
        place.commit()
        place.machine.enqueue(base, len(ids), 10 * len(ids), wall_ms=self.wall, now_ms=self.now)
        place.table.stored(producer, 0, first, len(ids), base)
        place.history.append(("records", base, len(ids), self.wall, producer, first))
        for k, id in enumerate(ids):
            expires = self.wall + place.spec.ttl_ms if place.spec.ttl_ms else 1 << 60
            place.rows[base + k] = Row(id, expires)
            place.durable[base + k] = Row(id, expires)
            if origin:
                assert (origin, first + k) not in place.arrived, "stored twice"
                place.arrived[origin, first + k] = base + k

    @rule(count=st.integers(1, 5))
    def publish(self, count: int) -> None:
        ids = list(range(self.ids, self.ids + count))
        self.ids += count
        self.store(self.places["work"], ids, -1, 0)

    # ------------------------------------------------------------ what becomes of messages

    def bury(self, place: Place, row: Row, reason: Reason) -> None:
        row.deadline = 0
        if place.spec.dead_letter:
            row.state, row.reason, row.target = "travelling", reason, place.spec.dead_letter
        else:
            row.state = "ended"

    def give_back(self, place: Place, row: Row) -> None:
        row.failed = row.failed or self.wall
        if place.spec.max_deliveries and row.attempts >= place.spec.max_deliveries:
            self.bury(place, row, Reason.MAX_DELIVERIES)
        elif row.expires <= self.wall:
            self.bury(place, row, Reason.EXPIRED)
        else:
            row.state, row.deadline = "ready", 0

    @rule(name=st.sampled_from(["work", "work", "graves", "elsewhere"]))
    def deliver(self, name: str) -> None:
        place = self.places[name]
        place.machine.tick(self.now, self.wall)
        self.tick_rows(place)
        for grant in place.machine.grant(self.now, self.wall):
            for offset in range(grant.first, grant.first + grant.count):
                row = place.rows[offset]
                assert row.state == "ready"
                row.state, row.attempts, row.deadline = "leased", row.attempts + 1, self.now + LEASE_MS
                assert row.attempts == grant.attempt

    @rule(name=st.sampled_from(["work", "work", "graves"]), action=st.sampled_from([Settle.ACK, Settle.RETRY, Settle.REJECT]), picks=PICKS)
    def settle(self, name: str, action: Settle, picks: list[bool]) -> None:
        place = self.places[name]
        chosen = [(offset, row) for offset, row in place.of("leased") if picks[offset % len(picks)]]
        answer = place.machine.settle(place.consumers, action, [(o, 1) for o, _ in chosen], delay_ms=0, now_ms=self.now, wall_ms=self.wall)
        assert answer.count == len(chosen)
        for _, row in chosen:
            if action == Settle.ACK:
                row.state = "ended"
            elif action == Settle.REJECT:
                row.failed = row.failed or self.wall
                self.bury(place, row, Reason.REJECTED)
            else:
                self.give_back(place, row)

    @rule(name=st.sampled_from(["work", "work", "graves"]), picks=PICKS)
    def deliver_and_reject(self, name: str, picks: list[bool]) -> None:
        self.deliver(name)
        self.settle(name, Settle.REJECT, picks)

    @rule(ms=st.sampled_from([1, 40, LEASE_MS]))
    def time_passes(self, ms: int) -> None:
        self.now += ms
        for place in self.places.values():
            place.machine.tick(self.now, self.wall)
            self.tick_rows(place)

    def tick_rows(self, place: Place) -> None:
        for _, row in place.of("ready"):
            if row.expires <= self.wall:
                self.bury(place, row, Reason.EXPIRED)
        for _, row in place.of("leased"):
            if row.deadline <= self.now:
                self.give_back(place, row)

    @rule(way=st.sampled_from([("graves", "work"), ("graves", "work"), ("work", "elsewhere"), ("graves", "elsewhere")]), picks=PICKS)
    def sent_elsewhere(self, way: tuple[str, str], picks: list[bool]) -> None:
        """Redrive and move, of those that a filter picks."""
        source, target = self.places[way[0]], way[1]
        reason = Reason.REDRIVEN if target == "work" else Reason.MOVED
        seen = [p.offset for p in source.machine.peek("ready", limit=1000)]
        assert seen == [offset for offset, _ in source.of("ready")]
        chosen = [offset for offset in seen if picks[source.rows[offset].id % len(picks)]]
        number = source.machine.start_transfer(target, reason, [(offset, 1) for offset in chosen], self.wall)
        assert bool(number) == bool(chosen)
        for offset in chosen:
            row = source.rows[offset]
            row.state, row.reason, row.target = "travelling", reason, target

    # ------------------------------------------------------------ carrying

    def way(self, name: str) -> list[Transfer]:
        place = self.places[name]
        place.machine.take_transfers()
        place.commit()
        return place.machine.pending_transfers()

    @rule(
        name=st.sampled_from(NAMES[:2]),
        sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
        stop_after=st.sampled_from([99, 99, 0, 1, 2]),
        heard=st.sampled_from([True, True, False]),
    )
    def carry(self, name: str, sizes: list[int], stop_after: int, heard: bool) -> None:
        """The oldest transfer is published in batches of any size; it may break off, or the answer to the last may be lost."""
        for transfer in self.way(name)[:1]:
            source, target = self.places[name], self.places[transfer.target]
            ids = self.checked(source, transfer)
            at = turn = 0
            while at < len(ids):
                size = sizes[turn % len(sizes)]
                if turn == stop_after or not self.take_in(target, name, ids[at : at + size], transfer.number + at):
                    return
                at, turn = at + size, turn + 1
            if heard:
                assert source.machine.transfer_done(transfer.number)
                assert not source.machine.transfer_done(transfer.number)
                for taken in transfer.ranges:
                    for offset in range(taken.first, taken.first + taken.count):
                        source.rows[offset].state = "arrived"

    def checked(self, source: Place, transfer: Transfer) -> list[int]:
        """Which messages travel; what the transfer says of each is what its row says."""
        ids = []
        for taken in transfer.ranges:
            assert source.machine.floor <= taken.first, "its payload is still needed"
            for offset in range(taken.first, taken.first + taken.count):
                row = source.rows[offset]
                assert row.state == "travelling"
                assert (taken.attempts, taken.first_failed_ms) == (row.attempts, row.failed)
                assert (transfer.reason, transfer.target) == (row.reason, row.target)
                ids.append(row.id)
        assert transfer.count == len(ids)
        return ids

    def take_in(self, target: Place, origin: str, ids: list[int], first: int) -> bool:
        """One batch arrives as at any partition: what its producer stored before is not stored again."""
        producer = NAMES.index(origin)
        verdict = target.table.check(producer, 0, first, len(ids))
        if isinstance(verdict, Partial):
            return all(self.take_in(target, origin, [id], first + k) for k, id in enumerate(ids))
        if isinstance(verdict, Duplicate):
            assert [target.rows[verdict.base_offset + k].id for k in range(len(ids))] == ids, "taken for something else"
            return True
        assert verdict is None
        if target.machine.admit(len(ids), 10 * len(ids), self.wall) is not None:
            assert target.spec.max_messages
            return False
        self.store(target, ids, producer, first, origin)
        return True

    # ------------------------------------------------------------ restarts

    @rule(name=st.sampled_from(NAMES))
    def commit(self, name: str) -> None:
        self.places[name].commit()

    @rule(name=st.sampled_from(NAMES))
    def write_checkpoint(self, name: str) -> None:
        place = self.places[name]
        place.commit()
        place.checkpoint = (len(place.history), place.machine.snapshot(), place.table.snapshot())

    @rule(name=st.sampled_from(["work", "work", *NAMES]))
    def crash(self, name: str) -> None:
        """What was not committed never happened."""
        place = self.places[name]
        place.begin()
        at = 0
        if place.checkpoint is not None:
            at, data, producers = place.checkpoint
            place.machine.restore(1, data)
            place.table.restore(1, producers)
        for event in place.history[at:]:
            if event[0] == "entry":
                place.machine.replay(event[1], event[2])
            else:
                _, base, count, wall, producer, first = event
                place.machine.enqueue(base, count, 10 * count, wall_ms=wall, now_ms=0)
                place.table.stored(producer, 0, first, count, base)
        place.rows = {offset: row.copy() for offset, row in place.durable.items()}
        place.machine.next_deadline_ms(self.now, self.wall)
        for _, row in place.of("leased"):
            row.deadline = self.now + LEASE_MS
        # token 7 comes back for its leases
        self.consume(place)
        assert len(place.machine.take_transfers()) == len(place.machine.pending_transfers()), "all that is pending is to be carried again"

    # ------------------------------------------------------------ always

    @invariant()
    def each_is_in_one_place(self) -> None:
        if not hasattr(self, "places"):
            return
        where: dict[int, list[str]] = {id: [] for id in range(self.ids)}
        for place in self.places.values():
            place.machine.check()
            seen = {p.offset: p for p in place.machine.peek("any", limit=10_000)}
            assert {o: (p.state, p.attempts) for o, p in seen.items()} == {o: (r.state, r.attempts) for o, r in place.of("ready", "leased")}
            travelling = {o for t in place.machine.pending_transfers() for x in t.ranges for o in range(x.first, x.first + x.count)}
            assert travelling == {o for o, _ in place.of("travelling")}
            for _, row in place.of("ready", "leased"):
                where[row.id].append(place.name)
            numbers = {
                o: t.number + k
                for t in place.machine.pending_transfers()
                for k, o in enumerate(o for x in t.ranges for o in range(x.first, x.first + x.count))
            }
            for offset, row in place.of("travelling"):
                if (place.name, numbers[offset]) not in self.places[row.target].arrived:
                    where[row.id].append(f"{place.name} to {row.target}")
        for place in self.places.values():
            for row in place.rows.values():
                if row.state == "ended":
                    where[row.id].append(f"ended in {place.name}")
        for id, found in where.items():
            assert len(found) == 1, f"message {id} is in {found}"

    @precondition(lambda self: all(not p.of("leased") for p in self.places.values()))
    @rule()
    def everything_arrives(self) -> None:
        """Whoever carries on long enough gets all of it there (unless there is no room)."""
        for name in NAMES[:2]:
            for _ in range(len(self.places[name].machine.pending_transfers())):
                self.carry(name, [3], 99, True)
            stuck = self.places[name].of("travelling")
            assert not stuck or self.places["graves"].spec.max_messages


DeadLetters.TestCase.settings = effort(40, steps=40)
TestDeadLetters = DeadLetters.TestCase
