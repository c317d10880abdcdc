"""Records on a disk that loses power at every operation, and data that is set aside with deaths in between."""

import errno
import os
from pathlib import Path

import msgspec
import pytest

from headrace.cluster.formation.slots import Kept, Slots
from headrace.core.formation.parsing import parse_voters
from headrace.core.formation.records import Directory, Held, Identity, Promise, Record, Records
from headrace.model.errors import DataDirLocked
from headrace.storage.files import MemoryFiles, OsFiles

IDENTITY = Identity(node_id="n", incarnation=Directory("i"))
LATER = Identity(node_id="n", incarnation=Directory("i"), cluster_id="c", formed=True)
KEPT = Kept("c", "why", 5_000)


def held() -> Held:
    config = parse_voters("a,b,c").config
    assert config is not None
    return Held(config=config)


class PowerLost(Exception):
    pass


def test_every_record_comes_back() -> None:
    slots = Slots(MemoryFiles(), "/data")
    slots.open()
    promise = Promise(version=1, hash="h", ballot=1, seed="a", seed_incarnation=Directory("i"))
    for record in (IDENTITY, held(), promise, LATER):
        slots.write(record)
    assert slots.read() == (Records(identity=LATER, held=held(), promise=promise), "")


@pytest.mark.parametrize("before", [None, IDENTITY])
def test_power_lost_at_every_operation_leaves_the_old_record_or_the_new_one(before: Record | None) -> None:
    at = count = 0
    whole = False

    def fault(operation: str, path: str, nbytes: int) -> int | None:
        nonlocal count
        count += 1
        if count == at:
            raise PowerLost
        return None

    while not whole:
        at, count = at + 1, 0
        files = MemoryFiles()
        slots = Slots(files, "/data")
        slots.open()
        if before is not None:
            slots.write(before)
        files.fault = fault
        try:
            slots.write(LATER)
            whole = True
        except PowerLost:
            pass
        files.fault = None
        files.crash()
        again = Slots(files, "/data")
        again.open()
        found, wrong = again.read()
        assert wrong == ""
        assert found.identity == LATER if whole else found.identity in (before, LATER)
        again.write(LATER)  # what was left lying about is in nobody's way
        assert again.read()[0].identity == LATER
    assert at > 4


def test_a_full_disk_is_an_error_and_not_a_torn_record() -> None:
    def fault(operation: str, path: str, nbytes: int) -> int | None:
        if operation == "pwritev_durable":
            raise OSError(errno.ENOSPC, "full")
        return None

    files = MemoryFiles()
    slots = Slots(files, "/data")
    slots.open()
    slots.write(IDENTITY)
    files.fault = fault
    with pytest.raises(OSError, match="full"):
        slots.write(LATER)
    files.fault = None
    assert slots.read() == (Records(identity=IDENTITY), "")


def test_damage_and_strange_records_are_told_by_name(tmp_path: Path) -> None:
    slots = Slots(OsFiles(), str(tmp_path))
    slots.open()
    slots.write(IDENTITY)
    slots.write(held())
    identity, other = tmp_path / "formation/data/identity", tmp_path / "formation/held"
    data = bytearray(identity.read_bytes())
    data[-1] ^= 1
    identity.write_bytes(data)
    records, wrong = slots.read()
    assert records == Records(held=held())
    assert "formation/data/identity" in wrong
    identity.write_bytes(other.read_bytes())
    assert "another kind: held" in slots.read()[1]
    identity.write_bytes(b"\xff" + other.read_bytes()[1:])
    assert "format 255" in slots.read()[1]


def test_one_process_a_directory(tmp_path: Path) -> None:
    one, other = Slots(OsFiles(), str(tmp_path)), Slots(OsFiles(), str(tmp_path))
    one.open()
    with pytest.raises(DataDirLocked):
        other.open()
    one.close()
    other.open()
    other.close()


def make(root: Path, etcd: Path) -> Slots:
    slots = Slots(OsFiles(), str(root), elsewhere=(str(etcd),))
    slots.open()
    slots.write(LATER)
    slots.write(held())
    (root / "wal").mkdir()
    (root / "wal" / "1.wal").write_bytes(b"entries")
    (root / "FORMAT").write_bytes(b"1")
    (root / "lost+found").mkdir()
    (root / ".hidden").write_bytes(b"")
    (etcd / "seat-1").mkdir(parents=True)
    (etcd / "seat-1" / "log").write_bytes(b"votes")
    return slots


def test_what_is_set_aside_is_whole_and_what_stays_outside_stays(tmp_path: Path) -> None:
    root, etcd = tmp_path / "data", tmp_path / "etcd"
    slots = make(root, etcd)
    assert [os.path.relpath(p, tmp_path) for p in slots.data()] == ["data/FORMAT", "data/wal", "etcd/seat-1"]
    assert slots.data_bytes() >= len(b"entries") + len(b"votes") + 1
    where = Path(slots.set_aside("x", KEPT))
    assert slots.data() == ()
    assert slots.read() == (Records(held=held()), "")
    assert (where / "wal" / "1.wal").read_bytes() == b"entries"
    assert (where / "formation" / "identity").exists()
    assert (etcd / "aside" / "x" / "seat-1" / "log").read_bytes() == b"votes"
    assert msgspec.json.decode((where / "kept.json").read_bytes(), type=Kept) == KEPT
    slots.set_aside("x", Kept("c", "again", 9))
    assert msgspec.json.decode((where / "kept.json").read_bytes(), type=Kept) == KEPT
    slots.clean(4_999)
    assert where.exists()
    slots.clean(5_000)
    assert not where.exists()
    assert not (etcd / "aside" / "x").exists()


@pytest.mark.parametrize("at", range(1, 6))
def test_setting_aside_is_resumed_wherever_it_ended(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = make(tmp_path / "data", tmp_path / "etcd")
    renames = 0
    rename = OsFiles.rename

    def dying(self: OsFiles, old: str, new: str) -> None:
        nonlocal renames
        renames += 1
        if renames == at:
            raise PowerLost
        rename(self, old, new)

    monkeypatch.setattr(OsFiles, "rename", dying)
    try:
        slots.set_aside("x", KEPT)
    except PowerLost:
        records = slots.read()[0]
        assert records.identity == LATER, "the identity goes last"
    slots.set_aside("x", KEPT)
    assert slots.data() == ()
    assert slots.read()[0].identity is None
