"""The disk's contract, on the real one and on the one in memory; and what only one of them has."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.model.errors import DataDirLocked
from headrace.storage.files import Buffer, Files, Handle, MemoryFiles, OsFiles, advanced, joined, zero_fill


class ShortWrites(OsFiles):
    """A disk that takes at most 5,000 bytes a call."""

    def _write_synced(self, handle: Handle, batch: Sequence[Buffer], offset: int) -> int:
        return os.pwrite(handle, b"".join(batch)[:5000], offset)


class WithoutDsync(OsFiles):
    """A system that does not know RWF_DSYNC."""

    def __init__(self) -> None:
        super().__init__()
        self._dsync = 0


@pytest.fixture(params=[OsFiles, ShortWrites, WithoutDsync, MemoryFiles])
def files(request: pytest.FixtureRequest) -> Files:
    made: Files = request.param()
    return made


@pytest.fixture
def directory(files: Files, tmp_path: Path) -> str:
    path = str(tmp_path / "a" / "b")
    files.make_dir(path)
    files.make_dir(path)
    return path


def test_pieces_land_back_to_back(files: Files, directory: str) -> None:
    pieces: list[Buffer] = [bytes([i % 256]) * (i % 50) for i in range(3000)]
    pieces.insert(1500, memoryview(b"large" * 60_000))
    handle = files.create(f"{directory}/f")
    files.pwritev_durable(handle, pieces, 10)
    data = b"".join(pieces)
    assert files.pread(handle, len(data) + 100, 10) == data
    assert files.pread(handle, 100, 0)[:10] == bytes(10)
    assert files.size(handle) == 10 + len(data)
    assert files.pread(handle, 5, 10**9) == b""
    files.pwritev_durable(handle, [], 0)
    files.close(handle)
    with pytest.raises(OSError, match=r"[Bb]ad|not an open"):
        files.size(handle)


def test_names(files: Files, directory: str) -> None:
    handle = files.create(f"{directory}/one")
    with pytest.raises(FileExistsError):
        files.create(f"{directory}/one")
    files.pwrite(handle, b"hello", 0)
    files.fsync(handle)
    files.rename(f"{directory}/one", f"{directory}/two")
    files.fsync_dir(directory)
    assert files.listdir(directory) == ["two"]
    again = files.open(f"{directory}/two", write=True)
    files.truncate(again, 2)
    assert files.pread(handle, 10, 0) == b"he"
    files.preallocate(again, 5000)
    assert files.pread(handle, 10_000, 0) == b"he" + bytes(4998)
    files.fsync_and_forget(again)
    files.unlink(f"{directory}/two")
    assert not files.exists(f"{directory}/two")
    with pytest.raises(FileNotFoundError):
        files.open(f"{directory}/two")
    with pytest.raises(FileNotFoundError):
        files.unlink(f"{directory}/two")
    assert files.free_bytes(directory) > 0
    files.close(handle)
    files.close(again)


def test_zero_fill(files: Files, directory: str) -> None:
    handle = files.create(f"{directory}/f")
    zero_fill(files, handle, 2_500_000)
    assert files.pread(handle, 3_000_000, 0) == bytes(2_500_000)
    files.close(handle)


def test_one_holder_of_the_lock(files: Files, directory: str) -> None:
    held = files.lock(f"{directory}/lock")
    with pytest.raises(DataDirLocked, match="in use"):
        files.lock(f"{directory}/lock")
    files.close(held)
    files.close(files.lock(f"{directory}/lock"))


def test_few_pieces_of_many() -> None:
    assert joined([b"ab"] * 5000) == [b"ab" * 5000]
    pieces: list[Buffer] = [b"ab"] * 5000 + [b"x" * 300_000] + [b"cd"] * 10
    out = joined(pieces)
    assert len(out) == 3
    assert out[1] is pieces[5000]
    assert b"".join(out) == b"".join(pieces)
    assert b"".join(advanced(out, 10_001)) == b"".join(pieces)[10_001:]
    assert b"".join(advanced(out, 10_000)) == b"".join(pieces)[10_000:]
    assert advanced(out, sum(map(len, out))) == []


def test_memory_forgets_what_was_not_synced() -> None:
    files = MemoryFiles()
    files.make_dir("/d")
    handle = files.create("/d/a")
    files.pwritev_durable(handle, [b"synced"], 0)
    files.create("/d/b")
    files.fsync_dir("/d")
    files.pwrite(handle, b"SYNC and more", 0)
    files.truncate(handle, 3)
    files.rename("/d/b", "/d/c")
    files.create("/d/e")
    files.crash()
    assert files.listdir("/d") == ["a", "b"]
    assert bytes(files.contents("/d/a")) == b"synced"
    with pytest.raises(OSError, match="not an open handle"):
        files.pread(handle, 1, 0)


def test_memory_faults() -> None:
    answers: list[int | None] = [None, 3]
    files = MemoryFiles(capacity=100, fault=lambda operation, path, nbytes: answers.pop(0) if answers else None)
    handle = files.create("/f")
    with pytest.raises(OSError, match="half way"):
        files.pwritev_durable(handle, [b"abcdef"], 0)
    assert bytes(files.contents("/f")) == b"abc"
    with pytest.raises(OSError, match="space") as full:
        files.pwrite(handle, bytes(101), 0)
    assert full.value.errno == errno.ENOSPC
