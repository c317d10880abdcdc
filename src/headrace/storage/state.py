"""Small state that changes in atomic, durable steps: checkpoints, catalogue, what moved where. A few methods, so that a simulator can be the store.

Owns the framing of values (version, checksum) and LMDB with its traps: growing the map, files that were cut short, environments that cannot be
opened. Does not know what the values mean. Keys have 1 to 511 bytes; values are opaque.

I1 ``commit`` is all or nothing and returns once it is on the disk. I2 A value that does not match its checksum, which covers its key, is never
served. I3 ``commit`` runs on one storage thread; ``get`` and ``scan`` may be called from any thread and see only committed state.

    value on disk: version u8 (1), crc u32 (CRC-32C of the key, then the value), value
"""

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Final, Protocol

import lmdb
from crc32c import crc32c

from headrace.model.errors import Damaged, DiskFull, Invalid, StorageError, SyncFailed
from headrace.storage.flusher import Lane

Puts = Mapping[bytes, bytes | None]

KEY_BYTES_MAX: Final = 511
_VERSION: Final = 1
_FRAME: Final = Struct(">BI")
_SCAN_PAGE: Final = 1000
_MAP_BYTES: Final = 64 * 1024 * 1024
_META: Final = Struct("=IIQQ")
"""LMDB's meta page after its page header of 16 bytes: magic, version, address, map size; then two databases of 48 bytes, last page, transaction."""
_META_MAGIC: Final = 0xBEEFC0DE

_OPENED_MAX: Final = 2
"""Opened so often without a close in between, an environment is read through first: a damaged page may be what ended the process each time."""
_READ_THROUGH: Final = """
import sys, lmdb
try:
    env = lmdb.open(sys.argv[1], map_size=int(sys.argv[2]), create=False)
    with env.begin() as txn, txn.cursor() as cursor:
        for item in cursor:
            pass
    with env.begin(write=True) as txn:
        txn.put(b"\\0", bytes(3000))
        txn.abort()
except lmdb.MapFullError:
    pass
except lmdb.Error:
    sys.exit(66)
"""


def read_one(path: str, key: bytes) -> bytes | None:
    """A value of an environment that nobody has open, which is left as it is. ``StorageError`` if it cannot be read."""
    try:
        with contextlib.closing(lmdb.open(path, readonly=True, create=False, lock=False)) as env, env.begin() as txn:
            raw = txn.get(key)
    except lmdb.Error as e:
        raise StorageError(f"the state in {path} cannot be read: {e}", hint="start the broker alone: it repairs what can be repaired") from e
    return None if raw is None else unframed(key, raw)


class StateStore(Protocol):
    """What storage, catalogue and coordinator ask of small state."""

    def get(self, key: bytes) -> bytes | None:
        """The committed value; ``Damaged`` if its bytes are."""

    def scan(self, prefix: bytes, after: bytes = b"", *, damaged: list[bytes] | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Committed (key, value) with that prefix and greater than ``after``, in order. A damaged value: its key is added to ``damaged`` and it is
        passed over; without that list, ``Damaged``."""

    def commit(self, puts: Puts) -> None:
        """One atomic durable transaction (None deletes). ``DiskFull``: nothing happened, others may succeed. ``SyncFailed``: unknown outcome."""

    def close(self) -> None: ...


def framed(key: bytes, value: bytes) -> bytes:
    """A value as it is stored."""
    return _FRAME.pack(_VERSION, crc32c(value, crc32c(key))) + value


def unframed(key: bytes, raw: bytes) -> bytes:
    """The value in stored bytes, or ``Damaged``."""
    value = raw[_FRAME.size :]
    if len(raw) < _FRAME.size or _FRAME.unpack_from(raw) != (_VERSION, crc32c(value, crc32c(key))):
        raise Damaged(f"the stored value of {key!r} does not match its checksum")
    return value


def sound_values(page: Sequence[tuple[bytes, bytes]], damaged: list[bytes] | None) -> Iterator[tuple[bytes, bytes]]:
    for key, raw in page:
        try:
            value = unframed(key, raw)
        except Damaged:
            if damaged is None:
                raise
            damaged.append(key)
        else:
            yield key, value


def _check_keys(puts: Puts) -> None:
    for key in puts:
        if not 1 <= len(key) <= KEY_BYTES_MAX:
            raise Invalid(f"a key of small state has 1 to {KEY_BYTES_MAX} bytes, this one has {len(key)}")


class MemoryStateStore:
    """Small state that ends with the process."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        raw = self._values.get(key)
        return None if raw is None else unframed(key, raw)

    def scan(self, prefix: bytes, after: bytes = b"", *, damaged: list[bytes] | None = None) -> Iterator[tuple[bytes, bytes]]:
        return sound_values(sorted((k, v) for k, v in self._values.items() if k.startswith(prefix) and k > after), damaged)

    def commit(self, puts: Puts) -> None:
        _check_keys(puts)
        for key, value in puts.items():
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = framed(key, value)

    def raw(self) -> dict[bytes, bytes]:
        """The stored bytes, for a test to damage."""
        return self._values

    def close(self) -> None:
        pass


class LmdbStateStore:
    """Small state in an LMDB environment (a directory). The map grows by itself; an environment that cannot be opened is set aside, not deleted."""

    def __init__(self, path: str, *, map_bytes: int = _MAP_BYTES) -> None:
        """Opens or creates. ``set_aside`` names where a damaged environment went (None: it was sound): all state must then be rebuilt."""
        self.path = path
        self.set_aside: str | None = None
        self._resizing = threading.Lock()
        self._map_bytes = map_bytes
        self._mark = f"{path}.opened"
        opened = _read_number(self._mark)
        try:
            whole = _long_enough(path)
            if not (whole and opened < _OPENED_MAX) and not _survives(path):
                raise lmdb.CorruptedError("reading it through ends a process")
            self._env = self._open()
        except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.PanicError, lmdb.PageNotFoundError, lmdb.IncompatibleError):
            self.set_aside = set_aside(path)
            self._env = self._open()
        except lmdb.Error as e:
            raise StorageError(f"the state in {path} cannot be opened: {e}", hint="check the permissions and the disk of the data directory") from e
        with open(self._mark, "w", encoding="ascii") as file:
            file.write(str(1 if opened >= _OPENED_MAX else opened + 1))

    def get(self, key: bytes) -> bytes | None:
        with self._resizing:
            try:
                with self._env.begin() as txn:
                    raw = txn.get(key)
            except lmdb.Error as e:
                raise Damaged(f"the state in {self.path} cannot be read: {e}") from e
        return None if raw is None else unframed(key, raw)

    def scan(self, prefix: bytes, after: bytes = b"", *, damaged: list[bytes] | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Each 1,000 items are of one moment; commits between them are seen."""
        while True:
            page = self._page(prefix, after)
            yield from sound_values(page, damaged)
            if len(page) < _SCAN_PAGE:
                return
            after = page[-1][0]

    def _page(self, prefix: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
        page: list[tuple[bytes, bytes]] = []
        start = max(prefix, after)
        with self._resizing:
            try:
                with self._env.begin() as txn, txn.cursor() as cursor:
                    if start and not cursor.set_range(start):
                        return page
                    for key, raw in cursor:
                        if len(page) == _SCAN_PAGE or not key.startswith(prefix):
                            break
                        if key > after or not after:
                            page.append((key, raw))
            except lmdb.Error as e:
                raise Damaged(f"the state in {self.path} cannot be read: {e}") from e
        return page

    def commit(self, puts: Puts) -> None:
        _check_keys(puts)
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    for key, value in puts.items():
                        if value is None:
                            txn.delete(key)
                        else:
                            txn.put(key, framed(key, value))
                return
            except lmdb.MapFullError:
                with self._resizing:
                    self._map_bytes = 2 * max(self._map_bytes, self._env.info()["map_size"])
                    self._env.set_mapsize(self._map_bytes)
            except lmdb.Error as e:
                raise _translated(self.path, e) from e
            except OSError as e:
                raise _translated(self.path, e) from e

    def close(self) -> None:
        self._env.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._mark)

    def _open(self) -> Any:
        os.makedirs(self.path, mode=0o750, exist_ok=True)
        map_bytes = max(self._map_bytes, _grown(self.path))
        env = lmdb.open(self.path, map_size=map_bytes, subdir=True, sync=True, metasync=True, readahead=False, max_readers=512, mode=0o640)
        fd = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)  # LMDB syncs its file, not the names of its directory
        finally:
            os.close(fd)
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return env


class StateWriter:
    """Group commit for a ``StateStore``: what gathers while one transaction runs becomes the next. Lives on the loop; the lane's thread commits.

    Order is kept: a later put of a key wins, and a future is done only when its puts and all earlier ones were tried. After an unknown outcome
    (anything but ``DiskFull``) nothing more is taken: what the store then holds must be read anew by a restart.
    """

    def __init__(self, store: StateStore, lane: Lane, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self.error: BaseException | None = None
        self.on_failed: Callable[[BaseException], None] = lambda error: None
        """Called once, after an unknown outcome."""
        self._lane = lane
        self._loop = loop
        self._puts: dict[bytes, bytes | None] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._running: list[asyncio.Future[None]] = []

    def submit(self, puts: Puts) -> asyncio.Future[None]:
        """Done when the puts are durable. ``puts`` is copied; all of it is in one transaction."""
        future: asyncio.Future[None] = self._loop.create_future()
        try:
            _check_keys(puts)
        except Invalid as e:
            future.set_exception(e)
            return future
        if self.error is not None:
            future.set_exception(self.error)
            return future
        self._puts.update(puts)
        self._waiting.append(future)
        if not self._running:
            self._start()
        return future

    async def drained(self) -> None:
        """Returns when all that was submitted so far was tried."""
        waiting = self._waiting or self._running
        if waiting:
            await asyncio.wait(waiting[-1:])

    def _start(self) -> None:
        puts, self._puts = self._puts, {}
        self._running, self._waiting = self._waiting, []
        self._lane.submit(lambda: self.store.commit(puts), self._committed)

    def _committed(self, _result: Any, error: BaseException | None) -> None:
        done, self._running = self._running, []
        _settle(done, error)
        if error is not None and not isinstance(error, DiskFull):
            self.error = error
            lost, self._waiting, self._puts = self._waiting, [], {}
            _settle(lost, error)
            self.on_failed(error)
        if self._waiting and not self._running:
            self._start()


def _settle(futures: list["asyncio.Future[None]"], error: BaseException | None) -> None:
    for future in futures:
        if future.cancelled():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _translated(path: str, error: Exception) -> StorageError:
    """LMDB's failure of a commit as one of ours. LMDB aborts the transaction when a write fails; a failed sync leaves the outcome open."""
    text = str(error)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
        return DiskFull(f"the state in {path} cannot be written: {text}")
    if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError)):
        return Damaged(f"the state in {path} is damaged: {text}")
    return SyncFailed(f"a commit to the state in {path} failed: {text}")


def _metas(path: str) -> list[tuple[int, int, int]] | None:
    """(transaction, last page, page size) of each valid meta page; None if there is no data file yet."""
    try:
        with open(os.path.join(path, "data.mdb"), "rb") as file:
            first = file.read(65536 + 4096)
    except FileNotFoundError:
        return None
    if not first:
        return None
    found = []
    size = 0
    for at in (0, 4096, 8192, 16384, 32768, 65536):
        if at not in (0, size) and size:
            continue
        if len(first) < at + 152 + 16:
            break
        magic, version, _address, _map = _META.unpack_from(first, at + 16)
        if magic != _META_MAGIC or version & 0xFFFF != 1:
            continue
        page = int.from_bytes(first[at + 40 : at + 44], "little")
        last, transaction = Struct("=QQ").unpack_from(first, at + 16 + 24 + 96)
        if page in (4096, 8192, 16384, 32768, 65536):
            size = size or page
            found.append((transaction, last, page))
    return found


def _long_enough(path: str) -> bool:
    """Whether the data file has all its pages; ``lmdb.CorruptedError`` without a valid meta page. A file that is shorter than its meta page says is
    filled up with zeros: reading a page that is not there would end the process (SIGBUS), a page of zeros that is needed is reported as damage."""
    metas = _metas(path)
    if metas is None:
        return True
    if not metas:
        raise lmdb.CorruptedError("no valid meta page")
    _transaction, last, page = max(metas)
    data = os.path.join(path, "data.mdb")
    wanted = (last + 1) * page
    if wanted > 1 << 50:
        raise lmdb.CorruptedError("the meta page is not plausible")
    if os.path.getsize(data) >= wanted:
        return True
    os.truncate(data, wanted)
    return False


def _survives(path: str) -> bool:
    """Whether another process can read the environment through. LMDB trusts its pages: a damaged one may end the process that reads it, so it is not
    this one that tries."""
    command = [sys.executable, "-c", _READ_THROUGH, path, str(max(_MAP_BYTES, _grown(path)))]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
    return code >= 0 and code != 66  # any other code says something of the system, not of the environment


def _read_number(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read() or 0)
    except (FileNotFoundError, ValueError):
        return 0


def _grown(path: str) -> int:
    """A map size that holds what the file already has."""
    try:
        return 2 * os.path.getsize(os.path.join(path, "data.mdb"))
    except FileNotFoundError:
        return 0


def set_aside(path: str) -> str:
    """Renames the (closed) environment at ``path`` so that a new one can be made in its place; answers its new path."""
    number = 1
    while os.path.exists(f"{path}.damaged-{number}"):
        number += 1
    os.rename(path, f"{path}.damaged-{number}")
    return f"{path}.damaged-{number}"
