"""Seeds of the small world, one after another or on several cores, and what came of each."""

import time
import traceback

import msgspec

from headrace.sim.replicas.checks import Violation
from headrace.sim.replicas.plan import drawn
from headrace.sim.replicas.world import World


class Result(msgspec.Struct, frozen=True):
    """What became of a seed; ``invariant`` "" = nothing was broken."""

    seed: int
    invariant: str
    text: str
    events: int
    committed: int
    confirmed: int
    swaps: int
    takeovers: int
    seconds: float


def run(seed: int, *, trace: list[str] | None = None) -> Result:
    """Runs one seed. Whatever a machine raises is a violation too: it must never raise."""
    world = World(drawn(seed))
    world.trace = trace
    began = time.perf_counter()
    invariant = text = ""
    try:
        world.run()
    except Violation as e:
        invariant, text = e.invariant, str(e)
    except Exception:
        invariant, text = "raised", traceback.format_exc(limit=-4)
    seconds = time.perf_counter() - began
    checks = world.checks
    return Result(seed, invariant, text, world.events, len(checks.ledger), checks.confirmed, world.swaps, world.takeovers, seconds)
