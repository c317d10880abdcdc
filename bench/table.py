"""Medians of all rounds as a Markdown table, and its place in docs/performance.md."""

import statistics
from pathlib import Path
from typing import Any

from bench.rows import ROWS, Row

BEGIN, END = "<!-- bench: begin (written by `make bench`) -->", "<!-- bench: end -->"
MQTT_BEGIN, MQTT_END = "<!-- mqtt: begin (written by `make bench`) -->", "<!-- mqtt: end -->"


def tables(results: list[dict[str, Any]], head: str) -> dict[tuple[str, str], str]:
    """The table of queues and streams and that of MQTT, as far as there are results, by the marks of their places."""
    found = {}
    for mqtt, marks in ((False, (BEGIN, END)), (True, (MQTT_BEGIN, MQTT_END))):
        rows = [row for row in ROWS if row.mqtt is mqtt]
        mine = [r for r in results if r["row"] in {row.key for row in rows}]
        if mine:
            found[marks] = render(mine, head, rows)
    return found


def render(results: list[dict[str, Any]], head: str, rows: list[Row]) -> str:
    """A short table (rates, or latencies or memory where a row is judged by them), then one with everything."""
    details = f"<details><summary>Latencies, memory, CPU of every run</summary>\n\n{long(results, rows)}\n</details>\n"
    return f"{head}\n\n{short(results, rows)}\n{details}"


def short(results: list[dict[str, Any]], rows: list[Row]) -> str:
    """One line a row, one column a target, the best of each row in bold."""
    names = [t for t in dict.fromkeys(t for row in rows for t in row.targets) if any(r["target"] == t for r in results)]
    lines = ["| messages/s; where paced: p50 / p99 in ms | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for row in rows:
        good = {t: [r for r in results if r["row"] == row.key and r["target"] == t and "error" not in r] for t in names}
        if not any(good.values()):
            continue
        rates = {t: median(runs, "rate") or 0.0 for t, runs in good.items()}
        best = max(rates.values())
        cells = []
        for t, runs in good.items():
            if not runs:
                cells.append("")
            elif row.memory:
                cells.append(f"{median(runs, 'peak_mib') or 0:,.0f} MiB")
            elif row.latency:
                cells.append(f"{latency(runs, 'p50_us')} / {latency(runs, 'p99_us')}")
            else:
                cells.append(f"**{rates[t]:,.0f}**" if rates[t] == best and sum(map(bool, good.values())) > 1 else f"{rates[t]:,.0f}")
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def long(results: list[dict[str, Any]], rows: list[Row]) -> str:
    """Everything that was measured, as medians."""
    lines = [
        "| work | target | messages/s | p50 ms | p99 ms | server cores | peak MiB | generator core | notes |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    top = max((r["speed"] for r in results if "speed" in r), default=1)
    for row in rows:
        title = row.title
        for target in row.targets:
            runs = [r for r in results if r["row"] == row.key and r["target"] == target]
            good = [r for r in runs if "error" not in r]
            if not runs:
                continue
            if good:
                times = f"{latency(good, 'p50_us')} | {latency(good, 'p99_us')}"
                use = f"{median(good, 'server_cores') or 0:.2f} | {median(good, 'peak_mib') or 0:,.0f} | {generator(good):.2f}"
                lines.append(f"| {title} | {target} | {median(good, 'rate') or 0:,.0f} | {times} | {use} | {notes(good, len(runs), top)} |")
            else:
                lines.append(f"| {title} | {target} | failed |  |  |  |  |  | {runs[0]['error'][:100].replace('|', ' ')} |")
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


def insert(document: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Puts a table between its marks in a document."""
    before, _, rest = document.read_text().partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n{text}{end}{after}")
