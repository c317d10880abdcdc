"""A real broker in a process of its own, started through the command line."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

READY_S = 30.0


class Started:
    """A running ``headrace start``: its addresses, and how it ended."""

    def __init__(self, directory: Path, *options: str, storage: str = "memory", stdin: int = subprocess.DEVNULL) -> None:
        self.directory = directory
        self.ready_file = directory / "ready.json"
        argv = [
            sys.executable, "-m", "headrace.cli", "start", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--storage", storage,
            "--data-dir", str(directory / "data"), "--ready-file", str(self.ready_file), *options,
        ]  # fmt: skip
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        self.log = directory / "log.txt"
        self.out = directory / "out.txt"
        with self.log.open("w") as log, self.out.open("w") as out:
            self.process = subprocess.Popen(argv, stdin=stdin, stdout=out, stderr=log, cwd=directory, env=env)
        self.addresses: dict[str, str] = {}

    def ready(self) -> "Started":
        """Waits for the ready file."""
        deadline = time.monotonic() + READY_S
        ended = os.pidfd_open(self.process.pid)
        try:
            while not self.ready_file.exists():
                assert time.monotonic() < deadline, self.log.read_text()
                assert not select.select([ended], [], [], 0.02)[0], self.log.read_text()
        finally:
            os.close(ended)
        self.addresses = json.loads(self.ready_file.read_text())
        return self

    def signalled(self, number: int) -> int:
        """Its exit code after that signal."""
        self.process.send_signal(number)
        return self.process.wait(READY_S)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """One broker for all tests that only use it."""
    started = Started(tmp_path_factory.mktemp("broker"))
    try:
        yield started.ready()
        assert started.signalled(signal.SIGTERM) == 0, started.log.read_text()
        assert " ERROR " not in started.log.read_text()
    finally:
        started.stop()
