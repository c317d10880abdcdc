"""Visits over real sockets: between brokers of no cluster or of two, bounded and authenticated as all connections are."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from headrace.cluster.secret import Secrets
from headrace.cluster.transport import Lost, Me, Settings, Transport, Visit
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Address
from headrace.model.errors import Conflict, HeadraceError, LimitExceeded, NotFound, Unauthorized
from headrace.wire.peer import PeerOp, Service
from tests.integration.transport.ends import OTHER, SECRET, A, B, End, meet

QUICK = Settings(beat_ms=20, silent_beats_max=10, opening_ms=400, retry_ms_min=10, retry_ms_max=100)
HERE = Address("127.0.0.1", 0)


class Hall:
    """Takes visits, and remembers."""

    def __init__(self, id: str, cluster: str = "", secret: bytes = SECRET) -> None:
        me = Me(broker=BrokerId(id), incarnation=Incarnation(f"{id}-1"), cluster=cluster)
        self.transport = Transport(me, Secrets([secret]), QUICK)
        self.transport.on_visit(self)
        self.visits: list[Visit] = []
        self.heard: list[bytes] = []
        self.over: list[Lost] = []
        self.changed = asyncio.Event()

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.transport.port)

    def came(self, visit: Visit) -> None:
        self.visits.append(visit)
        self.changed.set()

    def said(self, visit: Visit, body: bytes) -> None:
        self.heard.append(body)
        self.changed.set()

    def ended(self, visit: Visit, why: Lost) -> None:
        self.over.append(why)
        self.changed.set()

    async def until(self, count: int, of: list[bytes] | list[Lost] | list[Visit]) -> None:
        async with asyncio.timeout(10):
            while len(of) < count:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def halls() -> AsyncIterator[list[Hall]]:
    made = [Hall("a", "one"), Hall("b", "two"), Hall("c", secret=OTHER)]
    for hall in made:
        await hall.transport.start(HERE)
    yield made
    for hall in made:
        await hall.transport.stop()


async def test_between_two_clusters_both_ways_whoever_dials(halls: list[Hall]) -> None:
    a, b, _ = halls
    for one, other in ((a, b), (b, a)):
        visit = await one.transport.visit(other.address)
        assert visit.dialed
        assert visit.send(b"hel", b"lo")
        await other.until(1, other.heard)
        assert other.heard.pop() == b"hello"
        [came] = other.visits
        assert came.send(b"answer")
        await one.until(1, one.heard)
        assert one.heard.pop() == b"answer"
        visit.close()
        await other.until(1, other.over)
        await one.until(1, one.over)
        assert [one.over.pop().kind, other.over.pop().kind] == ["closed", "goodbye"]
        assert not visit.send(b"too late")
        other.visits.clear()


async def test_a_stranger_is_refused(halls: list[Hall]) -> None:
    a, _, c = halls
    with pytest.raises(Unauthorized):
        await c.transport.visit(a.address)
    with pytest.raises(Conflict, match="both sides"):
        await a.transport.visit(a.address)
    assert a.visits == []


async def test_a_visit_carries_nothing_else(halls: list[Hall]) -> None:
    a, b, _ = halls
    visit = await a.transport.visit(b.address)
    visit._link.send(PeerOp.BATCH, (b"entries",), service=Service.REPLICAS)
    await b.until(1, b.over)
    assert b.over[0].kind == "broken"
    assert b.heard == []


async def test_the_death_of_the_visited_is_noticed(halls: list[Hall]) -> None:
    a, b, _ = halls
    await a.transport.visit(b.address)
    await b.until(1, b.visits)
    b.visits[0]._link._transport.abort()  # type: ignore[union-attr]
    await a.until(1, a.over)
    assert a.over[0].kind == "reset"


async def test_who_takes_none_says_so_and_visits_are_bounded(halls: list[Hall], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = halls
    lone = await End("z").start()
    try:
        with pytest.raises(NotFound):
            await a.transport.visit(lone.address)
        monkeypatch.setattr("headrace.cluster.transport.visits.VISITS_MAX", 1)
        await a.transport.visit(b.address)
        with pytest.raises(LimitExceeded):
            await b.transport.visit(a.address)
    finally:
        await lone.transport.stop()


async def test_peers_are_connected_beside_it_and_again_under_another_id() -> None:
    a, b = End("a", settings=QUICK), End("b", settings=QUICK)
    halls = []
    try:
        for end in (a, b):
            await end.start()
            hall = Hall.__new__(Hall)
            hall.visits, hall.heard, hall.over, hall.changed, hall.transport = [], [], [], asyncio.Event(), end.transport
            end.transport.on_visit(hall)
            halls.append(hall)
        visit = await b.transport.visit(a.address)
        await meet(a, b)
        a.transport.become(BrokerId("a2"))
        await b.seen.until(lambda: not b.transport.connected(A))
        assert not a.transport.connected(B)
        assert a.transport.me.cluster == ""
        assert visit.send(b"still")
        await halls[0].until(1, halls[0].heard)
        assert halls[0].over == []
    finally:
        await a.transport.stop()
        await b.transport.stop()


async def test_a_visit_that_cannot_be(halls: list[Hall]) -> None:
    a, b, _ = halls
    at = b.address
    await b.transport.stop()
    with pytest.raises((OSError, HeadraceError)):
        await a.transport.visit(at)
