"""One run of one row on one target: the generator beside the server's CPU and memory and the machine's speed."""

import contextlib
import json
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

from bench import machine
from bench.rows import Row
from bench.targets import BIN, ROOT, Headrace, Rabbit, Target

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
RUN_S = 150.0


def generator(kind: str) -> Path:
    """The peers' load generator of a kind, compiled when its source is newer."""
    source, program = HERE / f"load_{kind}.c", BUILD / f"load_{kind}"
    if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime, (HERE / "load.h").stat().st_mtime):
        BUILD.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wno-format-truncation", "-o", str(program), str(source)], check=True)
    return program


def one(row: Row, target: Target, sizes: dict[str, str], label: str) -> dict[str, Any]:
    """Runs the row (and its filling) and returns the figures of the generator and of the server."""
    kind = "mqtt" if row.mqtt else "stream" if target.name == "rabbit-stream" else target.kind
    if kind in row.fill:
        filled = _run(target, kind, row.fill[kind].format(**sizes), label)
        if "error" in filled:
            return filled
    speed = machine.speed()
    pids = target.pids()
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from here
    cpu, busy, began = machine.cpu_s(pids), machine.busy_s(), time.monotonic()
    figures = _run(target, kind, row.work[kind].format(**sizes), label)
    wall = time.monotonic() - began
    used = machine.cpu_s(target.pids()) - cpu
    figures |= {
        "server_cores": round(used / wall, 2),
        "peak_mib": round(machine.memory_mib(target.pids()), 1),
        "other_cores": round((machine.busy_s() - busy - used - figures.get("generator_cpu", 0)) / wall, 2),
        "speed": (speed + machine.speed()) // 2,
    }
    return figures


def _run(target: Target, kind: str, arguments: str, label: str) -> dict[str, Any]:
    native = isinstance(target, Headrace) and kind != "mqtt"
    if isinstance(target, Headrace) and native:
        command = [str(BIN / "headrace"), "perf", *arguments.split(), "--url", target.url, "--json"]
    else:
        port = target.stream_port if kind == "stream" and isinstance(target, Rabbit) else target.mqtt_port if kind == "mqtt" else target.port
        command = [
            str(generator(kind)),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *arguments.split(),
            "--stream" if kind == "stream" else "--queue",
            label,
        ]
        if "quorum" in target.name:
            command += ["--qtype", "quorum"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": "the generator ran over its time"}
    try:
        figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": f"no result: {done.stdout[-200:]} {done.stderr[-300:]}"}
    return figures if native else _translated(figures)


def _translated(figures: dict[str, Any]) -> dict[str, Any]:
    """The C generators' words in those of ours."""
    if "error" in figures:
        return figures
    latency = {f"{name}_us": figures[f"{name}_us"] for name in ("p50", "p99", "p999", "max")} if figures.get("lat_n") else {}
    return {
        "rate": figures["rate"],
        "secs": figures["secs"],
        "latency": latency,
        "generator_cpu": figures["gen_cpu"],
        "generator_wall": figures["gen_wall"],
        "lost": figures.get("lost", 0),
        "dup": figures["dup"],
        "misorder": figures["misorder"],
        "refused": figures["nack"],
    }


def prepare() -> None:
    """Makes the folder of all data, and lets servers and generators have as many connections as they may."""
    ROOT.mkdir(parents=True, exist_ok=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
