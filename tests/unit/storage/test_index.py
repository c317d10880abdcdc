"""A partition's columns against a plain list of entries, and the segments' bytes."""

import random

import pytest
from crc32c import crc32c

from headrace.model.errors import Damaged, UnsupportedVersion
from headrace.storage import segments
from headrace.storage.files import MemoryFiles
from headrace.storage.index import POSITION_BITS, Part
from headrace.storage.keys import SegmentRef
from headrace.storage.reads import bytes_of, record_rows, rows_after, rows_of
from headrace.storage.segments import SegmentWriter
from headrace.storage.walformat import encode_entry
from headrace.wire.journal import RECORDS_HEAD

END = 1 << 62
Plain = list[tuple[int, int, int, int, int]]
"""(index, place, size, base or -1, count)"""


def check(part: Part, plain: Plain, floor: int, r: random.Random) -> None:
    assert part.rows_from(0) == [(e[1], e[2], e[0]) for e in plain]
    records = [e for e in plain if e[3] >= 0]
    assert [(part.base(k), part.count(k)) for k in range(part.rows) if part.count(k)] == [e[3:] for e in records]
    for k, e in enumerate(plain):
        if e[3] >= 0:
            assert part.end_in_log_below(e[0] + 1) == part.end_of(k + 1) == e[3] + e[4]
    live = [e for e in records if e[3] + e[4] > floor]
    assert part.live_bytes == sum(e[2] for e in live)
    assert [part.base(k) for k in range(part.dead_rows, part.rows) if part.count(k)] == [e[3] for e in live]
    offset = r.randrange(1 + max((e[3] + e[4] for e in records), default=0))
    assert record_rows(part, offset, END, END) == [(e[1], e[2], e[0]) for e in records if e[3] + e[4] > offset]
    since = 1000 + r.randrange(1 + max((e[0] for e in plain), default=0))
    timely = range(part.row_of_time(since, part.dead_rows), part.rows)
    assert [part.base(k) for k in timely if part.count(k)] == [e[3] for e in live if 1000 + e[0] >= since]
    if plain:
        after = r.randrange(plain[0][0] - 1, plain[-1][0] + 1)
        assert rows_after(part, after) == [(e[1], e[2], e[0]) for e in plain if e[0] > after]
        rows = r.randrange(len(plain) + 1)
        copied = part.copy(rows)
        want = [((e[1], e[2], e[0]), e[3], e[4]) for e in plain[:rows] if e[0] > after or (e[3] >= 0 and e[3] + e[4] > floor)]
        assert [(row, base, count) for row, base, count, _ in rows_of(copied, after, floor)] == want
        assert bytes_of(copied, after, floor) == (len(want), sum(row[1] for row, _, _ in want))


@pytest.mark.parametrize("seed", range(30))
def test_columns(seed: int) -> None:
    r = random.Random(seed)
    part, plain = Part(1), Plain()
    index, place, offset, floor, moved = 0, 0, 0, 0, 0
    for _ in range(200):
        act = r.random()
        if act < 0.7:
            index, size = index + 1, r.randrange(40, 5000)
            place += r.choice((size, size + 512, 1 << POSITION_BITS))
            if r.random() < 0.7:
                count = r.randrange(1, 4)
                part.add_records(place, size, index, offset, count, 1000 + index)
                plain.append((index, place, size, offset, count))
                offset += count
            else:
                part.add(place, size, index)
                plain.append((index, place, size, -1, 0))
        elif act < 0.8:
            floor = r.randrange(floor, offset + 1)
            part.set_floor(floor)
        elif act < 0.9 and plain:
            rows = r.randrange(len(plain) + 1)
            part.drop_rows(rows)
            moved = max([moved, *(e[3] + e[4] for e in plain[:rows] if e[3] >= 0)])
            del plain[:rows]
        elif act < 0.93 and plain:
            index = r.randrange(plain[0][0], index + 1) - 1
            part.discard(index + 1)
            plain = [e for e in plain if e[0] <= index]
            records = [e for e in plain if e[3] >= 0]
            offset = max(floor, records[-1][3] + records[-1][4] if records else moved)
        if not plain:
            part.first_index = index + 1
        check(part, plain, floor, r)


def test_a_hole_is_a_row_without_size() -> None:
    part = Part(1)
    part.add(100, 50, 1)
    part.add(400, 50, 4)
    assert [part.size(k) for k in range(part.rows)] == [50, 0, 0, 50]
    assert rows_after(part, 0) == [(100, 50, 1)]


def entry(pid: int, index: int, base: int, size: int) -> bytes:
    payload = RECORDS_HEAD.pack(base, 1, 1, 1000 + index, 0) + bytes([index % 251]) * size
    return encode_entry(pid, 1, index, 1, (payload,), len(payload)) + payload


def written(files: MemoryFiles) -> dict[int, SegmentRef]:
    files.make_dir("/s")
    writer = SegmentWriter(files, "/s", 5, 1)
    for pid in (3, 9):
        writer.begin(pid, first_index=1, last_index=300, end_offset=0)
        for n in range(100):
            writer.add(entry(pid, 3 * n + 1, n, 2000), 3 * n + 1, n, 1, 1000 + 3 * n + 1)
        writer.end(b"checkpoint of %d" % pid)
    return {section.pid: section.ref for section in writer.finish()}


def test_a_segment_is_found_again_by_its_table() -> None:
    files = MemoryFiles()
    refs = written(files)
    handle = files.open(segments.path_of("/s", 5))
    table = segments.read_table(files, handle, 5)
    assert table is not None
    assert {s.pid: s.ref for s in table} == refs
    assert [segments.read_checkpoint(files, handle, s) for s in table] == [b"checkpoint of 3", b"checkpoint of 9"]
    ref = refs[9]
    assert (ref.first_index, ref.last_index, ref.first_offset, ref.end_offset, ref.entries) == (1, 300, 0, 100, 100)
    rows = segments.load_rows(files, handle, 9, ref)
    assert 3 <= len(rows.positions) <= 5, "a step is about 64 KiB"
    for offset in (0, 1, 31, 32, 33, 50, 99):
        found = segments.read_from(files, handle, 9, ref, rows, offset, 5000, END)
        assert [e.base_offset for e in found] == [n for n in (offset, offset + 1) if n < 100]
        assert segments.offset_at(files, handle, 9, ref, rows, 1000 + 3 * offset + 1) == offset
    with pytest.raises(Damaged):
        segments.read_from(files, handle, 3, ref, rows, 0, 5000, END)


def test_damaged_rows_and_table_are_found_by_walking() -> None:
    files = MemoryFiles()
    refs = written(files)
    handle = files.open(segments.path_of("/s", 5))
    whole = segments.load_rows(files, handle, 9, refs[9])
    data = files.contents(segments.path_of("/s", 5))
    data[refs[9].rows_at + 8] ^= 1
    assert segments.load_rows(files, handle, 9, refs[9]) == whole
    data[-1] ^= 1
    assert segments.read_table(files, handle, 5) is None
    walked = {s.pid: s.ref for s in segments.sections_by_walking(files, handle, 5)}
    for pid, ref in refs.items():
        got = walked[pid]
        assert (got.first_offset, got.end_offset, got.entries, got.position, got.nbytes) == (0, 100, 100, ref.position, ref.nbytes)


def test_a_later_format_is_refused() -> None:
    files = MemoryFiles()
    written(files)
    data = files.contents(segments.path_of("/s", 5))
    raw = segments.HEADER.pack(segments.MAGIC, 2, 5, 1)
    data[: len(raw) + 4] = raw + segments._CRC.pack(crc32c(raw))
    with pytest.raises(UnsupportedVersion, match="format 2"):
        segments.read_table(files, files.open(segments.path_of("/s", 5)), 5)


def test_names() -> None:
    assert segments.number_of(segments.path_of("/s", 255)[3:]) == 255
    for name in ("segment-00000000000000ff.new", "segment-ff.seg", "segment-00000000000000FF.seg", "other"):
        assert segments.number_of(name) is None
