"""The newest records of all partitions in memory, within one bound: what a consumer that keeps up is served from.

Owns whole RECORDS entries as appended, per partition in offset order, and the order of their age over all partitions. Knows neither log nor segments.

I1 The oldest entries over all partitions go first. I2 An entry that is not durable is never dropped: nowhere else can it be read. I3 What a tail
holds is without a gap up to the partition's end, so an offset above its first is in it. I4 ``nbytes`` is at most the bound plus what is not
durable."""

from bisect import bisect_right
from collections import deque
from typing import Final

from headrace.storage.entry import StoredEntry

_OVERHEAD: Final = 300
"""What an entry costs beside its payload: the tuple, the token, the list slots."""
_GONE: Final = StoredEntry(0, 0, 0, 0, 0, b"")
_STALE_MIN: Final = 1024


class Tail:
    """One partition's newest entries: ``entries[head:]``, of which those from ``clean`` on are not durable yet. ``bases`` runs in parallel."""

    __slots__ = ("bases", "clean", "entries", "first", "head")

    def __init__(self) -> None:
        self.entries: list[StoredEntry] = []
        self.bases: list[int] = []
        self.head = 0
        self.clean = 0
        self.first = 0
        """Number, since the partition is in memory, of ``entries[0]``."""

    def landed(self, index: int) -> None:
        """The entry with that journal index is durable, if it is still the oldest that was not."""
        if self.clean < len(self.entries) and self.entries[self.clean].index == index:
            self.clean += 1

    def find(self, offset: int, bytes_max: int, end_offset: int) -> list[StoredEntry] | None:
        """Entries from the one that holds ``offset`` on; None: it is older than what is here (or nothing is here)."""
        entries, head = self.entries, self.head
        count = len(entries)
        if head == count:
            return None
        at = count - 1
        if self.bases[at] > offset:
            at = bisect_right(self.bases, offset, head) - 1
            if at < head:
                return None
        entry = entries[at]
        if entry.base_offset + entry.record_count <= offset:
            at += 1
            if at == count:
                return []
            entry = entries[at]
        left = bytes_max - len(entry.payload)
        found = [entry]
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
        self.bytes_max = bytes_max
        self.nbytes = 0
        self._order: deque[tuple[Tail, int]] = deque()
        self._stale = 0

    def add(self, tail: Tail, entry: StoredEntry) -> None:
        """Takes an entry that was appended and is not durable yet."""
        self._order.append((tail, tail.first + len(tail.entries)))
        tail.entries.append(entry)
        tail.bases.append(entry.base_offset)
        self.nbytes += len(entry.payload) + _OVERHEAD
        if self.nbytes > self.bytes_max:
            self.evict()

    def evict(self) -> None:
        """Drops the oldest durable entries until the rest fits."""
        order = self._order
        while order:
            tail, number = order[0]
            at = number - tail.first
            if at < tail.head:
                self._stale -= 1
            elif self.nbytes <= self.bytes_max or at >= tail.clean:
                return
            else:
                head = tail.head
                self.nbytes -= len(tail.entries[head].payload) + _OVERHEAD
                tail.entries[head] = _GONE
                tail.head = head + 1
                if head >= 63:
                    self._drop(tail, head + 1)
            order.popleft()

    def below(self, tail: Tail, offset: int) -> None:
        """Drops a partition's durable entries that lie wholly below ``offset``."""
        entries, at = tail.entries, tail.head
        while at < tail.clean and entries[at].base_offset + entries[at].record_count <= offset:
            at += 1
        self._forget(tail, at)

    def before_index(self, tail: Tail, index: int) -> None:
        """Drops a partition's durable entries up to a journal index (their stored form was rewritten)."""
        entries, at = tail.entries, tail.head
        while at < tail.clean and entries[at].index <= index:
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
            self._stale += upto - tail.head
            self._drop(tail, upto)
            if self._stale > _STALE_MIN and self._stale * 2 > len(self._order):
                self._order = deque(token for token in self._order if token[1] - token[0].first >= token[0].head)
                self._stale = 0

    def _drop(self, tail: Tail, upto: int) -> None:
        entries = tail.entries
        for at in range(tail.head, upto):
            self.nbytes -= len(entries[at].payload) + _OVERHEAD
            entries[at] = _GONE
        tail.head = upto
        if tail.clean < upto:
            tail.clean = upto
        if upto >= 64 and upto * 2 >= len(entries):
            del entries[:upto]
            del tail.bases[:upto]
            tail.first += upto
            tail.clean -= upto
            tail.head = 0
