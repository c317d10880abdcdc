"""python -m bench: targets take turns over rounds, medians go to docs/performance.md."""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from bench import machine, measure, table
from bench.mqtt_peers import mqtt_targets
from bench.rows import ROWS, Row
from bench.targets import ROOT, Absent, Target, all_targets

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="TARGET", help="targets (default: all that are installed)")
    rows_help = f"rows, or what several begin with (default: all): {', '.join(row.key for row in ROWS)}"
    parser.add_argument("--row", action="append", default=[], metavar="KEY", help=rows_help)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a smoke run: proves that everything runs, measures nothing")
    parser.add_argument("--dry", action="store_true", help="print the table, leave docs/performance.md alone")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where every run's figures are kept")
    parser.add_argument("--table", metavar="FILE", help="only the table of an earlier run's results")
    options = parser.parse_args()
    if options.table:
        kept = [json.loads(line) for line in Path(options.table).read_text().splitlines()]
        print("\n".join(table.tables(kept[1:], kept[0]["head"]).values()))
        return 0
    sizes = {"secs": "2", "warm": "0.5", "backlog": "200000", "records": "1000000", "clients": "5000", "filters": "1000"}
    if options.tiny:
        sizes = {"secs": "0.2", "warm": "0.1", "backlog": "2000", "records": "10000", "clients": "100", "filters": "10"}
    rows = [row for row in ROWS if not options.row or any(row.key == key or row.key.startswith(f"{key}-") for key in options.row)]
    if not shutil.which("gcc"):
        print("  the rows of MQTT are left out: their load generator needs gcc", flush=True)
        rows = [row for row in rows if not row.mqtt]
    targets = {name: target for name, target in (all_targets() | mqtt_targets()).items() if not options.only or name in options.only}
    measure.prepare()
    results = run(rows, targets, sizes, options.rounds)
    p50, p99 = machine.sync_ms(ROOT)
    command = "make bench" + (f' ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else "")
    head = (
        f"{time.strftime('%Y-%m-%d')}, {machine.description()}; a lone synced write on this disk: p50 {p50:.2f} ms, p99 {p99:.2f} ms;"
        f" medians of {options.rounds} interleaved rounds; `{command}`"
    )
    options.results.mkdir(exist_ok=True)
    kept_in = options.results / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    kept_in.write_text("".join(json.dumps(r) + "\n" for r in [{"head": head}, *results]))
    for (begin, end), text in table.tables(results, head).items():
        print(f"\n{text}")
        if not options.dry and not options.tiny:
            table.insert(HERE.parent / "docs" / "performance.md", text, begin, end)
    return 1 if any("error" in r for r in results if r["target"] == "headrace") else 0


def run(rows: list[Row], targets: dict[str, Target], sizes: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    """All rows on all targets; a different target goes first in each round."""
    results: list[dict[str, Any]] = []
    absent: set[str] = set()
    for number in range(1, rounds + 1):
        order = list(targets)
        order = order[(number - 1) % len(order) :] + order[: (number - 1) % len(order)]
        for name in order:
            mine = [row for row in rows if name in row.targets]
            if name in absent or not mine:
                continue
            target = targets[name]
            try:
                for row in mine:
                    if target.process is None:
                        target.start()
                    label = f"b{os.getpid()}r{number}{row.key.replace('-', '')}"
                    figures = measure.one(row, target, sizes, label)
                    results.append({"row": row.key, "target": name, "round": number} | figures)
                    shown = figures.get("error") or f"{figures['rate']:>12,.0f}/s  {figures.get('latency', {}).get('p50_us', 0) / 1e3:.2f} ms"
                    print(f"  round {number}  {name:15} {row.title:52} {shown}", flush=True)
                    if target.kind != "amqp" or row.memory:  # RabbitMQ starts slowly: once a round
                        target.stop()
            except Absent as missing:
                absent.add(name)
                print(f"  {name} is left out: no {missing}", flush=True)
            except RuntimeError as failed:
                results.append({"row": mine[0].key, "target": name, "round": number, "error": str(failed)})
                print(f"  {failed}", flush=True)
            finally:
                target.stop()
                target.remove()
    return results


if __name__ == "__main__":
    sys.exit(main())
