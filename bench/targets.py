"""Starts and stops what is measured: Headrace and its peers, each on a fresh data directory on disk, each stopped by the ids of what was started."""

import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from bench.machine import tree
from headrace.cli.ports import neighbours

ROOT = Path(os.environ.get("BENCH_ROOT", str(Path(__file__).resolve().parent.parent / ".cache" / "bench")))
"""Data of everything measured; on a disk, not a tmpfs: a sync must be real."""
BIN = Path(sys.executable).parent
SOURCES = Path(__file__).resolve().parent.parent / "src"
START_S = 60.0
STOP_S = 15.0


class Absent(Exception):
    """A peer that is not installed."""


class Target:
    """One server process. Subclasses say how it is started and whether it serves yet."""

    kind = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = ROOT / name
        self.port = 0
        self.mqtt_port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> tuple[list[str], dict[str, str]]:
        """The command line and what it adds to the environment."""
        raise NotImplementedError

    def serves(self) -> bool:
        """Whether it can be used."""
        return listening(self.port)

    def start(self, *, fresh: bool = True) -> None:
        """Starts it, on an empty directory if ``fresh``, and waits until it serves."""
        if fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        command, environment = self.command()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        end = time.monotonic() + START_S
        while not self.serves():
            if self.process.poll() is not None or time.monotonic() > end:
                tail = (self.folder / "log").read_text(errors="replace")[-600:]
                self.stop()
                raise RuntimeError(f"{self.name} did not start: {tail}")
            time.sleep(0.05)

    def pids(self) -> set[int]:
        """The server's process and its children."""
        return tree([self.process.pid]) if self.process else set()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stops what ``start`` started; by force after a while."""
        if self.process is None:
            return
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        end = time.monotonic() + STOP_S
        while any(alive(pid) for pid in pids) and time.monotonic() < end:
            self.process.poll()
            time.sleep(0.05)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def remove(self) -> None:
        """Deletes its data."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Headrace(Target):
    """This project's broker, in a process of its own; ``pure``: without its compiled modules."""

    kind = "headrace"

    def __init__(self, name: str = "headrace", *, pure: bool = False) -> None:
        super().__init__(name)
        self.ready: dict[str, str] = {}
        self.pure = pure

    def command(self) -> tuple[list[str], dict[str, str]]:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        self.ready = {}
        return [
            str(BIN / "headrace"),
            "start",
            "--data-dir",
            str(self.folder / "data"),
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--mqtt",
            "127.0.0.1:0",
            "--mqtt-ws",
            "off",
            "--ready-file",
            str(ready),
        ], {"PYTHONPATH": str(SOURCES)} if self.pure else {}

    def serves(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            self.ready = json.loads((self.folder / "ready.json").read_text())
            self.mqtt_port = int(self.ready["mqtt"].rpartition(":")[2])
            return True
        return False

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.ready["url"]


class Nats(Target):
    """nats-server with JetStream: synced at every write, or as it ships."""

    kind = "nats"

    def __init__(self, name: str, sync: str, *, mqtt: bool = False) -> None:
        super().__init__(name)
        self.sync = sync
        self.mqtt = mqtt

    def command(self) -> tuple[list[str], dict[str, str]]:
        binary = shutil.which("nats-server", path=f"{BIN}:{os.environ.get('PATH', '')}")
        if not binary:
            raise Absent("nats-server (make bench-peers)")
        self.port = neighbours(1)
        always = f"sync_interval: {self.sync}" if self.sync else ""
        self.mqtt_port = neighbours(1) if self.mqtt else 0
        mqtt = f"mqtt {{ listen: 127.0.0.1:{self.mqtt_port} }}" if self.mqtt else ""
        config = f"""\
            server_name: bench
            listen: 127.0.0.1:{self.port}
            jetstream {{ store_dir: "{self.folder}/js", {always} }}
            {mqtt}
            """
        return [binary, "-c", str(put(self.folder / "nats.conf", config))], {}

    def serves(self) -> bool:
        return listening(self.port) and (not self.mqtt or listening(self.mqtt_port))


class Redis(Target):
    """redis-server with an append-only file."""

    kind = "redis"

    def command(self) -> tuple[list[str], dict[str, str]]:
        binary = shutil.which("redis-server")
        if not binary:
            raise Absent("redis-server (make bench-peers)")
        self.port = neighbours(1)
        config = f"""\
            port {self.port}
            bind 127.0.0.1
            dir {self.folder}
            save ""
            appendonly yes
            appendfsync always
            no-appendfsync-on-rewrite no
            """
        return [binary, str(put(self.folder / "redis.conf", config))], {}


class Rabbit(Target):
    """rabbitmq-server with its stream plugin, or that of MQTT; ``kind`` says what a row uses of it."""

    kind = "amqp"

    def __init__(self, name: str, *, mqtt: bool = False) -> None:
        super().__init__(name)
        self.stream_port = self.epmd_port = 0
        self.mqtt = mqtt

    def command(self) -> tuple[list[str], dict[str, str]]:
        found = sorted(glob.glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"))
        if not found:
            raise Absent("rabbitmq-server (make bench-peers)")
        self.port, self.stream_port, distribution, self.epmd_port = neighbours(1), neighbours(1), neighbours(1), neighbours(1)
        self.mqtt_port = neighbours(1) if self.mqtt else 0
        listener = f"mqtt.listeners.tcp.1 = 127.0.0.1:{self.mqtt_port}" if self.mqtt else f"stream.listeners.tcp.1 = 127.0.0.1:{self.stream_port}"
        config = f"""\
            listeners.tcp.1 = 127.0.0.1:{self.port}
            {listener}
            log.console = false
            log.file.level = warning
            """
        put(self.folder / "rabbitmq.conf", config)
        put(self.folder / "enabled_plugins", f"[{'rabbitmq_mqtt' if self.mqtt else 'rabbitmq_stream'}].\n")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            put(cookie, "HEADRACEBENCH").chmod(0o400)
        folder = str(self.folder)
        return [found[-1]], {
            "HOME": folder,
            "RABBITMQ_NODENAME": f"{self.name.replace('-', '_')}@localhost",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/logs",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_DIST_PORT": str(distribution),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def serves(self) -> bool:
        return listening(self.port) and listening(self.mqtt_port if self.mqtt else self.stream_port)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        super().stop(how)
        for pid in port_pids(self.epmd_port):  # Erlang's name server outlives its node; this port was ours alone
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def all_targets() -> dict[str, Target]:
    """Every target by its name, Headrace first."""
    return {
        "headrace": Headrace(),
        "redis-always": Redis("redis-always"),
        "nats-always": Nats("nats-always", "always"),
        "nats-default": Nats("nats-default", ""),
        "rabbit-quorum": Rabbit("rabbit-quorum"),
        "rabbit-classic": Rabbit("rabbit-classic"),
        "rabbit-stream": Rabbit("rabbit-stream"),
    }


def put(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    return path


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return bool(port) and probe.connect_ex(("127.0.0.1", port)) == 0


def port_pids(port: int) -> list[int]:
    """Processes with a listening socket on a port."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    found = []
    for entry in Path("/proc").iterdir() if inodes else []:
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(fd) in inodes for fd in (entry / "fd").iterdir()):
                    found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
