"""``headrace start``: one broker in this process, alone or a member of a cluster, until SIGTERM, Ctrl-C or, if wanted, the end of its input.

Owns the process: flags, signals, the ready file, the banner and the exit code. What a broker is stands in ``headrace.broker``, imported once the
configuration is known to be good. Invariants: the ready file exists only while the broker serves, and is never seen half written; the first signal
drains, the second ends the process at once (what was confirmed is durable by then); a drain that takes too long ends it too (``cli.ending``).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headrace.cli.configuration import File, Set, set_flags
from headrace.cli.options import DEFAULT_URL
from headrace.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.broker.member import Member
    from headrace.broker.run import RunningBroker
    from headrace.cli.ending import Ending
    from headrace.model.config import Config

GRACES: Final = 2
"""Of a stop: what it serves is handed to other brokers, and clients finish, for at most ``drain_grace_ms`` each."""


def start(
    data_dir: Annotated[str | None, typer.Option("--data-dir", "-d", help="Directory that holds everything durable (headrace-data).")] = None,
    config: File = None,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="Native protocol (127.0.0.1:7580); port 0: any.")] = None,
    advertise: Annotated[str | None, typer.Option("--advertise", metavar="HOST:PORT", help="Address that clients are told.")] = None,
    admin: Annotated[str | None, typer.Option("--admin", metavar="HOST:PORT", help="Admin HTTP (127.0.0.1:7581); off = none.")] = None,
    admin_advertise: Annotated[str | None, typer.Option("--admin-advertise", metavar="HOST:PORT", help="Address of the admin HTTP to tell.")] = None,
    mqtt: Annotated[str | None, typer.Option("--mqtt", metavar="HOST:PORT", help="MQTT over TCP (127.0.0.1:1883 if it is free); off = none.")] = None,
    mqtt_ws: Annotated[str | None, typer.Option("--mqtt-ws", metavar="HOST:PORT", help="MQTT over WebSocket (127.0.0.1:8083 if it is free).")] = None,
    storage: Annotated[str | None, typer.Option("--storage", metavar="disk|memory", help="memory: nothing is written, nothing survives.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name shown in logs, metrics and status; in a cluster config, its member.")] = None,
    voters: Annotated[str | None, typer.Option("--voters", metavar="A,B,C", help="Form a cluster of these voters (NAME or NAME=HOST:PORT).")] = None,
    cluster: Annotated[str | None, typer.Option("--cluster", metavar="FILE", help="Form the cluster that this TOML file declares.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="HOST:PORT,...", help="Join the cluster that these brokers know.")] = None,
    peer: Annotated[str | None, typer.Option("--peer", metavar="HOST:PORT", help="Where the cluster's brokers connect (as declared).")] = None,
    secret_file: Annotated[str | None, typer.Option("--secret-file", metavar="FILE", help="File with the cluster's secret.")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="text or json.")] = None,
    set_: Set = None,
    ready_file: Annotated[Path | None, typer.Option("--ready-file", help="Written once the broker serves: JSON with its real url and admin.")] = None,
    stop_on_eof: Annotated[bool, typer.Option("--stop-on-eof", help="Stop when standard input ends: with whoever holds the other end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No banner.")] = False,
) -> None:  # fmt: skip
    """Start a broker here. Ctrl-C or SIGTERM stops it: clients are told and may finish first."""
    from headrace.config import load
    from headrace.log import configure

    named = {
        "broker.data_dir": ("--data-dir", data_dir), "broker.storage": ("--storage", storage), "broker.name": ("--name", name),
        "listen.native": ("--listen", listen), "listen.native_advertise": ("--advertise", advertise), "listen.admin": ("--admin", admin),
        "listen.admin_advertise": ("--admin-advertise", admin_advertise), "log.level": ("--log-level", log_level),
        "log.format": ("--log-format", log_format), "cluster.voters": ("--voters", voters), "cluster.file": ("--cluster", cluster),
        "cluster.seeds": ("--seeds", seeds), "listen.mqtt": ("--mqtt", mqtt), "listen.mqtt_ws": ("--mqtt-ws", mqtt_ws),
        "listen.peer": ("--peer", peer), "peers.secret_file": ("--secret-file", secret_file),
    }  # fmt: skip
    for flag, value in (("--voters", voters), ("--cluster", cluster), ("--seeds", seeds)):
        if value is not None:
            named["coordination.mode"] = (flag, "coordinated")
    flags = set_flags(set_) | {setting: (flag, value) for setting, (flag, value) in named.items() if value is not None}
    settings = load(config, os.environ, flags).config
    configure(settings.log.level, settings.log.format)
    _warn_of_open_listeners(settings)
    raise typer.Exit(_run(settings, ready_file, stop_on_eof=stop_on_eof, banner=not quiet and settings.log.format == "text"))


def _warn_of_open_listeners(config: Config) -> None:
    """There is no authentication yet: whoever reaches a listener may do everything."""
    from headrace.log import get_logger
    from headrace.model.config import parse_address

    for name in ("native", "admin", "mqtt", "mqtt_ws"):
        text = getattr(config.listen, name)
        if text in ("", "off", "auto"):
            continue
        host = parse_address(text).host
        if not (host == "localhost" or host == "::1" or host.startswith("127.")):
            what = "takes connections from other machines, without authentication: keep it in a trusted network"
            get_logger("start").warning("listen.%s = %s %s", name, text, what)


def _run(config: Config, ready_file: Path | None, *, stop_on_eof: bool, banner: bool) -> int:
    import asyncio

    from headrace.cli.ending import Ending

    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):  # no wheel for this platform: slower, the same
        import uvloop

        factory = uvloop.new_event_loop
    if ready_file is not None:
        if not ready_file.parent.is_dir():
            raise Invalid(f"--ready-file: there is no directory {ready_file.parent}", hint="make it first")
        ready_file.unlink(missing_ok=True)
    ending = Ending(lambda: _allowed_s(config, config.broker.drain_grace_ms))
    ending.take_signals()
    if stop_on_eof:
        ending.take_input()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(config, ready_file, ending, banner=banner))


def _allowed_s(config: Config, drain_grace_ms: int) -> float:
    """How long a stop may take."""
    return (GRACES * drain_grace_ms + config.broker.stop_grace_ms) / 1000


async def _serve(config: Config, ready_file: Path | None, ending: Ending, *, banner: bool) -> int:
    import asyncio

    wanted = asyncio.Event()
    ending.tell(asyncio.get_running_loop(), wanted.set)
    starting = asyncio.ensure_future(_start(config, ready_file, banner=banner))
    stop = asyncio.ensure_future(wanted.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
    if starting.cancelled():
        return 0
    running = starting.result()
    ending.allowed_s = lambda: _allowed_s(config, max(config.broker.drain_grace_ms, running.drain_grace_ms))
    draining = asyncio.ensure_future(running.draining.wait())
    draining.add_done_callback(lambda _: ending.bound())  # whoever wants it: its time runs
    try:
        _notify("READY=1")
        ended = asyncio.ensure_future(running.stopped.wait())
        await asyncio.wait((stop, ended), return_when=asyncio.FIRST_COMPLETED)
        _notify("STOPPING=1")
    finally:
        _announce(ready_file, None)
        stop.cancel()
        await running.stop(config.broker.drain_grace_ms, "the broker is being stopped")
    if running.error is None:
        return 0
    if config.coordination.mode == "coordinated":
        raise running.error  # it may never have served, so nothing else has said why
    return running.error.exit


async def _start(config: Config, ready_file: Path | None, *, banner: bool) -> RunningBroker | Member:
    """A broker that serves; or a member of a cluster, which tells by itself when it begins to, and when it ceases."""
    if config.coordination.mode == "standalone":
        from headrace.broker import run

        alone = await run.start(config)
        _announce(ready_file, alone)
        if banner:
            print(_banner(config, alone), flush=True)
        return alone
    from headrace.broker.member import Member

    def told(serves: bool) -> None:
        _announce(ready_file, member if serves else None)
        if banner and serves:
            print(_banner(config, member), flush=True)

    member = Member(config, tune=True, told=told)
    await member.start()
    if banner:
        print(_waiting(config, member), flush=True)
    return member


def _announce(path: Path | None, running: RunningBroker | Member | None) -> None:
    """Writes the ready file, whole or not at all; takes it away when nothing runs any more."""
    if path is None:
        return
    if running is None:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(running.addresses) + "\n")
    partial.replace(path)


def _waiting(config: Config, member: Member) -> str:
    from headrace import __version__

    lines = [f"Headrace {__version__} is a member of a cluster, and serves once that is there; the log says what it waits for."]
    if member.admin_url:
        lines.append(f"  status   {member.admin_url}/admin/api/cluster")
    return "\n".join(lines)


def _banner(config: Config, running: RunningBroker | Member) -> str:
    from headrace import __version__

    where = os.path.abspath(config.broker.data_dir) if config.broker.storage == "disk" else "memory only: nothing survives a stop"
    lines = [f"Headrace {__version__} is ready.", f"  data     {where}", f"  clients  {running.url}"]
    if running.admin_url:
        lines.append(f"  admin    {running.admin_url}  (overview, API, metrics)")
    mqtt = [url for name, url in running.addresses.items() if name.startswith("mqtt")]
    if mqtt:
        lines.append(f"  MQTT     {'  '.join(mqtt)}")
    lines.append("  try      in another terminal:")
    if running.url != DEFAULT_URL:
        lines.append(f"             export HEADRACE_URL={running.url}")
    lines += [
        "             headrace queue declare hello",
        "             headrace publish hello 'first light'",
        "             headrace consume hello --count 1",
        "  stop     Ctrl-C: clients are told and may finish; again: at once",
    ]
    return "\n".join(lines)


def _notify(state: str) -> None:
    """Tells systemd (``Type=notify``) where we are, if it asked."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        with contextlib.suppress(OSError):  # systemd then decides by its own timeout
            channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
