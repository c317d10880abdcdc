"""The pytest plugin: fixtures that start a real broker and connect to it. Found through the entry point ``pytest11``.

Imports nothing but pytest until a fixture is used. The broker runs in a thread of its own, so that the same fixture serves plain and async tests of
any loop.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from headrace.client.blocking import BlockingClient
    from headrace.client.client import Connecting
    from headrace.testing.brokers import BlockingTestBroker


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
