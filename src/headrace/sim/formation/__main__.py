"""``python -m headrace.sim.formation``: ``--programs A-B``, ``--scenarios N``, ``--restarts``, ``--program SEED`` (traced) or ``--mutants``."""

import argparse
import multiprocessing
import sys

from headrace.sim.formation.mutants import MUTANTS, hunt
from headrace.sim.formation.programs import run_program
from headrace.sim.formation.run import run_scenario
from headrace.sim.formation.scenarios import SCENARIOS


def _programs(asked: argparse.Namespace) -> int:
    first, _, end = asked.programs.partition("-")
    broken = steps = clusters = asides = surprises = count = events = 0
    seconds = 0.0
    with multiprocessing.Pool(asked.cores) as pool:
        for outcome in pool.imap_unordered(run_program, range(int(first), int(end)), chunksize=10):
            count += 1
            steps += outcome.steps
            clusters += outcome.clusters
            asides += outcome.asides
            surprises += outcome.surprises
            events += outcome.events
            seconds += outcome.seconds
            if outcome.invariant:
                broken += 1
                if broken <= 20:
                    print(f"program {outcome.seed}: {outcome.text}", flush=True)
    print(
        f"{count} programs, {broken} broken; {steps} steps, {surprises} came to rest otherwise than said before; {clusters} clusters, "
        f"{asides} directories set aside, {events} events, {seconds:.0f} s of one core"
    )
    return bool(broken)


def _scenarios(seeds: int, *, restarts: bool) -> int:
    broken = runs = 0
    for name in SCENARIOS:
        todo = [(seed, 0) for seed in range(seeds)]
        if restarts:
            todo += [(k % max(1, seeds), k) for k in range(1, run_scenario(name, 0).steps + 1)]
        for seed, at in todo:
            runs += 1
            result = run_scenario(name, seed, restart_at=at)
            if result.invariant:
                broken += 1
                print(f"{name} seed {seed} restart at {at}: {result.text}", flush=True)
    print(f"{runs} runs of {len(SCENARIOS)} scenarios, {broken} broken")
    return bool(broken)


def _mutants() -> int:
    free = 0
    for mutant in MUTANTS:
        runs, seen = hunt(mutant)
        free += not runs
        print(f"{mutant.name:36} {runs or 'NEVER':>6}  {seen}", flush=True)
    return bool(free)


def main() -> int:
    """Prints a line a failure and the totals; exit code 1 if something was broken, or a mutant was not noticed."""
    parser = argparse.ArgumentParser(prog="python -m headrace.sim.formation")
    parser.add_argument("--programs", metavar="A-B")
    parser.add_argument("--program", type=int)
    parser.add_argument("--scenarios", type=int)
    parser.add_argument("--restarts", action="store_true")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--cores", type=int, default=1)
    asked = parser.parse_args()
    if asked.program is not None:
        trace: list[str] = []
        outcome = run_program(asked.program, trace=trace)
        print("\n".join(trace))
        print(outcome.invariant or "sound", outcome.text)
        return bool(outcome.invariant)
    if asked.mutants:
        return _mutants()
    if asked.programs:
        return _programs(asked)
    return _scenarios(asked.scenarios or 10, restarts=asked.restarts)


if __name__ == "__main__":
    sys.exit(main())
