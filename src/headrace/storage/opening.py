"""Starting on a data directory: format, small state, log, and what does not fit together.

Owns the order of a start. Reads the log and no segment (but those that the small state does not know). Blocks, on a storage thread.

I1 Nothing is removed that cannot be proven to stand elsewhere. I2 A loss names its partition; a partition without one is served.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from headrace.model.errors import Damaged, StorageError
from headrace.storage import installing, keys, segments
from headrace.storage.api import StoredEntry
from headrace.storage.flusher import Lane
from headrace.storage.ground import Ground, log
from headrace.storage.index import POSITION_BITS, Part
from headrace.storage.keys import number_key, number_of
from headrace.storage.rebuild import rebuild
from headrace.storage.recovery import Recovered, recover
from headrace.storage.state import LmdbStateStore, StateStore, StateWriter
from headrace.storage.walfiles import id_of
from headrace.storage.walformat import ENTRY_BYTES, MARKERS, PROMISE, TRUNCATE, Located
from headrace.wire.journal import OBEYED, RECORDS_HEAD, Kind

FORMAT: Final = 1
_FORMAT_HEAD: Final = "headrace data directory\nformat "
_RECORDS: Final = int(Kind.RECORDS)


async def open_ground(ground: Ground, make_state: Callable[[str], StateStore], state_lane: Lane) -> Recovered:
    """Everything up to where the log can go on. ``OSError``, ``StorageError``."""
    found = await ground.on(ground.io, partial(_open, ground, make_state))
    ground.writer = StateWriter(ground.state, state_lane, ground.loop)
    if ground.damaged:
        await ground.writer.submit({number_key(keys.QUARANTINE, pid): keys.pack(q) for pid, q in ground.damaged.items()})
    return found


def _open(ground: Ground, make_state: Callable[[str], StateStore]) -> Recovered:
    files = ground.files
    _check_format(ground)
    for directory in (ground.wal_directory, ground.segment_directory):
        files.make_dir(directory)
    ground.state = make_state(ground.state_directory)
    installing.settle(ground, ground.state)
    names = files.listdir(ground.segment_directory)
    present = {number for name in names if (number := segments.number_of(name)) is not None}
    ground.next_number = max(present, default=0) + 1
    if _is_lost(ground, bool(present)):
        ground.lost_state = True
        rebuild(ground, sorted(present))
    _load_own(ground, present)
    found = recover(files, ground.wal_directory, partial(_take, ground))
    _finish_parts(ground, found)
    _find_damage(ground, found)
    _look_at_strangers(ground, sorted(present - set(ground.metas)))
    for scar in found.scars[:20]:
        log.warning("the log has a scar: %s", scar)
    return found


def _check_format(ground: Ground) -> None:
    files, path = ground.files, f"{ground.root}/FORMAT"
    if not files.exists(path):
        new = f"{path}.new"
        if files.exists(new):
            files.unlink(new)
        handle = files.create(new)
        files.pwrite(handle, f"{_FORMAT_HEAD}{FORMAT}\n".encode(), 0)
        files.fsync(handle)
        files.close(handle)
        files.rename(new, path)
        files.fsync_dir(ground.root)
        return
    handle = files.open(path)
    text = files.pread(handle, 4096, 0).decode("ascii", "replace")
    files.close(handle)
    if not text.startswith(_FORMAT_HEAD) or not text[len(_FORMAT_HEAD) :].strip().isdigit():
        raise StorageError(f"{path} is not what Headrace writes", hint="is this Headrace's data directory? if only this file is damaged, remove it")
    version = int(text[len(_FORMAT_HEAD) :])
    if version > FORMAT:
        raise StorageError(f"the data directory has format {version}, this broker knows up to {FORMAT}", hint="start the version that wrote it")


def _is_lost(ground: Ground, any_segments: bool) -> bool:
    state = ground.state
    if isinstance(state, LmdbStateStore) and state.set_aside is not None:
        log.error("the small state was damaged; it was set aside as %s and is rebuilt", state.set_aside)
        return True
    try:
        complete = state.get(keys.COMPLETE) is not None
    except Damaged:
        complete = False
    return not complete and (any_segments or any(id_of(name) is not None for name in ground.files.listdir(ground.wal_directory)))


def _load_own(ground: Ground, present: set[int]) -> None:
    """Reads the small values of storage that concern all: files, wake-ups, quarantine, deletions. Not one per partition."""
    state = ground.state
    bad: list[bytes] = []
    ground.metas = {number_of(keys.FILE, k): keys.unpack_file(v) for k, v in state.scan(keys.FILE, damaged=bad)}
    ground.wakes = {number_of(keys.WAKE, k): int.from_bytes(v, "big") for k, v in state.scan(keys.WAKE, damaged=bad)}
    ground.deleted = {number_of(keys.DELETED, k): int.from_bytes(v, "big") for k, v in state.scan(keys.DELETED, damaged=bad)}
    ground.damaged = {number_of(keys.QUARANTINE, k): keys.unpack_quarantine(v) for k, v in state.scan(keys.QUARANTINE, damaged=bad)}
    ground.next_number = max([ground.next_number, *(n + 1 for n in ground.metas)])
    for key in bad:
        log.error("a value of the small state is damaged: %r", key)
        if key.startswith(keys.FILE) and (number := number_of(keys.FILE, key)) in present:
            ground.metas[number] = keys.FileMeta(1, 1)  # its size only decides when it is rewritten
    missing = set(ground.metas) - present
    if missing:
        for key, value in state.scan(keys.MOVED, damaged=[]):
            for ref in keys.unpack_moved(value).refs:
                if ref.file in missing:
                    pid = number_of(keys.MOVED, key)
                    ground.isolate(pid, f"segment {ref.file} is missing", ref.first_index - 1, ref.first_offset, ref.entries, ref.file)


def _take(ground: Ground, located: Located, payloads: Sequence[memoryview]) -> None:
    """Puts recovered entries into their partitions' columns."""
    place = located.file_id << POSITION_BITS
    pids = ground.file_pids.setdefault(located.file_id, set())
    before, part = -1, None
    moved_to = 0
    unpack, shortest = RECORDS_HEAD.unpack_from, ENTRY_BYTES + RECORDS_HEAD.size
    _, of, epochs, indexes, kinds, positions, lengths = located
    keep = ground.recovered.add
    for n, pid in enumerate(of):
        if pid != before:
            before = pid
            part = ground.load_for_recovery(pid) if pid not in ground.deleted else None
            moved_to = part.moved.moved_to if part is not None else 0
            pids.add(pid)
        if part is None:
            continue
        kind, index = kinds[n], indexes[n]
        if kind in MARKERS:
            if kind == TRUNCATE:
                part.discard(index)
            elif kind == PROMISE:
                part.promised = max(part.promised, epochs[n])
                if len(payloads[n]) == OBEYED.size:
                    part.obeyed = max(part.obeyed, OBEYED.unpack(payloads[n]))
        elif index > moved_to:
            if kind == _RECORDS and lengths[n] >= shortest:
                base, count, _frames, wall_ms, _runs = unpack(payloads[n])
                part.add_records(place | positions[n], lengths[n], index, base, count, wall_ms)
            else:
                base, count = -1, 0
                part.add(place | positions[n], lengths[n], index)
            if index > part.checkpoint_index:
                keep(pid, StoredEntry(epochs[n], index, kind, base, count, bytes(payloads[n])))
    ground.file_entries[located.file_id] = ground.file_entries.get(located.file_id, 0) + len(of)


def _finish_parts(ground: Ground, found: Recovered) -> None:
    """Where each journal goes on."""
    for pid, part in ground.parts.items():
        tail = found.partitions.get(pid)
        if tail is not None:
            part.promised = max(part.promised, tail.promised)
            ground.epochs[pid] = tail.epochs
            if part.rows:
                part.last_index = max(part.last_index, part.first_index + part.rows - 1)
                part.last_epoch = max(part.last_epoch, tail.last_epoch)
        part.durable_index = part.last_index
        part.next_offset = max(part.next_offset, part.end_in_log())
        part.set_floor(part.floor)


def _find_damage(ground: Ground, found: Recovered) -> None:
    for pid, tail in found.partitions.items():
        if pid in ground.deleted or pid in ground.damaged:
            continue
        part = ground.load_for_recovery(pid)
        lost = tail.lost_above(part.moved.moved_to)
        if lost:
            first = lost[0][0]
            why = tail.why or "the log begins later than what was moved out of it ends"
            _isolate(ground, part, first - 1, sum(end - begin for begin, end in lost), why)
    for part in list(ground.parts.values()):
        stored = max(part.moved.moved_to, part.first_index + part.rows - 1 if part.rows else 0)
        if part.checkpoint_index > stored and part.pid not in ground.damaged:
            lost_count = part.checkpoint_index - stored
            why = f"the checkpoint at index {part.checkpoint_index} is past what is stored, which ends at {stored}"
            _isolate(ground, part, stored, lost_count, why)
    if not found.unknown_damage:
        return
    why = f"it may have lost entries: {found.unknown[-1].why}"
    known = {number_of(prefix, key) for prefix in (keys.MOVED, keys.CHECKPOINT) for key, _ in ground.state.scan(prefix, damaged=[])}
    for pid in sorted(known | set(ground.parts)):
        if pid not in ground.damaged and pid not in ground.deleted and found.suspect(pid):
            part = ground.load_for_recovery(pid)
            _isolate(ground, part, part.last_index, -1, why)


def _isolate(ground: Ground, part: Part, last_valid: int, lost: int, why: str) -> None:
    end = part.end_in_log_below(last_valid + 1)
    if end < 0:
        end = part.moved.refs[-1].end_offset if part.moved.refs else 0
    ground.isolate(part.pid, why, last_valid, max(end, part.checkpoint_next if part.checkpoint_index <= last_valid else 0), lost)


def _look_at_strangers(ground: Ground, numbers: list[int]) -> None:
    """Segments that the small state does not know: the remains of a pass that was not committed, unless they hold more than is known elsewhere."""
    for number in numbers:
        with ground.segments.opened(number) as handle:
            table = segments.read_table(ground.files, handle, number)
        for section in table or ():
            part = ground.load_for_recovery(section.pid)
            stored = max(part.moved.moved_to, part.first_index + part.rows - 1 if part.rows else 0)
            if section.ref.entries and section.ref.last_index > stored and section.pid not in ground.deleted:
                why = f"segment {number} holds entries up to {section.ref.last_index}, unknown to the small state: was an older one restored?"
                _isolate(ground, part, stored, section.ref.last_index - stored, why)
                break
        else:
            log.info("segment %d is the rest of a pass that was not finished; it is removed", number)
            ground.segments.remove(number)
