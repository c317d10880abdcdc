"""Keeps one etcd running beside its broker: adopted or started, started again after a crash with growing pauses, stopped in order.

Owns when it is started, when it counts as hanging, and what is said when it does not come up. Does not know the cluster; ``command.Voter`` says what
to run, ``child`` how a process is kept.

I1 at most one process runs on a data directory. I2 it is stopped only by ``stop``, if it hangs after it had answered, or if it runs with other
arguments than wanted. I3 the pause between starts grows to a bound and begins anew once it has run for a while.
"""

import asyncio
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from headrace.cluster.etcd.child import Child, adopt, last_lines, spawn
from headrace.cluster.etcd.command import Voter, arguments
from headrace.cluster.etcd.program import Program
from headrace.log import get_logger
from headrace.model.config import Address
from headrace.model.errors import CoordinatorUnavailable, Invalid

State = Literal["stopped", "starting", "serving", "pausing", "removed"]

STOP_GRACE_S: Final = 4.0
FAILED_STARTS: Final = 3
"""Ends before it ever answered, after which who waits for it is told."""
_REMOVED: Final = "permanently removed from the cluster"

_log = get_logger("cluster.etcd")


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Times of the supervision, in seconds."""

    pause_min_s: float = 0.1
    pause_max_s: float = 10.0
    settled_s: float = 30.0
    """After so long a crash counts as the first again."""
    probe_every_s: float = 1.0
    probe_timeout_s: float = 2.0
    silent_probes: int = 5
    """Unanswered in a row, after it had answered: it hangs."""


class Supervisor:
    """See the module's head. ``folder`` is etcd's own within the broker's data directory."""

    def __init__(self, program: Program, voter: Voter, folder: Path, *, pace: Pace = Pace()) -> None:
        self._program, self._voter, self._folder, self._pace = program, voter, folder, pace
        self.log = folder / "etcd.log"
        self.state: State = "stopped"
        self.starts = 0
        self.last_end = ""
        self._record = folder / "etcd.pid"
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()
        self._news = asyncio.Event()
        self._failures = 0

    @property
    def pid(self) -> int:
        """0 = none runs now."""
        return self._child.record.pid if self._child is not None else 0

    @property
    def failures(self) -> int:
        """Ends since it answered last."""
        return self._failures

    async def start(self) -> None:
        """Adopts the process of an earlier run or starts one, and watches over it from now on. Whether it serves: ``ready``."""
        assert self._task is None
        self._make_folders()
        if self._program.banner:
            _log.warning("%s", self._program.banner)
        command = await self._command()
        self.state = "starting"
        child = adopt(self._record, f"--data-dir={self._voter.data_dir}")
        if child is not None and _lasting(child.record.command) != _lasting(command):
            _log.info("etcd (pid %d) runs with other arguments than it should: it is started anew", child.record.pid)
            await child.stop(STOP_GRACE_S)
            child = None
        if child is not None:
            _log.info("etcd (pid %d) of an earlier run is taken over", child.record.pid)
        self._task = asyncio.get_running_loop().create_task(self._run(command, child), name="etcd supervisor")

    async def ready(self, timeout_s: float) -> None:
        """Returns once it answers clients, which takes a majority of the members; ``CoordinatorUnavailable`` says why it does not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._serving.is_set():
                    if self.state == "removed" or (self._failures >= FAILED_STARTS and not self._serving.is_set()):
                        break
                    self._news.clear()
                    await self._news.wait()
        if self._serving.is_set():
            return
        tail = last_lines(self.log)
        if self.state == "removed":
            raise CoordinatorUnavailable(f"this voter was removed from the cluster: {tail}", hint="add it again, with an empty directory")
        if self._failures:
            raise CoordinatorUnavailable(
                f"etcd does not stay up: started {self.starts} times, last {self.last_end}; it said: {tail}", hint=f"its log is {self.log}"
            )
        raise CoordinatorUnavailable(
            f"etcd (pid {self.pid}) did not answer at {self._voter.client} within {timeout_s:g} s",
            hint=f"a majority of {', '.join(self._voter.members)} must be started; its log is {self.log}",
        )

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Ends it, with time to finish its writes."""
        await self.leave()
        if self._child is not None:
            await self._child.stop(grace_s)
            self._child = None
        self._record.unlink(missing_ok=True)

    async def leave(self) -> None:
        """Watches no more and lets it run, to be adopted later."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._serving.clear()
        self.state = "stopped"

    async def _run(self, command: list[str], child: Child | None) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._pace.pause_min_s
        while True:
            began = loop.time()
            if child is None:
                child = self._spawn(command)
            if child is not None:
                self._child = child
                self._tell("starting")
                watching = loop.create_task(self._probe(child))
                try:
                    await child.wait()
                finally:
                    watching.cancel()
                    with suppress(asyncio.CancelledError):
                        await watching
                self.last_end = child.end
                self._child = child = None
                self._serving.clear()
                if _REMOVED in last_lines(self.log, 20):
                    _log.error("etcd ended: this voter was removed from the cluster")
                    self._tell("removed")
                    return
            self._failures += 1
            if loop.time() - began >= self._pace.settled_s:
                pause_s = self._pace.pause_min_s
            _log.warning("etcd %s; it is started again in %.1f s. Its last words: %s", self.last_end, pause_s, last_lines(self.log, 1))
            self._tell("pausing")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._pace.pause_max_s)

    def _spawn(self, command: list[str]) -> Child | None:
        self.starts += 1
        try:
            child = spawn(command, self.log, self._record, _environment(os.environ))
        except OSError as e:
            self.last_end = f"could not be started: {e}"
            return None
        _log.info("etcd %s is started (pid %d) for voter %s", ".".join(map(str, self._program.version)), child.record.pid, self._voter.name)
        return child

    async def _probe(self, child: Child) -> None:
        silent = 0
        while True:
            if await answers(self._voter.client, self._pace.probe_timeout_s):
                silent = 0
                if not self._serving.is_set():
                    self._failures = 0
                    self._serving.set()
                    self._tell("serving")
            elif self._serving.is_set():
                silent += 1
                if silent >= self._pace.silent_probes:
                    _log.error("etcd (pid %d) answers no more: it is killed and started again", child.record.pid)
                    self._serving.clear()
                    await child.kill()
                    return
            await asyncio.sleep(self._pace.probe_every_s if self._serving.is_set() else min(0.05, self._pace.probe_every_s))

    def _tell(self, state: State) -> None:
        self.state = state
        self._news.set()

    def _make_folders(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        Path(self._voter.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)

    async def _command(self) -> list[str]:
        loop = asyncio.get_running_loop()
        listen: dict[str, str] = {}
        for address in (self._voter.client, self._voter.peer):
            if address.unspecified or not address.port:
                hint = "correct the address of this broker in the cluster config: HOST:PORT, of its peer listener"
                raise Invalid(f"{address} names no place where others find this voter", hint=hint)
            host = self._voter.listen_host or address.host
            try:
                found = await loop.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
            except OSError as e:
                raise Invalid(f"the host {host} cannot be resolved: {e}", hint="correct listen.peer, or the address in the cluster config") from None
            listen[host] = str(found[0][4][0])
        return [self._program.path, *arguments(self._voter, self._program.version, listen)]


async def answers(address: Address, timeout_s: float) -> bool:
    """Whether something speaks HTTP there now: etcd does as soon as it serves clients, with a leader or without."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(f"GET /version HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()


def _lasting(command: Sequence[str]) -> list[str]:
    """Without what matters at the very first start only."""
    return [argument for argument in command if not argument.startswith("--initial-")]


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """Without settings of another etcd; the 3.4 line asks to be told that ARM is wanted."""
    kept = {k: v for k, v in env.items() if not k.startswith("ETCD_")}
    if platform.machine() in ("aarch64", "arm64"):
        kept["ETCD_UNSUPPORTED_ARCH"] = "arm64"
    return kept
