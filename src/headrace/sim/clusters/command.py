"""The command of a kind of simulated clusters: one seed in full, or sweeps of many on all cores with progress.

Owns its options and what is printed. What a seed is, and what adds up, the kind says.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from headrace.sim.clusters.run import Run
from headrace.sim.clusters.sweep import Result, carried_out, sweep
from headrace.sim.sweep import seeds_of

EVERY: Final = 500
"""Where there is no progress bar, the totals are told after so many seeds."""


class Kind(NamedTuple):
    """What is swept. ``work`` runs a seed in any process; ``totals`` are its kind of totals, which ``text`` and, in a few words, ``brief`` tell."""

    module: str
    about: str | None
    label: str
    run: type[Run]
    totals: Callable[[], Any]
    work: Callable[[int], Result]
    text: Callable[[Any], str]
    brief: Callable[[Any], str]


def command(kind: Kind, argv: list[str] | None) -> int:
    """Carries it out; 1 if a promise was broken."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m {kind.module}", description=kind.about, formatter_class=plain)
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
    return _many(kind, console, options) if options.seed is None else _alone(kind, console, options.seed, options.rows)


def _alone(kind: Kind, console: Console, seed: int, rows: int) -> int:
    made: list[Run] = []

    def make(seed: int) -> Run:
        made.append(kind.run(seed, rows_max=rows))
        return made[0]

    result = carried_out(make, seed)
    if rows and made:
        for row in made[0].world.trace.rows:
            console.print(f"{row.at:10.6f} {row.machine:<12} {row.what:<12} {row.text}", soft_wrap=True, markup=False)
    console.print(result.wrong or "every promise was kept", soft_wrap=True, markup=False)
    console.print(kind.text(made[0].totals if made else kind.totals()), soft_wrap=True)
    return int(bool(result.wrong))


def _many(kind: Kind, console: Console, options: argparse.Namespace) -> int:
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
    totals = kind.totals()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(kind.label, total=total, text="")
        for result in sweep(seeds, jobs=options.jobs, until=until, work=kind.work):
            totals.add(result.totals)
            if result.wrong:
                lines = result.wrong.strip().splitlines()
                shown = lines[0] if lines[0].startswith("Broken") else lines[-1]
                console.print(f"seed {result.seed}: {shown[:400]}", soft_wrap=True, markup=False)
            progress.update(task, advance=1, text=kind.brief(totals))
            if totals.seeds % EVERY == 0 and not console.is_terminal:
                console.print(kind.text(totals), soft_wrap=True)
    wall = time.monotonic() - began
    if options.json:
        rate = totals.seeds / totals.real_s if totals.real_s else 0.0
        sys.stdout.write(json.dumps(msgspec.to_builtins(totals) | {"wall_s": round(wall, 1), "seeds_a_second": round(rate, 2)}) + "\n")
    console.print(f"{kind.text(totals)}; {wall:,.0f} s", soft_wrap=True)
    if totals.failed:
        console.print(f"look at one with: python -m {kind.module} --seed N")
    return int(totals.failed > 0)
