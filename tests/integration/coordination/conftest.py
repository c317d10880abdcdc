from collections.abc import AsyncIterator

import pytest

from tests.integration.coordination.places import LocalPlace, MemoryPlace, Place


@pytest.fixture(params=["local", "memory"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    made: Place = LocalPlace() if request.param == "local" else MemoryPlace()
    yield made
    await made.close()


@pytest.fixture
def shared(place: Place) -> Place:
    if not place.shared:
        pytest.skip("a lone broker's coordinator has one user")
    return place
