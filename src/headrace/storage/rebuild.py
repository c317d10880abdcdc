"""A lost small state, rebuilt from segment footers: references, files, the copies of checkpoints. What followed them is still in the log.

Owns the choice among sections that stand for the same entries: the file with the higher number is newer. Blocks; repeatable until the state is
marked as complete."""

from headrace.model.errors import NotFound
from headrace.storage import keys, segments
from headrace.storage.ground import Ground, log
from headrace.storage.keys import FileMeta, Moved, SegmentRef, number_key
from headrace.storage.segments import Section
from headrace.storage.system import SYSTEM_PID

_CHUNK = 1000


def rebuild(ground: Ground, numbers: list[int], *, only_pid: int | None = None) -> None:
    """Writes what the footers say; with ``only_pid`` of that partition alone."""
    sizes: dict[int, int] = {}
    sections: dict[int, list[Section]] = {}
    for number in reversed(numbers):
        try:
            with ground.segments.opened(number) as handle:
                sizes[number] = ground.files.size(handle)
                table = segments.read_table(ground.files, handle, number)
                if table is None:
                    table = segments.sections_by_walking(ground.files, handle, number)
                    log.warning("segment %d has no sound footer; %d sections were found by walking it", number, len(table))
        except (NotFound, OSError) as e:
            log.error("segment %d cannot be read: %s", number, e)
            continue
        for section in table:
            if only_pid is None or section.pid == only_pid:
                sections.setdefault(section.pid, []).append(section)
    puts: dict[bytes, bytes | None] = {}
    if only_pid is None:
        for prefix in (keys.MOVED, keys.CHECKPOINT, keys.WAKE, keys.FILE, keys.QUARANTINE):
            puts |= {key: None for key, _ in ground.state.scan(prefix, damaged=[])}
    live: dict[int, int] = {}
    owners: dict[int, set[int]] = {}
    for pid, found in sections.items():
        refs = _chosen(found)
        moved, checkpoint = _moved(ground, pid, found, refs)
        if checkpoint is not None:
            puts[number_key(keys.CHECKPOINT, pid)] = checkpoint
            wake = keys.unpack_checkpoint(checkpoint).wake_at_ms
            puts[number_key(keys.WAKE, pid)] = wake.to_bytes(8, "big") if wake else None
        puts[number_key(keys.MOVED, pid)] = keys.pack(moved)
        for file, nbytes in [*((r.file, r.nbytes) for r in refs), (moved.checkpoint_file, moved.checkpoint_bytes)]:
            live[file] = live.get(file, 0) + nbytes
            owners.setdefault(file, set()).add(pid)
    live.pop(0, None)
    if only_pid is None:
        for number, nbytes in live.items():
            own = next(iter(owners[number])) if len(owners[number]) == 1 else -1
            puts[number_key(keys.FILE, number)] = keys.pack(FileMeta(sizes[number], nbytes, own))
    items = list(puts.items())
    for at in range(0, len(items), _CHUNK):
        ground.state.commit(dict(items[at : at + _CHUNK]))


def _chosen(found: list[Section]) -> tuple[SegmentRef, ...]:
    """References that count, of sections given newest file first: an older one that newer ones stand for does not."""
    taken: list[SegmentRef] = []
    for section in found:
        ref = section.ref
        if ref.entries and not any(t.first_index <= ref.first_index and ref.last_index <= t.last_index for t in taken):
            taken.append(ref)
    return tuple(sorted(taken, key=lambda ref: ref.first_index))


def _moved(ground: Ground, pid: int, found: list[Section], refs: tuple[SegmentRef, ...]) -> tuple[Moved, bytes | None]:
    moved_to = max(section.ref.last_index for section in found)
    best: tuple[int, bytes, Section] | None = None
    for section in found:
        if not section.checkpoint_at:
            continue
        with ground.segments.opened(section.ref.file) as handle:
            raw = segments.read_checkpoint(ground.files, handle, section)
        if raw is not None and (best is None or keys.unpack_checkpoint(raw).index > best[0]):
            best = (keys.unpack_checkpoint(raw).index, raw, section)
    epoch = keys.unpack_checkpoint(best[1]).epoch if best is not None else _last_epoch(ground, pid, refs)
    if best is None:
        return Moved(moved_to, epoch, 0, refs, 0, 0), None
    _, raw, section = best
    if pid == SYSTEM_PID:
        checkpoint = keys.unpack_checkpoint(raw)
        ground.system_copy = checkpoint.data
        raw = keys.pack_checkpoint(checkpoint._replace(data=b""))
    refs = tuple(ref for ref in refs if ref.tail_index > best[0] or ref.end_offset > keys.unpack_checkpoint(raw).floor_offset)
    return Moved(moved_to, epoch, 0, refs, section.ref.file, section.checkpoint_bytes, best[0]), raw


def _last_epoch(ground: Ground, pid: int, refs: tuple[SegmentRef, ...]) -> int:
    if not refs:
        return 0
    epoch = 0
    try:
        with ground.segments.opened(refs[-1].file) as handle:
            for _, entry in segments.walk(ground.files, handle, pid, refs[-1], bad=[]):
                epoch = max(epoch, entry.epoch)
    except NotFound:
        pass
    return epoch


