"""A real broker for tests: in process, on a temporary directory, on a port that the system picks, in well under a second.

``async with headrace.testing.broker() as b: ... b.url`` on the running loop, ``with headrace.testing.blocking_broker() as b`` in a thread of its
own. ``@headrace.testing.simulated(seeds=50)`` runs a test on virtual time instead, where broker, network and the test's own processes can be killed,
paused and cut off, in milliseconds and the same way each time (docs/testing-your-app.md). With pytest the fixtures ``headrace_broker``,
``headrace_connect`` and ``headrace_blocking_client`` are there without importing anything (see ``plugin``). Loaded at first use: pytest imports this
package in every run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.testing.brokers import BlockingTestBroker, TestBroker, blocking_broker, broker
    from headrace.testing.running import BrokerError, NotRepeatable, Run, SimulationTimeout, run_simulated, simulated
    from headrace.testing.simulation import Simulation

__all__ = [
    "BlockingTestBroker",
    "TestBroker",
    "blocking_broker",
    "broker",
    "simulated",
    "run_simulated",
    "Simulation",
    "Run",
    "SimulationTimeout",
    "NotRepeatable",
    "BrokerError",
]

_WHERE = {"Simulation": "simulation"} | dict.fromkeys(
    ("simulated", "run_simulated", "Run", "SimulationTimeout", "NotRepeatable", "BrokerError"), "running"
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'headrace.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"headrace.testing.{_WHERE.get(name, 'brokers')}"), name)
