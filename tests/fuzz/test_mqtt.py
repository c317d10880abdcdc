"""The fuzzer of MQTT, for as many inputs as a test run can spare; ``python -m tests.fuzz.mqtt`` runs campaigns."""

import pytest

from tests.fuzz import mqtt


def test_hostile_bytes_raise_nothing_keep_the_books_and_come_to_the_same_in_pieces() -> None:
    totals = mqtt.chunk(seed=7, number=0, count=12_000)
    assert totals.inputs >= 12_000
    assert 1000 < totals.faults < totals.streams + totals.beginnings < totals.inputs
    assert totals.connections > 400
    assert totals.ended > 100
    assert totals.written > 1000


def test_equal_seeds_make_equal_inputs() -> None:
    assert mqtt.chunk(1, 2, 500) == mqtt.chunk(1, 2, 500) != mqtt.chunk(1, 3, 500)


def test_a_campaign_runs_in_processes_and_tells_its_totals(capfd: pytest.CaptureFixture[str]) -> None:
    assert mqtt.main(["--count", "1200", "--seed", "5", "--jobs", "2"]) == 0
    told = capfd.readouterr().out
    assert "failures=0" in told
    assert "seed=5 jobs=2" in told


def test_a_failure_shows_what_was_fed_and_ends_a_campaign_with_an_error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(mqtt, "pieces", lambda rng, data: [data[:-1]])
    with pytest.raises(AssertionError, match="pieces") as caught:
        mqtt.chunk(1, 0, 1000)
    shown = "\n".join(caught.value.__notes__)
    assert shown.startswith("seed 1 chunk 0, fed")
    assert bytes.fromhex(shown.split()[-1])
    assert mqtt.summed(map(mqtt.work, [(1, number, 1000) for number in range(50)]), "here", every_s=0) == 1
    told = capfd.readouterr()
    assert f"failures={mqtt.FAILURES_MAX} " in told.out
    assert shown.split()[-1] in told.out
    assert "inputs, " in told.err


def test_a_process_that_grows_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    grown = mqtt.Result(mqtt.Totals(inputs=1), 200 << 20, 100 << 20)
    assert mqtt.summed([grown], "") == 1
    assert "a process grew by 100 MiB" in capfd.readouterr().out
