"""Payloads of journal entries."""

import pytest

from headrace.model.errors import Malformed
from headrace.wire import journal
from headrace.wire.journal import Action, CursorEntry, Kind, Reason, TransferDone, TransferStart


def test_numbers_are_for_ever() -> None:
    assert {k.name: int(k) for k in Kind} == {
        "RECORDS": 1, "LEASE": 2, "SETTLEMENT": 3, "CURSOR": 4, "CONFIG": 5, "EPOCH_START": 6, "TRUNCATE": 7, "PROMISE": 8, "TRANSFER": 9,
        "GROUP": 10, "SESSIONS": 11, "ROUTING": 12,
    }  # fmt: skip
    assert [int(a) for a in Action] == list(range(7))
    assert [int(r) for r in Reason] == list(range(13))


def test_records_head() -> None:
    packed = journal.pack_records_head(1 << 40, 3, 2, 1_700_000_000_000, 1)
    assert packed.hex() == "0000010000000000" "00000003" "00000002" "0000018bcfe56800" "00000001" "00000000"
    assert journal.unpack_records_head(packed + b"frames") == (1 << 40, 3, 2, 1_700_000_000_000, 1)
    with pytest.raises(Malformed):
        journal.unpack_records_head(packed[:-1])


def test_leases() -> None:
    leases = [(5, 10, 1, 30_000, 77), ((1 << 64) - 1, (1 << 32) - 1, 65_535, (1 << 32) - 1, (1 << 64) - 1)]
    packed = journal.pack_leases(leases)
    assert packed[:28].hex() == "0000000000000005" "0000000a" "0001" "0000" "00007530" "000000000000004d"
    assert journal.unpack_leases(packed) == leases
    assert journal.unpack_leases(b"") == []
    with pytest.raises(Malformed):
        journal.unpack_leases(packed[:-1])


def test_settlements() -> None:
    rows = [(int(Action.DELAY), int(Reason.RETRY), 3, 10, 5, 1_700_000_000_000), (int(Action.ACK), 0, 0, 1, 1 << 63, -1)]
    packed = journal.pack_settlements(rows)
    assert packed[:24].hex() == "0201" "0003" "0000000a" "0000000000000005" "0000018bcfe56800"
    assert journal.unpack_settlements(packed) == rows
    with pytest.raises(Malformed):
        journal.unpack_settlements(packed[:-1])


def test_cursors() -> None:
    cursors = [CursorEntry("a", 7, [(9, 2), (20, 1)], 5), CursorEntry("gone", -1)]
    assert journal.unpack_cursors(journal.pack_cursors(cursors)) == cursors


def test_transfers() -> None:
    for transfer in (TransferStart(3, "dead", int(Reason.REJECTED), [(5, 2, 1)], 9, {"to": "x"}), TransferDone(3)):
        assert journal.unpack_transfer(journal.pack_transfer(transfer)) == transfer


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x91\x01", b"\xc1", b"\x91" * 5000])
def test_bad_msgpack(payload: bytes) -> None:
    with pytest.raises(Malformed):
        journal.unpack_cursors(payload)
    with pytest.raises(Malformed):
        journal.unpack_transfer(payload)
