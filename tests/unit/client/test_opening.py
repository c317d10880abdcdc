from headrace.client.opening import KEPT_MAX, Opener
from headrace.wire.batch import Record, encode_batch, encode_publish


def blob(values: list[bytes]) -> bytes:
    records = [Record(key=None, value=v) for v in values]
    return encode_publish(encode_batch(records, base_timestamp_ms=0), channel=1, correlation=0, flags=7)


def offsets(opener: Opener, data: bytes, base: int, first: int, end: int) -> list[tuple[int, bytes | None]]:
    return [(offset, record.value) for offset, record, _ in opener.records(0, data, base, first, end)]


def test_parts_of_a_batch_are_opened_once() -> None:
    opener = Opener()
    data = blob([b"a", b"b", b"c"])
    assert offsets(opener, data, 10, 11, 13) == [(11, b"b"), (12, b"c")]
    assert len(opener._kept) == 1
    assert offsets(opener, data, 10, 10, 11) == [(10, b"a")]
    assert len(opener._kept) == 1
    assert offsets(opener, blob([b"x", b"y", b"z"]), 10, 10, 11) == [(10, b"x")]


def test_whole_batches_and_runs_of_frames_are_not_kept() -> None:
    opener = Opener()
    assert offsets(opener, blob([b"a", b"b"]), 0, 0, 2) == [(0, b"a"), (1, b"b")]
    assert offsets(opener, blob([b"a"]) + blob([b"b"]), 0, 1, 2) == [(1, b"b")]
    assert not opener._kept


def test_only_a_few_are_kept() -> None:
    opener = Opener()
    for i in range(KEPT_MAX * 2):
        assert offsets(opener, blob([b"a", b"%d" % i]), i * 2, i * 2, i * 2 + 1) == [(i * 2, b"a")]
    assert len(opener._kept) == KEPT_MAX
