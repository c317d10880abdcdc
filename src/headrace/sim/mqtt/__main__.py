"""python -m headrace.sim.mqtt: clusters of three and five brokers with MQTT clients under faults, one by one or many on all cores.

    python -m headrace.sim.mqtt --seed 17                  # one; what was wrong in full
    python -m headrace.sim.mqtt --seeds 0-9999 --jobs 2    # a line for each failure, totals at the end
    python -m headrace.sim.mqtt --minutes 5                # seeds nobody has seen yet

The exit code is 1 if a promise was broken.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from headrace.sim.clusters.sweep import carried_out, sweep
from headrace.sim.mqtt.run import Run, Totals, one
from headrace.sim.sweep import seeds_of

EVERY: Final = 500


def main(argv: list[str] | None = None) -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m headrace.sim.mqtt", description=__doc__, formatter_class=plain)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, metavar="N", help="run one")
    what.add_argument("--seeds", metavar="A-B", help="sweep these, or those named in a file")
    what.add_argument("--minutes", type=float, metavar="M", help="sweep new seeds for so long")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="with --minutes: begin at this seed (default: by the clock)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: as many as cores)")
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="with --seed: show the last N rows of what happened")
    parser.add_argument("--json", action="store_true", help="totals as one JSON object")
    options = parser.parse_args(argv)
    console = Console(stderr=options.json, highlight=False)
    if options.seed is not None:
        return alone(console, options.seed, options.rows)
    return many(console, options)


def alone(console: Console, seed: int, rows: int) -> int:
    """One seed, in full."""
    made: list[Run] = []

    def make(seed: int) -> Run:
        made.append(Run(seed, rows_max=rows))
        return made[0]

    result = carried_out(make, seed)
    if rows and made:
        for row in made[0].world.trace.rows:
            console.print(str(row), soft_wrap=True, markup=False)
    console.print(result.wrong or "every promise was kept", soft_wrap=True, markup=False)
    console.print(text(made[0].totals if made else Totals()), soft_wrap=True)
    return int(bool(result.wrong))


def many(console: Console, options: argparse.Namespace) -> int:
    """Sweeps seeds: a line for each failure, totals at the end."""
    until = total = None
    seeds: Iterable[int]
    if options.minutes is not None:
        first = options.first or time.time_ns() // 1_000_000
        until = time.monotonic() + options.minutes * 60
        seeds = iter(range(first, first + 10**9))
        console.print(f"seeds from {first} on, for {options.minutes:g} minutes")
    else:
        chosen = seeds_of(options.seeds)
        seeds, total = chosen, len(chosen)
    totals = Totals()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("MQTT", total=total, text="")
        for result in sweep(seeds, jobs=options.jobs, until=until, work=one):
            totals.add(result.totals)
            if result.wrong:
                lines = result.wrong.strip().splitlines()
                shown = lines[0] if lines[0].startswith("Broken") else lines[-1]
                console.print(f"seed {result.seed}: {shown[:400]}", soft_wrap=True, markup=False)
            progress.update(task, advance=1, text=f"{totals.failed} failed")
            if totals.seeds % EVERY == 0 and not console.is_terminal:
                console.print(text(totals), soft_wrap=True)
    wall = time.monotonic() - began
    if options.json:
        sys.stdout.write(json.dumps(msgspec.to_builtins(totals) | {"wall_s": round(wall, 1)}) + "\n")
    console.print(f"{text(totals)}; {wall:,.0f} s", soft_wrap=True)
    if totals.failed:
        console.print("look at one with: python -m headrace.sim.mqtt --seed N")
    return int(totals.failed > 0)


def text(t: Totals) -> str:
    return (
        f"{t.seeds:,} clusters, {t.failed:,} failed; {t.deaths:,} deaths, {t.cuts:,} cuts, {t.pauses:,} pauses, {t.outages:,} outages of all etcd,"
        f" {t.owners:,} changes of owners; {t.published:,} messages, {t.confirmed:,} acknowledged, {t.taken:,} deliveries, {t.resumed:,} sessions"
        f" resumed, {t.takeovers:,} taken over, {t.wills:,} wills, {t.unsure:,} that might come twice; {t.virtual_s:,.0f} virtual s,"
        f" {t.real_s:,.0f} s of a core"
    )


if __name__ == "__main__":
    sys.exit(main())
