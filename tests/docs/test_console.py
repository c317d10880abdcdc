"""Every `headrace` command in the documents' console blocks runs against a real broker, in the order in which it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import headrace.testing

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/README.md"))]
    if "```console" in page.read_text()
]
LIMIT_S = 100
"""Of one command."""


def commands(page: Path) -> list[list[str]]:
    """The words of each `$ headrace ...` line; what follows a # is a remark."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.S)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ headrace ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_do_what_the_page_says(page: Path) -> None:
    with headrace.testing.blocking_broker(storage="memory", mqtt=True) as broker:
        environment = os.environ | {"HEADRACE_URL": broker.url}
        for words in commands(page):
            if words[0] == "start":
                continue
            command = [str(Path(sys.executable).with_name("headrace")), *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
            assert done.returncode == 0, f"headrace {' '.join(words)}\n{done.stdout}{done.stderr}"


def test_there_are_some() -> None:
    assert sum(len(commands(page)) for page in PAGES) >= 4
