"""What is known of MQTT's messages, subscriptions and sessions in a run: written by the clients, judged by ``checks``.

Owns the records. Times are virtual seconds; ``NEVER`` stands for what has not happened.
"""

from typing import Final

import msgspec

NEVER: Final = float("inf")
SAID_S: Final = 0.2
"""A goodbye has arrived by then, and is durable, if nothing is wrong: twice as long as the slowest of hundreds took."""


class Published(msgspec.Struct):
    """A message with a number of its own. ``at``: when it was first sent, a will: with its CONNECT."""

    number: int
    publisher: str
    topic: str
    qos: int
    retain: bool = False
    will: bool = False
    clears: bool = False
    """Of a retained topic: it has no payload."""
    at: float = NEVER
    acked_at: float = NEVER
    refused: bool = False
    """Its acknowledgement said that it failed, or nobody will ever acknowledge it."""
    again: bool = False
    """It was sent more than once."""
    died_at: float = NEVER
    """A will: when its client, which had been connected, was gone, as the client saw it."""
    due: int = 0
    """A will: how often it must be published at least; ``most``: and at most."""
    most: int = 1


class Wanted(msgspec.Struct):
    """A subscription of a session, from SUBSCRIBE to UNSUBSCRIBE."""

    filter: str
    path: str
    group: str
    known_at: float = NEVER
    """When SUBACK had come and, if anything was wrong then, every broker had heard of it."""
    acked_at: float = NEVER
    gone_at: float = NEVER
    """When UNSUBSCRIBE was sent, or the session ended."""


class Got(msgspec.Struct):
    """A message that a client took."""

    number: int
    qos: int
    dup: bool
    retain: bool
    at: float
    session: int = 0
    """Which one of the client, if it has one after the other."""


class Kept(msgspec.Struct):
    """A session that outlives its connections, or one that does not."""

    client_id: str
    qos: int
    durable: bool
    wanted: list[Wanted] = []
    got: list[Got] = []


class Books:
    """Of one run."""

    def __init__(self) -> None:
        self.messages: dict[int, Published] = {}
        self.sessions: dict[str, Kept] = {}
        self.broken: list[str] = []
        """What clients saw that may not be, whatever comes later."""

    def message(self, publisher: str, topic: str, qos: int, *, retain: bool = False, will: bool = False, clears: bool = False) -> Published:
        number = len(self.messages) + 1
        made = self.messages[number] = Published(number, publisher, topic, qos, retain, will, clears)
        return made

    def disturbed(self, now: float) -> None:
        """Something goes wrong now: a goodbye that was just said may be lost, as nothing answers it."""
        for message in self.messages.values():
            if message.will and not message.most and 0 <= now - message.died_at <= SAID_S:
                message.most = 1
