"""python -m headrace.sim: one seed in full, or sweeps of many on all cores.

    python -m headrace.sim --seed 17             # what happened, row by row
    python -m headrace.sim --seeds 1-20000       # a line for each failure, totals at the end
    python -m headrace.sim --minutes 5           # seeds nobody has seen yet
    python -m headrace.sim --seed 17 --shrink    # the smallest scenario that still fails
    python -m headrace.sim --scenario FILE       # a shrunk one again

The exit code is 1 if a promise was broken.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from headrace.sim import scenario as scenarios
from headrace.sim import swarm
from headrace.sim.run import run
from headrace.sim.shrink import shrink
from headrace.sim.sweep import Totals, seeds_of, sweep
from headrace.sim.timeline import show


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, metavar="N", help="run one and show it")
    what.add_argument("--seeds", metavar="A-B", help="sweep these, or those named in a file")
    what.add_argument("--minutes", type=float, metavar="M", help="sweep new seeds for so long")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="with --minutes: begin at this seed (default: by the clock)")
    what.add_argument("--scenario", type=Path, metavar="FILE", help="run one that was kept")
    parser.add_argument("--shrink", action="store_true", help="make a failing run smaller; keeps it as a scenario")
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="show only the last N rows of the timeline (default: all)")
    parser.add_argument("--all", action="store_true", help="show every arrival and every flush too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: as many as cores)")
    parser.add_argument("--json", action="store_true", help="totals as one JSON object")
    options = parser.parse_args(argv)
    console = Console(stderr=options.json, highlight=False)
    if options.seed is not None or options.scenario is not None:
        chosen = swarm.draw(options.seed) if options.seed is not None else scenarios.decode(options.scenario.read_bytes())
        return one(chosen, console, options)
    return many(console, options)


def one(scenario: scenarios.Scenario, console: Console, options: argparse.Namespace) -> int:
    """Runs one scenario and shows it."""
    if options.shrink:
        scenario, runs = shrink(scenario, progress=lambda n, s: console.print(f"  {n} runs: {len(s.faults)} faults left", style="dim"))
        path = Path(f"scenario-{scenario.seed}.json")
        path.write_bytes(scenarios.encode(scenario))
        console.print(f"after {runs} runs; kept in {path}")
    result, rows = run(scenario, rows_max=None)
    show(console, scenario, result, rows, last=options.rows, everything=options.all)
    if options.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    return int(not result.ok)


def many(console: Console, options: argparse.Namespace) -> int:
    """Sweeps seeds: a line for each failure, totals at the end."""
    until = None
    if options.minutes is not None:
        first = options.first or time.time_ns() // 1_000_000
        until = time.monotonic() + options.minutes * 60
        seeds: Iterable[int] = iter(range(first, first + 10**9))
        total = None
        console.print(f"seeds from {first} on, for {options.minutes:g} minutes")
    else:
        chosen = seeds_of(options.seeds)
        seeds, total = chosen, len(chosen)
    totals, broken = Totals(), Counter[str]()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("seeds", total=total, text="")
        for result in sweep(seeds, jobs=options.jobs, until=until):
            totals.add(result)
            for violation in result.violations:
                broken[violation.invariant] += 1
            if not result.ok:
                worst = result.violations[0]
                console.print(f"[red]seed {result.seed}[/]: {worst.invariant}: {worst.text[:200]}", soft_wrap=True)
            progress.update(task, advance=1, text=f"{totals.failures} failed, {totals.events_a_second:,.0f} events/s a core")
    totals.broken = dict(sorted(broken.items()))
    wall = time.monotonic() - began
    if options.json:
        figures = msgspec.to_builtins(totals) | {"wall_s": round(wall, 1), "events_a_second": round(totals.events_a_second)}
        sys.stdout.write(json.dumps(figures) + "\n")
    console.print(
        f"{totals.seeds:,} seeds, {totals.failures:,} failed; {totals.messages:,} messages, {totals.faults:,} faults, {totals.hurt:,} runs with"
        f" damaged disks; {totals.events:,} events, {totals.events_a_second:,.0f} a second and core;"
        f" {totals.virtual_s / 3600:,.1f} virtual hours in {wall:,.0f} s"
    )
    if totals.failures:
        console.print(f"broken: {dict(totals.broken)}; look at one with: python -m headrace.sim --seed N")
    return int(totals.failures > 0)


if __name__ == "__main__":
    sys.exit(main())
