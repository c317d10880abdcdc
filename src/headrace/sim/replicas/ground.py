"""The ground of the small world: time, the order of events, brokers and connections as things, and what is recorded at the coordinator.

Owns the heap of events. Knows nobody's behaviour; the classes that derive from ``Ground`` add it: ``network``, ``coordination``, ``brokers``,
``world``.
"""

import heapq
from collections.abc import Callable
from typing import Any

from headrace.core.replica.replica import Replica
from headrace.model.cluster import Assignment, BrokerId, Incarnation
from headrace.model.ids import Epoch, PartitionId
from headrace.sim.chance import Chance
from headrace.sim.replicas.checks import Checks, Violation
from headrace.sim.replicas.disk import Disk, Entry
from headrace.sim.replicas.plan import Plan

EVENTS_MAX = 60_000


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


class Ground:
    """See the module's head. What the classes that derive from it share."""

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

    def _until(self, end_ms: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end_ms:
            self.now_ms, _, call, args = heapq.heappop(heap)
            self.events += 1
            if self.events > EVENTS_MAX:
                raise Violation("I17", f"{self.events} events in {self.now_ms} ms")
            call(*args)
        self.now_ms = end_ms

    def pump(self, node: Node) -> None:
        """Lets a broker's machine act on what came in, and does what it asks for."""
        raise NotImplementedError
