"""What replicas say to each other is what it was when it was written down, and still means the same."""

import json

import pytest

from headrace.cluster.replication.heads import unpack
from headrace.storage import walformat
from headrace.wire import replication as wire
from tests.golden.make_replication import FILE, MESSAGES, vectors

GOLDEN: dict[str, bytes] = {name: bytes.fromhex(data) for name, data in json.loads(FILE.read_text()).items()}
MADE = vectors()


@pytest.mark.parametrize("name", sorted({*GOLDEN, *MADE}))
def test_bytes(name: str) -> None:
    assert name in MADE, "a vector is made no more: whoever still sends it is not understood"
    assert name in GOLDEN, "a new vector: python -m tests.golden.make_replication --write"
    assert MADE[name].hex() == GOLDEN[name].hex()


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_messages_are_understood(name: str) -> None:
    found = unpack(GOLDEN[name])
    assert type(found) is type(MESSAGES[name])
    assert str(found).replace("[", "(").replace(",)", ")").replace("]", ")") == str(MESSAGES[name]).replace(",)", ")")


def test_a_frame_is_understood() -> None:
    rows, items = wire.decode(GOLDEN["frame"])
    assert rows == [(9, 7, 2, 90), (11, 1, 1, 5)]
    assert [(item.pid, item.head) for item in items] == [(9, GOLDEN["append"]), (10, GOLDEN["new_epoch"])]
    assert [(e.epoch, e.index, e.payload) for e in wire.entries(items[0].entries[0], 9)] == [(7, 88, b"one"), (7, 89, b"two")]


def test_an_entry_is_what_lies_in_the_log() -> None:
    assert (wire.ENTRY.format, wire.ENTRY.size) == (walformat.ENTRY.format, walformat.ENTRY_BYTES)
    found = walformat.decode_entry(GOLDEN["entry"])
    assert (found.epoch, found.index, bytes(found.payload)) == (7, 88, b"one")
