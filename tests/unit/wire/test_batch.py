"""Record batches: bytes as Kafka writes them, fast paths that change nothing, refusals. ``kafka-python`` is the independent second opinion."""

from struct import Struct
from typing import Any

import pytest
from crc32c import crc32c

from headrace.model.errors import Invalid, Malformed, TooLarge
from headrace.wire.batch import (
    TIMESTAMP_MAX,
    Record,
    batch_info,
    decode_batch,
    encode_batch,
    encode_publish,
    encode_publish_one,
    iter_records,
)
from headrace.wire.compression import CODECS, Codec
from headrace.wire.frames import BATCH
from tests.unit.wire.made import frame

T0 = 1_700_000_000_000
SOME = [
    Record(b"key", b"value", (), T0, 0),
    Record(None, b"", (("content-type", b"text/plain"), ("x", b""), ("x", b"\xff")), T0 + 70, 1),
    Record(b"", None, (), T0 - 5, 2),
    Record(b"k" * 300, b"v" * 20_000, (("name" * 40, b"z" * 9000),), T0 + 10_000_000, 3),
]
_COVERED = Struct(">hiqqqhii")


def batch(records: bytes, *, count: int = 1, last: int | None = None, attributes: int = 0, base: int = T0, latest: int = T0) -> bytes:
    covered = _COVERED.pack(attributes, count - 1 if last is None else last, base, latest, -1, -1, -1, count) + records
    return Struct(">qiibI").pack(0, 9 + len(covered), -1, 2, crc32c(covered)) + covered


def test_bytes_of_a_batch() -> None:
    data = encode_batch([Record(b"k", b"hello", (("a", b"b"),), 5, 0)], base_timestamp_ms=5, producer_id=1, producer_epoch=2, base_sequence=3)
    assert data[61:].hex() == "20000000026b0a68656c6c6f0202610262"
    info = batch_info(data)
    assert (info.base_offset, info.length, info.leader_epoch, info.magic, info.attributes, info.last_offset_delta) == (0, len(data) - 12, -1, 2, 0, 0)
    assert (info.base_timestamp_ms, info.max_timestamp_ms, info.record_count) == (5, 5, 1)
    assert (info.producer_id, info.producer_epoch, info.base_sequence) == (1, 2, 3)
    assert info.crc == crc32c(data[21:])


@pytest.mark.parametrize("codec", CODECS)
def test_records_come_back(codec: Codec) -> None:
    data = encode_batch(SOME, base_timestamp_ms=T0, codec=codec)
    assert batch_info(data).max_timestamp_ms == T0 + 10_000_000
    assert decode_batch(data) == SOME
    assert decode_batch(memoryview(b"xx" + data + b"yy"), 2) == SOME


@pytest.mark.parametrize("codec", CODECS)
def test_another_implementation_reads_ours(codec: Codec) -> None:
    theirs = pytest.importorskip("kafka.record.default_records")
    if codec in ("snappy", "lz4", "zstd") and not getattr(pytest.importorskip("kafka.codec"), f"has_{codec}")():
        pytest.skip(f"kafka-python has no {codec} here")
    data = encode_batch(SOME, base_timestamp_ms=T0, producer_id=7, producer_epoch=1, base_sequence=50, codec=codec)
    read = theirs.DefaultRecordBatch(data)
    assert read.validate_crc()
    assert (read.producer_id, read.producer_epoch, read.base_sequence, read.compression_type) == (7, 1, 50, CODECS.index(codec))
    assert [(r.offset, r.timestamp, r.key, r.value, [tuple(h) for h in r.headers]) for r in read] == [
        (r.offset_delta, r.timestamp_ms, r.key, r.value, list(r.headers)) for r in SOME
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_we_read_another_implementation(codec: Codec) -> None:
    theirs = pytest.importorskip("kafka.record.default_records")
    if codec in ("snappy", "lz4", "zstd") and not getattr(pytest.importorskip("kafka.codec"), f"has_{codec}")():
        pytest.skip(f"kafka-python has no {codec} here")
    writer = theirs.DefaultRecordBatchBuilder(2, CODECS.index(codec), False, 7, 1, 50, 1 << 20)
    for r in SOME:
        assert writer.append(r.offset_delta, timestamp=r.timestamp_ms, key=r.key, value=r.value, headers=list(r.headers))
    data = bytes(writer.build())
    assert decode_batch(data) == SOME
    if codec == "none":
        assert data[BATCH.size :] == encode_batch(SOME, base_timestamp_ms=T0)[BATCH.size :]


@pytest.mark.parametrize("record", [*SOME, Record(b"k" * 100, b"v" * 100, (), T0), Record(None, None, (), 0)])
def test_one_record_in_one_go_is_the_same_frame(record: Record) -> None:
    numbers: dict[str, int] = {"producer_id": 5, "producer_epoch": 1, "base_sequence": 9}
    envelope: dict[str, int] = {"channel": 8, "correlation": 9, "flags": 7, "not_before_ms": 1, "expires_at_ms": 2, "priority": 3, "key_slot": 4}
    made = encode_publish_one(record, **numbers, **envelope)
    assert made == encode_publish(encode_batch([record], base_timestamp_ms=record.timestamp_ms, **numbers), **envelope)
    (found,) = iter_records(made, 70)
    assert found[0] == 70
    assert found[1] == Record(record.key, record.value, record.headers, record.timestamp_ms, 0)
    assert found[2]._asdict() == {"length": len(made) - 4, "opcode": 1, "reserved": 0, **envelope}


def test_iter_records_takes_a_range_of_stored_frames() -> None:
    one = encode_publish_one(SOME[0], channel=1, correlation=0, flags=7)
    four = encode_publish(encode_batch(SOME, base_timestamp_ms=T0, codec="zstd"), channel=1, correlation=1, flags=7)
    blob = one + four + one
    everything = [(offset, record.value) for offset, record, _ in iter_records(blob, 100)]
    assert everything == [(100 + i, r.value) for i, r in enumerate([SOME[0], *SOME, SOME[0]])]
    for first in range(99, 108):
        for end in range(first, 108):
            found = [(o, r.value) for o, r, _ in iter_records(memoryview(blob), 100, first=first, end=end)]
            assert found == [x for x in everything if first <= x[0] < end]


def test_a_batch_outside_the_range_is_not_opened() -> None:
    broken = frame(crc_off=1, records=b"\x02" * 20, count=2)
    fine = encode_publish_one(SOME[0], channel=1, correlation=0, flags=7)
    assert [o for o, _, _ in iter_records(broken + fine + broken, 0, first=2, end=3)] == [2]
    with pytest.raises(Malformed, match="CRC"):
        list(iter_records(broken + fine, 0))


def test_compaction_keeps_offsets() -> None:
    kept = [SOME[0], SOME[3]]
    data = encode_batch(kept, base_timestamp_ms=T0, last_offset_delta=7)
    assert decode_batch(data) == kept
    empty = encode_batch([], base_timestamp_ms=T0, last_offset_delta=4)
    assert decode_batch(empty) == []
    blob = b"".join([encode_publish(b, channel=1, correlation=0, flags=7) for b in (data, empty, data)])
    assert [o for o, _, _ in iter_records(blob, 10)] == [10, 13, 23, 26]


def test_log_append_time_is_every_records_time() -> None:
    record = b"\x12\x00\x04\x00\x01\x06abc\x00"
    assert decode_batch(batch(record, attributes=8, latest=T0 + 9))[0].timestamp_ms == T0 + 9
    assert decode_batch(batch(record, latest=T0 + 9))[0].timestamp_ms == T0 + 2


def test_a_null_header_value_is_empty() -> None:
    assert decode_batch(batch(b"\x14\x00\x00\x00\x01\x01\x02\x04ab\x01"))[0] == Record(None, None, (("ab", b""),), T0, 0)


GOOD = b"\x10\x00\x00\x00\x01\x04hi\x00"


@pytest.mark.parametrize("records", [
    b"", GOOD[:-1], GOOD + b"\x00", GOOD + GOOD, b"\x0f" + GOOD[1:], b"\x0e" + GOOD[1:], b"\x12" + GOOD[1:] + b"\x00",
    b"\x10\x00\x00\x02\x01\x04hi\x00",  # offset delta 1 of a batch that ends at 0
    b"\x10\x00\x00\x01\x01\x04hi\x00",  # -1
    b"\x10\x00\x00\x00\x03\x04hi\x00",  # a key of length -2
    b"\x10\x00\x00\x00\x01\x03hi\x00",  # a value of length -2
    b"\x10\x00\x00\x00\x01\x7ehi\x00", b"\x10\x00\x00\x00\x7e\x04hi\x00",
    b"\x10\x00\x00\x00\x01\x04hi\x02",  # one header, none there
    b"\x14\x00\x00\x00\x01\x01\x02\x02\xff\x00",  # its name is no UTF-8
    b"\x14\x00\x00\x00\x01\x01\x02\x01a\x00",  # a name of length -1
    b"\x14\x00\x00\x00\x01\x01\x02\x02a\x03",  # a value of length -2
    b"\x14\x00\x00\x00\x01\x01\x03\x02a\x00",  # -2 headers
    b"\xff" * 12 + GOOD, b"\x22\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x00\x01\x01\x00", b"\x80",
])  # fmt: skip
def test_records_that_cannot_be_read(records: bytes) -> None:
    data = batch(records)
    with pytest.raises(Malformed):
        decode_batch(data)
    with pytest.raises(Malformed):
        list(iter_records(encode_publish(data, channel=1, correlation=0, flags=7), 0))


@pytest.mark.parametrize("changed", [
    {"count": 2}, {"count": -1}, {"count": 3, "last": 1}, {"last": -1, "count": 0}, {"attributes": 5}, {"attributes": 4}, {"base": TIMESTAMP_MAX + 1},
    {"base": -TIMESTAMP_MAX - 1}, {"count": 1 << 30},
])  # fmt: skip
def test_headers_that_cannot_be(changed: dict[str, Any]) -> None:
    data = batch(GOOD, **changed)
    with pytest.raises(Malformed):
        decode_batch(data)
    with pytest.raises(Malformed):
        list(iter_records(encode_publish(data, channel=1, correlation=0, flags=7), 0))


def test_offsets_only_grow() -> None:
    again = b"\x10\x00\x00\x02\x01\x04hi\x00"
    assert [r.offset_delta for r in decode_batch(batch(GOOD + again, count=2))] == [0, 1]
    for records in (again + again, again + GOOD):
        with pytest.raises(Malformed, match="offset delta"):
            decode_batch(batch(records, count=2, last=1))


def test_every_cut_of_a_frame_is_malformed() -> None:
    whole = encode_publish(encode_batch(SOME[:3], base_timestamp_ms=T0), channel=1, correlation=0, flags=7)
    for cut in range(1, len(whole)):
        with pytest.raises(Malformed):
            list(iter_records(whole[:cut], 0))
        with pytest.raises(Malformed):
            decode_batch(whole[:cut], 32 if cut > 32 else 0)


@pytest.mark.parametrize("codec", CODECS[1:])
def test_expansion_is_bounded(codec: Codec) -> None:
    data = encode_batch([Record(None, b"\x00" * 1_000_000, (), T0)], base_timestamp_ms=T0, codec=codec)
    assert len(decode_batch(data, decompressed_bytes_max=1_000_020)) == 1
    with pytest.raises(TooLarge):
        decode_batch(data, decompressed_bytes_max=1_000_000)
    with pytest.raises(TooLarge):
        list(iter_records(encode_publish(data, channel=1, correlation=0, flags=7), 0, decompressed_bytes_max=5000))


@pytest.mark.parametrize(("records", "numbers"), [
    ([], {}), ([Record(None, b"", (), 1 << 70)], {}), (SOME, {"producer_id": 1 << 63}), (SOME, {"base_sequence": 1 << 31}),
    ([Record(None, b"", (("\ud800", b""),), T0)], {}),
])  # fmt: skip
def test_what_no_batch_can_hold(records: list[Record], numbers: dict[str, int]) -> None:
    with pytest.raises(Invalid, match="no batch"):
        encode_batch(records, base_timestamp_ms=T0, **numbers)
