"""What clients do: one coroutine per kind of client of a plan, run on a machine of its own with the real client, everything it sees noted.

Owns no truth and checks nothing. A program ends when it has done what its plan says, when the time for that is over, or when it is told to stop; it
never fails for what a broker may answer. What it does not expect is noted as strange.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from headrace.sim.chance import Chance
from headrace.sim.loop import Machine
from headrace.sim.plan import Client
from headrace.sim.programs.consuming import consume, pull
from headrace.sim.programs.hand import Hand
from headrace.sim.programs.operating import administer, declare
from headrace.sim.programs.publishing import publish
from headrace.sim.programs.reading import note_read, read, told
from headrace.sim.programs.stage import Stage

__all__ = ["PROGRAMS", "Hand", "Program", "Stage", "declare", "note_read", "told"]

Program = Callable[[Stage, Machine, Client, Chance], Coroutine[Any, Any, None]]

PROGRAMS: Final[dict[str, Program]] = {"publisher": publish, "consumer": consume, "puller": pull, "reader": read, "admin": administer}
