"""Questions to etcd: how long a change that is not answered is waited for, on virtual time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from headrace.cluster.etcd.calls import ANSWER_TIMEOUT_S, LOOK_S, SILENT, Access, Calls
from headrace.model.errors import UnknownOutcome
from headrace.sim.chance import Chance
from headrace.sim.loop import SimLoop


class Member:
    """An endpoint that never answers a change. ``term``: what it says of itself, None while it is silent."""

    def __init__(self, address: str, term: int | None) -> None:
        self.address, self.term = address, term
        self.maintenance = SimpleNamespace(Status=self._status)

    async def _status(self, request: Any, *, timeout: float, metadata: Any) -> Any:
        await asyncio.sleep(0 if self.term else timeout)
        if not self.term:
            raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata())
        return SimpleNamespace(leader=1, raftTerm=self.term)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cluster.etcd.calls.Seat", lambda address, access: Member(address, 1))


def given_up(member: Member, *, elected_s: float = 0) -> tuple[float, UnknownOutcome, bool]:
    """After how many seconds a change is given up and why, and whether another endpoint is asked next."""
    loop = SimLoop(Chance(1), rows_max=0)  # type: ignore[abstract]

    async def run() -> tuple[float, UnknownOutcome, bool]:
        calls = Calls(["", "other"], Access(), timeout_s=5.0, answer_timeout_s=ANSWER_TIMEOUT_S)
        calls._seats[0] = member  # type: ignore[call-overload]
        if elected_s:
            loop.call_later(elected_s, setattr, member, "term", 8)
        with pytest.raises(UnknownOutcome) as caught:
            await calls._change(member, asyncio.sleep(ANSWER_TIMEOUT_S))  # type: ignore[arg-type]
        return loop.time(), caught.value, calls.best() is not member  # type: ignore[comparison-overlap]

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def test_a_change_at_an_endpoint_that_is_silent_is_given_up_long_before_its_time_is_over() -> None:
    took_s, why, other = given_up(Member("cut off", None))
    assert "is silent" in str(why)
    assert took_s < SILENT * ANSWER_TIMEOUT_S + 3 * LOOK_S < ANSWER_TIMEOUT_S / 2
    assert other


def test_a_change_is_given_up_once_another_leads() -> None:
    took_s, why, _ = given_up(Member("follower", 7), elected_s=0.5)
    assert "has another leader" in str(why)
    assert 0.5 < took_s < 0.5 + 4 * LOOK_S
