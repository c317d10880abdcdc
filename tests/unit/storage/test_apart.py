"""The mover's process: the same files as the broker makes, nothing left when it fails, no process left when the broker goes."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import pytest

from headrace.model.errors import DataDirLocked
from headrace.storage import apart, mover
from headrace.storage.apart import Apart, numbers_for
from headrace.storage.files import OsFiles
from headrace.storage.index import Rows
from headrace.storage.moving import Job, Moves
from headrace.storage.store import DiskStore
from tests.unit.storage.store_rig import KIB, Rig

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass is worth it, on whatever machine."""
    monkeypatch.setattr(apart, "ROWS_MIN", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


async def filled(folder: Path, *, process: bool, seed: int = 1) -> Rig:
    """A store with entries of partitions small and large in two log files."""
    rig = Rig(seed=seed, mover_process=process, segment_file_bytes=256 * KIB)
    rig.loop = asyncio.get_running_loop()
    rig.store = DiskStore(
        str(folder), rig.config, rig.loop, wall_ms=lambda: rig.wall_ms, random_u64=lambda: rig.random.getrandbits(64), maintain=False
    )
    await rig.store.open(rig)
    for n in range(300):
        rig.put(1 + n % 3, size=6 * KIB)
        rig.put(10 + n % 40, size=100)
        rig.store.flush()
        if n % 20 == 0:
            while rig.store.pending_bytes:
                await asyncio.sleep(0.001)
    while rig.store.pending_bytes:
        await asyncio.sleep(0.001)
    rig.settle(2, rig.logs[2].next_offset // 2)
    rig.store.flush()
    while rig.store.pending_bytes:
        await asyncio.sleep(0.001)
    return rig


def child(rig: Rig) -> int:
    made = rig.store._mover._apart
    assert made is not None
    return made.pid


def gone(pid: int) -> bool:
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


async def moved(rig: Rig, folder: Path) -> dict[str, bytes]:
    """The segments of a pass over everything."""
    async with rig.store._ground.moving:
        assert await rig.store._mover.pass_once(everything=True) > 0
    for pid in rig.logs:
        await rig.check(pid)
    return {name: (folder / "segments" / name).read_bytes() for name in sorted(os.listdir(folder / "segments"))}


async def test_what_it_writes_is_what_the_broker_would_write(tmp_path: Path) -> None:
    here, there = await filled(tmp_path / "here", process=False), await filled(tmp_path / "there", process=True)
    assert await moved(here, tmp_path / "here") == await moved(there, tmp_path / "there")
    assert here.store._mover._apart is None
    assert (pid := child(there)) != 0
    await here.store.close()
    await there.store.close()
    assert gone(pid)


async def test_a_process_that_is_killed_leaves_nothing_and_the_broker_does_its_work(tmp_path: Path) -> None:
    here, there = await filled(tmp_path / "here", process=False), await filled(tmp_path / "there", process=True)
    made = there.store._mover._apart
    assert made is not None
    start = made._started

    def killed() -> Any:
        process = start()
        left = Path(there.store._ground.segment_directory, "segment-0000000000000001.seg")
        left.write_bytes(b"the begin of a segment")  # as one that is killed in the middle leaves it
        process.send_signal(signal.SIGKILL)
        process.wait()
        return process

    made._started = killed  # type: ignore[method-assign]
    want = await moved(here, tmp_path / "here")
    got = await moved(there, tmp_path / "there")
    assert len(got) == len(want), "of other numbers, as the first were given to the process"
    assert made.pid == 0
    made._started = start  # type: ignore[method-assign]
    for n in range(200):
        there.put(1 + n % 3, size=6 * KIB)
        there.store.flush()
    while there.store.pending_bytes:
        await asyncio.sleep(0.001)
    await moved(there, tmp_path / "there")
    assert made.pid != 0, "another one is started"
    await here.store.close()
    await there.store.close()


async def test_it_is_ended_once_there_is_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await filled(tmp_path, process=True)
    await moved(rig, tmp_path)
    assert (pid := child(rig)) != 0
    monkeypatch.setattr(mover, "REST_NS", 0)
    await rig.store.maintenance()
    assert child(rig) == 0
    assert gone(pid)
    await rig.store.close()


def one_entry(*, size: int, checkpoint: bytes = b"") -> list[Job]:
    """At the begin of log file 0, where there is none."""
    places, sizes, bases, counts, walls = (array("q", [number]) for number in (0, size, 0, 1 if size else 0, 0))
    return [Job(7, Rows(1, (places, sizes, bases, counts, walls)), after=0, floor=0, last_index=1, end_offset=1, checkpoint=checkpoint)]


def asked(made: Apart, folder: Path, jobs: list[Job]) -> Moves:
    return made.move(jobs, str(folder / "wal"), str(folder / "segments"), 5, numbers_for(jobs, 1 << 20), 1 << 20, 1 << 20, 0)


def test_an_error_of_the_disk_is_the_brokers_to_judge(tmp_path: Path) -> None:
    files = OsFiles()
    made = Apart(files.lock(str(tmp_path / "LOCK")))
    try:
        with pytest.raises(OSError) as found:  # there is no folder for segments
            asked(made, tmp_path, one_entry(size=0, checkpoint=b"as it was"))
        assert found.value.errno == errno.ENOENT
        assert made.pid != 0
    finally:
        made.close()


def test_a_log_file_that_is_gone_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    made = Apart(OsFiles().lock(str(tmp_path / "LOCK")))
    try:
        with pytest.raises(apart.Gone, match="cannot be opened"):
            asked(made, tmp_path, one_entry(size=100))
    finally:
        made.close()
    assert os.listdir(tmp_path / "segments") == []


def test_it_dies_with_the_broker_and_keeps_the_directory_until_then(tmp_path: Path) -> None:
    lock = tmp_path / "LOCK"
    broker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from headrace.storage.apart import Apart\n"
            "from headrace.storage.files import OsFiles\n"
            "made = Apart(OsFiles().lock(sys.argv[1]))\n"
            "made._process = made._started()\n"
            "print(made.pid, flush=True)\n"
            "time.sleep(60)\n",
            str(lock),
        ],
        stdout=subprocess.PIPE,
    )
    assert broker.stdout is not None
    pid = int(broker.stdout.readline())
    with pytest.raises(DataDirLocked):
        OsFiles().lock(str(lock))
    broker.kill()
    broker.wait()
    assert gone(pid)
    OsFiles().lock(str(lock))
    broker.stdout.close()

