"""MQTT in whole clusters under faults: seeds that broke a promise once, and some new ones.

By hand: ``python -m headrace.sim.mqtt --seeds A-B --jobs N``.
"""

import json
from pathlib import Path

import pytest

from headrace.sim.clusters.sweep import sweep
from headrace.sim.mqtt.__main__ import main
from headrace.sim.mqtt.run import KINDS, Run, Totals, one
from headrace.sim.sweep import seeds_of
from tests.sim.test_seeds import first_seed

SEEN = Path(__file__).parent / "mqtt.txt"
NEW = 4


def swept(seeds: list[int]) -> Totals:
    totals = Totals()
    wrong: list[str] = []
    for result in sweep(seeds, jobs=1, work=one):
        totals.add(result.totals)
        if result.wrong:
            wrong.append(f"seed {result.seed}: {result.wrong}")
    assert not wrong, "\n".join(wrong)
    return totals


@pytest.mark.parametrize("group", range(2))
def test_seeds_that_failed_once(group: int) -> None:
    """All that is counted happens in them: a sweep in which nothing goes wrong says nothing."""
    totals = swept(seeds_of(str(SEEN))[group::2])
    for name in ("published", "confirmed", "taken", "resumed", "wills", "deaths", "cuts", "owners"):
        assert getattr(totals, name) > 0, name
    assert totals.taken > totals.confirmed > 100


def test_seeds_that_nobody_has_seen() -> None:
    """They follow from the sources as they were committed."""
    first = first_seed()
    totals = swept(list(range(first, first + NEW)))
    assert totals.seeds == NEW
    assert totals.taken > 100


def test_a_seed_is_repeated() -> None:
    digests = []
    for _ in range(2):
        run = Run(11)
        run.go()
        digests.append(run.world.trace.digest())
    assert digests[0] == digests[1]


def test_the_kinds_of_faults_are_known() -> None:
    assert len(set(KINDS)) == len(KINDS)
    assert set(KINDS) <= set(super(Run, Run).all_kinds)


def test_the_command_says_what_was_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1-1", "--jobs", "1", "--json"]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert (figures["seeds"], figures["failed"]) == (1, 0)
    assert figures["taken"] > figures["confirmed"] > 0
