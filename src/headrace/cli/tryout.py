"""``headrace cluster up``: a cluster of real brokers on this machine, to be looked at, used, and killed.

Owns the command's line alone; what it does is ``tryout_course``'s, which is imported when it is asked for.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from headrace.cli.options import AsJson
from headrace.model.errors import Invalid

BROKERS_MAX: Final = 21


def up(
    brokers: Annotated[int, typer.Option("--brokers", min=1, max=BROKERS_MAX, help="How many; the first three vote, the others observe.")] = 3,
    staggered: Annotated[bool, typer.Option("--staggered", help="One after another, saying what each waits for.")] = False,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="With demo queues, a stream and traffic.")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data when it ends.")] = False,
    failover_verify: Annotated[
        bool, typer.Option("--failover-verify", help="Kill and pause owners under load, check every confirmed message, and end.")
    ] = False,
    data_dir: Annotated[str, typer.Option("--data-dir", "-d", help="Directory of all of them; one that was kept goes on (a new one).")] = "",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Start a cluster of brokers on this machine to try it out, until Ctrl-C.

    Ports are the system's choice, the secret is new. Exit code 1: --failover-verify found that something confirmed was lost or out of order."""
    if failover_verify and brokers < 3:
        raise Invalid("--failover-verify needs three brokers: two of them have to go on without the third", hint="--brokers 3")
    from headrace.cli import tryout_course

    code = tryout_course.carry_out(brokers, data_dir, as_json=as_json, staggered=staggered, demo=demo, keep=keep, verify=failover_verify)
    raise typer.Exit(code)
