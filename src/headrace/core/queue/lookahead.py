"""Messages that must be opened before they can be granted: in a queue ordered by key, and for consumers with a filter.

It keeps the keys and headers of at most ``LOOKAHEAD_MAX`` messages, oldest first, and knows which of them may be granted now and to whom. The machine
tells it of every move; the runtime opens what ``wants`` names.

Ordered by key: the unsettled messages of a key stand in a line in offset order; only its head is ever granted, so one message of a key is leased at a
time and a retry, delayed or not, comes before its successors. A message that is leased (even since before a restart) or waits for a retry must be
opened too, since it blocks its key; nothing with a key is granted past an unopened one. What was published with a delay joins its line when due.
Messages without a key stand in no line.

Not ordered: only ready messages are of interest, until somebody leases them. What no filter wants is remembered as ranges only (at most
``LOOKAHEAD_MAX``).

I1: ``pending``, ``opened`` and ``passed`` are disjoint; ``known`` has the offsets in ``opened``. I2: every known offset with a key stands in its
line, ascending.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from headrace.core.queue.consumers import Consumer
from headrace.core.ranges import RangeSet, gaps

LOOKAHEAD_MAX = 10_000
OPEN_AT_ONCE_MAX = 1_000
OFFERS_MAX = 100_000
"""Offers to all consumers together beyond which nothing more is opened."""

Opened = tuple[bytes | None, Sequence[tuple[str, bytes]]]
Offer = tuple[int, int]
"""(-priority, offset): the smallest is the next to grant."""


class Lookahead:
    """See the module's head. ``is_ready`` and ``priority_of`` ask the machine's books."""

    __slots__ = ("_common", "_is_ready", "_offers", "_priority_of", "_seekers", "keyed", "known", "lines", "opened", "passed", "pending")

    def __init__(self, *, keyed: bool, is_ready: Callable[[int], bool], priority_of: Callable[[int], int]) -> None:
        self.keyed = keyed
        self._is_ready = is_ready
        self._priority_of = priority_of
        self.pending = RangeSet()
        """To be opened."""
        self.opened = RangeSet()
        self.passed = RangeSet()
        self.known: dict[int, Opened] = {}
        self.lines: dict[bytes, list[int]] = {}
        self._seekers: dict[int, Consumer] = {}
        """Consumers with a filter."""
        self._offers: dict[int, list[Offer]] = {}
        """Heap of each; entries that no longer hold are skipped."""
        self._common: list[Offer] = []
        """Heap for consumers without a filter (ordered queues only)."""

    # ------------------------------------------------------------ consumers

    @property
    def needed(self) -> bool:
        """Whether anything must be opened at all."""
        return self.keyed or bool(self._seekers)

    def attach(self, consumer: Consumer) -> None:
        """Offers a consumer with a filter what is open, and looks again at what nobody wanted."""
        self._seekers[consumer.id] = consumer
        self._offers[consumer.id] = []
        for first, end in self.passed.ranges():
            self.pending.add(first, end)
        self.passed.clear()
        for offset in self.known:
            self._offer(offset, consumer)

    def detach(self, consumer_id: int) -> None:
        """Forgets a consumer."""
        if self._seekers.pop(consumer_id, None) is not None:
            del self._offers[consumer_id]
            if not self.keyed:
                self._look_again()

    def _look_again(self) -> None:
        # what only the one who left wanted would occupy the window for ever
        for offset in [offset for offset, opened in self.known.items() if not self._wanted(opened)]:
            self._close(offset)
            self.passed.add(offset, offset + 1)

    def _wanted(self, opened: Opened) -> bool:
        return any(_matches(consumer, opened) for consumer in self._seekers.values())

    # ------------------------------------------------------------ moves

    def readied(self, first: int, end: int) -> None:
        """``[first, end)`` became ready, new or again."""
        pieces = self.opened.pieces(first, end)
        for start, stop in gaps(pieces, first, end):
            self.pending.add(start, stop)
        for start, stop, _ in pieces:
            for offset in range(start, stop):
                self._offer(offset)

    def leased(self, first: int, end: int) -> None:
        """``[first, end)`` was granted: in an ordered queue it keeps its place in line."""
        if not self.keyed:
            self._forget(first, end)

    def block(self, first: int, end: int) -> None:
        """``[first, end)`` is leased or waits for a retry since before a restart: it holds its keys."""
        if self.keyed:
            self.pending.add(first, end)

    def settled(self, first: int, end: int) -> None:
        """``[first, end)`` is settled: the next in each line moves up."""
        self._forget(first, end)

    def _forget(self, first: int, end: int) -> None:
        self.pending.cut(first, end)
        if self.passed:
            self.passed.cut(first, end)
        for start, stop, _ in self.opened.pieces(first, end):
            for offset in range(start, stop):
                self._close(offset)

    def _close(self, offset: int) -> None:
        self.opened.cut(offset, offset + 1)
        key, _ = self.known.pop(offset)
        if self.keyed and key is not None:
            line = self.lines[key]
            at = bisect_left(line, offset)
            del line[at]
            if not line:
                del self.lines[key]
            elif at == 0:
                self._offer(line[0])

    # ------------------------------------------------------------ opening

    def wants(self) -> tuple[int, int] | None:
        """The next (first, count) to open, None if there is nothing or the window is full."""
        if not self.pending or not self.needed:
            return None
        room = LOOKAHEAD_MAX - len(self.known)
        if room <= 0 or (self.passed and len(self.passed) >= LOOKAHEAD_MAX) or sum(map(len, self._offers.values())) >= OFFERS_MAX:
            return None
        first, end, _ = self.pending.pieces(0, 1 << 64, 1)[0]
        return first, min(end - first, room, OPEN_AT_ONCE_MAX)

    def open(self, records: Sequence[tuple[int, bytes | None, Sequence[tuple[str, bytes]]]]) -> None:
        """Takes opened records; those not pending (settled meanwhile, never asked for) are ignored."""
        for offset, key, headers in records:
            if offset not in self.pending:
                continue
            self.pending.cut(offset, offset + 1)
            opened = (key, headers)
            if not self.keyed and not self._wanted(opened):
                self.passed.add(offset, offset + 1)
                continue
            self.opened.add(offset, offset + 1)
            self.known[offset] = opened
            if self.keyed and key is not None:
                insort(self.lines.setdefault(key, []), offset)
            self._offer(offset)

    # ------------------------------------------------------------ granting

    def _may_go(self, offset: int) -> bool:
        """Whether a known message is ready and, with a key, the head of its line."""
        opened = self.known.get(offset)
        if opened is None or not self._is_ready(offset):
            return False
        key = opened[0]
        return not self.keyed or key is None or self.lines[key][0] == offset

    def _offer(self, offset: int, only: Consumer | None = None) -> None:
        if not self._may_go(offset):
            return
        opened = self.known[offset]
        offer = (-self._priority_of(offset), offset)
        if only is not None:
            if _matches(only, opened):
                heappush(self._offers[only.id], offer)
            return
        if self.keyed:
            heappush(self._common, offer)
            self._trim(self._common)
        for consumer in self._seekers.values():
            if _matches(consumer, opened):
                heappush(self._offers[consumer.id], offer)
                self._trim(self._offers[consumer.id])

    def _trim(self, offers: list[Offer]) -> None:
        if len(offers) > 2 * LOOKAHEAD_MAX:
            offers[:] = sorted({offer for offer in offers if self._may_go(offer[1])})
            heapify(offers)

    def next_for(self, consumer: Consumer) -> int | None:
        """The next message this consumer may be granted (it stays on offer until it is leased)."""
        offers = self._common if consumer.filter is None else self._offers.get(consumer.id)
        waiting: list[Offer] = []
        found: int | None = None
        while offers:
            offset = offers[0][1]
            if self._may_go(offset):
                # an unopened message before it may have the same key
                if not (self.keyed and self.known[offset][0] is not None and self.pending and self.pending.first < offset):
                    found = offset
                    break
                waiting.append(offers[0])
            heappop(offers)
        if offers is not None:
            for offer in waiting:
                heappush(offers, offer)
        return found

    def check(self) -> None:
        """Asserts I1 and I2."""
        for offsets in (self.pending, self.opened, self.passed):
            offsets.check()
        assert sorted(self.known) == [offset for first, end in self.opened.ranges() for offset in range(first, end)]
        for first, end in self.pending.ranges():
            assert not self.opened.pieces(first, end)
            assert not self.passed.pieces(first, end)
        for first, end in self.passed.ranges():
            assert not self.opened.pieces(first, end)
        in_line = [(offset, key) for key, line in self.lines.items() for offset in line]
        assert all(line == sorted(set(line)) and line for line in self.lines.values())
        assert not self.keyed or sorted(in_line) == sorted((offset, opened[0]) for offset, opened in self.known.items() if opened[0] is not None)


def _matches(consumer: Consumer, opened: Opened) -> bool:
    return consumer.filter is None or consumer.filter.match(opened[0], opened[1])
