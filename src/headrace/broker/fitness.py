"""What a broker of a cluster says of its own copies, what it learns of others' ends, and damaged copies that are made anew by themselves.

Owns the list of unfit partitions in the registration (the controller moves owners off them and elects none of them), which brokers the driver takes
for dead or draining, and when a damaged copy begins anew. Judges no copy itself: the driver does.

U1 A broker is registered only with what it knows of its damage. U2 A damaged copy begins anew by itself only while another broker owns the partition
and so many of those whose answers count are connected that the partition can go on without this one. U3 Who is merely not registered is not taken
for dead before its copies would be made elsewhere: others' answers after an unclean end count only then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from headrace.cluster.control.control import Control
from headrace.cluster.control.sightings import Sightings
from headrace.cluster.replication.driver import Driver
from headrace.core.control.liveness import verdict
from headrace.core.replica.configuration import recorded
from headrace.log import get_logger
from headrace.model.cluster import UNFIT_MAX, BrokerId
from headrace.model.errors import HeadraceError, Refused, StorageError
from headrace.model.ids import PartitionId

_log = get_logger("cluster")
AGAIN_S: Final = 1.0


class Fitness:
    """See the module's head."""

    def __init__(self, driver: Driver, control: Control, sightings: Sightings, damaged: Iterable[int]) -> None:
        """``damaged``: partitions whose data here were found damaged before this life began to replicate."""
        self._driver = driver
        self._control = control
        self._sightings = sightings
        self._unfit = dict.fromkeys(sorted({*damaged, *driver.suspect}), True)
        self._renewing: dict[int, asyncio.Task[None]] = {}
        self._draining: dict[BrokerId, bool] = {}
        self._loop = asyncio.get_running_loop()
        self._say()
        driver.fitness, driver.news = self._told, self.look
        sightings.on_news(self.look)
        control.mirror.on_turn(self._turned)

    def stop(self) -> None:
        """Nothing is made anew any more."""
        for task in self._renewing.values():
            task.cancel()

    def forget(self, pid: int) -> None:
        """It was deleted."""
        if self._unfit.pop(pid, False):
            self._say()

    # ------------------------------------------------------------ what is said

    def _told(self, pid: int, unfit: bool) -> None:
        if unfit:
            self._unfit[pid] = True
        elif not self._unfit.pop(pid, False):
            return
        self._say()
        self.mend(pid)

    def _say(self) -> None:
        self._control.presence.update(unfit=tuple(PartitionId(pid) for pid in sorted(self._unfit)[:UNFIT_MAX]))

    # ------------------------------------------------------------ what is learnt

    def _turned(self) -> None:
        """Documents have changed."""
        for id, registered in self._control.picturing.present().items():
            if self._draining.get(id, False) != registered.draining:
                self._draining[id] = registered.draining
                self._driver.draining(id, registered.draining)
        self.look()

    def look(self) -> None:
        """Whether those are dead for whose answers partitions wait that begin here, and whether what is damaged may begin anew."""
        missing = self._driver.missed()
        self._sightings.also(missing)
        picturing = self._control.picturing
        now_ms = picturing.now_ms()
        for broker in sorted(missing):
            seen = picturing.seen(broker)
            if seen is None or broker in self._driver.links:
                continue
            if not seen.present:
                dead = now_ms - seen.since_ms >= picturing.settings.replace_after_ms
            else:
                dead = verdict(seen, picturing.settings, now_ms).state == "dead"
            if dead:
                self._driver.dead(broker)
        for pid in list(self._unfit):
            self.mend(pid)

    # ------------------------------------------------------------ damaged copies

    def mend(self, pid: int) -> None:
        """Begins to make a damaged copy anew, if it may be."""
        if pid not in self._renewing and self._may_be_renewed(pid):
            task = self._renewing[pid] = self._loop.create_task(self._renew(pid), name=f"partition {pid} anew")
            task.add_done_callback(lambda _: self._renewing.pop(pid, None))

    def _may_be_renewed(self, pid: int) -> bool:
        driver = self._driver
        partition = driver.partitions.get(pid)
        if partition is None or not driver.damage(pid):
            return False
        document = partition.replica.document
        if document is None or document.owner == driver.me or driver.me not in document.copies:
            return False
        counted = {document.owner, *(b for b in recorded(document) if b != driver.me)}
        return document.owner in driver.links and sum(b in driver.links for b in counted) >= document.recovery_quorum

    async def _renew(self, pid: int) -> None:
        while self._may_be_renewed(pid):
            why = self._driver.damage(pid)
            try:
                reason = f"its copy here is damaged ({why}) and others have what was committed; what can be read of it is set aside"
                await self._driver.renew(pid, reason)
                return
            except Refused:
                return  # until a document changes
            except StorageError as e:
                _log.warning("partition %d: its damaged copy cannot begin anew yet: %s", pid, e)
            except HeadraceError as e:
                _log.error("partition %d: its damaged copy cannot begin anew: %s", pid, e)
                return
            await asyncio.sleep(AGAIN_S)
