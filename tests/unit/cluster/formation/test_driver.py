"""The driver with a disk in memory and a consensus that is a list: what it tells the machine, when, and what it never does."""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from headrace.cluster.formation.driver import Around, Driver
from headrace.cluster.formation.place import Request, Seen
from headrace.cluster.formation.slots import Slots
from headrace.core.formation import effects
from headrace.core.formation.books import Found
from headrace.core.formation.effects import Consensus, ConsensusMember, State, Verdict
from headrace.core.formation.machine import Formation
from headrace.core.formation.messages import AnyMessage, Hello
from headrace.core.formation.parsing import parse
from headrace.core.formation.records import Charter
from headrace.model.errors import CoordinatorUnavailable
from headrace.model.formation import Declared
from headrace.storage.files import MemoryFiles


def declared(version: int = 1, voters: str = "a", **rest: Any) -> Declared:
    config = parse({"version": version, "members": list(voters), **rest}).config
    assert config is not None
    return config


class Alone:
    """A consensus of one member: it leads as soon as it is started. Implements ``Place``."""

    def __init__(self) -> None:
        self.trouble = ""
        self.coordinator = None
        self.did: list[str] = []
        self.charter: Charter | None = None
        self.members: tuple[ConsensusMember, ...] = ()
        self.faults: list[str] = []
        self.slow = asyncio.Event()
        self.slow.set()
        self.looking = asyncio.Event()

    def found(self) -> int:
        return 0

    async def start(self, effect: effects.StartConsensus) -> None:
        self.did.append(f"start {effect.mode}")
        self.members = tuple(ConsensusMember(n, s, False, True) for n, s, _ in effect.initial)

    async def stop(self, *, drop: bool) -> None:
        self.did.append("stop")
        self.members = ()

    async def follow(self, effect: effects.Follow) -> None:
        self.did.append("follow")

    async def carry_out(self, request: Request) -> None:
        self.did.append(type(request).__name__)
        if self.faults:
            raise CoordinatorUnavailable(self.faults.pop())
        if isinstance(request, effects.Commit):
            self.charter = request.charter

    async def look(self) -> Seen | None:
        if not self.members:
            return None
        seen = Seen(Consensus(running=True, leader="a", caught_up=True, members=self.members), read=True, charter=self.charter)
        self.looking.set()
        await self.slow.wait()
        return seen

    async def forget(self) -> None:
        self.did.append("forget")
        self.members, self.charter = (), None

    async def close(self) -> None:
        self.did.append("close")

    def view(self) -> dict[str, Any]:
        return {}


class Broker(Around):
    def __init__(self) -> None:
        self.told: list[str] = []

    def changed(self, standing: effects.Standing) -> None:
        self.told.append(standing.code)

    async def quiet(self, reason: str) -> None:
        self.told.append("quiet")


class Room:
    """One driver with all that it needs."""

    def __init__(self, config: Declared | None = None) -> None:
        self.fault: Callable[[str], None] = lambda operation: None
        self.files = MemoryFiles(fault=lambda operation, path, nbytes: self.fault(operation))
        self.slots = Slots(self.files, "/data")
        self.slots.open()
        self.slots.data = lambda: ()  # type: ignore[method-assign]  # a disk in memory has no directories
        self.place, self.broker = Alone(), Broker()
        self.sent: list[tuple[str, AnyMessage]] = []
        found = Found(name="a", address="a:7582", configured=config, entropy=bytes(16))
        self.driver = Driver(found, self.slots, self.place, self.broker)

    def begin(self) -> "Room":
        self.driver.begin(lambda to, address, message: self.sent.append((to, message)), dict)
        return self

    async def until(self, code: str) -> None:
        async with asyncio.timeout(10):
            await self.driver.until(lambda s: s.code == code)


@pytest.fixture
async def rooms() -> AsyncIterator[Callable[..., Room]]:
    made: list[Room] = []

    def make(config: Declared | None = None) -> Room:
        made.append(Room(config))
        return made[-1]

    yield make
    for room in made:
        await room.driver.stop()


async def test_one_voter_becomes_a_cluster_and_its_records_say_so(rooms: Callable[..., Room]) -> None:
    room = rooms(declared()).begin()
    await room.until("serving")
    assert room.driver.ready
    status = room.driver.status()
    assert (status["state"], status["ready"], status["leader"], status["waits_for"]) == ("active", True, "a", [])
    records, wrong = room.slots.read()
    assert wrong == ""
    assert records == room.driver.records
    assert records.identity is not None
    assert (records.identity.formed, records.identity.cluster_id) == (True, status["cluster_id"])
    assert room.place.did[:2] == ["start new", "Commit"]
    assert room.broker.told[-1] == "serving"


async def test_what_it_waits_for_is_always_said(rooms: Callable[..., Room]) -> None:
    room = rooms()
    assert room.driver.status()["reason"] == "has not begun yet"
    assert (await room.driver.feed(declared())).verdict is Verdict.BUSY
    room.begin()
    await room.until("no_config")
    answer = await room.driver.feed(declared(voters="abc"))
    assert answer.verdict is Verdict.BEGUN
    await room.until("members_missing")
    status = room.driver.status()
    assert [w["name"] for w in status["waits_for"]] == ["b", "c"]
    assert all(w["since_wall_ms"] > 1_600_000_000_000 for w in status["waits_for"])
    assert not status["ready"]
    assert status["reason"] == "b is not reachable; c is not reachable"
    assert {to for to, message in room.sent if isinstance(message, Hello)} == {"b", "c"}


async def test_begun_is_said_once_it_is_durable_and_a_full_disk_is_waited_for(
    rooms: Callable[..., Room], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cluster.formation.driver.WRITE_AGAIN_S", 0.05)
    room = rooms().begin()
    await room.until("no_config")
    full = True

    def fault(operation: str) -> None:
        if full and operation == "pwritev_durable":
            raise OSError(errno.ENOSPC, "full")

    room.fault = fault
    feeding = asyncio.ensure_future(room.driver.feed(declared(2, "abc")))
    await asyncio.sleep(0.3)
    assert not feeding.done()
    assert room.driver.status()["writing"] == "Held"
    assert room.slots.read()[0].held is None
    assert "cannot be written" in caplog.text
    full = False
    assert (await asyncio.wait_for(feeding, 10)).verdict is Verdict.BEGUN
    held = room.slots.read()[0].held
    assert held is not None
    assert held.config == declared(2, "abc")


async def test_a_request_that_failed_is_asked_for_again_after_a_while(rooms: Callable[..., Room]) -> None:
    room = rooms(declared())
    room.place.faults = ["no quorum", "no quorum"]
    room.begin()
    await room.until("serving")
    assert room.place.did.count("Commit") == 3
    assert room.driver.status()["last_error"] == "no quorum"


async def test_what_was_seen_before_the_member_was_stopped_is_not_told_after(rooms: Callable[..., Room]) -> None:
    room = rooms(declared()).begin()
    await room.until("serving")
    room.place.slow.clear()
    room.place.looking.clear()
    await asyncio.wait_for(room.place.looking.wait(), 10)
    told: list[Consensus] = []
    machine = room.driver._machine
    assert machine is not None
    machine.consensus = lambda consensus, now_ms: told.append(consensus)  # type: ignore[method-assign]
    room.driver._begin(effects.StopConsensus(False, "test"))
    while "stop" not in room.place.did:
        await asyncio.sleep(0.01)
    room.place.slow.set()
    await asyncio.sleep(0.1)
    assert told == [effects.NO_CONSENSUS]


async def test_a_reset_sets_everything_aside_and_begins_anew(rooms: Callable[..., Room]) -> None:
    room = rooms(declared()).begin()
    await room.until("serving")
    before = room.driver.records.identity
    assert before is not None
    answer = await room.driver.feed(declared(2, gospel="reset", confirm_discard=[before.cluster_id]))
    assert answer.verdict is Verdict.BEGUN
    async with asyncio.timeout(10):
        while room.driver.status()["cluster_id"] in (before.cluster_id, "") or not room.driver.ready:
            await asyncio.sleep(0.02)
    assert room.broker.told.index("setting_aside") < room.broker.told.index("quiet")
    assert room.place.did.index("forget") < len(room.place.did) - 1 - room.place.did[::-1].index("start new")
    now = room.driver.records.identity
    assert now is not None
    assert (now.node_id, now.incarnation) != (before.node_id, before.incarnation)


async def test_a_mistake_of_the_machine_ends_serving_and_is_said(
    rooms: Callable[..., Room], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = rooms(declared()).begin()
    await room.until("serving")

    def broken(self: Formation, name: str, now_ms: int) -> None:
        raise AssertionError("never")

    monkeypatch.setattr(Formation, "peer_lost", broken)
    room.driver.peer_lost("b")
    assert not room.driver.ready
    assert room.driver.standing.state is State.HALTED
    assert "never" in room.driver.status()["reason"]
    assert room.broker.told[-1] == "failed"
    assert any(r.levelno == logging.ERROR and "has failed" in r.message for r in caplog.records)
    assert (await room.driver.feed(declared(9))).verdict is Verdict.BUSY


async def test_stopping_hands_over_first(rooms: Callable[..., Room]) -> None:
    room = rooms(declared()).begin()
    await room.until("serving")
    room.driver.stopping("the broker is being stopped")
    assert room.driver.standing.state is State.DRAINING
    assert not room.driver.ready
