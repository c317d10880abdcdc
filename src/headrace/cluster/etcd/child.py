"""One process that outlives its parent: started in a session of its own with its output in a file, found again by a later parent, ended by its id.

Owns the record of which process it is (pid, start time, boot, command line), so that a pid that was given to another process is never signalled.
Does not know what runs in it. Linux only (/proc, pidfd).

I1 a signal is sent only to a process whose start time is the recorded one. I2 its output is a file, so a slow reader never stops it. I3 whoever
starts it after a crash of the parent finds the one that runs, even if the record was never written.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

LOGS_KEPT: Final = 5
LOG_TAIL_BYTES: Final = 4096
POLL_S: Final = 0.05


class Record(msgspec.Struct, frozen=True):
    """Which process it is."""

    pid: int
    started: int
    """Clock ticks from boot to its start."""
    boot: str
    command: tuple[str, ...]


class Child:
    """A running process, ours or adopted."""

    def __init__(self, record: Record, *, own: bool) -> None:
        self.record = record
        self._own = own
        self._code: int | None = None

    @property
    def alive(self) -> bool:
        """Of ours: whether it has not been collected yet, which is not before its last thread is gone."""
        if self._own and self._code is None:
            try:
                pid, status = os.waitpid(self.record.pid, os.WNOHANG)
            except ChildProcessError:
                self._own = False  # somebody else has waited for it
            else:
                if not pid:
                    return True
                self._code = os.waitstatus_to_exitcode(status)
        if self._code is not None:
            return False
        return _identity(self.record.pid) == (self.record.started, self.record.boot)

    @property
    def end(self) -> str:
        """How it ended, in words."""
        if self._code is None:
            return "ended"
        if self._code < 0:
            return f"ended by {signal.Signals(-self._code).name}"
        return f"ended with exit code {self._code}"

    def send(self, sig: signal.Signals) -> None:
        """Signals it, unless it is gone."""
        if self.alive:
            try:
                os.kill(self.record.pid, sig)
            except ProcessLookupError:
                return

    async def wait(self) -> None:
        """Returns once it has ended."""
        loop = asyncio.get_running_loop()
        while self.alive:
            try:
                fd = os.pidfd_open(self.record.pid)
            except ProcessLookupError:
                await asyncio.sleep(POLL_S)
                continue
            except OSError:
                await asyncio.sleep(POLL_S)  # no pidfd here: look now and then
                continue
            ended = asyncio.Event()
            loop.add_reader(fd, ended.set)
            try:
                if self.alive:
                    await ended.wait()
            finally:
                loop.remove_reader(fd)
                os.close(fd)

    async def stop(self, grace_s: float) -> None:
        """Asks it to end, and ends it when the time is over."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.wait()


def spawn(command: Sequence[str], log: Path, record: Path, env: Mapping[str, str], *, stdin: int | None = None) -> Child:
    """Starts it with nothing but its output file open, which becomes ``log`` (older ones are kept beside it), and its standard input, if there is to
    be one: a copy of that descriptor. ``OSError`` if it cannot be."""
    _rotate(log)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0) if stdin is None else (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    defaults = [signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    pid = os.posix_spawn(command[0], list(command), dict(env), file_actions=actions, setsid=True, setsigmask=[], setsigdef=defaults)
    identity = _identity(pid) or (0, "")
    child = Child(Record(pid, identity[0], identity[1], tuple(command)), own=True)
    _write(record, msgspec.json.encode(child.record))
    return child


def adopt(record: Path, mark: str) -> Child | None:
    """The process that ``record`` names if it still runs; else one that has ``mark`` as an argument of its own (its parent died before it wrote the
    record); else None."""
    try:
        known = msgspec.json.decode(record.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        known = None
    if known is not None and known.started and _identity(known.pid) == (known.started, known.boot):
        return Child(known, own=False)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            command = _command(int(entry.name))
            identity = _identity(int(entry.name)) if mark in command else None
            if identity is not None:
                found = Record(int(entry.name), identity[0], identity[1], command)
                _write(record, msgspec.json.encode(found))
                return Child(found, own=False)
    return None


def strays(beginning: str) -> list[Child]:
    """Processes that have an argument which begins so, whoever started them and whatever is left of their files."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            command = _command(int(entry.name))
            identity = _identity(int(entry.name)) if any(argument.startswith(beginning) for argument in command) else None
            if identity is not None:
                found.append(Child(Record(int(entry.name), identity[0], identity[1], command), own=False))
    return found


def last_lines(log: Path, count: int = 3) -> str:
    """The end of its output, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def _identity(pid: int) -> tuple[int, str] | None:
    """When it started, and in which boot; None if it is not there or has ended and only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else (int(fields[19]), boot)


def _command(pid: int) -> tuple[str, ...]:
    try:
        return tuple(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
    except OSError:
        return ()


def _rotate(log: Path) -> None:
    for n in range(LOGS_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{n}")
        newer = log.with_name(f"{log.name}.{n - 1}") if n > 1 else log
        if newer.exists():
            newer.replace(older)


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(data)
    beside.replace(path)
