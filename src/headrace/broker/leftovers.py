"""What a copy leaves on this broker when it was moved to others: erased once nobody can need it any more.

Owns which partitions are looked at for that, and why each of them still waits. Erases nothing itself: the driver does, and keeps what the copy has
promised.

L1 Data go only while the recorded document, as the coordinator itself answers at that moment, names this broker nowhere, while all copies that the
settings ask for are recorded and in sync, nobody comes or goes, and all who hold them are registered and call them sound. L2 That a document is
missing is never a reason: what was deleted is ``erasing``'s. L3 Before the first byte goes it is durable that the copy counts as one that has lost
something, so that an older document that comes back finds no empty member that is believed. L4 It may be broken off at any step, and is begun again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from headrace.cluster.control.control import Control
from headrace.cluster.control.declared import item
from headrace.cluster.coordinator import Coordinator
from headrace.cluster.replication.driver import Driver
from headrace.log import get_logger
from headrace.model.cluster import UNFIT_MAX, Assignment, decode, partition_key
from headrace.model.errors import CoordinatorUnavailable, HeadraceError
from headrace.model.ids import PartitionId

_log = get_logger("cluster")
AGAIN_S: Final = 1.0


class Leftovers:
    """See the module's head."""

    def __init__(
        self, driver: Driver, control: Control, coordinator: Coordinator, held: Iterable[int], closed: Callable[[int], None],
        opened: Callable[[int], None],
    ) -> None:  # fmt: skip
        """``held``: partitions of which there are data here. ``closed(pid)``: nothing is done for that partition any more, before its data go;
        ``opened(pid)``: it may be taken up again, if it was given back meanwhile."""
        self._driver = driver
        self._control = control
        self._coordinator = coordinator
        self._closed = closed
        self._opened = opened
        self._looked_at = dict.fromkeys(held, "")
        self._trouble: dict[int, str] = {}
        """What was said last of what could not be erased."""
        self._news = asyncio.Event()
        control.mirror.on_turn(self._news.set)

    def moved(self, pid: int) -> None:
        """A copy of it was here in this life, and is recorded here no more."""
        self._looked_at.setdefault(pid, "")
        self._news.set()

    @property
    def waiting(self) -> dict[int, str]:
        """The partitions of which there are data here that belong to nobody here, and why they are still there ("" = they are being erased)."""
        stored = self._control.picturing.stored
        found = ((pid, stored.get(PartitionId(pid))) for pid in self._looked_at)
        return {pid: self._looked_at[pid] for pid, now in found if now is not None and not self._is_mine(now.assignment)}

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._control.mirror.synced.wait()
        while True:
            self._news.clear()
            again = False
            for pid in list(self._looked_at):
                try:
                    await self._look(pid)
                except CoordinatorUnavailable:
                    again = True
                except HeadraceError as e:
                    if self._trouble.get(pid) != str(e):
                        self._trouble[pid] = str(e)
                        _log.warning("what is left here of partition %d cannot be erased yet: %s", pid, e)
                    self._looked_at[pid] = str(e)
                    again = True
            if again:
                await asyncio.sleep(AGAIN_S)
                self._news.set()
            await self._news.wait()

    async def _look(self, pid: int) -> None:
        stored = self._control.picturing.stored.get(PartitionId(pid))
        if stored is None:
            return
        a = stored.assignment
        if self._is_mine(a) or not (self._driver.keeps(pid) or pid in self._driver.partitions):  # an open one may be sent entries yet
            del self._looked_at[pid]
            return
        self._looked_at[pid] = why = self._needed(a)
        if why:
            return
        now = await self._coordinator.get(partition_key(a.partition))
        known = self._control.picturing.stored.get(a.partition)
        if now is None or known is None or not decode(Assignment, now.value) == a == known.assignment:
            return  # what is known here of it is about to change, or has changed
        self._closed(pid)
        try:
            await self._driver.give_up(pid)
        except HeadraceError:
            self._opened(pid)
            raise
        del self._looked_at[pid]
        self._trouble.pop(pid, None)
        self._opened(pid)
        _log.info("partition %d of %r was moved to %s: its data here are erased", pid, a.item, ", ".join(a.replicas))

    def _is_mine(self, a: Assignment) -> bool:
        me = self._driver.me
        return me == a.owner or me in a.copies or me in a.leaving or me in a.isr or me in a.elr

    def _needed(self, a: Assignment) -> str:
        """Why what is left here may be needed still, "" = it is not."""
        picturing = self._control.picturing
        declared = picturing.declared.get(a.item)
        if declared is None or a.partition not in declared.partitions:
            return f"{a.item!r} is not known here"
        factor = item(declared).factor
        if a.learners or a.leaving:
            return "its copies still move"
        if len(a.replicas) < factor:
            return f"{len(a.replicas)} of {factor} copies are recorded"
        if a.elr or (a.level == "replica_durable" and set(a.isr) != set(a.replicas)):
            return "not all of its copies are in sync"
        present = picturing.present()
        for broker in a.replicas:
            registered = present.get(broker)
            if registered is None:
                return f"broker {broker}, which has a copy, is not registered"
            if a.partition in registered.unfit or len(registered.unfit) >= UNFIT_MAX:
                return f"broker {broker} does not call its copy sound"
        return ""
