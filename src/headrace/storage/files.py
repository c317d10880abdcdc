"""Everything storage does to a disk, behind one small protocol, so that a simulator can be the disk.

Owns the system calls and their traps (short writes, the 1,024 piece limit, RWF_DSYNC). Knows no format and no policy: a failed call raises
``OSError`` as the system gave it, is never retried here, and what it leaves on disk is unknown.

Paths are strings; a handle is an opaque int (a file descriptor in ``OsFiles``). All calls block and may be made from any thread.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from typing import Final, NewType, Protocol

from headrace.model.errors import DataDirLocked

Handle = NewType("Handle", int)
Buffer = bytes | bytearray | memoryview

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of an ``OSError`` that says that there is no room."""

LOCK_WAIT_S: Final = 1.0
"""A broker that was killed a moment ago may still be ending, with the process that moves what leaves its log (``apart``)."""

PIECES_MAX: Final = 1024
"""Pieces of one ``pwritev`` (IOV_MAX)."""

_JOIN_BYTES: Final = 4096
"""Pieces smaller than this are cheaper to copy than to hand over one by one."""

_JOIN_ALL_BYTES: Final = 256 * 1024

_FILL: Final = bytes(1 << 20)


class Files(Protocol):
    """What storage asks of a disk. A name is durable only after ``fsync_dir`` of its directory, bytes only after a durable write or ``fsync``."""

    def make_dir(self, path: str) -> None:
        """Creates a directory with its parents; it may exist. The names are made durable."""

    def create(self, path: str) -> Handle:
        """A new file, open for reading and writing; ``FileExistsError`` if there is one."""

    def open(self, path: str, *, write: bool = False) -> Handle: ...

    def close(self, handle: Handle) -> None: ...

    def pwritev_durable(self, handle: Handle, pieces: Sequence[Buffer], offset: int) -> None:
        """Writes the pieces back to back at ``offset``; returns once they are on the disk. Releases the GIL. After an error any part may be there."""

    def pwrite(self, handle: Handle, data: Buffer, offset: int) -> None:
        """Writes all of ``data``; durable only after ``fsync``."""

    def pread(self, handle: Handle, length: int, offset: int) -> bytes:
        """``length`` bytes, fewer only at the end of the file."""

    def fsync(self, handle: Handle) -> None: ...

    def fsync_and_forget(self, handle: Handle) -> None:
        """As ``fsync``; later reads are of the disk, not of what the system believes to have written there before a sync failed."""

    def fsync_dir(self, path: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """Replaces ``new`` if there is one. Durable after ``fsync_dir``."""

    def listdir(self, path: str) -> list[str]:
        """Names of files and directories, sorted."""

    def exists(self, path: str) -> bool: ...

    def size(self, handle: Handle) -> int: ...

    def free_bytes(self, path: str) -> int:
        """Bytes that this process may still write on the file system of ``path``."""

    def preallocate(self, handle: Handle, length: int) -> None:
        """Reserves space so that the file is ``length`` long; new bytes read as zero. Not durable by itself."""

    def truncate(self, handle: Handle, length: int) -> None: ...

    def lock(self, path: str) -> Handle:
        """Holds the lock file until ``close`` or the end of the process; ``DataDirLocked`` if another holds it."""


class OsFiles:
    """The real disk."""

    def __init__(self) -> None:
        self._dsync: int = getattr(os, "RWF_DSYNC", 0)

    def make_dir(self, path: str) -> None:
        if os.path.isdir(path):
            return
        parent = os.path.dirname(os.path.abspath(path))
        self.make_dir(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o750)
        self.fsync_dir(parent)

    def create(self, path: str) -> Handle:
        return Handle(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))

    def open(self, path: str, *, write: bool = False) -> Handle:
        return Handle(os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC))

    def close(self, handle: Handle) -> None:
        os.close(handle)

    def pwritev_durable(self, handle: Handle, pieces: Sequence[Buffer], offset: int) -> None:
        rest = joined(pieces)
        while rest:
            batch = rest[:PIECES_MAX]
            written = self._write_synced(handle, batch, offset)
            if written <= 0:
                raise OSError(errno.EIO, "the disk took no bytes")
            offset += written
            rest = advanced(rest, written)
        if not self._dsync:
            getattr(os, "fdatasync", os.fsync)(handle)

    def _write_synced(self, handle: Handle, batch: Sequence[Buffer], offset: int) -> int:
        if self._dsync:
            try:
                return os.pwritev(handle, batch, offset, self._dsync)
            except OSError as e:
                if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._dsync = 0  # refused before anything was written: this file system does not know the flag
        return os.pwritev(handle, batch, offset)

    def pwrite(self, handle: Handle, data: Buffer, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(handle, view, offset)
            if written <= 0:
                raise OSError(errno.EIO, "the disk took no bytes")
            offset += written
            view = view[written:]

    def pread(self, handle: Handle, length: int, offset: int) -> bytes:
        data = os.pread(handle, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length:
            more = os.pread(handle, length - got, offset + got)
            if not more:
                break
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def fsync(self, handle: Handle) -> None:
        os.fsync(handle)

    def fsync_and_forget(self, handle: Handle) -> None:
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def fsync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def size(self, handle: Handle) -> int:
        return os.fstat(handle).st_size

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def preallocate(self, handle: Handle, length: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, length)
        elif self.size(handle) < length:
            os.ftruncate(handle, length)

    def truncate(self, handle: Handle, length: int) -> None:
        os.ftruncate(handle, length)

    def lock(self, path: str) -> Handle:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Handle(fd)
            except OSError as e:
                if e.errno in (errno.EWOULDBLOCK, errno.EACCES) and time.monotonic() < until:
                    time.sleep(0.02)
                    continue
                os.close(fd)
                if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise DataDirLocked(f"the data directory is in use: {path} is locked by another process") from e
                raise


def joined(pieces: Sequence[Buffer]) -> list[Buffer]:
    """The same bytes in few pieces: neighbours under 4 KiB are copied together, large ones are kept as they are. Many pieces that are small together
    become one: a call of ``join`` costs less than looking at each."""
    if len(pieces) <= 8:
        return [p for p in pieces if len(p)]
    if sum(map(len, pieces)) <= _JOIN_ALL_BYTES:
        return [b"".join(pieces)]
    out: list[Buffer] = []
    small: list[Buffer] = []
    for piece in pieces:
        if len(piece) < _JOIN_BYTES:
            small.append(piece)
            continue
        if small:
            out.append(b"".join(small))
            small = []
        out.append(piece)
    if small:
        out.append(b"".join(small))
    return out


def advanced(pieces: Sequence[Buffer], written: int) -> list[Buffer]:
    """What is left of ``pieces`` after their first ``written`` bytes."""
    for at, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[at + 1 :]] if written else list(pieces[at:])
        written -= len(piece)
    return []


def zero_fill(files: Files, handle: Handle, length: int) -> None:
    """Makes ``handle`` a durable file of ``length`` zero bytes, 1 MiB at a time: a flush of another file never waits behind more than one step.

    Writing the zeros, not only reserving them, keeps later syncs free of changes to the file's metadata.
    """
    for at in range(0, length, len(_FILL)):
        step = min(len(_FILL), length - at)
        files.pwritev_durable(handle, [_FILL if step == len(_FILL) else _FILL[:step]], at)
    files.fsync(handle)


class _Node:
    """A file in memory and how to undo what was not synced: (offset, bytes before, length before)."""

    __slots__ = ("data", "undo")

    def __init__(self) -> None:
        self.data = bytearray()
        self.undo: list[tuple[int, bytes, int]] = []


class MemoryFiles:
    """A disk in memory that forgets, at ``crash()``, every byte and name that was not synced.

    ``fault(operation, path, nbytes)`` is asked before each call that changes something or syncs: it may raise ``OSError``, or answer how many bytes
    a write may leave before it fails with EIO (None = all well). ``capacity`` bounds all files together: ENOSPC past it.
    """

    def __init__(self, *, capacity: int = 1 << 40, fault: Callable[[str, str, int], int | None] | None = None) -> None:
        self.capacity = capacity
        self.fault = fault
        self._names: dict[str, _Node] = {}
        self._durable: dict[str, _Node] = {}
        self._dirs: set[str] = set()
        self._handles: dict[int, tuple[str, _Node]] = {}
        self._locks: dict[int, str] = {}
        self._next = 3

    def crash(self) -> None:
        """The machine loses power: handles and locks are gone, names and bytes fall back to what was synced."""
        self._names = dict(self._durable)
        self._handles.clear()
        self._locks.clear()
        for node in self._names.values():
            for offset, before, length in reversed(node.undo):
                node.data[offset : offset + len(before)] = before
                del node.data[length:]
            node.undo.clear()

    def contents(self, path: str) -> bytearray:
        """The bytes of a file, for a test to damage."""
        return self._names[path].data

    def copy(self) -> "MemoryFiles":
        """A second disk with the same files, everything synced, nothing open."""
        other = MemoryFiles(capacity=self.capacity)
        other._dirs = set(self._dirs)
        for path, node in self._names.items():
            twin = other._names[path] = _Node()
            twin.data = bytearray(node.data)
        other._durable = dict(other._names)
        return other

    def make_dir(self, path: str) -> None:
        while path not in ("", "/"):
            self._dirs.add(path)
            path = os.path.dirname(path)

    def create(self, path: str) -> Handle:
        if path in self._names:
            raise FileExistsError(errno.EEXIST, "exists", path)
        self._ask("create", path, 0)
        self._names[path] = _Node()
        return self._opened(path)

    def open(self, path: str, *, write: bool = False) -> Handle:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return self._opened(path)

    def close(self, handle: Handle) -> None:
        if self._locks.pop(handle, None) is None:
            self._node(handle)
            del self._handles[handle]

    def pwritev_durable(self, handle: Handle, pieces: Sequence[Buffer], offset: int) -> None:
        node = self._write("pwritev_durable", handle, b"".join(pieces), offset)
        node.undo.clear()

    def pwrite(self, handle: Handle, data: Buffer, offset: int) -> None:
        self._write("pwrite", handle, bytes(data), offset)

    def pread(self, handle: Handle, length: int, offset: int) -> bytes:
        return bytes(self._node(handle)[1].data[offset : offset + length])

    def fsync(self, handle: Handle) -> None:
        path, node = self._node(handle)
        self._ask("fsync", path, 0)
        node.undo.clear()

    def fsync_and_forget(self, handle: Handle) -> None:
        self.fsync(handle)

    def fsync_dir(self, path: str) -> None:
        self._ask("fsync_dir", path, 0)
        inside = [p for p in {**self._names, **self._durable} if os.path.dirname(p) == path]
        for name in inside:
            if name in self._names:
                self._durable[name] = self._names[name]
            else:
                del self._durable[name]

    def unlink(self, path: str) -> None:
        self._ask("unlink", path, 0)
        if self._names.pop(path, None) is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)

    def rename(self, old: str, new: str) -> None:
        self._ask("rename", old, 0)
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", old)
        node = self._names[new] = self._names.pop(old)
        for handle, (_path, open_node) in self._handles.items():
            if open_node is node:
                self._handles[handle] = (new, node)

    def listdir(self, path: str) -> list[str]:
        known = [*self._names, *self._dirs]
        return sorted({p[len(path) + 1 :].split("/")[0] for p in known if p.startswith(path + "/")})

    def exists(self, path: str) -> bool:
        return path in self._names or path in self._dirs

    def size(self, handle: Handle) -> int:
        return len(self._node(handle)[1].data)

    def free_bytes(self, path: str) -> int:
        return max(0, self.capacity - sum(len(n.data) for n in self._names.values()))

    def preallocate(self, handle: Handle, length: int) -> None:
        missing = length - self.size(handle)
        if missing > 0:
            self._write("preallocate", handle, bytes(missing), self.size(handle))

    def truncate(self, handle: Handle, length: int) -> None:
        path, node = self._node(handle)
        self._ask("truncate", path, 0)
        node.undo.append((length, bytes(node.data[length:]), len(node.data)))
        if length <= len(node.data):
            del node.data[length:]
        else:
            node.data.extend(bytes(length - len(node.data)))

    def lock(self, path: str) -> Handle:
        if path in self._locks.values():
            raise DataDirLocked(f"the data directory is in use: {path} is locked by another process")
        self._next += 1
        self._locks[self._next] = path
        return Handle(self._next)

    def _ask(self, operation: str, path: str, nbytes: int) -> int | None:
        return self.fault(operation, path, nbytes) if self.fault is not None else None

    def _opened(self, path: str) -> Handle:
        self._next += 1
        self._handles[self._next] = (path, self._names[path])
        return Handle(self._next)

    def _node(self, handle: Handle) -> tuple[str, _Node]:
        found = self._handles.get(handle)
        if found is None:
            raise OSError(errno.EBADF, "not an open handle")
        return found

    def _write(self, operation: str, handle: Handle, data: bytes, offset: int) -> _Node:
        path, node = self._node(handle)
        allowed = self._ask(operation, path, len(data))
        grown = max(0, offset + len(data) - len(node.data))
        if grown and self.free_bytes(path) < grown:
            raise OSError(errno.ENOSPC, "no space left on the device", path)
        whole = data
        if allowed is not None:
            data = data[:allowed]
        if len(data) == len(whole):  # what is left of a torn write stays
            node.undo.append((offset, bytes(node.data[offset : offset + len(data)]), len(node.data)))
        if offset > len(node.data):
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        if len(data) < len(whole):
            raise OSError(errno.EIO, "the write failed half way", path)
        return node
