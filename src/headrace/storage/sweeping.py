"""Erases what died: references to what floors have left behind, partitions that were deleted, segment files that are mostly dead.

Owns which of them and when; new segments are written by ``rewriting`` on a thread. All of it while ``ground.moving`` is held, one thing at a time,
and nothing is erased before what made it dead is durable."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import islice
from typing import Final

import msgspec

from headrace.model.errors import DiskFull
from headrace.storage import keys, rewriting
from headrace.storage.ground import Ground
from headrace.storage.index import Part, live_bytes
from headrace.storage.keys import Moved, SegmentRef, number_key
from headrace.storage.moving import Writing
from headrace.storage.rewriting import Rewrite
from headrace.storage.slices import Slices
from headrace.storage.system import SYSTEM_PID

SWEEP_PARTITIONS: Final = 1024
QUIET_ROUNDS: Final = 10
"""A file is rewritten only when nothing in it died for so long: what is being consumed will be gone by itself."""
SMALL_ARCHIVES: Final = 16
"""So many archives below a quarter of the smallest own segment are merged into one."""
REWRITE_BYTES_MAX: Final = 64 * 1024 * 1024
Puts = dict[bytes, bytes | None]


class Sweeper:
    """See the module's head. ``rounds``: how often the mover went round."""

    def __init__(self, ground: Ground, durable: Callable[[Part, int], Awaitable[None]], flush: Callable[[], None]) -> None:
        self.rounds = 0
        self._ground = ground
        self._durable = durable
        self._flush = flush
        self._floors: dict[int, Part] = {}
        self._last_death: dict[int, int] = {}

    def floor_moved(self, part: Part) -> None:
        """Some of what a partition has in segments may be dead."""
        self._floors[part.pid] = part

    async def sweep(self) -> None:
        """Erases what floors have left behind: dead references go, dead parts are counted."""
        ground = self._ground
        targets: list[tuple[Part, int, int]] = []
        for pid in list(islice(self._floors, SWEEP_PARTITIONS)):
            part = self._floors.pop(pid)
            if ground.parts.get(pid) is part:
                targets.append((part, part.floor, part.last_index))
        if not targets:
            return
        self._flush()
        slices = Slices(self._ground.now_ns)
        puts: Puts = {}
        change: dict[int, int] = {}
        moved: list[tuple[Part, Moved]] = []
        for part, floor, index in targets:
            if part.durable_index < index:
                await self._durable(part, index)
            if slices.over():
                await slices.pause()
            part.settled_floor = max(part.settled_floor, floor)
            refs = self._still_needed(part, change)
            if refs is not None:
                now = msgspec.structs.replace(part.moved, refs=refs)
                moved.append((part, now))
                puts[number_key(keys.MOVED, part.pid)] = keys.pack(now)
        if not puts:
            return
        for number in change:
            self._last_death[number] = self.rounds
        file_puts, after = ground.files_changed(change, {})
        await ground.writer.submit(puts | file_puts)
        for part, now in moved:
            part.moved = now
        ground.apply_files(after)

    @staticmethod
    def _still_needed(part: Part, change: dict[int, int]) -> tuple[SegmentRef, ...] | None:
        """The references after what is dead was left out; None if nothing changes."""
        kept: list[SegmentRef] = []
        changed = False
        for ref in part.moved.refs:
            if ref.tail_index > part.moved.copy_index:
                kept.append(ref)
                continue
            dead = ref.nbytes - live_bytes(as_covered(ref), part.settled_floor)
            if dead >= ref.nbytes:
                change[ref.file] = change.get(ref.file, 0) - (ref.nbytes - ref.dead_bytes)
                changed = True
            elif dead - ref.dead_bytes >= ref.nbytes // 4:
                change[ref.file] = change.get(ref.file, 0) - (dead - ref.dead_bytes)
                kept.append(_with_dead(ref, dead))
                changed = True
            else:
                kept.append(ref)
        return tuple(kept) if changed else None

    async def drop_refs(self, part: Part, gone: Sequence[SegmentRef]) -> None:
        """Gives up references whose files are not there any more."""
        old = part.moved
        kept = tuple(ref for ref in old.refs if ref not in gone)
        now = msgspec.structs.replace(old, refs=kept)
        file_puts, after = self._ground.files_changed({ref.file: -(ref.nbytes - ref.dead_bytes) for ref in gone}, {})
        await self._ground.writer.submit({number_key(keys.MOVED, part.pid): keys.pack(now), **file_puts})
        part.moved = now
        self._ground.apply_files(after)

    async def delete(self, pids: Sequence[int]) -> None:
        """Erases partitions: references and state in one commit, then files that held nothing else. ``DiskFull``: they are all still there."""
        ground = self._ground
        newest = ground.wal.files()[-1].file_id
        puts: Puts = {}
        change: dict[int, int] = {}
        for pid in pids:
            part = ground.parts.get(pid) or ground.part(pid)
            for ref in part.moved.refs:
                change[ref.file] = change.get(ref.file, 0) - (ref.nbytes - ref.dead_bytes)
            if part.moved.checkpoint_file:
                change[part.moved.checkpoint_file] = change.get(part.moved.checkpoint_file, 0) - part.moved.checkpoint_bytes
            for prefix in (keys.MOVED, keys.CHECKPOINT, keys.WAKE, keys.QUARANTINE):
                puts[number_key(prefix, pid)] = None
            puts[number_key(keys.DELETED, pid)] = newest.to_bytes(8, "big")
            ground.deleted[pid] = newest
        file_puts, after = ground.files_changed(change, {})
        try:
            await ground.writer.submit(puts | file_puts)
        except DiskFull:
            for pid in pids:
                ground.deleted.pop(pid, None)
            raise
        for pid in pids:
            ground.cache.clear(ground.part(pid).tail)
            for known in (ground.parts, ground.damaged, ground.wakes, self._floors):
                known.pop(pid, None)
        ground.apply_files(after)

    def worth_rewriting(self) -> list[int]:
        """Files that are mostly dead, or a crowd of small archives."""
        if not self._ground.metas:
            return []
        small_bytes = self._ground.config.storage.segment_own_bytes_min // 4
        dead: list[int] = []
        small: list[int] = []
        for number, meta in self._ground.metas.items():
            if self.rounds - self._last_death.get(number, -QUIET_ROUNDS) < QUIET_ROUNDS:
                continue
            if meta.live_bytes * 2 < meta.nbytes and meta.nbytes > 64 * 1024:
                dead.append(number)
            elif meta.own_pid < 0 and meta.live_bytes < small_bytes:
                small.append(number)
        chosen = dead + (small if len(small) >= SMALL_ARCHIVES else [])
        total, taken = 0, list[int]()
        for number in chosen:
            total += self._ground.metas[number].live_bytes
            if taken and total > REWRITE_BYTES_MAX:
                break
            taken.append(number)
        return taken

    async def rewrite(self, numbers: list[int]) -> None:
        ground = self._ground
        tables = await ground.on(ground.io, partial(rewriting.tables, ground.segments, numbers))
        pids = sorted({section.pid for table in tables.values() for section in table})
        rewrites: list[Rewrite] = []
        before = set(ground.parts)
        for pid in pids:
            part = ground.part(pid)
            refs = [ref for ref in part.moved.refs if ref.file in tables]
            behind = part.checkpoint_index > part.moved.copy_index and any(ref.tail_index for ref in refs)
            copy = part.moved.checkpoint_file in tables or behind
            if pid in ground.damaged or not (refs or copy):
                continue
            raw = ground.state.get(number_key(keys.CHECKPOINT, pid)) if copy and pid != SYSTEM_PID else None
            rewrites.append(Rewrite(part, refs, part.settled_floor, checkpoint=raw or b"", carry_copy=copy))
        await self.replace(rewrites, tables, own_pid=-1)
        for number in numbers:
            self._last_death[number] = self.rounds
        for pid in pids:
            if pid not in before and (part_now := ground.parts.get(pid)) is not None:
                ground.forget(part_now)

    async def replace(self, rewrites: Sequence[Rewrite], tables: rewriting.Tables, *, own_pid: int) -> None:
        """Writes and commits new sections in the place of old ones."""
        ground = self._ground
        if not rewrites:
            return
        into = writing(ground)
        done = await ground.on(ground.io, lambda: rewriting.rewrite(ground.segments, into, rewrites, tables, own_pid))
        for pid, why in done.damaged.items():
            hurt = ground.part(pid)
            ground.isolate(pid, why, hurt.moved.moved_to, hurt.first_offset(), -1)
        puts: Puts = {}
        change: dict[int, int] = {}
        moved: list[tuple[Part, Moved]] = []
        for rewrite in rewrites:
            part, old = rewrite.part, rewrite.part.moved
            gone = set(done.replaced.get(part.pid, ()))
            file, nbytes = done.copies.get(part.pid, (old.checkpoint_file, old.checkpoint_bytes))
            if not gone and file == old.checkpoint_file:
                continue
            for ref in gone:
                change[ref.file] = change.get(ref.file, 0) - (ref.nbytes - ref.dead_bytes)
            if file != old.checkpoint_file and old.checkpoint_file:
                change[old.checkpoint_file] = change.get(old.checkpoint_file, 0) - old.checkpoint_bytes
            kept = [ref for ref in old.refs if ref not in gone] + done.made.get(part.pid, [])
            kept.sort(key=_first_index)
            index = rewrite.checkpoint_index if part.pid in done.copies else old.copy_index
            now = msgspec.structs.replace(old, refs=tuple(kept), checkpoint_file=file, checkpoint_bytes=nbytes, copy_index=index)
            moved.append((part, now))
            puts[number_key(keys.MOVED, part.pid)] = keys.pack(now)
        if not puts:
            return
        file_puts, after = ground.files_changed(change, done.files)
        await ground.writer.submit(puts | file_puts)
        for part, now in moved:
            part.moved = now
        ground.apply_files(after)


def writing(ground: Ground) -> Writing:
    """What writes segments, with today's numbers and settings."""
    storage = ground.config.storage
    return Writing(
        ground.files,
        ground.segment_directory,
        ground.take_number,
        own_bytes_min=storage.segment_own_bytes_min,
        file_bytes=storage.segment_file_bytes,
        wall_ms=ground.wall_ms(),
    )


def _first_index(ref: SegmentRef) -> int:
    return ref.first_index


def as_covered(ref: SegmentRef) -> SegmentRef:
    """The same, with a checkpoint that covers its entries."""
    return msgspec.structs.replace(ref, tail_index=0) if ref.tail_index else ref


def _with_dead(ref: SegmentRef, dead_bytes: int) -> SegmentRef:
    return msgspec.structs.replace(ref, dead_bytes=dead_bytes)
