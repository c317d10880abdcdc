"""Crash images: recovery succeeds from every one of some thousand, the same ones each time, and the checker notices disks and stores that lie."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from headrace.sim import images
from headrace.sim.disk import Disk
from headrace.sim.images import Sweep
from headrace.sim.journals import Mark
from headrace.sim.loop import Machine, SimLoop
from headrace.sim.recording import RecordedLane, Recorder
from headrace.storage.files import Buffer, Handle
from headrace.storage.flusher import Done, Lane, Work

IMAGES = 2000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_recovery_succeeds_from_two_thousand_images() -> None:
    found = 0
    for seed in range(1, 20):
        sweep = Sweep(seed, images_max=IMAGES - found, stride=5)
        sweep.run()
        assert sweep.failures == []
        totals = sweep.totals
        found += totals.images
        assert totals.recoveries > totals.distinct > totals.images // 10
        if found >= IMAGES:
            return
    raise AssertionError(f"only {found} images")


class Unsynced(Disk):
    """Its synced writes are not."""

    def pwritev_durable(self, handle: Handle, pieces: Sequence[Buffer], offset: int) -> None:
        self.pwrite(handle, b"".join(pieces), offset)


class Forgetful(Disk):
    """Its ``fsync`` does nothing."""

    def fsync(self, handle: Handle) -> None:
        self._node(handle)


class Nameless(Disk):
    """It does not sync directories."""

    def fsync_dir(self, path: str) -> None:
        pass


class Hasty(RecordedLane):
    """A store that takes its flushes for durable before they are written."""

    def submit(self, work: Work, done: Done) -> None:
        if self.name != "flusher":
            super().submit(work, done)
            return
        super().submit(lambda: None, done)
        super().submit(work, lambda _result, _error: None)


def hasty(recorder: Recorder[Mark], loop: SimLoop, machine: Machine, name: str, delay_s: Callable[[], float]) -> Lane:
    return Hasty(recorder, loop, machine, name, delay_s)


def broken(make_disk: Callable[[], Disk], **options: object) -> list[str]:
    """The problems of the first image that shows any."""
    for seed in range(1, 8):
        sweep = Sweep(seed, disk=make_disk(), images_max=600, failures_max=1, **options)  # type: ignore[arg-type]
        sweep.run()
        if sweep.failures:
            assert sweep.failures[0].point >= 0, sweep.failures
            return sweep.failures[0].problems
    return []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("disk", [Unsynced, Forgetful, Nameless])
def test_a_disk_that_lies_is_noticed(disk: type[Disk]) -> None:
    assert any(text.startswith("I13") for text in broken(disk))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_store_that_confirms_before_it_writes_is_noticed() -> None:
    problems = broken(Disk, make_lane=hasty)
    assert any("was reported durable" in text for text in problems), problems


def test_the_same_seed_gives_the_same_images_under_any_hash_seed() -> None:
    code = (
        "from headrace.sim.images import Sweep\n"
        "sweep = Sweep(3, images_max=60)\n"
        "sweep.run()\n"
        "print(sweep.totals, [digest.hex() for digest in sweep._seen])"
    )
    shown = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True, timeout=50
        ).stdout
        for seed in ("1", "77")
    ]
    assert shown[0] == shown[1]
    assert "images=60" in shown[0]


def test_the_command_counts_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert images.main(["--seed", "4", "--point", "30", "--variant", "0"]) == 0
    shown = capsys.readouterr().out
    assert "the power fails" in shown
    assert "all is well" in shown
    failure = images.Failure(2, 8, 1, None, "all", ["I13 x"])
    results = iter([(1, images.Totals(seeds=1, images=7), []), (2, images.Totals(seeds=1, images=5), [failure]), (3, images.Totals(), [])])
    assert images.told(results, images=10, as_json=True) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == 12
    assert "--seed 2 --point 8 --variant 1" in printed.err
