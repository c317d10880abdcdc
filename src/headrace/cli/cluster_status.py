"""``headrace cluster status`` and ``members``: how one broker stands with its cluster, and whom it knows."""

import time
from typing import Annotated, Any

import typer

from headrace.cli.options import DEFAULT_ADMIN, Admin, AsJson
from headrace.cli.output import emit, size, span, table
from headrace.client.cluster_admin import ClusterAdmin
from headrace.wire.formation import Members


def status(
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0, help="Wait until it serves and nothing is left to do.")] = 0,
    admin: Admin = DEFAULT_ADMIN, as_json: AsJson = False,
) -> None:  # fmt: skip
    """What the broker is, what it waits for, on whom and since when; which steps are left. With --wait: exit code 75 if that takes longer."""
    asked = ClusterAdmin(admin)
    end = time.monotonic() + wait
    while True:
        now = asked.status()
        settled = now.get("code") == "serving" and bool(now.get("leader")) and not now.get("plan")
        if settled or time.monotonic() >= end:
            break
        time.sleep(min(0.25, max(0.0, end - time.monotonic())))
    emit(now, as_json, lambda: _show(now, asked.members()))
    if wait and not settled:
        raise typer.Exit(75)


def members(
    toml: Annotated[bool, typer.Option("--toml", help="Print the config as a file, to be edited and applied with a higher version.")] = False,
    admin: Admin = DEFAULT_ADMIN, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Who is declared and who was heard: role, vote, reachable since when, state."""
    found = ClusterAdmin(admin).members()
    if toml and not as_json:
        print(found.toml, end="")
        return
    emit(found, as_json, lambda: _members(found))


def _ago(since_wall_ms: int) -> str:
    return span(max(0, time.time_ns() // 1_000_000 - since_wall_ms)) if since_wall_ms else ""


def _show(now: dict[str, Any], known: Members) -> None:
    print(f"{now['name']} is {now['state']} for {_ago(now.get('since_wall_ms', 0)) or 'a moment'}: {now['reason']}")
    for waited in now.get("waits_for", ()):
        print(f"  waits for {waited['name']} for {_ago(waited['since_wall_ms'])}")
    quorum, committed, config = now.get("quorum"), now.get("committed"), now.get("config")
    if now.get("cluster_id"):
        leader = now.get("leader") or "nobody"
        print(f"  cluster    {now['cluster_id']}, led by {leader}; {quorum['have']} of the {quorum['need']} votes needed answer" if quorum else "")
    if committed:
        print(f"  config     version {committed['version']} is committed")
    if config and (not committed or config["hash"] != committed["hash"]):
        print(f"  config     version {config['version']} is {'proposed' if committed else 'held'}, from {config['from']}")
    if proposed := now.get("proposed"):
        verdict = {"refuse": "is refused", "wait": "waits", "elsewhere": "waits"}.get(proposed["verdict"], "goes on")
        print(f"  proposed   version {proposed['version']} {verdict}: {proposed['reason']}")
    configured = now.get("configured")
    for mistake in configured["mistakes"] if configured else ():
        print(f"  ! {mistake}")
    for alarm in (now.get("alarms") or {}).values():
        print(f"  ! {alarm}")
    if now.get("last_error"):
        print(f"  last error {now['last_error']}")
    for step in now.get("plan", ()):
        print(f"  to do      {step}")
    if now.get("drain"):
        print(f"  drain      waits: {now['drain']}")
    print()
    _members(known)


def _members(found: Members) -> None:
    rows = [
        [
            f"{m.name}{' *' if m.name == found.asked else ''}", m.role or "not listed", m.vote + (", leads" if m.leader else ""), m.address,
            "yes" if m.reachable else "no", _ago(m.since_wall_ms), m.state, str(m.version or ""), size(m.data_bytes) if m.data_bytes else "",
            m.trouble,
        ]
        for m in found.members
    ]  # fmt: skip
    columns = ["NAME", "ROLE", "VOTE", "ADDRESS", "REACHABLE", ">FOR", "STATE", ">VERSION", ">DATA", "TROUBLE"]
    table(columns, rows, none="nobody is declared, and nobody was heard")
