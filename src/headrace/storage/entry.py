"""One entry of a partition's journal in memory: as it was stored, and on its way into the log.

Owns the values only. One of the hot modules: an entry is made once per partition and tick, and the same object gathers for a flush, lands, and stays
in the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.compiling import mypyc_attr

if TYPE_CHECKING:
    from mypy_extensions import i64


@mypyc_attr(allow_interpreted_subclasses=True)
class StoredEntry:
    """An entry as it was appended. ``base_offset`` is -1 but for records; ``payload`` is whole, with its head. Never changed once it is shown."""

    __slots__ = ("base_offset", "epoch", "index", "kind", "payload", "record_count")

    def __init__(self, epoch: int, index: int, kind: int, base_offset: int, record_count: int, payload: bytes) -> None:
        self.epoch = epoch
        self.index = index
        self.kind = kind
        self.base_offset = base_offset
        self.record_count = record_count
        self.payload = payload

    def holding(self, payload: bytes) -> StoredEntry:
        """The same entry with another payload."""
        return StoredEntry(self.epoch, self.index, self.kind, self.base_offset, self.record_count, payload)

    def __repr__(self) -> str:
        return (
            f"StoredEntry(epoch={self.epoch}, index={self.index}, kind={self.kind}, base_offset={self.base_offset},"
            f" record_count={self.record_count}, payload={self.payload!r})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredEntry):
            return NotImplemented
        return (
            self.epoch == other.epoch
            and self.index == other.index
            and self.kind == other.kind
            and self.base_offset == other.base_offset
            and self.record_count == other.record_count
            and self.payload == other.payload
        )

    def __hash__(self) -> int:
        return hash((self.epoch, self.index, self.kind, self.base_offset, self.record_count, self.payload))


class Appended(StoredEntry):
    """An entry that is not durable yet. The first of several of one partition that lie together in a flush stands for all of them: a slot, one row of
    the directory."""

    __slots__ = ("durable", "following", "last", "lead", "length", "marker", "more", "open", "pid", "position", "rest", "slot_bytes", "wall_ms")

    def __init__(self, pid: int, epoch: int, index: int, kind: int, base_offset: int, record_count: int, wall_ms: int, payload: bytes) -> None:
        self.epoch = epoch
        self.index = index
        self.kind = kind
        self.base_offset = base_offset
        self.record_count = record_count
        self.payload = payload
        self.pid = pid
        self.wall_ms = wall_ms
        self.durable: bool = False
        self.following: Appended | None = None
        """The partition's next records entry, while neither is durable."""
        self.lead: i64 = 0
        """The entry's header in the log: size and checksum, and behind them ``rest``."""
        self.rest: bytes = b""
        self.length: int = 0
        """Header and payload."""
        self.position: int = 0
        """Of the header, once it is laid out for a flush."""
        self.last: int = index
        self.slot_bytes: int = 0
        self.marker: int = 0
        self.open: bool = False
        """Whether it is a slot that takes more entries: it gathers, and no flush has it yet."""
        self.more: list[Appended] | None = None
        """The slot's entries after this one."""
