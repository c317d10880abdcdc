"""The small world: brokers with one replica each, their connections, the coordinator, a controller, publishers, faults; all from one seed.

Owns time and the order of everything. First faults and load, then all is healed and everything must come together again. Decides nothing for the
machines.
"""

import heapq
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from headrace.core.replica.change import Wish
from headrace.core.replica.effects import (
    Alarm,
    Begin,
    Changed,
    Committed,
    Confirmed,
    Cut,
    Outcome,
    Promise,
    Send,
    Stage,
    Store,
    Stream,
    Swap,
    Transfer,
    Unknown,
)  # fmt: skip
from headrace.core.replica.messages import Ack, AnyMessage, Install, State
from headrace.core.replica.owner import Part
from headrace.core.replica.replica import Replica
from headrace.model.cluster import Assignment, BrokerId, Incarnation, contradictions, with_isr
from headrace.model.ids import Epoch, PartitionId
from headrace.sim.chance import Chance
from headrace.sim.replicas.checks import Checks, Violation
from headrace.sim.replicas.disk import Disk, Entry, Written, runs_of
from headrace.sim.replicas.plan import Plan
from headrace.wire.frames import Level

EVENTS_MAX = 60_000
HEALED_MS_MAX = 30_000
"""In this time after the last fault everything has come together again."""
LEVELS = {"local_durable": Level.LOCAL, "majority_durable": Level.MAJORITY, "replica_durable": Level.REPLICA}


class Connection:
    """Between one life of a broker and one of another; each direction in order."""

    __slots__ = ("ends", "last", "open")

    def __init__(self, ends: tuple["Node", "Node"]) -> None:
        self.ends = ends
        self.open = True
        self.last = {ends[0].id: 0, ends[1].id: 0}
        """When the last message to each arrives."""


class Node:
    """A broker: a disk that outlives it and, while it runs, a replica."""

    def __init__(self, name: str) -> None:
        self.id = BrokerId(name)
        self.disk = Disk()
        self.memory: list[Entry] = []
        self.life = 0
        self.up = False
        self.replica: Replica | None = None
        self.heard: dict[BrokerId, int] = {}
        self.connections: dict[BrokerId, Connection] = {}
        self.tokens: dict[int, tuple[int, int, Entry]] = {}
        self.wake_ms = 0
        self.answered = 0
        self.checked_end = 1

    @property
    def incarnation(self) -> Incarnation:
        return Incarnation(f"{self.id}.{self.life}")


class World:
    """See the module's head."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        chance = Chance(plan.seed, "replicas")
        self._net, self._disk, self._load = chance.fork("net"), chance.fork("disk"), chance.fork("load")
        self._faults, self._meta = chance.fork("faults"), chance.fork("meta")
        self.now_ms = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self.events = 0
        self.nodes = {n.id: n for n in (Node(f"b{i}") for i in range(plan.brokers))}
        self.checks = Checks(self.nodes)
        self._cut: dict[tuple[BrokerId, BrokerId], bool] = {}
        """Directions in which nothing arrives."""
        self._off: dict[BrokerId, bool] = {}
        """Brokers that cannot reach the coordinator."""
        self._slow: dict[BrokerId, bool] = {}
        self.healing = False
        self._values = self._token = 0
        self.swaps = self.takeovers = 0
        self.unknown = 0
        names = tuple(self.nodes)
        replicas = names[: plan.replicas]
        in_sync = replicas if plan.level == "replica_durable" else ()
        self.truth = Assignment(
            partition=PartitionId(1), item="orders", epoch=Epoch(1), owner=replicas[0], level=plan.level, floor=plan.floor,
            replicas=replicas, isr=in_sync,
        )  # fmt: skip
        self.trace: list[str] | None = None

    # ------------------------------------------------------------ time

    def at(self, delay_ms: int, call: Callable[..., None], *args: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now_ms + delay_ms, self._sequence, call, args))

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now_ms:6} {text}")

    def run(self) -> None:
        """All of it; raises ``Violation``, or whatever a machine raises."""
        for node in self.nodes.values():
            self.start(node)
        self.at(5, self._beat)
        self.at(20, self._publish)
        self.at(50, self._control)
        self.at(30, self._fault)
        self._until(self.plan.faults_ms)
        self._heal()
        while self.now_ms < self.plan.faults_ms + HEALED_MS_MAX:
            self._until(self.now_ms + 300)
            if self._together():
                break
        self._healed()

    def _healed(self) -> None:
        owners = [(n.id, n.replica.owner) for n in self.nodes.values() if n.replica is not None]
        self.checks.healed(self.truth, [broker for broker, owner in owners if owner is not None and owner.part is Part.SERVING])

    def _until(self, end_ms: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end_ms:
            self.now_ms, _, call, args = heapq.heappop(heap)
            self.events += 1
            if self.events > EVENTS_MAX:
                raise Violation("I17", f"{self.events} events in {self.now_ms} ms")
            call(*args)
        self.now_ms = end_ms

    def _together(self) -> bool:
        try:
            self._healed()
        except Violation:
            return False
        return True

    # ------------------------------------------------------------ brokers

    def start(self, node: Node) -> None:
        if node.up:
            return
        node.life += 1
        node.up = True
        node.memory = list(node.disk.entries)
        found = node.disk.recovered()
        self.checks.restarted(node, found.promised)
        node.checked_end = max(1, min(found.high_watermark, found.end))
        node.heard = {}
        node.tokens = {}
        node.connections = {}
        node.wake_ms = 0
        node.replica = Replica(node.id, node.incarnation, found, node.heard)
        self.say(f"{node.id} starts, life {node.life}, end {found.end}, promised {found.promised}, unclean {found.unclean}")
        self.at(self._meta.randrange(1, 60), self._look, node, node.life)
        for other in self.nodes.values():
            if other is not node and other.up:
                self.at(self._net.randrange(1, 40), self._connect, node, other)

    def crash(self, node: Node) -> None:
        if not node.up:
            return
        self._down(node)
        node.disk.crash(self._disk.randrange(len(node.disk.pending) + 1))
        if self.plan.lying == node.id and self._disk.happens(0.7):
            node.disk.forget(self._disk.randrange(1, 6))
        self.say(f"{node.id} crashes, {len(node.disk.entries)} entries left")

    def stop(self, node: Node) -> None:
        """Cleanly: everything is synced first."""
        if not node.up:
            return
        pending = len(node.disk.pending)
        self._down(node)
        node.disk.crash(pending)
        node.disk.clean = not any(isinstance(o, Stage) for o in node.disk.pending)
        self.say(f"{node.id} stops")

    def _down(self, node: Node) -> None:
        node.up = False
        node.replica = None
        for connection in list(node.connections.values()):
            self._break(connection)

    def _pump(self, node: Node) -> None:
        """Lets the machine act on what came in, and does what it asks for."""
        replica = node.replica
        if replica is None:
            return
        now_ms = self.now_ms
        replica.step(now_ms)
        while effects := replica.take():
            for effect in effects:
                _DO[type(effect)](self, node, effect)
            if replica is not node.replica:
                return
        journal, disk = replica.journal, node.disk
        self.checks.picture(node, end=journal.end, durable_end=journal.durable_end, last_epoch=journal.last_epoch, start=journal.start)
        replica.check()
        if disk.pending and not disk.flushing:
            self._flush(node)
        due = replica.next_deadline_ms(now_ms)
        if due is not None and (node.wake_ms <= now_ms or due < node.wake_ms):
            node.wake_ms = max(due, now_ms + 1)
            self.at(node.wake_ms - now_ms, self._wake, node, node.life)

    def _wake(self, node: Node, life: int) -> None:
        if node.life == life and node.up:
            self._pump(node)

    # ------------------------------------------------------------ disk

    def _flush(self, node: Node) -> None:
        node.disk.flushing = len(node.disk.pending)
        took = self._disk.randrange(300, 1500) if self._slow.get(node.id) else self._disk.randrange(1, self.plan.sync_ms_max + 1)
        self.at(took, self._flushed, node, node.life)

    def _flushed(self, node: Node, life: int) -> None:
        disk, replica = node.disk, node.replica
        if node.life != life or replica is None:
            return
        done, disk.pending = disk.pending[: disk.flushing], disk.pending[disk.flushing :]
        disk.flushing = 0
        for at, operation in enumerate(done):
            disk.apply(operation)
            following = done[at + 1] if at + 1 < len(done) else None
            if isinstance(operation, Written):
                if not isinstance(following, Written):
                    replica.durable(len(disk.entries) + 1, self.now_ms)
            elif isinstance(operation, Cut):
                replica.cut(operation.at, self.now_ms)
            elif isinstance(operation, Promise):
                replica.promised(operation.epoch, self.now_ms)
            else:
                node.memory = list(operation.data)
                replica.installed(operation.end, self.now_ms)
        if self._disk.happens(0.1):
            disk.watermark = max(disk.watermark, min(replica.journal.high_watermark, replica.journal.durable_end))
            if self._disk.happens(self.plan.trim) and disk.watermark - disk.start > 3 and not replica.journal.busy:
                disk.start = self._disk.randrange(disk.start, disk.watermark)
                replica.trimmed(disk.start)
        self._pump(node)

    def _write(self, node: Node, operation: Any) -> None:
        node.disk.pending.append(operation)

    def _store(self, node: Node, effect: Store) -> None:
        assert effect.first == len(node.memory) + 1
        node.memory.extend(effect.entries)
        if runs_of(node.memory, effect.first) != tuple(effect.runs):
            raise Violation("I3", f"{node.id} is told epochs {effect.runs} of what is {runs_of(node.memory, effect.first)}")
        self._write(node, Written(effect.first, tuple(effect.entries)))

    def _begin(self, node: Node, effect: Begin) -> None:
        self.checks.begun_by(node, node.incarnation, effect.epoch, effect.at)
        self.say(f"{node.id} begins epoch {effect.epoch} at {effect.at}")
        self._values += 1
        entry = (effect.epoch, self._values)
        node.memory.append(entry)
        self._write(node, Written(effect.at, (entry,)))

    def _cut_off(self, node: Node, effect: Cut) -> None:
        self.say(f"{node.id} cuts at {effect.at} of {len(node.memory)}")
        if node.disk.lost == 0:
            self.checks.cut(node, effect)
        del node.memory[effect.at - 1 :]
        self._write(node, effect)

    # ------------------------------------------------------------ network

    def _connect(self, a: Node, b: Node) -> None:
        if not (a.up and b.up) or b.id in a.connections or self._cut.get((a.id, b.id)) or self._cut.get((b.id, a.id)):
            return
        connection = Connection((a, b))
        a.connections[b.id] = b.connections[a.id] = connection
        for one, other in ((a, b), (b, a)):
            assert one.replica is not None
            one.heard[other.id] = self.now_ms
            one.replica.connected(other.id, other.incarnation, self.now_ms)
        self._pump(a)
        self._pump(b)

    def _break(self, connection: Connection) -> None:
        """What is on its way may still arrive; both sides learn of it, one perhaps later."""
        if not connection.open:
            return
        connection.open = False
        a, b = connection.ends
        for one, other in ((a, b), (b, a)):
            if one.connections.get(other.id) is connection:
                self.at(self._net.randrange(1, 30) if self._net.happens(0.7) else 300, self._broken, one, one.life, other, connection)

    def _broken(self, node: Node, life: int, other: Node, connection: Connection) -> None:
        if node.connections.get(other.id) is not connection:
            return
        del node.connections[other.id]
        if node.life == life and node.replica is not None:
            node.replica.disconnected(other.id, self.now_ms)
            self._pump(node)
        self.at(self._net.randrange(5, 100), self._connect_again, node, other)

    def _connect_again(self, node: Node, other: Node) -> None:
        if node.id not in other.connections:
            self._connect(node, other)

    def _send(self, node: Node, effect: Send) -> None:
        message = effect.message
        if isinstance(message, (State, Ack)):
            self.checks.answers(node, message.epoch, message.end)
        self._transmit(node, effect.to, message)

    def _stream(self, node: Node, effect: Stream) -> None:
        message = effect.message
        first = message.first
        entries = tuple(node.memory[first - 1 : first - 1 + message.count])
        assert len(entries) == message.count and (not entries or first >= node.disk.start)
        self._transmit(node, effect.to, replace(message, entries=entries))

    def _transfer(self, node: Node, effect: Transfer) -> None:
        disk = node.disk
        end = disk.watermark
        if end <= effect.above:
            disk.watermark = end = max(end, min(node.checked_end, len(disk.entries) + 1))
        if end <= effect.above:
            return
        base = disk.entries[disk.start - 2][0] if disk.start > 1 else 0
        data = tuple(disk.entries[: end - 1])
        install = Install(
            epoch=effect.epoch, session=effect.session, end=end, history_start=disk.start, base_epoch=base, runs=runs_of(data, disk.start), data=data
        )
        self._transmit(node, effect.to, install)

    def _transmit(self, node: Node, to: BrokerId, message: AnyMessage) -> None:
        connection = node.connections.get(to)
        net, plan = self._net, self.plan
        if connection is None or not connection.open or to == node.id:
            return
        if self._cut.get((node.id, to)) or (not self.healing and net.happens(plan.loss)):
            return
        arrives = max(connection.last[to], self.now_ms + net.randrange(plan.delay_ms_max + 1))
        connection.last[to] = arrives
        other = self.nodes[to]
        self.at(arrives - self.now_ms, self._arrive, node.id, node.life, other, other.life, connection, message)
        if not self.healing and net.happens(plan.duplicated):
            self.at(arrives - self.now_ms + net.randrange(50), self._arrive, node.id, node.life, other, other.life, connection, message)

    def _arrive(self, sender: BrokerId, sent_in: int, node: Node, life: int, connection: Connection, message: AnyMessage) -> None:
        if node.life != life or node.replica is None:
            return
        if not connection.open and self._net.happens(0.5):
            return
        if self.nodes[sender].life == sent_in:
            node.heard[sender] = self.now_ms
        if self.trace is not None:
            self.say(f"{sender} -> {node.id}: {str(message)[:230]}")
        node.replica.received(sender, message, self.now_ms)
        self._pump(node)

    def _beat(self) -> None:
        """Heartbeats, each pair."""
        for node in self.nodes.values():
            for other in list(node.connections):
                connection = node.connections[other]
                if connection.open and node.up and not self._cut.get((node.id, other)):
                    self.nodes[other].heard[node.id] = self.now_ms
                elif connection.open and not self.healing and self._net.happens(0.1):
                    self._break(connection)
            for peer in self.nodes.values():
                if peer.id > node.id and peer.up and node.up and peer.id not in node.connections and node.id not in peer.connections:
                    self._connect(node, peer)
        self.at(200, self._beat)

    # ------------------------------------------------------------ coordinator

    def _look(self, node: Node, life: int) -> None:
        """A broker reads the document."""
        if node.life == life and node.replica is not None:
            if self._off.get(node.id):
                self.at(100, self._look, node, life)
                return
            self._tell(node, life, self.truth)

    def _tell(self, node: Node, life: int, document: Assignment) -> None:
        replica = node.replica
        if node.life != life or replica is None:
            return
        if self._off.get(node.id):
            self.at(self._meta.randrange(50, 200), self._tell, node, life, document)
            return
        replica.assigned(document, self.now_ms)
        if document.owner == node.id:
            replica.activate(self.now_ms)
        self._pump(node)

    def record(self, document: Assignment) -> None:
        """A compare-and-swap has succeeded."""
        wrong = contradictions(document)
        if wrong or document.version != self.truth.version + 1 or document.epoch < self.truth.epoch:
            raise Violation("document", f"{document}: {wrong}")
        d = document
        members = f"isr {d.isr} elr {d.elr} of {d.replicas} +{d.learners} -{d.leaving}"
        self.say(f"recorded: v{d.version} e{d.epoch} {d.owner} {d.level} {members} {d.reason}")
        self.truth = document
        for node in self.nodes.values():
            if node.up:
                self.at(self._meta.randrange(1, 40), self._tell, node, node.life, document)

    def _swap(self, node: Node, effect: Swap) -> None:
        self.swaps += 1
        meta, lost = self._meta, not self.healing
        if self._off.get(node.id) or (lost and meta.happens(self.plan.swap_lost)):
            if meta.happens(0.5):  # it may be applied all the same, now or much later
                self.at(meta.randrange(1, 900), self._apply, node, -1, effect, False)
            self.at(meta.randrange(50, 400), self._answer, node, node.life, effect.number, Outcome.UNKNOWN, None)
            return
        self.at(meta.randrange(1, 20), self._apply, node, node.life, effect, True)

    def _apply(self, node: Node, life: int, effect: Swap, answered: bool) -> None:
        outcome = Outcome.REFUSED
        if self.truth.version == effect.expected:
            self.record(effect.document)
            outcome = Outcome.APPLIED
        if answered:
            self.at(self._meta.randrange(1, 20), self._answer, node, life, effect.number, outcome, self.truth)

    def _answer(self, node: Node, life: int, number: int, outcome: Outcome, document: Assignment | None) -> None:
        if node.life == life and node.replica is not None:
            node.replica.swapped(number, outcome, document, self.now_ms)
            if node.replica.document is not None and node.replica.document.owner == node.id:
                node.replica.activate(self.now_ms)
            self._pump(node)

    # ------------------------------------------------------------ controller

    def _control(self) -> None:
        """A controller: moves the partition from who is down (or only seems to be), proves deaths, asks for moves."""
        self.at(100, self._control)
        truth, meta = self.truth, self._meta
        for node in self.nodes.values():
            if not node.up and not self.plan.lying and meta.happens(0.3):
                for other in self.nodes.values():
                    if other.replica is not None:
                        other.replica.dead(node.id)
                        self._pump(other)
        owner = self.nodes[truth.owner]
        if (not owner.up and meta.happens(0.5)) or (not self.healing and meta.happens(self.plan.suspicion)):
            self._elect(truth)
        elif not self.healing and meta.happens(self.plan.moves):
            self._move(truth)

    def _elect(self, truth: Assignment) -> None:
        """As the controller's plan does: the best of those that may own it."""
        able = [b for b in truth.electable if self.nodes[b].up and b != truth.owner]
        if truth.level == "replica_durable":
            able = [b for b in able if b in truth.isr] or able
        if not able:
            return
        chosen = self._meta.choice(able)
        incarnation = self.nodes[chosen].incarnation if self._meta.happens(0.8) else Incarnation("")
        reason = f"{truth.owner} seems to be dead"
        elected = replace(truth, version=truth.version + 1, epoch=truth.epoch + 1, owner=chosen, incarnation=incarnation, reason=reason)
        if truth.level == "replica_durable":
            left = [b for b in truth.isr if self.nodes[b].up and b != truth.owner]
            elected = with_isr(elected, left if chosen in left else [*left, chosen])
        self.takeovers += 1
        self.record(elected)

    def _move(self, truth: Assignment) -> None:
        meta = self._meta
        moved = replace(truth, version=truth.version + 1, reason="a move")
        free = [b for b in self.nodes if b not in truth.copies]
        leavers = [b for b in truth.replicas if b != truth.owner and b not in truth.leaving]
        kind = meta.randrange(4)
        if kind == 0 and free:
            self.record(replace(moved, learners=(*truth.learners, meta.choice(free))))
        elif kind == 1 and leavers and len(truth.replicas) + len(truth.learners) > 2:
            self.record(replace(moved, leaving=(*truth.leaving, meta.choice(leavers))))
        elif kind == 2:
            for node in self.nodes.values():
                if node.replica is not None and node.replica.owner is not None and truth.copies:
                    node.replica.owner.hand_over(meta.choice(truth.copies), self.now_ms)
                    self._pump(node)
        elif kind == 3 and self.plan.altered:
            levels = [("replica_durable", 1), ("replica_durable", 2), ("majority_durable", 1)]
            if len(truth.replicas) == 1 and not self.plan.lying:
                levels = [("local_durable", 1)]
            if self.plan.lying:
                levels = [("replica_durable", 2), ("majority_durable", 2)]
            level, floor = meta.choice(levels)
            for node in self.nodes.values():
                if node.replica is not None and len(truth.replicas) >= floor:
                    node.replica.wish(Wish(level, floor), self.now_ms)
                    self._pump(node)

    # ------------------------------------------------------------ publishers

    def _publish(self) -> None:
        load = self._load
        self.at(load.randrange(1, self.plan.publish_ms_max) if not self.healing else 150, self._publish)
        for node in self.nodes.values():
            replica = node.replica
            if replica is None or replica.owner is None:
                continue
            owner = replica.owner
            document = owner.document
            level = load.choice([Level.ACCEPTED, Level.LOCAL, Level.MAJORITY, Level.QUEUE, Level.QUEUE, LEVELS[document.level]])
            if level <= Level.REPLICA and level > LEVELS[document.level]:
                level = Level.QUEUE
            if replica.refusal(LEVELS[document.level] if level == Level.QUEUE else level, self.now_ms) is not None:
                continue
            count = load.randrange(1, 4)
            first = len(node.memory) + 1
            entries = []
            for _ in range(count):
                self._values += 1
                entries.append((owner.epoch, self._values))
            node.memory += entries
            self._write(node, Written(first, tuple(entries)))
            owner.appended(count, self.now_ms)
            if level > Level.ACCEPTED:
                self._token += 1
                node.tokens[self._token] = (level, first + count, entries[-1])
                owner.wait(level, first + count, self._token)
            self._pump(node)

    def _confirmed(self, node: Node, effect: Confirmed) -> None:
        replica = node.replica
        assert replica is not None and replica.owner is not None
        for token in effect.tokens:
            level, end, entry = node.tokens.pop(token)
            if level == Level.MAJORITY and replica.owner.epoch != self.truth.epoch:
                continue  # whoever held it then may have been cut by a later epoch
            self.checks.confirms(node, replica.owner.document, level, end, entry)

    def _committed(self, node: Node, effect: Committed) -> None:
        replica = node.replica
        assert replica is not None
        owner = replica.owner
        self.checks.committed(node, effect.high_watermark, owner=owner.document if owner is not None else None, truth=self.truth)

    # ------------------------------------------------------------ faults

    def _fault(self) -> None:
        if self.healing:
            return
        faults, plan = self._faults, self.plan
        self.at(faults.randrange(20, plan.fault_ms_max), self._fault)
        nodes = list(self.nodes.values())
        node, other = faults.choice(nodes), faults.choice(nodes)
        kind = faults.pick(plan.faults)
        lasts = faults.randrange(20, 1500)
        if kind == "crash":
            self.crash(node)
            self.at(lasts, self.start, node)
        elif kind == "stop":
            self.stop(node)
            self.at(lasts, self.start, node)
        elif kind == "all":
            for each in nodes:
                self.crash(each)
                self.at(faults.randrange(20, 1500), self.start, each)
        elif kind == "reset":
            for connection in list(node.connections.values()):
                if connection.open and faults.happens(0.5):
                    self._break(connection)
        elif kind == "slow":
            self._slow[node.id] = True
            self.at(lasts, self._lift, self._slow, node.id)
        elif kind == "off":
            self._off[node.id] = True
            self.at(lasts, self._lift, self._off, node.id)
        elif node is not other:
            both = kind == "cut"
            self._cut[node.id, other.id] = True
            self.at(lasts, self._lift, self._cut, (node.id, other.id))
            if both:
                self._cut[other.id, node.id] = True
                self.at(lasts, self._lift, self._cut, (other.id, node.id))

    def _lift(self, faults: dict[Any, bool], key: Any) -> None:
        faults.pop(key, None)

    def _heal(self) -> None:
        self.healing = True
        self.say("all is healed")
        self._cut.clear()
        self._off.clear()
        self._slow.clear()
        for node in self.nodes.values():
            self.start(node)

    def _nothing(self, node: Node, effect: Any) -> None:
        if self.trace is not None:
            self.say(f"{node.id}: {effect}")

    def _unknown(self, node: Node, effect: Any) -> None:
        for token in effect.tokens:
            del node.tokens[token]
            self.unknown += 1


def _table() -> dict[type, Callable[[World, Node, Any], None]]:
    return {
        Send: World._send, Stream: World._stream, Transfer: World._transfer, Promise: World._write, Store: World._store, Begin: World._begin,
        Cut: World._cut_off, Stage: World._write, Swap: World._swap, Committed: World._committed, Confirmed: World._confirmed,
        Unknown: World._unknown, Changed: World._nothing, Alarm: World._nothing,
    }  # fmt: skip


_DO = _table()
