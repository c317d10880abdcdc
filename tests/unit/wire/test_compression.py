"""Codecs: both framings of snappy, several frames in one section, bounds, damage."""

import zlib

import cramjam
import pytest

from headrace.model.errors import Malformed, TooLarge
from headrace.wire.compression import CODECS, compress, expand

DATA = b"".join([b"%d:headrace;" % i for i in range(20_000)])
NUMBERS = [1, 2, 3, 4]


@pytest.mark.parametrize("codec", NUMBERS)
@pytest.mark.parametrize("data", [b"", b"x", DATA])
def test_expand_undoes_compress(codec: int, data: bytes) -> None:
    packed = compress(codec, data)
    if data == b"" and codec == 2:
        assert expand(codec, packed, 1) == b""
        return
    assert expand(codec, packed, max(1, len(data))) == data


def test_none_is_none() -> None:
    assert compress(0, DATA) is DATA


def test_snappy_in_blocks_and_raw() -> None:
    assert compress(2, DATA).startswith(b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01")
    assert expand(2, bytes(cramjam.snappy.compress_raw(DATA)), len(DATA)) == DATA


def test_gzip_of_another_implementation() -> None:
    packer = zlib.compressobj(wbits=31)
    assert expand(1, packer.compress(DATA) + packer.flush(), len(DATA)) == DATA


def test_lz4_and_zstd_without_a_content_size() -> None:
    for codec, packer in ((3, cramjam.lz4.Compressor()), (4, cramjam.zstd.Compressor())):
        packer.compress(DATA)
        assert expand(codec, bytes(packer.finish()), len(DATA)) == DATA


@pytest.mark.parametrize("codec", NUMBERS)
def test_the_bound_is_exact(codec: int) -> None:
    zeros = bytes(3_000_000)
    packed = compress(codec, zeros)
    assert expand(codec, packed, len(zeros)) == zeros
    for bound in (len(zeros) - 1, 4096, 1, 0):
        with pytest.raises(TooLarge):
            expand(codec, packed, bound)


@pytest.mark.parametrize("codec", NUMBERS)
def test_every_cut_is_malformed(codec: int) -> None:
    packed = compress(codec, DATA[:2000])
    for cut in range(len(packed)):
        if codec == 2 and cut == 16:
            continue  # no block at all
        with pytest.raises(Malformed):
            expand(codec, packed[:cut], 4000)


def test_a_snappy_block_cannot_claim_memory() -> None:
    with pytest.raises(Malformed, match="cannot expand"):
        expand(2, b"\xff\xff\xff\x1f" + b"\x00" * 20, 64 * 1024 * 1024)
    with pytest.raises(Malformed):
        expand(2, b"\x82SNAPPY\x00" + b"\x00" * 8 + b"\xff\xff\xff\xff", 1000)


@pytest.mark.parametrize("codec", [0, 5, 6, 7])
def test_unknown_codecs(codec: int) -> None:
    with pytest.raises(Malformed, match="not known"):
        expand(codec, b"", 1)


def test_numbers_are_kafkas() -> None:
    assert CODECS == ("none", "gzip", "snappy", "lz4", "zstd")
