"""Where a message goes: what a topic matches, as the router keeps it until a subscription changes.

Owns the words between the router and those who get something: a session's connection, a session with its subscriptions, a session partition of
another broker. Decides nothing.
"""

from typing import Protocol

from headrace.core.mqtt.captured import Capture
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.session import Session
from headrace.core.mqtt.shared import Group
from headrace.core.mqtt.subscription import Subscription


class Outlet(Protocol):
    """A session's connection, as the router sees it."""

    version: int

    def send(self, message: Message, retain: bool, ids: tuple[int, ...]) -> None:
        """A message of QoS 0, now or never."""

    def wake(self) -> None:
        """There is something in the session's inbox."""

    def replaced(self, reason: int) -> None:
        """It has the session no more, since another connection has taken it over [MQTT-3.1.4-3]: it is told that reason and closed."""

    def moved(self) -> None:
        """Another broker serves the session."""

    def skip(self, sequences: list[int]) -> None:
        """The session has given these up; they were not sent."""


class Remote:
    """A session partition that another broker serves, and that wants what a filter matches."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Route:
    """What one session gets of a topic."""

    __slots__ = ("ids", "local", "qos", "retain", "session", "subscriptions")

    def __init__(self, session: Session, subscriptions: list[Subscription]) -> None:
        self.session = session
        self.subscriptions = subscriptions
        self.qos = max(s.qos for s in subscriptions)
        self.retain = any(s.retain_as_published for s in subscriptions)
        self.ids = tuple(s.identifier for s in subscriptions if s.identifier)
        self.local = not any(s.no_local for s in subscriptions)
        """Whether it gets its own messages too."""


class Routes:
    """What a topic matches."""

    __slots__ = ("captures", "groups", "nobody", "remotes", "routes")

    def __init__(self, routes: list[Route], groups: list[Group], captures: list[Capture], remotes: list[int]) -> None:
        self.remotes = remotes
        """Numbers of session partitions that other brokers serve."""
        self.routes = routes
        self.groups = groups
        self.captures = captures
        self.nobody = not (routes or groups or captures or remotes)
