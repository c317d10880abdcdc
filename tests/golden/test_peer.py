"""The bytes between brokers are what they were when they were written down, and still mean the same."""

import json

import pytest

from headrace.cluster.secret import Secrets
from headrace.cluster.transport.handshake import Dialing
from headrace.model.errors import Draining, NotFound
from headrace.wire import peer
from headrace.wire.frames import HEADER, Op
from headrace.wire.peer import PeerOp
from tests.golden.make_peer import ANSWERER, DIALER, FILE, LEAST, REPEATED, SECRET, vectors

GOLDEN: dict[str, bytes] = {name: bytes.fromhex(data) for name, data in json.loads(FILE.read_text()).items()}
MADE = vectors()
FRAMES = sorted(set(GOLDEN) - {"preamble"})


@pytest.mark.parametrize("name", sorted({*GOLDEN, *MADE}))
def test_bytes(name: str) -> None:
    assert name in MADE, "a vector is made no more: whoever still sends it is not understood"
    assert name in GOLDEN, "a new vector: python -m tests.golden.make_peer --write"
    if name != "batch.compressed":  # another release of the compressor may find something shorter
        assert MADE[name].hex() == GOLDEN[name].hex()


@pytest.mark.parametrize("name", FRAMES)
def test_framing(name: str) -> None:
    data = GOLDEN[name]
    length, op, _, _, _ = HEADER.unpack_from(data)
    assert length == len(data) - 4
    assert PeerOp(op).name.lower() == name.split(".")[0]


def test_every_opcode_has_a_vector_and_none_is_a_client_s() -> None:
    assert {PeerOp(GOLDEN[name][4]) for name in FRAMES} == set(PeerOp)
    assert {op.value for op in PeerOp}.isdisjoint(op.value for op in Op)
    assert GOLDEN["preamble"] == peer.PREAMBLE == b"HDPEER\r\n"


def test_introductions_are_understood() -> None:
    assert peer.parse_introduction(GOLDEN["hello.opening"][12:]) == DIALER
    assert peer.parse_introduction(GOLDEN["challenge.opening"][12:]) == ANSWERER
    assert peer.parse_introduction(GOLDEN["hello.least"][12:]) == LEAST
    assert peer.parse_introduction(GOLDEN["hello.probe"][12:]).purpose == "probe"
    assert peer.parse_introduction(GOLDEN["hello.visit"][12:]).purpose == "visit"


def test_an_old_opening_is_still_proven() -> None:
    dialer = Dialing(DIALER, Secrets([SECRET]))
    dialer.begin()
    assert dialer.receive(PeerOp.CHALLENGE, GOLDEN["challenge.opening"]) == GOLDEN["proof.opening"]
    dialer.receive(PeerOp.WELCOME, GOLDEN["welcome.opening"])
    assert dialer.opened is not None
    assert (dialer.opened.who, dialer.opened.version, dialer.opened.features) == (ANSWERER, 1, frozenset({"lz4"}))


def test_bodies_are_understood() -> None:
    assert peer.parse_request(GOLDEN["request"][12:]) == (1500, b"body")
    assert peer.expanded(GOLDEN["batch.compressed"][12:], 1 << 20) == REPEATED
    error = peer.parse_failure(GOLDEN["error"][12:])
    assert (type(error), str(error), error.hint) == (NotFound, "no such thing", "declare it")
    assert isinstance(peer.parse_failure(GOLDEN["goodbye"][12:]), Draining)
