"""The answer to a CONNECT: what the connection has, or why there is none."""

import msgspec

from headrace.core.mqtt.ops import StoredWill
from headrace.wire.mqtt.properties import Properties


class Refusal(msgspec.Struct, frozen=True):
    """``reason`` of 5.0; ``why`` is empty where there is nothing to say."""

    reason: int
    why: str = ""


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection has from its CONNECT on."""

    client_id: str
    properties: Properties
    """Of the CONNACK, as far as they are known before there is a session."""
    expiry_s: int
    will: StoredWill | None
    keep_alive_ms: int
    """One and a half times the keep-alive that holds; 0 = none."""
    receive_maximum: int
    alias_max: int
    problems: bool
    """Whether the client wants to be told why in words."""
