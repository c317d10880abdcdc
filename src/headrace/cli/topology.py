"""``headrace topology``: the whole cluster as any of its brokers shows it, what needs attention first."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headrace.cli.asking import Asker
from headrace.cli.options import DEFAULT_URL, AsJson, Url
from headrace.cli.output import PIPE_WIDTH, count, span
from headrace.model.errors import HeadraceError, NotFound
from headrace.wire import control
from headrace.wire.shown import shown

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from headrace.wire.topology import FollowerRow, PartitionRow

EVERY_S: Final = 1.0
GOOD, POOR, BAD, DIM = "green", "yellow", "bold red", "dim"
COLOURS: Final = {
    "alive": GOOD, "serving": GOOD, "idle": DIM, "suspect": POOR, "waiting": POOR, "moving": POOR, "starting": POOR, "below_floor": POOR,
}  # fmt: skip
"""Of a state; of every other one ``BAD``."""


def topology(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this queue or stream.")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second until Ctrl-C.")] = False,
    url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """The whole cluster: brokers, owners, followers, copies in sync, epochs, lag, and what needs attention."""
    if not watch:
        _print(_ask(url, name), as_json=as_json)
        return
    with suppress(KeyboardInterrupt):
        _watch(url, name, as_json=as_json)


def _ask(url: str, name: str) -> control.ClusterTopologyInfo:
    with Asker(url) as asker:
        pages = list(_pages(asker, name))
    whole = pages[0]
    partitions = tuple(row for page in pages for row in page.partitions)
    if name and not partitions:
        raise NotFound(f"there is no queue or stream {name!r}", hint="headrace queue list, headrace stream list")
    attention = tuple(dict.fromkeys(line for page in pages for line in page.attention))
    unanswered = {id: why for page in pages for id, why in page.unanswered.items()}
    fields = {f: getattr(whole, f) for f in whole.__struct_fields__}
    return control.ClusterTopologyInfo(**{**fields, "partitions": partitions, "attention": attention, "unanswered": unanswered, "more": False})


def _pages(asker: Asker, name: str) -> Iterator[control.ClusterTopologyInfo]:
    after = ""
    while True:
        page = asker.ask(control.ClusterTopology(names=(name,) if name else (), after=after), control.ClusterTopologyInfo)
        yield page
        if not page.more or not page.partitions:
            return
        after = page.partitions[-1].name


def _print(now: control.ClusterTopologyInfo, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(shown(now), ensure_ascii=False), flush=True)
        return
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH, color_system=None)
    console.print(picture(now))


def _watch(url: str, name: str, *, as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        while True:
            _print(_ask(url, name), as_json=as_json)
            time.sleep(EVERY_S)
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=True) as live:
        while True:
            try:
                live.update(picture(_ask(url, name)), refresh=True)
            except NotFound:
                raise
            except HeadraceError as e:  # the broker that is asked may come back
                live.update(Text(f"{e}; trying again every second", style=BAD), refresh=True)
            time.sleep(EVERY_S)


def picture(now: control.ClusterTopologyInfo) -> RenderableType:
    """What a person sees."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names = {b.id: b.name for b in now.brokers if b.id}

    def named(id: str) -> str:
        return names.get(id, id)

    parts: list[RenderableType] = []
    if now.attention:
        parts += [Text("needs attention", style=BAD), *(Text(f"  ! {line}", style=POOR) for line in now.attention), Text()]
    brokers = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("BROKER", "STATE", "ROLE", "RACK", "CLIENTS", "ADMIN", "LIFE"):
        brokers.add_column(column, overflow="fold")
    for column in ("FOR", "OWNS", "COPIES"):
        brokers.add_column(column, justify="right")
    for b in now.brokers:
        roles = [*(["controller"] if b.controller else []), "voter" if b.voter else "observer", *(["draining"] if b.draining else [])]
        brokers.add_row(
            Text(f"{b.name}{' *' if b.id and b.id == now.broker else ''}"), Text(b.state, style=_colour(b.state)), Text(", ".join(roles)),
            Text(b.rack), Text(b.addresses.get("native", "")), Text(b.addresses.get("admin", "")), Text(b.incarnation[:8]), Text(span(b.for_ms)),
            Text(count(b.owns)), Text(count(b.copies)),
        )  # fmt: skip
    parts.append(brokers)
    facts = f"* was asked, and is {now.state}; controller {named(now.controller) or 'nobody'}{f', term {now.term}' if now.term else ''}"
    parts += [Text(facts, style=DIM), Text()]
    if not now.partitions:
        return Group(*parts, Text("no queue and no stream"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("PARTITION", "STATE", "OWNER", "FOLLOWERS (LAG)", "IN SYNC"):
        table.add_column(column, overflow="fold")
    for column in ("EPOCH", "COMMITTED"):
        table.add_column(column, justify="right")
    table.add_column("WHY", overflow="fold")
    for row in sorted(now.partitions, key=lambda r: r.state in ("serving", "idle")):  # stable: in order within the two
        table.add_row(
            Text(f"{row.name}/{row.partition}"), Text(row.state.replace("_", " "), style=_colour(row.state)), Text(named(row.owner) or "nobody"),
            _followers(row, names), Text(f"{len(row.isr)} of {len(row.replicas)}" if row.isr else "-"), Text(count(row.epoch)),
            Text(_figure(row.high_watermark)), Text(_why(row, names)),
        )  # fmt: skip
    return Group(*parts, table)


def _colour(state: str) -> str:
    return COLOURS.get(state, BAD)


def _figure(n: int) -> str:
    return count(n) if n >= 0 else "?"


def _followers(row: PartitionRow, names: dict[str, str]) -> Text:
    from rich.text import Text

    def one(f: FollowerRow) -> Text:
        learns = ", learns" if f.broker in row.learners else ""
        return Text(f"{names.get(f.broker, f.broker)} ({_figure(f.lag)}{learns})", style="" if f.in_sync else POOR)

    return Text(", ").join(one(f) for f in row.followers) if row.followers else Text("-", style=DIM)


def _why(row: PartitionRow, names: dict[str, str]) -> str:
    waits = f" (waits for {', '.join(names.get(b, b) for b in row.waits_for)})" if row.waits_for else ""
    return row.why + waits
