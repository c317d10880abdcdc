"""The codecs of RecordBatch: compressing and bounded expanding, by cramjam.

Owns the mapping of codec numbers and snappy's two framings (Kafka's blocks and the raw format). Expansion never makes more than the bound, and claims
no memory that the compressed bytes could not fill.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final, Literal, get_args

import cramjam

from headrace.model.errors import Malformed, TooLarge

Codec = Literal["none", "gzip", "snappy", "lz4", "zstd"]
CODECS: Final[tuple[Codec, ...]] = get_args(Codec)
"""By their number in a batch's attributes."""

_BLOCKS: Final = b"\x82SNAPPY\x00"
_LENGTH: Final = Struct(">I")
_BLOCK_BYTES: Final = 32 * 1024
_SNAPPY_RATIO_MAX: Final = 64
"""No element of a snappy block makes more than 64 bytes of one."""
_NO_ROOM: Final = "failed to write whole buffer"
"""How cramjam says that the buffer is full, as distinct from bad data."""


def compress(codec: int, data: bytes) -> bytes:
    """``data`` as the records section of a batch with that codec."""
    if codec == 1:
        return bytes(cramjam.gzip.compress(data))
    if codec == 2:
        parts = [_BLOCKS, b"\x00\x00\x00\x01\x00\x00\x00\x01"]
        for at in range(0, len(data), _BLOCK_BYTES):
            block = bytes(cramjam.snappy.compress_raw(data[at : at + _BLOCK_BYTES]))
            parts += (_LENGTH.pack(len(block)), block)
        return b"".join(parts)
    if codec == 3:
        return bytes(cramjam.lz4.compress(data))
    if codec == 4:
        return bytes(cramjam.zstd.compress(data))
    return data


def expand(codec: int, data: bytes, bytes_max: int) -> bytes:
    """The records section expanded; raises ``TooLarge`` above ``bytes_max`` and ``Malformed`` for anything that is not of that codec."""
    try:
        if codec == 1:
            return _bounded(cramjam.gzip.decompress_into, data, bytes_max)
        if codec == 2:
            return _snappy(data, bytes_max)
        if codec == 3:
            return _bounded(cramjam.lz4.decompress_into, data, bytes_max)
        if codec == 4:
            return _bounded(cramjam.zstd.decompress_into, data, bytes_max)
    except cramjam.DecompressionError as e:
        raise Malformed(f"a batch's {CODECS[codec]} data cannot be expanded: {e}") from None
    raise Malformed(f"codec {codec} is not known")


def _bounded(into: Callable[[bytes, bytearray], int], data: bytes, bytes_max: int) -> bytes:
    """Expands into ever larger buffers up to the bound, so that a small input cannot claim a large one."""
    size = min(bytes_max + 1, max(4096, 8 * len(data)))
    while True:
        buffer = bytearray(size)
        try:
            count = into(data, buffer)
        except cramjam.DecompressionError as e:
            if _NO_ROOM not in str(e):
                raise
            if size > bytes_max:
                raise TooLarge(f"a batch of {len(data)} bytes expands to more than {bytes_max}") from None
            size = min(bytes_max + 1, 4 * size)
            continue
        if count > bytes_max:
            raise TooLarge(f"a batch of {len(data)} bytes expands to more than {bytes_max}")
        del buffer[count:]
        return bytes(buffer)


def _snappy(data: bytes, bytes_max: int) -> bytes:
    if data[:8] != _BLOCKS:
        return _snappy_raw(data, bytes_max)
    if len(data) < 16:
        raise Malformed("snappy's block header is cut short")
    parts, at, size = [], 16, 0
    while at < len(data):
        if at + 4 > len(data):
            raise Malformed("a snappy block has no length")
        length = _LENGTH.unpack_from(data, at)[0]
        at += 4
        if at + length > len(data):
            raise Malformed("a snappy block is cut short")
        part = _snappy_raw(data[at : at + length], bytes_max - size)
        parts.append(part)
        size += len(part)
        at += length
    return b"".join(parts)


def _snappy_raw(data: bytes, bytes_max: int) -> bytes:
    if not data:
        raise Malformed("an empty snappy block")
    claimed = cramjam.snappy.decompress_raw_len(data)
    if claimed > bytes_max:
        raise TooLarge(f"a batch of {len(data)} bytes expands to more than {bytes_max}")
    if claimed > _SNAPPY_RATIO_MAX * len(data):
        raise Malformed(f"a snappy block of {len(data)} bytes cannot expand to {claimed}")
    return bytes(cramjam.snappy.decompress_raw(data))
