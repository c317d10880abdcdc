"""Frames between brokers: bounds and what is refused."""

import pytest

from headrace.model.errors import Malformed, TooLarge
from headrace.wire import peer
from headrace.wire.peer import Introduction, PeerOp


@pytest.mark.parametrize(
    "fields",
    [{"broker": ""}, {"broker": "x" * 64}, {"incarnation": ""}, {"nonce": b"short"}, {"versions": (2, 1)}, {"versions": (0, 1)},
     {"cluster": "x" * 65}, {"purpose": "other"}, {"features": ("x",) * 33}],
)  # fmt: skip
def test_introductions_out_of_bounds(fields: dict[str, object]) -> None:
    who = Introduction(**({"broker": "a", "incarnation": "1", "nonce": bytes(32)} | fields))  # type: ignore[arg-type]
    with pytest.raises(Malformed):
        peer.parse_introduction(peer.introduction(PeerOp.HELLO, who)[12:])


def test_an_expansion_is_bounded_before_memory_is_taken() -> None:
    with pytest.raises(TooLarge, match="expands to 4294967295 bytes; at most 1000"):
        peer.expanded(b"\xff\xff\xff\xff" + b"x" * 100, 1000)
    with pytest.raises(Malformed, match="cannot expand"):
        peer.expanded(b"\x7f\xff\xff\xff" + b"x" * 100, 1 << 31)


def test_an_expansion_has_the_length_it_names() -> None:
    made = peer.compressed([b"a" * 1000])
    assert made is not None
    assert peer.expanded(made, 1000) == b"a" * 1000
    with pytest.raises(Malformed):
        peer.expanded(b"\x00\x00\x03\xe9" + made[4:], 2000)
    with pytest.raises(Malformed):
        peer.expanded(b"\x00\x00\x03\xe7" + made[4:], 2000)


def test_what_does_not_shrink_stays() -> None:
    assert peer.compressed([bytes(range(256))]) is None


def test_short_bodies() -> None:
    for parse in (peer.parse_request, peer.parse_proof):
        with pytest.raises(Malformed):
            parse(b"abc")
    with pytest.raises(Malformed):
        peer.expanded(b"abc", 100)
