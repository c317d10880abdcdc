"""``headrace cluster secret``: exchanging the cluster's secret while it runs, on all brokers, stage by stage.

Owns the order across brokers: each stage is done on every broker before the next, and nothing is used or removed before everybody can bear it. The
secret itself goes into each broker's file by the operator's means, never through here.
"""

from contextlib import suppress
from typing import Annotated, Final, Literal

import typer

from headrace.cli.options import DEFAULT_ADMIN, Admin, AsJson
from headrace.cli.output import emit, table
from headrace.client.cluster_admin import ClusterAdmin
from headrace.model.errors import Conflict, Invalid, NotConnected
from headrace.wire.formation import Secrets

app = typer.Typer(no_args_is_help=True, help="The secret by which the brokers of a cluster know each other.")

Stage = Literal["add", "use", "remove"]
STAGES: Final[tuple[Stage, ...]] = ("add", "use", "remove")
Others = Annotated[list[str] | None, typer.Option("--also", metavar="URL", help="Admin HTTP of a broker that is not registered; may be repeated.")]


@app.command("status")
def secret_status(also: Others = None, admin: Admin = DEFAULT_ADMIN, as_json: AsJson = False) -> None:
    """Ids of the secrets that each broker accepts, the used one first, and of those in its file. A secret itself is never shown."""
    found = [asked.secrets() for asked in _brokers(admin, also or []).values()]
    emit({"brokers": found}, as_json, lambda: _show(found))


@app.command("rotate")
def secret_rotate(
    also: Others = None, until: Annotated[str, typer.Option("--until", metavar="add|use|remove", help="The last stage.")] = "remove",
    force: Annotated[bool, typer.Option("--force", help="Go on without those that do not answer: they stay out until their file is right.")] = False,
    admin: Admin = DEFAULT_ADMIN, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take every broker's secret file as it now is: all accept what is new, then all use the first, then all forget what is in no file any more."""
    stages = next((STAGES[: STAGES.index(s) + 1] for s in STAGES if s == until), None)
    if stages is None:
        raise Invalid(f"--until {until}: is no stage", hint=f"one of {', '.join(STAGES)}")
    brokers = _brokers(admin, also or [])
    members = ClusterAdmin(admin).members().members
    missing = sorted(m.name for m in members if m.role and m.name not in brokers)
    if missing and not force:
        raise Conflict(
            f"nothing was done: {', '.join(missing)} cannot be asked, so it is not known which secrets they accept",
            hint="start them, or name their admin address with --also, or --force: they stay out until their file is the same",
        )
    files = {name: asked.secrets().file for name, asked in brokers.items()}
    used = {file[0] for file in files.values()}
    if len(used) > 1:
        each = "; ".join(f"{name}: {file[0]}" for name, file in sorted(files.items()))
        raise Conflict(f"nothing was done: the brokers' files do not begin with the same secret ({each})", hint="give every broker the same file")
    now: list[Secrets] = []
    for stage in stages:
        now = [asked.rotate(stage, force=force) for asked in brokers.values()]
    emit({"brokers": now}, as_json, lambda: _show(now))


def _brokers(admin: str, also: list[str]) -> dict[str, ClusterAdmin]:
    """By name, as far as they answer: the one that is asked, all that are registered, those that are named."""
    first = ClusterAdmin(admin)
    known = first.members()
    found = {known.asked: first}
    for url in [*(m.admin for m in known.members if m.admin and m.name != known.asked), *also]:
        asked = ClusterAdmin(url)
        with suppress(NotConnected):
            found[asked.secrets().broker] = asked
    return dict(sorted(found.items()))


def _show(found: list[Secrets]) -> None:
    rows = [[s.broker, s.accepted[0], ", ".join(s.accepted[1:]), ", ".join(s.file)] for s in found]
    table(["BROKER", "USED", "ALSO ACCEPTED", "IN ITS FILE"], rows)
