"""Every Python block in README.md and docs/*.md runs, each against a real broker of its own.

A block has ``client`` (connected), ``headrace`` and ``asyncio``, may use ``await`` at its top level, and reaches the broker under the default
address. An HTML comment right above it may say ``setup: CODE`` (run first), ``pytest`` (the block is a test file), ``pytest fails: TEXT`` (one
that fails and says so) or ``not python: WHY`` (skipped). ``mqtt``: the block speaks to the MQTT listener, under its default port; such a one may be
for a shell, ``mqtt shell: PROGRAM``, and is skipped where that program is not; ``mqtt apart: MODULE`` is found in .clients (scripts/mqtt_clients).
"""

import ast
import asyncio
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import headrace
from headrace.testing import blocking_broker

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".clients"
SHELL = re.compile(r"<!-- *(?P<note>mqtt shell:[^\n]*?) *-->\n(?P<indent>)```sh\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"(?:<!-- *(?P<note>[^\n]*?) *-->\n)?^(?P<indent> *)```(?:python|py)\n(?P<code>.*?)^ *```", re.MULTILINE | re.DOTALL)
DEFAULT = "headrace://127.0.0.1:7580"
LIMIT_S = 200
"""Of a program that a block is run in."""
pytestmark = pytest.mark.timeout(240)


class Example(NamedTuple):
    where: str
    note: str
    code: str


def examples() -> Iterator[Example]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        text = path.read_text()
        for match in [*BLOCK.finditer(text), *SHELL.finditer(text)]:
            indent = len(match["indent"])
            code = "\n".join(line[indent:] for line in match["code"].split("\n"))
            yield Example(f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start('code')) + 1}", match["note"] or "", code)


ALL = list(examples())


async def execute(code: str, where: str, namespace: dict[str, Any]) -> None:
    compiled = compile(code, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, namespace)
    if inspect.iscoroutine(result):
        await result


def speak_mqtt(example: Example, tmp_path: Path) -> None:
    """Runs a block in a process of its own: MQTT clients leave threads and handlers behind."""
    _, _, program = example.note.partition("shell: ")
    _, _, module = example.note.partition("apart: ")
    if program and shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    if module and not (CLIENTS / module).is_dir():
        pytest.skip(f"there is no {module} in .clients; scripts/mqtt_clients installs it")
    with blocking_broker(mqtt=True) as broker:
        code = example.code.replace(DEFAULT, broker.url).replace("1883", broker.mqtt_url.rpartition(":")[2])
        script = tmp_path / "example"
        script.write_text(code)
        command = ["sh", "-e"] if program else [sys.executable]
        environment = os.environ | ({"PYTHONPATH": str(CLIENTS)} if module else {})
        done = subprocess.run([*command, str(script)], env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout


def test_the_guide_has_examples() -> None:
    assert sum(e.where.startswith("docs/client.md") for e in ALL) >= 15


@pytest.mark.parametrize("example", ALL, ids=[e.where for e in ALL])
def test_example(example: Example, tmp_path: Path) -> None:
    if example.note.startswith("not python"):
        pytest.skip(example.note)
    if example.note.startswith("pytest"):
        (tmp_path / "test_example.py").write_text(example.code)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "asyncio_mode=auto",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        told = example.note.removeprefix("pytest").removeprefix(" fails: ")
        assert done.returncode == (1 if told else 0), done.stdout + done.stderr
        assert told in done.stdout
        return
    if example.note.startswith("mqtt"):
        speak_mqtt(example, tmp_path)
        return
    with blocking_broker() as broker:
        code = example.code.replace(DEFAULT, broker.url)
        namespace: dict[str, Any] = {"__name__": "__main__", "headrace": headrace, "asyncio": asyncio}
        setup = example.note.removeprefix("setup:").strip() if example.note.startswith("setup:") else ""

        async def run() -> None:
            async with headrace.connect(broker.url) as client:
                namespace["client"] = client
                await execute(setup, "setup", namespace)
                await execute(code, example.where, namespace)

        async def prepare() -> None:
            async with headrace.connect(broker.url) as client:
                await execute(setup, "setup", {**namespace, "client": client})

        if "asyncio.run(" in code or "connect_blocking(" in code:
            asyncio.run(prepare())
            exec(compile(code, example.where, "exec"), namespace)
        else:
            asyncio.run(run())
