"""The life of a broker in the small world: it starts, is killed, stops; its disk syncs in its own time; its machine's effects are done.

Owns what a driver owns in a real broker, in its order: effects as they were given, completions as the log has them.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from headrace.core.replica.effects import Begin, Cut, Promise, Store
from headrace.core.replica.replica import Replica
from headrace.sim.replicas.checks import Violation
from headrace.sim.replicas.coordination import Coordination
from headrace.sim.replicas.disk import Written, runs_of
from headrace.sim.replicas.ground import Node


class Brokers(Coordination):
    """See the module's head."""

    doing: ClassVar[dict[type, Callable[[Any, Node, Any], None]]] = {}
    """How each effect is done."""

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
        node.replica = Replica(node.id, node.incarnation, found, node.heard, pace=self.plan.pace)
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
        pending, unclean = len(node.disk.pending), node.replica is not None and node.replica.journal.unclean
        self._down(node)
        node.disk.crash(pending)
        node.disk.clean = not unclean  # what an earlier life may have lost is not here because this one ends well
        self.say(f"{node.id} stops")

    def _down(self, node: Node) -> None:
        node.up = False
        node.replica = None
        for connection in list(node.connections.values()):
            self._break(connection)

    def pump(self, node: Node) -> None:
        """Lets the machine act on what came in, and does what it asks for."""
        replica = node.replica
        if replica is None:
            return
        now_ms = self.now_ms
        replica.step(now_ms)
        while effects := replica.take():
            for effect in effects:
                self.doing[type(effect)](self, node, effect)
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
            self.pump(node)

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
        self.pump(node)

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
