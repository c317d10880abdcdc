"""What becomes of deleted queues and streams in a cluster: their data go on every broker, then the records of their deletions go.

Owns this broker's document under ``erased/``, which names the deletions that it has carried out, and, on the controller, the removal of records that
everybody has carried out. Does not remove assignments: the controller's plan does.

X1 Data are erased only for a recorded deletion whose partitions nobody is assigned and no catalogue has: that something is not found is never a
reason. X2 A deletion is named as carried out once the erasure is durable. X3 A record goes once all who ever had a document under ``erased/`` and all
who are registered have named it; brokers that an operator has emptied and that are gone are not waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from headrace.cluster.control.control import Control
from headrace.cluster.control.declared import DELETED_PREFIX
from headrace.cluster.coordinator import Coordinator
from headrace.cluster.replication.driver import Driver
from headrace.log import get_logger
from headrace.model.cluster import ERASED_MAX, ERASED_PREFIX, BrokerId, Erased, decode, encode
from headrace.model.errors import CoordinatorUnavailable, DiskFull, HeadraceError, UnknownOutcome

_log = get_logger("cluster")
AGAIN_S: Final = 1.0


class Data(Protocol):
    """The store as far as this needs it."""

    async def delete(self, pids: list[int]) -> None: ...


class Erasing:
    """See the module's head."""

    def __init__(self, driver: Driver, control: Control, coordinator: Coordinator, data: Data, closed: Callable[[int], None]) -> None:
        """``closed(pid)``: nothing is done for that partition any more, before its data go."""
        self._driver = driver
        self._control = control
        self._coordinator = coordinator
        self._data = data
        self._closed = closed
        self._news = asyncio.Event()
        control.mirror.on_turn(self._news.set)

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._control.mirror.synced.wait()
        while True:
            self._news.clear()
            try:
                await self._turn()
            except (CoordinatorUnavailable, UnknownOutcome, DiskFull):
                await asyncio.sleep(AGAIN_S)
                self._news.set()
            except HeadraceError as e:
                _log.error("what was deleted cannot be erased: %s", e)
                await asyncio.sleep(AGAIN_S)
            await self._news.wait()

    async def _turn(self) -> None:
        picturing = self._control.picturing
        recorded = picturing.deletions()
        done = await self._carry_out()
        await self._say(done)
        if self._control.controller.election.look():
            await self._collect([id for id in sorted(recorded) if id in done])

    # ------------------------------------------------------------ this broker's part

    async def _carry_out(self) -> tuple[str, ...]:
        """Erases what can be; the deletions that are carried out here."""
        picturing, driver = self._control.picturing, self._driver
        mine = self._said(driver.me)
        done = dict.fromkeys(id for id in (mine.done if mine is not None else ()) if id in picturing.deletions())
        living = {declared.id for declared in picturing.declared.values()}
        for id, declared in picturing.deletions().items():
            if id in done or len(done) == ERASED_MAX or not all(picturing.is_removed(pid) for pid in declared.partitions):
                continue
            if id in living:
                _log.error("%r is in the catalogue and its deletion is recorded; its data are left as they are", declared.name)
                continue
            held = [int(pid) for pid in declared.partitions if driver.holds(pid)]
            for pid in held:
                self._closed(pid)
            if held:
                await self._data.delete(held)
                _log.info("%r was deleted: the data of its partitions %s here are erased", declared.name, ", ".join(map(str, held)))
            for pid in held:
                driver.close(pid)
            done[id] = None
        return tuple(sorted(done))

    async def _say(self, done: tuple[str, ...]) -> None:
        key = ERASED_PREFIX + self._driver.me
        document = self._control.mirror.get(key)
        if document is not None and decode(Erased, document.value).done == done:
            return
        version = 0 if document is None else document.version
        if await self._coordinator.transact({key: version}, {key: encode(Erased(done=done))}):
            await self._control.mirror.moved({key: version}, timeout_s=AGAIN_S)

    def _said(self, broker: BrokerId) -> Erased | None:
        document = self._control.mirror.get(ERASED_PREFIX + broker)
        return None if document is None else decode(Erased, document.value)

    # ------------------------------------------------------------ the controller's part

    async def _collect(self, ids: list[str]) -> None:
        """Removes the records that nobody needs any more."""
        picturing, mirror = self._control.picturing, self._control.mirror
        known = {BrokerId(d.key[len(ERASED_PREFIX) :]) for d in mirror.under(ERASED_PREFIX)}
        present = set(picturing.present())
        gone = set(picturing.settings.emptied) - present
        said = [self._said(broker) for broker in sorted((known | present) - gone)]
        for id in ids:
            document = mirror.get(DELETED_PREFIX + id)
            if document is not None and all(each is not None and id in each.done for each in said):
                await self._coordinator.transact({document.key: document.version}, {document.key: None})
