"""The connections of a broker: asking for them, and one row of the answer each."""

import msgspec

from headrace.wire.control.message import Message


class ConnectionsList(Message, tag="connections.list"):
    pass


class ConnectionInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    peer: str
    client: str
    name: str
    protocol: str
    since_ms: int
    publishers: int
    subscriptions: int
    bytes_in: int
    bytes_out: int
    buffered_bytes: int


class Connections(Message, tag="connections"):
    connections: tuple[ConnectionInfo, ...]
