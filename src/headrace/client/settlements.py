"""Settlements of one subscription on their way: gathered per loop iteration into ranges, kept until the broker has answered, sent again on a new
connection.

Pure. Invariants: I1 an offset is in at most one of *gathered* and *unanswered*. I2 what the broker has not answered is sent again on a resumed
subscription, so an ack that was under way when the connection broke is not lost. I3 a waiter is answered once.
"""

from typing import Final

from headrace.client.lane import Waiter
from headrace.client.spans import Span, contains, members, spans
from headrace.model import limits
from headrace.model.errors import ConnectionLost, HeadraceError, StaleSettle
from headrace.wire.frames import RANGE, SETTLE, Op, SettleFlag

_CONFIRM: Final = int(SettleFlag.CONFIRM)

EXTENSION: Final = 0x100
"""In the flags of a kind: an EXTEND, which is not sent again."""

Kind = tuple[int, int, int]
"""Partition, flags, delay_ms."""


class Unanswered:
    """One SETTLE or EXTEND frame that the broker has not answered."""

    __slots__ = ("kind", "ranges", "waiters")

    def __init__(self, kind: Kind, ranges: list[Span], waiters: list[tuple[int, Waiter]]) -> None:
        self.kind = kind
        self.ranges = ranges
        self.waiters = waiters


class Settlements:
    """See the module's head."""

    __slots__ = ("_correlation", "_gathered", "_unanswered", "_waiting")

    def __init__(self) -> None:
        self._gathered: dict[Kind, list[int]] = {}
        self._waiting: dict[Kind, list[tuple[int, Waiter]]] = {}
        self._unanswered: dict[int, Unanswered] = {}
        self._correlation = 0

    def add(self, partition: int, flags: int, delay_ms: int, offset: int, waiter: Waiter | None) -> None:
        """Gathers one settlement."""
        kind = (partition, flags, delay_ms)
        offsets = self._gathered.get(kind)
        if offsets is None:
            offsets = self._gathered[kind] = []
        offsets.append(offset)
        if waiter is not None:
            self._waiting.setdefault(kind, []).append((offset, waiter))

    def wait(self, partition: int, flags: int, delay_ms: int, offset: int, waiter: Waiter) -> None:
        """Has ``waiter`` told what becomes of a settlement that was just added."""
        assert (partition, flags, delay_ms) in self._gathered
        self._waiting.setdefault((partition, flags, delay_ms), []).append((offset, waiter))

    def take(self, channel: int, epochs: dict[int, int], out: list[bytes]) -> None:
        """Appends the SETTLE frames for all that was gathered."""
        gathered, self._gathered = self._gathered, {}
        waiting, self._waiting = self._waiting, {}
        for kind, offsets in gathered.items():
            self._send(kind, spans(offsets), waiting.get(kind, []), channel, epochs, out)

    def again(self, channel: int, epochs: dict[int, int], out: list[bytes]) -> None:
        """Appends what is unanswered once more: the subscription was resumed on a new connection."""
        unanswered, self._unanswered = self._unanswered, {}
        for old in unanswered.values():
            if old.kind[1] & EXTENSION:
                for _, waiter in old.waiters:
                    if not waiter.done():
                        waiter.set_exception(ConnectionLost("the connection broke before the lease was extended", hint="extend it again"))
                continue
            self._send(old.kind, old.ranges, old.waiters, channel, epochs, out)

    def _send(
        self, kind: Kind, ranges: list[Span], waiters: list[tuple[int, Waiter]], channel: int, epochs: dict[int, int], out: list[bytes]
    ) -> None:
        partition, flags, delay_ms = kind
        for at in range(0, len(ranges), limits.SETTLE_RANGES_MAX):
            part = ranges[at : at + limits.SETTLE_RANGES_MAX]
            mine = waiters if len(ranges) == len(part) else [(o, w) for o, w in waiters if contains(part, o)]
            correlation = self.expect(kind, part, mine)
            body = b"".join([RANGE.pack(first, count) for first, count in part])
            out.append(
                SETTLE.pack(20 + len(body), Op.SETTLE, flags | _CONFIRM, channel, correlation, partition, epochs.get(partition, 0), delay_ms) + body
            )

    def expect(self, kind: Kind, ranges: list[Span], waiters: list[tuple[int, Waiter]]) -> int:
        """Notes a frame that the broker will answer with SETTLED and gives its correlation id."""
        self._correlation = self._correlation % 0xFFFF_FFFF + 1
        self._unanswered[self._correlation] = Unanswered(kind, ranges, waiters)
        return self._correlation

    def settled(self, correlation: int, stale: list[Span]) -> Unanswered | None:
        """The broker answered. Says what, or None when nothing waited for that id."""
        done = self._unanswered.pop(correlation, None)
        if done is None:
            return None
        for offset, waiter in done.waiters:
            if waiter.done():
                continue
            if stale and contains(stale, offset):
                waiter.set_exception(StaleSettle(f"the lease on message {done.kind[0]}/{offset} was lost before it was settled"))
            else:
                waiter.set_result(None)
        return done

    def outstanding(self) -> dict[int, set[int]]:
        """Offsets by partition that are settled here and not yet for certain there."""
        found: dict[int, set[int]] = {}
        for (partition, _, _), offsets in self._gathered.items():
            found.setdefault(partition, set()).update(offsets)
        for waiting in self._unanswered.values():
            if waiting.kind[1] & EXTENSION:
                continue
            found.setdefault(waiting.kind[0], set()).update(members(waiting.ranges))
        return found

    def under_way(self) -> list[tuple[Kind, list[Span]]]:
        """Everything gathered or unanswered, by kind."""
        return [(kind, spans(offsets)) for kind, offsets in self._gathered.items()] + [(u.kind, u.ranges) for u in self._unanswered.values()]

    def fail(self, error: HeadraceError) -> None:
        """Answers every waiter with ``error`` and forgets everything."""
        waiters = [w for pairs in self._waiting.values() for w in pairs] + [w for u in self._unanswered.values() for w in u.waiters]
        self._gathered.clear()
        self._waiting.clear()
        self._unanswered.clear()
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)

    @property
    def settled_all(self) -> bool:
        """No settlement is gathered or unanswered (an extension may be)."""
        return not self._gathered and all(u.kind[1] & EXTENSION for u in self._unanswered.values())

    @property
    def oldest(self) -> int | None:
        """The correlation of what waits for its answer longest."""
        return next(iter(self._unanswered), None)

    @property
    def quiet(self) -> bool:
        """Nothing gathered and nothing unanswered."""
        return not (self._gathered or self._unanswered)
