"""CONFIRM frames, all of one flush to one connection. One of the hot modules: with many partitions there is one a message."""

from struct import Struct
from typing import Final

from headrace.wire.frames import CONFIRM, Op

Confirmed = tuple[int, int, int, int, int]
"""channel, first correlation id, count, base offset, level."""

_LENGTH: Final[int] = CONFIRM.size - 4
_OP: Final[int] = int(Op.CONFIRM) << 24
_pack: Final = Struct(">IIIIIQ").pack
"""``CONFIRM``, with neighbours in one number: length, op and channel, first, count, level, base offset."""
assert CONFIRM.format == ">IBBHIIBBHQ"


def encode_confirms(rows: list[Confirmed]) -> bytes:
    """A frame each, none of a duplicate."""
    pieces: list[bytes] = []
    for channel, first, count, base_offset, level in rows:
        pieces.append(_pack(_LENGTH, _OP | channel, first, count, level << 24, base_offset))
    return b"".join(pieces)
