"""The scenarios of the formation in clear and in foul weather, and with a restart at a step; the random programs against the naive model."""

import pytest

from headrace.sim.formation.mutants import MUTANTS, hunt
from headrace.sim.formation.programs import run_program
from headrace.sim.formation.run import run_scenario
from headrace.sim.formation.scenarios import SCENARIOS
from headrace.sim.mutants.planting import Mutant, compiled
from tests.property.effort import FACTOR, THOROUGH

PROGRAMS = 25 * FACTOR
FAILED_ONCE = (345, 826, 1399, 1522, 3242, 3257, 5418, 9878)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_in_any_weather(name: str) -> None:
    for seed in range(3 * FACTOR):
        result = run_scenario(name, seed)
        assert not result.invariant, result


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_with_a_restart_at_a_step(name: str) -> None:
    """Every step in a thorough run; else a few, others for each scenario."""
    steps = run_scenario(name, 0).steps
    stride = 1 if THOROUGH else 29
    for at in range(1 + len(name) % stride, steps + 1, stride):
        result = run_scenario(name, 0, restart_at=at)
        assert not result.invariant, result


@pytest.mark.parametrize("part", range(5))
def test_programs_come_to_rest_where_the_model_says(part: int) -> None:
    for seed in range(part * PROGRAMS // 5, (part + 1) * PROGRAMS // 5):
        outcome = run_program(seed)
        assert not outcome.invariant, outcome


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_programs_that_failed_once(seed: int) -> None:
    outcome = run_program(seed)
    assert not outcome.invariant, outcome


def test_a_seed_makes_everything() -> None:
    one: list[str] = []
    other: list[str] = []
    run_program(7, trace=one)
    run_program(7, trace=other)
    assert one == other


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_plantable(mutant: Mutant) -> None:
    assert compiled(mutant)


@pytest.mark.parametrize("name", ["wipe-on-gossip", "form-with-an-unknown-absent-voter", "promise-not-durable", "acceptance-skipped"])
def test_mutant_is_noticed(name: str) -> None:
    mutant = next(m for m in MUTANTS if m.name == name)
    runs, _ = hunt(mutant, runs_max=30)
    assert runs
