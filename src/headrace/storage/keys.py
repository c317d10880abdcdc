"""Storage's own keys and values in the small state: what moved where, checkpoints, wake-ups, files, quarantine.

Owns their byte layouts. Everything of storage stands below one prefix that no other user of the state writes. Partition and file numbers are u64
big-endian, so a scan gives them in order.

    c/<pid>: epoch u32, index u64, floor u64, next offset u64, wake_at_ms u64, then the checkpoint's data
    m/<pid>: Moved (msgpack)        w/<pid>: wake_at_ms u64       f/<file>: FileMeta (msgpack)       q/<pid>: Quarantine (msgpack)
    d/<pid>: u64, the newest log file when it was deleted: its entries there are ignored
"""

from struct import Struct
from typing import Final, TypeVar

import msgspec

from headrace.model.errors import Damaged
from headrace.storage.api import Checkpoint

PREFIX: Final = b"\0storage/"
CHECKPOINT: Final = PREFIX + b"c/"
MOVED: Final = PREFIX + b"m/"
WAKE: Final = PREFIX + b"w/"
FILE: Final = PREFIX + b"f/"
QUARANTINE: Final = PREFIX + b"q/"
DELETED: Final = PREFIX + b"d/"
COMPLETE: Final = PREFIX + b"complete"
"""Present in every state that was not lost: its absence beside a log or segments means that the state must be rebuilt."""
NOTED: Final = PREFIX + b"noted"
"""u64: index of the newest entry of the system journal whose changes the state has."""

_HEAD: Final = Struct(">IQQQQ")


class SegmentRef(msgspec.Struct, frozen=True, array_like=True):
    """One partition's entries within one segment file. It stands for the journal's ``[first_index, last_index]``, without what was dead."""

    file: int
    first_index: int
    last_index: int
    first_offset: int
    """Of the first record in it; equal to ``end_offset`` when it holds no records."""
    end_offset: int
    entries: int
    position: int
    nbytes: int
    first_wall_ms: int
    last_wall_ms: int
    rows_at: int
    rows: int
    tail_index: int = 0
    """Above 0: it also holds entries of other kinds, up to this index, that no checkpoint covers."""
    dead_bytes: int = 0


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """What of a partition is not in the log any more. Entries at or below ``moved_to`` that recovery finds in the log are ignored."""

    moved_to: int = 0
    epoch: int = 0
    promised: int = 0
    refs: tuple[SegmentRef, ...] = ()
    """Ascending by index and offset."""
    checkpoint_file: int = 0
    """The file that holds the newest copy of its checkpoint, 0 = none."""
    checkpoint_bytes: int = 0
    """Size of that copy."""
    copy_index: int = 0
    """The index of that copy. Entries above it are never left out of segments, even if a newer checkpoint stands in the small state alone."""
    base_epoch: int = 0
    """Epoch of the entry at ``moved_to``, kept for replicated partitions (0 = not known)."""
    generation: int = 0
    version: int = 0
    """How far the documents of a replicated partition were obeyed when ``promised`` was."""


class FileMeta(msgspec.Struct, frozen=True, array_like=True):
    """A segment file: its size and how much of it is still referred to."""

    nbytes: int
    live_bytes: int
    own_pid: int = -1
    """The one partition in it, -1 = an archive of several."""


class Quarantine(msgspec.Struct, frozen=True, array_like=True):
    """Why a partition is isolated. Damage in the log is found again by recovery; damage in segments is remembered here."""

    why: str
    last_valid_index: int
    last_valid_offset: int
    lost_entries_max: int
    since_ms: int
    file: int = 0
    """The damaged segment file, 0 = the log."""


_T = TypeVar("_T")
NOTHING_MOVED: Final = Moved()


def number_key(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(8, "big")


def number_of(prefix: bytes, key: bytes) -> int:
    return int.from_bytes(key[len(prefix) :], "big")


def pack_checkpoint(c: Checkpoint) -> bytes:
    return _HEAD.pack(c.epoch, c.index, c.floor_offset, c.next_offset, max(0, c.wake_at_ms)) + c.data


def unpack_checkpoint(raw: bytes) -> Checkpoint:
    if len(raw) < _HEAD.size:
        raise Damaged("a stored checkpoint is cut off")
    epoch, index, floor, next_offset, wake = _HEAD.unpack_from(raw)
    return Checkpoint(epoch, index, raw[_HEAD.size :], floor, next_offset, wake)


_pack = msgspec.msgpack.Encoder().encode
_moved = msgspec.msgpack.Decoder(Moved)
_file = msgspec.msgpack.Decoder(FileMeta)
_quarantine = msgspec.msgpack.Decoder(Quarantine)


def pack(value: Moved | FileMeta | Quarantine) -> bytes:
    return _pack(value)


def unpack_moved(raw: bytes | None) -> Moved:
    return NOTHING_MOVED if raw is None else _checked(_moved, raw)


def unpack_file(raw: bytes) -> FileMeta:
    return _checked(_file, raw)


def unpack_quarantine(raw: bytes) -> Quarantine:
    return _checked(_quarantine, raw)


def _checked(decoder: "msgspec.msgpack.Decoder[_T]", raw: bytes) -> _T:
    try:
        return decoder.decode(raw)
    except msgspec.MsgspecError as e:
        raise Damaged(f"a value of storage's state is not what it should be: {e}") from e
