"""``headrace cluster recover``: going on with one survivor when the majority of the voters is lost for good. Offline, on that survivor's directory.

Owns what is shown before, and that a person, or a script in so many words, has accepted the loss. What is written ``formation.recovering`` owns.
"""

import os
import sys
from typing import Annotated, Any

import typer

from headrace.cli.configuration import File, Set, set_flags
from headrace.cli.options import AsJson
from headrace.cli.output import emit, size, table
from headrace.client.cluster_admin import ClusterAdmin
from headrace.model.errors import Conflict, HeadraceError

Ask = Annotated[list[str] | None, typer.Option("--ask", metavar="URL", help="Admin HTTP of another survivor, to compare with; may be repeated.")]


def recover(
    config: File = None, data_dir: Annotated[str | None, typer.Option("--data-dir", "-d", help="The survivor's data directory.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The survivor's name in the cluster.")] = None, set_: Set = None, ask: Ask = None,
    accept: Annotated[bool, typer.Option("--accept-data-loss", help="Do not ask: what only the others hold is given up.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Go on with this one survivor after the majority of the voters is lost for good. Its broker must be stopped. Shows what is at risk first."""
    from headrace.cluster.formation.recovering import keep, survey
    from headrace.config import load
    from headrace.storage.files import OsFiles

    named = {"broker.data_dir": ("--data-dir", data_dir), "broker.name": ("--name", name)}
    flags = set_flags(set_) | {setting: (flag, value) for setting, (flag, value) in named.items() if value is not None}
    settings = load(config, os.environ, flags).config
    found = survey(settings, OsFiles())
    others = [_other(url) for url in ask or ()]
    report = {"survivor": found, "others": others, "recovered": ""}

    if not as_json:
        _show(found, others)
    if found.refusal:
        raise Conflict(found.refusal, hint="recover on another survivor: one that was a voter and has its data")
    serving = [o["name"] for o in others if o.get("serving") and o["cluster_id"] == found.cluster_id]
    if serving:
        raise Conflict(f"{', '.join(serving)} of this cluster serves: its majority is not lost", hint="start this broker; it joins by itself")
    if not accept:
        if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
            emit(report, as_json, lambda: None)
            raise Conflict("nothing was done: the loss has not been accepted", hint="look at the above, then repeat it with --accept-data-loss")
        if typer.prompt("Type the cluster's id to give the others up") != found.cluster_id:
            raise Conflict("nothing was done: that is not the cluster's id")
    report["recovered"] = keep(settings, OsFiles(), confirm=found.cluster_id)

    def text() -> None:
        print(f"{found.name} goes on as cluster {report['recovered']}, of one voter. Start it as before.")
        print("The others join it again once they are started; their copies are set aside and kept for a week.")

    emit(report, as_json, text)


def _other(url: str) -> dict[str, Any]:
    """How another survivor stands; ``trouble`` says why it could not be asked."""
    try:
        now = ClusterAdmin(url).status()
    except HeadraceError as e:
        return {"url": url, "name": "", "cluster_id": "", "trouble": str(e)}
    committed = now.get("committed") or {}
    return {
        "url": url, "name": now["name"], "cluster_id": now.get("cluster_id", ""), "generation": now.get("generation", 0),
        "version": committed.get("version", 0), "revision": committed.get("revision", 0), "state": now["state"], "reason": now["reason"],
        "serving": now["state"] in ("active", "draining") and bool(now.get("leader")), "trouble": "",
    }  # fmt: skip


def _show(found: Any, others: list[dict[str, Any]]) -> None:
    print(f"{found.name} in {found.data_dir}: {size(found.data_bytes)} of cluster {found.cluster_id or '(none)'}")
    rows = [[found.name, "here", str(found.generation), str(found.version), str(found.revision), "", ""]]
    for o in others:
        figures = (str(o.get(key, "")) for key in ("generation", "version", "revision", "state"))
        rows.append([o["name"] or "?", o["url"], *figures, o["trouble"]])
    table(["NAME", "WHERE", ">GENERATION", ">VERSION", ">REVISION", "STATE", "TROUBLE"], rows)
    newer = [o["name"] for o in others if (o.get("generation", 0), o.get("revision", 0)) > (found.generation, found.revision)]
    if newer:
        print(f"  ! {', '.join(newer)} knows more of the cluster than this one: recover there instead")
    if found.given_up:
        print(f"  ! given up: {', '.join(found.given_up)}. What was confirmed and is on their disks alone is lost (set aside if they come back).")
