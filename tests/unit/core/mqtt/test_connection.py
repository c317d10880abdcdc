"""What a connection answers, in which order, and how it ends."""

import gc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from headrace.core.mqtt.answers import Answers
from headrace.core.mqtt.connection import Connection
from headrace.core.mqtt.sending import Sending
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Ack, Auth, Connack, Disconnect, Filter, Pingreq, Pingresp, Suback, Subscribe, Unsuback, Unsubscribe, Will
from headrace.wire.mqtt.publish import Publish
from headrace.wire.mqtt.reasons import Reason
from tests.unit.core.mqtt.wires import TERMS, Wire, World

BOTH = pytest.mark.parametrize("version", [4, 5])


def subscribe(wire: Wire, *filters: str, qos: int = 2, **more: Any) -> list[Any]:
    wire.send(Subscribe(9, tuple(Filter(f, qos, **more) for f in filters)))
    return wire.read()


@pytest.mark.mqtt3(
    "2.3.1-5", "2.3.1-6", "2.3.1-7", "3.3.2-3", "3.3.4-1", "3.8.3-2", "3.8.4-1", "3.8.4-2", "3.10.4-4",
    "3.10.4-5", "3.10.4-6", "3.12.4-1", "4.3.1-1", "4.3.2-1", "4.3.2-2", "4.3.3-1", "4.3.3-2", "4.5.0-1",
)  # fmt: skip
@pytest.mark.mqtt(
    "2.2.1-2", "2.2.1-5", "2.2.1-6", "3.3.2-3", "3.3.4-1", "3.8.4-1", "3.8.4-2", "3.10.4-4", "3.10.4-5", "3.10.4-6",
    "3.11.3-1", "3.12.4-1", "4.3.1-1", "4.3.2-2",
    "4.3.2-3", "4.3.3-2", "4.3.3-4", "4.3.3-5", "4.3.3-11", "4.5.0-1",
)  # fmt: skip
@BOTH
def test_publish_and_subscribe(version: int) -> None:
    world = World()
    one, two = world.open("one", version), world.open("two", 9 - version)
    assert subscribe(two, "a/+") == [Suback(9, (2,))]
    for qos in (0, 1, 2):
        one.publish("a/b", b"%d" % qos, qos, id=qos)
    reason = 0
    assert one.read() == [Ack(4, 1, reason), Ack(5, 2, reason)]
    got = two.read()
    assert [(p.topic, p.payload, p.qos, p.dup, p.retain) for p in got] == [("a/b", b"%d" % q, q, False, False) for q in (0, 1, 2)]
    one.send(Ack(6, 2))
    assert one.read() == [Ack(7, 2)]
    two.send(Ack(4, got[1].packet_id))
    two.send(Ack(5, got[2].packet_id))
    assert two.read() == [Ack(6, got[2].packet_id)]
    two.send(Ack(7, got[2].packet_id))
    assert not world.router.shard("two").sessions["two"].in_flight
    one.send(Pingreq())
    assert one.read() == [Pingresp()]
    two.send(Unsubscribe(3, ("a/+", "b")))
    assert two.read() == [Unsuback(3, (0, 0x11) if two.version == 5 else ())]
    world.router.check()


@pytest.mark.mqtt("3.1.4-5", "3.2.0-1", "4.3.2-4")
def test_nothing_is_said_before_it_is_durable_and_then_in_order() -> None:
    world = World(prompt=False)
    wire = world.wire()
    wire.connect("c", properties={0x11: 100})
    assert wire.connack is None
    wire.publish("t", qos=1, id=1)
    wire.send(Pingreq())
    assert wire.read() == []
    world.sync()
    connack, ping, ack = wire.read()
    assert isinstance(connack, Connack)
    assert (ping, ack) == (Pingresp(), Ack(4, 1, 0x10))
    wire.send(Subscribe(1, (Filter("t", 2),)))
    wire.publish("nobody", qos=1, id=2)
    assert wire.read() == []
    world.sync()
    assert wire.read() == [Suback(1, (2,)), Ack(4, 2, 0x10)]
    wire.publish("t", qos=1, id=3)
    wire.publish("nobody", qos=1, id=4)
    assert wire.read() == []  # neither the answers nor the delivery
    world.sync()
    got = wire.read()
    assert got[:2] == [Ack(4, 3), Ack(4, 4, 0x10)]
    assert isinstance(got[2], Publish)


@BOTH
def test_pubacks_of_one_read_are_one_piece_and_keep_their_place(version: int) -> None:
    world = World(msgspec.structs.replace(TERMS, receive_maximum=100))
    wire, other = world.open("c", version), world.open("o")
    subscribe(other, "t")
    one = [encoding.publish(version, "t", b"x", qos=1, packet_id=id) for id in (7, 300, 65_535)]
    wire.write(b"".join([*one, encoding.subscribe(version, 1, [Filter("s", 1)]), *one[:2], encoding.publish(version, "t", b"x", qos=2, packet_id=9)]))
    pieces = wire.machine.output()
    assert pieces[0] == b"".join(encoding.ack(encoding.PUBACK, id) for id in (7, 300, 65_535))
    assert len(pieces) == 4
    assert wire.parser.feed(b"".join(pieces)) == [
        Ack(4, 7), Ack(4, 300), Ack(4, 65_535), Suback(1, (1,)), Ack(4, 7), Ack(4, 300), Ack(5, 9),
    ]  # fmt: skip
    assert not wire.machine.answers.unacked


@pytest.mark.mqtt("3.1.2-24")
def test_pubacks_that_are_too_much_together_are_each_small_enough() -> None:
    world = World(msgspec.structs.replace(TERMS, receive_maximum=100))
    wire, other = world.open("c", properties={0x27: 20}), world.open("o")
    subscribe(other, "t")
    wire.write(b"".join(encoding.publish(5, "t", b"x", qos=1, packet_id=id) for id in range(1, 51)))
    assert wire.read() == [Ack(4, id) for id in range(1, 51)]


def test_nothing_is_done_for_a_publish_that_nobody_gets() -> None:
    world = World()
    wire = world.open("c")
    wire.publish("t", qos=1, id=1)
    assert wire.read() == [Ack(4, 1, 0x10)]
    wire.publish("t", b"kept", qos=1, id=2, retain=True)
    assert wire.read() == [Ack(4, 2, 0x10)]
    assert subscribe(wire, "t")[1].payload == b"kept"
    wire.publish("t", b"now", qos=1, id=3)
    assert {type(p) for p in wire.read()} == {Ack, Publish}


def test_a_connection_that_is_over_tells_nobody_and_needs_no_collection() -> None:
    world = World(prompt=False)
    wire, subscriber = world.wire(), world.wire()
    for one in (wire, subscriber):
        one.connect(f"c{id(one)}", properties={0x11: 100})
    subscriber.send(Subscribe(1, (Filter("t", 1),)))
    world.sync()
    wire.publish("t", qos=1, id=1)  # waits for the journal
    told: list[Any] = []
    world.touch = told.append  # type: ignore[method-assign]
    machine, nobody = wire.machine, object()
    machine.over(nobody)
    world.sync()
    machine.feed(encoding.PINGREQ)
    assert wire not in told
    kinds = (Connection, Sending, Answers)
    before = sum(isinstance(one, kinds) for one in gc.get_objects())
    collecting = gc.isenabled()
    gc.disable()
    try:
        world.wires.clear()
        del machine, wire, one
        assert sum(isinstance(one, kinds) for one in gc.get_objects()) == before - len(kinds)
    finally:
        if collecting:
            gc.enable()


@pytest.mark.mqtt("4.3.3-8", "4.3.3-10", "4.3.3-11", "4.3.3-12", "3.1.2-5", "3.2.2-3")
def test_a_qos_2_publish_is_taken_once() -> None:
    world = World()
    wire = world.open("c", properties={0x11: 100})
    watcher = world.open("w")
    subscribe(watcher, "t", qos=0)
    wire.publish("t", qos=2, id=7)
    wire.publish("t", qos=2, id=7, dup=True)
    assert wire.read() == [Ack(5, 7), Ack(5, 7)]
    world.restart()
    wire = world.open("c", clean_start=False, properties={0x11: 100})
    assert wire.connack.session_present
    watcher2 = world.open("w")
    subscribe(watcher2, "t", qos=0)
    wire.publish("t", qos=2, id=7, dup=True)
    assert wire.read() == [Ack(5, 7)]
    wire.send(Ack(6, 7))
    wire.send(Ack(6, 7))
    assert wire.read() == [Ack(7, 7), Ack(7, 7, 0x92)]
    wire.publish("t", b"new", qos=2, id=7)
    assert len(watcher.payloads()) == 1
    assert watcher2.payloads() == [b"new"]


def test_what_an_earlier_connection_left_does_not_count_for_the_receive_maximum() -> None:
    world = World()
    wire = world.open("c", properties={0x11: 100})
    for id in range(1, TERMS.receive_maximum + 1):
        wire.publish("t", qos=2, id=id)
    wire.machine.lost()
    wire = world.open("c", clean_start=False, properties={0x11: 100})
    wire.send(Ack(6, 1))
    for id in range(11, 11 + TERMS.receive_maximum):
        wire.publish("t", qos=2, id=id)
    assert [ack.packet_id for ack in wire.read()] == [1, *range(11, 11 + TERMS.receive_maximum)]
    wire.publish("t", qos=1, id=21)
    assert wire.read() == [Disconnect(0x93, {0x1F: "more publishes are in flight than the receive maximum allows"})]


@pytest.mark.mqtt3("3.1.2-4", "3.1.2-5", "3.2.2-2", "3.2.2-3", "3.3.1-1", "4.1.0-1", "4.3.2-1", "4.3.3-1", "4.4.0-1", "4.6.0-1")
@pytest.mark.mqtt("3.1.2-6", "3.1.2-23", "3.2.2-3", "3.3.1-1", "3.3.1-3", "4.3.3-6", "4.4.0-1")
@BOTH
def test_a_session_is_resumed_with_what_it_had(version: int) -> None:
    world = World()
    more = {"properties": {0x11: 100}} if version == 5 else {}
    wire = world.open("c", version, clean_start=False, **more)
    assert not wire.connack.session_present
    subscribe(wire, "t")
    other = world.open("o")
    for i in range(3):
        other.publish("t", b"%d" % i, qos=2 if i else 1, id=i + 1)
        other.send(Ack(6, i + 1)) if i else None
    first, second, _third = wire.read()
    wire.send(Ack(5, second.packet_id))
    assert wire.read() == [Ack(6, second.packet_id)]
    wire.machine.lost()
    other.publish("t", b"later", qos=1, id=1)
    again = world.open("c", version, clean_start=False, **more) if False else world.wire()
    again.version = again.parser.version = version
    again.write(encoding.connect(msgspec.structs.replace(_connect("c", version), clean_start=False, **more)))
    connack, release, *rest = again.read()
    assert connack.session_present
    assert release == Ack(6, second.packet_id)
    assert [(p.payload, p.dup, p.packet_id) for p in rest] == [(b"0", True, first.packet_id), (b"2", True, _third.packet_id), (b"later", False, 4)]


def _connect(client_id: str, version: int) -> Any:
    from headrace.wire.mqtt.packets import Connect

    return Connect(client_id, version)


@pytest.mark.mqtt("3.1.4-3", "3.14.2-2", "3.14.4-2")
def test_takeover() -> None:
    world = World()
    one = world.open("c", properties={0x11: 100})
    two = world.open("c", clean_start=False, properties={0x11: 100})
    assert two.connack.session_present
    assert one.read() == [Disconnect(0x8E)]
    assert one.machine.closed
    one.machine.lost()
    subscribe(two, "t")
    two.publish("t")
    assert two.payloads() == [b"x"]


@pytest.mark.mqtt("3.1.2-7", "3.1.2-8", "3.1.2-10", "3.14.4-3")
def test_wills_and_how_a_connection_ends() -> None:
    world = World()
    watcher = world.open("w")
    subscribe(watcher, "will")
    will = Will("will", b"gone")
    world.open("a", will=will).send(Disconnect())
    world.open("b", will=will).machine.lost()
    world.open("c", will=will).send(Disconnect(0x04))
    world.open("d", will=will).write(b"\x00\x00")
    world.open("e", 4, will=will).send(Disconnect())
    assert watcher.payloads() == [b"gone"] * 3


@pytest.mark.mqtt3("3.1.3-6", "3.1.3-8", "3.1.3-9")
@pytest.mark.mqtt("3.1.3-6", "3.1.3-7", "3.1.3-8", "3.2.2-16")
def test_client_ids() -> None:
    world = World()
    assert world.open("", 5).connack.properties[0x12] == "assigned-1"
    assert world.open("", 4).connack.reason == 0
    refused = world.wire()
    refused.connect("", 4, clean_start=False)
    assert refused.connack == Connack(False, 2)
    assert refused.machine.closed


@pytest.mark.mqtt3("3.2.2-4", "3.2.2-5")
@pytest.mark.mqtt("3.1.4-2", "3.2.2-6", "3.2.2-7", "4.12.0-1")
def test_refused_connects() -> None:
    world = World()
    for more, reason in (({"username": "stranger"}, 0x86), ({"properties": {0x15: "SCRAM"}}, 0x8C), ({"will": Will("$SYS/x", b"")}, 0x90)):
        wire = world.wire()
        wire.connect("c", 5, **more)
        assert wire.connack.reason == reason
        assert wire.machine.closed
    wire = world.wire()
    wire.connect("c", 4, username="stranger")
    assert wire.connack == Connack(False, 4)
    assert wire.machine.closed


@pytest.mark.mqtt3("3.1.2-2")
@pytest.mark.mqtt("3.1.2-2")
@pytest.mark.parametrize(("version", "expected"), [(3, b"\x20\x02\x00\x01"), (6, b"\x20\x03\x00\x84\x00")])
def test_other_versions(version: int, expected: bytes) -> None:
    wire = World().wire()
    wire.write(encoding.packet(0x10, b"\x00\x04MQTT" + bytes((version, 2, 0, 0)) + b"\0\0"))
    assert b"".join(wire.machine.output()) == expected
    assert wire.machine.closed


@pytest.mark.mqtt("3.2.2-22")
def test_terms_are_told() -> None:
    world = World(msgspec.structs.replace(TERMS, keep_alive_s_max=60))
    wire = world.open("c", keep_alive_s=100)
    assert wire.connack.properties == {0x13: 60, 0x21: 4, 0x27: 100_000, 0x22: 3}
    assert wire.machine.keep_alive_ms == 90_000
    assert world.open("d", 4, keep_alive_s=10).machine.keep_alive_ms == 15_000


BAD = {
    "receive maximum": (b"".join(encoding.publish(5, "t", b"", qos=2, packet_id=i) for i in range(1, 6)), 0x93),
    "alias above the maximum": (encoding.publish(5, "t", b"", properties={0x23: 4}), 0x94),
    "alias without a topic": (encoding.publish(5, "", b"", properties={0x23: 1}), 0x82),
    "subscription identifier": (encoding.publish(5, "t", b"", properties={0x0B: [1]}), 0x82),
    "a packet of a server": (encoding.connack(5, False, 0), 0x82),
    "bad filter": (encoding.subscribe(5, 1, [Filter("a/#/b")]), 0x81),
    "bad shared filter": (encoding.subscribe(5, 1, [Filter("$share/g")]), 0x81),
    "no local and shared": (encoding.subscribe(5, 1, [Filter("$share/g/a", no_local=True)]), 0x82),
    "auth": (encoding.control(Auth(0x19), 5), 0x82),
    "expiry from nothing": (encoding.disconnect(5, 0, {0x11: 5}), 0x82),
    "disconnect of a server": (encoding.disconnect(5, 0x8E), 0x82),
    "too large": (b"\x30\xff\xff\x7f", 0x95),
    "malformed": (b"\x36\x00", 0x81),
}


@pytest.mark.mqtt3("3.3.1-4", "4.8.0-1")
@pytest.mark.mqtt("3.3.2-9", "3.3.4-6", "3.8.3-4", "3.14.4-1", "4.7.1-1", "4.13.1-1", "4.13.2-1")
@pytest.mark.parametrize("name", sorted(BAD))
def test_faults_end_the_connection_with_their_reason(name: str) -> None:
    data, reason = BAD[name]
    world = World()
    wire = world.open("c")
    wire.write(data)
    last = wire.read()[-1]
    assert isinstance(last, Disconnect)
    assert last.reason == reason
    assert wire.machine.closed
    wire.write(encoding.PINGREQ)
    assert wire.read() == []
    world.router.check()
    old = World().open("c", 4)
    old.write(b"\x36\x00")
    assert old.read() == []
    assert old.machine.closed


@pytest.mark.mqtt3("3.8.4-4", "3.8.4-5", "3.9.3-1", "3.9.3-2")
@pytest.mark.mqtt("3.8.4-5", "3.8.4-6", "3.8.4-7", "3.9.3-1", "3.9.3-2")
def test_refused_subscriptions() -> None:
    world = World()
    assert subscribe(world.open("c"), "no/a", "$queue/+", "ok") == [Suback(9, (0x80, 0x8F, 2))]
    assert subscribe(world.open("d", 4), "no/a", "$stream/q/key", "ok") == [Suback(9, (0x80, 0x80, 2))]
    assert subscribe(world.open("e"), "$queue/none", "$stream/none", "ok") == [Suback(9, (0x83, 0x83, 2))]
    assert set(world.open("e", clean_start=False).machine.session.subscriptions) <= {"ok"}


def test_topics_of_the_broker_are_refused() -> None:
    wire = World().open("c")
    wire.publish("$SYS/x", qos=1)
    assert wire.read() == [Ack(4, 1, 0x90)]


@pytest.mark.mqtt3("4.8.0-2")
def test_a_broker_that_cannot_store_says_so() -> None:
    world = World()
    wire, old = world.open("c"), world.open("d", 4)
    subscribe(wire, "t")
    world.full = True
    wire.publish("t", qos=1)
    wire.publish("t", b"passes")
    old.publish("t", qos=1)
    ack, passed = wire.read()
    assert ack == Ack(4, 1, 0x97)
    assert passed.payload == b"passes"
    assert old.machine.closed


@pytest.mark.mqtt("3.3.2-4", "3.3.2-15", "3.3.2-16", "3.3.2-17", "3.3.2-18", "3.3.2-20", "3.3.2-12", "3.3.4-3")
def test_properties_are_passed_on_as_they_are() -> None:
    world = World()
    one, two, old = world.open("one"), world.open("two"), world.open("old", 4)
    two.send(Subscribe(1, (Filter("t", 1),), {0x0B: [5]}))
    subscribe(old, "t")
    two.read()
    sent = {0x26: [("b", "1"), ("a", "2"), ("b", "1")], 0x03: "text", 0x08: "reply", 0x09: b"id", 0x01: 1}
    one.publish("t", qos=1, properties={**sent, 0x23: 2, 0x02: 10})
    (got,) = two.read()
    assert got.properties == {**sent, 0x02: 10, 0x0B: [5]}
    assert old.payloads() == [b"x"]
    one.publish("", properties={0x23: 2})
    assert two.payloads() == [b"x"]


@pytest.mark.mqtt("3.3.2-5", "3.3.2-6")
def test_expiry_counts_down() -> None:
    world = World()
    wire = world.open("c", properties={0x11: 100})
    subscribe(wire, "t")
    wire.machine.lost()
    other = world.open("o")
    other.publish("t", b"short", qos=1, properties={0x02: 2})
    other.publish("t", b"long", qos=1, properties={0x02: 10})
    world.net.wall_ms += 3000
    again = world.wire()
    again.write(encoding.connect(msgspec.structs.replace(_connect("c", 5), clean_start=False, properties={0x11: 100})))
    _, got = again.read()
    assert (got.payload, got.properties) == (b"long", {0x02: 7})


@pytest.mark.mqtt("3.1.2-24", "3.1.2-25", "3.1.2-26", "3.3.2-11")
def test_aliases_and_packet_size_of_the_client() -> None:
    world = World()
    wire = world.open("c", properties={0x22: 1, 0x27: 40})
    subscribe(wire, "#", qos=1)
    other = world.open("o")
    for topic, payload in (("a/b", b"1"), ("a/b", b"2"), ("c", b"3"), ("a/b", bytes(100)), ("c", b"4")):
        other.publish(topic, payload)
    got = wire.read()
    assert [(p.topic, p.payload, p.properties) for p in got] == [
        ("a/b", b"1", {0x23: 1}), ("", b"2", {0x23: 1}), ("c", b"3", None), ("c", b"4", None),
    ]  # fmt: skip
    other.publish("a/b", bytes(100), qos=1)
    other.publish("a/b", b"5", qos=1)
    assert [p.payload for p in wire.read()] == [b"5"]
    assert wire.machine.sending.dropped == 2


@pytest.mark.mqtt("3.3.1-8", "3.3.1-9", "3.3.1-10", "3.3.1-11", "3.8.4-3", "3.8.4-4")
def test_retain_handling() -> None:
    world = World()
    world.open("o").publish("t", b"kept", retain=True)
    wire = world.open("c")
    for handling, expected in ((1, True), (1, False), (0, True), (2, False)):
        got = subscribe(wire, "t", retain_handling=handling)
        assert [p.payload for p in got[1:]] == ([b"kept"] if expected else [])
        assert all(p.retain for p in got[1:])


def test_a_slow_reader_is_given_no_more_than_it_may_hold() -> None:
    world = World(msgspec.structs.replace(TERMS, write_bytes_high=1000))
    wire = world.open("c")
    subscribe(wire, "t", qos=1)
    other = world.open("o")
    for i in range(20):
        other.publish("t", bytes(200), qos=1, id=i + 1)
    got = wire.read()
    assert 3 <= len(got) < 140
    wire.machine.sending.blocked = True
    other.publish("t", b"x")
    assert wire.read() == []
    assert wire.machine.sending.dropped == 1


def test_the_will_of_a_client_that_is_sent_to_another_broker_waits_for_it() -> None:
    world = World(msgspec.structs.replace(TERMS, back_ms=10_000))
    watcher = world.open("watcher")
    subscribe(watcher, "will/#")
    for name in ("stays", "returns", "silent"):
        wire = world.open(name, clean_start=True, will=Will(f"will/{name}", b"gone", 1))
        wire.machine.fail(Reason.KEEP_ALIVE_TIMEOUT if name == "silent" else Reason.SERVER_SHUTTING_DOWN)
    world.sync()
    assert [p.topic for p in watcher.read()] == ["will/silent"]
    world.open("returns")
    world.net.wall_ms += 9_999
    world.router.tick(world.wall_ms)
    world.sync()
    assert watcher.read() == []
    world.net.wall_ms += 1
    world.router.tick(world.wall_ms)
    world.sync()
    assert [p.topic for p in watcher.read()] == ["will/stays"]


def test_what_stands_in_a_journal_that_is_not_durable_yet_is_not_sent() -> None:
    """A crash may give its packet identifier to another message, for which the client would not take it."""
    world = World()
    taker = world.open("taker", clean_start=False, properties={prop.SESSION_EXPIRY_INTERVAL: 100})
    taker.send(Subscribe(1, (Filter("t", 2),)))
    taker.read()
    giver = world.open("giver")
    world.prompt = False
    taken: list[list[Callable[[], None]]] = []
    for n in (1, 2):
        giver.publish("t", b"%d" % n, 2, n)
        world.net.write()
        taken.append(world.waiting)
        world.waiting = []
    for answer in taken[0]:
        answer()
    assert taker.payloads() == [b"1"]
    for answer in [*taken[1], *world.waiting]:
        answer()
    assert taker.payloads() == [b"2"]
