"""What happens to every entry: on its way into the log, and when the log has made it durable.

Owns no state: it moves entries between what gathers for a flush, the partitions' objects and the cache. Does no I/O. One of the hot modules:
everything here costs once per partition and tick. Invariants: ``store``'s.
"""

from collections.abc import Callable, Sequence
from typing import Final

from headrace.storage.cache import TailCache
from headrace.storage.entry import Appended
from headrace.storage.gathering import Gathering
from headrace.storage.index import POSITION_BITS, Part
from headrace.storage.system import SYSTEM_PID
from headrace.wire.journal import Kind

_RECORDS: Final[int] = int(Kind.RECORDS)
_SYSTEM: Final[int] = SYSTEM_PID
_TRUNCATE: Final[int] = int(Kind.TRUNCATE)
_PROMISE: Final[int] = int(Kind.PROMISE)


class Intake:
    """See the module's head. ``make_part`` loads a partition that is not in memory."""

    __slots__ = ("_cache", "_gathering", "_make_part", "_parts")

    def __init__(self, gathering: Gathering, parts: dict[int, Part], cache: TailCache, make_part: Callable[[int], Part]) -> None:
        self._gathering = gathering
        self._parts = parts
        self._cache = cache
        self._make_part = make_part

    def append(
        self, pid: int, epoch: int, index: int, kind: int, payload: Sequence[bytes], nbytes: int, base_offset: int = -1, record_count: int = 0
    ) -> Appended:
        whole: bytes = payload[0] if len(payload) == 1 else b"".join(payload)
        if kind == _RECORDS:
            return self.records(pid, epoch, index, whole, base_offset, record_count, int.from_bytes(whole[16:24], "big"))
        part = self._parts.get(pid)
        if part is None:
            part = self._make_part(pid)
        entry = Appended(pid, epoch, index, kind, -1, 0, 0, whole)
        part.slot = self._gathering.add(entry, part.slot)
        if kind == _PROMISE:
            part.promised = max(part.promised, epoch)
            return entry
        if index <= part.last_index:
            self._rewind(part, index)
        if kind == _TRUNCATE:
            return entry
        part.last_index = index
        part.last_epoch = epoch
        return entry

    def records(
        self, pid: int, epoch: int, index: int, payload: bytes, base_offset: int, record_count: int, wall_ms: int, keep: bool = True
    ) -> Appended:
        """As ``append``, for a records entry whose payload is in one piece; ``wall_ms`` stands in it too. ``keep``: whether it is to be in the cache,
        since somebody may read it soon."""
        part = self._parts.get(pid)
        if part is None:
            part = self._make_part(pid)
        entry = Appended(pid, epoch, index, _RECORDS, base_offset, record_count, wall_ms, payload)
        part.slot = self._gathering.add(entry, part.slot)
        if index <= part.last_index:
            self._rewind(part, index)
        newest = part.newest
        if newest is None:
            part.oldest = entry
        else:
            newest.following = entry
        part.newest = entry
        if keep:
            self._cache.add(part.tail, entry)
        elif part.tail.head < len(part.tail.entries):
            self._cache.clear(part.tail)
        part.next_offset = base_offset + record_count
        part.last_index = index
        part.last_epoch = epoch
        return entry

    def _rewind(self, part: Part, index: int) -> None:
        """The journal goes on at an index that it had: what was there is discarded."""
        self._cache.cut(part.tail, index)
        part.last_index = index - 1
        part.durable_index = min(part.durable_index, index - 1)
        end = part.end_in_log_below(index)
        entry = part.oldest
        while entry is not None:
            if entry.index < index:
                end = max(end, entry.base_offset + entry.record_count)
            entry = entry.following
        refs = part.moved.refs
        end = max(end, refs[-1].end_offset if refs else 0)
        part.next_offset = max(end, part.checkpoint_next if part.checkpoint_index < index else 0)

    def landed(self, slots: list[Appended], file_id: int, pids: set[int]) -> list[tuple[int, int]]:
        """What a flush has made durable: (partition, last index) of each of its slots, in order, but of the store's own. Notes the partitions in
        ``pids``, those of its log file."""
        parts = self._parts
        file_place: int = file_id << POSITION_BITS
        done: list[tuple[int, int]] = []
        for slot in slots:
            pid = slot.pid
            part = parts.get(pid)
            more, slot.more = slot.more, None
            if part is None:
                pids.add(pid)
                continue
            if part.noted_file != file_id:
                part.noted_file = file_id
                pids.add(pid)
            if part.slot is slot:
                part.slot = None
            last = self._land(part, slot, file_place)
            if more is not None:
                for entry in more:
                    last = self._land(part, entry, file_place)
            if last >= 0 and pid != _SYSTEM:
                done.append((pid, last))
        if self._cache.nbytes > self._cache.bytes_max:
            self._cache.evict()
        return done

    def _land(self, part: Part, entry: Appended, file_place: int) -> int:
        """Up to which index the partition is durable with it, -1 = it says nothing of that."""
        entry.rest = b""
        kind, index, place = entry.kind, entry.index, file_place | entry.position
        if kind == _RECORDS:
            part.oldest = entry.following
            if entry.following is None:
                part.newest = None
            entry.following = None
            entry.durable = True
            part.add_records(place, entry.length, index, entry.base_offset, entry.record_count, entry.wall_ms)
        elif kind == _TRUNCATE:
            part.discard(index)
            index -= 1
        elif kind == _PROMISE:
            return -1
        else:
            part.add(place, entry.length, index)
        part.durable_index = min(index, part.last_index)
        return index
