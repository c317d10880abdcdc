"""How much fits and how long a start takes: python -m bench.capacity [--queues N] [--connections N] [--gib N], figures go to docs/performance.md."""

import argparse
import resource
import signal
import socket
import sys
import time
from pathlib import Path

from bench import machine, table
from bench.targets import ROOT, Headrace
from headrace.cli.perf_link import Link
from headrace.cli.perf_load import run
from headrace.cli.perf_plan import Plan
from headrace.model.specs import QueueSpec
from headrace.wire import control

BEGIN, END = "<!-- capacity: begin (written by `make bench-capacity`) -->", "<!-- capacity: end -->"
LOOK_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--queues", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=5_000)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ROOT.mkdir(parents=True, exist_ok=True)
    broker = Headrace("capacity")
    rows: list[tuple[str, str]] = []
    try:
        idle(broker, rows)
        queues(broker, options.queues, rows)
        connections(broker, min(options.connections, hard - 200), rows)
        log(broker, options.gib, rows)
    finally:
        broker.stop()
        broker.remove()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    command = f"python -m bench.capacity {' '.join(sys.argv[1:])}".strip()
    text = f"{time.strftime('%Y-%m-%d')}, {machine.description()}; `{command}`\n\n| what | measured |\n|---|--:|\n"
    text += "".join(f"| {what} | {value} |\n" for what, value in rows)
    print(text)
    if not options.dry:
        table.insert(Path(__file__).resolve().parent.parent / "docs" / "performance.md", text, BEGIN, END)
    return 0


def started(broker: Headrace, *, fresh: bool) -> float:
    """Seconds from the command to the ready file."""
    began = time.monotonic()
    broker.start(fresh=fresh)
    return time.monotonic() - began


def resident(broker: Headrace) -> str:
    return f"{machine.memory_mib(broker.pids(), 'VmRSS'):.0f} MiB"


def cpu_share(broker: Headrace) -> str:
    """CPU that the broker takes when nobody asks for anything."""
    time.sleep(1.0)
    before = machine.cpu_s(broker.pids())
    time.sleep(LOOK_S)
    return f"{(machine.cpu_s(broker.pids()) - before) / LOOK_S:.1%}"


def idle(broker: Headrace, rows: list[tuple[str, str]]) -> None:
    rows.append(("start on an empty directory", f"{started(broker, fresh=True):.2f} s"))
    rows.append(("idle: resident", resident(broker)))
    rows.append(("idle: CPU", cpu_share(broker)))


def queues(broker: Headrace, count: int, rows: list[tuple[str, str]]) -> None:
    link = Link(broker.url)
    began = time.monotonic()
    link.drain_calls([control.DeclareQueue(name=f"idle-{i:06d}", spec=QueueSpec()) for i in range(count)], control.Message, most=500)
    took = time.monotonic() - began
    link.close()
    rows.append((f"{count:,} queues declared", f"{took:.1f} s ({count / took:,.0f}/s)"))
    rows.append((f"{count:,} idle queues: resident", resident(broker)))
    rows.append((f"{count:,} idle queues: CPU", cpu_share(broker)))
    broker.stop()
    rows.append((f"{count:,} idle queues: start", f"{started(broker, fresh=False):.2f} s"))
    rows.append((f"{count:,} idle queues: resident after the start", resident(broker)))


def connections(broker: Headrace, count: int, rows: list[tuple[str, str]]) -> None:
    before = machine.memory_mib(broker.pids(), "VmRSS")
    began = time.monotonic()
    links = []
    for i in range(count):
        link = Link(broker.url, name=f"idle {i}")
        link.buffer, link.view = bytearray(), memoryview(b"")  # the generator's own memory is not what is measured
        links.append(link)
    took = time.monotonic() - began
    used = machine.memory_mib(broker.pids(), "VmRSS") - before
    rows.append((f"{count:,} connections, one after another", f"{count / took:,.0f}/s"))
    rows.append((f"{count:,} idle connections: memory", f"{used / count * 1024:.1f} KiB each"))
    rows.append((f"{count:,} idle connections: CPU", cpu_share(broker)))
    for link in links:
        link.socket.shutdown(socket.SHUT_RDWR)
        link.close()


def log(broker: Headrace, gib: float, rows: list[tuple[str, str]]) -> None:
    size, batch = 16_384, 10
    count = max(1, int(gib * 2**30 / size / batch)) * batch
    figures = run(Plan(url=broker.url, kind="stream", name="long", size=size, batch=batch, window=400, count=count, warm_s=0.0), delete=False)
    rows.append((f"{gib:g} GiB appended, 16 KiB records", f"{figures['mbs']:,.0f} MB/s"))
    broker.stop(signal.SIGKILL)
    rows.append((f"{gib:g} GiB of log: start after kill -9", f"{started(broker, fresh=False):.2f} s"))
    began = time.monotonic()
    probe = run(Plan(url=broker.url, name="probe", count=1, window=1, warm_s=0.0))
    rows.append((f"{gib:g} GiB of log: first confirm after that", f"{time.monotonic() - began:.2f} s" if probe["confirmed"] else "none"))


if __name__ == "__main__":
    sys.exit(main())
