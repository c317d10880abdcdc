"""Batches: what goes in comes out, and arbitrary or damaged bytes give records, ``Malformed`` or ``TooLarge``."""

from contextlib import suppress
from struct import pack

from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.errors import Malformed
from headrace.wire.batch import Record, batch_info, decode_batch, encode_batch, encode_publish, encode_publish_one, iter_records
from headrace.wire.compression import CODECS, expand
from headrace.wire.ingress import scan_run

BOUND = 1 << 20
STAMPS = st.integers(-(1 << 60), 1 << 60)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
contents = st.binary(max_size=200) | st.integers(0, 5000).map(lambda n: b"\x00" * n)
headers = st.lists(st.tuples(names, contents), max_size=4).map(tuple)
records = st.builds(Record, key=st.none() | contents, value=st.none() | contents, headers=headers, timestamp_ms=STAMPS)
batches = st.lists(records, min_size=1, max_size=8).map(
    lambda found: [Record(r.key, r.value, r.headers, r.timestamp_ms, i) for i, r in enumerate(found)]
)


@given(batches, STAMPS, st.sampled_from(CODECS))
def test_what_goes_in_comes_out(made: list[Record], base: int, codec: str) -> None:
    data = encode_batch(made, base_timestamp_ms=base, codec=codec)  # type: ignore[arg-type]
    assert decode_batch(data) == made
    published = encode_publish(data, channel=1, correlation=2, flags=7)
    run = scan_run(published, 0, len(published), BOUND)
    assert (run.error, run.record_count, run.compressed) == (None, len(made), codec != "none")
    assert [(o, r) for o, r, _ in iter_records(published * 2, 5)] == [(5 + i + n * len(made), r) for n in (0, 1) for i, r in enumerate(made)]


@given(records)
def test_the_short_way_is_the_long_way(record: Record) -> None:
    long = encode_publish(encode_batch([record], base_timestamp_ms=record.timestamp_ms), channel=1, correlation=2, flags=7)
    assert encode_publish_one(record, channel=1, correlation=2, flags=7) == long
    assert [r for _, r, _ in iter_records(long, 0)] == decode_batch(long, 32) == [record]


@given(st.lists(st.tuples(st.integers(0, 50), records), max_size=6, unique_by=lambda x: x[0]), st.integers(50, 1000))
def test_compacted_batches_keep_their_offsets(made: list[tuple[int, Record]], last: int) -> None:
    kept = [Record(r.key, r.value, r.headers, r.timestamp_ms, at) for at, r in sorted(made, key=lambda x: x[0])]
    assert decode_batch(encode_batch(kept, base_timestamp_ms=0, last_offset_delta=last)) == kept


@given(st.binary(max_size=200), st.integers(0, 4))
def test_arbitrary_sections(data: bytes, codec: int) -> None:
    with suppress(Malformed):
        assert len(expand(codec, data, 1000)) <= 1000


@given(batches, st.sampled_from(CODECS), st.data())
@settings(max_examples=200)
def test_damaged_records_under_a_right_checksum(made: list[Record], codec: str, data: st.DataObject) -> None:
    """The checksum does not save a decoder from a hostile publisher."""
    whole = encode_batch(made, base_timestamp_ms=0, codec=codec)  # type: ignore[arg-type]
    covered = bytearray(whole[21:])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(covered) - 1))
        covered[at] = data.draw(st.integers(0, 255))
    sealed = _sealed(bytes(covered))
    for read in (lambda: decode_batch(sealed, decompressed_bytes_max=BOUND), lambda: _stored(sealed)):
        with suppress(Malformed):
            for record in read():
                assert isinstance(record, Record)
                assert -(1 << 63) <= record.timestamp_ms < 1 << 63


@given(st.binary(max_size=150), st.sampled_from([0, 1, 2, 3, 4]), st.integers(0, 20))
def test_arbitrary_records_under_a_right_checksum(section: bytes, codec: int, count: int) -> None:
    covered = encode_batch([], base_timestamp_ms=0, last_offset_delta=30)[21:57].replace(b"\x00\x00", codec.to_bytes(2, "big"), 1)
    sealed = _sealed(covered + count.to_bytes(4, "big") + section)
    results = []
    for read in (lambda: decode_batch(sealed, decompressed_bytes_max=BOUND), lambda: _stored(sealed)):
        try:
            results.append(list(read()))
        except Malformed:
            results.append(None)
    assert results[0] == results[1]


@given(batches, st.data())
def test_a_flipped_bit_is_malformed(made: list[Record], data: st.DataObject) -> None:
    whole = bytearray(encode_batch(made, base_timestamp_ms=0))
    byte = data.draw(st.integers(8, len(whole) - 1).filter(lambda at: not 12 <= at < 16))
    whole[byte] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(Malformed):
        decode_batch(bytes(whole))
        raise AssertionError(f"byte {byte} changed and nobody saw it")


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    for read in (lambda: [batch_info(data)], lambda: decode_batch(data), lambda: list(iter_records(data, 0))):
        with suppress(Malformed):
            read()


def _sealed(covered: bytes) -> bytes:


    return pack(">qiibI", 0, 9 + len(covered), -1, 2, crc32c(covered)) + covered


def _stored(batch: bytes) -> list[Record]:
    blob = encode_publish(batch, channel=1, correlation=0, flags=7)
    return [r for _, r, _ in iter_records(blob, 0, decompressed_bytes_max=BOUND)]
