"""The hot modules, compiled into a temporary directory, do what the pure ones do: the tests of what they are part of run against them."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/*/wire/*ingress*.py",
    "tests/*/*ingress*.py",
    "tests/unit/wire/mqtt/*.py",
    "tests/property/wire/test_mqtt_properties.py",
    "tests/golden/test_mqtt.py",
    "tests/fuzz/test_mqtt.py",
    "tests/unit/core/mqtt/*.py",
    "tests/property/core/mqtt/*.py",
    "tests/integration/test_mqtt.py",
    "tests/unit/storage/test_cache.py",
    "tests/unit/storage/test_index.py",
    "tests/unit/storage/test_wal.py",
    "tests/unit/storage/test_store.py",
    "tests/integration/test_broker_queues.py",
    "tests/integration/test_broker_streams.py",
    "tests/integration/test_broker_disk.py",
)
"""What reaches the hot modules: bytes at ingress, MQTT packets, the log with its index and cache, and whole brokers with publishers, limits,
priorities, delays and levels."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_modules_pass_the_same_tests(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or importlib.util.find_spec("mypyc") is None:
        pytest.skip("needs gcc and mypyc")
    tree = tmp_path / "headrace"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    environment = {k: v for k, v in os.environ.items() if k != "HEADRACE_PURE"}
    environment["MYPYC_OPT_LEVEL"] = "0"  # the same modules, compiled in half the time
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(build, cwd=tree, env=environment, capture_output=True, text=True, timeout=500, check=False)
    if "not compiled" in done.stdout and "Python.h" in done.stdout + done.stderr:
        pytest.skip("needs Python's headers")
    modules = runpy.run_path(str(tree / "src/headrace/hot.py"))["MODULES"]
    missing = [name for name in modules if not list(tree.glob(f"src/{name.replace('.', '/')}.*.so"))]
    assert not missing, f"{missing}\n{done.stdout}{done.stderr}"
    check = f"import importlib; assert all(importlib.import_module(n).__file__.endswith('.so') for n in {modules!r})"
    environment["PYTHONPATH"] = str(tree / "src")
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, env=environment, check=True, timeout=30)
    tests = [str(path) for pattern in TESTS for path in sorted(ROOT.glob(pattern))]
    assert len(tests) >= len(TESTS) - 1
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), *tests]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
