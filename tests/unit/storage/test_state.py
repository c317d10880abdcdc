"""Small state: one contract for all stores, LMDB's traps, group commit."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.model.errors import Damaged, DiskFull, Invalid, StorageError, SyncFailed
from headrace.storage.flusher import SteppedLane, ThreadLane
from headrace.storage.state import LmdbStateStore, MemoryStateStore, Puts, StateStore, StateWriter, framed, unframed


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    made: StateStore = MemoryStateStore() if request.param == "memory" else LmdbStateStore(str(tmp_path / "state"))
    yield made
    made.close()


def test_commit_get_scan(store: StateStore) -> None:
    store.commit({b"a/1": b"one", b"a/2": b"", b"b": b"bee"})
    assert store.get(b"a/1") == b"one"
    assert store.get(b"a/2") == b""
    assert store.get(b"none") is None
    assert list(store.scan(b"a/")) == [(b"a/1", b"one"), (b"a/2", b"")]
    assert list(store.scan(b"", b"a/1")) == [(b"a/2", b""), (b"b", b"bee")]
    store.commit({b"a/1": None, b"gone": None, b"b": b"changed"})
    assert list(store.scan(b"")) == [(b"a/2", b""), (b"b", b"changed")]
    assert list(store.scan(b"c")) == []


def test_scan_of_many_sees_each_once(store: StateStore) -> None:
    puts: Puts = {b"k%05d" % i: b"%d" % i for i in range(3500)}
    store.commit(puts)
    assert list(store.scan(b"k")) == sorted(puts.items())
    assert len(list(store.scan(b"k", b"k00999"))) == 2500


def test_keys_are_bounded(store: StateStore) -> None:
    store.commit({b"x" * 511: b"long"})
    for key in (b"", b"x" * 512):
        with pytest.raises(Invalid):
            store.commit({b"other": b"", key: b""})
    assert store.get(b"other") is None, "all or nothing"


@pytest.mark.parametrize("at", range(9))
def test_a_flipped_bit_is_not_served(at: int) -> None:
    store = MemoryStateStore()
    store.commit({b"k1": b"fine", b"k2": b"good", b"k3": b"fine"})
    raw = bytearray(store.raw()[b"k2"])
    raw[at] ^= 0x10
    store.raw()[b"k2"] = bytes(raw)
    with pytest.raises(Damaged, match="k2"):
        store.get(b"k2")
    with pytest.raises(Damaged):
        list(store.scan(b"k"))
    damaged: list[bytes] = []
    assert list(store.scan(b"k", damaged=damaged)) == [(b"k1", b"fine"), (b"k3", b"fine")]
    assert damaged == [b"k2"]


def test_a_value_belongs_to_its_key() -> None:
    with pytest.raises(Damaged):
        unframed(b"other", framed(b"key", b"value"))
    with pytest.raises(Damaged):
        unframed(b"key", b"\x01")


def test_lmdb_grows_and_survives(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    store = LmdbStateStore(path, map_bytes=1 << 20)
    for i in range(10):
        store.commit({b"%d/%d" % (i, j): os.urandom(4000) for j in range(100)})
    store.commit({b"last": b"there"})
    store.close()
    again = LmdbStateStore(path, map_bytes=1 << 20)
    assert again.get(b"last") == b"there"
    assert len(list(again.scan(b""))) == 1001
    assert again.set_aside is None
    again.close()


@pytest.mark.parametrize("damage", ["zeros", "garbage", "short", "shorter"])
def test_lmdb_environment_that_cannot_be_used_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state"
    store = LmdbStateStore(str(path))
    for i in range(10):
        store.commit({b"%d/%d" % (i, j): bytes(1000) for j in range(100)})
    store.close()
    data = path / "data.mdb"
    size = data.stat().st_size
    match damage:
        case "zeros":
            data.write_bytes(bytes(size))
        case "garbage":
            data.write_bytes(b"\xa5" * 8192 + data.read_bytes()[8192:])
        case "short":
            os.truncate(data, size // 3 & -4096)
        case _:
            os.truncate(data, 5000)
    store = LmdbStateStore(str(path))
    assert store.set_aside == f"{path}.damaged-1"
    assert os.path.exists(store.set_aside)
    assert list(store.scan(b"")) == []
    store.commit({b"new": b"begin"})
    store.close()


def test_lmdb_that_ends_its_process_is_read_through_by_another(tmp_path: Path) -> None:
    path = tmp_path / "state"
    store = LmdbStateStore(str(path))
    for i in range(10):
        store.commit({b"%d/%d" % (i, j): bytes(1000) for j in range(100)})
    store.close()
    data = path / "data.mdb"
    with data.open("r+b") as file:
        for at in range(2 * 4096, data.stat().st_size, 4096):
            file.seek(at + 10)
            file.write(b"\xff\xff\xff")
    mark = tmp_path / "state.opened"
    mark.write_text("2")
    store = LmdbStateStore(str(path))
    assert store.set_aside is not None
    assert mark.read_text() == "1"
    store.close()
    assert not mark.exists()


def test_lmdb_opened_often_without_a_close_is_kept_when_sound(tmp_path: Path) -> None:
    path = tmp_path / "state"
    store = LmdbStateStore(str(path))
    store.commit({b"k": b"v"})
    store.close()
    (tmp_path / "state.opened").write_text("7")
    store = LmdbStateStore(str(path))
    assert store.set_aside is None
    assert store.get(b"k") == b"v"
    store.close()


def test_lmdb_that_is_not_permitted_is_not_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("a file where a directory should be")
    with pytest.raises((StorageError, OSError)):
        LmdbStateStore(str(path))
    assert path.read_text()


class Recorded(MemoryStateStore):
    """Counts transactions and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[dict[bytes, bytes | None]] = []
        self.errors: list[Exception] = []

    def commit(self, puts: Puts) -> None:
        self.commits.append(dict(puts))
        if self.errors:
            raise self.errors.pop(0)
        super().commit(puts)


async def test_what_gathers_becomes_one_transaction() -> None:
    store, lane = Recorded(), SteppedLane()
    writer = StateWriter(store, lane, asyncio.get_running_loop())
    first = writer.submit({b"a": b"1"})
    later = [writer.submit({b"a": b"%d" % i, b"k%d" % i: b""}) for i in range(5)]
    assert lane.step()
    await first
    assert not later[0].done()
    assert lane.step()
    await asyncio.gather(*later)
    assert not lane.step()
    assert len(store.commits) == 2
    assert store.get(b"a") == b"4"
    await writer.drained()


async def test_a_full_disk_passes_and_an_unknown_outcome_stays() -> None:
    store, lane = Recorded(), SteppedLane()
    writer = StateWriter(store, lane, asyncio.get_running_loop())
    store.errors = [DiskFull("full")]
    refused, waits = writer.submit({b"a": b"1"}), writer.submit({b"b": b"2"})
    lane.step()
    lane.step()
    with pytest.raises(DiskFull):
        await refused
    await waits
    assert store.get(b"a") is None
    store.errors = [SyncFailed("lost")]
    unknown, behind = writer.submit({b"c": b"3"}), writer.submit({b"d": b"4"})
    lane.step()
    assert not lane.step()
    for future in (unknown, behind, writer.submit({b"e": b"5"})):
        with pytest.raises(SyncFailed):
            await future
    with pytest.raises(Invalid):
        await writer.submit({b"": b""})


async def test_with_a_thread_and_lmdb(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    lane = ThreadLane(loop, name="state")
    store = LmdbStateStore(str(tmp_path / "state"), map_bytes=1 << 20)
    writer = StateWriter(store, lane, loop)
    futures = [writer.submit({b"%d" % i: bytes(10_000)}) for i in range(200)]
    cancelled = writer.submit({b"cancelled": b"is written all the same"})
    cancelled.cancel()
    assert len(list(store.scan(b""))) >= 0, "reading while it grows"
    await asyncio.gather(*futures)
    await writer.drained()
    assert len(list(store.scan(b""))) == 201
    lane.close()
    store.close()
