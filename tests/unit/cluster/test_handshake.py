"""The opening between brokers: what is proven, and every reason to refuse."""

from collections.abc import Callable

import msgspec
import pytest

from headrace.cluster.secret import Secrets
from headrace.cluster.transport.handshake import Answering, Dialing, check_preamble
from headrace.model.errors import Conflict, Elsewhere, Fenced, HeadraceError, Malformed, Unauthorized, UnsupportedVersion, WrongProtocol
from headrace.wire import peer
from headrace.wire.frames import frame
from headrace.wire.peer import PREAMBLE, Introduction, PeerOp

OLD, NEW = b"the old secret, long enough", b"the new secret, long enough"
A = Introduction(broker="a", incarnation="1", nonce=b"a" * 32, cluster="one", features=("lz4", "x"))
B = Introduction(broker="b", incarnation="2", nonce=b"b" * 32, cluster="one", features=("lz4", "y"))


def admit(who: Introduction) -> None:
    """Everybody."""


def opening(
    a: Introduction = A, b: Introduction = B, secrets: tuple[Secrets, Secrets] | None = None, bindings: tuple[bytes, bytes] = (b"", b""),
    altered: Callable[[int, bytes], bytes] = lambda step, data: data, admit: Callable[[Introduction], None] = admit,
) -> tuple[Dialing, Answering]:  # fmt: skip
    """Carries one out; ``altered`` is on the way."""
    ours, theirs = secrets or (Secrets([OLD]), Secrets([OLD]))
    dialer, answerer = Dialing(a, ours, binding=bindings[0]), Answering(b, theirs, admit, binding=bindings[1])
    first = dialer.begin()
    check_preamble(first[:8])
    data = altered(0, first[8:])
    data = altered(1, answerer.receive(data[4], data))
    assert answerer.opened is None
    data = altered(2, dialer.receive(data[4], data))
    assert dialer.opened is None
    data = altered(3, answerer.receive(data[4], data))
    assert dialer.receive(data[4], data) == b""
    return dialer, answerer


def test_both_know_each_other() -> None:
    dialer, answerer = opening()
    assert dialer.opened is not None
    assert answerer.opened is not None
    assert (dialer.opened.who, answerer.opened.who) == (B, A)
    assert dialer.opened.features == answerer.opened.features == frozenset({"lz4"})
    assert dialer.opened.version == answerer.opened.version == 1


def test_the_secret_is_never_sent() -> None:
    sent: list[bytes] = []

    def keep(step: int, data: bytes) -> bytes:
        sent.append(data)
        return data

    opening(altered=keep)
    assert all(OLD not in data and Secrets([OLD]).used.key("proof between brokers 1") not in data for data in sent)


def test_who_listens_proves_nothing_to_somebody_without_the_secret() -> None:
    answerer = Answering(B, Secrets([OLD]), admit)
    stranger = Dialing(A, Secrets([NEW]))
    challenge = answerer.receive(PeerOp.HELLO, stranger.begin()[8:])
    assert Secrets([OLD]).used.id not in challenge
    with pytest.raises(Unauthorized, match="not accepted") as refused:
        answerer.receive(PeerOp.PROOF, stranger.receive(PeerOp.CHALLENGE, challenge))
    assert Secrets([OLD]).ids()[0] not in str(refused.value)
    assert "same secret" in refused.value.hint


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([OLD], [OLD, NEW]), ([OLD, NEW], [OLD]), ([NEW, OLD], [OLD, NEW]), ([NEW, OLD], [NEW]), ([NEW], [OLD, NEW]), ([NEW], [NEW])],
)
def test_every_step_of_a_rotation(ours: list[bytes], theirs: list[bytes]) -> None:
    if ours == [NEW] and theirs == [OLD, NEW]:  # a step was taken before the one before was finished everywhere
        with pytest.raises(Unauthorized):
            opening(secrets=(Secrets(ours), Secrets(theirs)))
        return
    dialer, answerer = opening(secrets=(Secrets(ours), Secrets(theirs)))
    assert dialer.opened is not None
    assert answerer.opened is not None
    assert dialer.opened.keys == answerer.opened.keys == {Secrets(ours).used.id, Secrets(theirs).used.id}


@pytest.mark.parametrize("step", range(4))
def test_a_byte_altered_on_the_way_is_noticed(step: int) -> None:
    at = -1

    def alter(now: int, data: bytes) -> bytes:
        if now != step:
            return data
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    clean: list[bytes] = []

    def keep(now: int, data: bytes) -> bytes:
        clean.append(data)
        return data

    opening(altered=keep)
    for i in range(12, len(clean[step])):
        at = i
        with pytest.raises(HeadraceError):
            opening(altered=alter)


def test_a_recorded_opening_proves_nothing_later() -> None:
    recorded: list[bytes] = []

    def keep(now: int, data: bytes) -> bytes:
        recorded.append(data)
        return data

    opening(altered=keep)
    answerer = Answering(msgspec.structs.replace(B, nonce=b"c" * 32), Secrets([OLD]), admit)
    answerer.receive(PeerOp.HELLO, recorded[0])
    with pytest.raises(Unauthorized):
        answerer.receive(PeerOp.PROOF, recorded[2])


def test_a_proof_cannot_be_given_back() -> None:
    answerer, dialer = Answering(B, Secrets([OLD]), admit), Dialing(A, Secrets([OLD]))
    proof = dialer.receive(PeerOp.CHALLENGE, answerer.receive(PeerOp.HELLO, dialer.begin()[8:]))
    with pytest.raises(Unauthorized):
        dialer.receive(PeerOp.WELCOME, peer.proof(PeerOp.WELCOME, peer.parse_proof(proof[12:])))


def test_another_channel_is_another_proof() -> None:
    opening(bindings=(b"same", b"same"))
    with pytest.raises(Unauthorized):
        opening(bindings=(b"one", b"another"))


@pytest.mark.parametrize(
    ("a", "b", "error", "text"),
    [
        ({}, {"cluster": "two"}, Conflict, "belongs to cluster one, broker b to two"),
        ({}, {"broker": "a"}, Conflict, "both sides are broker a"),
        ({"expects": "c"}, {}, Elsewhere, "this is broker b, not c"),
        ({"versions": (2, 3)}, {}, UnsupportedVersion, "speaks versions 2 to 3"),
    ],
)
def test_refusals(a: dict[str, object], b: dict[str, object], error: type[HeadraceError], text: str) -> None:
    with pytest.raises(error, match=text) as refused:
        opening(msgspec.structs.replace(A, **a), msgspec.structs.replace(B, **b))
    assert refused.value.hint


def test_who_has_no_cluster_yet_fits_every_one() -> None:
    opening(msgspec.structs.replace(A, cluster=""))
    opening(b=msgspec.structs.replace(B, cluster=""))


def test_the_highest_common_version_is_spoken() -> None:
    dialer, answerer = opening(msgspec.structs.replace(A, versions=(1, 3)), msgspec.structs.replace(B, versions=(2, 4)))
    assert dialer.opened is not None
    assert answerer.opened is not None
    assert dialer.opened.version == answerer.opened.version == 3


def test_another_broker_at_the_address() -> None:
    dialer = Dialing(msgspec.structs.replace(A, expects="c"), Secrets([OLD]))
    dialer.begin()
    with pytest.raises(Elsewhere, match="broker b answers where c was expected"):
        dialer.receive(PeerOp.CHALLENGE, peer.introduction(PeerOp.CHALLENGE, B))


def test_somebody_proven_may_be_refused() -> None:
    def refuse(who: Introduction) -> None:
        raise Fenced("it was started again since")

    with pytest.raises(Fenced):
        opening(admit=refuse)


def test_a_refusal_is_told_as_it_was_meant() -> None:
    dialer = Dialing(A, Secrets([OLD]))
    dialer.begin()
    with pytest.raises(Unauthorized, match="no"):
        dialer.receive(PeerOp.REFUSAL, peer.failure(PeerOp.REFUSAL, Unauthorized("no")))


def test_frames_out_of_order() -> None:
    for side in (Dialing(A, Secrets([OLD])), Answering(B, Secrets([OLD]), admit)):
        side.begin()
        for op in (PeerOp.PROOF, PeerOp.WELCOME, PeerOp.BATCH, PeerOp.PING, 0x01):
            with pytest.raises(Malformed):
                side.receive(op, frame(op, bytes(40)))


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"HDRACE\r\n", "Headrace client"), (b"GET / HT", "HTTP"), (b"\x16\x03\x01abcde", "TLS"), (b"garbage!", "something")],
)
def test_other_protocols_are_recognised(data: bytes, text: str) -> None:
    with pytest.raises(WrongProtocol, match=text):
        check_preamble(data)
    check_preamble(PREAMBLE)
