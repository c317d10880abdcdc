"""The newest entries of all partitions in memory, as they lie in the log: what is sent to followers that keep up.

Owns (header, payload) pairs by index, and their order of age over all partitions. Payloads are those of the log's own entries, not copies.

I1 What is not durable is dropped only when it is cut: nowhere else can it be read. I2 A partition's entries are dense up to its end. I3
``Memory.nbytes`` is at most its bound plus what is not durable.
"""

from collections import deque
from typing import Final

RECENT_BYTES_MAX: Final = 32 * 1024 * 1024
_OVERHEAD: Final = 200


class Memory:
    """What all partitions have together."""

    __slots__ = ("bytes_max", "nbytes", "order")

    def __init__(self, bytes_max: int = RECENT_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        self.order: deque[tuple[Recent, int]] = deque()

    def evict(self) -> None:
        """Drops the oldest durable entries until the rest fits."""
        while self.nbytes > self.bytes_max and self.order:
            recent, index = self.order[0]
            if recent.durable_end <= index < recent.end:
                return
            self.order.popleft()
            if index >= recent.end:
                continue  # it was cut
            while recent.entries and recent.first <= index:
                recent.drop()


class Recent:
    """One partition's, ``[first, end)``."""

    __slots__ = ("durable_end", "entries", "first", "memory")

    def __init__(self, memory: Memory, end: int) -> None:
        self.memory = memory
        self.first = self.durable_end = end
        self.entries: deque[tuple[bytes, bytes]] = deque()

    @property
    def end(self) -> int:
        return self.first + len(self.entries)

    def add(self, head: bytes, payload: bytes) -> None:
        self.memory.order.append((self, self.end))
        self.entries.append((head, payload))
        self.memory.nbytes += len(payload) + _OVERHEAD

    def drop(self) -> None:
        """Forgets the oldest."""
        _, payload = self.entries.popleft()
        self.first += 1
        self.memory.nbytes -= len(payload) + _OVERHEAD

    def cut(self, at: int) -> None:
        """Nothing is held from ``at`` on any more."""
        while self.entries and self.end > at:
            _, payload = self.entries.pop()
            self.memory.nbytes -= len(payload) + _OVERHEAD
        if not self.entries:
            self.first = at
        self.durable_end = min(self.durable_end, at)

    def restart(self, end: int) -> None:
        """Nothing is held, what comes next is the entry at ``end``."""
        self.cut(self.first)
        self.first = self.durable_end = end

    def pieces(self, first: int, end: int, bytes_max: int) -> tuple[list[bytes], int]:
        """Entries from ``first`` on as bytes, about ``bytes_max`` together but at least one, and where they end; none if the first is not here."""
        found: list[bytes] = []
        if not self.first <= first < self.end:
            return found, first
        at = first
        for number in range(first - self.first, min(end, self.end) - self.first):
            head, payload = self.entries[number]
            bytes_max -= len(head) + len(payload)
            if found and bytes_max < 0:
                break
            found.append(head)
            found.append(payload)
            at += 1
        return found, at
