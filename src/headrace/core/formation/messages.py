"""What brokers say to each other about their cluster, before and after there is one.

Values only, one msgpack document each; the transport says who sent it and has authenticated that as a holder of the cluster secret. Nothing relies on
order: a message may come late, twice or never.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.core.formation.records import Bootstrap, Charter, Directory, Released
from headrace.model.errors import Malformed
from headrace.model.formation import VERSION_MAX, Declared, contradictions

MESSAGE_BYTES_MAX = 512 * 1024

Condition = Literal["starting", "fresh", "accepted", "formed", "standalone", "removed", "unidentified"]
"""What a directory is: without an identity yet; empty; bound to a cluster; a member's; a lone broker's; a former member's; data nobody can name."""

_Version = Annotated[int, Meta(ge=0, le=VERSION_MAX)]
_Number = Annotated[int, Meta(ge=0, le=VERSION_MAX)]
_Id = Annotated[str, Meta(max_length=64)]
_Text = Annotated[str, Meta(max_length=1000)]


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, kw_only=True):
    """One of the below."""


class Hello(Message, frozen=True, tag=1):
    """I am there, and this is how I stand. ``echo`` is the highest ``sequence`` heard of the receiver's life ``echo_boot``: only what is heard from a
    life that has answered to this one of mine is believed to be so now."""

    boot: _Id
    sequence: _Number
    incarnation: Directory
    condition: Condition
    echo_boot: _Id = ""
    echo: _Number = 0
    asks: bool = False
    """Answer at once."""
    cluster_id: _Id = ""
    generation: _Number = 0
    version: _Version = 0
    hash: _Id = ""
    """Of the config it goes by or proposes; version 0 = it has none."""
    of: _Id = ""
    """The cluster that has committed that config, where it got it from one."""
    applied_version: _Version = 0
    applied_hash: _Id = ""
    revision: _Number = 0
    """Config and revision of the newest charter of its own cluster that it has."""
    promised: tuple[_Version, _Number] = (0, 0)
    """Version and ballot of its promise."""
    state: _Text = ""
    reason: _Text = ""
    serving: bool = False
    """It is ACTIVE and its coordinator has a leader."""
    seat: _Number = 0
    """The place in the consensus that its member has; 0 = no member runs."""
    caught_up: bool = False
    """Its member answers for itself and has all that is committed."""
    ended: bool = False
    """It has orders, from the charter of its former cluster, that the cluster's data is to be set aside."""
    data_bytes: _Number = 0
    address: _Text = ""


class Proposal(Message, frozen=True, tag=2):
    """A younger config than yours. ``of``: the cluster that has committed it."""

    config: Declared
    of: _Id = ""
    witness: _Id = ""
    """As in ``Held``."""


class Tidings(Message, frozen=True, tag=3):
    """What my cluster has committed."""

    charter: Charter


class Ask(Message, frozen=True, tag=4):
    """The seed to every voter: promise this config and ballot to me."""

    version: _Version
    hash: _Id
    ballot: _Number
    incarnation: Directory


class Promised(Message, frozen=True, tag=5):
    """It is durable."""

    version: _Version
    hash: _Id
    ballot: _Number
    seed_incarnation: Directory
    incarnation: Directory
    earlier: Annotated[tuple[Released, ...], Meta(max_length=64)] = ()


class Declined(Message, frozen=True, tag=6):
    """No promise; ``ballot`` is the highest that is promised here in that version."""

    version: _Version
    ballot: _Number
    reason: _Text


class Offer(Message, frozen=True, tag=7):
    """The bootstrap record, from the seed or from anyone who has accepted it."""

    bootstrap: Bootstrap


AnyMessage = Hello | Proposal | Tidings | Ask | Promised | Declined | Offer
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> AnyMessage:
    """``Malformed`` if it is no message, too large, or carries a config that contradicts itself."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise Malformed(f"a message about the formation has at most {MESSAGE_BYTES_MAX} bytes, this one has {len(data)}")
    try:
        message = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Malformed(f"this is no message about the formation: {e}") from None
    if wrong := unsound(message):
        raise Malformed(wrong)
    return message


def unsound(message: AnyMessage) -> str:
    """Why a message cannot be believed, whoever sent it; "" if it can."""
    config: Declared | None = None
    if isinstance(message, Proposal):
        config = message.config
    elif isinstance(message, Tidings):
        config = message.charter.config
        names = [e.name for e in message.charter.roster]
        if len(set(names)) < len(names):
            return "the charter enrols a name twice"
    elif isinstance(message, Offer):
        config = message.bootstrap.config
        if tuple(v.name for v in message.bootstrap.voters) != config.voters or message.bootstrap.seed not in config.voters:
            return "the bootstrap record has other voters than its config"
    if config is not None and (wrong := contradictions(config)):
        return "its config contradicts itself: " + "; ".join(wrong)
    return ""
