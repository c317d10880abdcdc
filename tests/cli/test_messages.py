"""``publish``, ``consume`` and ``tail`` against a real broker."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.cli import main
from tests.cli.conftest import Started

Run = Callable[..., str]


@pytest.fixture
def run(broker: Started, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    monkeypatch.setenv("HEADRACE_URL", broker.addresses["url"])

    def command(*argv: str, code: int = 0) -> str:
        assert main(argv) == code, capfdbinary.readouterr().err
        sys.stdout.flush()
        return capfdbinary.readouterr().out.decode("utf-8", "surrogateescape")

    return command


@pytest.fixture
def queue(run: Run) -> str:
    name = f"q-{secrets.token_hex(4)}"
    run("queue", "declare", name)
    return name


@pytest.fixture
def stream(run: Run) -> str:
    name = f"s-{secrets.token_hex(4)}"
    run("stream", "declare", name)
    return name


def counts(run: Run, queue: str) -> tuple[int, int, int]:
    info = json.loads(run("queue", "describe", queue, "--json"))
    return info["ready"], info["leased"], info["delayed"]


def test_what_is_published_is_consumed_and_gone(run: Run, queue: str) -> None:
    receipt = json.loads(run("publish", queue, "first light", "--key", "k", "--header", "a=b", "--json"))
    assert (receipt["published"], receipt["partition"], receipt["offset"]) == (1, 0, 0)
    message = json.loads(run("consume", queue, "--json"))
    assert message["value"]["text"] == "first light"
    assert message["key"]["text"] == "k"
    assert ["a", {"base64": "Yg==", "text": "b"}] in message["headers"]
    assert counts(run, queue) == (0, 0, 0)
    assert run("consume", queue) == ""


def test_many_by_count_and_by_lines(run: Run, queue: str, tmp_path: Path) -> None:
    run("publish", queue, "x", "--count", "2500")
    assert run("consume", queue, "--count", "1500") == "x\n" * 1500
    assert counts(run, queue)[0] == 1000
    run("queue", "purge", queue)
    file = tmp_path / "lines.txt"
    file.write_bytes(b"one\r\ntwo\n\nfour \xff")
    assert json.loads(run("publish", queue, "--file", str(file), "--json"))["published"] == 4
    assert run("consume", queue).encode("utf-8", "surrogateescape") == b"one\ntwo\n\nfour \xff\n"


def test_jsonl_round_trips_through_consume(run: Run, queue: str, tmp_path: Path) -> None:
    lines = [{"value": {"n": 1}, "key": "k", "headers": {"h": "v"}}, {"value": "text", "priority": 9}, {"value": {"base64": "/w==", "text": None}}]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    run("publish", queue, "--file", str(file))
    first = [json.loads(line) for line in run("consume", queue, "--format", "json").splitlines()]
    assert first[0]["value"]["text"] == "text", "the highest priority is first"
    again = tmp_path / "again.jsonl"
    again.write_text("\n".join(json.dumps({k: m[k] for k in ("value", "key", "headers")}) for m in first))
    run("publish", queue, "--file", str(again))
    second = [json.loads(line) for line in run("consume", queue, "--format", "json").splitlines()]
    assert [(m["value"], m["key"], m["headers"]) for m in second] == [(m["value"], m["key"], m["headers"]) for m in first]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"value": 1}\n{"valeu": 2}\n')
    assert main(["publish", queue, "--file", str(bad)]) == 64


def test_standard_input_is_one_message_or_lines(broker: Started, run: Run, queue: str) -> None:
    env = {**os.environ, "HEADRACE_URL": broker.addresses["url"]}
    for options in ([], ["--file", "-"]):
        subprocess.run([sys.executable, "-m", "headrace.cli", "publish", queue, *options], input=b"a\nb", env=env, check=True, capture_output=True)
    assert run("consume", queue, "--format", "raw") == "a\nb" + "a" + "b"


def test_delay_ttl_and_filters(run: Run, queue: str) -> None:
    run("publish", queue, "later", "--delay", "1h")
    run("publish", queue, "blue", "--header", "colour=blue")
    run("publish", queue, "red", "--header", "colour=red")
    assert counts(run, queue) == (2, 0, 1)
    assert run("consume", queue, "--where", 'colour = "red"') == "red\n"
    assert run("consume", queue) == "blue\n"


def test_exec_decides_by_its_exit_code(run: Run, queue: str) -> None:
    for code in ("0", "75", "3"):
        run("publish", queue, code)
    run("queue", "alter", queue, "--backoff", "1h")
    run("consume", queue, "--exec", "exit $(cat)", "--retry-on", "75")
    assert counts(run, queue) == (0, 0, 1), "0 acked, 75 is delayed by the back-off, 3 rejected"


def test_nothing_is_lost_when_the_reader_of_our_output_goes(broker: Started, run: Run, queue: str) -> None:
    run("publish", queue, "x" * 2000, "--count", "500")
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.cli", "consume", queue, "--url", broker.addresses["url"]], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 141, error
    assert b"Traceback" not in error
    ready, leased, _ = counts(run, queue)
    assert ready + leased == 500


def test_a_terminated_consumer_ends_cleanly(broker: Started, run: Run, queue: str) -> None:
    run("publish", queue, "one")
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.cli", "consume", queue, "--follow", "--url", broker.addresses["url"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143
    assert error == b""


def test_tail(run: Run, stream: str) -> None:
    for word in ("one", "two", "three"):
        run("publish", "--stream", stream, word)
    assert run("tail", stream, "--from", "earliest", "--no-follow") == "one\ntwo\nthree\n"
    assert run("tail", stream, "--from", "last:1", "--no-follow") == "three\n"
    assert run("tail", stream, "--from", "offset:1", "--count", "1") == "two\n"
    assert run("tail", stream, "--from", "1h", "--count", "1") == "one\n"
    assert run("tail", stream, "--from", "latest", "--no-follow") == ""
    assert json.loads(run("tail", stream, "--from", "earliest", "--count", "1", "--json"))["offset"] == 0


def test_tail_with_a_cursor_goes_on_where_it_stood(run: Run, stream: str) -> None:
    for word in ("one", "two", "three"):
        run("publish", "--stream", stream, word)
    run("stream", "cursors", "set", stream, "c", "earliest")
    assert run("tail", stream, "--cursor", "c", "--count", "2") == "one\ntwo\n"
    assert run("tail", stream, "--cursor", "c", "--no-follow") == "three\n"
    assert run("tail", stream, "--cursor", "c", "--no-follow") == ""
    assert json.loads(run("stream", "cursors", "list", stream, "--json"))["cursors"][0]["lag"] == 0


def test_names_that_nobody_declared(run: Run) -> None:
    run("publish", "nobody", "x", code=66)
    run("consume", "nobody", code=66)
    run("tail", "nobody", "--no-follow", code=66)


def test_a_move_is_watched_to_its_end(run: Run, queue: str) -> None:
    other = f"{queue}-other"
    run("queue", "declare", other)
    run("publish", queue, "x", "--count", "300")
    assert "300 of 300 messages moved" in run("queue", "move", queue, other)
    assert (counts(run, queue)[0], counts(run, other)[0]) == (0, 300)
