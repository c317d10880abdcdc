"""The log's bytes: what each checksum covers, and that nothing of another file or place looks valid."""

import pytest

from headrace.model.errors import Damaged, UnsupportedVersion
from headrace.storage import walformat as wf
from headrace.storage.walformat import FileHeader, Previous

HEADER = FileHeader(1 << 20, 7, 0xDEADBEEF, 6, 4096 * 9, 0xFEED, 99, 3, 1_700_000_000_000)


def flush(seed: int = 5, file_id: int = 7, position: int = 8192) -> tuple[bytes, int, int]:
    rows = wf.ROW.pack(1, 2, 3, 40, 0) * 2
    return wf.encode_head(
        seed,
        file_id=file_id,
        position=position,
        seq=9,
        rows=rows,
        entry_bytes=80,
        entry_heads=b"h" * 64,
        previous=Previous(6, 512, 1024, 200, wf.ROW.pack(9, 9, 9, 9, 0)),
        flags=wf.CLOSING,
        oldest_id=3,
        wall_ms=-1,
    )


def test_header_in_two_blocks() -> None:
    raw = wf.encode_header(HEADER)
    assert len(raw) == wf.DATA_START
    assert wf.decode_header(raw[: wf.HEADER_BLOCK]) == wf.decode_header(raw[wf.HEADER_BLOCK :]) == HEADER
    for at in range(wf.FILE.size + 4):
        broken = bytearray(raw)
        broken[at] ^= 4
        assert wf.decode_header(broken) is None
    assert wf.decode_header(raw[:80]) is None


def test_a_later_format_is_refused() -> None:
    raw = bytearray(wf.encode_header(HEADER)[: wf.FILE.size])
    raw[8:10] = (2).to_bytes(2, "big")
    with pytest.raises(UnsupportedVersion, match="format 2"):
        wf.decode_header(bytes(raw) + wf.crc32c(bytes(raw)).to_bytes(4, "big"))


def test_head() -> None:
    raw, zeros, total = flush()
    assert (len(raw) + 80 + zeros, total) == (512, 512)
    head = wf.decode_head(b"x" + raw, 1, 5, file_id=7, position=8192)
    assert head is not None
    assert (head.seq, head.rows, head.previous_rows, head.previous_file_id, head.flags, head.end) == (9, 2, 1, 6, wf.CLOSING, 8704)
    assert raw.startswith(wf.needle(7))
    at = head.rows_at - 8192
    assert wf.decode_rows(raw[at : at + 64], head.rows_crc, 5) == [(1, 2, 3, 40, 0)] * 2
    at = head.previous_rows_at - 8192
    assert wf.decode_rows(raw[at : at + 32], head.previous_rows_crc, 5) == [(9, 9, 9, 9, 0)]
    assert wf.decode_rows(raw[at : at + 32], head.previous_rows_crc, 6) is None
    assert head.entries_at == len(raw)


def test_a_head_is_of_its_salt_file_and_place() -> None:
    raw, _, _ = flush()
    assert wf.decode_head(raw, 0, 6, file_id=7, position=8192) is None
    assert wf.decode_head(raw, 0, 5, file_id=8, position=8192) is None
    assert wf.decode_head(raw, 0, 5, file_id=7, position=8704) is None
    assert wf.decode_head(raw[:50], 0, 5, file_id=7, position=8192) is None
    for at in range(24, wf.HEAD_BYTES):
        broken = bytearray(raw)
        broken[at] ^= 1
        assert wf.decode_head(broken, 0, 5, file_id=7, position=8192) is None


def test_damage_to_what_is_known_anyway_hides_nothing() -> None:
    raw, _, _ = flush()
    for at in range(24):
        broken = bytearray(raw)
        broken[at] ^= 0xFF
        assert wf.decode_head(broken, 0, 5, file_id=7, position=8192) == wf.decode_head(raw, 0, 5, file_id=7, position=8192)


def test_entry() -> None:
    pieces = [b"a" * 100, memoryview(b"bc"), b""]
    raw = wf.encode_entry(1 << 63, 0xFFFFFFFF, 1 << 40, 3, pieces, 102) + b"a" * 100 + b"bc"
    entry = wf.decode_entry(b"..." + raw + b"behind", 3)
    assert (entry.pid, entry.epoch, entry.index, entry.kind, bytes(entry.payload)) == (1 << 63, 0xFFFFFFFF, 1 << 40, 3, b"a" * 100 + b"bc")
    for at in range(len(raw)):
        broken = bytearray(raw)
        broken[at] ^= 0x80
        with pytest.raises(Damaged):
            wf.decode_entry(broken)
        with pytest.raises(Damaged):
            wf.decode_entry(raw[:at])


def test_padding() -> None:
    assert [wf.padded(n) for n in (0, 1, 512, 513)] == [0, 512, 512, 1024]
