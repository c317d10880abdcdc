"""The small world: brokers with one replica each, their connections, the coordinator, a controller, publishers, faults; all from one seed.

First faults and load, then all is healed and everything must come together again. Decides nothing for the machines.
"""

from typing import Any

from headrace.core.replica.effects import (
    Alarm,
    Begin,
    Changed,
    Committed,
    Confirmed,
    Cut,
    Promise,
    Send,
    Stage,
    Store,
    Stream,
    Swap,
    Transfer,
    Unknown,
)  # fmt: skip
from headrace.core.replica.opening import Part
from headrace.sim.replicas.brokers import Brokers
from headrace.sim.replicas.checks import Violation
from headrace.sim.replicas.disk import Written
from headrace.sim.replicas.ground import Node
from headrace.wire.frames import Level

HEALED_MS_MAX = 30_000
"""In this time after the last fault everything has come together again."""
LEVELS = {"local_durable": Level.LOCAL, "majority_durable": Level.MAJORITY, "replica_durable": Level.REPLICA}


class World(Brokers):
    """See the module's head."""

    def run(self) -> None:
        """All of it; raises ``Violation``, or whatever a machine raises."""
        for node in self.nodes.values():
            self.start(node)
        self.at(5, self._beat)
        self.at(20, self._publish)
        self.at(50, self._control)
        self.at(300 if self.plan.lying else 30, self._fault)
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
        for broker, owner in owners:
            for level, end, _ in self.nodes[broker].tokens.values():
                if owner is not None and owner.ends()[level] >= end:
                    raise Violation("I16", f"{broker} confirms nothing that waits for {Level(level).name} up to {end}, which is reached")

    def _together(self) -> bool:
        try:
            self._healed()
        except Violation:
            return False
        return True

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
            self.pump(node)

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
        if plan.lying and faults.happens(0.4):
            node, lasts = self.nodes[plan.lying], faults.randrange(20, 3000)
        if kind == "crash":
            self.crash(node)
            self.at(lasts, self.start, node)
        elif kind == "stop":
            self.stop(node)
            self.at(lasts, self.start, node)
        elif kind == "alone":
            self.crash(node)
            lasts += 1_200
            self.at(lasts // 60, self.start, node)
            for each in nodes:
                self._cut[node.id, each.id] = self._cut[each.id, node.id] = True
                self.at(lasts, self._lift, self._cut, (node.id, each.id))
                self.at(lasts, self._lift, self._cut, (each.id, node.id))
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


World.doing = {
    Send: World._send, Stream: World._stream, Transfer: World._transfer, Promise: World._write, Store: World._store, Begin: World._begin,
    Cut: World._cut_off, Stage: World._write, Swap: World._swap, Committed: World._committed, Confirmed: World._confirmed,
    Unknown: World._unknown, Changed: World._nothing, Alarm: World._nothing,
}  # fmt: skip
