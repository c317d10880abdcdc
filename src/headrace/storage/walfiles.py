"""The set of the write-ahead log's files: which are live, which are ready to be written next, which may go.

Owns names, handles, preparing ahead, recycling and removal. Does not know what is in a file. Names are ``wal-<file id in 16 hex digits>.log``
(``.new`` while a file is being made).

I1 File ids grow in the order of use and are never used twice. I2 A file is used only when all its bytes are allocated and synced. I3 Files are
retired oldest first, and a retired file is touched only once a later flush, which names the oldest file that counts, is durable: so recovery can tell
a file that was retired from one that is missing. I4 A file is not closed, renamed or overwritten while someone reads it.

Handles are used by reading threads too; everything else happens on the loop.
"""

import contextlib
import errno
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

from headrace.model.errors import Invariant, NotFound
from headrace.storage.files import DISK_FULL, Files, Handle, zero_fill
from headrace.storage.flusher import Lane
from headrace.storage.walformat import DATA_START, NO_PREVIOUS, FileHeader, Previous

LONG: Final = 16
"""A log that may have so many files keeps four spares, and has two made ready ahead while it fills: making one takes up to half a second while a disk
is busy, and a flood fills one in less."""
RETRY_S: Final = 0.25
"""How long to wait before trying again to prepare a file on a full disk."""


def spares_of(bytes_max: int, file_bytes: int) -> int:
    """How many files that were given up, or never used, a log keeps at most."""
    return 4 if bytes_max >= LONG * file_bytes else 2


class Later(Protocol):
    """``loop.call_later``."""

    def __call__(self, delay: float, callback: Callable[[], None], /) -> object: ...


class WalFile(NamedTuple):
    """A live file: its bytes up to ``end`` are written."""

    file_id: int
    end: int


class Continuation(NamedTuple):
    """Where writing goes on: what recovery found, or ``FRESH``. Writing always begins in a new file, whose header says where the old one ends."""

    header: FileHeader | None
    """Of the last file."""
    end: int
    """Where its valid flushes end."""
    next_seq: int
    previous: Previous
    oldest_id: int
    live: tuple[WalFile, ...]
    prepared: tuple[int, ...]
    """Ids of files that were made ready and never used."""
    discard: tuple[str, ...]
    """Names of files that were retired or never finished."""
    next_id: int


FRESH: Final = Continuation(None, 0, 1, NO_PREVIOUS, 1, (), (), (), 1)
"""A directory without a log."""


def name_of(file_id: int) -> str:
    return f"wal-{file_id:016x}.log"


def id_of(name: str) -> int | None:
    """The file id in a name; None if it is not the name of a log file."""
    if len(name) != 24 or not name.startswith("wal-") or not name.endswith(".log"):
        return None
    try:
        file_id = int(name[4:20], 16)
    except ValueError:
        return None
    return file_id if name_of(file_id) == name else None


class OpenFile:
    """A file of the set; ``end`` is where its written bytes end, ``pins`` counts its readers."""

    __slots__ = ("end", "file_id", "handle", "pins", "retired", "size")

    def __init__(self, file_id: int, handle: Handle, size: int) -> None:
        self.file_id = file_id
        self.handle = handle
        self.size = size
        self.end = DATA_START
        self.pins = 0
        self.retired = False


class WalFiles:
    """See the module's head. ``on_ready`` is called when a file that was waited for can be taken; ``on_trouble`` when none can be prepared."""

    def __init__(
        self,
        files: Files,
        directory: str,
        *,
        background: Lane,
        later: Later,
        file_bytes: int,
        spares_max: int,
        on_ready: Callable[[], None],
        on_trouble: Callable[[OSError], None],
    ) -> None:
        self.files = files
        self.directory = directory
        self.file_bytes = file_bytes
        self.spares_max = spares_max
        self.total_bytes = 0
        self.live: deque[OpenFile] = deque()
        self._leaving: deque[OpenFile] = deque()
        self._ready: deque[OpenFile] = deque()
        self._coming = 0
        self._retrying = False
        self._closed = False
        self._next_id = 1
        self._background = background
        self._later = later
        self._on_ready = on_ready
        self._on_trouble = on_trouble
        self._pinning = threading.Lock()
        self._by_id: dict[int, OpenFile] = {}

    def start(self, after: Continuation) -> None:
        """Opens what is live and has one file ready; blocks. Removes what recovery found useless."""
        for name in after.discard:
            with contextlib.suppress(FileNotFoundError):
                self.files.unlink(self._path(name))
        self._next_id = after.next_id
        for file_id, end in after.live:
            handle = self.files.open(self._path(name_of(file_id)), write=True)
            self._join(OpenFile(file_id, handle, self.files.size(handle)), end)
        for file_id in after.prepared:
            handle = self.files.open(self._path(name_of(file_id)), write=True)
            size = self.files.size(handle)
            if size == self.file_bytes and len(self._ready) < self.spares_max:
                self._ready.append(OpenFile(file_id, handle, size))
            else:
                self.files.close(handle)
                self.files.unlink(self._path(name_of(file_id)))
        if not self._ready:
            self._ready.append(self._create(self._take_id()))
        self.files.fsync_dir(self.directory)

    @property
    def oldest_id(self) -> int:
        """The oldest file that counts. There always is one: the file being written is never retired."""
        return self.live[0].file_id

    def take(self) -> OpenFile | None:
        """The next file to write, now live; None: none is ready, ``on_ready`` will tell."""
        if not self._ready:
            self._order()
            return None
        file = self._ready.popleft()
        self._join(file, DATA_START)
        self._order()
        return file

    def grow(self, file: OpenFile, end: int) -> None:
        """The file being written is now written up to ``end``."""
        self.total_bytes += end - file.end
        file.end = end

    def retire(self, file_id: int) -> bool:
        """Nothing in this file is needed any more. It goes once all older ones are retired too. True: ``oldest_id`` has changed."""
        file = self._by_id.get(file_id)
        if file is None or file.retired:
            return False
        if file is self.live[-1]:
            raise Invariant(f"the log file {file_id} is being written and cannot be retired")
        file.retired = True
        changed = False
        while self.live[0].retired:
            gone = self.live.popleft()
            self.total_bytes -= gone.end
            self._leaving.append(gone)
            changed = True
        return changed

    def release(self, oldest_id: int) -> None:
        """A durable flush has named ``oldest_id``: lets older files go, as spares or for good."""
        while self._leaving and self._leaving[0].file_id < oldest_id:
            file = self._leaving[0]
            with self._pinning:
                if file.pins:
                    return  # the next release finds it
                del self._by_id[file.file_id]
            self._leaving.popleft()
            if len(self._ready) + self._coming < self.spares_max and file.size == self.file_bytes and not self._closed:
                self._coming += 1
                new_id = self._take_id()
                self._background.submit(partial(self._recycle, file, new_id), self._prepared)
            else:
                self._background.submit(partial(self._remove, file), _forgiving)

    @property
    def leaving(self) -> bool:
        """Whether retired files wait for a durable flush."""
        return bool(self._leaving)

    def pread(self, file_id: int, length: int, position: int) -> bytes:
        """Bytes of a live file, from any thread. ``NotFound`` if it is retired and gone."""
        with self._pinning:
            file = self._by_id.get(file_id)
            if file is None:
                raise NotFound(f"the log file {file_id} was retired", hint="look the entry up again: it was moved")
            file.pins += 1
        try:
            return self.files.pread(file.handle, length, position)
        finally:
            with self._pinning:
                file.pins -= 1

    def close(self, done: Callable[[], object]) -> None:
        """Closes all handles once the background has ended its work, then calls ``done``."""
        self._closed = True
        self._background.submit(self._close_all, lambda _result, _error: _call(done))

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _join(self, file: OpenFile, end: int) -> None:
        file.end = end
        self.total_bytes += end
        self.live.append(file)
        with self._pinning:
            self._by_id[file.file_id] = file

    def _order(self) -> None:
        """Has files made ready ahead."""
        ahead = max(1, self.spares_max // 2) if len(self.live) > 1 else 1
        for _ in range(ahead - len(self._ready) - self._coming):
            if self._retrying or self._closed:
                return
            self._coming += 1
            file_id = self._take_id()
            self._background.submit(partial(self._create, file_id), self._prepared)

    def _create(self, file_id: int) -> OpenFile:
        name = self._path(name_of(file_id))
        path = name.removesuffix(".log") + ".new"
        if self.files.free_bytes(self.directory) < self.file_bytes:
            raise OSError(errno.ENOSPC, "no space left for a log file", path)  # trying would take from others what is left
        handle = self.files.create(path)
        try:
            zero_fill(self.files, handle, self.file_bytes)
            self.files.rename(path, name)
            self.files.fsync_dir(self.directory)
        except BaseException:
            self.files.close(handle)
            with contextlib.suppress(OSError):
                self.files.unlink(path)  # a partial file would only keep the disk full
            raise
        return OpenFile(file_id, handle, self.file_bytes)

    def _recycle(self, file: OpenFile, new_id: int) -> OpenFile:
        # The old header stays in place: with an id lower than its name's, it says that the file is not in use.
        self.files.rename(self._path(name_of(file.file_id)), self._path(name_of(new_id)))
        self.files.fsync_dir(self.directory)
        return OpenFile(new_id, file.handle, file.size)

    def _remove(self, file: OpenFile) -> None:
        self.files.close(file.handle)
        self.files.unlink(self._path(name_of(file.file_id)))
        self.files.fsync_dir(self.directory)

    def _prepared(self, file: OpenFile | None, error: BaseException | None) -> None:
        self._coming -= 1
        if file is not None:
            if self._closed:
                self._background.submit(partial(self.files.close, file.handle), _forgiving)
                return
            self._ready.append(file)
            self._on_ready()
            return
        if not isinstance(error, OSError):
            error = OSError(errno.EIO, f"preparing a log file failed: {error!r}")
        self._on_trouble(error)
        if not self._closed and error.errno in DISK_FULL and not self._retrying:
            self._retrying = True
            self._later(RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        self._order()

    def _close_all(self) -> None:
        with self._pinning:
            open_files = [*self._by_id.values(), *self._ready]
            self._by_id.clear()
            self._ready.clear()
        for file in open_files:
            self.files.close(file.handle)


def _call(done: Callable[[], object]) -> None:
    done()


def _forgiving(_result: object, _error: BaseException | None) -> None:
    """A file that could not be removed is found again by recovery and removed then."""
