"""The newest records of all partitions in memory, within one bound: what a consumer that keeps up is served from.

Owns whole RECORDS entries as appended, per partition in offset order, and the order of their age over all partitions. Knows neither log nor segments.
What is appended while nobody reads the partition does not come here (``intake``).

I1 The oldest entries over all partitions go first. I2 The bound drops no entry that is not durable: nowhere else can it be read. I3 What a tail
holds is without a gap up to the partition's end, so an offset above its first is in it. I4 ``nbytes`` is at most the bound plus what is not
durable."""

from typing import Final

from headrace.storage.entry import Appended, StoredEntry

_OVERHEAD: Final = 300
"""What an entry costs beside its payload: the object, the list slots."""
_GONE: Final = Appended(0, 0, 0, 0, 0, 0, 0, b"")
_STALE_MIN: Final = 1024
_PASSED_MIN: Final = 1024


class Tail:
    """One partition's newest entries: ``entries[head:]``, of which the last may not be durable yet."""

    __slots__ = ("entries", "gone", "head")

    def __init__(self) -> None:
        self.entries: list[Appended] = []
        self.head: int = 0
        self.gone: int = 0
        """How many of its oldest places in the cache's order are those of entries that were dropped before their turn."""

    def find(self, offset: int, bytes_max: int, end_offset: int) -> list[StoredEntry] | None:
        """Entries from the one that holds ``offset`` on; None: it is older than what is here (or nothing is here)."""
        entries, head = self.entries, self.head
        count = len(entries)
        if head == count:
            return None
        at = count - 1
        if entries[at].base_offset > offset:
            low: int = head
            while low < at:  # the first entry that begins above the offset lies in low..at
                middle: int = (low + at) // 2
                if entries[middle].base_offset > offset:
                    at = middle
                else:
                    low = middle + 1
            at = low - 1
            if at < head:
                return None
        entry = entries[at]
        if entry.base_offset + entry.record_count <= offset:
            at += 1
            if at == count:
                return []
            entry = entries[at]
        left = bytes_max - len(entry.payload)
        found: list[StoredEntry] = [entry]
        for number in range(at + 1, count):
            entry = entries[number]
            left -= len(entry.payload)
            if left < 0 or entry.base_offset >= end_offset:
                break
            found.append(entry)
        return found


class TailCache:
    """All tails. Every call costs O(entries added or dropped)."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max: int = bytes_max
        self.nbytes: int = 0
        self._order: list[Tail] = []
        """Whose oldest entry goes next: from ``_next`` on, one place an entry."""
        self._next: int = 0
        self._stale: int = 0

    def add(self, tail: Tail, entry: Appended) -> None:
        """Takes an entry that was appended and is not durable yet."""
        self._order.append(tail)
        tail.entries.append(entry)
        self.nbytes += len(entry.payload) + _OVERHEAD
        if self.nbytes > self.bytes_max:
            self.evict()

    def evict(self) -> None:
        """Drops the oldest durable entries until the rest fits."""
        order = self._order
        at: int = self._next
        while at < len(order):
            tail = order[at]
            if tail.gone:
                tail.gone -= 1
                self._stale -= 1
            elif self.nbytes <= self.bytes_max:
                break
            else:
                head = tail.head
                entry = tail.entries[head]
                if not entry.durable:
                    break
                self.nbytes -= len(entry.payload) + _OVERHEAD
                tail.entries[head] = _GONE
                tail.head = head + 1
                if head >= 63:
                    self._drop(tail, head + 1)
            at += 1
        if at >= _PASSED_MIN and at * 2 >= len(order):
            del order[:at]
            at = 0
        self._next = at

    def below(self, tail: Tail, offset: int) -> None:
        """Drops a partition's durable entries that lie wholly below ``offset``."""
        entries, at = tail.entries, tail.head
        while at < len(entries) and entries[at].durable and entries[at].base_offset + entries[at].record_count <= offset:
            at += 1
        self._forget(tail, at)

    def before_index(self, tail: Tail, index: int) -> None:
        """Drops a partition's durable entries up to a journal index (their stored form was rewritten)."""
        entries, at = tail.entries, tail.head
        while at < len(entries) and entries[at].durable and entries[at].index <= index:
            at += 1
        self._forget(tail, at)

    def cut(self, tail: Tail, index: int) -> None:
        """Drops everything of a partition if any of it is at or above a journal index: rare, and what stays is read from the disk."""
        if tail.entries and tail.head < len(tail.entries) and tail.entries[-1].index >= index:
            self.clear(tail)

    def clear(self, tail: Tail) -> None:
        """Drops everything of a partition."""
        self._forget(tail, len(tail.entries))

    def _forget(self, tail: Tail, upto: int) -> None:
        if upto > tail.head:
            count: int = upto - tail.head
            tail.gone += count
            self._stale += count
            self._drop(tail, upto)
            if self._stale > _STALE_MIN and self._stale * 2 > len(self._order) - self._next:
                self._forget_stale()

    def _forget_stale(self) -> None:
        kept: list[Tail] = []
        for tail in self._order[self._next :]:
            if tail.gone:
                tail.gone -= 1
            else:
                kept.append(tail)
        self._order = kept
        self._next = self._stale = 0

    def _drop(self, tail: Tail, upto: int) -> None:
        entries = tail.entries
        for at in range(tail.head, upto):
            self.nbytes -= len(entries[at].payload) + _OVERHEAD
            entries[at] = _GONE
        tail.head = upto
        if upto >= 64 and upto * 2 >= len(entries):
            del entries[:upto]
            tail.head = 0
