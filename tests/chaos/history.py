"""What was promised and what was seen of one queue and one stream, checked as it comes.

Owns the record of every confirm, delivery and confirmed settlement. Does not know connections, processes or time.

Checked: a confirmed message is there at the offset it was confirmed at (I1, I3); nothing is delivered that nobody published (I2); per producer and
partition offsets follow sequences (I4); an idempotent publish is stored once (I11); nothing comes again after its settlement was confirmed.
"""

import threading
from collections import defaultdict


class Broken(AssertionError):
    """A promise was not kept."""


class History:
    """Everything that happened to one name, by partition. Safe for several threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.published: dict[int, int] = defaultdict(int)
        """Per partition: sequences below this were sent (and may be stored)."""
        self.confirmed: dict[int, dict[int, int]] = defaultdict(dict)
        """Per partition: sequence to offset."""
        self.seen: dict[int, dict[int, int]] = defaultdict(dict)
        """Per partition: offset to sequence."""
        self._stored: dict[int, set[int]] = defaultdict(set)
        """Per partition: sequences that were delivered."""
        self.refused: dict[int, set[int]] = defaultdict(set)
        """Per partition: sequences that were refused for certain."""
        self.settled: dict[int, set[int]] = defaultdict(set)
        self.settled_by: dict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
        """Per partition and offset: which consumer settled which attempt, where that is known."""
        self.late = 0
        """Deliveries to one consumer that were on their way when another, under a new owner, settled the same or a later attempt: no new grants."""
        self.deliveries = 0
        self.redeliveries = 0
        self.unsettled_answers = 0

    def sent(self, partition: int, upto: int) -> None:
        """Sequences below ``upto`` are on their way."""
        with self.lock:
            self.published[partition] = max(self.published[partition], upto)

    def confirm(self, partition: int, first: int, count: int, base_offset: int) -> None:
        """The broker confirmed ``count`` sequences from ``first`` on, stored densely from ``base_offset`` on."""
        with self.lock:
            confirmed, seen = self.confirmed[partition], self.seen[partition]
            for i in range(count):
                sequence, offset = first + i, base_offset + i
                before = confirmed.setdefault(sequence, offset)
                if before != offset:
                    raise Broken(f"{self.name}/{partition}: sequence {sequence} was confirmed at offset {before}, and again at {offset}")
                there = seen.get(offset)
                if there is not None and there != sequence:
                    raise Broken(f"{self.name}/{partition}: offset {offset} was delivered as {there} and confirmed as {sequence}")

    def refuse(self, partition: int, sequence: int) -> None:
        """The broker refused ``sequence``: it is stored nowhere, and never will be."""
        with self.lock:
            self.refused[partition].add(sequence)
            if sequence in self.confirmed[partition]:
                raise Broken(f"{self.name}/{partition}: sequence {sequence} was confirmed and refused")
            if sequence in self._stored[partition]:
                raise Broken(f"{self.name}/{partition}: sequence {sequence} was delivered and refused")

    def stored(self, partition: int, sequence: int) -> bool:
        """Whether it was delivered."""
        return sequence in self._stored[partition]

    def deliver(self, partition: int, offset: int, sequence: int, *, to: tuple[int, int] | None = None) -> None:
        """The broker delivered ``sequence`` at ``offset``. ``to``: consumer and attempt."""
        with self.lock:
            self.deliveries += 1
            if sequence >= self.published[partition]:
                raise Broken(f"{self.name}/{partition}: offset {offset} holds {sequence}, which nobody published")
            if sequence in self.refused[partition]:
                raise Broken(f"{self.name}/{partition}: offset {offset} holds {sequence}, which was refused")
            seen = self.seen[partition]
            before = seen.get(offset)
            if before is None:
                seen[offset] = sequence
                self._stored[partition].add(sequence)
            elif before != sequence:
                raise Broken(f"{self.name}/{partition}: offset {offset} held {before}, now it holds {sequence}")
            else:
                self.redeliveries += 1
            if offset in self.settled[partition]:
                by = self.settled_by[partition].get(offset)
                if to is None or by is None or to[0] == by[0] or to[1] > by[1]:
                    how = "" if to is None or by is None else f": consumer {by[0]} settled attempt {by[1]}, consumer {to[0]} has attempt {to[1]}"
                    raise Broken(f"{self.name}/{partition}: offset {offset} came again after its settlement was confirmed{how}")
                self.late += 1
            confirmed_at = self.confirmed[partition].get(sequence)
            if confirmed_at is not None and confirmed_at != offset:
                raise Broken(f"{self.name}/{partition}: {sequence} was confirmed at {confirmed_at} and delivered at {offset}")

    def settle(self, partition: int, ranges: list[tuple[int, int]], stale: list[tuple[int, int]], *, by: tuple[int, int] | None = None) -> None:
        """The broker confirmed these ranges (first, count) as settled, but for the stale ones. ``by``: consumer and attempt."""
        lost = {offset for first, count in stale for offset in range(first, first + count)}
        with self.lock:
            self.unsettled_answers += len(lost)
            done = [offset for first, count in ranges for offset in range(first, first + count) if offset not in lost]
            if by is not None:
                self.settled_by[partition].update(dict.fromkeys(done, by))
            self.settled[partition].update(done)

    def finish(self) -> None:
        """At the end, with everything confirmed and delivered: nothing is missing, nothing is there twice, order is kept."""
        for partition, confirmed in self.confirmed.items():
            seen = self.seen[partition]
            missing = [(sequence, offset) for sequence, offset in confirmed.items() if seen.get(offset) != sequence]
            if missing:
                raise Broken(f"{self.name}/{partition}: {len(missing)} confirmed messages were never delivered, such as {missing[:5]}")
            if sorted(seen) != list(range(len(seen))):
                raise Broken(f"{self.name}/{partition}: offsets are not dense: {len(seen)} of them, the highest {max(seen)}")
            in_order = [seen[offset] for offset in range(len(seen))]
            if len(set(in_order)) != len(in_order):
                raise Broken(f"{self.name}/{partition}: a sequence is stored twice")
            if in_order != sorted(in_order):
                raise Broken(f"{self.name}/{partition}: sequences are out of order")

    def totals(self) -> dict[str, int]:
        """How much of everything there was."""
        with self.lock:
            return {
                "published": sum(self.published.values()),
                "confirmed": sum(map(len, self.confirmed.values())),
                "delivered": self.deliveries,
                "delivered_again": self.redeliveries,
                "settled": sum(map(len, self.settled.values())),
                "stale": self.unsettled_answers,
            }
