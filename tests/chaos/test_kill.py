"""kill -9 at random moments under load. ``HEADRACE_KILLS=200`` for the long run, or `make chaos`."""

import os
import random
from pathlib import Path

import pytest

from tests.chaos import kill

KILLS = int(os.environ.get("HEADRACE_KILLS", "5"))


@pytest.mark.slow
@pytest.mark.timeout(90 + 8 * KILLS)
def test_no_promise_is_broken_by_kill_9(tmp_path: Path) -> None:
    seed = int(os.environ.get("HEADRACE_SEED", "0")) or random.SystemRandom().getrandbits(32)
    print(f"HEADRACE_SEED={seed}")
    totals = kill.run(KILLS, seed=seed, folder=tmp_path)
    assert totals["queue_confirmed"] == totals["queue_published"] > 0
    assert totals["stream_confirmed"] == totals["stream_published"] > 0
