"""``headrace cluster force-election``: a copy that may lack confirmed messages serves, where nobody else can."""

import getpass
from typing import Annotated

import typer

from headrace.cli.options import DEFAULT_ADMIN, Admin, AsJson
from headrace.cli.output import count, emit, table
from headrace.client.cluster_admin import ClusterAdmin
from headrace.wire.control import Election
from headrace.wire.topology import UNKNOWN


def force_election(
    partition: Annotated[str, typer.Argument(metavar="NAME[/PARTITION]", help="Queue or stream, and which of its partitions (0).")],
    to: Annotated[str, typer.Option("--to", metavar="BROKER", help="Who shall own it: name or id (default: the copy that reaches furthest).")] = "",
    accept: Annotated[bool, typer.Option("--accept-data-loss", help="Do it: what only the others hold is given up.")] = False,
    admin: Admin = DEFAULT_ADMIN, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Have a copy serve although it may lack confirmed messages. Shows what would be lost, and does nothing without --accept-data-loss."""
    name, number = _named(partition)
    cluster = ClusterAdmin(admin)
    shown = cluster.force_election(name, number, chosen=to)
    if not as_json:
        _show(shown)
    if not accept:
        if as_json:
            emit(shown, as_json, lambda: None)
        else:
            print("\nnothing was done; to accept this loss, repeat it with --accept-data-loss")
        return
    done = cluster.force_election(name, number, accept=shown, by=f"{getpass.getuser()} by headrace cluster force-election")
    emit(done, as_json, lambda: print(f"\n{_name(done, done.chosen)} owns partition {number} of {name} from epoch {done.epoch} on"))


def _named(text: str) -> tuple[str, int]:
    """Name and partition of ``NAME[/PARTITION]``. A name that itself ends in a slash and digits is followed by its partition."""
    name, slash, number = text.rpartition("/")
    return (name, int(number)) if slash and name and number.isascii() and number.isdecimal() and len(number) < 10 else (text, 0)


def _name(found: Election, id: str) -> str:
    return next((row.name for row in found.copies if row.broker == id), id)


def _figure(value: int) -> str:
    return "?" if value == UNKNOWN else count(value)


def _show(found: Election) -> None:
    rows = [
        [
            f"{row.name}{' *' if row.broker == found.chosen else ''}", row.state, "yes" if row.in_sync else "no",
            *map(_figure, (row.index, row.epoch, row.committed, row.next_offset)), row.why,
        ]
        for row in found.copies
    ]  # fmt: skip
    table(["COPY", "STATE", "IN SYNC", ">LAST ENTRY", ">EPOCH", ">COMMITTED", ">NEXT OFFSET", "WHY"], rows)
    print(f"\n  {found.reason}")
    if found.given_up:
        print(f"  ! given up: {', '.join(_name(found, id) for id in found.given_up)}. What was confirmed and is on their disks alone is lost.")
