"""Makes a failing scenario smaller: fewer faults, fewer clients and operations, plainer settings, as long as the same promise is broken."""

from collections.abc import Callable, Iterator

import msgspec

from headrace.sim import workload
from headrace.sim.run import run
from headrace.sim.scenario import Scenario, Settings, Shape
from headrace.sim.world import Speeds

Broken = frozenset[str]


def broken(scenario: Scenario) -> Broken:
    """The promises that a run of it breaks."""
    return frozenset(violation.invariant for violation in run(scenario)[0].violations)


def shrink(
    scenario: Scenario, *, runs_max: int = 400, progress: Callable[[int, Scenario], None] = lambda runs, scenario: None
) -> tuple[Scenario, int]:
    """The smallest scenario found that breaks one of the promises that ``scenario`` breaks, and how many runs it took."""
    wanted = broken(scenario)
    runs = 1
    again = bool(wanted)
    while again and runs < runs_max:
        again = False
        for candidate in _smaller(scenario):
            runs += 1
            if wanted & broken(candidate):
                scenario, again = candidate, True
                progress(runs, scenario)
                break
            if runs >= runs_max:
                break
    return scenario, runs


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Candidates, boldest first."""
    replace = msgspec.structs.replace
    faults = scenario.faults
    if faults:
        yield replace(scenario, faults=())
        half = len(faults) // 2
        if half:
            yield replace(scenario, faults=faults[:half])
            yield replace(scenario, faults=faults[half:])
        for n in range(len(faults)):
            yield replace(scenario, faults=faults[:n] + faults[n + 1 :])
    for plan in workload.smaller(scenario.plan):
        yield replace(scenario, plan=plan)
    if scenario.rest:
        yield replace(scenario, rest=0.0)
    if scenario.settings != Settings():
        yield replace(scenario, settings=Settings())
    if scenario.shape != Shape():
        yield replace(scenario, shape=Shape())
    if scenario.speeds != Speeds():
        yield replace(scenario, speeds=Speeds())
