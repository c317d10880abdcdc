"""When partitions want to be looked at without anything having come for them: one timer of the loop for all.

Owns the deadlines and that timer. A deadline that its partition has meanwhile exchanged for another stays in the heap and does nothing when it comes.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING

from headrace.broker.partition import Partition

if TYPE_CHECKING:
    from headrace.broker.broker import Broker


class Deadlines:
    """See the module's head."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._heap: list[tuple[int, int, Partition]] = []
        self._sequence = 0
        """Orders what is due at the same time."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0

    def add(self, due_ms: int, partition: Partition) -> None:
        """``partition`` wants a tick at that monotonic time."""
        self._sequence += 1
        heapq.heappush(self._heap, (due_ms, self._sequence, partition))
        self._arm()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if not self._heap:
            return
        due = self._heap[0][0]
        if self._timer is not None:
            if self._timer_ms <= due:
                return
            self._timer.cancel()
        self._timer_ms = due
        broker = self._broker
        self._timer = broker.loop.call_later(max(0.0, (due - int(broker.ambient.monotonic() * 1000)) / 1000), self._come)

    def _come(self) -> None:
        self._timer = None
        broker = self._broker
        broker.refresh()
        while self._heap and self._heap[0][0] <= broker.now_ms:
            due, _, partition = heapq.heappop(self._heap)
            if partition.deadline_ms == due and broker.partitions.get(partition.pid) is partition:
                partition.deadline_ms = None
                broker.mark(partition)
        self._arm()
