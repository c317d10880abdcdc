"""New seeds for the simulator, for HEADRACE_SIM_MINUTES, while the other tests run: a sweep in a process of its own, begun with the tests and judged
by the last of them. Every version of the sources has seeds of its own, so a failure is met again wherever that version is tested."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MINUTES = float(os.environ.get("HEADRACE_SIM_MINUTES", "0"))
LAST = "test_seeds_that_nobody_has_seen"
LIMIT_S = 300
"""For each test here without a limit of its own. What ends a test that takes too long is raised wherever the run is just then, also inside a client's
task, where it looks like a fault of the product: so the limit is far above what a test takes on a busy machine."""
_sweep = pytest.StashKey["Sweep"]()


def first_seed() -> int:
    """Follows from the sources as they were committed; without git from the time."""
    command = ["git", "rev-parse", "HEAD:src"]
    asked = subprocess.run(command, cwd=os.path.dirname(__file__), capture_output=True, text=True, check=False) if shutil.which("git") else None
    return int(asked.stdout[:7], 16) * 1_000_000 if asked is not None and asked.returncode == 0 else time.time_ns() // 1_000_000


class Sweep:
    """One process that runs new seeds."""

    def __init__(self) -> None:
        self.first = first_seed()
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        command = [sys.executable, "-m", "headrace.sim", "--minutes", str(MINUTES), "--first", str(self.first), "--jobs", "1", "--json"]
        self.process = subprocess.Popen(command, stdout=self._out, stderr=self._err)
        self.figures: dict[str, Any] = {}

    def wait(self) -> tuple[dict[str, Any], str]:
        """The totals, and what it said."""
        self.process.wait(MINUTES * 60 + 120)
        self._out.seek(0)
        self._err.seek(0)
        said = self._err.read().decode(errors="replace")
        self.figures = json.loads(self._out.read() or b"{}")
        return self.figures, said

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._out.close()
        self._err.close()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S))
    last = [item for item in items if item.name == LAST]
    if last and MINUTES:
        items[:] = [item for item in items if item.name != LAST] + last
        if not config.option.collectonly:
            config.stash[_sweep] = Sweep()


def pytest_unconfigure(config: pytest.Config) -> None:
    sweep = config.stash.get(_sweep, None)
    if sweep is not None:
        sweep.stop()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    sweep = config.stash.get(_sweep, None)
    if sweep is not None and sweep.figures:
        found = sweep.figures
        terminalreporter.write_line(
            f"simulator: {found['seeds']:,} new seeds from {sweep.first} on, {found['failures']} failed, {found['events']:,} events,"
            f" {found['events_a_second']:,} a second"
        )


@pytest.fixture
def sweep(request: pytest.FixtureRequest) -> Sweep:
    """The sweep that began with the tests."""
    return request.config.stash[_sweep]
