"""python -m headrace.sim.mutants: is every known bug noticed?

    python -m headrace.sim.mutants                          # all of them
    python -m headrace.sim.mutants --only confirm-before-sync cursor-not-journalled
    python -m headrace.sim.mutants --rotate 8               # some, others every day
    python -m headrace.sim.mutants --list

The exit code is 1 if one is not caught, or if a seed breaks a promise without any bug planted.
"""

import argparse
import datetime
import logging
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from headrace.sim.chance import Chance
from headrace.sim.mutants import MUTANTS, report
from headrace.sim.mutants.hunting import CLUSTERS_MAX, Hunt, Row, Seen
from headrace.sim.mutants.planting import Mutant


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.sim.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", metavar="NAME", choices=sorted(MUTANTS), help="these")
    which.add_argument("--rotate", type=int, metavar="K", help="K of them, chosen by the date")
    which.add_argument("--list", action="store_true", help="say what there is, run nothing")
    parser.add_argument("--rotate-seed", type=int, metavar="N", help="what --rotate chooses by instead of the date")
    parser.add_argument("--seeds-max", type=int, default=200, metavar="N", help="seeds of whole runs for each, at most (default: 200)")
    parser.add_argument("--images-max", type=int, default=14, metavar="N", help="seeds of crash images for each, at most (default: 14)")
    parser.add_argument("--clusters-max", type=int, default=CLUSTERS_MAX, metavar="N", help="seeds of whole clusters for each, at most (default: 60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: as many as cores)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks of this document")
    parser.add_argument("--json", action="store_true", help="the table as one JSON object")
    options = parser.parse_args(argv)
    logging.getLogger("headrace").addHandler(logging.NullHandler())  # what stores say of damage belongs to the runs
    chosen = choose(options.only, options.rotate, options.rotate_seed)
    console = Console(stderr=options.json, highlight=False)
    if options.list:
        for mutant in chosen:
            console.print(f"[bold]{mutant.name}[/] ({mutant.net}, {' '.join(mutant.notices)}): {mutant.wrong}", soft_wrap=True)
        return 0

    def told(row: Row) -> None:
        by = f"[green]{' '.join(row.caught_by)}[/] after {row.seeds}" if row.caught_by else f"[red]not caught[/] by {row.seeds}"
        console.print(f"{row.name}: {by} seeds, {row.seconds:.1f} s", soft_wrap=True)

    def unclean(seen: Seen) -> None:
        besides = f" (with {', '.join(seen.stir)} besides)" if seen.stir else ""
        console.print(f"[red]without any bug[/] seed {seen.seed}{besides} breaks {seen.invariant}: {seen.text[:200]}", soft_wrap=True)

    hunt = Hunt(
        chosen, seeds_max=options.seeds_max, images_max=options.images_max, clusters_max=options.clusters_max, jobs=options.jobs, told=told,
        unclean=unclean,
    )  # fmt: skip
    rows = hunt.run()
    missed = [row.name for row in rows if not row.caught_by]
    if options.json:
        figures: dict[str, Any] = {"mutants": len(rows), "caught": len(rows) - len(missed), "rows": rows, "unclean": hunt.unclean}
        sys.stdout.write(msgspec.json.encode(figures).decode() + "\n")
    console.print(report.table(rows))
    console.print(f"{len(rows) - len(missed)} of {len(rows)} mutants caught{'; not caught: ' if missed else ''}{', '.join(missed)}", soft_wrap=True)
    if options.write:
        besides = sorted({seen.seed for seen in hunt.unclean})
        report.write(options.write, report.section(rows, day=report.today(), commit=report.commit(), unclean=besides))
    return int(bool(missed or hunt.unclean))


def choose(only: list[str] | None, rotate: int | None, rotate_seed: int | None) -> list[Mutant]:
    """The mutants that were asked for."""
    if only:
        return [MUTANTS[name] for name in only]
    if rotate is None:
        return list(MUTANTS.values())
    seed = datetime.datetime.now(datetime.UTC).date().toordinal() if rotate_seed is None else rotate_seed
    names = Chance(seed, "rotation").sample(sorted(MUTANTS), min(rotate, len(MUTANTS)))
    return [MUTANTS[name] for name in names]


if __name__ == "__main__":
    sys.exit(main())
