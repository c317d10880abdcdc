"""Frames between brokers: opcodes, the opening, and the heads of what follows. All integers are big-endian.

Owns the bytes of one connection between two brokers. Does not know who dials, which key is used, or what bodies mean.

The dialer sends the 8 bytes of ``PREAMBLE``, then both send frames with the head of native ones (``wire.frames.HEADER``):
``length u32 | opcode u8 | flags u8 | channel u16 | correlation u32 | body``; ``length`` counts what follows it. The opening is

    dialer  HELLO      who I am, whom I mean, a nonce          (``Introduction``)
    other   CHALLENGE  who I am, a nonce                       (``Introduction``)
    dialer  PROOF      a key's id and a code over both         (``Proof``)
    other   WELCOME    the same from this side                 (``Proof``)

or a REFUSAL instead of any of them, after which the connection ends. Then, both ways and at will: PING (answered by PONG with the same correlation),
REQUEST (answered by REPLY or ERROR with the same correlation), BATCH (never answered), GOODBYE before a connection is closed on purpose.
The channel of REQUEST and BATCH is a ``Service``. REFUSAL, ERROR and GOODBYE carry a ``control.Failure``.

Introductions are msgpack maps: unknown fields are ignored, missing ones have their default, so additions stay compatible.
"""

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Annotated, Final, Literal, TypeAlias

import cramjam
import msgspec
from msgspec import Meta

from headrace.model.errors import HeadraceError, Malformed, TooLarge, from_wire
from headrace.wire import control
from headrace.wire.frames import HEADER, frame

PREAMBLE: Final = b"HDPEER\r\n"
VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
NONCE_BYTES: Final = 32
KEY_ID_BYTES: Final = 8
CODE_BYTES: Final = 32
LZ4: Final = "lz4"
"""Feature: bodies may be compressed."""
LZ4_RATIO_MAX: Final = 256
"""No byte of an lz4 block makes more than 255."""


class PeerOp(IntEnum):
    """Opcode of a frame; apart from the native ones, so that neither protocol takes the other's frames for its own."""

    HELLO = 0x60
    CHALLENGE = 0x61
    PROOF = 0x62
    WELCOME = 0x63
    REFUSAL = 0x64
    PING = 0x68
    PONG = 0x69
    REQUEST = 0x6A
    REPLY = 0x6B
    ERROR = 0x6C
    BATCH = 0x6D
    GOODBYE = 0x6E


class PeerFlag(IntFlag):
    LZ4 = 0x01
    """The body of a REQUEST, REPLY or BATCH is u32 its length, then an lz4 block of it."""


class Service(IntEnum):
    """What a REQUEST or BATCH is for: the channel of its frame."""

    REPLICAS = 1
    """What replicas of partitions say to each other."""
    COPIES = 2
    """Catching up and installing: much data that may wait."""
    VERBS = 3
    """Control messages that a broker forwards to another."""
    SIGHTINGS = 4
    """Who was heard when, for the judgement on who is dead."""
    FORMATION = 5
    """Declared configurations and their promises."""
    SURVEY = 6
    """How the partitions stand that a broker owns, for whoever shows the whole cluster."""
    COPY_ENDS = 7
    """How far a copy reaches, before an election with accepted loss."""
    MQTT = 8
    """Connections of MQTT clients relayed to their session's owner, and what owners of sessions tell each other (``wire.mqtt_peer``)."""


_Id = Annotated[str, Meta(max_length=64)]
Purpose: TypeAlias = Literal["peer", "probe", "visit"]


class Introduction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who speaks: the body of HELLO and CHALLENGE."""

    broker: Annotated[str, Meta(min_length=1, max_length=63)]
    incarnation: Annotated[str, Meta(min_length=1, max_length=64)]
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    """Random, new for every connection."""
    cluster: _Id = ""
    """Cluster id; "" = not yet in one, which fits every other."""
    versions: tuple[Annotated[int, Meta(ge=1, le=65_535)], Annotated[int, Meta(ge=1, le=65_535)]] = (VERSION_MIN, VERSION_MAX)
    """Lowest and highest version of this protocol; the highest that both have is spoken."""
    features: Annotated[tuple[_Id, ...], Meta(max_length=32)] = ()
    """Those that both name are used."""
    release: _Id = ""
    """Version of the software."""
    expects: _Id = ""
    """Broker id that the dialer means; "" = whoever listens there."""
    purpose: Purpose = "peer"
    """A probe ends with WELCOME: it only asks who is there. A visit carries batches of FORMATION, between brokers of whatever cluster."""


class Proof(msgspec.Struct, frozen=True):
    """Body of PROOF and WELCOME: ``key`` names the secret without telling it, ``code`` is an HMAC-SHA256 with a key derived from it."""

    key: bytes
    code: bytes


_REQUEST: Final = Struct(">I")
_LENGTH: Final = Struct(">I")
_encode = msgspec.msgpack.Encoder().encode
_introduction = msgspec.msgpack.Decoder(Introduction).decode
COMPRESSIBLE: Final = frozenset({PeerOp.REQUEST, PeerOp.REPLY, PeerOp.BATCH})

assert {op.value for op in PeerOp}.isdisjoint(range(0x01, 0x60))


# ---------------------------------------------------------------- the opening


def introduction(op: Literal[PeerOp.HELLO, PeerOp.CHALLENGE], who: Introduction) -> bytes:
    return frame(op, _encode(who))


def parse_introduction(body: bytes) -> Introduction:
    try:
        who: Introduction = _introduction(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"an introduction cannot be read: {e}") from None
    if who.versions[0] > who.versions[1]:
        raise Malformed(f"versions {who.versions[0]} to {who.versions[1]} are none")
    return who


def proof(op: Literal[PeerOp.PROOF, PeerOp.WELCOME], p: Proof) -> bytes:
    assert len(p.key) == KEY_ID_BYTES and len(p.code) == CODE_BYTES
    return frame(op, p.key + p.code)


def parse_proof(body: bytes) -> Proof:
    if len(body) != KEY_ID_BYTES + CODE_BYTES:
        raise Malformed(f"a proof has {KEY_ID_BYTES + CODE_BYTES} bytes, this one {len(body)}")
    return Proof(bytes(body[:KEY_ID_BYTES]), bytes(body[KEY_ID_BYTES:]))


# ---------------------------------------------------------------- what follows


def failure(op: Literal[PeerOp.REFUSAL, PeerOp.ERROR, PeerOp.GOODBYE], error: HeadraceError, correlation: int = 0) -> bytes:
    body = control.encode(control.Failure(code=error.code, message=str(error)[:1000], hint=error.hint[:1000]))
    return frame(op, body, correlation=correlation)


def parse_failure(body: bytes) -> HeadraceError:
    try:
        told = control.decode_failure(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"a failure cannot be read: {e}") from None
    return from_wire(told.code, told.message, told.hint)


def ping(number: int) -> bytes:
    return frame(PeerOp.PING, correlation=number)


def pong(number: int) -> bytes:
    return frame(PeerOp.PONG, correlation=number)


def head(op: PeerOp, nbytes: int, *, flags: int = 0, service: int = 0, correlation: int = 0) -> bytes:
    """The head of a frame whose body has ``nbytes`` and follows apart, so that it need not be joined."""
    return HEADER.pack(8 + nbytes, op, flags, service, correlation)


def request_head(timeout_ms: int) -> bytes:
    """First bytes of a REQUEST's body: after so many milliseconds nobody waits for the answer."""
    return _REQUEST.pack(timeout_ms)


def parse_request(body: bytes) -> tuple[int, bytes]:
    """Time left and body."""
    if len(body) < _REQUEST.size:
        raise Malformed(f"a request has at least {_REQUEST.size} bytes, this one {len(body)}")
    return _REQUEST.unpack_from(body)[0], body[_REQUEST.size :]


def compressed(parts: Sequence[bytes]) -> bytes | None:
    """The joined ``parts`` as a compressed body, None if that saves less than an eighth."""
    data = b"".join(parts)
    block = bytes(cramjam.lz4.compress_block(data, store_size=False))
    if len(block) + _LENGTH.size > len(data) - len(data) // 8:
        return None
    return _LENGTH.pack(len(data)) + block


def expanded(body: bytes, bytes_max: int) -> bytes:
    """What a compressed body was. ``TooLarge`` above ``bytes_max``, before any memory is taken for it."""
    if len(body) < _LENGTH.size:
        raise Malformed(f"a compressed body has at least {_LENGTH.size} bytes, this one {len(body)}")
    (size,) = _LENGTH.unpack_from(body)
    if size > bytes_max:
        raise TooLarge(f"a body expands to {size} bytes; at most {bytes_max} are allowed")
    if size > (len(body) - _LENGTH.size) * LZ4_RATIO_MAX:
        raise Malformed(f"{len(body)} bytes cannot expand to {size}")
    data = bytearray(size)
    try:
        made = cramjam.lz4.decompress_block_into(body[_LENGTH.size :], data, output_len=size) if size else 0
    except cramjam.DecompressionError as e:
        raise Malformed(f"a compressed body cannot be expanded: {e}") from None
    if made != size:
        raise Malformed(f"a body expands to {made} bytes instead of {size}")
    return bytes(data)
