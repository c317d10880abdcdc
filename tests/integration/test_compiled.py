"""The hot modules, compiled as `pip install .` does it, do what the pure ones do: the tests of what they are part of run against them, and simulated
brokers send and write the same bytes at the same times."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
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
TRACES = """
from headrace.sim.clusters.run import Run as Cluster
from headrace.sim.mqtt.run import Run as Mqtt
from headrace.sim.run import run_seed
print(*(run_seed(seed)[0].digest for seed in (3, 17, 40)))
for run in (Cluster(3), Mqtt(2), Mqtt(18)):
    run.go()
    print(run.world.trace.digest())
"""
"""A hash over everything that brokers sent, wrote and did, of each of some runs."""


def traces(tree: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(tree)}
    made = subprocess.run([sys.executable, "-c", TRACES], env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    assert made.stdout.strip()
    return made.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_modules_pass_the_same_tests(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or importlib.util.find_spec("mypyc") is None:
        pytest.skip("needs gcc and mypyc")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    environment = {k: v for k, v in os.environ.items() if k not in ("HEADRACE_PURE", "PYTHONPATH")}
    environment["MYPYC_OPT_LEVEL"] = "0"  # the same modules, compiled in half the time
    build = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--disable-pip-version-check", "-w", str(tmp_path), str(source)]
    done = subprocess.run(build, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if "Python.h" in done.stdout + done.stderr:
        pytest.skip("needs Python's headers")
    assert done.returncode == 0, done.stdout + done.stderr
    tree = tmp_path / "installed"
    with zipfile.ZipFile(next(tmp_path.glob("headrace-*.whl"))) as wheel:
        wheel.extractall(tree)
    modules = runpy.run_path(str(tree / "headrace/hot.py"))["MODULES"]
    missing = [name for name in modules if not list(tree.glob(f"{name.replace('.', '/')}.*.so"))]
    assert not missing, f"{missing}\n{done.stdout}{done.stderr}"
    check = f"import importlib; assert all(importlib.import_module(n).__file__.endswith('.so') for n in {modules!r})"
    environment["PYTHONPATH"] = str(tree)
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, env=environment, check=True, timeout=30)
    assert traces(tree) == traces(ROOT / "src")
    tests = [str(path) for pattern in TESTS for path in sorted(ROOT.glob(pattern))]
    assert len(tests) >= len(TESTS) - 1
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), *tests]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
