"""``headrace doctor``: is this machine fit to run a broker, and what to do where it is not.

Each check gives a finding: fine, a warning (it runs, but slower or with less safety), or a problem (it will not run). Nothing is changed; the disk is
measured with a file of its own that is removed.
"""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from headrace.cli.configuration import File, Set, set_flags
from headrace.cli.options import DEFAULT_URL, AsJson, Url
from headrace.cli.output import emit, size
from headrace.config import read
from headrace.model.config import Config, parse_address
from headrace.model.errors import HeadraceError, Invalid

SYNCS: Final = 50
SLOW_SYNC_US: Final = 5_000
INSTANT_SYNC_US: Final = 5
SPARE_FILES: Final = 256
MARKS: Final = {"fine": "ok  ", "warning": "warn", "problem": "FAIL"}


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    verdict: str
    """fine, warning or problem."""
    found: str
    todo: str = ""


def doctor(
    data_dir: Annotated[str | None, typer.Option("--data-dir", "-d", help="Directory to measure; default: the configured one.")] = None,
    config: File = None, set_: Set = None, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Check this machine: Python, compiled modules, disk, ports, limits, and the broker if one runs."""
    flags = set_flags(set_) | ({"broker.data_dir": ("--data-dir", data_dir)} if data_dir else {})
    loaded = read(config, os.environ, flags)
    findings = [*_configuration(loaded.mistakes), *_software(), *_disk(loaded.config), *_limits(loaded.config), *_broker(url, loaded.config)]

    def text() -> None:
        for f in findings:
            print(f"{MARKS[f.verdict]}  {f.check:<14} {f.found}")
            if f.todo:
                print(f"      {'':<14} to do: {f.todo}")
        bad = sum(f.verdict == "problem" for f in findings)
        poor = sum(f.verdict == "warning" for f in findings)
        print(f"\n{bad} problems, {poor} warnings" if bad or poor else "\nall is well")

    emit({"findings": findings, "fit": all(f.verdict != "problem" for f in findings)}, as_json, text)
    if any(f.verdict == "problem" for f in findings):
        raise typer.Exit(1)


def _configuration(mistakes: tuple[object, ...]) -> Iterator[Finding]:
    if mistakes:
        yield Finding("configuration", "problem", f"{len(mistakes)} mistakes", "headrace config check names them")


def _software() -> Iterator[Finding]:
    version = platform.python_version()
    fit = sys.version_info >= (3, 11)
    yield Finding("python", "fine" if fit else "problem", f"{platform.python_implementation()} {version}", "" if fit else "use Python 3.11 or later")
    try:
        yield Finding("event loop", "fine", f"uvloop {importlib.metadata.version('uvloop')}")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("event loop", "warning", "asyncio's own: two to four times slower", "pip install uvloop")
    compiled = [name for name in _hot_modules() if _is_compiled(name)]
    total = len(_hot_modules())
    if total and len(compiled) == total:
        yield Finding("hot modules", "fine", f"compiled ({total})")
    else:
        todo = "install gcc and the Python headers, then install headrace again (not editable)"
        yield Finding("hot modules", "warning", f"pure Python ({len(compiled)} of {total} compiled): correct, but slower", todo)
    if platform.system() != "Linux":
        yield Finding("system", "warning", platform.platform(), "Headrace is made and measured on Linux")
    else:
        yield Finding("system", "fine", f"{platform.platform()}, {os.cpu_count()} processors")


def _hot_modules() -> list[str]:
    """Names of the modules that are compiled where a C compiler is."""
    from headrace.hot import MODULES

    return list(MODULES)


def _is_compiled(name: str) -> bool:
    from importlib.util import find_spec

    spec = find_spec(name)
    return spec is not None and bool(spec.origin) and not str(spec.origin).endswith(".py")


def _log_writes(config: Config) -> Finding:
    """Who writes the log beside the loop."""
    import asyncio

    from headrace.storage.ring import Ring

    async def made() -> None:
        Ring(asyncio.get_running_loop()).close()

    if config.storage.log_writes == "thread":
        return Finding("log writes", "fine", "by a thread, as storage.log_writes says")
    try:
        asyncio.run(made())
    except OSError as e:
        return Finding("log writes", "fine", f"by a thread: no io_uring here ({os.strerror(e.errno or 0)}); slower with very many queues")
    return Finding("log writes", "fine", "by the kernel (io_uring)")


def _disk(config: Config) -> Iterator[Finding]:
    if config.broker.storage == "memory":
        yield Finding("storage", "warning", "memory: nothing survives a stop", "use --storage disk for anything that matters")
        return
    wanted = Path(config.broker.data_dir).absolute()
    place = wanted
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        yield Finding("data dir", "problem", f"{wanted} cannot be written", "choose another with --data-dir, or let this user write there")
        return
    yield Finding("data dir", "fine", f"{wanted}" + ("" if wanted.exists() else " (made at the start)"))
    free = shutil.disk_usage(place).free
    needed = config.storage.wal_bytes_max + config.storage.disk_free_bytes_min
    if free < config.storage.disk_free_bytes_min:
        yield Finding("free space", "problem", size(free), "free space: below storage.disk_free_bytes_min publishes are refused")
    elif free < needed:
        yield Finding("free space", "warning", size(free), f"the log alone may take {size(config.storage.wal_bytes_max)} (storage.wal_bytes_max)")
    else:
        yield Finding("free space", "fine", size(free))
    yield _sync_latency(place)
    yield _log_writes(config)


def _sync_latency(place: Path) -> Finding:
    """The time of one durable write of 4 KiB, as the log makes them."""
    block = b"\0" * 4096
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            number = file.fileno()
            os.pwrite(number, block * SYNCS, 0)
            os.fsync(number)
            times: list[int] = []
            for i in range(SYNCS):
                begin = time.perf_counter_ns()
                os.pwrite(number, b"\1" * 4096, 4096 * i)
                os.fdatasync(number)
                times.append((time.perf_counter_ns() - begin) // 1000)
    except OSError as e:
        return Finding("sync latency", "problem", f"writing failed: {e.strerror}", "another disk")
    times.sort()
    p50, p99 = times[SYNCS // 2], times[-1]
    found = f"p50 {p50 / 1000:.2f} ms, worst of {SYNCS} {p99 / 1000:.2f} ms"
    if p50 < INSTANT_SYNC_US:
        return Finding("sync latency", "warning", found, "this is memory, or a disk that does not sync: a power cut may lose what was confirmed")
    if p50 > SLOW_SYNC_US:
        return Finding("sync latency", "warning", found, "every durable confirm waits for this: use a faster disk")
    return Finding("sync latency", "fine", found)


def _limits(config: Config) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.limits.connections_max + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        todo = f"ulimit -n {needed} before the start (systemd: LimitNOFILE={needed}), or lower limits.connections_max"
        yield Finding("open files", "warning", f"{soft} (at most {hard}), {needed} for {config.limits.connections_max} connections", todo)
    else:
        yield Finding("open files", "fine", f"{soft}")


def _broker(url: str, config: Config) -> Iterator[Finding]:
    """The running broker if there is one, else whether its ports are free."""
    from headrace.cli.asking import Asker
    from headrace.wire import control

    try:
        with Asker(url, timeout_s=3) as asker:
            now = asker.ask(control.Status(), control.BrokerStatus)
        state = f"{now.broker} at {url} is {now.state}, release {now.release}"
        verdict = "problem" if now.state == "failed" else "warning" if now.attention else "fine"
        yield Finding("broker", verdict, state, "; ".join(now.attention))
        return
    except HeadraceError as error:
        yield Finding("broker", "fine", f"none answers at {url}: {error}")
    for name in ("native", "admin"):
        text = getattr(config.listen, name)
        if name == "admin" and text in ("", "off"):
            continue
        try:
            address = parse_address(text)
        except Invalid:
            continue
        with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address.host, address.port))
                yield Finding(f"{name} port", "fine", f"{text} is free")
            except OSError as e:
                yield Finding(f"{name} port", "problem", f"{text}: {e.strerror}", f"stop what listens there, or set listen.{name}")
