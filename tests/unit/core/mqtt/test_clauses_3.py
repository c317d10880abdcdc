"""Clauses of MQTT 3.1.1 that no test of both versions is about, one after another; every client here speaks 3.1.1."""

from typing import Any

import pytest

from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Ack, Connack, Connect, Disconnect, Filter, Pingreq, Pingresp, Suback, Subscribe, Unsuback, Unsubscribe, Will
from headrace.wire.mqtt.publish import Publish
from tests.unit.core.mqtt.test_connection import subscribe
from tests.unit.core.mqtt.wires import Wire, World
from tests.unit.wire.mqtt.test_parser import BAD_CONNECTS


def client(world: World, name: str = "c", **more: Any) -> Wire:
    return world.open(name, 4, **more)


def back(world: World, wire: Wire, name: str = "c") -> list[Any]:
    """The client's connection is lost and it comes back to its session: what it is told."""
    wire.machine.lost()
    again = world.wire()
    again.version = again.parser.version = 4
    again.write(encoding.connect(Connect(name, 4, False)))
    return again.read()


def shown(packets: list[Any]) -> list[tuple[bytes, int, bool]]:
    return [(p.payload, p.qos, p.retain) for p in packets if isinstance(p, Publish)]


@pytest.mark.mqtt3("3.1.2-6", "3.1.3-2", "3.1.4-3", "3.1.4-4", "3.2.2-1", "3.2.2-3")
def test_a_clean_session_begins_with_nothing_and_leaves_nothing() -> None:
    world = World()
    for name in "cd":
        subscribe(client(world, name, clean_start=False), "t")
    fresh = client(world)
    assert fresh.connack == Connack(False, 0)
    client(world, "o").publish("t", qos=1)
    assert fresh.read() == []
    subscribe(fresh, "t")
    assert back(world, fresh) == [Connack(False, 0)]
    connack, got = back(world, world.wires[1], "d")
    assert connack == Connack(True, 0)
    assert got.payload == b"x"


@pytest.mark.mqtt3("3.1.2-7", "3.3.1-5", "3.3.1-6", "3.3.1-8")
def test_retained_messages_outlive_the_session_that_published_them() -> None:
    world = World()
    one = client(world)
    for qos in (1, 2):
        one.publish(f"t/{qos}", b"%d" % qos, qos, id=qos, retain=True)
    one.machine.lost()
    assert shown(subscribe(client(world, "w"), "t/+")) == [(b"1", 1, True), (b"2", 2, True)]


@pytest.mark.mqtt3("3.1.2-8", "3.1.2-10", "3.1.2-12", "3.14.4-3")
def test_a_will_is_published_once_unless_its_client_says_goodbye() -> None:
    world = World()
    watcher = client(world, "w")
    subscribe(watcher, "#")
    will = Will("will", b"gone")
    client(world, "a", will=will).send(Disconnect())
    client(world, "b").machine.lost()
    assert watcher.read() == []
    lost = client(world, "c", will=will, clean_start=False)
    lost.machine.lost()
    assert watcher.payloads() == [b"gone"]
    assert back(world, lost) == [Connack(True, 0)]
    world.wires[-1].machine.lost()
    client(world, "d", will=will).write(b"\x00\x00")
    assert watcher.payloads() == [b"gone"]


@pytest.mark.mqtt3("3.1.2-16", "3.1.2-17")
@pytest.mark.parametrize("retain", [True, False])
def test_a_will_is_retained_if_it_says_so(retain: bool) -> None:
    world = World()
    client(world, will=Will("will", b"gone", 1, retain)).machine.lost()
    world.sync()
    assert shown(subscribe(client(world, "w"), "will")) == ([(b"gone", 1, True)] if retain else [])


@pytest.mark.mqtt3("3.1.4-1")
@pytest.mark.parametrize("name", sorted(name for name, (body, reason) in BAD_CONNECTS.items() if body[6:7] == b"\x04" and reason != 0x84))
def test_a_connect_that_is_malformed_is_not_answered(name: str) -> None:
    wire = World().wire()
    wire.write(encoding.packet(0x10, BAD_CONNECTS[name][0]))
    assert wire.machine.output() == []
    assert wire.machine.closed


@pytest.mark.mqtt3("3.1.4-5")
def test_nothing_is_done_for_who_was_refused() -> None:
    world = World()
    watcher = client(world, "w")
    subscribe(watcher, "t")
    wire = world.wire()
    wire.write(encoding.connect(Connect("c", 4, username="stranger")) + encoding.publish(4, "t", b"x"))
    assert wire.machine.output() == [b"\x20\x02\x00\x04"]
    assert watcher.read() == []


@pytest.mark.mqtt3("3.2.0-1")
def test_connack_comes_first() -> None:
    world = World(prompt=False)
    wire = world.wire()
    wire.connect("c", 4, clean_start=False)
    wire.send(Subscribe(1, (Filter("t", 1),)))
    wire.publish("t", qos=1, id=1)
    wire.send(Pingreq())
    assert wire.read() == []
    world.sync()
    connack, *rest = wire.read()
    assert connack == Connack(False, 0)
    world.sync()
    rest += wire.read()
    assert rest[:3] == [Pingresp(), Suback(1, (1,)), Ack(4, 1)]
    assert shown(rest) == [(b"x", 1, False)]


@pytest.mark.mqtt3("3.2.2-6")
def test_what_no_return_code_is_about_closes_without_an_answer() -> None:
    wire = World().wire()
    wire.connect("c", 4, will=Will("$SYS/x", b""))
    assert wire.connack is None
    assert wire.machine.closed


@pytest.mark.mqtt3("3.3.1-3")
def test_dup_is_the_brokers_own() -> None:
    world = World()
    wire = client(world)
    subscribe(wire, "t")
    for qos in (1, 2):
        client(world, "o").publish("t", qos=qos, id=qos, dup=True)
    assert [p.dup for p in wire.read()] == [False, False]


@pytest.mark.mqtt3("3.3.1-7", "3.3.1-9", "3.3.1-10", "3.3.1-11", "3.3.1-12")
def test_what_replaces_a_retained_message_and_what_clears_it() -> None:
    world = World()
    live, one = client(world, "w"), client(world)
    subscribe(live, "t")
    kept = []
    for number, (payload, qos, retain) in enumerate(((b"1", 1, True), (b"2", 0, True), (b"3", 1, False), (b"", 1, True))):
        one.publish("t", payload, qos, id=number + 1, retain=retain)
        kept.append(shown(subscribe(client(world, f"later {number}"), "t")))
    assert kept == [[(b"1", 1, True)], [(b"2", 0, True)], [(b"2", 0, True)], []]
    assert sorted(shown(live.read())) == [(b"", 1, False), (b"1", 1, False), (b"2", 0, False), (b"3", 1, False)]


@pytest.mark.mqtt3("3.3.5-2")
def test_what_may_not_be_published_is_acknowledged_and_goes_nowhere() -> None:
    world = World()
    wire = client(world)
    subscribe(wire, "$SYS/#")
    client(world, "o").publish("$SYS/x", qos=1, id=4)
    assert world.wires[-1].read() == [Ack(4, 4)]
    assert wire.read() == []


@pytest.mark.mqtt3("3.8.4-3", "3.8.4-6")
def test_the_same_filter_replaces_the_subscription_and_gets_what_is_retained_again() -> None:
    world = World()
    other = client(world, "o")
    other.publish("t", b"kept", 2, id=1, retain=True)
    other.send(Ack(6, 1))
    wire = client(world)
    for granted in (2, 1, 0):
        assert shown(subscribe(wire, "t", qos=granted)) == [(b"kept", granted, True)]
        for qos in (0, 1, 2):
            other.publish("t", b"live", qos, id=5 + qos)
            other.send(Ack(6, 5 + qos))
        assert shown(wire.read()) == [(b"live", min(qos, granted), False) for qos in (0, 1, 2)]


@pytest.mark.mqtt3("3.10.4-1", "3.10.4-2", "3.10.4-3")
def test_an_unsubscribe_is_about_that_filter_and_what_comes_after_it() -> None:
    world = World()
    wire, other = client(world, clean_start=False), client(world, "o")
    subscribe(wire, "a/b", "a/+", qos=2)
    other.publish("a/b", b"begun", qos=2, id=1)
    (begun,) = wire.read()
    wire.send(Unsubscribe(1, ("a/#", "a/+")))
    assert wire.read() == [Unsuback(1)]
    other.publish("a/c", b"nobody's", qos=1, id=2)
    other.publish("a/b", b"still", qos=1, id=3)
    assert wire.payloads() == [b"still"]
    wire.send(Unsubscribe(2, ("a/b",)))
    wire.send(Ack(5, begun.packet_id))
    assert wire.read() == [Unsuback(2), Ack(6, begun.packet_id)]
    other.publish("a/b", b"after it", qos=1, id=4)
    assert shown(back(world, wire)) == [(b"still", 1, False)]


@pytest.mark.mqtt3("4.1.0-2")
@pytest.mark.parametrize("clean", [True, False])
def test_a_session_lasts_as_long_as_its_connection(clean: bool) -> None:
    world = World()
    wire = client(world, clean_start=clean)
    subscribe(wire, "t")
    world.net.wall_ms += 100_000_000
    world.router.tick(world.net.wall_ms)
    client(world, "o").publish("t", qos=1)
    assert wire.payloads() == [b"x"]


@pytest.mark.mqtt3("4.6.0-3", "4.6.0-4")
def test_the_exchanges_of_qos_2_keep_their_order() -> None:
    world = World(prompt=False)
    wire, other = world.wire(), world.wire()
    for name, one in (("c", wire), ("o", other)):
        one.connect(name, 4, clean_start=False)
    world.sync()
    assert wire.read() + other.read() == [Connack(), Connack()]
    wire.send(Subscribe(1, (Filter("t", 2),)))
    for id in (3, 1, 2):
        other.publish("t", b"%d" % id, qos=2, id=id)
    world.sync()
    assert other.read() == [Ack(5, 3), Ack(5, 1), Ack(5, 2)]
    suback, *got = wire.read()
    assert suback == Suback(1, (2,))
    world.sync()
    got += wire.read()
    assert [p.payload for p in got] == [b"3", b"1", b"2"]
    for delivery in (got[1], got[2], got[0]):
        wire.send(Ack(5, delivery.packet_id))
    world.sync()
    assert wire.read() == [Ack(6, delivery.packet_id) for delivery in (got[1], got[2], got[0])]
