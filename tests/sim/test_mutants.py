"""Known bugs: each can be planted and leaves no trace; some of them, which are quick to catch, are. All of them: ``make mutants``."""

import importlib
import os
import pkgutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import msgspec
import pytest

import headrace
from headrace.sim import swarm
from headrace.sim.mutants import MUTANTS, Edit, Mutant, Unplantable, report
from headrace.sim.mutants.__main__ import choose, main
from headrace.sim.mutants.hunting import Hunt, Row, Seen, Task, TooLong, Trial, attempt, broken, ground, limited, stirred
from headrace.sim.mutants.planting import compiled, function_at

QUICK = {
    "confirm-before-sync": 3, "confirm-names-the-wrong-offset": 3, "ack-not-journalled": 3,
    "offsets-given-out-again": 3, "uncounted-return-forgotten": 6, "watermark-off-by-one": 3, "retention-removes-the-newest": 20,
}  # fmt: skip
"""Name to the number of seeds that must be enough."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
ROTATE = int(os.environ.get("HEADRACE_MUTANTS", "0")) or None
"""Which five of the others are tried; without it, by the date."""
ROTATING_S = 60.0


def made(*edits: Edit, name: str = "made") -> Mutant:
    return Mutant(name=name, wrong="is made by a test", notices=("I1",), edits=edits)


def codes() -> Iterator[tuple[str, CodeType]]:
    """Every function of the product with its code."""
    for module in pkgutil.walk_packages(headrace.__path__, "headrace."):
        if ".sim" in module.name or module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        owners: list[Any] = [loaded, *(value for value in vars(loaded).values() if isinstance(value, type))]
        for owner in owners:
            for name, value in vars(owner).items():
                inner = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
                inner = getattr(inner, "__wrapped__", inner)
                if isinstance(inner, FunctionType):
                    yield f"{module.name}:{getattr(owner, '__name__', '')}.{name}", inner.__code__


# ---------------------------------------------------------------- planting


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_every_mutant_fits_the_product(name: str) -> None:
    mutant = MUTANTS[name]
    assert compiled(mutant)
    assert mutant.wrong[0].islower()
    assert not mutant.wrong.endswith(".")
    assert mutant.notices


def test_planting_restores_the_product_exactly() -> None:
    before = dict(codes())
    for mutant in MUTANTS.values():
        with mutant.plant():
            assert all(function.__code__ is code for function, code in compiled(mutant))
        assert all(function.__code__ is not code for function, code in compiled(mutant))
    after = dict(codes())
    assert before.keys() == after.keys()
    assert all(code is after[name] for name, code in before.items())


def test_what_fails_while_it_is_planted_restores_it_too() -> None:
    mutant = MUTANTS["credit-never-returned"]
    ((function, _),) = compiled(mutant)
    code = function.__code__
    with pytest.raises(ZeroDivisionError), mutant.plant():
        raise ZeroDivisionError
    assert function.__code__ is code


def test_a_planted_function_does_what_the_mutant_says() -> None:
    from headrace.storage.walformat import padded

    with made(Edit("storage.walformat:padded", "nbytes + BLOCK - 1", "nbytes")).plant():
        assert padded(513) == 512
    assert padded(513) == 1024


def test_further_lines_are_indented_as_in_the_function() -> None:
    mutant = made(Edit("core.queue.machine:QueueMachine.admit", "self._live = True", "self._live = True\nif count > 1:\n    raise KeyError(count)"))
    function = function_at("core.queue.machine:QueueMachine.admit")
    with mutant.plant(), pytest.raises(KeyError):
        function(type("Machine", (), {})(), 2, 2, 0)


def test_methods_that_call_their_base_class_can_be_mutated() -> None:
    from headrace.core.stream import StreamMachine
    from headrace.model.errors import Damaged
    from headrace.model.specs import StreamSpec

    with made(Edit("core.stream.machine:StreamMachine.restore", "super().restore(version, data)", "super().restore(7, data)")).plant():
        with pytest.raises(Damaged, match="version 7"):
            StreamMachine(StreamSpec()).restore(1, b"")


def test_a_piece_must_stand_in_its_function_once() -> None:
    with pytest.raises(Unplantable, match="0 times"):
        compiled(made(Edit("storage.walformat:padded", "no such words", "")))
    with pytest.raises(Unplantable, match="2 times"):
        compiled(made(Edit("storage.walformat:padded", "BLOCK", "")))


def test_a_mutant_keeps_the_arguments_and_the_kind_of_a_function() -> None:
    with pytest.raises(Unplantable, match="co_argcount"):
        compiled(made(Edit("storage.walformat:padded", "nbytes: int", "nbytes: int, more: int")))
    with pytest.raises(Unplantable, match="a generator"):
        compiled(made(Edit("storage.walformat:padded", "return (", "yield (")))
    with pytest.raises(Unplantable, match="cannot be compiled"):
        compiled(made(Edit("storage.walformat:padded", "return (", "return ((")))
    with pytest.raises(Unplantable, match="not a function"):
        compiled(made(Edit("storage.walformat:BLOCK", "512", "256")))


# ---------------------------------------------------------------- hunting


@pytest.mark.parametrize("name", QUICK)
def test_quick_ones_are_caught(name: str) -> None:
    mutant = MUTANTS[name]
    trial = attempt(Task(name, ground(mutant), tuple(range(1, QUICK[name] + 1))))
    assert trial.seen, f"{name} is not caught"
    assert broken(trial.seen[0].seed, *ground(mutant)) == []


def caught(mutant: Mutant, seeds: list[int], until: float) -> bool | None:
    """Whether one of these seeds catches it; None: not in that time."""
    for seed in seeds:
        if time.monotonic() > until:
            return None
        if not broken(seed, *ground(mutant)) and attempt(Task(mutant.name, ground(mutant), (seed,))).seen:
            return True
    return False


def test_some_others_are_caught_every_day() -> None:
    text, until = DOCUMENT.read_text(), time.monotonic() + ROTATING_S
    known, missed = report.seeds_in(text), report.missed_in(text)
    tried = {}
    for mutant in [mutant for mutant in choose(None, len(MUTANTS), ROTATE) if mutant.name not in missed][:5]:
        most = {"runs": 200, "images": 6, "clusters": 60, "mqtt": 60}[mutant.net]
        first = [known[mutant.name]] if mutant.name in known else []  # a run changes with the product: then all are tried
        tried[mutant.name] = caught(mutant, [*first, *range(1, most + 1)], until)
    assert False not in tried.values(), tried
    if None in tried.values():
        pytest.skip(f"not enough time for {[name for name, found in tried.items() if found is None]}: make mutants")


def test_crash_images_catch_bugs_of_the_store() -> None:
    trial = attempt(Task("segment-not-synced", ground(MUTANTS["segment-not-synced"]), (1,)))
    assert [seen.invariant for seen in trial.seen] == ["images"]


def test_a_hunt_tells_of_each_mutant_once() -> None:
    rows: list[Row] = []
    chosen = [MUTANTS["confirm-names-the-wrong-offset"], MUTANTS["trim-not-journalled"]]
    hunt = Hunt(chosen, seeds_max=1, images_max=0, jobs=1, told=rows.append, unclean=lambda seen: None)
    assert hunt.run() == sorted(rows, key=lambda row: row.name)
    assert [bool(row.caught_by) for row in hunt.rows.values()] == [True, False]
    assert hunt.rows["confirm-names-the-wrong-offset"].seed == 1
    assert hunt.unclean == []


def test_a_seed_that_is_not_clean_proves_nothing() -> None:
    def broken_anyway(task: Task) -> Trial:
        return Trial(task, tuple(Seen(seed, "I1", "broken anyway") for seed in task.seeds), 0.0)

    told: list[Seen] = []
    chosen = [MUTANTS["ack-not-journalled"]]
    hunt = Hunt(chosen, seeds_max=12, images_max=0, jobs=1, told=lambda row: None, unclean=told.append, carry_out=broken_anyway)
    (row,) = hunt.run()
    assert row.caught_by == []
    assert sorted(seen.seed for seen in told) == list(range(1, 13))


def test_what_does_not_end_is_broken_off() -> None:
    def endless() -> None:
        while True:
            with suppress(Exception):  # nothing in the product may take it for an error of its own
                int("1")

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TooLong), limited(0.05):
        endless()
    assert signal.getsignal(signal.SIGALRM) is before


def test_stirring_adds_faults_and_leaves_other_damage_out() -> None:
    scenario = next(s for s in map(swarm.draw, range(1, 500)) if any(fault.kind == "stale" for fault in s.faults))
    assert stirred(scenario, ()) is scenario
    kinds = [fault.kind for fault in stirred(scenario, ("flip", "kill")).faults]
    assert kinds.count("flip") == 1
    assert "stale" not in kinds
    assert stirred(scenario, ("flip",)) == stirred(scenario, ("flip",))


# ---------------------------------------------------------------- the command


def test_a_rotation_takes_others_every_day() -> None:
    first, second = ([mutant.name for mutant in choose(None, 8, seed)] for seed in (1, 2))
    assert len({*first}) == len({*second}) == 8
    assert first != second
    assert first == [mutant.name for mutant in choose(None, 8, 1)]
    assert len(choose(None, None, None)) == len(MUTANTS) >= 30


def test_the_table_goes_between_the_marks_of_a_document(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert main(["--only", "confirm-names-the-wrong-offset", "--seeds-max", "1", "--jobs", "1", "--write", str(document)]) == 0
    text = document.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"\n{report.END}\nafter\n")
    assert "**1 of 1 mutants caught**" in text
    assert "old" not in text
    assert report.seeds_in(text) == {"confirm-names-the-wrong-offset": 1}
    document.write_text("nothing")
    with pytest.raises(ValueError, match="has no marks"):
        report.write(document, "")


def test_the_table_says_what_was_not_caught() -> None:
    rows = [Row("one", "runs", "does one thing", ["I1"], seeds=7), Row("two", "runs", "does another", seeds=200)]
    text = report.section(rows, day="2026-01-01", commit="abc", unclean=[9])
    assert "**1 of 2 mutants caught**" in text
    assert "Not caught: two." in text
    assert "without any bug: 9." in text
    page = f"{report.BEGIN}\n{text}\n{report.END}"
    assert report.seeds_in(page) == {"one": 7}
    assert report.missed_in(page) == ["two"]


def test_the_exit_code_says_whether_all_were_caught(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "confirm-names-the-wrong-offset", "--seeds-max", "1", "--jobs", "1", "--json"]) == 0
    figures = msgspec.json.decode(capsys.readouterr().out)
    assert (figures["mutants"], figures["caught"], figures["rows"][0]["caught_by"][0]) == (1, 1, "I3")
    assert main(["--only", "trim-not-journalled", "--seeds-max", "1", "--jobs", "1"]) == 1
    assert "not caught: trim-not-journalled" in capsys.readouterr().out
