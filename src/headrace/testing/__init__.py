"""A real broker for tests: in process, on a temporary directory, on a port that the system picks, in well under a second.

``async with headrace.testing.broker() as b: ... b.url`` on the running loop, ``with headrace.testing.blocking_broker() as b`` in a thread of its
own. With pytest the fixtures ``headrace_broker``, ``headrace_connect`` and ``headrace_blocking_client`` are there without importing anything (see
``plugin``). Loaded at first use: pytest imports this package in every run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.testing.brokers import BlockingTestBroker, TestBroker, blocking_broker, broker

__all__ = ["BlockingTestBroker", "TestBroker", "blocking_broker", "broker"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'headrace.testing' has no attribute {name!r}")
    from headrace.testing import brokers

    return getattr(brokers, name)
