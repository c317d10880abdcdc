"""The coordinator of the small world, with compare-and-swap and answers that get lost, and its controller.

The controller does what the real one is allowed to: it gives the partition to somebody else of those that may own it, rightly or not, and asks for
moves.
"""

from msgspec.structs import replace

from headrace.core.replica.change import Wish
from headrace.core.replica.effects import Outcome, Swap
from headrace.model.cluster import Assignment, Incarnation, contradictions, with_isr
from headrace.sim.replicas.checks import Violation
from headrace.sim.replicas.ground import Node
from headrace.sim.replicas.network import Network


class Coordination(Network):
    """See the module's head."""

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
        self.pump(node)

    def record(self, document: Assignment) -> None:
        """A compare-and-swap has succeeded."""
        wrong = contradictions(document)
        if wrong or document.version != self.truth.version + 1 or document.epoch < self.truth.epoch:
            raise Violation("document", f"{document}: {wrong}")
        self.checks.recorded(document)
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
                self.at(meta.randrange(1, 900), self._apply, node, node.life, effect, meta.happens(0.3))
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
            self.pump(node)

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
                        self.pump(other)
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
                    self.pump(node)
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
                    self.pump(node)
