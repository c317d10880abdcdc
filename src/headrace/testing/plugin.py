"""The pytest plugin: fixtures that start a real broker and connect to it, options for simulated tests. Found through the entry point ``pytest11``.

Imports nothing but pytest until a fixture is used. The broker runs in a thread of its own, so that the same fixture serves plain and async tests of
any loop.
"""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from headrace.client.blocking import BlockingClient
    from headrace.client.client import Connecting
    from headrace.testing.brokers import BlockingTestBroker

SEED, SEEDS = "HEADRACE_SEED", "HEADRACE_SEEDS"
"""What ``headrace.testing.simulated`` reads."""
_before = pytest.StashKey[dict[str, str | None]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("headrace", "simulated tests (headrace.testing.simulated)")
    group.addoption("--headrace-seed", type=int, metavar="SEED", help="run simulated tests under this seed only, as a failed one told")
    group.addoption("--headrace-seeds", metavar="N or A-B", help="run simulated tests under so many seeds, or these, whatever they say themselves")


def pytest_configure(config: pytest.Config) -> None:
    before = config.stash[_before] = {}
    for name, value in ((SEED, config.getoption("--headrace-seed")), (SEEDS, config.getoption("--headrace-seeds"))):
        if value is not None:
            before[name] = os.environ.get(name)
            os.environ[name] = str(value)


def pytest_unconfigure(config: pytest.Config) -> None:
    for name, value in config.stash.get(_before, {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def pytest_report_header() -> str | None:
    chosen = [f"{name}={os.environ[name]}" for name in (SEED, SEEDS) if os.environ.get(name)]
    return f"headrace: simulated tests run under {' '.join(chosen)}" if chosen else None


@pytest.fixture
def headrace_broker() -> "Iterator[BlockingTestBroker]":
    """A broker of this test's own: ``headrace_broker.url``; ``restart()`` and ``cut()`` it as you like."""
    from headrace.testing.brokers import blocking_broker

    with blocking_broker() as broker:
        yield broker


@pytest.fixture
def headrace_connect(headrace_broker: "BlockingTestBroker") -> "Callable[..., Connecting]":
    """``async with headrace_connect() as client: ...``: an asyncio client of this test's broker; options as for ``headrace.connect``."""
    from headrace.client.client import connect

    def connecting(**options: Any) -> "Connecting":
        return connect(headrace_broker.url, **options)

    return connecting


@pytest.fixture
def headrace_blocking_client(headrace_broker: "BlockingTestBroker") -> "Iterator[BlockingClient]":
    """A blocking client of this test's broker."""
    from headrace.client.blocking import connect

    with connect(headrace_broker.url) as client:
        yield client
