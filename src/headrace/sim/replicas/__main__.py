"""``python -m headrace.sim.replicas --seeds A-B`` or ``--seed N`` (with its trace) or ``--mutants``."""

import argparse
import multiprocessing
import sys

from headrace.sim.replicas.mutants import REPLICATION, hunt
from headrace.sim.replicas.run import Result, run


def main() -> int:
    """Prints a line a failure and the totals; exit code 1 if something was broken."""
    parser = argparse.ArgumentParser(prog="python -m headrace.sim.replicas")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", default="0-1000", metavar="A-B")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--mutants", action="store_true")
    asked = parser.parse_args()
    if asked.mutants:
        with multiprocessing.Pool(asked.cores) as pool:
            missed = 0
            for caught in pool.imap_unordered(hunt, REPLICATION):
                missed += caught.seed < 0
                told = f"seed {caught.seed}, {caught.seeds} seeds, {caught.invariant}" if caught.seed >= 0 else f"NOT CAUGHT in {caught.seeds} seeds"
                print(f"{caught.name}: {told}, {caught.seconds:.0f} s", flush=True)
            print(f"{len(REPLICATION)} mutants, {missed} not caught")
        return bool(missed)
    if asked.seed is not None:
        trace: list[str] = []
        result = run(asked.seed, trace=trace)
        print("\n".join(trace))
        print(result.invariant or "sound", result.text)
        return bool(result.invariant)
    first, _, end = asked.seeds.partition("-")
    results: list[Result] = []
    broken = 0
    with multiprocessing.Pool(asked.cores) as pool:
        for result in pool.imap_unordered(run, range(int(first), int(end)), chunksize=50):
            results.append(result)
            if result.invariant:
                broken += 1
                if broken <= 20:
                    print(f"seed {result.seed}: {result.text}")
    seconds = sum(r.seconds for r in results)
    print(
        f"{len(results)} seeds, {broken} broken; {sum(r.events for r in results)} events, {sum(r.committed for r in results)} entries committed, "
        f"{sum(r.confirmed for r in results)} confirms, {sum(r.swaps for r in results)} compare-and-swaps, "
        f"{sum(r.takeovers for r in results)} takeovers, {seconds:.0f} s of one core"
    )
    return bool(broken)


sys.exit(main())
