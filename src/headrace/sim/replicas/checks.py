"""What must hold after every step of the small world, whatever was lost, delayed or restarted.

Owns the ledger: what was ever committed, by index. Looks at the disks themselves, not at what the machines say of them.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from headrace.core.replica.configuration import Configuration, configuration, recorded
from headrace.core.replica.effects import Cut
from headrace.model.cluster import Assignment, BrokerId
from headrace.sim.replicas.disk import Disk, Entry
from headrace.wire.frames import Level


class Violation(Exception):
    """``invariant`` was broken."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


class Seen(Protocol):
    """A broker as the checks see it."""

    id: BrokerId
    disk: Disk
    memory: list[Entry]
    answered: int
    checked_end: int


class Checks:
    """See the module's head."""

    def __init__(self, nodes: Mapping[BrokerId, Seen]) -> None:
        self._nodes = nodes
        self.ledger: list[Entry] = []
        self.committed_in: list[int] = []
        """In which epoch each of them was."""
        self.owners: dict[int, tuple[BrokerId, str]] = {}
        self.begun_epoch = 0
        self.begun: list[Entry] = []
        """What the newest owner began with."""
        self.confirmed = 0

    def begun_by(self, node: Seen, incarnation: str, epoch: int, at: int) -> None:
        """An owner appends the start of its epoch."""
        owner = self.owners.setdefault(epoch, (node.id, incarnation))
        if owner != (node.id, incarnation):
            raise Violation("I7", f"epoch {epoch} was begun by {owner} and by {(node.id, incarnation)}")
        if at != len(node.memory) + 1:
            raise Violation("I7", f"{node.id} begins epoch {epoch} at {at}, its journal ends at {len(node.memory) + 1}")
        for index, (entry, committed_in) in enumerate(zip(self.ledger, self.committed_in, strict=True), 1):
            if committed_in > epoch:
                continue  # this owner is late: a later one has begun already, and this one will commit nothing
            if index > len(node.memory) or node.memory[index - 1] != entry:
                raise Violation("I8", f"{node.id}, owner of epoch {epoch}, has not what was committed at {index}: {entry}")
        if epoch > self.begun_epoch:
            self.begun_epoch, self.begun = epoch, list(node.memory)

    def committed(self, node: Seen, end: int, *, owner: Assignment | None, truth: Assignment) -> None:
        """A replica says that everything below ``end`` is committed; ``owner``: what it knows, if it is the owner."""
        if end <= node.checked_end:
            raise Violation("I5", f"the high watermark of {node.id} falls from {node.checked_end} to {end}")
        if end > len(node.memory) + 1:
            raise Violation("I5", f"the high watermark of {node.id} is {end}, its journal ends at {len(node.memory) + 1}")
        for index in range(node.checked_end, end):
            entry = node.memory[index - 1]
            if index <= len(self.ledger):
                if self.ledger[index - 1] != entry:
                    raise Violation("I3", f"{self.ledger[index - 1]} and {entry} are both committed at {index}")
                continue
            if owner is None:
                raise Violation("I5", f"{node.id} takes {index} for committed, which no owner has said")
            if owner.epoch < self.begun_epoch and (index > len(self.begun) or self.begun[index - 1] != entry):
                raise Violation("I8", f"the owner of epoch {owner.epoch} commits {index}, which that of {self.begun_epoch} has not")
            self._held(configuration(owner), index, entry)
            if truth.epoch == owner.epoch:
                self._held(configuration(truth), index, entry)
                if truth.level == "replica_durable":
                    self._electable(truth, index, entry)
            self.ledger.append(entry)
            self.committed_in.append(owner.epoch)
        node.checked_end = end

    def _has(self, broker: BrokerId, index: int, entry: Entry) -> bool:
        disk = self._nodes[broker].disk
        return disk.lost > 0 or (index <= len(disk.entries) and disk.entries[index - 1] == entry)

    def _held(self, required: Configuration, index: int, entry: Entry) -> None:
        holders = [b for b in required.members if self._has(b, index, entry)]
        if len(holders) < required.k:
            raise Violation("I13", f"{index} is committed, of {required.members} only {holders} hold it, {required.k} must")
        if required.frozen:
            raise Violation("floor", f"{index} is committed below the floor, with {required.members} in sync")

    def _electable(self, truth: Assignment, index: int, entry: Entry) -> None:
        for broker in recorded(truth):
            if not self._has(broker, index, entry):
                raise Violation("I6", f"{broker} may be elected and does not hold {index}, which is committed: isr {truth.isr}, elr {truth.elr}")

    def recorded(self, document: Assignment) -> None:
        """Other members or another level count from now on: whoever is elected by them holds everything that is committed."""
        required = configuration(document)
        for index, entry in enumerate(self.ledger, 1):
            if document.level == "replica_durable":
                self._electable(document, index, entry)
            elif sum(self._has(b, index, entry) for b in required.members) < required.k:
                raise Violation("I6", f"of {required.members} fewer than {required.k} hold {index}, which is committed")

    def cut(self, node: Seen, cut: Cut) -> None:
        """A replica gives entries up."""
        for index in range(cut.at, min(len(node.memory), len(self.ledger)) + 1):
            if node.memory[index - 1] == self.ledger[index - 1]:
                raise Violation("I3", f"{node.id} gives up {index}, which is committed")

    def answers(self, node: Seen, epoch: int, end: int | None) -> None:
        """A replica answers or acknowledges in ``epoch``, everything below ``end``."""
        if epoch < node.answered:
            raise Violation("I7", f"{node.id} acts in epoch {epoch} after it has promised {node.answered}")
        node.answered = epoch
        if node.disk.promised < epoch:
            raise Violation("I7", f"{node.id} answers in epoch {epoch}, on its disk stands {node.disk.promised}")
        if end is not None and end > len(node.disk.entries) + 1:
            raise Violation("I13", f"{node.id} acknowledges up to {end}, its disk holds up to {len(node.disk.entries) + 1}")

    def restarted(self, node: Seen, promised: int) -> None:
        if promised < node.answered:
            raise Violation("I7", f"{node.id} has promised epoch {node.answered} and comes back with {promised}")

    def confirms(self, node: Seen, document: Assignment, level: int, end: int, entry: Entry) -> None:
        """A publish, the entry before ``end``, is confirmed at ``level``."""
        self.confirmed += 1
        index = end - 1
        if level in (Level.LOCAL, Level.MAJORITY, Level.REPLICA, Level.QUEUE) and not self._has(node.id, index, entry):
            if level == Level.LOCAL:
                raise Violation("I13", f"{index} is confirmed at level local and not durable on {node.id}")
        if level == Level.MAJORITY and sum(self._has(b, index, entry) for b in document.replicas) <= len(document.replicas) // 2:
            raise Violation("I1", f"{index} is confirmed at level majority and not held by one")
        if level == Level.REPLICA and not all(self._has(b, index, entry) for b in (document.isr or document.replicas)):
            raise Violation("I1", f"{index} is confirmed at level replica, not all of {document.isr} hold it")
        if level == Level.QUEUE and (index > len(self.ledger) or self.ledger[index - 1] != entry):
            raise Violation("I1", f"{index} is confirmed at the queue's level and not committed")

    def picture(self, node: Seen, *, end: int, durable_end: int, last_epoch: int, start: int) -> None:
        """What the machine thinks of its journal is so."""
        memory, disk = node.memory, node.disk
        if end != len(memory) + 1:
            raise Violation("I13", f"{node.id} takes {end} for the end of its journal, it is {len(memory) + 1}")
        if durable_end > len(disk.entries) + 1:
            raise Violation("I13", f"{node.id} takes everything below {durable_end} for durable, its disk ends at {len(disk.entries) + 1}")
        if memory and last_epoch != memory[-1][0]:
            raise Violation("I3", f"{node.id} takes {last_epoch} for its last epoch, it is {memory[-1][0]}")
        if start != disk.start:
            raise Violation("I13", f"{node.id} takes {start} for its start, it is {disk.start}")

    def healed(self, truth: Assignment, serving: Sequence[BrokerId]) -> None:
        """Long after the last fault."""
        if len(truth.replicas) < truth.floor:
            return
        if list(serving) != [truth.owner]:
            raise Violation("I16", f"{truth.owner} owns it, {list(serving)} serve")
        for broker in truth.copies:
            entries = self._nodes[broker].disk.entries
            if truth.level == "local_durable" and broker != truth.owner:
                continue
            if entries[: len(self.ledger)] != self.ledger:
                raise Violation("I6", f"{broker} does not hold what was committed, long after the last fault")
        if truth.level == "replica_durable" and not set(truth.replicas) - set(truth.leaving) <= set(truth.isr):
            raise Violation("I16", f"only {truth.isr} of {truth.replicas} are in sync, long after the last fault")
