"""The admin HTTP about a cluster's formation, and ``ClusterAdmin`` on it: every verb, every verdict, and what answers that is no broker."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from headrace.admin.app import create_app
from headrace.admin.serving import serve
from headrace.cli import main
from headrace.client.cluster_admin import ClusterAdmin
from headrace.model.errors import Conflict, Invalid, Malformed, NotConnected, Refused, UnknownOutcome, WrongProtocol
from headrace.wire import control
from headrace.wire.formation import Fed, Feed, Lost, MemberInfo, Members, Planned, PlannedStep, Secrets, SecretStage
from headrace.wire.topology import CopyRow
from tests.integration.admin_stub import StubBroker

PATH = "/admin/api/cluster"


class Formation:
    """Notes what it is asked, and answers what the test wants."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.fed = Fed(verdict="begun", version=3, reason="version 3 is taken on")
        self.refusal: Conflict | None = None

    def status(self) -> dict[str, Any]:
        return {"name": "a", "state": "wait", "reason": "b is not reachable"}

    def members(self) -> Members:
        member = MemberInfo(name="a", role="voter", vote="voter", leader=True, address="a:7582", reachable=True, since_wall_ms=1)
        return Members(asked="a", cluster_id="1" * 32, version=3, committed=True, members=(member,), toml="version = 3\n")

    def _fed(self, *asked: Any) -> Fed:
        self.asked.append(asked)
        if self.refusal is not None:
            raise self.refusal
        return self.fed

    async def apply(self, feed: Feed) -> Fed:
        return self._fed("apply", feed)

    async def plan(self, feed: Feed) -> Planned:
        step = PlannedStep(kind="enrol", name="d", text="enrol d", blocked="it is not reachable", on=("d",))
        lost = Lost(cluster_id="2" * 32, brokers=("c",), data_bytes=7, confirmed=False)
        return Planned(answer=self._fed("plan", feed), steps=(step,), lost=(lost,), emptied=("b",))

    async def add_voter(self, name: str, address: str = "") -> Fed:
        return self._fed("add", name, address)

    async def remove_voter(self, name: str, *, leave: bool = False) -> Fed:
        return self._fed("remove", name, leave)

    async def secrets(self) -> Secrets:
        return Secrets(broker="a", accepted=("1" * 16,), file=("1" * 16,))

    async def rotate(self, stage: SecretStage) -> Secrets:
        self._fed("rotate", stage)
        return await self.secrets()


@pytest.fixture
def formation() -> Formation:
    return Formation()


@pytest.fixture
def broker(formation: Formation) -> StubBroker:
    made = StubBroker()
    made.formation = formation  # type: ignore[assignment]
    return made


@pytest.fixture
async def http(broker: StubBroker) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(broker)), base_url="http://127.0.0.1:7581") as client:
        yield client


@pytest.fixture
async def admin(broker: StubBroker) -> AsyncIterator[ClusterAdmin]:
    port, stop = await serve(broker, "127.0.0.1", 0)
    yield ClusterAdmin(f"http://127.0.0.1:{port}")
    await stop()


@pytest.mark.parametrize(
    ("verdict", "status"), [("begun", 200), ("already applied", 200), ("invalid", 422), ("older", 409), ("conflict", 409), ("busy", 503)]
)
async def test_a_verdict_is_an_answer_and_a_status(
    http: httpx.AsyncClient, formation: Formation, admin: ClusterAdmin, verdict: Any, status: int
) -> None:
    formation.fed = Fed(verdict=verdict, version=4, reason="because", mistakes=("members: is missing",), warnings=("even",), source="x")
    answered = await http.post(f"{PATH}/apply", json={"text": "version = 3"})
    assert (answered.status_code, answered.json()["verdict"], answered.json()["mistakes"]) == (status, verdict, ["members: is missing"])
    assert await asyncio.to_thread(admin.apply, "version = 3") == formation.fed
    assert (await http.put(f"{PATH}/voters/d")).status_code == status


async def test_every_verb_arrives_as_it_was_meant(admin: ClusterAdmin, formation: Formation) -> None:
    assert (await asyncio.to_thread(admin.status))["reason"] == "b is not reachable"
    assert await asyncio.to_thread(admin.members) == formation.members()
    await asyncio.to_thread(admin.apply)
    await asyncio.to_thread(admin.apply, {"version": 3, "members": ["a"]}, auto_version=True)
    planned = await asyncio.to_thread(admin.plan, "version = 3")
    assert (planned.steps[0].on, planned.lost[0].data_bytes, planned.emptied) == (("d",), 7, ("b",))
    await asyncio.to_thread(admin.add_voter, "d", "d:7582")
    await asyncio.to_thread(admin.remove_voter, "d")
    await asyncio.to_thread(admin.remove_voter, "d.example", leave=True)
    assert (await asyncio.to_thread(admin.secrets)).accepted == ("1" * 16,)
    await asyncio.to_thread(admin.rotate, "remove", force=True)
    assert formation.asked == [
        ("apply", Feed()), ("apply", Feed(config={"version": 3, "members": ["a"]}, auto_version=True)), ("plan", Feed(text="version = 3")),
        ("add", "d", "d:7582"), ("remove", "d", False), ("remove", "d.example", True), ("rotate", SecretStage(stage="remove", force=True)),
    ]  # fmt: skip
    formation.refusal = Conflict("the quorum would be lost: c", hint="start it")
    with pytest.raises(Conflict, match="quorum") as refused:
        await asyncio.to_thread(admin.remove_voter, "b")
    assert refused.value.hint == "start it"


async def test_an_election_with_accepted_loss_is_asked_of_the_broker_and_accepted_as_it_was_shown(
    admin: ClusterAdmin, broker: StubBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = await asyncio.to_thread(admin.force_election, "orders", 2)
    assert (shown.version, shown.chosen, shown.elected) == (7, "1d", False)
    assert shown.copies[1] == CopyRow(broker="2d", name="b", state="dead", why="it is gone", in_sync=True)
    done = await asyncio.to_thread(admin.force_election, "orders", 2, accept=shown, by="ann")
    assert done.elected
    accepted = control.ForceElection(name="orders", partition=2, chosen="1d", accept_data_loss=True, version=7, by="ann")
    assert broker.requests == [control.ForceElection(name="orders", partition=2), accepted]
    broker.requests.clear()
    assert await asyncio.to_thread(main, ["cluster", "force-election", "a/b/2", "--to", "a", "--admin", admin.url]) == 0
    told = capsys.readouterr().out
    for words in ("a *", "1,234", "it is gone", "given up: b.", "nothing was done"):
        assert words in told
    assert await asyncio.to_thread(main, ["cluster", "force-election", "orders", "--accept-data-loss", "--admin", admin.url]) == 0
    assert "a owns partition 0 of orders from epoch 9 on" in capsys.readouterr().out
    first, again, done_by = broker.requests
    assert (first, again) == (control.ForceElection(name="a/b", partition=2, chosen="a"), control.ForceElection(name="orders"))
    assert isinstance(done_by, control.ForceElection)
    assert (done_by.accept_data_loss, done_by.version, done_by.chosen) == (True, 7, "1d")
    assert "headrace cluster force-election" in done_by.by


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/apply", {"file": "x"}), ("POST", "/apply", {"text": 1}), ("POST", "/apply", {"config": []}), ("POST", "/apply", "text"),
        ("POST", "/secrets", {}), ("POST", "/secrets", {"stage": "forget"}), ("PUT", "/voters/d", {"role": "king"}),
        ("POST", "/plan", {"text": "x" * 600_000}), ("POST", "/elections", {}), ("POST", "/elections", {"name": "q", "accept_data_loss": "yes"}),
    ],
)  # fmt: skip
async def test_bad_bodies_are_refused_before_anything_is_asked(
    http: httpx.AsyncClient, formation: Formation, method: str, path: str, body: Any
) -> None:
    refused = await http.request(method, PATH + path, json=body)
    assert refused.status_code in (400, 422)
    assert {"code", "error", "message", "hint", "retriable"} == refused.json().keys()
    assert not formation.asked


async def test_all_of_it_is_described(http: httpx.AsyncClient) -> None:
    described = (await http.get("/admin/api/openapi.json")).json()
    paths = {path.removeprefix(PATH): sorted(verbs) for path, verbs in described["paths"].items() if path.startswith(PATH)}
    assert paths == {
        "": ["get"], "/members": ["get"], "/apply": ["post"], "/plan": ["post"], "/voters/{name}": ["delete", "put"], "/secrets": ["get", "post"],
        "/elections": ["post"],
    }  # fmt: skip
    assert {"Fed", "Planned", "PlannedStep", "Lost", "Members", "MemberInfo", "Secrets"} <= described["components"]["schemas"].keys()
    assert set(described["paths"][f"{PATH}/apply"]["post"]["responses"]) == {"200", "422", "409", "503", "default"}


async def test_a_lone_broker_has_no_formation(http: httpx.AsyncClient, broker: StubBroker, admin: ClusterAdmin) -> None:
    broker.formation = None
    for path in ("", "/members", "/secrets"):
        assert (await http.get(PATH + path)).json()["error"] == "Refused"
    with pytest.raises(Refused, match="alone"):
        await asyncio.to_thread(admin.apply)


async def test_what_is_no_broker_is_told_as_such(admin: ClusterAdmin) -> None:
    answers: list[bytes] = []

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers[-1])
        writer.close()

    server = await asyncio.start_server(other, "127.0.0.1", 0)
    async with server:
        here = ClusterAdmin(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for answer in (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"):
            answers.append(answer)
            with pytest.raises(WrongProtocol):
                await asyncio.to_thread(here.members)
        for answer in (b"", b"nonsense\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhi"):
            answers.append(answer)
            with pytest.raises(UnknownOutcome):
                await asyncio.to_thread(here.members)
    with pytest.raises(NotConnected, match="no broker answers"):
        await asyncio.to_thread(here.status)
    with pytest.raises(Malformed, match="empty"):
        admin.apply("  \n")
    for url in ("https://a", "http://a:99999", "http://", "ftp://x"):
        with pytest.raises(Invalid, match="no address"):
            ClusterAdmin(url)
