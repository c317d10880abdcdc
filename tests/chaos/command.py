"""Carries out a run of faults in a cluster from the command line, and writes down what came of it.

Owns the arguments, the folder and what the brokers are set to. What is run is in ``cluster`` and ``mqtt``.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.chaos import kill
from tests.chaos.history import Broken
from tests.chaos.machines import Cluster, why_no_network

if TYPE_CHECKING:
    from tests.chaos.cluster import Run

QUOTA_BYTES: Final = 768 * 1024 * 1024
SETTINGS: Final = tuple(f"{name}={value}" for name, value in kill.TIGHT.items())
BAR: Final = 30


def run(
    kind: "type[Run]",
    faults: int,
    *,
    seed: int,
    folder: Path,
    per_s: float = 0,
    minutes: float = 0,
    only: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """A whole run; totals, or ``Broken``. Without root there are no cuts and no full disks."""

    async def whole() -> dict[str, Any]:
        able = not why_no_network()
        cluster = Cluster(folder, networks=able, quota_bytes=QUOTA_BYTES if able else 0, settings=(*SETTINGS, *kind.settings), mqtt=kind.speaks_mqtt)
        try:
            rate = per_s or kind.per_s
            played = kind(cluster, seed=seed, faults=faults, per_s=rate, only=only, tell=tell, timeline=folder / "timeline.jsonl")
            played.minutes = minutes
            return await played.play()
        finally:
            await cluster.close()

    return asyncio.run(whole())


def write(document: Path, totals: dict[str, Any], kind: "type[Run]") -> None:
    """Puts the totals between their marks."""
    begin, end = kind.marks
    before, _, rest = document.read_text().partition(begin)
    _, _, after = rest.partition(end)
    lines = [
        f"{time.strftime('%Y-%m-%d')}, `{kind.command} FAULTS={totals['faults']}` (seed {totals['seed']}, {totals['seconds'] / 60:.0f} minutes): "
        f"**{totals['faults']} faults, {totals['confirmed']:,} confirms, 0 lost**.",
        "",
        "| | |",
        "|---|--:|",
        *(f"| {key.replace('_', ' ')} | {totals[key]:,} |" for key in kind.shown),
        f"| all partitions confirm again after a fault, s: p50, max | {totals['recovered_s_p50']}, {totals['recovered_s_max']} |",
        f"| most memory of a broker, MiB | {totals['memory_mib_max']} |",
        "",
        "Faults: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in totals["by_kind"].items()) + ".",
        "",
        "| longest wait of a partition for a confirm, from before the fault until all confirm again, s | p50 | max |",
        "|---|--:|--:|",
        *(f"| {name.replace('_', ' ')} | {middle} | {most} |" for name, (middle, most) in totals["gaps_s"].items()),
    ]
    document.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")


def main(kind: "type[Run]", description: str | None) -> int:
    """``python -m`` of the module that ``kind`` is of."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    logging.getLogger("headrace.client").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(prog=f"python -m {kind.program}", description=description)
    parser.add_argument("--faults", type=int, default=kind.faults)
    parser.add_argument("--minutes", type=float, default=0, help="no fault begins after so long")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--rate", type=float, default=kind.per_s, help="messages a second, of all partitions together")
    parser.add_argument("--only", default="", help="these kinds of faults, separated by commas")
    parser.add_argument("--json", action="store_true", help="totals, or what was broken, as one line on standard output")
    parser.add_argument("--keep", type=Path, help="keep logs and timeline in this folder")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="headrace-cluster-", dir=os.environ.get("HEADRACE_CHAOS_DIR")))
    folder.mkdir(parents=True, exist_ok=True)

    def tell(text: str) -> None:
        number = int(text.split("/", 1)[0])
        filled = BAR * number // max(1, options.faults)
        end = "\r" if sys.stderr.isatty() else "\n"
        print(f"[{'#' * filled}{'.' * (BAR - filled)}] {text}".ljust(90), end=end, file=sys.stderr, flush=True)

    try:
        only = [name for name in options.only.split(",") if name]
        made = run(
            kind, options.faults, seed=options.seed, folder=folder, per_s=options.rate, minutes=options.minutes, only=only, tell=tell
        )  # fmt: skip
        totals = {"seed": options.seed, **made}
    except Broken as broken:
        print(f"\nseed {options.seed}: {broken}", file=sys.stderr)
        if options.json:
            print(json.dumps({"seed": options.seed, "broken": str(broken)}))
        return 1
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(totals) if options.json else "\n" + "\n".join(f"{key}: {value}" for key, value in totals.items()))
    if options.write:
        write(options.write, totals, kind)
    return 0
