"""Runs that broke a promise once, kept as scenarios: they must keep it from now on. The name says what went wrong."""

from pathlib import Path

import pytest

from headrace.sim.run import run
from headrace.sim.scenario import decode

KEPT = sorted((Path(__file__).parent / "scenarios").glob("*.json"))


@pytest.mark.parametrize("path", KEPT, ids=[path.stem for path in KEPT])
def test_a_run_that_failed_once(path: Path) -> None:
    result, rows = run(decode(path.read_bytes()), rows_max=60)
    assert result.ok, "\n".join([*(f"{v.invariant}: {v.text}" for v in result.violations), *map(str, rows)])
