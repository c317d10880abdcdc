"""Writes the golden data directory of the current format: ``python -m tests.golden.make_data``. Run once per format; old ones stay as they are.

``v<format>/files.tar.gz`` holds FORMAT, wal/ and segments/, ``state.json`` the small state in hex, ``expected.json`` what must be read.
"""

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path

from headrace.model.config import Config, Storage
from headrace.storage.api import Checkpoint, Flushed
from headrace.storage.opening import FORMAT
from headrace.storage.store import DiskStore
from headrace.wire.journal import RECORDS_HEAD, Kind

HERE = Path(__file__).parent / "data"
KIB = 1024
CONFIG = Config(
    storage=Storage(
        wal_file_bytes=1024 * KIB,
        wal_bytes_max=2048 * KIB,
        flush_bytes_max=256 * KIB,
        segment_own_bytes_min=64 * KIB,
        segment_file_bytes=1024 * KIB,
        disk_free_bytes_min=0,
        ballast_bytes=0,
    )
)


class Writer:
    """The owner: partition 1 has a segment of its own, 2 and 3 share an archive, 4 is only in the log; 2 has a timer; state is a count of entries."""

    def __init__(self) -> None:
        self.entries: dict[int, int] = {}
        self.offsets: dict[int, int] = {}
        self.floors: dict[int, int] = {}
        self.checkpoints = True

    def checkpoint(self, pid: int) -> Checkpoint | None:
        if not self.checkpoints or pid == 3:
            return None
        wake = 1_900_000_000_000 if pid == 2 else 0
        return Checkpoint(7, self.entries[pid], b"state at %d" % self.entries[pid], self.floors.get(pid, 0), self.offsets.get(pid, 0), wake)

    def flushed(self, result: Flushed) -> None:
        assert result.error is None

    def pressure(self, on: bool) -> None: ...

    def disk(self, nearly_full: bool) -> None: ...

    def quarantined(self, pid: int, why: str) -> None:
        raise AssertionError(f"partition {pid}: {why}")

    def put(self, store: DiskStore, pid: int, kind: Kind, body: bytes, count: int = 0) -> None:
        index = self.entries[pid] = self.entries.get(pid, 0) + 1
        if kind != Kind.RECORDS:
            store.append(pid, 7, index, kind, (body,), len(body))
            return
        base = self.offsets.get(pid, 0)
        self.offsets[pid] = base + count
        head = RECORDS_HEAD.pack(base, count, count, 1_800_000_000_000 + index, 0)
        store.append(pid, 7, index, kind, (head, body), len(head) + len(body), base, count)


async def write(root: Path) -> None:
    writer = Writer()
    store = DiskStore(root, CONFIG, asyncio.get_running_loop(), wall_ms=lambda: 1_800_000_000_000, maintain=False)
    await store.open(writer)
    await store.commit_state({b"doc/queues/orders": b"\x01orders", b"doc/gone": b"x"})
    await store.commit_state({b"doc/gone": None})
    for pid in (1, 2, 3, 4):
        writer.put(store, pid, Kind.EPOCH_START, b"epoch 7")
    for n in range(160):
        writer.put(store, 1, Kind.RECORDS, b"%04d" % n * (2 * KIB), 2)
        if n % 10 == 0:
            writer.put(store, 2, Kind.RECORDS, b"two %d" % n, 1)
            writer.put(store, 3, Kind.RECORDS, b"three %d" % n, 3)
            writer.put(store, 3, Kind.SETTLEMENT, b"settled %d" % n)
        store.flush()
        await asyncio.sleep(0.002)
    writer.floors = {1: 20, 2: 3}
    while store.pending_bytes:
        await asyncio.sleep(0.002)
    await store._mover.pass_once(everything=True)
    for n in range(5):
        for pid in (1, 2, 4):
            writer.put(store, pid, Kind.RECORDS, b"after %d" % n, 1)
        writer.put(store, 4, Kind.SETTLEMENT, b"settled %d" % n)
        store.flush()
        await asyncio.sleep(0.03)
    writer.checkpoints = False
    await store.close()


async def read(root: Path) -> dict[str, object]:
    """Everything a store gives back: what ``expected.json`` holds."""
    store = DiskStore(root, CONFIG, asyncio.get_running_loop(), wall_ms=lambda: 1_800_000_000_000, maintain=False)
    writer = Writer()
    writer.checkpoints = False
    await store.open(writer)
    found: dict[str, object] = {
        "partitions": list(store.partitions()),
        "damaged": list(store.damaged()),
        "state": {k.decode(): v.hex() for k, v in store.state.scan(b"doc/")},
    }
    for pid in (1, 2, 3, 4):
        log = store.replay(pid)
        records = []
        offset = store.first_offset(pid)
        while some := await store.read(pid, offset, 64 * KIB, 1 << 62):
            records += [[e.index, e.base_offset, e.record_count, hashlib.sha256(e.payload).hexdigest()] for e in some]
            offset = some[-1].base_offset + some[-1].record_count
        found[str(pid)] = {
            "checkpoint": None if log.checkpoint is None else [*log.checkpoint[:2], log.checkpoint.data.decode(), *log.checkpoint[3:]],
            "last": [log.last_epoch, log.last_index, log.next_offset],
            "entries": [[e.index, e.kind, hashlib.sha256(e.payload).hexdigest()] for e in log.entries],
            "first_offset": store.first_offset(pid),
            "records": hashlib.sha256(json.dumps(records).encode()).hexdigest(),
            "records_count": len(records),
            "offset_for_time": store.offset_for_time(pid, 1_800_000_000_000 + 100),
        }
    await store.close()
    return found


def main() -> None:
    target = HERE / f"v{FORMAT}"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        asyncio.run(write(root))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path in sorted(p for p in root.rglob("*") if p.is_file() and p.relative_to(root).parts[0] in ("FORMAT", "wal", "segments")):
                tar.add(path, str(path.relative_to(root)))
        (target / "files.tar.gz").write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))
        (target / "state.json").write_text(json.dumps(dump(root / "state"), indent=0))
        expected = asyncio.run(read(root))
        (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def dump(path: Path) -> list[tuple[str, str]]:
    from headrace.storage.state import LmdbStateStore

    state = LmdbStateStore(str(path))
    pairs = [(k.hex(), v.hex()) for k, v in state.scan(b"")]
    state.close()
    return pairs


if __name__ == "__main__":
    main()
