"""What commands print: JSON for programs, tables and sentences for people."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from headrace.config.units import bytes_text
from headrace.wire.shown import shown

PIPE_WIDTH: Final = 240
"""Columns of a table that goes into a pipe or a file, where nothing says how wide it may be."""


def emit(value: Any, as_json: bool, text: Callable[[], None]) -> None:
    """Prints ``value`` as JSON, or lets ``text`` print it for people."""
    if as_json:
        print(json.dumps(shown(value), ensure_ascii=False))
    else:
        text()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, none: str = "nothing") -> None:
    """A table; columns whose name begins with ``>`` are numbers, to the right. ``none`` is said where there are no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = list(rows)
    if not lines:
        print(none)
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for line in lines:
        grid.add_row(*(Text(cell) for cell in line))
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH, color_system=None)
    console.print(grid)


def count(n: int) -> str:
    """A number with its thousands apart."""
    return f"{n:,}"


def rate(n: float) -> str:
    """Something per second."""
    return f"{n:,.0f}" if n >= 10 or n == 0 else f"{n:.1f}"


def size(n: int) -> str:
    """Bytes to three digits."""
    value, unit = float(n), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{n} B" if unit == "B" else f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def span(ms: int) -> str:
    """A time span to one unit."""
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if ms >= 2 * length or (unit == "s" and ms >= length):
            return f"{ms // length} {unit}"
    return f"{ms} ms"


def readable(raw: bytes | None, most: int = 200) -> str:
    """Bytes as text where they are text, else as hexadecimal digits; at most ``most`` characters."""
    if raw is None:
        return "null"
    try:
        text = raw.decode()
        text = text if text.isprintable() else json.dumps(text, ensure_ascii=False)
    except UnicodeDecodeError:
        text = "0x" + raw[: most // 2].hex()
    return text if len(text) <= most else f"{text[:most]}... ({bytes_text(len(raw))})"


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Asks a person before something is lost; programs (no terminal, ``--json``, ``--yes``) are not asked."""
    import typer

    if not (yes or as_json) and sys.stdin.isatty() and sys.stdout.isatty():
        typer.confirm(question, abort=True)
