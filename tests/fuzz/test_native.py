"""The fuzzer of the native protocol, for as many inputs as a test run can spare; ``python -m tests.fuzz.native`` runs campaigns."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(120)
def test_hostile_inputs_raise_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz.native", "--count", "8000", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "exceptions=0" in done.stdout
