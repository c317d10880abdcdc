"""CONFIRM frames, which gather for one connection. One of the hot modules: with many partitions there is one a message."""

from struct import Struct
from typing import Final

from librt.strings import BytesWriter, write_i32_be, write_i64_be

from headrace.wire.frames import CONFIRM, Op

_HEAD: Final[int] = (CONFIRM.size - 4) << 32 | int(Op.CONFIRM) << 24
"""Length and op; neighbours are written as one number."""
_U31: Final[int] = 1 << 31
_U62: Final[int] = 1 << 62
_pack: Final = Struct(">QIIIQ").pack
"""The same, for numbers that are too large for signed ones."""
assert CONFIRM.format == ">IBBHIIBBHQ"


def write_confirm(out: BytesWriter, channel: int, first: int, count: int, base_offset: int, level: int) -> None:
    """One frame, of no duplicate: ``count`` publish frames from correlation id ``first`` on."""
    if first < _U31 and count < _U31 and base_offset < _U62:
        write_i64_be(out, _HEAD | channel)
        write_i32_be(out, first)
        write_i64_be(out, count << 32 | level << 24)
        write_i64_be(out, base_offset)
    else:
        out.write(_pack(_HEAD | channel, first, count, level << 24, base_offset))
