"""Whether this broker was stopped cleanly, and which of its partitions may have lost what an earlier life had acknowledged.

Owns one value of the small state. It says "not clean" from before anything is answered in a life until after its last flush. A partition that an
unclean stop has left in doubt stays so over clean stops, until its machine has seen that everything is there again.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from headrace.model.errors import Damaged

KEY: Final = b"replication/marks"


class Marks(msgspec.Struct, frozen=True, array_like=True):
    """See the module's head."""

    clean: bool = False
    unclean: tuple[int, ...] = ()
    """Partitions in doubt in spite of a clean stop."""
    suspect: tuple[int, ...] = ()
    """Partitions that are known to have lost something."""
    given_up: tuple[int, ...] = ()
    """Partitions that were moved to others and whose data here were erased, or are about to be: as good as ``suspect`` if they come back."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Marks).decode


def pack(*, clean: bool, unclean: Iterable[int] = (), suspect: Iterable[int] = (), given_up: Iterable[int] = ()) -> bytes:
    return _encode(Marks(clean, tuple(unclean), tuple(suspect), tuple(given_up)))


def unpack(raw: bytes | None) -> Marks:
    """What the last life has left; without a value everything is in doubt."""
    try:
        return Marks() if raw is None else _decode(raw)
    except msgspec.MsgspecError as e:
        raise Damaged(f"the marks of the last stop cannot be read: {e}") from None
