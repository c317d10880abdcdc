"""What the parser does with pieces, bounds and bytes that are no packet."""

import json
from pathlib import Path

import pytest

from headrace.wire.mqtt import encoding, properties
from headrace.wire.mqtt.packets import Ack, Connect, Pingreq, Will
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.publish import Publish

CONNECT_4 = encoding.connect(Connect("c", 4))
CONNECT_5 = encoding.connect(Connect("c", 5))
GOLDEN = {n: bytes.fromhex(d) for n, d in json.loads((Path(__file__).parents[3] / "golden" / "wire" / "mqtt.json").read_text()).items()}


def shown(packet: object) -> object:
    return (packet.frame, packet.topic, packet.properties) if isinstance(packet, Publish) else packet


def test_one_byte_at_a_time_is_the_same() -> None:
    stream = CONNECT_5 + b"".join(d for n, d in GOLDEN.items() if n.startswith("5.") and ".connect" not in n and not n.endswith(".will"))
    whole, pieces = Parser(1 << 20), Parser(1 << 20)
    found = [shown(p) for p in whole.feed(stream)]
    single = [shown(p) for byte in stream for p in pieces.feed(bytes((byte,)))]
    assert whole.fault is None
    assert pieces.fault is None
    assert single == found
    assert len(found) > 180
    assert pieces.buffered == whole.buffered == 0


def test_packets_of_a_read_come_at_once_and_the_rest_is_kept() -> None:
    parser = Parser(1 << 20)
    publish = encoding.publish(4, "t", b"x" * 10)
    found = parser.feed(CONNECT_4 + publish * 3 + publish[:5])
    assert [type(p).__name__ for p in found] == ["Connect", "Publish", "Publish", "Publish"]
    assert parser.buffered == 5
    assert len(parser.feed(publish[5:])) == 1
    assert parser.buffered == 0


def test_a_length_above_the_bound_is_refused_before_its_bytes_come() -> None:
    parser = Parser(1000, 100)
    assert parser.feed(b"\x10\x63") == []
    assert parser.fault is not None
    assert parser.fault.reason == 0x95
    parser = Parser(1000, 100)
    parser.feed(CONNECT_4)
    parser.feed(b"\x30\xe8")
    assert parser.fault is None
    parser.feed(b"\x07")
    assert parser.fault is not None
    assert parser.fault.reason == 0x95


def test_what_was_good_before_a_fault_is_given_and_nothing_after_it() -> None:
    parser = Parser(1000)
    found = parser.feed(CONNECT_4 + encoding.PINGREQ + b"\x36\x00" + encoding.PINGREQ)
    assert [type(p) for p in found] == [Connect, Pingreq]
    assert parser.fault is not None
    assert parser.feed(encoding.PINGREQ) == []


@pytest.mark.mqtt3("3.1.0-1")
@pytest.mark.mqtt("3.1.0-1")
@pytest.mark.parametrize("first", [b"\x30", b"\xc0", b"G", b"\x16", b"\x11"])
def test_the_first_packet_is_a_connect(first: bytes) -> None:
    parser = Parser(1000)
    parser.feed(first)
    assert parser.fault is not None
    assert parser.fault.reason == 0x82


def test_another_version_is_given_as_that_and_nothing_more_of_it_is_read() -> None:
    for name, version, seen in (("MQIsdp", 3, 3), ("MQTT", 6, 6), ("MQIsdp", 4, 3)):
        parser = Parser(1000)
        body = properties.text(name) + bytes((version, 0, 0, 0)) + b"whatever"
        (found,) = parser.feed(encoding.packet(0x10, body) + b"\xff\xff\xff")
        assert (found.version, parser.fault) == (seen, None)
        assert parser.feed(b"\x36\x00") == []
        assert (parser.fault, parser.buffered) == (None, 0)


@pytest.mark.mqtt("3.1.3-1")
@pytest.mark.mqtt3("3.1.3-1")
@pytest.mark.parametrize("version", [4, 5])
def test_the_payload_of_connect_has_its_order(version: int) -> None:
    none = b"" if version == 4 else b"\0"
    head = properties.text("MQTT") + bytes((version, 0xEE, 0, 60)) + none
    will = none + properties.text("topic") + properties.binary(b"will")
    payload = properties.text("id") + will + properties.text("user") + properties.binary(b"secret")
    (found,) = Parser(1000).feed(encoding.packet(0x10, head + payload))
    assert found == Connect("id", version, True, 60, Will("topic", b"will", 1, True), "user", b"secret")


def _body(*pieces: bytes) -> bytes:
    return b"".join(pieces)


_NAME, _ID = properties.text("MQTT"), properties.text("c")
BAD_CONNECTS = {
    "protocol name": (_body(properties.text("HTTP"), b"\x05\x02\x00\x00\x00", _ID), 0x84),
    "reserved flag": (_body(_NAME, b"\x04\x03\x00\x00", _ID), 0x81),
    "will qos 3": (_body(_NAME, b"\x04\x1e\x00\x00", _ID, properties.text("t"), b"\0\0"), 0x81),
    "will qos without a will": (_body(_NAME, b"\x04\x0a\x00\x00", _ID), 0x81),
    "will retain without a will": (_body(_NAME, b"\x04\x22\x00\x00", _ID), 0x81),
    "password without a user in 3.1.1": (_body(_NAME, b"\x04\x42\x00\x00", _ID, b"\0\0"), 0x81),
    "will topic with a wildcard": (_body(_NAME, b"\x04\x06\x00\x00", _ID, properties.text("a/+"), b"\0\0"), 0x90),
    "left over": (_body(_NAME, b"\x04\x02\x00\x00", _ID, b"x"), 0x81),
    "cut off": (_body(_NAME, b"\x04"), 0x81),
    "no will where one is said to be": (_body(_NAME, b"\x04\x06\x00\x00", _ID), 0x81),
    "will topic not UTF-8": (_body(_NAME, b"\x04\x06\x00\x00", _ID, b"\0\1\xff\0\0"), 0x81),
    "no user name where one is said to be": (_body(_NAME, b"\x04\x82\x00\x00", _ID), 0x81),
    "user name not UTF-8": (_body(_NAME, b"\x04\x82\x00\x00", _ID, b"\0\1\xff"), 0x81),
    "user name without its flag": (_body(_NAME, b"\x04\x02\x00\x00", _ID, b"\0\1u"), 0x81),
    "no password where one is said to be": (_body(_NAME, b"\x04\xc2\x00\x00", _ID, b"\0\1u"), 0x81),
    "password without its flag": (_body(_NAME, b"\x04\x82\x00\x00", _ID, b"\0\1u", b"\0\1p"), 0x81),
    "protocol name of 3.1.1": (_body(properties.text("MQIB"), b"\x04\x02\x00\x00", _ID), 0x84),
    "no client id": (_body(_NAME, b"\x04\x02\x00\x00"), 0x81),
    "client id not UTF-8": (_body(_NAME, b"\x04\x02\x00\x00", b"\x00\x02\xc3\x28"), 0x81),
    "client id with a surrogate": (_body(_NAME, b"\x04\x02\x00\x00", b"\x00\x03\xed\xa0\x80"), 0x81),
    "client id with U+0000": (_body(_NAME, b"\x04\x02\x00\x00", b"\x00\x01\x00"), 0x81),
    "authentication data without a method": (_body(_NAME, b"\x05\x02\x00\x00", b"\x04\x16\x00\x01x", _ID), 0x82),
    "receive maximum 0": (_body(_NAME, b"\x05\x02\x00\x00", b"\x03\x21\x00\x00", _ID), 0x82),
    "maximum packet size 0": (_body(_NAME, b"\x05\x02\x00\x00", b"\x05\x27\0\0\0\0", _ID), 0x82),
    "request problem information 2": (_body(_NAME, b"\x05\x02\x00\x00", b"\x02\x17\x02", _ID), 0x82),
    "a property twice": (_body(_NAME, b"\x05\x02\x00\x00", b"\x06\x21\x00\x01\x21\x00\x01", _ID), 0x82),
    "a property of another packet": (_body(_NAME, b"\x05\x02\x00\x00", b"\x03\x23\x00\x01", _ID), 0x82),
    "an unknown property": (_body(_NAME, b"\x05\x02\x00\x00", b"\x02\x7f\x00", _ID), 0x81),
    "properties longer than the packet": (_body(_NAME, b"\x05\x02\x00\x00", b"\x7f", _ID), 0x81),
    "a response topic with a wildcard": (_body(_NAME, b"\x05\x06\x00\x00\x00", _ID, b"\x04\x08\x00\x01#", b"\x00\x01t\0\0"), 0x82),
}


@pytest.mark.mqtt3(
    "1.5.3-1", "1.5.3-2", "3.1.2-1", "3.1.2-3", "3.1.2-9", "3.1.2-11", "3.1.2-13", "3.1.2-14", "3.1.2-15",
    "3.1.2-18", "3.1.2-19", "3.1.2-20", "3.1.2-21", "3.1.2-22", "3.1.3-3", "3.1.3-4", "3.1.3-10", "3.1.3-11",
)  # fmt: skip
@pytest.mark.mqtt(
    "1.5.4-1", "1.5.4-2", "3.1.2-1", "3.1.2-3", "3.1.2-11", "3.1.2-12", "3.1.2-13", "3.1.2-9", "3.1.2-16", "3.1.2-17",
    "3.1.2-18", "3.1.2-19", "3.1.3-11", "3.1.3-12", "3.1.3-3", "3.1.3-4", "3.1.4-1", "3.3.2-14",
)  # fmt: skip
@pytest.mark.parametrize("name", sorted(BAD_CONNECTS))
def test_bad_connects(name: str) -> None:
    body, reason = BAD_CONNECTS[name]
    parser = Parser(1 << 20)
    assert parser.feed(encoding.packet(0x10, body)) == []
    assert parser.fault is not None
    assert parser.fault.reason == reason, str(parser.fault)


BAD = {
    "second connect": (4, CONNECT_4, 0x82),
    "second connect of nonsense": (5, encoding.packet(0x10, properties.text("HTTP")), 0x82),
    "qos 3": (4, b"\x36\x05\x00\x01t\x00\x01", 0x81),
    "dup with qos 0": (4, b"\x38\x03\x00\x01t", 0x81),
    "topic with a wildcard": (4, encoding.publish(4, "a/#", b""), 0x90),
    "empty topic in 3.1.1": (4, encoding.publish(4, "", b""), 0x90),
    "no topic and no alias": (5, encoding.publish(5, "", b""), 0x82),
    "topic with U+0000": (4, encoding.publish(4, "a\0", b""), 0x81),
    "topic cut off": (4, b"\x30\x03\x00\x09t", 0x81),
    "publish without an identifier": (4, b"\x32\x03\x00\x01t", 0x81),
    "identifier 0": (4, b"\x32\x05\x00\x01t\x00\x00", 0x82),
    "publish without properties": (5, b"\x30\x03\x00\x01t", 0x81),
    "topic alias 0": (5, encoding.publish(5, "t", b"", properties={0x23: 0}), 0x94),
    "subscription identifier 0": (5, b"\x30\x06\x00\x01t\x02\x0b\x00", 0x82),
    "payload format 2": (5, encoding.publish(5, "t", b"", properties={0x01: 2}), 0x82),
    "puback with flags": (4, b"\x41\x02\x00\x01", 0x81),
    "pubrel without its flags": (4, b"\x60\x02\x00\x01", 0x81),
    "long puback in 3.1.1": (4, b"\x40\x03\x00\x01\x00", 0x81),
    "puback of identifier 0": (5, b"\x40\x02\x00\x00", 0x82),
    "puback with a reason it cannot have": (5, b"\x40\x03\x00\x01\x92", 0x82),
    "puback with something left over": (5, b"\x40\x05\x00\x01\x00\x00\x00", 0x81),
    "subscribe without flags": (4, b"\x80\x06\x00\x01\x00\x01a\x00", 0x81),
    "subscribe without filters": (4, b"\x82\x02\x00\x01", 0x82),
    "subscribe with qos 3": (4, b"\x82\x06\x00\x01\x00\x01a\x03", 0x81),
    "subscribe with options in 3.1.1": (4, b"\x82\x06\x00\x01\x00\x01a\x04", 0x81),
    "subscribe with reserved options": (5, b"\x82\x07\x00\x01\x00\x00\x01a\x40", 0x81),
    "subscribe with retain handling 3": (5, b"\x82\x07\x00\x01\x00\x00\x01a\x30", 0x81),
    "subscribe of identifier 0": (4, b"\x82\x06\x00\x00\x00\x01a\x00", 0x82),
    "unsubscribe without flags": (4, b"\xa0\x05\x00\x01\x00\x01a", 0x81),
    "disconnect with flags": (5, b"\xe1\x00", 0x81),
    "auth with flags": (5, b"\xf1\x00", 0x81),
    "user property not UTF-8": (5, b"\x30\x0b\x00\x01t\x07\x26\x00\x01\xff\x00\x01v", 0x81),
    "filter not UTF-8": (5, b"\x82\x07\x00\x01\x00\x00\x01\xff\x00", 0x81),
    "filter of unsubscribe not UTF-8": (5, b"\xa2\x06\x00\x01\x00\x00\x01\xff", 0x81),
    "content type not UTF-8": (5, b"\x30\x08\x00\x01t\x04\x03\x00\x01\xff", 0x81),
    "response topic not UTF-8": (5, b"\x30\x08\x00\x01t\x04\x08\x00\x01\xff", 0x81),
    "topic not UTF-8": (5, b"\x30\x04\x00\x01\xff\x00", 0x81),
    "topic not UTF-8 in 3.1.1": (4, b"\x30\x03\x00\x01\xff", 0x81),
    "filter not UTF-8 in 3.1.1": (4, b"\x82\x06\x00\x01\x00\x01\xff\x00", 0x81),
    "filter of unsubscribe not UTF-8 in 3.1.1": (4, b"\xa2\x05\x00\x01\x00\x01\xff", 0x81),
    "disconnect with flags in 3.1.1": (4, b"\xe1\x00", 0x81),
    "pubrec with a reason it cannot have": (5, b"\x50\x03\x00\x01\x92", 0x82),
    "pubrel with a reason it cannot have": (5, b"\x62\x03\x00\x01\x10", 0x82),
    "pubcomp with a reason it cannot have": (5, b"\x70\x03\x00\x01\x80", 0x82),
    "unsubscribe without filters": (4, b"\xa2\x02\x00\x01", 0x82),
    "ping with a body": (4, b"\xc0\x01\x00", 0x81),
    "disconnect with a body in 3.1.1": (4, b"\xe0\x01\x00", 0x81),
    "disconnect with an unknown reason": (5, b"\xe0\x01\x03", 0x82),
    "auth in 3.1.1": (4, b"\xf0\x00", 0x81),
    "packet type 0": (4, b"\x00\x00", 0x81),
    "remaining length of five bytes": (4, b"\x30\xff\xff\xff\xff\x01", 0x81),
    "remaining length too long": (4, b"\xc0\x80\x00", 0x81),
}


@pytest.mark.mqtt3(
    "2.2.2-1", "2.2.2-2", "2.3.1-1", "3.1.0-2", "3.3.1-2", "3.3.1-4", "3.3.2-1", "3.3.2-2", "3.6.1-1", "3.8.1-1",
    "3.8.3-1", "3.8.3-3", "3.8.3-4", "3.10.1-1", "3.10.3-1", "3.10.3-2", "3.14.1-1", "4.7.1-1", "4.7.3-1", "4.7.3-2",
)  # fmt: skip
@pytest.mark.mqtt(
    "1.5.5-1", "2.1.3-1", "2.2.1-3", "3.1.0-2", "3.3.1-2", "3.3.1-4", "3.3.2-2", "3.3.2-8", "3.6.1-1", "3.8.1-1",
    "3.8.3-2", "3.8.3-5", "3.10.1-1", "3.10.3-1", "3.10.3-2", "3.14.1-1", "3.15.1-1", "1.5.7-1",
    "3.3.2-1", "3.3.2-13", "3.3.2-19", "3.8.3-1", "3.14.2-1",
    "4.7.0-1", "4.7.3-1", "4.7.3-2",
)  # fmt: skip
@pytest.mark.parametrize("name", sorted(BAD))
@pytest.mark.parametrize("pieces", [True, False])
def test_bad_packets(name: str, pieces: bool) -> None:
    version, data, reason = BAD[name]
    parser = Parser(1 << 20)
    assert len(parser.feed(CONNECT_4 if version == 4 else CONNECT_5)) == 1
    for part in [data[i : i + 1] for i in range(len(data))] if pieces else [data]:
        assert parser.feed(part) == []
    assert parser.fault is not None
    assert parser.fault.reason == reason, str(parser.fault)


def test_subscription_identifiers_come_several_times_from_a_server() -> None:
    parser = Parser(1 << 20, version=5)
    (found,) = parser.feed(encoding.publish(5, "t", b"x", properties={0x0B: [1, 268_435_455]}))
    assert found.properties == {0x0B: [1, 268_435_455]}


def test_many_acknowledgements_in_one_buffer() -> None:
    parser = Parser(1 << 20, version=4)
    assert parser.feed(encoding.acks(encoding.PUBREL, [1, 500, 65_535])) == [Ack(6, 1), Ack(6, 500), Ack(6, 65_535)]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_packets_that_are_alike_and_almost_alike(version: int, qos: int) -> None:
    def made(topic: str = "t", payload: bytes = b"12", number: int = 5, **more: object) -> bytes:
        return encoding.publish(version, topic, payload, qos=qos, packet_id=number if qos else 0, **more)  # type: ignore[arg-type]

    frames = [made(), made(number=6), made("u"), made("u", b"34"), made(retain=True), made(payload=b""), made(), made(payload=b"567"), made()]
    if version == 5:
        frames[4:4] = [made(), made(payload=b"", properties={1: 1}), made()]
    parser = Parser(1000, version=version)
    found = parser.feed(b"".join(frames))
    assert parser.fault is None
    assert [p.frame for p in found] == frames
    alone = [Parser(1000, version=version).feed(frame)[0] for frame in frames]
    for one, other in zip(found, alone, strict=True):
        for field in ("dup", "frame", "packet_id", "payload", "payload_at", "properties", "qos", "retain", "topic", "version"):
            assert getattr(one, field) == getattr(other, field)


def test_what_is_alike_but_has_no_identifier_is_a_fault() -> None:
    parser = Parser(1000, version=4)
    good = encoding.publish(4, "t", b"x", qos=1, packet_id=1)
    assert len(parser.feed(good * 3 + good.replace(b"\x00\x01x", b"\x00\x00x"))) == 3
    assert parser.fault is not None
    assert parser.fault.reason == 0x82


def test_a_plain_publish_is_what_publish_makes() -> None:
    """It remembers the head of the one before."""
    for topic in ("a", "b", "é/long" * 30):
        for size in (0, 1, 1, 120, 127, 128, 16_384):
            for version in (4, 5, 5, 4):
                payload = bytes(size)
                assert encoding.plain(version, topic, payload) == encoding.publish(version, topic, payload)
