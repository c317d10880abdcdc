"""What three brokers on this machine confirm once all three have it durably: python -m bench.cluster, figures go to docs/performance.md.

The peers' clusters of three are not driven here; what they did on such a machine stands beside.
"""

import argparse
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench import machine, table
from bench.members import Members
from bench.targets import ROOT
from headrace.cli.perf_load import run
from headrace.cli.perf_plan import Plan

BEGIN, END = "<!-- cluster: begin (written by `make bench-cluster`) -->", "<!-- cluster: end -->"
COPIES = 3
ROWS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("publish, 100 B, window 1000", {"size": 100, "window": 1000}, "29,000 / 83,000 / 162,000"),
    ("publish, 1 KiB, window 1000", {"size": 1024, "window": 1000}, ""),
    ("publish, 100 B in batches of 100", {"size": 100, "batch": 100, "window": 10_000}, ""),
    ("publish, 100 B, 12 partitions on all owners, window 1000", {"size": 100, "window": 1000, "partitions": 12}, ""),
    ("publish + consume + ack, 100 B", {"size": 100, "window": 1000, "consume": True}, ""),
    ("confirms one at a time (window 1)", {"size": 100, "window": 1}, ""),
)
PEERS = "RabbitMQ quorum / NATS sync always / NATS default, R3"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=float, default=3.0)
    parser.add_argument("--etcd", default="", help="which etcd, if not the first on the PATH")
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    ROOT.mkdir(parents=True, exist_ok=True)
    members = Members(COPIES, etcd=options.etcd)
    found: dict[str, list[dict[str, Any]]] = {title: [] for title, _, _ in ROWS}
    try:
        members.start()
        for number in range(options.rounds):
            for title, work, _ in ROWS:
                figures = one(members, work, options.secs)
                found[title].append(figures)
                print(f"  round {number + 1}  {title:58} {figures['rate']:>12,.0f}/s  {figures['why']}", flush=True)
    finally:
        members.stop()
    command = f"python -m bench.cluster {' '.join(sys.argv[1:])}".strip()
    text = (
        f"{time.strftime('%Y-%m-%d')}, {machine.description()}; medians of {options.rounds} rounds; `{command}`\n\n"
        f"| three brokers, three copies, all synced before a confirm | confirms/s | p50 ms | p99 ms | cores: brokers | others | {PEERS} |\n"
        "|---|--:|--:|--:|--:|--:|--:|\n"
    )
    for title, _, peers in ROWS:
        text += f"| {title} | " + " | ".join(_median(found[title], key, form) for key, form in SHOWN) + f" | {peers} |\n"
    print(f"\n{text}")
    if not options.dry:
        table.insert(Path(__file__).resolve().parent.parent / "docs" / "performance.md", text, BEGIN, END)
    return 1 if any(f["lost"] or f["dup"] or f["refused"] or f["why"] for rounds in found.values() for f in rounds) else 0


SHOWN = (("rate", "{:,.0f}"), ("p50", "{:.2f}"), ("p99", "{:.2f}"), ("cores", "{:.2f}"), ("others", "{:.2f}"))


def one(members: Members, work: dict[str, Any], secs: float) -> dict[str, Any]:
    """One run, with what the brokers and the rest of the machine used meanwhile."""
    pids = members.broker_pids()
    cpu, busy, began = machine.cpu_s(pids), machine.busy_s(), time.monotonic()
    figures = run(Plan(url=members.url, name=f"bench-{time.monotonic_ns():x}", replication_factor=COPIES, secs=secs, idle_s=30.0, **work))
    wall = time.monotonic() - began
    used = machine.cpu_s(pids) - cpu
    latency = figures["latency"]
    return figures | {
        "p50": latency.get("p50_us", 0) / 1e3,
        "p99": latency.get("p99_us", 0) / 1e3,
        "cores": used / wall,
        "others": (machine.busy_s() - busy - used - figures["generator_cpu"]) / wall,
    }


def _median(rounds: list[dict[str, Any]], key: str, form: str) -> str:
    return form.format(statistics.median(f[key] for f in rounds)) if rounds else ""


if __name__ == "__main__":
    sys.exit(main())
