"""The end of ``headrace start``, whatever hangs in it: bounded, with exit code 75 and a log that says what was still running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.cli import main
from tests.cli.conftest import READY_S, Started

SOON = ("--set", "broker.stop_grace_ms=1s", "--set", "broker.drain_grace_ms=0")
AWAITS = """
async def stop(self):
    await asyncio.Event().wait()
broker.Broker.stop = stop
"""
BLOCKS = """
async def stop(self):
    time.sleep(1000)
broker.Broker.stop = stop
"""
LEAVES_A_THREAD = """
stopped = broker.Broker.stop
async def stop(self):
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 1000)
    await stopped(self)
broker.Broker.stop = stop
"""
BLOCKS_BEFORE = """
def look():
    if pathlib.Path("ready.json").exists():
        pathlib.Path("stands").touch()
        time.sleep(1000)
    asyncio.get_running_loop().call_later(0.01, look)
started = run.start
async def start(*args, **more):
    asyncio.get_running_loop().call_soon(look)
    return await started(*args, **more)
run.start = start
"""


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + READY_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: str, storage: str = "memory", *options: str) -> Started:
    """A broker in whose process ``patch`` is run before everything else."""
    folder = tmp_path / "patched"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import asyncio, pathlib, time\nfrom headrace.broker import broker, run\n{patch}")
    with monkeypatch.context() as env:
        env.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
        return Started(tmp_path, *SOON, *options, storage=storage)


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        (AWAITS, "RunningBroker._stop (run.py:"),
        (BLOCKS, 'sitecustomize.py", line 5 in stop'),
        (LEAVES_A_THREAD, "_worker"),
    ],
    ids=["awaits", "blocks", "leaves-a-thread"],
)
def test_a_stop_that_hangs_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: str, told: str) -> None:
    started = hanging(tmp_path, monkeypatch, patch)
    try:
        started.ready()
        assert started.signalled(signal.SIGTERM) == 75, started.log.read_text()
    finally:
        started.stop()
    log = started.log.read_text()
    assert "ERROR   headrace.ending: the stop is not over after 1 s" in log
    assert told in log
    assert "(most recent call first)" in log


def test_a_loop_that_stands_still_keeps_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = hanging(tmp_path, monkeypatch, BLOCKS_BEFORE)
    try:
        until(lambda: (tmp_path / "stands").exists())
        assert started.signalled(signal.SIGTERM) == 75, started.log.read_text()
    finally:
        started.stop()
    assert "in look" in started.log.read_text()


def test_what_was_confirmed_is_there_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = hanging(tmp_path, monkeypatch, BLOCKS, "disk")
    try:
        url = first.ready().addresses["url"]
        assert main(["queue", "declare", "q", "--url", url]) == 0
        assert main(["publish", "q", "kept", "--url", url]) == 0
        assert first.signalled(signal.SIGTERM) == 75
    finally:
        first.stop()
    second = Started(tmp_path, storage="disk")
    try:
        url = second.ready().addresses["url"]
        capsys.readouterr()
        assert main(["consume", "q", "--url", url]) == 0
        assert capsys.readouterr().out == "kept\n"
        assert second.signalled(signal.SIGTERM) == 0
    finally:
        second.stop()


def test_a_drain_by_command_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = hanging(tmp_path, monkeypatch, AWAITS)
    try:
        assert main(["drain", "--grace", "10ms", "--url", started.ready().addresses["url"]]) == 0
        assert started.process.wait(READY_S) == 75
    finally:
        started.stop()


def test_a_second_signal_ends_it_at_once_though_its_loop_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = hanging(tmp_path, monkeypatch, BLOCKS, "memory", "--set", "broker.stop_grace_ms=1h")
    try:
        started.ready()
        started.process.send_signal(signal.SIGTERM)
        until(lambda: not started.ready_file.exists())  # it is taken away as the stop begins
        assert started.signalled(signal.SIGTERM) == 130
    finally:
        started.stop()
    assert "again: stopping at once" in started.log.read_text()


def test_a_log_that_nobody_reads_keeps_no_process() -> None:
    script = (
        "import logging, os, sys\n"
        "from headrace.cli.ending import Ending\n"
        "from headrace.log import configure\n"
        "configure('info', 'text')\n"
        "os.set_blocking(2, False)\n"
        "try:\n"
        "    while os.write(2, b'x' * 4096): pass\n"
        "except BlockingIOError: os.set_blocking(2, True)\n"
        "Ending(lambda: 0.1).ask()\n"
        "logging.getLogger('headrace').error('waits for ever')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(READY_S) == 75
        finally:
            process.kill()
