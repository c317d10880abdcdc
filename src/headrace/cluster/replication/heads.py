"""The messages of replicas and of their drivers as the opaque heads of ``wire.replication``: msgpack arrays, the kind's number first, entries apart.

Owns the bytes of messages but not their fields (``core.replica.messages``, ``messages``), and how a message and its entries come together. Pure.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from headrace.cluster.replication.messages import AnyInstall
from headrace.core.replica.epochs import EpochHistory
from headrace.core.replica.messages import AnyMessage, Append, Fetched
from headrace.model.errors import Malformed
from headrace.wire import replication as wire

_encode = msgspec.msgpack.Encoder().encode
_decode: msgspec.msgpack.Decoder[AnyMessage | AnyInstall] = msgspec.msgpack.Decoder(AnyMessage | AnyInstall)


def pack(message: AnyMessage | AnyInstall) -> bytes:
    """``message`` without its entries."""
    return _encode(message)


def unpack(head: bytes) -> AnyMessage | AnyInstall:
    """``Malformed`` for anything that ``pack`` does not make."""
    try:
        return _decode.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"a message of a replica cannot be read: {e}") from None


def filled(message: Append | Fetched, entries: Sequence[wire.Entry]) -> AnyMessage:
    """The message with its entries, which are those that it names."""
    if len(entries) != message.count:
        raise Malformed(f"a message of {message.count} entries comes with {len(entries)}")
    history = EpochHistory(max(1, message.first), 0)
    history.runs = list(message.runs)
    for number, entry in enumerate(entries):
        if entry.index != message.first + number or entry.epoch != history.epoch_at(entry.index):
            raise Malformed(f"an entry at index {entry.index} of epoch {entry.epoch} is not what its message names")
    return replace(message, entries=tuple(entries))
