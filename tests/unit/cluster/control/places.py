"""One broker's control on a memory coordinator, with the evidence that a test gives."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from headrace.cluster.control.control import Control
from headrace.cluster.control.evidence import NONE, Clues
from headrace.cluster.memory import MemoryStore
from headrace.model import config
from headrace.model.cluster import Assignment, BrokerId, Incarnation, Registered, decode, partition_key
from headrace.model.ids import PartitionId
from headrace.model.specs import QueueSpec


class Eyes:
    """Evidence as set by the test."""

    def __init__(self) -> None:
        self.known: dict[str, Clues] = {}
        self.closely: frozenset[BrokerId] = frozenset()
        self._told: list[Callable[[], None]] = []

    def clues(self, broker: BrokerId, incarnation: Incarnation) -> Clues:
        return self.known.get(incarnation, replace(NONE, swim="alive"))

    def look_at(self, registered: Mapping[BrokerId, Registered], closely: frozenset[BrokerId]) -> None:
        self.closely = closely

    def on_news(self, told: Callable[[], None]) -> None:
        self._told.append(told)

    def see(self, incarnation: str, clues: Clues) -> None:
        self.known[incarnation] = clues
        for told in self._told:
            told()


def me(name: str, life: int = 1, **what: Any) -> Registered:
    return Registered(id=BrokerId(name), name=f"broker-{name}", incarnation=Incarnation(f"{name}-{life}"), **what)


class Cluster:
    def __init__(self) -> None:
        self.store = MemoryStore(timeout_s=0.2)
        self.eyes: dict[str, Eyes] = {}
        self.controls: dict[str, Control] = {}
        self.lost: list[str] = []
        self.displaced: list[str] = []

    def start(self, name: str, life: int = 1, *, placement: config.Placement = config.Placement(), **what: Any) -> Control:
        """``what``: further fields of its registration."""
        eyes = self.eyes[name] = Eyes()
        made = Control(
            self.store.client(f"{name}-{life}"), eyes, me(name, life, addresses={"native": f"{name}:1"}, **what), ttl_ms=1000,
            placement=placement, lost=self.lost.append, displaced=self.displaced.append,
        )  # fmt: skip
        self.controls[name] = made
        made.start()
        return made

    def declare(self, name: str, *partitions: int, **settings: Any) -> None:
        spec = QueueSpec(partitions=len(partitions), **settings)
        document = {"name": name, "kind": "queue", "id": f"id-{name}", "partitions": partitions, "queue": spec, "routing_version": 7}
        self.store.write({}, {f"names/{name}": msgspec.msgpack.encode(document)}, 0)

    def assignment(self, partition: int) -> Assignment | None:
        document = self.store.document(partition_key(PartitionId(partition)))
        return None if document is None else decode(Assignment, document.value)

    def elected(self) -> list[str]:
        return [name for name, control in self.controls.items() if control.controller.election.look()]

    async def until(self, holds: Callable[[], object], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.01)
