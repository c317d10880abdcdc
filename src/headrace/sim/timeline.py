"""Shows a run to a person: what it was, what happened in order, and which promise was broken."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from headrace.sim.run import Result
from headrace.sim.scenario import Scenario
from headrace.sim.trace import Row

QUIET = frozenset({
    "arrives", "end", "pwritev_durable", "pwrite", "fsync", "fsync_dir", "create", "rename", "unlink", "truncate", "preallocate", "commit",
})  # fmt: skip
"""What happens all the time; shown when asked for."""
STYLES = {
    "is killed": "red", "loses its power": "red", "cannot start": "red", "verdict": "bold red", "cut": "yellow", "heal": "yellow",
    "stands still": "yellow",
    "serves": "green", "logs": "dim",
}  # fmt: skip


def show(console: Console, scenario: Scenario, result: Result, rows: Sequence[Row], *, last: int = 0, everything: bool = False) -> None:
    """Prints it."""
    faults = ", ".join(f"{fault.kind} at {fault.at:g}" for fault in scenario.faults) or "none"
    console.print(f"seed {scenario.seed}; faults: {faults}")
    shown = [row for row in rows if everything or row.what not in QUIET]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("seconds", justify="right")
    table.add_column("machine")
    table.add_column("what")
    table.add_column("", overflow="fold")
    for row in shown[-last:] if last else shown:
        table.add_row(f"{row.at:.6f}", row.machine, row.what, row.text, style=STYLES.get(row.machine) or STYLES.get(row.what))
    console.print(table)
    for violation in result.violations:
        console.print(f"[bold red]{violation.invariant}[/] {violation.text}", soft_wrap=True)
    verdict = "[green]every promise was kept[/]" if result.ok else f"[red]{len(result.violations)} violations[/]"
    console.print(
        f"{verdict}; {result.messages:,} messages, {result.faults} faults, {result.events:,} events, {result.effects:,} effects in"
        f" {result.virtual_s:.3f} virtual and {result.real_s:.2f} real seconds; trace {result.digest}"
    )
