"""Headrace: a clustered message broker. Durable queues, replayable streams and MQTT on one replicated log.

The client's names are loaded at first use, so that ``import headrace`` stays light.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from headrace import blocking, errors
    from headrace.blocking import connect as connect_blocking
    from headrace.client.client import Client, connect
    from headrace.client.cluster_admin import ClusterAdmin
    from headrace.client.consumer import Consumer
    from headrace.client.lane import Receipt
    from headrace.client.message import Message
    from headrace.client.publisher import Outgoing, Publisher
    from headrace.client.reader import Reader, Record
    from headrace.model.errors import HeadraceError
    from headrace.model.specs import QueueSpec, StreamSpec
    from headrace.wire.control import Filter

__all__ = [
    "connect",
    "connect_blocking",
    "blocking",
    "errors",
    "Client",
    "ClusterAdmin",
    "Consumer",
    "Filter",
    "HeadraceError",
    "Message",
    "Outgoing",
    "Publisher",
    "QueueSpec",
    "Reader",
    "Receipt",
    "Record",
    "StreamSpec",
    "__version__",
]

_WHERE = {
    "connect": ("headrace.client.client", "connect"),
    "connect_blocking": ("headrace.blocking", "connect"),
    "blocking": ("headrace.blocking", ""),
    "errors": ("headrace.errors", ""),
    "Client": ("headrace.client.client", "Client"),
    "ClusterAdmin": ("headrace.client.cluster_admin", "ClusterAdmin"),
    "Consumer": ("headrace.client.consumer", "Consumer"),
    "Filter": ("headrace.wire.control", "Filter"),
    "HeadraceError": ("headrace.model.errors", "HeadraceError"),
    "Message": ("headrace.client.message", "Message"),
    "Outgoing": ("headrace.client.publisher", "Outgoing"),
    "Publisher": ("headrace.client.publisher", "Publisher"),
    "QueueSpec": ("headrace.model.specs", "QueueSpec"),
    "Reader": ("headrace.client.reader", "Reader"),
    "Receipt": ("headrace.client.lane", "Receipt"),
    "Record": ("headrace.client.reader", "Record"),
    "StreamSpec": ("headrace.model.specs", "StreamSpec"),
}


def __getattr__(name: str) -> Any:
    """Loads a public name at its first use."""
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(where[0])
    found = getattr(module, where[1]) if where[1] else module
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
