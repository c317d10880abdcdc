"""When the machine of each partition is asked: once a turn, if something came in for it or its time has come (D1).

Owns who waits for the end of this turn, the deadlines of all partitions, and one timer. What is done once all were asked the driver says. A machine
that raises stops alone (D4).
"""

import asyncio
import heapq
from collections.abc import Callable, Mapping

from headrace.cluster.replication.partition import Replicated
from headrace.log import get_logger

_log = get_logger("replicas")


class Turns:
    """See the module's head."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, partitions: Mapping[int, Replicated], now_ms: Callable[[], int], turned: Callable[[], None]
    ) -> None:
        """``partitions``: those that are open, by number. ``turned`` is called in each turn, after the last machine was asked."""
        self._loop = loop
        self._partitions = partitions
        self._now_ms = now_ms
        self._turned = turned
        self._dirty: dict[int, Replicated] = {}
        self._scheduled = self._ended = False
        self._due: list[tuple[int, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0

    def stir(self, partition: Replicated) -> None:
        """Something came in for it: its machine is asked at the end of this turn."""
        self._dirty[partition.pid] = partition
        if not self._scheduled and not self._ended:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def again(self, partition: Replicated, seconds: float) -> None:
        """It is stirred later."""
        if seconds:
            self._loop.call_later(seconds, self.stir, partition)
        else:
            self._loop.call_soon(self.stir, partition)

    def forget(self, pid: int) -> None:
        """That partition is open no more."""
        self._dirty.pop(pid, None)

    def stop(self) -> None:
        """Nobody is asked any more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self._scheduled = False
        if self._ended:
            return
        dirty, self._dirty = self._dirty, {}
        now_ms = self._now_ms()
        for partition in dirty.values():
            if not partition.halted:
                self._one(partition, now_ms)
        self._turned()
        self._arm(now_ms)

    def _one(self, partition: Replicated, now_ms: int) -> None:
        try:
            partition.turn(now_ms)
        except Exception as e:
            _log.exception("partition %d is halted: its replica has failed", partition.pid)
            partition.halt(f"its replica has failed: {e}")
            return
        due = partition.replica.next_deadline_ms(now_ms)
        if due is not None and (partition.wake_ms <= now_ms or due < partition.wake_ms):
            partition.wake_ms = max(due, now_ms + 1)
            heapq.heappush(self._due, (partition.wake_ms, partition.pid))

    def _arm(self, now_ms: int) -> None:
        if not self._due:
            return
        due = self._due[0][0]
        if self._timer is None or due < self._timer_ms:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_ms = due
            self._timer = self._loop.call_later(max(0, due - now_ms) / 1000, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now_ms = self._now_ms()
        while self._due and self._due[0][0] <= now_ms:
            _, pid = heapq.heappop(self._due)
            partition = self._partitions.get(pid)
            if partition is not None:
                self.stir(partition)
        self._arm(now_ms)
