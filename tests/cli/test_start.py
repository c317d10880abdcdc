"""``headrace start`` as a process: ready file, banner, signals, drain, and refusals before anything is served."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from headrace.cli import main
from tests.cli.conftest import READY_S, Started


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path)
    yield started.ready()
    started.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(own: Started, number: int) -> None:
    assert set(own.addresses) == {"url", "admin"}
    assert own.addresses["url"].startswith("headrace://127.0.0.1:")
    assert not own.addresses["url"].endswith(":0")
    banner = own.out.read_text()
    assert own.addresses["url"] in banner
    assert own.addresses["admin"] in banner
    assert "headrace publish" in banner
    assert own.signalled(number) == 0
    assert not own.ready_file.exists()


def test_drain_stops_it_too(own: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "--grace", "10ms", "--url", own.addresses["url"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] >= 0
    assert own.process.wait(20) == 0


def test_drain_over_http_stops_it_too(own: Started) -> None:
    assert httpx.post(f"{own.addresses['admin']}/admin/api/drain", json={"grace_ms": 1}, timeout=READY_S).status_code == 200
    assert own.process.wait(20) == 0


def test_admin_answers_on_the_same_process(broker: Started) -> None:
    with httpx.Client(base_url=broker.addresses["admin"], timeout=READY_S) as http:
        assert http.get("/admin/api/ready").json()["ready"] is True
        assert http.put("/admin/api/queues/a%2Fb", json={"lease_ms": 5000}).json()["name"] == "a/b"
        overview = http.get("/admin/api/overview").json()
        assert "a/b" in [q["name"] for q in overview["queues"]]
        assert overview["status"]["state"] == "serving"
        assert "headrace_connections " in http.get("/metrics").text
        assert http.get("/").status_code == 200
        assert http.delete("/admin/api/queues/a%2Fb").status_code == 200


@pytest.mark.parametrize("flag", ["--listen", "--admin"])
def test_an_address_in_use_is_named_with_what_to_do(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        started = Started(tmp_path, flag, address)
        try:
            assert started.process.wait(30) in (74, 75)
        finally:
            started.stop()
    *_, what, todo = started.log.read_text().strip().splitlines()
    assert what.startswith("headrace: ")
    assert "to do:" in todo
    assert not started.ready_file.exists()


def test_mistakes_are_told_before_anything_is_started(tmp_path: Path) -> None:
    started = Started(tmp_path, "--set", "log.levl=debug", "--set", "limits.connections_max=0")
    try:
        assert started.process.wait(30) == 64
    finally:
        started.stop()
    log = started.log.read_text()
    assert "log.levl (--set log.levl)" in log
    assert "limits.connections_max" in log
    assert not (tmp_path / "data").exists()


def test_a_ready_file_in_no_directory_is_refused(tmp_path: Path) -> None:
    started = Started(tmp_path, "--ready-file", str(tmp_path / "none" / "ready"))
    try:
        assert started.process.wait(30) == 64
    finally:
        started.stop()


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        started = Started(tmp_path)
        try:
            assert channel.recv(100) == b"READY=1"
            assert started.signalled(signal.SIGTERM) == 0
            assert channel.recv(100) == b"STOPPING=1"
        finally:
            started.stop()


def test_what_was_published_is_there_after_a_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("headrace.storage.store")
    first = Started(tmp_path, storage="disk").ready()
    try:
        url = first.addresses["url"]
        assert main(["queue", "declare", "q", "--url", url]) == 0
        assert main(["publish", "q", "kept", "--url", url]) == 0
        assert first.signalled(signal.SIGKILL) == -signal.SIGKILL
        assert first.ready_file.exists(), "a killed broker cannot take its ready file away"
        first.ready_file.unlink()
        second = Started(tmp_path, storage="disk")
        try:
            url = second.ready().addresses["url"]
            locked = Started(tmp_path, "--ready-file", str(tmp_path / "other.json"), storage="disk")
            assert locked.process.wait(30) == 73, locked.log.read_text()
            capsys.readouterr()
            assert main(["consume", "q", "--url", url]) == 0
            assert capsys.readouterr().out == "kept\n"
            assert second.signalled(signal.SIGTERM) == 0
        finally:
            second.stop()
    finally:
        first.stop()


def test_a_stale_ready_file_is_gone_before_anything_is_served(tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text('{"url": "headrace://127.0.0.1:1", "admin": ""}')
    started = Started(tmp_path, "--admin", "nonsense")
    try:
        assert started.process.wait(30) == 64
        assert started.ready_file.exists(), "a mistake in the command line changes nothing"
    finally:
        started.stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        started = Started(tmp_path, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        try:
            assert started.process.wait(30) != 0
            assert not started.ready_file.exists()
        finally:
            started.stop()


def test_an_open_listener_is_warned_of(tmp_path: Path) -> None:
    started = Started(tmp_path, "--listen", "0.0.0.0:0")
    try:
        url = started.ready().addresses["url"]
        assert "0.0.0.0" not in url
        assert "WARNING" in started.log.read_text()
        assert "listen.native" in started.log.read_text()
        assert started.signalled(signal.SIGTERM) == 0
    finally:
        started.stop()


def test_commands_import_only_what_they_need() -> None:
    heavy = {"asyncio", "fastapi", "uvicorn", "rich", "uvloop", "lmdb", "cramjam", "prometheus_client", "headrace.broker.broker"}
    code = f"from headrace.cli.app import app; import sys; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_broker_that_nobody_asks_over_http_has_no_web_framework() -> None:
    code = """
import asyncio, sys
from headrace.admin.serving import serve
async def main():
    port, stop = await serve(None, "127.0.0.1", 0)
    await stop()
asyncio.run(main())
import headrace.admin.listen
print(sorted({"fastapi", "pydantic", "uvicorn", "starlette", "prometheus_client"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("ready", [True, False], ids=["serving", "starting"])
def test_the_end_of_its_input_stops_it_cleanly(tmp_path: Path, ready: bool) -> None:
    started = Started(tmp_path, "--stop-on-eof", stdin=subprocess.PIPE)
    try:
        assert started.process.stdin is not None
        if ready:
            started.ready()
            started.process.stdin.write(b"what it says is ignored\n")
            started.process.stdin.flush()
            assert httpx.get(f"{started.addresses['admin']}/admin/api/ready", timeout=READY_S).status_code == 200
        started.process.stdin.close()
        assert started.process.wait(30) == 0, started.log.read_text()
    finally:
        started.stop()
    assert "standard input has ended, so the broker stops" in started.log.read_text()
    assert not started.ready_file.exists()


def test_without_that_option_the_end_of_its_input_is_nothing(own: Started) -> None:
    assert httpx.get(f"{own.addresses['admin']}/admin/api/ready", timeout=READY_S).status_code == 200  # its input is at its end from the beginning
    assert own.process.poll() is None
