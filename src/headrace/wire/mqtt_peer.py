"""What brokers of a cluster tell each other about MQTT: a batch of ``Service.MQTT`` is a msgpack list of these, in order.

Owns the bytes. The edge is the broker that has a client's socket, the owner the one that serves its session's partition. Numbers of connections are
the edge's; partitions go by their number among the session partitions.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from headrace.model import limits
from headrace.model.errors import Malformed

_Partition = Annotated[int, Meta(ge=0, lt=limits.MQTT_SESSION_PARTITIONS)]
_Connection = Annotated[int, Meta(ge=0)]
BATCH_BYTES_MAX: Final = 1024 * 1024
"""A batch is begun anew once it holds so much; one note may be larger."""


class _Note(msgspec.Struct, frozen=True, array_like=True):
    pass


class Hello(_Note, frozen=True, tag="hello", array_like=True):
    """Begins everything anew between two brokers, after each connection and each start; ``answer``: it has been heard."""

    incarnation: str
    answer: bool


# ---------------------------------------------------------------- edge to owner


class Open(_Note, frozen=True, tag="open", array_like=True):
    """A client has connected; ``data`` begins with its CONNECT."""

    connection: _Connection
    peer: str
    data: bytes


class Rebind(_Note, frozen=True, tag="rebind", array_like=True):
    """The connection of a client that another owner had goes on; ``Input`` follows. As ``core.mqtt.held``."""

    connection: _Connection
    peer: str
    connect: bytes
    client_id: str
    epoch: int
    begun: int
    sent: int
    skipped: list[int]
    aliases: dict[int, str]
    heard: int


class Input(_Note, frozen=True, tag="in", array_like=True):
    """``again``: another owner had it already."""

    connection: _Connection
    data: bytes
    again: bool = False


class Gone(_Note, frozen=True, tag="gone", array_like=True):
    """The client's connection is gone."""

    connection: _Connection


class Left(_Note, frozen=True, tag="left", array_like=True):
    """The connection goes on at another owner."""

    connection: _Connection


class Choked(_Note, frozen=True, tag="choked", array_like=True):
    """The client reads too slowly, or does again."""

    connection: _Connection
    on: bool


class Leave(_Note, frozen=True, tag="leave", array_like=True):
    """The client is to be disconnected for that reason of MQTT 5.0."""

    connection: _Connection
    reason: int
    why: str
    reference: str


# ---------------------------------------------------------------- owner to edge


class Bound(_Note, frozen=True, tag="bound", array_like=True):
    """The client is accepted, or its connection goes on. As ``core.mqtt.held``."""

    connection: _Connection
    client_id: str
    epoch: int
    begun: int


class Output(_Note, frozen=True, tag="out", array_like=True):
    """And how far its owner is, once that is written. As ``core.mqtt.held``."""

    connection: _Connection
    data: bytes
    heard: int = 0
    sent: int = -1
    skipped: list[int] = []
    aliases: dict[int, str] = {}


class Astray(_Note, frozen=True, tag="astray", array_like=True):
    """The session is not served here (any more): the connection goes on where it is."""

    connection: _Connection


class Ended(_Note, frozen=True, tag="ended", array_like=True):
    """Nothing more comes, and nothing more is taken."""

    connection: _Connection


class Paused(_Note, frozen=True, tag="paused", array_like=True):
    """The client is not to be read for now, or is again."""

    connection: _Connection
    on: bool


# ---------------------------------------------------------------- owners among themselves


class Wants(_Note, frozen=True, tag="wants", array_like=True):
    """The filters of a partition that the sender serves, by filter (``core.mqtt.interests``); ``whole``: all of them, else those that have changed.
    ``more``: the rest of them follows, and all hold from then on. Answered by ``Knows``."""

    version: int
    partition: _Partition
    epoch: int
    whole: bool
    filters: dict[str, int]
    more: bool = False


class Knows(_Note, frozen=True, tag="knows", array_like=True):
    """All up to that version was taken."""

    version: int


class Message(_Note, frozen=True, tag="message", array_like=True):
    """A message for (partition, number of the message there or 0, kind, group); see ``core.mqtt.outward``. Properties as of a PUBLISH."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: dict[int, Any] | None
    expires_ms: int
    publisher: str
    targets: list[tuple[_Partition, int, int, str]]
    origin: tuple[str, int, int] | None = None
    """As ``core.mqtt.origins``."""
    epoch: int = 0
    """As ``core.mqtt.message``."""
    after: list[int] = []
    """For each target the number that its own comes after; empty, as of brokers of an earlier release: nobody says."""


class Took(_Note, frozen=True, tag="took", array_like=True):
    """What became of messages: durable up to that number (by partition); not taken, as nobody of that group is there or they come too late to be
    retained; not served here, or not next."""

    durable: list[tuple[int, int]]
    declined: list[tuple[int, int]]
    refused: list[int]


class Fetch(_Note, frozen=True, tag="fetch", array_like=True):
    """Asks for the retained messages of those partitions that match. Answered by ``Fetched``, in one or more."""

    request: int
    filter: str
    partitions: list[int]


class Fetched(_Note, frozen=True, tag="fetched", array_like=True):
    """``partitions`` in the last one: those that the sender serves."""

    request: int
    messages: list[Message]
    last: bool
    partitions: list[int]


Note: TypeAlias = (
    Hello
    | Open | Rebind | Input | Gone | Left | Choked | Leave
    | Bound | Output | Astray | Ended | Paused
    | Wants | Knows | Message | Took | Fetch | Fetched
)  # fmt: skip
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Note]).decode


def encode(notes: Sequence[Note]) -> bytes:
    return _encode(notes)


def decode(body: bytes) -> list[Note]:
    """Raises ``Malformed``."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"what a broker says about MQTT cannot be read: {e}") from None


assert BATCH_BYTES_MAX + limits.FRAME_BYTES_MAX <= limits.PEER_FRAME_BYTES_MAX
