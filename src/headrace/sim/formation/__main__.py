"""The formation of clusters, tried: ``python -m headrace.sim.formation``.

    python -m headrace.sim.formation --programs 0-10000      # random programs against the naive model
    python -m headrace.sim.formation --program 17            # one of them, every step told
    python -m headrace.sim.formation --scenarios 10 --restarts
    python -m headrace.sim.formation --mutants               # is every known bug noticed?

A line a failure, then the totals. The exit code is 1 if something was broken, or a mutant was not noticed.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from headrace.sim.formation.mutants import MUTANTS, hunt
from headrace.sim.formation.programs import run_program
from headrace.sim.formation.run import Result, run_scenario
from headrace.sim.formation.scenarios import SCENARIOS
from headrace.sim.mutants.planting import Mutant

SHOWN_MAX = 20
Scene = tuple[str, int, int]
"""A scenario, its seed, and the step at which somebody is restarted (0 = none is)."""
T = TypeVar("T")
R = TypeVar("R")


class Work:
    """Things done by several processes, with a progress bar where somebody looks."""

    def __init__(self, cores: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._cores = cores

    def each(self, what: str, do: Callable[[T], R], todo: Iterable[T], count: int, *, chunk: int = 1) -> Iterator[R]:
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        with multiprocessing.Pool(self._cores) as pool, bar as progress:
            task = progress.add_task(what, total=count)
            for outcome in pool.imap_unordered(do, todo, chunksize=chunk):
                progress.advance(task)
                yield outcome


def _programs(work: Work, first: int, end: int) -> int:
    broken = steps = clusters = asides = surprises = count = events = 0
    seconds = 0.0
    for outcome in work.each("programs", run_program, range(first, end), end - first, chunk=10):
        count += 1
        steps += outcome.steps
        clusters += outcome.clusters
        asides += outcome.asides
        surprises += outcome.surprises
        events += outcome.events
        seconds += outcome.seconds
        if outcome.invariant:
            broken += 1
            if broken <= SHOWN_MAX:
                work.console.print(f"program {outcome.seed}: {outcome.text}")
    work.console.print(
        f"{count:,} programs, {broken} broken; {steps:,} steps, {surprises:,} came to rest otherwise than said before; {clusters:,} clusters, "
        f"{asides:,} directories set aside, {events:,} events, {seconds:,.0f} s of one core"
    )
    return bool(broken)


def _played(scene: Scene) -> tuple[Scene, Result]:
    name, seed, at = scene
    return scene, run_scenario(name, seed, restart_at=at)


def _scenarios(work: Work, seeds: int, *, restarts: bool) -> int:
    todo = [(name, seed, 0) for name in SCENARIOS for seed in range(seeds)]
    if restarts:
        for name in SCENARIOS:
            todo += [(name, k % max(1, seeds), k) for k in range(1, run_scenario(name, 0).steps + 1)]
    broken = 0
    for (name, seed, at), result in work.each("scenarios", _played, todo, len(todo)):
        if result.invariant:
            broken += 1
            work.console.print(f"{name} seed {seed} restart at {at}: {result.text}")
    work.console.print(f"{len(todo):,} runs of {len(SCENARIOS)} scenarios, {broken} broken")
    return bool(broken)


def _hunted(name: str) -> tuple[Mutant, int, str]:
    mutant = next(m for m in MUTANTS if m.name == name)
    return mutant, *hunt(mutant)


def _mutants(work: Work) -> int:
    free = 0
    for mutant, runs, seen in work.each("mutants", _hunted, [m.name for m in MUTANTS], len(MUTANTS)):
        free += not runs
        work.console.print(f"{mutant.name:36} {runs or 'NEVER':>6}  {seen}")
    work.console.print(f"{len(MUTANTS) - free} of {len(MUTANTS)} mutants noticed")
    return bool(free)


def _span(text: str) -> tuple[int, int]:
    first, _, end = text.partition("-")
    if not (first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A-B with A below B")
    return int(first), int(end)


def main() -> int:
    """See the module's head."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace.sim.formation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--programs", type=_span, metavar="A-B", help="random programs, A up to B, without B")
    which.add_argument("--program", type=int, metavar="N", help="one of them, every step told")
    which.add_argument("--scenarios", type=int, metavar="N", help="every scenario in N weathers")
    which.add_argument("--mutants", action="store_true", help="plant known bugs and see that each is noticed")
    parser.add_argument("--restarts", action="store_true", help="scenarios also with somebody restarted at every record and step")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="processes (default: as many as cores)")
    asked = parser.parse_args()
    work = Work(asked.cores)
    if asked.program is not None:
        trace: list[str] = []
        outcome = run_program(asked.program, trace=trace)
        print("\n".join(trace))
        print(outcome.invariant or "sound", outcome.text)
        return bool(outcome.invariant)
    if asked.mutants:
        return _mutants(work)
    if asked.programs:
        return _programs(work, *asked.programs)
    return _scenarios(work, asked.scenarios, restarts=asked.restarts)


if __name__ == "__main__":
    sys.exit(main())
