"""Deliveries from queues and streams to an MQTT client, and what consumes for it.

Owns the words between the connection machine and the broker's consumers. Such a delivery is lent: it belongs to its queue or stream, which takes it
back when the connection ends; the session keeps no more of it than its packet identifier.
"""

from collections.abc import Callable
from typing import Any, Protocol

from headrace.core.mqtt.subscription import Subscription
from headrace.model.errors import HeadraceError
from headrace.wire.mqtt.properties import Properties

Opened = Callable[[HeadraceError | None], None]


class Lent:
    """One delivery. ``consumed`` and what follows it are its consumer's."""

    __slots__ = ("consumed", "epoch", "offset", "partition", "payload", "properties", "qos", "topic")

    def __init__(
        self, topic: str, payload: bytes, properties: Properties, qos: int, consumed: Any, partition: int, epoch: int, offset: int
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.properties = properties
        self.qos = qos
        self.consumed = consumed
        self.partition = partition
        self.epoch = epoch
        self.offset = offset


class Consumers(Protocol):
    """What consumes queues and streams for one connection."""

    def begin(self, subscription: Subscription, opened: Opened, *, again: bool = False) -> None:
        """Begins; one of the same filter ends. ``opened`` is told once. ``again``: it has been open before, so what can be had later is waited
        for where that may help."""

    def cease(self, filter: str) -> None:
        """Ends the one of that filter, if there is one: what it holds goes back."""

    def given(self, lent: Lent) -> None:
        """A delivery of QoS 0 was sent."""

    def acked(self, lent: Lent, failed: bool) -> None:
        """The client has a delivery, or said (or is too small) that it cannot take it."""

    def settle(self, name: str, id: str, action: int, settled: Opened) -> None:
        """Settles what this connection holds of a queue; ``settled`` is told once that is durable, or why not."""

    def end(self) -> None:
        """The connection is gone: what it holds is taken back."""
