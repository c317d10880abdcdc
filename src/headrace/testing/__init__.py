"""A real broker for tests: in process, on a temporary directory, on a port that the system picks, in well under a second.

``async with headrace.testing.broker() as b: ... b.url`` on the running loop, ``with headrace.testing.blocking_broker() as b`` in a thread of its
own. With pytest the fixtures ``headrace_broker``, ``headrace_client`` and ``headrace_blocking_client`` are there without importing anything (see
``plugin``).
"""

from headrace.testing.brokers import TestBroker, blocking_broker, broker

__all__ = ["TestBroker", "blocking_broker", "broker"]
