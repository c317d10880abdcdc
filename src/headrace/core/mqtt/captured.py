"""What a publish over MQTT is for a queue or stream that gets it."""

from typing import Literal

import msgspec

Kind = Literal["queue", "stream"]


class Capture(msgspec.Struct, frozen=True):
    """A queue or stream that gets a publish. ``settles`` -1: as a message, else the settlement of one."""

    kind: Kind
    name: str
    key: str | None = None
    bound: bool = False
    """By a binding: then the topic is its key."""
    settles: int = -1
