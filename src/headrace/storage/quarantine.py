"""Repairing an isolated partition: what is sound is kept and served again, what is not is set aside, never erased.

Owns what a repair does and what it costs. Runs while ``ground.moving`` is held.

I1 State is never guessed: it is the checkpoint plus whole entries up to the first that is missing; what follows that one is cut. I2 Records that are
missing below that point leave a gap: all other offsets stay. I3 Bytes that are cut are copied to ``set-aside`` and synced before they are given up.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from headrace.model.errors import Damaged, NotFound
from headrace.storage import aside, keys, segments
from headrace.storage.api import Damage
from headrace.storage.ground import Ground, log
from headrace.storage.index import Part
from headrace.storage.keys import number_key
from headrace.storage.mover import Mover
from headrace.storage.reads import raw_entries
from headrace.storage.rebuild import rebuild
from headrace.storage.rewriting import Rewrite
from headrace.storage.sweeping import Sweeper


class Repairs:
    """See the module's head."""

    def __init__(self, ground: Ground, mover: Mover, sweeper: Sweeper, truncate: Callable[[Part, int], Awaitable[None]]) -> None:
        self._ground = ground
        self._mover = mover
        self._sweeper = sweeper
        self._truncate = truncate

    async def repair(self, pid: int, *, dry_run: bool) -> Damage:
        """What a repair would leave, and, unless ``dry_run``, does it. ``NotFound`` if the partition is not damaged."""
        ground = self._ground
        known = ground.damaged.get(pid)
        if known is None:
            raise NotFound(f"partition {pid} is not quarantined")
        part = ground.part(pid)
        if not ground.state_readable(pid):
            if dry_run:
                return Damage(known.why, part.moved.moved_to, part.next_offset, known.lost_entries_max, known.since_ms)
            await ground.writer.drained()
            await ground.on(ground.io, lambda: rebuild(ground, sorted(ground.metas), only_pid=pid))
            ground.reload(part)
        bad = await ground.on(ground.reader, partial(self._bad_rows, part))
        last_valid = self._last_valid(part, bad)
        hurt = await ground.on(ground.reader, partial(self._bad_refs, part))
        tail_cut = last_valid < part.last_index
        lost = part.last_index - last_valid + sum(1 for index in bad if index <= last_valid) + sum(hurt.values())
        end = max(part.end_in_log_below(last_valid + 1), part.moved.refs[-1].end_offset if part.moved.refs else 0)
        if part.checkpoint_index <= last_valid:
            end = max(end, part.checkpoint_next)
        answer = Damage(known.why, last_valid, end, max(lost, 0), known.since_ms)
        if dry_run:
            return answer
        if bad or tail_cut:
            await ground.on(ground.io, partial(self._set_aside_rows, part, set(bad), last_valid))
        if part.rows or last_valid > part.moved.moved_to:
            await self._mover.evacuate(part, last_index=last_valid)
        # always: a start may have left damaged entries out already, and without the mark the next one would find them again
        await self._truncate(part, last_valid + 1)
        part.last_index = part.durable_index = last_valid
        part.next_offset = end
        if hurt:
            await self._salvage(part, list(hurt))
        await ground.writer.submit({number_key(keys.QUARANTINE, pid): None})
        ground.damaged.pop(pid, None)
        log.warning("partition %d is repaired: it ends at index %d, offset %d; at most %d entries are lost", pid, last_valid, end, max(lost, 0))
        return answer

    # ------------------------------------------------------------ finding out

    def _bad_rows(self, part: Part) -> list[int]:
        """Indexes of the log's rows that are lost or damaged."""
        bad = [part.first_index + k for k in range(part.rows) if not part.size(k)]
        rows = part.rows_from(0)
        try:
            for _ in raw_entries(self._ground.wal, part.pid, rows, bad=bad):
                pass
        except NotFound as e:
            raise Damaged(f"partition {part.pid} cannot be read: {e}") from e
        return sorted(bad)

    @staticmethod
    def _last_valid(part: Part, bad: Sequence[int]) -> int:
        """The checkpoint, then whole entries up to the first that is not."""
        covered = max(part.checkpoint_index, part.moved.moved_to)
        after = [index for index in bad if index > covered]
        if after:
            return after[0] - 1
        if part.rows and part.first_index > covered + 1:
            return covered
        return max(covered, part.first_index + part.rows - 1 if part.rows else 0)

    def _bad_refs(self, part: Part) -> dict[int, int]:
        """Numbers of the references with damage: how many entries are missing in each."""
        ground = self._ground
        found: dict[int, int] = {}
        for number, ref in enumerate(part.moved.refs):
            bad: list[tuple[int, int]] = []
            count = 0
            try:
                with ground.segments.opened(ref.file) as handle:
                    places = segments.stored_positions(ground.files, handle, ref)
                    for _ in segments.walk(ground.files, handle, part.pid, ref, bad=bad, resync=places):
                        count += 1
            except (NotFound, OSError):
                bad.append((0, 0))
            if bad:
                found[number] = ref.entries - count
        return found

    # ------------------------------------------------------------ doing it

    def _set_aside_rows(self, part: Part, bad: set[int], last_valid: int) -> None:
        """Copies the raw bytes of what is damaged or cut."""
        taken = [(index, place, size) for place, size, index in part.rows_from(0) if index > last_valid or index in bad]
        aside.copy(self._ground, part.pid, taken, last_valid + 1)

    async def _salvage(self, part: Part, numbers: Sequence[int]) -> None:
        """Writes damaged sections anew without what is damaged."""
        ground = self._ground
        refs = [part.moved.refs[n] for n in numbers]
        there = set(ground.files.listdir(ground.segment_directory))
        gone = [ref for ref in refs if f"segment-{ref.file:016x}.seg" not in there]
        share = Rewrite(part, [ref for ref in refs if ref not in gone], part.settled_floor, salvage=True)
        await self._sweeper.replace([share], {}, own_pid=part.pid)
        if share.dropped:
            await ground.on(ground.io, lambda: aside.write(ground, f"partition-{part.pid}-segments", [raw for _, raw in share.dropped]))
        if gone:
            await self._sweeper.drop_refs(part, gone)

