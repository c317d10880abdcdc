"""``headrace cluster apply``, ``plan``, ``voter add``, ``voter remove``: what writes the cluster's next config, or shows what it would bring.

Owns where a config is read and how a verdict is told. Whoever is asked hands the config on to all that it concerns. A file is read here and now:
the broker does not remember where it was.
"""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from headrace.cli.options import DEFAULT_ADMIN, Admin, AsJson, Yes
from headrace.cli.output import confirm, emit, size
from headrace.client.cluster_admin import ClusterAdmin
from headrace.model.errors import Conflict, Invalid, Unavailable
from headrace.wire.formation import Fed, Planned

voter = typer.Typer(no_args_is_help=True, help="Give a broker a vote, or take it away: each writes the next version of the config.")

EXITS: Final = {
    "begun": 0, "already applied": 0, "older": Conflict.exit, "conflict": Conflict.exit, "invalid": Invalid.exit, "busy": Unavailable.exit
}  # fmt: skip
FILE_CHARACTERS_MAX: Final = 256 * 1024

ConfigFile = Annotated[
    str, typer.Argument(metavar="[FILE|-]", help="TOML file, - = standard input; none: the broker reads the one of its own configuration again.")
]
AutoVersion = Annotated[bool, typer.Option("--auto-version", help="The time in seconds is its version, whatever the file says.")]
Member = Annotated[str, typer.Argument(metavar="NAME", help="Name of the member.")]


def apply(file: ConfigFile = "", auto_version: AutoVersion = False, admin: Admin = DEFAULT_ADMIN, as_json: AsJson = False) -> None:
    """Make the cluster what a declared config says: form it, grow it, shrink it, merge others into it. Any one broker will do."""
    _tell(ClusterAdmin(admin).apply(_text(file), auto_version=auto_version), as_json)


def plan(file: ConfigFile = "", auto_version: AutoVersion = False, admin: Admin = DEFAULT_ADMIN, as_json: AsJson = False) -> None:
    """Show what a config would bring, step by step, and whose data would be given up or moved. Nothing is done."""
    planned = ClusterAdmin(admin).plan(_text(file), auto_version=auto_version)
    emit(planned, as_json, lambda: _show(planned))
    _end(planned.answer)


@voter.command("add")
def voter_add(
    name: Member, address: Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="Its peer listener, if it is new.")] = "",
    admin: Admin = DEFAULT_ADMIN, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Let a broker vote: it learns, catches up, and is promoted. A new one is a member from then on."""
    _tell(ClusterAdmin(admin).add_voter(name, address), as_json)


@voter.command("remove")
def voter_remove(
    name: Member, leave: Annotated[bool, typer.Option("--leave", help="It leaves the cluster, after it has given all it has to others.")] = False,
    yes: Yes = False, admin: Admin = DEFAULT_ADMIN, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take a broker's vote away: it stays as an observer. Refused if those that are left and answer were no majority."""
    if leave:
        confirm(f"Remove {name} from the cluster?", yes=yes, as_json=as_json)
    _tell(ClusterAdmin(admin).remove_voter(name, leave=leave), as_json)


def _text(file: str) -> str | None:
    if not file:
        return None
    try:
        with sys.stdin if file == "-" else Path(file).open(encoding="utf-8") as source:
            text = source.read(FILE_CHARACTERS_MAX + 1)
    except UnicodeDecodeError as e:
        raise Invalid(f"{file} is not UTF-8 text: {e.reason} at byte {e.start}", hint="correct the file") from None
    if len(text) > FILE_CHARACTERS_MAX:
        raise Invalid(f"{file} has more than {FILE_CHARACTERS_MAX} characters", hint="a cluster config is smaller: is it the right file?")
    return text


def _tell(fed: Fed, as_json: bool) -> None:
    emit(fed, as_json, lambda: _say(fed))
    _end(fed)


def _end(fed: Fed) -> None:
    if code := EXITS[fed.verdict]:
        raise typer.Exit(code)


def _say(fed: Fed) -> None:
    print(f"{fed.verdict}: {fed.reason}" if not fed.mistakes else f"{fed.verdict}:")
    for mistake in fed.mistakes:
        print(f"  - {mistake}")
    for warning in fed.warnings:
        print(f"  ! {warning}")
    if fed.verdict == "begun":
        print("  see how it goes: headrace cluster status")


def _show(planned: Planned) -> None:
    answer = planned.answer
    print(f"applied now, it would be {answer.verdict}: {answer.reason}" if not answer.mistakes else f"applied now, it would be {answer.verdict}:")
    for mistake in answer.mistakes:
        print(f"  - {mistake}")
    for warning in answer.warnings:
        print(f"  ! {warning}")
    for number, step in enumerate(planned.steps, 1):
        print(f"  {number:>3}. {step.text}{f' (waits: {step.blocked})' if step.blocked else ''}")
    if not planned.steps and answer.verdict in ("begun", "already applied"):
        print("  nothing is left to do")
    for lost in planned.lost:
        what = f"{size(lost.data_bytes)} of cluster {lost.cluster_id} on {', '.join(lost.brokers)}"
        allowed = "is confirmed" if lost.confirmed else f'refused unless the config has confirm_discard = ["{lost.cluster_id}"]'
        print(f"  ! would be set aside: {what}; {allowed}")
    if planned.emptied:
        print(f"  ! would hand over all that they own and copy, and leave: {', '.join(planned.emptied)}")
