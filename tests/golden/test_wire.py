"""The bytes of the wire are what they were when they were written down, and still mean the same."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from headrace.wire import control, egress, ingress, journal
from headrace.wire.batch import iter_records
from headrace.wire.frames import HEADER, PREAMBLE, Op
from tests.golden.make_wire import FILE, control_types, least, most, vectors

GOLDEN: dict[str, bytes] = {name: bytes.fromhex(data) for name, data in json.loads(FILE.read_text()).items()}
MADE = vectors()


@pytest.mark.parametrize("name", sorted({*GOLDEN, *MADE}))
def test_bytes(name: str) -> None:
    assert name in MADE, "a vector is made no more: whoever still sends it is not understood"
    assert name in GOLDEN, "a new vector: python -m tests.golden.make_wire --write"
    assert MADE[name].hex() == GOLDEN[name].hex()


@pytest.mark.parametrize("kind", control_types())
def test_control_messages_are_understood(kind: type[control.Message]) -> None:
    tag = kind.__struct_config__.tag
    for value, name in ((least(kind), "least"), (most(kind), "most")):
        data = GOLDEN[f"control.{tag}.{name}"]
        decoders: list[Callable[[bytes], Any]] = [control.decode_request, control.decode_reply, control.decode_event, control.decode_failure]
        understood = []
        for decode in decoders:
            try:
                understood.append(decode(data))
            except ValueError:
                continue
        assert understood == [value]


@pytest.mark.parametrize("name", [n for n in sorted(GOLDEN) if not n.startswith(("journal.", "control.", "preamble"))])
def test_framing(name: str) -> None:
    data = GOLDEN[name]
    length, op, _, _, _ = HEADER.unpack_from(data)
    assert length == len(data) - 4
    assert Op(op).name.lower() == name.split(".")[0]


def test_every_opcode_has_a_vector() -> None:
    assert {Op(data[4]) for name, data in GOLDEN.items() if not name.startswith(("journal.", "control.", "preamble"))} == set(Op)
    assert GOLDEN["preamble"] == PREAMBLE == b"HDRACE\r\n"


@pytest.mark.parametrize(("name", "parse"), [
    ("confirm", egress.parse_confirm), ("publish_error", egress.parse_publish_error), ("deliver", egress.parse_deliver),
    ("settle", egress.parse_settle), ("settled", egress.parse_settled), ("credit", egress.parse_credit), ("extend", egress.parse_extend),
    ("fetch", egress.parse_fetch), ("fetch_end", egress.parse_fetch_end), ("error", egress.parse_failure),
])  # fmt: skip
def test_frames_are_understood(name: str, parse: Callable[[bytes, int, int], Any]) -> None:
    for found, data in GOLDEN.items():
        if found.split(".")[0] == name:
            parse(data, 0, len(data))


def test_publishes_are_understood() -> None:
    for name in ("one", "timed", "batch"):
        data = GOLDEN[f"publish.{name}"]
        assert ingress.scan_run(data, 0, len(data), 1000).error is None
    (one,) = iter_records(GOLDEN["publish.one"], 5)
    assert (one[0], one[1].key, one[1].value, one[1].headers) == (5, b"key", b"hello", (("a", b"b"),))
    assert [r.value for _, r, _ in iter_records(GOLDEN["publish.batch"], 0)] == [b"value", b"text", None]


def test_journal_is_understood() -> None:
    assert journal.unpack_leases(GOLDEN["journal.leases"]) == [(5, 10, 1, 30_000, 77)]
    assert journal.unpack_cursors(GOLDEN["journal.cursors"])[0].name == "a"
    assert journal.unpack_transfer(GOLDEN["journal.transfer_done"]) == journal.TransferDone(3)
