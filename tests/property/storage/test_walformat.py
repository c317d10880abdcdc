"""decode(encode(x)) = x, and arbitrary bytes are never taken for anything."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import Damaged, UnsupportedVersion
from headrace.storage import walformat as wf
from headrace.storage.files import MemoryFiles
from headrace.storage.recovery import recover
from headrace.storage.walfiles import name_of

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


@given(st.builds(wf.FileHeader, U64, U64, U64, U64, U64, U64, U64, U64, st.integers(-(2**63), 2**63 - 1)))
def test_header(header: wf.FileHeader) -> None:
    assert wf.decode_header(wf.encode_header(header)) == header


@given(U64, U32, U64, st.integers(0, 255), st.lists(st.binary(max_size=50), max_size=5), st.binary(max_size=9))
def test_entry(pid: int, epoch: int, index: int, kind: int, pieces: list[bytes], around: bytes) -> None:
    payload = b"".join(pieces)
    raw = wf.encode_entry(pid, epoch, index, kind, pieces, len(payload)) + payload
    entry = wf.decode_entry(around + raw + around, len(around))
    assert (entry.pid, entry.epoch, entry.index, entry.kind, bytes(entry.payload)) == (pid, epoch, index, kind, payload)


@given(
    seed=U32,
    file_id=U64,
    blocks=st.integers(16, 2**40),
    seq=U64,
    rows=st.lists(st.tuples(U64, U64, U64, U32, U32), max_size=4),
    previous=st.lists(st.tuples(U64, U64, U64, U32, U32), max_size=4),
    entry_bytes=st.integers(0, 2**24),
)
def test_head(
    seed: int, file_id: int, blocks: int, seq: int, rows: list[wf.Row], previous: list[wf.Row], entry_bytes: int
) -> None:
    own, before = (b"".join(wf.ROW.pack(*row) for row in table) for table in (rows, previous))
    raw, zeros, total = wf.encode_head(
        seed,
        file_id=file_id,
        position=blocks * 512,
        seq=seq,
        rows=own,
        entry_bytes=entry_bytes,
        entry_heads=b"",
        previous=wf.Previous(1, 2, 3, 4, before),
        flags=0,
        oldest_id=5,
        wall_ms=6,
    )
    head = wf.decode_head(raw, 0, seed, file_id=file_id, position=blocks * 512)
    assert head is not None
    assert (head.seq, head.total_bytes, head.entry_bytes, head.entries_at) == (seq, total, entry_bytes, len(raw))
    assert total == len(raw) + entry_bytes + zeros
    assert total % 512 == 0
    assert 0 <= zeros < 512
    at = head.rows_at - head.position
    assert wf.decode_rows(raw[at : at + len(own)], head.rows_crc, seed) == rows
    at = head.previous_rows_at - head.position
    assert wf.decode_rows(raw[at : at + len(before)], head.previous_rows_crc, seed) == previous


@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    assert wf.decode_head(data, 0, 1, file_id=1, position=0) is None
    try:
        assert wf.decode_header(data) is None
    except UnsupportedVersion:
        raise AssertionError("a checksum over noise matched") from None
    try:
        wf.decode_entry(data)
    except Damaged:
        return
    raise AssertionError("a checksum over noise matched")


@given(st.lists(st.tuples(st.integers(1, 5), st.binary(max_size=400)), max_size=4))
def test_arbitrary_files(contents: list[tuple[int, bytes]]) -> None:
    files = MemoryFiles()
    files.make_dir("/d")
    for file_id, data in contents:
        path = f"/d/{name_of(file_id)}"
        if not files.exists(path):
            files.pwrite(files.create(path), data * 40, 0)
    found = recover(files, "/d")
    assert not found.entries
    assert not found.partitions
