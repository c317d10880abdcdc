"""What a client has subscribed to: one filter, as sessions keep it, journal it and tell it to other brokers.

Owns its layout (a msgpack array; fields are only ever added at the end).
"""

import msgspec


class Subscription(msgspec.Struct, frozen=True, array_like=True):
    """``filter`` as the client wrote it; ``path`` without the group of a shared one. ``identifier`` 0 = none."""

    filter: str
    path: str
    group: str = ""
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    identifier: int = 0
    options: tuple[tuple[str, str], ...] = ()
    """Of a queue or stream: the user properties it was subscribed with."""
