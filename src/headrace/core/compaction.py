"""Compaction by key: which records of a stream partition may go because a later one of their key stands for them.

Owns the decision. Knows neither segments nor bytes: the runtime reads what ``wants`` says in slices of its choice, feeds the rows in, and drops
the ranges it gets back once the whole run is over.

A run goes in passes, because the map from keys to their last offset is bounded. A pass first *learns* the keys of the part that was not compacted
yet, until the map is full or the end is reached, then *judges* everything from the start of the log up to there. The next pass learns on.

Invariants: K1 the last record of every key stays, but for a tombstone older than ``tombstone_ms``. K2 records without a key stay. K3 a tombstone
is dropped only in or after the pass that drops all older records of its key. K4 the map holds at most ``keys_max`` keys.
K5 the union of all passes is what one pass with an unbounded map drops.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final, NamedTuple

KEYS_MAX: Final = 1_000_000
"""About 150 MiB of map at worst."""
_DIGEST_BYTES: Final = 16


class Row(NamedTuple):
    """What compaction needs to know of one record. ``tombstone``: its value is null. ``wall_ms``: when it was appended."""

    offset: int
    key: bytes | None
    tombstone: bool
    wall_ms: int


def worthwhile(start: int, clean_end: int, end: int, *, dirty_percent: int = 50) -> bool:
    """Whether enough was appended since the last run: offsets above ``clean_end`` are at least ``dirty_percent`` of all."""
    return end > start and (end - max(start, clean_end)) * 100 >= (end - start) * dirty_percent


class Compaction:
    """One run over [start, end), of which [start, clean_end) was compacted before. ``end`` is at most the high watermark."""

    __slots__ = (
        "_at",
        "_judging",
        "_keys",
        "_keys_max",
        "_pass_end",
        "_tombstones_before_ms",
        "clean_end",
        "dropped_count",
        "end",
        "pass_count",
        "start",
    )

    def __init__(self, *, start: int, clean_end: int, end: int, wall_ms: int, tombstone_ms: int, keys_max: int = KEYS_MAX) -> None:
        self.start = start
        self.end = max(start, end)
        self.clean_end = min(max(start, clean_end), self.end)
        """How far the log is compacted once what was reported so far is dropped; the runtime keeps it for the next run."""
        self.dropped_count = 0
        """Records named for dropping; one named by two passes counts twice."""
        self.pass_count = 0
        self._keys: dict[bytes, int] = {}
        self._keys_max = max(1, keys_max)
        self._tombstones_before_ms = wall_ms - tombstone_ms
        self._judging = False
        self._at = self.clean_end
        self._pass_end = self.clean_end
        if self.clean_end == self.end:
            self._judge()

    @property
    def done(self) -> bool:
        """Nothing is left to read."""
        return self.wants() is None

    def wants(self) -> tuple[int, int] | None:
        """The offsets to feed next, None at the end. Any first part of them will do."""
        if self._judging:
            return (self._at, self._pass_end) if self._at < self._pass_end else None
        return self._at, self.end

    def feed(self, rows: Iterable[Row], upto: int) -> list[tuple[int, int]]:
        """Takes ``rows`` (ascending) of [first of ``wants``, upto), where offsets may be missing; returns ranges (first, count) to be dropped.

        A later pass may name some of them again.
        """
        if not self._judging:
            self._learn(rows, min(upto, self.end))
            return []
        dropped: list[tuple[int, int]] = []
        upto = min(upto, self._pass_end)
        for row in rows:
            if self._at <= row.offset < upto and not self._stays(row):
                self.dropped_count += 1
                if dropped and sum(dropped[-1]) == row.offset:
                    dropped[-1] = (dropped[-1][0], dropped[-1][1] + 1)
                else:
                    dropped.append((row.offset, 1))
        self._at = max(self._at, upto)
        if self._at >= self._pass_end:
            self._next_pass()
        return dropped

    def _learn(self, rows: Iterable[Row], upto: int) -> None:
        keys = self._keys
        for row in rows:
            if row.key is None or not self._at <= row.offset < upto:
                continue
            name = _name(row.key)
            if len(keys) >= self._keys_max and name not in keys:
                self._pass_end = row.offset
                self._judge()
                return
            keys[name] = row.offset
        self._at = max(self._at, upto)
        if self._at >= self.end:
            self._pass_end = self.end
            self._judge()

    def _judge(self) -> None:
        self._judging = True
        self._at = self.start
        self.pass_count += 1
        if self._pass_end <= self.start:
            self._next_pass()

    def _next_pass(self) -> None:
        self._keys.clear()
        self.clean_end = self._pass_end
        if self._pass_end < self.end:
            self._judging = False
            self._at = self._pass_end

    def _stays(self, row: Row) -> bool:
        if row.key is None:
            return True
        if row.offset < self._keys.get(_name(row.key), -1):
            return False
        return not row.tombstone or row.wall_ms > self._tombstones_before_ms

    def view(self) -> dict[str, Any]:
        """What admin shows."""
        return {
            "phase": "done" if self.done else "judging" if self._judging else "learning",
            "pass": self.pass_count,
            "at": self._at,
            "clean_end": self.clean_end,
            "end": self.end,
            "keys": len(self._keys),
            "dropped": self.dropped_count,
        }

    def check(self) -> None:
        """Asserts K4 and the order of the bounds."""
        assert len(self._keys) <= self._keys_max
        assert self.start <= self.clean_end <= self.end
        assert self._pass_end <= self.end


def _name(key: bytes) -> bytes:
    """Short keys stand for themselves, others for a digest of a length that no short key has."""
    return key if len(key) < _DIGEST_BYTES else blake2b(key, digest_size=_DIGEST_BYTES).digest()
