"""The hot modules, compiled into a temporary directory, do what the pure ones do: the wire tests run against them."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_compiled_modules_pass_the_same_tests(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or importlib.util.find_spec("mypyc") is None:
        pytest.skip("needs gcc and mypyc")
    tree = tmp_path / "headrace"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    environment = {k: v for k, v in os.environ.items() if k != "HEADRACE_PURE"}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(build, cwd=tree, env=environment, capture_output=True, text=True, timeout=200, check=False)
    if "not compiled" in done.stdout and "Python.h" in done.stdout + done.stderr:
        pytest.skip("needs Python's headers")
    assert list(tree.glob("src/headrace/wire/ingress*.so")), done.stdout + done.stderr
    check = "import headrace.wire.ingress as m; assert m.__file__.endswith('.so'), m.__file__"
    environment["PYTHONPATH"] = str(tree / "src")
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, env=environment, check=True, timeout=30)
    tests = [str(path) for path in sorted(ROOT.glob("tests/*/wire/*ingress*.py")) + sorted(ROOT.glob("tests/*/*ingress*.py"))]
    assert tests
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), *tests]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
