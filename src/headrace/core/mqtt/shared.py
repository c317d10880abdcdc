"""Who of a shared subscription gets the next message.

Owns the order of the members of each group; a group is one (name, filter). Members take turns; one that has no connection gets something only while
nobody else is there [MQTT-4.8.2-4]. Knows members only by their sessions.
"""

from headrace.core.mqtt.session import Session
from headrace.core.mqtt.subscription import Subscription


class Group:
    """The members of one shared subscription, in the order in which their turn comes."""

    __slots__ = ("members", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        """The filter as its subscribers write it."""
        self.members: dict[str, tuple[Session, Subscription]] = {}

    @property
    def empty(self) -> bool:
        return not self.members

    def choose(self, publisher: str = "") -> tuple[Session, Subscription] | None:
        """Whose turn it is: the first that is connected with room in its receive maximum, else the first that is connected, else the first durable
        one. Its next turn comes after all others'."""
        connected = away = ""
        for client_id, (session, _) in self.members.items():
            if session.outlet is not None:
                if not session.inbox and len(session.in_flight) < session.receive_maximum:
                    return self._take(client_id)
                connected = connected or client_id
            elif session.durable:
                away = away or client_id
        chosen = connected or away
        return self._take(chosen) if chosen else None

    def _take(self, client_id: str) -> tuple[Session, Subscription]:
        member = self.members.pop(client_id)
        self.members[client_id] = member
        return member
