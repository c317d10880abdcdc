"""A simulated disk: what is not synced may be lost, torn or kept out of order; syncs fail; it fills up, flips bits and gives back old files.

Owns two versions of every file: what programs read, and what would survive a loss of power. Implements ``storage.files.Files``; small state
(``SimState``) lies on the same disk, so that one crash concerns all. Does not know what storage writes.

I1 ``crash`` keeps every byte that a successful sync covered and every name that a successful ``fsync_dir`` covered, whatever the draws. I2 without a
crash a program reads what it wrote. I3 what is drawn comes from the ``Chance`` given with the call, so that the same calls give the same disk.

Unsynced names survive as a prefix in order (a journalling file system); unsynced writes of one file survive as any subset, each whole, cut by sectors
or not at all.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from headrace.model.errors import DataDirLocked, DiskFull, Invalid, SyncFailed
from headrace.sim.chance import Chance
from headrace.storage.files import Buffer, Handle
from headrace.storage.state import KEY_BYTES_MAX, Puts, framed, sound_values, unframed

SECTOR: Final = 512


class Write(NamedTuple):
    """Bytes at an offset; ``data`` None: the file was given the length ``offset``."""

    offset: int
    data: bytes | None


class Name(NamedTuple):
    """A change of a directory: ``node`` None = the name is gone; ``old`` is the name it had before a rename."""

    path: str
    node: "Node | None"
    old: str = ""


class Node:
    """A file: as read, as synced, and the writes between the two."""

    __slots__ = ("data", "number", "pending", "synced")

    def __init__(self, number: int) -> None:
        self.number = number
        self.data = bytearray()
        self.synced = bytearray()
        self.pending: list[Write] = []

    def settle(self) -> None:
        """All that is pending is on the disk."""
        for write in self.pending:
            applied(self.synced, write)
        self.pending.clear()


def applied(data: bytearray, write: Write) -> None:
    if write.data is None:
        if write.offset <= len(data):
            del data[write.offset :]
        else:
            data.extend(bytes(write.offset - len(data)))
        return
    if write.offset > len(data):
        data.extend(bytes(write.offset - len(data)))
    data[write.offset : write.offset + len(write.data)] = write.data


Survives = Callable[[Node, Write], Iterator[Write]]
"""What is left of one unsynced write: nothing, all, or some of its sectors."""

Fault = Callable[[str, str, int], int | None]
"""(operation, path, bytes): asked before every change and sync. It may raise ``OSError``, or say how many bytes of a write are written before it
fails."""


class Disk:
    """See the module's head."""

    def __init__(self, *, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        self.fault: Fault | None = None
        self.observe: Callable[[str, str, int, bytes], None] | None = None
        """Told of every change and sync: (operation, path, offset, data)."""
        self._dying = self._over = False
        self.states: dict[str, dict[bytes, bytes]] = {}
        """Small state by path: atomic and durable at once."""
        self.names: dict[str, Node] = {}
        self.synced_names: dict[str, Node] = {}
        self._pending: dict[str, list[Name]] = {}
        """By directory, what is not synced of its names."""
        self._dirs: set[str] = set()
        self._handles: dict[int, tuple[str, Node]] = {}
        self._locks: dict[int, str] = {}
        self._next = 3
        self._nodes = 0
        self._used = 0

    # ------------------------------------------------------------ deaths and damage

    def kill(self) -> None:
        """The process died: its handles and locks are gone, all it wrote is there."""
        self._handles.clear()
        self._locks.clear()
        self.dying = False

    @property
    def dying(self) -> bool:
        """The machine dies within the work that runs now: in its first sync, so that nothing of it is synced and what it would do after that sync is
        not done."""
        return self._dying

    @dying.setter
    def dying(self, dying: bool) -> None:
        self._dying, self._over = dying, False

    def durable(self) -> bool:
        """A sync takes place: whether it is one that the machine lives to see."""
        self._over = self._dying
        return not self._dying

    def check_power(self) -> None:
        """Before every change: ``OSError`` if the machine has died."""
        if self._over:
            raise OSError(errno.EIO, "the machine has lost its power")

    def crash(self, survives: Survives, names_kept: Callable[[int], int]) -> None:
        """The power was lost. ``names_kept`` says how many of so many unsynced names of a directory are on the disk."""
        self.kill()
        for directory in sorted(self._pending):
            pending = self._pending[directory]
            for name in pending[: names_kept(len(pending))]:
                self._apply_name(self.synced_names, name)
        self._pending.clear()
        self.names = dict(self.synced_names)
        for path in sorted(self.names):
            node = self.names[path]
            for write in node.pending:
                for piece in survives(node, write):
                    applied(node.synced, piece)
            node.pending.clear()
            node.data = bytearray(node.synced)
        self._used = sum(len(node.data) for node in self.names.values())

    def crash_by(self, chance: Chance) -> None:
        """As ``crash``, by draws: how much survives is itself drawn, so that all, nothing and everything between are common."""
        keep = chance.pick([(1.0, 0.0), (1.0, 1.0), (2.0, 0.5)])
        torn = chance.pick([(2.0, 0.0), (1.0, 0.5)])

        def survives(_node: Node, write: Write) -> Iterator[Write]:
            if not chance.happens(keep):
                return
            if write.data is None or not chance.happens(torn):
                yield write
                return
            yield from sectors(write, lambda _: chance.happens(0.5))

        self.crash(survives, lambda count: chance.randint(0, count))

    def files(self, under: str = "") -> list[str]:
        """Paths of files, sorted."""
        return sorted(path for path in self.names if path.startswith(under))

    def flip(self, path: str, offset: int, mask: int) -> None:
        """One byte goes bad, on the disk and for every reader."""
        node = self.names[path]
        if offset < len(node.data):
            node.data[offset] ^= mask
        if offset < len(node.synced):
            node.synced[offset] ^= mask

    def image(self, path: str) -> bytes:
        return bytes(self.names[path].data)

    def restore(self, path: str, data: bytes) -> None:
        """The file is what it once was, or what somebody put there."""
        node = self.names.get(path)
        if node is None:
            node = self.names[path] = self.synced_names[path] = self._node_made()
        self._used += len(data) - len(node.data)
        node.pending.clear()
        node.data, node.synced = bytearray(data), bytearray(data)

    # ------------------------------------------------------------ Files

    def make_dir(self, path: str) -> None:
        while path not in ("", "/"):
            self._dirs.add(path)
            path = os.path.dirname(path)

    def create(self, path: str) -> Handle:
        if path in self.names:
            raise FileExistsError(errno.EEXIST, "exists", path)
        self._ask("create", path)
        node = self._node_made()
        self._change(Name(path, node))
        return self._opened(path, node)

    def open(self, path: str, *, write: bool = False) -> Handle:
        node = self.names.get(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return self._opened(path, node)

    def close(self, handle: Handle) -> None:
        if self._locks.pop(handle, None) is None:
            self._node(handle)
            del self._handles[handle]

    def pwritev_durable(self, handle: Handle, pieces: Sequence[Buffer], offset: int) -> None:
        path, node = self._node(handle)
        data = b"".join(pieces)
        self._write("pwritev_durable", path, node, data, offset)
        if self.durable():
            node.settle()

    def pwrite(self, handle: Handle, data: Buffer, offset: int) -> None:
        path, node = self._node(handle)
        self._write("pwrite", path, node, bytes(data), offset)

    def pread(self, handle: Handle, length: int, offset: int) -> bytes:
        return bytes(self._node(handle)[1].data[offset : offset + length])

    def fsync(self, handle: Handle) -> None:
        path, node = self._node(handle)
        self._ask("fsync", path)
        self._seen("fsync", path)
        if self.durable():
            node.settle()

    def fsync_and_forget(self, handle: Handle) -> None:
        path, node = self._node(handle)
        self._ask("fsync", path)
        self._seen("fsync", path)
        if self.durable():
            node.settle()
            self._used += len(node.synced) - len(node.data)
            node.data = bytearray(node.synced)

    def fsync_dir(self, path: str) -> None:
        self._ask("fsync_dir", path)
        self._seen("fsync_dir", path)
        if self.durable():
            for name in self._pending.pop(path, ()):
                self._apply_name(self.synced_names, name)

    def unlink(self, path: str) -> None:
        self._ask("unlink", path)
        node = self.names.get(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self._used -= len(node.data)
        self._change(Name(path, None))

    def rename(self, old: str, new: str) -> None:
        self._ask("rename", old)
        node = self.names.get(old)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", old)
        if new in self.names:
            self._used -= len(self.names[new].data)
        self._change(Name(new, node, old))
        for handle, (_path, opened) in self._handles.items():
            if opened is node:
                self._handles[handle] = (new, node)

    def listdir(self, path: str) -> list[str]:
        known = [*self.names, *self._dirs]
        return sorted({p[len(path) + 1 :].split("/")[0] for p in known if p.startswith(path + "/")})

    def exists(self, path: str) -> bool:
        return path in self.names or path in self._dirs

    def size(self, handle: Handle) -> int:
        return len(self._node(handle)[1].data)

    def free_bytes(self, path: str) -> int:
        return max(0, self.capacity - self._used)

    def preallocate(self, handle: Handle, length: int) -> None:
        path, node = self._node(handle)
        missing = length - len(node.data)
        if missing > 0:
            self._ask("preallocate", path)
            self._room(path, missing)
            self._note(path, node, Write(length, None), "preallocate")

    def truncate(self, handle: Handle, length: int) -> None:
        path, node = self._node(handle)
        self._ask("truncate", path)
        self._note(path, node, Write(length, None), "truncate")

    def lock(self, path: str) -> Handle:
        if path in self._locks.values():
            raise DataDirLocked(f"the data directory is in use: {path} is locked by another process")
        self._next += 1
        self._locks[self._next] = path
        return Handle(self._next)

    # ------------------------------------------------------------ inside

    def _node_made(self) -> Node:
        self._nodes += 1
        return Node(self._nodes)

    def _ask(self, operation: str, path: str, nbytes: int = 0) -> int | None:
        self.check_power()
        return self.fault(operation, path, nbytes) if self.fault is not None else None

    def _seen(self, operation: str, path: str, offset: int = 0, data: bytes = b"") -> None:
        if self.observe is not None:
            self.observe(operation, path, offset, data)

    def _opened(self, path: str, node: Node) -> Handle:
        self._next += 1
        self._handles[self._next] = (path, node)
        return Handle(self._next)

    def _node(self, handle: Handle) -> tuple[str, Node]:
        found = self._handles.get(handle)
        if found is None:
            raise OSError(errno.EBADF, "not an open handle")
        return found

    def _change(self, name: Name) -> None:
        if name.old:
            self._seen("rename", name.old, 0, name.path.encode())
        else:
            self._seen("create" if name.node is not None else "unlink", name.path)
        self._apply_name(self.names, name)
        self._pending.setdefault(os.path.dirname(name.path), []).append(name)

    @staticmethod
    def _apply_name(names: dict[str, Node], name: Name) -> None:
        if name.old:
            names.pop(name.old, None)
        if name.node is None:
            names.pop(name.path, None)
        else:
            names[name.path] = name.node

    def _room(self, path: str, missing: int) -> None:
        if missing > 0 and self._used + missing > self.capacity:
            raise OSError(errno.ENOSPC, "no space left on the device", path)

    def _write(self, operation: str, path: str, node: Node, data: bytes, offset: int) -> None:
        allowed = self._ask(operation, path, len(data))
        self._room(path, offset + len(data) - len(node.data))
        part = data if allowed is None else data[:allowed]
        self._note(path, node, Write(offset, part), operation)
        if len(part) < len(data):
            raise OSError(errno.EIO, "the write failed half way", path)

    def _note(self, path: str, node: Node, write: Write, operation: str) -> None:
        self._seen(operation, path, write.offset, write.data or b"")
        before = len(node.data)
        applied(node.data, write)
        node.pending.append(write)
        self._used += len(node.data) - before


def sectors(write: Write, kept: Callable[[int], bool]) -> Iterator[Write]:
    """A write that was torn: those of its sectors for which ``kept`` (asked by their number) says so."""
    assert write.data is not None
    at, end, number = write.offset, write.offset + len(write.data), 0
    while at < end:
        stop = min(end, (at // SECTOR + 1) * SECTOR)
        if kept(number):
            yield Write(at, write.data[at - write.offset : stop - write.offset])
        at, number = stop, number + 1


class SimState:
    """A ``storage.state.StateStore`` on a simulated disk: each commit is one atomic, durable step."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._values = disk.states.setdefault(path, {})

    def get(self, key: bytes) -> bytes | None:
        raw = self._values.get(key)
        return None if raw is None else unframed(key, raw)

    def scan(self, prefix: bytes, after: bytes = b"", *, damaged: list[bytes] | None = None) -> Iterator[tuple[bytes, bytes]]:
        return sound_values(sorted((k, v) for k, v in self._values.items() if k.startswith(prefix) and k > after), damaged)

    def commit(self, puts: Puts) -> None:
        for key in puts:
            if not 1 <= len(key) <= KEY_BYTES_MAX:
                raise Invalid(f"a key of small state has 1 to {KEY_BYTES_MAX} bytes, this one has {len(key)}")
        fault, disk = self._disk.fault, self._disk
        disk.check_power()
        size = sum(len(key) + len(value or b"") for key, value in puts.items())
        if disk.free_bytes(self._path) < size:
            raise DiskFull(f"the state in {self._path} cannot grow")
        if fault is not None:
            try:
                fault("commit", self._path, size)
            except OSError as e:
                if e.errno == errno.ENOSPC:
                    raise DiskFull(f"the state in {self._path} cannot grow: {e}") from e
                raise SyncFailed(f"the state in {self._path} may or may not have taken a change: {e}") from e
        if self._disk.observe is not None:
            self._disk.observe("commit", self._path, 0, repr(sorted(puts.items())).encode())
        if not disk.durable():
            return
        for key, value in puts.items():
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = framed(key, value)

    def close(self) -> None:
        pass
