import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.coordination.etcds import Ensemble, EtcdPlace, Member
from tests.integration.coordination.places import LocalPlace, MemoryPlace, Place


@pytest.fixture(scope="session")
def lone_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """One etcd for all tests that do not hurt it; it runs while no loop does, which is what a broker's restart looks like to it."""
    folder = tmp_path_factory.mktemp("etcd")
    member = Member("lone", folder)

    async def start() -> None:
        await member.start([member])
        await member.ready()
        assert member.supervisor is not None
        await member.supervisor.leave()

    with ThreadPoolExecutor(1) as beside:  # a fixture may be made within a running loop
        beside.submit(lambda: asyncio.run(start())).result()
        yield member
        beside.submit(lambda: asyncio.run(member.stop())).result()


@pytest.fixture(params=["local", "memory", "etcd"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    made: Place
    if request.param == "etcd":
        member: Member = request.getfixturevalue("lone_etcd")
        made = EtcdPlace(str(member.client), f"{request.node.name}/")
    else:
        made = LocalPlace() if request.param == "local" else MemoryPlace()
    yield made
    await made.close()


@pytest.fixture
def shared(place: Place) -> Place:
    if not place.shared:
        pytest.skip("a lone broker's coordinator has one user")
    return place


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Ensemble]:
    """Three voters of this test's own."""
    ensemble = Ensemble(tmp_path, 3)
    try:
        await ensemble.start()
        yield ensemble
    finally:
        await ensemble.close()
