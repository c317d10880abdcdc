"""A lone broker's catalogue on its way into a cluster, broken off at every step: everything is there once, and what was changed meanwhile stays."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from headrace.broker import importing
from headrace.broker.catalogue import COUNTER, NAMES, Item
from headrace.broker.importing import DONE_KEY, IMPORTED, carry_over, keep_carrying
from headrace.cluster.control.mirror import Mirror
from headrace.cluster.coordinator import Coordinator, Document, Page
from headrace.cluster.local import LocalCoordinator
from headrace.cluster.memory import MemoryStore
from headrace.model.cluster import PARTITIONS_PREFIX, Assignment, decode
from headrace.model.errors import CoordinatorUnavailable, Refused, UnknownOutcome
from headrace.model.specs import QueueSpec
from headrace.storage.api import PartitionLog

encode = msgspec.msgpack.Encoder().encode
WIDE = 300


class Small:
    """The small state of a store, and what else an import asks of it."""

    def __init__(self) -> None:
        self.pairs: dict[bytes, bytes] = {}
        self.state = self
        self.deleted: list[int] = []

    def get(self, key: bytes) -> bytes | None:
        return self.pairs.get(key)

    def scan(self, prefix: bytes, *_: Any, **__: Any) -> list[tuple[bytes, bytes]]:
        return sorted((k, v) for k, v in self.pairs.items() if k.startswith(prefix))

    async def commit_state(self, puts: Mapping[bytes, bytes | None]) -> None:
        for key, value in puts.items():
            if value is None:
                self.pairs.pop(key, None)
            else:
                self.pairs[key] = value

    async def delete(self, pids: tuple[int, ...]) -> None:
        self.deleted += pids

    def replay(self, pid: int) -> PartitionLog:
        return PartitionLog(None, 3, 7, 5, [])


class Alone:
    """What an import sees of a broker."""

    id = "0" * 32

    def __init__(self) -> None:
        self.store = Small()


class Dies(BaseException):
    pass


class Flaky:
    """A coordinator of which one transaction is not carried out (``before``) or not answered (``after``)."""

    def __init__(self, real: Coordinator, at: int, when: str, error: Callable[[], BaseException]) -> None:
        self._real, self._at, self._when, self._error = real, at, when, error
        self.count = 0

    async def get(self, key: str) -> Document | None:
        return await self._real.get(key)

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None]) -> bool:
        self.count += 1
        if self.count == self._at and self._when == "before":
            raise self._error()
        done = await self._real.transact(expected, puts)
        if self.count == self._at:
            raise self._error()
        return done


@pytest.fixture
async def alone() -> Alone:
    made = Alone()
    local = LocalCoordinator(made.store, made.store.commit_state)
    first = 1
    for name, count in (("big", WIDE), ("log", 1), ("orders", 2)):
        item = Item(name=name, kind="queue", id=f"{name:032}", partitions=tuple(range(first, first + count)), queue=QueueSpec(partitions=count))
        first += count
        await local.transact({}, {NAMES + name: encode(item)})
    gone = Item(name="gone", kind="queue", id="9" * 32, partitions=(first,), queue=QueueSpec())
    await local.transact({}, {"deleted/" + gone.id: encode(gone), COUNTER: b"%d" % (first + 1)})
    return made


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "AGAIN_S", 0.0)


async def everything(coordinator: Coordinator, prefix: str) -> list[Document]:
    page = Page((), True, 0)
    found: list[Document] = []
    while page.more:
        page = await coordinator.range(prefix, after=found[-1].key if found else "")
        found += page.documents
    return found


async def check(coordinator: Coordinator, names: tuple[str, ...] = ("big", "log", "orders")) -> None:
    found = await everything(coordinator, NAMES)
    assert [d.key for d in found] == [NAMES + name for name in names]
    assert {d.version for d in found} == {1}, "each came in once"
    items = [msgspec.msgpack.decode(d.value, type=Item) for d in found]
    assert {item.id for item in items} == {f"{name:032}" for name in names}
    assigned = [decode(Assignment, d.value) for d in await everything(coordinator, PARTITIONS_PREFIX)]
    assert sorted(a.partition for a in assigned) == sorted(pid for item in items for pid in item.partitions)
    assert {(a.owner, a.replicas, a.epoch, a.generation) for a in assigned} == {(Alone.id, (Alone.id,), 3, 2)}


STEPS = 1 + (WIDE - 126 + 127) // 128 + 3


async def test_how_many_steps_there_are(alone: Alone, cluster: None) -> None:
    coordinator = Flaky(MemoryStore().client("a"), 0, "", Dies)
    await carry_over(alone, coordinator)  # type: ignore[arg-type]
    assert coordinator.count == STEPS
    await check(coordinator._real)
    assert alone.store.deleted == [WIDE + 4]
    assert alone.store.get(DONE_KEY)
    await carry_over(alone, coordinator)  # type: ignore[arg-type]
    assert coordinator.count == STEPS, "it is done"


@pytest.mark.parametrize("error", [Dies, lambda: UnknownOutcome("no answer"), lambda: CoordinatorUnavailable("away")])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, STEPS + 1))
async def test_it_goes_on_where_it_was(alone: Alone, cluster: None, at: int, when: str, error: Callable[[], BaseException]) -> None:
    """A death, an answer that does not come, and a coordinator that is away, at each transaction."""
    real = MemoryStore().client("a")
    try:
        await carry_over(alone, Flaky(real, at, when, error))  # type: ignore[arg-type]
    except Dies:
        assert not alone.store.get(DONE_KEY)
        await carry_over(alone, real)  # type: ignore[arg-type]
    await check(real)
    assert alone.store.get(DONE_KEY)


async def test_what_was_deleted_in_the_cluster_before_it_went_on_does_not_come_back(alone: Alone, cluster: None) -> None:
    real = MemoryStore().client("a")
    with pytest.raises(Dies):
        await carry_over(alone, Flaky(real, STEPS, "before", Dies))  # type: ignore[arg-type]
    item = msgspec.msgpack.decode((await everything(real, NAMES))[1].value, type=Item)
    assert item.name == "log"
    keys = [NAMES + "log", *(d.key for d in await everything(real, PARTITIONS_PREFIX) if decode(Assignment, d.value).item == "log")]
    await real.transact({}, dict.fromkeys(keys))
    await carry_over(alone, real)  # type: ignore[arg-type]
    await check(real, ("big", "orders"))


async def test_a_name_that_others_took_meanwhile_is_left_to_them(alone: Alone, cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    real = MemoryStore().client("a")
    with pytest.raises(Dies):
        await carry_over(alone, Flaky(real, STEPS, "before", Dies))  # type: ignore[arg-type]
    theirs = Item(name="orders", kind="queue", id="5" * 32, partitions=(5000,), queue=QueueSpec())
    await real.transact({}, {NAMES + "orders": encode(theirs)})
    async with asyncio.timeout(10):
        await carry_over(alone, real)  # type: ignore[arg-type]
    document = await real.get(NAMES + "orders")
    assert document is not None
    assert document.value == encode(theirs)
    assert "the messages of this one stay here" in caplog.text


async def test_a_cluster_with_names_of_its_own_is_left_alone(alone: Alone, cluster: None) -> None:
    real = MemoryStore().client("a")
    await real.transact({}, {COUNTER: b"7"})
    with pytest.raises(Refused, match="names of its own"):
        await carry_over(alone, real)  # type: ignore[arg-type]
    assert await real.get(IMPORTED + Alone.id) is None
    assert not await everything(real, NAMES)


@pytest.mark.parametrize("deleted", [False, True])
async def test_names_are_asked_for_once_this_broker_has_been_told_of_them(alone: Alone, cluster: None, deleted: bool) -> None:
    """It was told of none yet when the last one had entered: who asked then was told that there is none."""
    store, done = MemoryStore(), asyncio.Event()
    real, mirror = store.client("a"), Mirror(store.client("a"), (NAMES,))
    carrying = asyncio.ensure_future(keep_carrying(alone, real, mirror, done))  # type: ignore[arg-type]
    while not alone.store.get(DONE_KEY):
        await asyncio.sleep(0)
    if deleted:
        await real.transact({}, {NAMES + "orders": None})
    else:
        await asyncio.sleep(0.01)
        assert not done.is_set()
        mirror.start()
    async with asyncio.timeout(5):
        await done.wait()
    assert deleted or mirror.get(NAMES + "orders") is not None
    await carrying
    await mirror.stop()
