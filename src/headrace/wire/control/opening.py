"""How a connection begins: what the client is, can do and resumes; what it got, and the bounds of the broker."""

from headrace.wire.control.message import Message


class Hello(Message, tag="hello"):
    """First request of a connection. ``session``: "" opens a new one, else the one to resume (its consumers and leases wait for
    ``reconnect_grace``)."""

    versions: tuple[int, int] = (1, 1)
    features: tuple[str, ...] = ()
    client: str = ""
    name: str = ""
    session: str = ""
    user: str = ""
    password: str = ""
    token: str = ""
    heartbeat_ms: int = 10_000
    push: tuple[str, ...] = ()
    """Events wanted: "catalogue", "topology"."""


class Welcome(Message, tag="welcome"):
    version: int
    features: tuple[str, ...]
    broker: str
    """Broker id."""
    incarnation: str
    session: str
    """Secret token by which this session is resumed."""
    resumed: bool
    heartbeat_ms: int
    reconnect_grace_ms: int
    frame_bytes_max: int
    message_bytes_max: int
    channels_max: int
    release: str = ""
