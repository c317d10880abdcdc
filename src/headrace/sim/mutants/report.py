"""What a hunt came to, as a table on the screen and as a section of a document."""

import datetime
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from headrace.sim.mutants.hunting import Row

BEGIN: Final = "<!-- mutants: begin (written by `make mutants`) -->"
END: Final = "<!-- mutants: end -->"
NOBODY: Final = "**nobody**"


def table(rows: Sequence[Row]) -> Table:
    made = Table(title="Mutants", caption="* = by other promises than those it was written to break")
    for heading in ("mutant", "net", "caught by", "seeds", "seconds", "what is wrong"):
        made.add_column(heading, justify="right" if heading in ("seeds", "seconds") else "left")
    for row in rows:
        by = " ".join(row.caught_by) + ("" if row.expected else " *") if row.caught_by else "[red]nobody[/]"
        made.add_row(row.name, row.net, by, str(row.seeds), f"{row.seconds:.1f}", row.wrong)
    return made


def section(rows: Sequence[Row], *, day: str, commit: str, unclean: Sequence[int]) -> str:
    """Lines of Markdown: the totals, then a row for each. ``unclean``: seeds that broke a promise without any bug."""
    caught = [row for row in rows if row.caught_by]
    few = sorted(row.seeds for row in caught if row.net == "runs")
    lines = [f"{day}, at {commit}: **{len(caught)} of {len(rows)} mutants caught**."]
    if few:
        lines[0] += f" Of those that whole runs catch, half needed at most {few[len(few) // 2]} seeds, all at most {few[-1]}."
    if len(caught) < len(rows):
        lines[0] += f" Not caught: {', '.join(row.name for row in rows if not row.caught_by)}."
    if unclean:
        lines[0] += f" Seeds that broke a promise without any bug: {', '.join(map(str, unclean))}."
    lines += ["", "| mutant | what is wrong | caught by | seeds |", "|---|---|---|--:|"]
    for row in rows:
        net = "crash images" if row.net == "images" else " ".join(row.caught_by)
        lines.append(f"| {row.name} | {row.wrong} | {net if row.caught_by else NOBODY} | {row.seeds} |")
    return "\n".join(lines)


def write(document: Path, text: str) -> None:
    """Puts it between the marks of that document."""
    before, found, rest = document.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{document} has no marks {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def seeds_in(text: str) -> dict[str, int]:
    """By mutant, the seed that caught it when that document's section was written: the hunt begins with 1, so how many it took is which it was."""
    return {row[0]: int(row[3]) for row in _rows(text) if row[3].isdigit() and row[2] != NOBODY}


def missed_in(text: str) -> list[str]:
    """Those that were not caught then."""
    return [row[0] for row in _rows(text) if row[2] == NOBODY]


def _rows(text: str) -> list[list[str]]:
    _, _, rest = text.partition(BEGIN)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in rest.partition(END)[0].splitlines() if line.startswith("|")]
    return [row for row in rows if len(row) == 4]


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def commit() -> str:
    """Which version this is, if that can be found out."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return asked.stdout.strip() or "an unknown version"
