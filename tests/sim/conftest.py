"""New seeds for the simulator, for HEADRACE_SIM_MINUTES, while the other tests run: a sweep in a process of its own, begun with the tests and judged
by the last of them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import pytest

MINUTES = float(os.environ.get("HEADRACE_SIM_MINUTES", "0"))
LAST = "test_seeds_that_nobody_has_seen"
_sweep = pytest.StashKey["Sweep"]()


class Sweep:
    """One process that runs new seeds."""

    def __init__(self) -> None:
        self.first = time.time_ns() // 1_000_000
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
