"""Names of a cluster as its brokers have them at hand."""

import asyncio
from typing import Any

import pytest

from headrace.broker.catalogue import Catalogue, Item
from headrace.cluster.control.mirror import Mirror
from headrace.cluster.memory import MemoryStore
from headrace.cluster.mirrored import Mirrored
from headrace.model.errors import Conflict, CoordinatorUnavailable, NotFound
from headrace.model.specs import QueueSpec


class One:
    """One broker's catalogue."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        coordinator = store.client(name)
        self.mirror = Mirror(coordinator, ("names/", "deleted/"))
        self.told: list[tuple[str, str]] = []
        self.numbers = 0
        self.catalogue = Catalogue(
            Mirrored(coordinator, self.mirror),
            new_id=self._new_id,
            wall_ms=lambda: 0,
            undeclared=lambda name, kind: None,
            changed=self._changed,
            known=self.mirror.synced.is_set,
        )
        self.mirror.on_change("names/", self.catalogue.told)
        self.name = name

    def _new_id(self) -> str:
        self.numbers += 1
        return f"{self.name}-{self.numbers}"

    def _changed(self, item: Item, change: str) -> None:
        self.told.append((item.name, change))

    async def start(self) -> "One":
        self.mirror.start()
        await asyncio.wait_for(self.mirror.synced.wait(), 5)
        return self


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore(timeout_s=0.05)


async def until(holds: Any) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


async def test_what_one_declares_it_has_at_once_and_the_others_soon(store: MemoryStore) -> None:
    a, b = await One(store, "a").start(), await One(store, "b").start()
    item = await a.catalogue.declare("orders", QueueSpec())
    assert a.catalogue.get("orders") == item
    await until(lambda: b.catalogue.find("orders") == item)
    assert (a.told, b.told) == ([("orders", "declared")], [("orders", "declared")])
    assert (a.catalogue.queues, b.catalogue.queues) == (1, 1)


async def test_two_that_declare_at_once_have_the_same(store: MemoryStore) -> None:
    a, b = await One(store, "a").start(), await One(store, "b").start()
    first, second = await asyncio.gather(a.catalogue.declare("orders", QueueSpec()), b.catalogue.declare("orders", QueueSpec()))
    assert first == second
    with pytest.raises(Conflict):
        await b.catalogue.declare("orders", QueueSpec(lease_ms=1000))


async def test_what_is_altered_or_deleted_elsewhere_is_so_here(store: MemoryStore) -> None:
    a, b = await One(store, "a").start(), await One(store, "b").start()
    await a.catalogue.declare("orders", QueueSpec())
    await until(lambda: b.catalogue.find("orders"))
    await b.catalogue.alter("orders", "queue", {"lease_ms": 1000})
    await until(lambda: (item := a.catalogue.find("orders")) is not None and item.queue is not None and item.queue.lease_ms == 1000)
    await b.catalogue.delete("orders")
    await until(lambda: a.catalogue.find("orders") is None)
    assert a.told == b.told == [("orders", "declared"), ("orders", "altered"), ("orders", "deleted")]
    assert (a.catalogue.queues, b.catalogue.queues) == (0, 0)


async def test_a_broker_that_has_not_reached_the_coordinator_does_not_say_that_a_name_is_not_there(store: MemoryStore) -> None:
    late = One(store, "late")
    with pytest.raises(CoordinatorUnavailable):
        late.catalogue.get("orders")
    with pytest.raises(CoordinatorUnavailable):
        await late.catalogue.use("orders", "queue")
    await late.start()
    with pytest.raises(NotFound):
        late.catalogue.get("orders")


async def test_a_document_that_cannot_be_read_hurts_nobody_else(store: MemoryStore) -> None:
    a = await One(store, "a").start()
    store.write({}, {"names/broken": b"\xff"}, 0)
    await a.catalogue.declare("orders", QueueSpec())
    assert a.catalogue.get("orders").name == "orders"
    assert a.told == [("orders", "declared")]
