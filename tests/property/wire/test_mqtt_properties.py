"""Any packet that can be made is understood as what it was, in whatever pieces it comes; any bytes raise nothing and are kept within the bound."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Ack, Auth, Connack, Connect, Disconnect, Filter, Suback, Subscribe, Unsuback, Unsubscribe, Will
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.properties import (
    BINARY,
    BYTE,
    FOUR_BYTES,
    PAIR,
    RESPONSE_TOPIC,
    SUBSCRIPTION_IDENTIFIER,
    TABLE,
    TEXT,
    TWO_BYTES,
    VARIABLE_MAX,
)
from headrace.wire.mqtt.publish import Publish
from headrace.wire.mqtt.reasons import ALLOWED, Type
from tests.property.effort import effort

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
name = st.text(st.characters(exclude_characters="\0+#", exclude_categories=["Cs"]), min_size=1, max_size=20)
data = st.binary(max_size=40)
packet_id = st.integers(1, 65_535)


def values(id: int, packet: int) -> st.SearchStrategy[Any]:
    kind = TABLE[id][1]
    if id == RESPONSE_TOPIC:
        return name
    if id == SUBSCRIPTION_IDENTIFIER:
        return st.lists(st.integers(1, VARIABLE_MAX), min_size=1, max_size=3 if packet == Type.PUBLISH else 1)
    return {
        BYTE: st.integers(0, 1),
        TWO_BYTES: st.integers(1, 65_535),
        FOUR_BYTES: st.integers(1, (1 << 32) - 1),
        TEXT: text,
        BINARY: data,
        PAIR: st.lists(st.tuples(text, text), min_size=1, max_size=4),
    }[kind]


def properties(packet: int) -> st.SearchStrategy[dict[int, Any]]:
    ids = [id for id, row in TABLE.items() if packet in row[2] and id != 0x16]  # authentication data needs its method
    return st.fixed_dictionaries({}, optional={id: values(id, packet) for id in ids})


def reasons(packet: int) -> st.SearchStrategy[int]:
    return st.sampled_from(sorted(ALLOWED[packet]))


wills = st.builds(Will, name, data, st.integers(0, 2), st.booleans(), properties(0))
filters = st.builds(Filter, text, st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 2))
five = st.one_of(
    st.builds(Connack, st.booleans(), reasons(2), properties(2)),
    *(st.builds(Ack, st.just(kind), packet_id, reasons(kind), properties(kind)) for kind in (4, 5, 6, 7)),
    st.builds(Subscribe, packet_id, st.lists(filters, min_size=1, max_size=4).map(tuple), properties(8)),
    st.builds(Suback, packet_id, st.lists(reasons(9), min_size=1, max_size=4).map(tuple), properties(9)),
    st.builds(Unsubscribe, packet_id, st.lists(text, min_size=1, max_size=4).map(tuple), properties(10)),
    st.builds(Unsuback, packet_id, st.lists(reasons(11), min_size=1, max_size=4).map(tuple), properties(11)),
    st.builds(Disconnect, reasons(14), properties(14)),
    st.builds(Auth, reasons(15), properties(15)),
)
connects = st.one_of(
    st.builds(Connect, text, st.just(5), st.booleans(), st.integers(0, 65_535), st.none() | wills, st.none() | text, st.none() | data, properties(1)),
    st.builds(Connect, text, st.just(4), st.booleans(), st.integers(0, 65_535), st.none(), text, st.none() | data),
)


def fed(parser: Parser, stream: bytes, cuts: list[int]) -> list[Any]:
    found, at = [], 0
    for cut in sorted({min(c, len(stream)) for c in cuts} | {len(stream)}):
        found += parser.feed(stream[at:cut])
        at = cut
    return found


cuts = st.lists(st.integers(0, 300), max_size=6)


@given(connects, cuts)
@effort(200)
def test_connects_come_back(connect: Connect, at: list[int]) -> None:
    parser = Parser(1 << 20)
    assert fed(parser, encoding.connect(connect), at) == [connect]
    assert parser.fault is None


@given(st.lists(five, max_size=5), cuts)
@effort(200)
def test_packets_come_back(packets: list[Any], at: list[int]) -> None:
    parser = Parser(1 << 20, version=5)
    assert fed(parser, b"".join(encoding.control(p, 5) for p in packets), at) == packets
    assert parser.fault is None
    assert parser.buffered == 0


@given(name, st.binary(max_size=300), st.integers(0, 2), st.booleans(), st.booleans(), packet_id, properties(3), st.sampled_from([4, 5]), cuts)
@effort(300)
def test_publishes_come_back(
    topic: str, payload: bytes, qos: int, retain: bool, dup: bool, id: int, found: dict[int, Any], version: int, at: list[int]
) -> None:
    dup = dup and qos > 0
    frame = encoding.publish(version, topic, payload, qos=qos, retain=retain, dup=dup, packet_id=id if qos else 0, properties=found)
    parser = Parser(1 << 20, version=version)
    (publish,) = fed(parser, frame, at)
    assert isinstance(publish, Publish)
    assert publish.frame == frame
    assert (publish.topic, publish.payload, publish.qos, publish.retain, publish.dup) == (topic, payload, qos, retain, dup)
    assert publish.packet_id == (id if qos else 0)
    assert (publish.properties or {}) == (found if version == 5 else {})


@given(st.lists(st.binary(max_size=60), max_size=8), st.sampled_from([0, 4, 5]))
@effort(400)
def test_noise_raises_nothing_and_is_bounded(pieces: list[bytes], version: int) -> None:
    parser = Parser(64, version=version)
    for piece in pieces:
        parser.feed(piece)
        assert parser.buffered <= 64
