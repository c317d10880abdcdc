"""The log is told of refused connections, and not filled by them."""

import pytest

from headrace.cluster.transport.counters import AGAIN_MS, HOSTS_MAX, Refusals
from headrace.model.errors import Unauthorized, WrongProtocol


def test_each_reason_once_a_minute_and_host(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for port in range(100):
        refusals.refused(f"h:{port}", Unauthorized("its secret"), port)
    refusals.refused("h:1", WrongProtocol("HTTP"), 100)
    refusals.refused("g:1", Unauthorized("its secret"), 100)
    assert len(caplog.records) == 3
    refusals.refused("h:1", Unauthorized("its secret"), AGAIN_MS + 1)
    assert len(caplog.records) == 4


def test_many_hosts_are_told_of_slowly(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for i in range(100_000):
        refusals.refused(f"h{i}:1", WrongProtocol("garbage"), i)
    assert len(caplog.records) <= HOSTS_MAX * (2 + 100_000 // (AGAIN_MS // HOSTS_MAX))
    assert len(refusals._told_ms) <= HOSTS_MAX
