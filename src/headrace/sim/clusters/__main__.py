"""python -m headrace.sim.clusters: whole clusters of three and five brokers under all faults, one by one or many on all cores.

    python -m headrace.sim.clusters --seed 17                  # one; what was wrong in full
    python -m headrace.sim.clusters --seeds 0-19999 --jobs 2   # a line for each failure, totals at the end
    python -m headrace.sim.clusters --minutes 5                # seeds nobody has seen yet

The exit code is 1 if a promise was broken.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from headrace.sim.clusters.run import Run, Totals
from headrace.sim.clusters.sweep import Result, one, sweep
from headrace.sim.sweep import seeds_of


def main(argv: list[str] | None = None) -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m headrace.sim.clusters", description=__doc__, formatter_class=plain)
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
    if not rows:
        result = one(seed)
        console.print(result.wrong or "every promise was kept", soft_wrap=True)
        console.print(_text(result.totals), soft_wrap=True)
        return int(bool(result.wrong))
    run, wrong = Run(seed, rows_max=rows), ""
    try:
        run.go()
    except Exception as e:
        wrong = f"{type(e).__name__}: {e}"
    for row in run.world.trace.rows:
        console.print(str(row), soft_wrap=True, markup=False)
    console.print(wrong or "every promise was kept", soft_wrap=True)
    return int(bool(wrong))


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
        task = progress.add_task("clusters", total=total, text="")
        for result in sweep(seeds, jobs=options.jobs, until=until):
            totals.add(result.totals)
            _told(console, result)
            text = f"{totals.failed} failed, {totals.changed} with changes of members, {_rate(totals):.1f} seeds/s a core"
            progress.update(task, advance=1, text=text)
            if totals.seeds % 500 == 0 and not console.is_terminal:
                console.print(_text(totals), soft_wrap=True)
    wall = time.monotonic() - began
    if options.json:
        figures = msgspec.to_builtins(totals) | {"wall_s": round(wall, 1), "seeds_a_second": round(_rate(totals), 2)}
        sys.stdout.write(json.dumps(figures) + "\n")
    console.print(f"{_text(totals)}; {wall:,.0f} s", soft_wrap=True)
    if totals.failed:
        console.print("look at one with: python -m headrace.sim.clusters --seed N")
    return int(totals.failed > 0)


def _told(console: Console, result: Result) -> None:
    if result.wrong:
        lines = result.wrong.strip().splitlines()
        console.print(f"seed {result.seed}: {(lines[0] if lines[0].startswith('Broken') else lines[-1])[:400]}", soft_wrap=True, markup=False)


def _rate(totals: Totals) -> float:
    return totals.seeds / totals.real_s if totals.real_s else 0.0


def _text(t: Totals) -> str:
    return (
        f"{t.seeds:,} clusters, {t.failed:,} failed; {t.changed:,} saw members change ({t.isr:,} changes of an isr, {t.members:,} of copies,"
        f" {t.owners:,} of owners, {t.joined:,} brokers added, {t.left:,} taken away); {t.deaths:,} deaths, {t.cuts:,} cuts, {t.pauses:,} pauses,"
        f" {t.damaged:,} disks damaged, {t.disks:,} full or with a failed sync, {t.outages:,} outages of the coordinator,"
        f" {t.absent:,} brokers away from a deletion, {t.acts:,} acts, {t.nights:,} nights;"
        f" {t.confirmed:,} confirmed, {t.acked:,} acked, {t.read:,} read; {t.steps:,} events, {t.steps / t.real_s if t.real_s else 0.0:,.0f}"
        f" a second and core, {_rate(t):.1f} clusters a second and core; {t.virtual_s / 3600:,.1f} virtual hours"
    )


if __name__ == "__main__":
    sys.exit(main())
