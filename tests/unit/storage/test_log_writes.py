"""Durable writes of the log by the kernel's own workers, and what is left to a thread."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.storage.files import Buffer, Handle, OsFiles
from headrace.storage.flusher import Done
from headrace.storage.logwrites import LaneWrites, RingWrites, log_writes
from headrace.storage.ring import BUFFER_BYTES, Ring


class Other:
    """Stands in for the thread: what it was asked to write, written at once."""

    def __init__(self) -> None:
        self.written: list[tuple[bytes, int]] = []
        self.closed = False

    def write(self, handle: Handle, pieces: Sequence[Buffer], offset: int, done: Done) -> None:
        self.written.append((b"".join(pieces), offset))
        OsFiles().pwritev_durable(handle, pieces, offset)
        asyncio.get_running_loop().call_soon(done, None, None)

    def after(self, done: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_soon(done)

    def close(self) -> None:
        self.closed = True


class Failing:
    """A ring that answers what it is told to."""

    def __init__(self, *results: int, takes: bool = True) -> None:
        self.results, self.takes, self.busy, self.closed = list(results), takes, False, False

    def start(self, fd: int, pieces: Sequence[Buffer], nbytes: int, offset: int, done: Callable[[int], object]) -> bool:
        if self.takes:
            self.busy = True
            asyncio.get_running_loop().call_soon(self._answer, done)
        return self.takes

    def _answer(self, done: Callable[[int], object]) -> None:
        self.busy = False
        done(self.results.pop(0))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
async def ring() -> Any:
    try:
        made = Ring(asyncio.get_running_loop())
    except OSError as e:
        pytest.skip(f"this system has no io_uring for us: {e}")
    yield made
    made.close()


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[Handle]:
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    yield Handle(fd)
    os.close(fd)


async def written(writes: Any, handle: Handle, pieces: Sequence[Buffer], offset: int) -> BaseException | None:
    """How it went."""
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    writes.write(handle, pieces, offset, lambda result, error: ended.set_result(error))
    async with asyncio.timeout(20):
        return await ended


async def test_pieces_are_written_one_after_the_other(ring: Ring, handle: Handle) -> None:
    writes, bulk = RingWrites(ring, Other()), bytes(range(256)) * 64
    for n in range(50):
        assert await written(writes, handle, [b"head", memoryview(bulk), b"", bytearray(b"end %02d" % n)], n * 20_000) is None
    for n in range(50):
        assert os.pread(handle, len(bulk) + 10, n * 20_000) == b"head" + bulk + b"end %02d" % n


async def test_a_write_that_fails_says_so_and_is_not_tried_again(ring: Ring, tmp_path: Path) -> None:
    other = Other()
    writes = RingWrites(ring, other)
    full = Handle(os.open("/dev/full", os.O_RDWR))
    read_only = Handle(os.open(tmp_path, os.O_RDONLY))
    try:
        for fd, number in ((full, errno.ENOSPC), (read_only, errno.EBADF)):
            error = await written(writes, fd, [b"x"], 0)
            assert isinstance(error, OSError)
            assert error.errno == number
    finally:
        os.close(full)
        os.close(read_only)
    assert other.written == []


async def test_a_large_write_is_the_threads(ring: Ring, handle: Handle) -> None:
    other = Other()
    writes = RingWrites(ring, other)
    assert await written(writes, handle, [bytes(BUFFER_BYTES), b"1"], 0) is None
    assert [len(data) for data, _ in other.written] == [BUFFER_BYTES + 1]
    assert await written(writes, handle, [b"2" * BUFFER_BYTES], 0) is None
    assert len(other.written) == 1
    assert os.pread(handle, 2, BUFFER_BYTES - 2) == b"22"


async def test_the_loop_is_not_held_while_the_disk_works(ring: Ring, handle: Handle) -> None:
    writes, ended = RingWrites(ring, Other()), False

    def done(result: object, error: BaseException | None) -> None:
        nonlocal ended
        ended = True

    writes.write(handle, [b"x" * 4096], 0, done)
    assert ring.busy
    assert not ended
    last = asyncio.Event()
    writes.after(last.set)
    assert not last.is_set()
    async with asyncio.timeout(20):
        await last.wait()
    assert ended
    assert os.pread(handle, 4096, 0) == b"x" * 4096


async def test_the_rest_of_a_write_that_was_cut_short_follows(handle: Handle) -> None:
    other = Other()
    assert await written(RingWrites(Failing(3), other), handle, [b"ab", b"cdef"], 100) is None  # type: ignore[arg-type]
    assert other.written == [(b"def", 103)]


@pytest.mark.parametrize("failing", [Failing(-errno.EOPNOTSUPP), Failing(-errno.EINVAL), Failing(takes=False)])
async def test_what_the_kernel_does_not_know_is_the_threads_from_then_on(handle: Handle, failing: Failing) -> None:
    other = Other()
    writes = RingWrites(failing, other)  # type: ignore[arg-type]
    assert await written(writes, handle, [b"one"], 0) is None
    assert failing.closed
    assert await written(writes, handle, [b"two"], 3) is None
    assert other.written == [(b"one", 0), (b"two", 3)]
    writes.close()
    assert other.closed


async def test_a_disk_that_takes_no_bytes_is_an_error(handle: Handle) -> None:
    for result, number in ((0, errno.EIO), (-errno.EIO, errno.EIO)):
        error = await written(RingWrites(Failing(result), Other()), handle, [b"x"], 0)  # type: ignore[arg-type]
        assert isinstance(error, OSError)
        assert error.errno == number


async def test_a_system_without_it_writes_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(loop: asyncio.AbstractEventLoop) -> Ring:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr("headrace.storage.logwrites.Ring", refused)
    loop, lane = asyncio.get_running_loop(), object()
    assert isinstance(log_writes(loop, OsFiles(), lane, "auto"), LaneWrites)  # type: ignore[arg-type]
    assert isinstance(log_writes(loop, OsFiles(), lane, "thread"), LaneWrites)  # type: ignore[arg-type]


async def test_nothing_stays_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(20):
        try:
            Ring(asyncio.get_running_loop()).close()
        except OSError as e:
            pytest.skip(str(e))
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0
