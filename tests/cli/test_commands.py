"""Commands that ask a broker: the message each sends, what it prints for people and for programs, and its exit code."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.cli import main
from headrace.model.errors import DiskFull, Draining, HeadraceError, NotFound, Quarantined
from headrace.model.specs import QueueSpec, StreamSpec
from headrace.wire import control
from tests.cli.stub_server import served
from tests.integration.admin_stub import StubBroker

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def broker() -> StubBroker:
    return StubBroker()


@pytest.fixture
def run(broker: StubBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    with served(broker) as url:
        monkeypatch.setenv("HEADRACE_URL", url)

        def command(*argv: str) -> tuple[int, str, str]:
            code = main(argv)
            said = capsys.readouterr()
            return code, said.out, said.err

        yield command


def test_declare_alter_describe_delete(run: Run, broker: StubBroker) -> None:
    options = ("--partitions", "3", "--lease", "1m", "--backoff", "1s,10s", "--max-bytes", "1GiB", "--dead-letter", "d")
    code, out, _ = run("queue", "declare", "orders", *options)
    assert code == 0
    spec = QueueSpec(partitions=3, lease_ms=60_000, backoff_ms=(1000, 10_000), max_bytes=1 << 30, dead_letter="d")
    assert broker.requests[-1] == control.DeclareQueue(name="orders", spec=spec)
    assert out == 'queue orders: 3 partitions, lease_ms = "1m", backoff_ms = ["1s", "10s"], dead_letter = "d", max_bytes = "1GiB"\n'
    assert run("queue", "alter", "orders", "--lease", "2s")[0] == 0
    assert broker.requests[-1] == control.AlterQueue(name="orders", changes={"lease_ms": 2000})
    code, out, _ = run("queue", "describe", "orders")
    assert "settings" in out
    assert "serving" in out
    assert run("queue", "delete", "orders", "--if-empty")[1] == "queue orders deleted\n"
    assert broker.requests[-1] == control.Delete(name="orders", kind="queue", if_empty=True)
    code, out, err = run("queue", "delete", "orders")
    assert code == NotFound.exit
    assert out == ""
    assert err.splitlines()[1].startswith("  to do: declare it first")


def test_streams(run: Run, broker: StubBroker) -> None:
    assert run("stream", "declare", "log", "--retention", "7d", "--compaction", "--partitions", "2")[0] == 0
    assert broker.requests[-1] == control.DeclareStream(name="log", spec=StreamSpec(retention_ms=7 * 86_400_000, compaction=True, partitions=2))
    assert run("stream", "alter", "log", "--retention-bytes", "1MiB", "--no-compaction")[0] == 0
    assert broker.requests[-1] == control.AlterStream(name="log", changes={"retention_bytes": 1 << 20, "compaction": False})
    assert "log" in run("stream", "list")[1]
    assert run("stream", "describe", "log")[0] == 0
    assert run("stream", "cursors", "set", "log", "c", "last:5")[0] == 0
    assert broker.requests[-1] == control.CursorSet(name="log", cursor="c", to="last:5")
    assert run("stream", "cursors", "reset", "log", "c")[0] == 0
    assert broker.requests[-1] == control.CursorSet(name="log", cursor="c", to="earliest")
    assert "LAG" in run("stream", "cursors", "list", "log")[1]
    assert run("stream", "cursors", "delete", "log", "c")[0] == 0
    assert run("stream", "trim", "log", "--offset", "10")[0] == 0
    assert broker.requests[-1] == control.Trim(name="log", offset=10)
    assert run("stream", "trim", "log", "--older-than", "1d")[0] == 0
    assert isinstance(broker.requests[-1], control.Trim)
    assert broker.requests[-1].before_ms > 1_600_000_000_000
    assert run("stream", "trim", "log")[0] == 64


COMMANDS: list[tuple[tuple[str, ...], control.Request]] = [
    (("queue", "purge", "q", "--leased"), control.Purge(name="q", leased=True)),
    (("queue", "repartition", "q", "--partitions", "4", "--force"), control.Repartition(name="q", partitions=4, force=True)),
    (("queue", "pause", "q"), control.Pause(name="q", paused=True)),
    (("queue", "resume", "q"), control.Pause(name="q", paused=False)),
    (("queue", "move", "q", "r", "--limit", "5", "--rate", "10"), control.Move(name="q", to="r", limit=5, rate=10)),
    (("queue", "redrive", "q", "--to", "x"), control.Redrive(name="q", to="x")),
    (("queue", "list", "o*"), control.List(kind="queue", pattern="o*")),
    (("queue", "inspect", "q", "--state", "any", "--limit", "5"), control.Inspect(name="q", state="any", limit=5)),
    (("drain", "--grace", "1s", "--message", "upgrade"), control.Drain(grace_ms=1000, message="upgrade")),
    (("status",), control.Status()),
    (("connections",), control.ConnectionsList()),
    (("quarantine", "list"), control.QuarantineList()),
    (("quarantine", "repair", "q", "--dry-run"), control.QuarantineRepair(name="q", dry_run=True)),
]


@pytest.mark.parametrize(("argv", "request_"), COMMANDS, ids=lambda v: "-".join(v[:2]) if isinstance(v, tuple) else "")
def test_each_command_is_one_message_and_speaks_json(run: Run, broker: StubBroker, argv: tuple[str, ...], request_: control.Request) -> None:
    broker.items["q"] = control.Info(name="q", kind="queue", id="1", spec={})
    for form in ((), ("--json",)):
        broker.requests.clear()
        code, out, err = run(*argv, *form)
        assert (code, err) == (0, "")
        assert broker.requests == [request_]
        assert out
    parsed = json.loads(out)
    assert isinstance(parsed, dict)
    assert "t" not in parsed


def test_lists_are_read_page_by_page(run: Run, broker: StubBroker) -> None:
    for i in range(2300):
        broker.items[f"q{i:05}"] = control.Info(name=f"q{i:05}", kind="queue", id=str(i), spec={})
    listed = json.loads(run("queue", "list", "--limit", "5000", "--json")[1])
    assert [i["name"] for i in listed["items"]] == sorted(broker.items)
    assert not listed["more"]
    assert len(broker.requests) == 3
    assert json.loads(run("queue", "list", "--limit", "10", "--json")[1])["more"]


@pytest.mark.parametrize("error", [DiskFull("no room"), Draining("bye"), Quarantined("q is damaged"), HeadraceError("odd", hint="ask")])
def test_errors_are_two_lines_and_a_class_of_exit_code(run: Run, broker: StubBroker, error: HeadraceError) -> None:
    broker.fail = error
    code, out, err = run("status")
    assert (code, out) == (error.exit, "")
    assert err == f"headrace: {error}\n  to do: {error.hint}\n"
    broker.fail = error
    code, out, err = run("status", "--json")
    assert (code, out) == (error.exit, "")
    assert json.loads(err) == {
        "code": error.code, "error": type(error).__name__, "message": str(error), "hint": error.hint, "retriable": error.retriable
    }  # fmt: skip


@pytest.mark.parametrize(
    "argv",
    [
        ("queue", "declare", "q", "--lease", "soon"),
        ("queue", "declare", "q", "--max-bytes", "much"),
        ("queue", "declare", "q", "--overflow", "burst"),
        ("queue", "alter", "q"),
        ("queue", "inspect", "q", "--where", "a ="),
        ("publish",),
        ("publish", "q", "v", "--header", "x"),
        ("publish", "q", "v", "--file", "f"),
        ("publish", "--stream", "s", "a", "b"),
        ("consume", "q", "--retry-on", "x", "--exec", "true"),
        ("consume", "q", "--format", "xml"),
        ("tail", "s", "--from", "yesterday"),
        ("status", "--url", "http://127.0.0.1"),
        ("config", "show", "--set", "x"),
    ],
)
def test_wrong_options_say_what_to_write(run: Run, broker: StubBroker, argv: tuple[str, ...]) -> None:
    code, out, err = run(*argv)
    assert code == 64
    assert out == ""
    assert len(err.splitlines()) == 2
    assert broker.requests == []


def test_unknown_commands_and_options_are_usage_errors(run: Run) -> None:
    assert run("queue", "delcare", "x")[0] == 2
    assert run("status", "--colour")[0] == 2
    assert run("queue", "inspect", "q", "--limit", "0")[0] == 2


def test_a_describe_of_the_wrong_kind_says_which_command(run: Run, broker: StubBroker) -> None:
    broker.items["s"] = control.Info(name="s", kind="stream", id="1", spec={})
    code, _, err = run("queue", "describe", "s")
    assert code == 64
    assert "headrace stream describe s" in err


def test_doctor_sees_a_running_broker(run: Run, tmp_path: Any) -> None:
    code, out, _ = run("doctor", "--data-dir", str(tmp_path), "--json")
    report = json.loads(out)
    found = {f["check"]: f for f in report["findings"]}
    assert {"python", "event loop", "hot modules", "data dir", "free space", "sync latency", "open files", "broker"} <= set(found)
    assert found["broker"]["verdict"] == "warning"
    assert found["broker"]["todo"] == "the disk is slow"
    assert code == (0 if report["fit"] else 1)
    assert "sync latency" in run("doctor", "--data-dir", str(tmp_path))[1]
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_what_makes_it_unfit(run: Run, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("HEADRACE_LISTN__X", "1")
    code, out, _ = run("doctor", "--data-dir", str(file / "below"), "--json")
    found = {f["check"]: f for f in json.loads(out)["findings"]}
    assert code == 1
    assert found["configuration"]["verdict"] == "problem"
    assert found["data dir"]["verdict"] == "problem"
    assert found["data dir"]["todo"]


def test_config_check_and_show(run: Run, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "h.toml"
    file.write_text('[listen]\nnative = "127.0.0.1:1"\n')
    assert run("config", "check", "--config", str(file))[0] == 0
    monkeypatch.setenv("HEADRACE_LOG__LEVEL", "debug")
    lines = [" ".join(line.split()) for line in run("config", "show", "--changed", "--config", str(file))[1].splitlines()]
    assert lines == ["[listen]", 'native = "127.0.0.1:1" # h.toml:2', "", "[log]", 'level = "debug" # HEADRACE_LOG__LEVEL']
    shown = json.loads(run("config", "show", "--json", "--config", str(file))[1])
    assert shown["listen.native"] == {"value": "127.0.0.1:1", "origin": "h.toml:2"}
    file.write_text("[listen]\nnativ = 1\n[log]\nformat = 5\n")
    code, out, _ = run("config", "check", "--config", str(file), "--json")
    assert code == 64
    assert {m["setting"] for m in json.loads(out)["mistakes"]} == {"listen.nativ", "log.format"}
    code, _, err = run("start", "--config", str(file))
    assert code == 64
    assert "listen.nativ (h.toml:2)" in err
    assert "log.format (h.toml:4)" in err


def test_config_check_looks_into_the_declared_cluster(run: Run, tmp_path: Any) -> None:
    file = tmp_path / "h.toml"
    head = '[coordination]\nmode = "coordinated"\n[cluster.declared]\n'
    file.write_text(f'{head}version = 1\n[cluster.declared.members]\na = "voter"\n')
    assert run("config", "check", "--config", str(file))[0] == 0
    assert '"members" = {"a" = "voter"}' in run("config", "show", "--changed", "--config", str(file))[1]
    file.write_text(f'{head}version = 0\n[cluster.declared.members]\na = "boss"\nb = {{ addres = "x" }}\n')
    code, out, _ = run("config", "check", "--config", str(file))
    assert code == 64
    assert [line.split(": ")[2] for line in out.splitlines()] == ["version", "members.a", "members.b.addres"]
    assert all(line.startswith("cluster.declared (h.toml:3): ") for line in out.splitlines())


@pytest.mark.parametrize(
    ("greeting", "word"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"), (b"\x15\x03\x01\x00\x02\x02\x28aaaaaa", "TLS"), (b"\xff" * 16, "does not speak")],
)
def test_another_protocol_is_recognised_and_named(capsys: pytest.CaptureFixture[str], greeting: bytes, word: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                connection.recv(65536)

        thread = threading.Thread(target=answer)
        thread.start()
        code = main(["status", "--url", f"headrace://127.0.0.1:{server.getsockname()[1]}"])
        thread.join(10)
    assert code == 65
    assert word in capsys.readouterr().err


def test_no_broker_is_said_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert main(["queue", "list", "--url", f"127.0.0.1:{port}"]) == 69
    err = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in err
    assert "headrace start" in err


def test_completion_of_names(run: Run, broker: StubBroker) -> None:
    from headrace.cli.asking import names_for_completion

    broker.items["orders"] = control.Info(name="orders", kind="queue", id="1", spec={})
    assert names_for_completion("queue", "o") == ["orders"]
