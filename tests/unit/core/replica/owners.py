"""An owner with its followers at the end of a string: a test says what they answer and what becomes of a compare-and-swap."""

from collections.abc import Sequence
from typing import Any, TypeVar

from headrace.core.replica.effects import AnyEffect, Begin, Outcome, Promise, Send, Swap
from headrace.core.replica.journal import Recovered
from headrace.core.replica.messages import Ack, AnyMessage, NewEpoch, State
from headrace.core.replica.replica import Replica
from headrace.model.cluster import Assignment, BrokerId, Incarnation
from headrace.model.ids import Epoch, PartitionId

E = TypeVar("E", bound=AnyEffect)
ME, LIFE = BrokerId("a"), Incarnation("a1")


def assignment(level: Any = "replica_durable", *, names: Sequence[str] = "abc", isr: Sequence[str] | None = None, **more: Any) -> Assignment:
    """An assignment of epoch 3 whose owner is ``a`` in its first life."""
    replicas = tuple(BrokerId(n) for n in names)
    members = replicas if isr is None else tuple(BrokerId(n) for n in isr)
    given: dict[str, Any] = {
        "partition": PartitionId(1), "item": "orders", "owner": ME, "incarnation": LIFE, "epoch": Epoch(3), "level": level, "replicas": replicas,
        "isr": members if level == "replica_durable" else (), **more,
    }  # fmt: skip
    return Assignment(**given)


class Bench:
    """``replica`` and what it has asked for since the last look."""

    def __init__(self, document: Assignment, found: Recovered | None = None) -> None:
        self.heard: dict[BrokerId, int] = {}
        self.replica = Replica(ME, LIFE, found or Recovered(), self.heard)
        self.now_ms = 0
        self.effects: list[AnyEffect] = []
        self.sessions: dict[str, int] = {}
        self.epoch = int(document.epoch)
        self.replica.assigned(document, 0)
        self._look()

    def _look(self) -> None:
        self.replica.step(self.now_ms)
        for effect in self.replica.take():
            self.effects.append(effect)
            if isinstance(effect, Send) and isinstance(effect.message, NewEpoch):
                self.sessions[effect.to] = effect.message.session
        self.replica.check()

    def took(self, kind: type[E]) -> list[E]:
        """The effects of that kind since the last call; all others stay."""
        found = [e for e in self.effects if isinstance(e, kind)]
        self.effects = [e for e in self.effects if not isinstance(e, kind)]
        return found

    def later(self, ms: int, *, hears: str = "") -> None:
        """Time passes, a turn at a time; frames of those brokers keep coming."""
        for _ in range(ms // 100):
            self.now_ms += 100
            for broker in hears:
                self.heard[BrokerId(broker)] = self.now_ms
            self._look()

    def synced(self) -> None:
        """Everything asked of the disk is durable."""
        for effect in self.took(Promise):
            self.replica.promised(effect.epoch, self.now_ms)
        self.replica.durable(self.replica.journal.end, self.now_ms)
        self._look()

    def connects(self, *brokers: str) -> None:
        for broker in brokers:
            self.heard[BrokerId(broker)] = self.now_ms
            self.replica.connected(BrokerId(broker), Incarnation(f"{broker}1"), self.now_ms)
            self._look()

    def breaks(self, broker: str) -> None:
        self.replica.disconnected(BrokerId(broker), self.now_ms)
        self._look()

    def says(self, broker: str, message: AnyMessage) -> None:
        self.heard[BrokerId(broker)] = self.now_ms
        self.replica.received(BrokerId(broker), message, self.now_ms)
        self._look()

    def holds(self, broker: str, end: int = 1, *, runs: Sequence[tuple[int, int]] = (), high_watermark: int = 1, **more: Any) -> None:
        """That follower has promised the epoch and says what it holds."""
        said: dict[str, Any] = {"incarnation": f"{broker}1", "start": 1, "history_start": 1, "base_epoch": 0, **more}
        self.says(broker, State(epoch=self.epoch, session=self.sessions[broker], end=end, runs=tuple(runs), high_watermark=high_watermark, **said))

    def acks(self, broker: str, end: int) -> None:
        self.says(broker, Ack(epoch=self.epoch, session=self.sessions[broker], end=end))

    def appends(self, count: int = 1) -> int:
        """Entries are in the buffer; their exclusive end."""
        owner = self.replica.owner
        assert owner is not None
        owner.appended(count, self.now_ms)
        self._look()
        return self.replica.journal.end

    def waits(self, level: int, token: int) -> None:
        """For all that is appended."""
        assert self.replica.owner is not None
        self.replica.owner.wait(level, self.replica.journal.end, token)
        self._look()

    def swap(self) -> Swap:
        """The last compare-and-swap that was asked for."""
        return self.took(Swap)[-1]

    def answers(self, swap: Swap, outcome: Outcome, document: Assignment | None = None) -> None:
        self.replica.swapped(swap.number, outcome, document, self.now_ms)
        self._look()

    def serves(self) -> "Bench":
        """All followers join an empty partition, and the owner serves."""
        self.synced()
        followers = [b for b in (self.replica.document.copies if self.replica.document else ()) if b != ME]
        self.connects(*followers)
        for broker in followers:
            self.holds(broker)
        self.later(1_000, hears="".join(followers))
        self.synced()
        for broker in followers:
            self.acks(broker, 2)
        assert self.took(Begin) == [Begin(self.epoch, 1)]
        assert self.replica.refusal(0, self.now_ms) is None
        self.effects.clear()
        return self
