"""Order per key over repartitions: real queue machines, what is held and what is behind, against a naive list of all messages.

A message is given out for the first time only when every earlier one of its key, that came ready, was given out before in the same partition,
or is settled in any other. Machines are replaced by their own replays at any moment.
"""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.partitioner import key_slot, partition_for
from headrace.core.queue import Consumer, Credit, QueueMachine
from headrace.core.repartition.behind import Behind
from headrace.core.repartition.holding import EVERYBODY
from headrace.model.specs import QueueSpec
from headrace.wire.frames import Settle
from headrace.wire.journal import Kind

KEYS = [None, *(f"k{n}".encode() for n in range(24))]
COUNT = st.integers(1, 6)
SPEC = QueueSpec(lease_ms=10_000)


@dataclass
class Message:
    key: bytes | None
    partition: int
    offset: int
    delayed: bool
    given: bool = False
    settled: bool = False


@dataclass
class Place:
    number: int
    machine: QueueMachine = field(default_factory=lambda: QueueMachine(SPEC))
    log: list[Message] = field(default_factory=list)
    entries: list[tuple[int, object]] = field(default_factory=list)
    behind: Behind | None = None

    def journal(self) -> None:
        self.entries += self.machine.take_journal()


class Repartitions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000
        self.version = 1
        self.before = self.after = 2
        self.places = [Place(0), Place(1)]
        self.messages: list[Message] = []
        self.moving = False
        for place in self.places:
            self.attach(place)

    def attach(self, place: Place) -> None:
        place.machine.attach(Consumer(place.number + 1, owner_token=place.number + 1, credit=Credit(4, 1 << 30)))

    @rule(key=st.sampled_from(KEYS), delay=st.sampled_from([0, 0, 0, 500]), count=st.integers(1, 3))
    def publish(self, key: bytes | None, delay: int, count: int) -> None:
        number = partition_for(key, self.after) if key is not None else len(self.messages) % self.after
        place, slot = self.places[number], key_slot(key) if key is not None else 0
        base = len(place.log)
        for n in range(count):
            message = Message(key, number, base + n, bool(delay))
            place.log.append(message)
            self.messages.append(message)
        place.entries.append((Kind.RECORDS, (base, count, slot, self.now + delay if delay else 0, self.now)))
        self.enqueue(place.machine, base, count, slot, self.now + delay if delay else 0, self.now)

    def enqueue(self, machine: QueueMachine, base: int, count: int, slot: int, due: int, at: int) -> None:
        machine.enqueue(base, count, count, not_before_ms=due, key_slot=slot, wall_ms=at, now_ms=self.now)

    @rule()
    def deliver(self) -> None:
        for place in self.places:
            for grant in place.machine.grant(self.now, self.now):
                for offset in range(grant.first, grant.first + grant.count):
                    message = place.log[offset]
                    if not message.given and not message.delayed:
                        self.in_order(message)
                    message.given = True
            place.journal()

    def in_order(self, message: Message) -> None:
        if message.key is None:
            return
        for earlier in self.messages:
            if earlier is message:
                return
            if earlier.key == message.key and not earlier.delayed:
                assert earlier.given if earlier.partition == message.partition else earlier.settled, f"{earlier} is overtaken by {message}"

    @rule(data=st.data(), retry=st.sampled_from([False, False, False, True]))
    def settle(self, data: st.DataObject, retry: bool) -> None:
        for place in self.places:
            leased = [peek.offset for peek in place.machine.peek("leased", limit=100)]
            if leased:
                offset = data.draw(st.sampled_from(leased))
                action = Settle.RETRY if retry else Settle.ACK
                settled = place.machine.settle(place.number + 1, action, [(offset, 1)], now_ms=self.now, wall_ms=self.now)
                assert settled.count == 1
                place.log[offset].settled = not retry
            place.journal()

    @rule(ms=st.integers(1, 800))
    def time(self, ms: int) -> None:
        self.now += ms
        for place in self.places:
            place.machine.tick(self.now, self.now)
            place.journal()

    @precondition(lambda self: not self.moving)
    @rule(after=COUNT)
    def repartition(self, after: int) -> None:
        if after == self.after:
            return
        while len(self.places) < after:
            self.places.append(Place(len(self.places)))
            self.attach(self.places[-1])
        self.version, self.before, self.after, self.moving = self.version + 1, self.after, after, True
        for place in self.places:
            place.behind = None
            cut = len(place.log)
            assert place.machine.begin_routing(self.version, number=place.number, before=self.before, after=after, cut=cut)
            place.journal()

    @precondition(lambda self: self.moving)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        asking, source = data.draw(st.sampled_from(self.places)), data.draw(st.sampled_from(self.places))
        asking.machine.let_go(self.version, source.number, self.slots(source))
        asking.journal()
        self.look_if_done()

    def slots(self, source: Place) -> int:
        if source.behind is None:
            source.behind = Behind()
            for kind, entry in source.entries:
                if kind == Kind.RECORDS:
                    base, count, slot, _, _ = entry  # type: ignore[misc]
                    if base < source.machine.holding.cut:
                        source.behind.add(slot, range(base, base + count))
        return source.behind.slots(source.machine.stand)

    def look_if_done(self) -> None:
        if not any(place.machine.holding.mask for place in self.places):
            rest = self.places[self.after :]
            if not any(place.machine.ready_count + place.machine.leased_count + place.machine.delayed_count for place in rest):
                del self.places[self.after :]
                self.moving = False

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """A partition is made again, from a snapshot taken now or from its entries alone; leases are its consumer's again."""
        place = data.draw(st.sampled_from(self.places))
        place.journal()
        place.behind = None
        machine = QueueMachine(SPEC)
        if data.draw(st.booleans()):
            machine.restore(1, place.machine.snapshot())
        for kind, entry in place.entries:  # what a snapshot holds already changes nothing
            if kind == Kind.RECORDS:
                self.enqueue(machine, *entry)  # type: ignore[misc]
            else:
                machine.replay(kind, entry)  # type: ignore[arg-type]
        place.machine = machine
        self.attach(place)

    @rule()
    def force_is_no_mistake_later(self) -> None:
        for place in self.places:
            assert place.machine.let_go(self.version + 1, EVERYBODY, 0) == 0

    @invariant()
    def sound(self) -> None:
        for place in self.places:
            place.machine.check()

    def teardown(self) -> None:
        """Whatever is consumed in the end comes out, all of it."""
        for _ in range(400):
            self.now += 1_000
            self.deliver()
            for place in self.places:
                for peek in place.machine.peek("leased", limit=100):
                    place.machine.settle(place.number + 1, Settle.ACK, [(peek.offset, 1)], now_ms=self.now, wall_ms=self.now)
                    place.log[peek.offset].settled = True
                place.journal()
            if self.moving:
                for asking in self.places:
                    for source in self.places:
                        asking.machine.let_go(self.version, source.number, self.slots(source))
                    asking.journal()
            if all(message.settled for message in self.messages):
                break
        assert all(message.settled for message in self.messages)
        assert not any(place.machine.held_count for place in self.places)


TestRepartitions = Repartitions.TestCase
TestRepartitions.settings = settings(max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
