"""The records of the formation on disk: one file a slot, replaced whole, durable before anybody is told; and setting a directory's data aside.

    formation/held, aside                                           stay when the data is set aside
    formation/data/identity, promise, bootstrap, acceptance, applied go with it
    aside/<id>/                                                     what was set aside, kept for a while

Owns these names, what counts as data, and the lock that keeps a second process out. Does not know what the records mean.

I1 a record is there whole or as it was before: written beside, synced, renamed, its directory synced. I2 setting aside is repeated until nothing is
left, after a crash at any step: the order to do so stays, and what was renamed is not looked at again; the identity goes last. I3 whatever lies in
the data directory and is not known to be none counts as data.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, get_args

import msgspec

from headrace.core.formation.records import OUTSIDE, Record, Records, Slot, decode, encode, slot_of
from headrace.log import get_logger
from headrace.model.errors import HeadraceError

_log = get_logger("formation")

FOLDER: Final = "formation"
INSIDE: Final = "data"
ASIDE: Final = "aside"
SLOTS: Final[tuple[Slot, ...]] = get_args(Slot)
NO_DATA: Final = (FOLDER, ASIDE, "lost+found", "LOCK")
RECORD_BYTES_MAX: Final = 4 * 1024 * 1024


class Disk(Protocol):
    """The part of storage's files that is used here."""

    def make_dir(self, path: str) -> None: ...
    def create(self, path: str) -> Any: ...
    def open(self, path: str, *, write: bool = False) -> Any: ...
    def close(self, handle: Any) -> None: ...
    def pwritev_durable(self, handle: Any, pieces: Sequence[bytes], offset: int) -> None: ...
    def pread(self, handle: Any, length: int, offset: int) -> bytes: ...
    def fsync_dir(self, path: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def listdir(self, path: str) -> list[str]: ...
    def exists(self, path: str) -> bool: ...
    def lock(self, path: str) -> Any: ...


class Kept(msgspec.Struct, frozen=True):
    """What lies in a folder of ``aside/``, for people and for the one who removes it in the end."""

    cluster_id: str
    reason: str
    until_wall_ms: int


class Slots:
    """See the module's head. Every method blocks; not to be called from two threads at a time."""

    def __init__(self, disk: Disk, data_dir: str, *, elsewhere: Sequence[str] = ()) -> None:
        """``elsewhere``: further directories whose entries are this broker's data (etcd's, where it has a disk of its own)."""
        self._disk = disk
        self.root = os.path.abspath(data_dir)
        self._folder = f"{self.root}/{FOLDER}"
        self._elsewhere = tuple(os.path.abspath(path) for path in elsewhere)
        self._lock: Any = None

    def open(self) -> None:
        """Takes the lock; ``DataDirLocked`` if another process has it."""
        self._disk.make_dir(self._folder)
        self._lock = self._disk.lock(f"{self._folder}/lock")

    def close(self) -> None:
        if self._lock is not None:
            self._disk.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------ records

    def _path(self, slot: Slot) -> str:
        return f"{self._folder}/{slot}" if slot in OUTSIDE else f"{self._folder}/{INSIDE}/{slot}"

    def read(self) -> tuple[Records, str]:
        """All records, and why some cannot be read ("" = all can)."""
        records, wrong = Records(), list[str]()
        for slot in SLOTS:
            path = self._path(slot)
            if not self._disk.exists(path):
                continue
            handle = self._disk.open(path)
            try:
                record = decode(self._disk.pread(handle, RECORD_BYTES_MAX, 0))
                if slot_of(record) != slot:
                    wrong.append(f"{path} holds a record of another kind: {slot_of(record)}")
                else:
                    records = records.stored(record)
            except HeadraceError as e:
                wrong.append(f"{path}: {e}")
            finally:
                self._disk.close(handle)
        return records, "; ".join(wrong)

    def write(self, record: Record) -> None:
        """Returns once it is durable. OSError: nothing is known of it; write it again."""
        path = self._path(slot_of(record))
        folder, new = os.path.dirname(path), f"{path}.new"
        self._disk.make_dir(folder)
        if self._disk.exists(new):
            self._disk.unlink(new)
        handle = self._disk.create(new)
        try:
            self._disk.pwritev_durable(handle, [encode(record)], 0)
        finally:
            self._disk.close(handle)
        self._disk.rename(new, path)
        self._disk.fsync_dir(folder)

    # ------------------------------------------------------------ data

    def data(self) -> tuple[str, ...]:
        """Paths of what counts as data, the records within it not among them."""
        found = [f"{self.root}/{name}" for name in self._disk.listdir(self.root) if name not in NO_DATA and not name.startswith(".")]
        for folder in self._elsewhere:
            if folder.startswith(f"{self.root}/") or not os.path.isdir(folder):
                continue
            found += [f"{folder}/{name}" for name in sorted(os.listdir(folder)) if name not in NO_DATA and not name.startswith(".")]
        return tuple(found)

    def data_bytes(self) -> int:
        """How much there is, roughly."""
        total = 0
        for path in self.data():
            total += _size(path)
            for folder, _, names in os.walk(path):
                total += sum(_size(os.path.join(folder, name)) for name in names)
        return total

    def set_aside(self, id: str, kept: Kept) -> str:
        """Renames all data, the records inside it too; says where to. May be repeated."""
        assert id and "/" not in id
        aside = f"{self.root}/{ASIDE}/{id}"
        self._disk.make_dir(aside)
        if not self._disk.exists(f"{aside}/kept.json"):
            handle = self._disk.create(f"{aside}/kept.json")
            self._disk.pwritev_durable(handle, [msgspec.json.encode(kept)], 0)
            self._disk.close(handle)
        for path in self.data():
            if path.startswith(f"{self.root}/"):
                self._disk.rename(path, _free(f"{aside}/{os.path.basename(path)}"))
            else:  # of another disk, where it stays
                beside = f"{os.path.dirname(path)}/{ASIDE}/{id}"
                self._disk.make_dir(beside)
                self._disk.rename(path, _free(f"{beside}/{os.path.basename(path)}"))
                self._disk.fsync_dir(os.path.dirname(path))
        self._disk.fsync_dir(self.root)
        self._disk.fsync_dir(aside)
        inside = f"{self._folder}/{INSIDE}"
        if os.path.isdir(inside):
            self._disk.rename(inside, _free(f"{aside}/{FOLDER}"))
            self._disk.fsync_dir(self._folder)
            self._disk.fsync_dir(aside)
        return aside

    def clean(self, wall_ms: int) -> None:
        """Removes what was set aside and has been kept for long enough."""
        for root in (self.root, *self._elsewhere):
            for folder in sorted(Path(root, ASIDE).glob("*")):
                if root != self.root and Path(self.root, ASIDE, folder.name).exists():
                    continue
                with contextlib.suppress(OSError, msgspec.MsgspecError):
                    if root == self.root:
                        kept = msgspec.json.decode((folder / "kept.json").read_bytes(), type=Kept)
                        if kept.until_wall_ms > wall_ms:
                            continue
                    _log.info("what was set aside in %s has been kept for long enough: it is removed", folder)
                    shutil.rmtree(folder)


def _free(path: str) -> str:
    """A name that nothing has: ``path``, or with a number."""
    found, n = path, 0
    while os.path.lexists(found):
        n += 1
        found = f"{path}.{n}"
    return found


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0
