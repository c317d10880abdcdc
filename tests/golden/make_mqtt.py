"""Makes the byte vectors of MQTT: ``python -m tests.golden.make_mqtt`` shows what would change, with ``--write`` it writes them.

Every packet of both versions, every property in every packet that may have it, every reason code in every packet that may have it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import (
    Ack,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)
from headrace.wire.mqtt.properties import BINARY, BYTE, FOUR_BYTES, PAIR, TABLE, TEXT, TWO_BYTES, VARIABLE
from headrace.wire.mqtt.reasons import ALLOWED, Type

FILE = Path(__file__).parent / "wire" / "mqtt.json"
SAMPLES: dict[int, Any] = {
    BYTE: 1, TWO_BYTES: 0xABCD, FOUR_BYTES: 0x12345678,
    VARIABLE: [300], TEXT: "tëxt/☃", BINARY: b"\x00\xff", PAIR: [("b", "2"), ("a", "1"), ("b", "2")],
}  # fmt: skip
ACKS = (Type.PUBACK, Type.PUBREC, Type.PUBREL, Type.PUBCOMP)


def sample(packet: int, properties: dict[int, Any]) -> Any:
    """A packet of 5.0 of that type (0: a CONNECT with a will that has them) with those properties."""
    if packet == 0:
        return Connect("c", will=Will("t", b"w", properties=properties))
    if packet == Type.CONNECT:
        return Connect("c", properties=properties)
    if packet == Type.CONNACK:
        return Connack(properties=properties)
    if packet == Type.PUBLISH:
        return ("t", b"p", properties)
    if packet in ACKS:
        return Ack(packet, 10, properties=properties)
    if packet == Type.SUBSCRIBE:
        return Subscribe(10, (Filter("a/+"),), properties)
    if packet == Type.SUBACK:
        return Suback(10, (1,), properties)
    if packet == Type.UNSUBSCRIBE:
        return Unsubscribe(10, ("a/#",), properties)
    if packet == Type.UNSUBACK:
        return Unsuback(10, (0,), properties)
    return (Disconnect if packet == Type.DISCONNECT else Auth)(properties=properties)


def with_reason(packet: int, reason: int) -> Any:
    if packet == Type.CONNACK:
        return Connack(reason=reason)
    if packet in ACKS:
        return Ack(packet, 7, reason)
    if packet == Type.SUBACK:
        return Suback(7, (reason,))
    if packet == Type.UNSUBACK:
        return Unsuback(7, (reason,))
    return (Disconnect if packet == Type.DISCONNECT else Auth)(reason)


def packets() -> dict[str, tuple[int, Any]]:
    """Name to (version, packet); a PUBLISH is (topic, payload, properties) here."""
    will = Will("will/t", b"gone", 2, True)
    made: dict[str, tuple[int, Any]] = {
        "3.connect.least": (4, Connect("", 4)),
        "3.connect.most": (4, Connect("cliënt", 4, False, 65_535, will, "user", b"pass")),
        "3.connect.username": (4, Connect("c", 4, True, 1, None, "")),
        "5.connect.password-alone": (5, Connect("c", 5, True, 1, None, None, b"p")),
        "5.connect.most": (5, Connect("c", 5, False, 60, Will("w", b"", 1, False, {0x18: 5}), "u", b"", {0x11: 10, 0x21: 20})),
        "3.subscribe": (4, Subscribe(1, (Filter("a"), Filter("+/b/#", 1), Filter("#", 2)))),
        "3.suback": (4, Suback(65_535, (0, 1, 2, 0x80))),
        "3.unsubscribe": (4, Unsubscribe(2, ("a", "b"))),
        "3.unsuback": (4, Unsuback(2)),
        "3.disconnect": (4, Disconnect()),
        "5.disconnect": (5, Disconnect()),
        "5.auth": (5, Auth()),
        "3.pingreq": (4, Pingreq()),
        "3.pingresp": (4, Pingresp()),
    }
    for code in range(6):
        made[f"3.connack.{code}"] = (4, Connack(code == 0, code))
    for kind in ACKS:
        made[f"3.{kind.name.lower()}"] = (4, Ack(kind, 0x1234))
    for options in range(0x30):
        if options & 3 != 3:
            name = f"5.subscribe.options.{options:02x}"
            made[name] = (5, Subscribe(1, (Filter("$share/g/a", options & 3, bool(options & 4), bool(options & 8), options >> 4),)))
    for id, (name, kind, places) in TABLE.items():
        for place in places:
            where = Type(place).name.lower() if place else "will"
            made[f"5.property.{name}.{where}"] = (5, sample(place, ({0x15: "m"} if id == 0x16 else {}) | {id: SAMPLES[kind]}))
    for packet, codes in ALLOWED.items():
        for code in sorted(codes):
            made[f"5.reason.{Type(packet).name.lower()}.{code:02x}"] = (5, with_reason(packet, code))
    return made


def encoded(version: int, packet: Any) -> bytes:
    if isinstance(packet, tuple):
        topic, payload, properties = packet
        return encoding.publish(version, topic, payload, properties=properties)
    return encoding.control(packet, version)


def vectors() -> dict[str, bytes]:
    made = {name: encoded(version, packet) for name, (version, packet) in packets().items()}
    for version in (4, 5):
        for first in range(0x30, 0x40):
            qos, dup, retain = first >> 1 & 3, bool(first & 8), bool(first & 1)
            if qos < 3 and not (dup and not qos):
                name = f"{3 if version == 4 else 5}.publish.{first:02x}"
                made[name] = encoding.publish(version, "a/ß", b"\x00payload", qos=qos, retain=retain, dup=dup, packet_id=258 if qos else 0)
    made["3.publish.empty"] = encoding.publish(4, "t", b"")
    made["3.publish.long"] = encoding.publish(4, "t", bytes(20_000))
    made["3.pubacks"] = encoding.acks(encoding.PUBACK, [1, 2, 65_535])
    return made


def main() -> None:
    old = json.loads(FILE.read_text()) if FILE.exists() else {}
    new = {name: data.hex() for name, data in sorted(vectors().items())}
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            print(f"{name}: {old.get(name)} -> {new.get(name)}")
    if "--write" in sys.argv:
        FILE.write_text(json.dumps(new, indent=0) + "\n")


if __name__ == "__main__":
    main()
