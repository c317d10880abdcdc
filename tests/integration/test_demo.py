"""The packages demo, smaller: the broker is killed twice in the middle, every record is counted once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "packages" / "demo.py"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_record_is_counted_once(tmp_path: Path) -> None:
    count = int(os.environ.get("HEADRACE_DEMO_RECORDS", "8000"))
    command = [sys.executable, str(DEMO), "--count", str(count), "--kills", "2", "--json"]
    done = subprocess.run(command, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["counted"] == count
    assert result["handled"] >= count
