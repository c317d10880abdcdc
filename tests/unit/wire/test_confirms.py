"""CONFIRM frames that gather are those that are made one by one."""

from librt.strings import BytesWriter

from headrace.wire.confirms import write_confirm
from headrace.wire.frames import CONFIRM, Op

U16, U32, U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1


def test_confirms_of_a_flush() -> None:
    rows = [(1, 2, 3, 4, 2), (U16, U32, U32, U64, 7), (0, 0, 1, 1 << 40, 0)]
    alone = [CONFIRM.pack(24, Op.CONFIRM, 0, channel, first, count, level, False, 0, base) for channel, first, count, base, level in rows]
    out = BytesWriter()
    assert out.getvalue() == b""
    for row in rows:
        write_confirm(out, *row)
    assert out.getvalue() == b"".join(alone)
