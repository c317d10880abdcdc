"""The bytes of MQTT packets are what they were when they were written down, and are understood as what they were made of."""

import json

import pytest

from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.publish import Publish
from tests.golden.make_mqtt import FILE, packets, vectors

GOLDEN: dict[str, bytes] = {name: bytes.fromhex(data) for name, data in json.loads(FILE.read_text()).items()}
MADE = vectors()
PACKETS = packets()


@pytest.mark.parametrize("name", sorted({*GOLDEN, *MADE}))
def test_bytes(name: str) -> None:
    assert name in MADE, "a vector is made no more"
    assert name in GOLDEN, "a new vector: python -m tests.golden.make_mqtt --write"
    assert MADE[name].hex() == GOLDEN[name].hex()


@pytest.mark.parametrize("name", sorted(PACKETS))
def test_packets_are_understood(name: str) -> None:
    version, packet = PACKETS[name]
    parser = Parser(1 << 28, version=0 if ".connect" in name or name.endswith((".connect", ".will")) else version)
    (found,) = parser.feed(GOLDEN[name])
    assert parser.fault is None
    if isinstance(packet, tuple):
        assert isinstance(found, Publish)
        assert (found.topic, found.payload, found.properties) == packet
    else:
        assert found == packet


@pytest.mark.parametrize("name", [n for n in sorted(GOLDEN) if ".publish." in n])
def test_publishes_are_understood(name: str) -> None:
    data = GOLDEN[name]
    parser = Parser(1 << 28, version=4 if name[0] == "3" else 5)
    (found,) = parser.feed(data)
    assert isinstance(found, Publish)
    assert found.frame == data
    if name.split(".")[2] not in ("empty", "long"):
        first = data[0]
        assert (found.dup, found.qos, found.retain) == (bool(first & 8), first >> 1 & 3, bool(first & 1))
        assert (found.topic, found.payload, found.packet_id) == ("a/ß", b"\x00payload", 258 if found.qos else 0)
