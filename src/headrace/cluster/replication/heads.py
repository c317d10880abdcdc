"""The messages of replicas and of their drivers as the opaque heads of ``wire.replication``: msgpack arrays, the kind's number first, entries apart.

Owns the bytes of messages but not their fields (``core.replica.messages``, ``messages``). Pure.
"""

import msgspec

from headrace.cluster.replication.messages import AnyInstall
from headrace.core.replica.messages import AnyMessage
from headrace.model.errors import Malformed

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
