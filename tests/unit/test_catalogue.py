"""The names of a lone broker."""

import asyncio
import gc
from collections.abc import Mapping
from typing import Any

import pytest

from headrace.broker import catalogue as module
from headrace.broker.catalogue import COUNTER, Catalogue, Item
from headrace.cluster.local import LocalCoordinator
from headrace.model.errors import Unavailable
from headrace.model.specs import QueueSpec
from tests.unit.test_importing import Small


def catalogue(state: Small, commit: Any = None) -> Catalogue:
    return Catalogue(
        LocalCoordinator(state, commit or state.commit_state),  # type: ignore[arg-type]
        new_id=lambda: "0" * 32, wall_ms=lambda: 0, undeclared=lambda name, kind: None, changed=lambda item, change: None,
    )  # fmt: skip


async def test_a_partition_id_is_given_once_though_the_counter_was_lost() -> None:
    """A damaged disk had kept the name and not the counter: another name was given the same partition."""
    state = Small()
    before = await catalogue(state).declare("orders", QueueSpec(partitions=3))
    await LocalCoordinator(state, state.commit_state).transact({}, {COUNTER: None})  # type: ignore[arg-type]
    again = catalogue(state)
    await again.open()
    assert not {*before.partitions} & {*(await again.declare("more", QueueSpec(partitions=3))).partitions}


async def test_a_name_is_not_declared_while_it_is_being_deleted() -> None:
    """What was said to be declared was gone as soon as the disk had room."""
    state = Small()
    room = asyncio.Event()
    commit = state.commit_state

    async def slowly(puts: Mapping[bytes, bytes | None]) -> None:
        await room.wait()
        await commit(puts)

    names = catalogue(state, slowly)
    room.set()
    await names.declare("orders", QueueSpec())
    room.clear()
    deletion = asyncio.ensure_future(names.delete("orders"))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="being deleted"):
        await names.declare("orders", QueueSpec())
    room.set()
    await deletion
    assert names.find("orders") is None
    await names.declare("orders", QueueSpec())
    assert names.find("orders") is not None


async def test_names_that_were_declared_are_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """They all were: 100,000 queues that had just been declared took twice the memory of the same ones after a start."""
    monkeypatch.setattr(module, "CACHE_MAX", 3)
    names = catalogue(Small())
    for number in range(10):
        await names.declare(f"kept-{number}", QueueSpec())
        await names.alter("kept-0", "queue", {"max_messages": number + 1})
    assert sum(isinstance(item, Item) and item.name.startswith("kept-") for item in gc.get_objects()) <= 3
    assert [names.get(f"kept-{number}").name for number in range(10)] == [f"kept-{number}" for number in range(10)]
