"""Seeds: those that broke a promise once, and as many new ones as there is time for."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.sim.sweep import seeds_of
from headrace.sim.sweep import sweep as swept

SEEN = Path(__file__).parent / "seeds.txt"
MINUTES = float(os.environ.get("HEADRACE_SIM_MINUTES", "0"))


def first_seed() -> int:
    """Follows from the sources as they were committed, so that a failure is met again wherever that version is tested; without git from the time."""
    command = ["git", "rev-parse", "HEAD:src"]
    asked = subprocess.run(command, cwd=SEEN.parent, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return int(asked.stdout[:7], 16) * 1_000_000 if asked is not None and asked.returncode == 0 else time.time_ns() // 1_000_000


def test_seeds_that_failed_once() -> None:
    failed = [result for result in swept(seeds_of(str(SEEN)), jobs=1) if not result.ok]
    assert not failed, "\n".join(f"seed {result.seed}: {result.violations[0]}" for result in failed)


def test_the_first_seeds() -> None:
    """Fewer where new ones are run as well."""
    failed = [result for result in swept(range(1, 41 if MINUTES else 301), jobs=1) if not result.ok]
    assert not failed, "\n".join(f"seed {result.seed}: {result.violations[0]}" for result in failed)


@pytest.mark.skipif(not MINUTES, reason="HEADRACE_SIM_MINUTES says for how long to run new seeds")
@pytest.mark.timeout(MINUTES * 60 + 300)
def test_seeds_that_nobody_has_seen(record_property: Callable[[str, object], None]) -> None:
    first = first_seed()
    command = [sys.executable, "-m", "headrace.sim", "--minutes", str(MINUTES), "--first", str(first), "--jobs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MINUTES * 60 + 240, check=False)
    figures = json.loads(done.stdout or "{}")
    assert figures, done.stderr
    record_property(
        "told",
        f"simulator: {figures['seeds']:,} new seeds from {first} on, {figures['failures']} failed, {figures['events']:,} events,"
        f" {figures['events_a_second']:,} a second",
    )
    assert not figures["failures"], done.stderr
    assert figures["seeds"] > 0
