"""What an MQTT connection needs of its broker: the router it belongs to, the time, and when something is durable."""

from collections.abc import Callable
from typing import Any, Protocol

from headrace.core.mqtt.lending import Consumers
from headrace.core.mqtt.router import Router
from headrace.wire.mqtt.packets import Connect


class Host(Protocol):
    """See the module's head."""

    router: Router

    @property
    def wall_ms(self) -> int:
        """The wall clock of this turn."""

    def committed(self, answer: Callable[[], None], unsure: Callable[[], None] | None = None) -> None:
        """Calls ``answer`` once all that the router has changed so far is durable; at once, if it is. ``unsure`` is called instead where it will
        not be known of some of it, since a session partition has left this broker; without it, ``answer`` is, once the rest is durable."""

    def announced(self, answer: Callable[[], None]) -> None:
        """Calls ``answer`` once other brokers know the subscriptions there are now, or have had the time; at once, if nobody else has to."""

    def touch(self, connection: Any) -> None:
        """The connection has something to send: ``output`` is called at the end of this turn."""

    def assigned_id(self) -> str:
        """A client id for a client without one, different each time [MQTT-3.1.3-6]."""

    def refusing(self) -> bool:
        """Nothing can be stored now: the disk is nearly full, the log has failed, or the broker is going away."""

    def consumers(self, connection: Any) -> Consumers:
        """What consumes queues and streams for ``connection``, a machine that was accepted."""

    def authenticate(self, asked: Connect) -> int:
        """The reason with which a CONNECT is answered: 0 = it may."""
