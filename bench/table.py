"""Medians of all rounds as a Markdown table, and its place in docs/performance.md."""

import statistics
from pathlib import Path
from typing import Any

from bench.rows import ROWS

BEGIN, END = "<!-- bench: begin (written by `make bench`) -->", "<!-- bench: end -->"


def render(results: list[dict[str, Any]], head: str) -> str:
    """The table of results, each row's best target in bold."""
    lines = [
        head,
        "",
        "| work | target | messages/s | p50 ms | p99 ms | server cores | peak MiB | generator core | notes |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    top = max((r["speed"] for r in results if "speed" in r), default=1)
    for row in ROWS:
        mine = {t: [r for r in results if r["row"] == row.key and r["target"] == t] for t in row.targets}
        rates = {t: median(rs, "rate") for t, rs in mine.items()}
        best = max((v for v in rates.values() if v), default=0.0)
        title = row.title
        for target, runs in mine.items():
            if not runs:
                continue
            good = [r for r in runs if "error" not in r]
            if not good:
                lines.append(f"| {title} | {target} | failed |  |  |  |  |  | {runs[0]['error'][:100].replace('|', ' ')} |")
                title = ""
                continue
            rate = rates[target] or 0.0
            shown = f"{rate:,.0f}"
            shown = f"**{shown}**" if rate == best and len(rates) > 1 and not row.latency else shown
            use = f"{median(good, 'server_cores') or 0:.2f} | {median(good, 'peak_mib') or 0:,.0f} | {generator(good):.2f}"
            times = f"{latency(good, 'p50_us')} | {latency(good, 'p99_us')}"
            lines.append(f"| {title} | {target} | {shown} | {times} | {use} | {notes(good, len(runs), top)} |")
            title = ""
    return "\n".join(lines) + "\n"


def median(runs: list[dict[str, Any]], key: str) -> float | None:
    """Median of a figure over the runs that have it."""
    values = [r[key] for r in runs if isinstance(r.get(key), int | float)]
    return statistics.median(values) if values else None


def latency(runs: list[dict[str, Any]], key: str) -> str:
    """Median of a latency in milliseconds, or nothing."""
    values = [r["latency"][key] / 1e3 for r in runs if r.get("latency", {}).get(key)]
    return f"{statistics.median(values):.2f}" if values else ""


def generator(runs: list[dict[str, Any]]) -> float:
    """How much of a core the generator took: near 1.0 it is what was measured."""
    return float(statistics.median(r["generator_cpu"] / max(r.get("generator_wall") or r["secs"], 0.01) for r in runs))


def notes(runs: list[dict[str, Any]], rounds: int, top: int) -> str:
    """What a reader must know of these runs."""
    found = []
    for key in ("lost", "dup", "misorder", "refused", "gaps"):
        if value := median(runs, key):
            found.append(f"{key} {value:,.0f}")
    if len(runs) < rounds:
        found.append(f"{rounds - len(runs)} of {rounds} runs failed")
    if generator(runs) > 0.9:
        found.append("generator-bound")
    rates = [r["rate"] for r in runs]
    if min(rates) > 0 and max(rates) / min(rates) > 1.3:
        found.append(f"{min(rates):,.0f} to {max(rates):,.0f}")
    disturbed = sum(r.get("other_cores", 0) > 0.6 for r in runs)
    if disturbed:
        found.append(f"{disturbed} of {len(runs)} runs disturbed by other work")
    pace = (median(runs, "speed") or top) / top
    if pace < 0.85:
        found.append(f"machine at {pace:.0%}")
    if flood := median(runs, "flood_rate"):
        found.append(f"the flood itself: {flood:,.0f}/s")
    return ", ".join(found)


def insert(document: Path, text: str) -> None:
    """Puts the table between its marks in a document."""
    whole = document.read_text()
    before, _, rest = whole.partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{text}{END}{after}")
