"""Writing segments anew without what is dead, dropped by compaction, or damaged. The mover's other work on its thread; commits nothing."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from headrace.model.errors import Damaged, NotFound
from headrace.storage import segments
from headrace.storage.api import StoredEntry
from headrace.storage.files import Handle
from headrace.storage.ground import SegmentFiles
from headrace.storage.index import Part
from headrace.storage.keys import FileMeta, SegmentRef
from headrace.storage.moving import Writing
from headrace.storage.segments import Section
from headrace.storage.walformat import encode_entry
from headrace.wire.journal import RECORDS_HEAD, Kind

Tables = dict[int, list[Section]]
Keep = Callable[[bytes, int], bytes | None]
_RECORDS: Final = int(Kind.RECORDS)


class Rewrite:
    """One partition's share: the references to replace, its floor, its checkpoint's copy if that is to be written anew."""

    __slots__ = ("carry_copy", "checkpoint", "checkpoint_index", "dropped", "floor", "keep", "part", "refs", "salvage")

    def __init__(
        self,
        part: Part,
        refs: Sequence[SegmentRef],
        floor: int,
        *,
        checkpoint: bytes = b"",
        carry_copy: bool = False,
        keep: Keep | None = None,
        salvage: bool = False,
    ) -> None:
        self.part = part
        self.refs = refs
        self.floor = floor
        self.checkpoint_index = part.checkpoint_index if checkpoint else part.moved.copy_index
        """Entries of other kinds above it stay."""
        self.checkpoint = checkpoint
        self.carry_copy = carry_copy
        self.keep = keep
        self.salvage = salvage
        """Damaged entries are left out and noted in ``dropped``; without it they are an error."""
        self.dropped: list[tuple[SegmentRef, bytes]] = []
        """What was damaged, as it stood there."""


class Rewritten:
    """What was written, synced and not yet committed."""

    __slots__ = ("copies", "damaged", "files", "made", "replaced")

    def __init__(self) -> None:
        self.files: dict[int, FileMeta] = {}
        self.replaced: dict[int, list[SegmentRef]] = {}
        self.made: dict[int, list[SegmentRef]] = {}
        self.copies: dict[int, tuple[int, int]] = {}
        self.damaged: dict[int, str] = {}
        """Partitions that could not be read; nothing at all was written then."""


def tables(files: SegmentFiles, numbers: Sequence[int]) -> Tables:
    """The tables of those files that have a sound one."""
    found: Tables = {}
    for number in numbers:
        try:
            with files.opened(number) as handle:
                table = segments.read_table(files.files, handle, number)
        except (NotFound, OSError):
            continue
        if table is not None:
            found[number] = table
    return found


def rewrite(files: SegmentFiles, writing: Writing, rewrites: Sequence[Rewrite], tables: Tables, own_pid: int) -> Rewritten:
    """Copies what lives of each share into new files, sorted by partition. Raises ``OSError`` after removing what it wrote."""
    done = Rewritten()
    for share in sorted(rewrites, key=lambda r: r.part.pid):
        try:
            _share(files, writing, share, tables, done, own_pid)
        except (Damaged, NotFound) as e:
            writing.abandon()
            failed = Rewritten()
            failed.damaged[share.part.pid] = str(e)
            return failed
        except BaseException:
            writing.abandon()
            raise
    writing.finish(own_pid)
    done.files, done.made, done.copies = writing.moves.files, writing.moves.refs, writing.moves.checkpoints
    return done


def _share(files: SegmentFiles, writing: Writing, share: Rewrite, tables: Tables, done: Rewritten, own_pid: int) -> None:
    pid = share.part.pid
    copy = share.checkpoint
    if share.carry_copy and not copy:
        copy = _copy_in(files, share, tables)
    for group in _groups(share):
        if share.keep is not None and not _changes(files, share, group[0]):
            continue
        done.replaced.setdefault(pid, []).extend(group)
        begun = False
        for ref in group:
            for entry in _live(files, share, ref):
                writer = writing.writer()
                if not begun:
                    tail = max(r.tail_index for r in group)
                    writer.begin(
                        pid,
                        first_index=group[0].first_index,
                        last_index=group[-1].last_index,
                        end_offset=group[-1].end_offset,
                        tail_index=tail if tail > share.checkpoint_index else 0,
                    )
                    begun = True
                head = encode_entry(pid, entry.epoch, entry.index, entry.kind, (entry.payload,), len(entry.payload))
                wall = RECORDS_HEAD.unpack_from(entry.payload)[3] if entry.kind == _RECORDS else 0
                writer.add(head + entry.payload, entry.index, entry.base_offset, entry.record_count, wall)
        if begun:
            writer.end(copy)
            copy = b""
            if writer.size >= writing.file_bytes:
                writing.close(own_pid)
    if copy:
        refs = share.part.moved.refs
        writer, last = writing.writer(), share.part.moved.moved_to
        writer.begin(pid, first_index=last + 1, last_index=last, end_offset=refs[-1].end_offset if refs else 0)
        writer.end(copy)


def _groups(share: Rewrite) -> list[list[SegmentRef]]:
    """References that become one section each: neighbours in the journal, unless each is judged by itself."""
    if share.keep is not None or share.salvage:
        return [[ref] for ref in share.refs]
    groups: list[list[SegmentRef]] = []
    wanted = set(share.refs)
    near = False
    for ref in share.part.moved.refs:
        if ref not in wanted:
            near = False
        elif near:
            groups[-1].append(ref)
        else:
            groups.append([ref])
            near = True
    return groups


def _live(files: SegmentFiles, share: Rewrite, ref: SegmentRef) -> Iterator[StoredEntry]:
    """What stays of a reference."""
    with files.opened(ref.file) as handle:
        for entry in _walked(files, handle, share, ref):
            if entry.kind == _RECORDS:
                if entry.base_offset + entry.record_count <= share.floor and entry.index <= share.checkpoint_index:
                    continue
                if share.keep is not None:
                    payload = share.keep(bytes(entry.payload), entry.base_offset)
                    if payload is None:
                        continue
                    entry = entry.holding(payload)
            elif entry.index <= share.checkpoint_index:
                continue
            yield entry


def _walked(files: SegmentFiles, handle: Handle, share: Rewrite, ref: SegmentRef) -> Iterator[StoredEntry]:
    pid = share.part.pid
    if not share.salvage:
        yield from segments.every_entry(files.files, handle, pid, ref)
        return
    bad: list[tuple[int, int]] = []
    for _, entry in segments.walk(files.files, handle, pid, ref, bad=bad, resync=segments.stored_positions(files.files, handle, ref)):
        yield entry
    for position, nbytes in bad:
        share.dropped.append((ref, files.files.pread(handle, nbytes, position)))


def _changes(files: SegmentFiles, share: Rewrite, ref: SegmentRef) -> bool:
    """Whether compaction would change anything in a reference."""
    assert share.keep is not None
    with files.opened(ref.file) as handle:
        for entry in segments.every_entry(files.files, handle, share.part.pid, ref):
            if entry.kind == _RECORDS:
                payload = bytes(entry.payload)
                if share.keep(payload, entry.base_offset) is not payload:
                    return True
    return False


def _copy_in(files: SegmentFiles, share: Rewrite, tables: Tables) -> bytes:
    """The copy of a partition's checkpoint as its file has it."""
    number = share.part.moved.checkpoint_file
    for section in tables.get(number, ()):
        if section.pid == share.part.pid and section.checkpoint_at:
            with files.opened(number) as handle:
                return segments.read_checkpoint(files.files, handle, section) or b""
    return b""
