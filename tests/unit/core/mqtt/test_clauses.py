"""Clauses of the specification that no other test is about, one after another."""

from collections.abc import Iterator

import pytest

from headrace.model import errors
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Ack, Connack, Connect, Disconnect, Filter, Pingreq, Pingresp, Suback, Subscribe, Unsuback, Unsubscribe, Will
from headrace.wire.mqtt.publish import Publish
from headrace.wire.mqtt.reasons import Reason
from tests.unit.core.mqtt.test_connection import BOTH, subscribe
from tests.unit.core.mqtt.wires import Wire, World

KEPT = {0x11: 100}


def back(world: World, wire: Wire, client_id: str = "c") -> list[object]:
    """The client's connection is lost and it comes back: what it then gets."""
    wire.machine.lost()
    again = world.wire()
    again.write(encoding.connect(Connect(client_id, 5, False, properties=KEPT)))
    return again.read()


@pytest.mark.mqtt("1.5.4-3", "4.7.3-3", "4.7.3-4")
@pytest.mark.mqtt3("1.5.3-3", "4.7.3-3", "4.7.3-4")
@BOTH
def test_topics_are_taken_as_they_are(version: int) -> None:
    world = World()
    wire = world.open("c", version)
    topics = ["\ufeffa", "\u00c5", "A\u030a", "ACCOUNTS", "Accounts", "/", "x" * 65_535]
    subscribe(wire, *topics, qos=0)
    for topic in topics:
        wire.publish(topic)
    assert [p.topic for p in wire.read()] == topics


@pytest.mark.mqtt("2.2.2-1", "3.1.2-27")
def test_no_properties_are_a_length_of_zero_and_no_alias_comes_unasked() -> None:
    world = World()
    wire = world.open("c")
    subscribe(wire, "t", qos=0)
    for _ in range(2):
        wire.publish("t")
    assert b"".join(wire.machine.output()) == 2 * b"\x30\x05\x00\x01t\x00x"


@pytest.mark.mqtt("3.1.2-4", "3.1.3-2", "3.1.4-4", "3.2.2-2")
def test_a_clean_start_ends_the_session_of_that_client_alone() -> None:
    world = World()
    for name in "cd":
        wire = world.open(name, properties=KEPT)
        subscribe(wire, "t")
        wire.machine.lost()
    fresh = world.open("c", properties=KEPT)
    assert not fresh.connack.session_present
    world.open("o").publish("t", qos=1)
    assert fresh.read() == []
    connack, got = back(world, world.wire(), "d")
    assert isinstance(connack, Connack)
    assert connack.session_present
    assert isinstance(got, Publish)


@pytest.mark.mqtt("3.1.2-14", "3.1.2-15", "3.1.3-10")
@pytest.mark.parametrize("retain", [True, False])
def test_a_will_is_retained_if_it_says_so_and_keeps_its_properties(retain: bool) -> None:
    world = World()
    pairs = [("b", "1"), ("a", "2"), ("b", "1")]
    world.open("c", will=Will("will", b"gone", 1, retain, {0x26: pairs})).machine.lost()
    world.sync()
    _, *kept = subscribe(world.open("w"), "will")
    assert [(p.payload, p.properties[0x26]) for p in kept] == ([(b"gone", pairs)] if retain else [])


@pytest.mark.mqtt("3.1.2-28", "4.12.0-6")
def test_nothing_is_told_that_was_not_asked_for() -> None:
    assert not World().open("c", properties={0x19: 0}).connack.properties.keys() & {0x1A, 0x15, 0x16}


@pytest.mark.mqtt("3.1.2-29", "3.14.2-3")
@pytest.mark.parametrize(("asked", "told"), [({}, True), ({0x17: 0}, False), ({0x27: 20}, False)])
def test_a_reason_in_words_comes_if_it_is_wanted_and_fits(asked: dict[int, int], told: bool) -> None:
    wire = World().open("c", properties=asked)
    wire.write(b"\x36\x00")
    (last,) = wire.read()
    assert isinstance(last, Disconnect)
    assert (last.reason, 0x1F in last.properties) == (0x81, told)


@pytest.mark.mqtt("3.1.3-5")
@pytest.mark.mqtt3("3.1.3-5")
@BOTH
def test_client_ids_of_letters_and_digits(version: int) -> None:
    world = World()
    for name in ("0", "z", "ABCDEFGHIJKLMNOPQRSTUVW", "abcdefghijklmnopqrstuvw", "01234567890123456789xyz"):
        assert world.open(name, version).connack == Connack(False, 0, world.open("o", version).connack.properties)


@pytest.mark.mqtt("3.1.4-6", "3.2.0-2", "3.2.2-1")
def test_nothing_is_done_for_who_was_refused() -> None:
    world = World()
    watcher = world.open("w")
    subscribe(watcher, "t", qos=0)
    wire = world.wire()
    wire.machine.feed(encoding.connect(Connect("c", 5, username="stranger")) + encoding.publish(5, "t", b"x"))
    out = b"".join(wire.machine.output())
    assert (out[0], out[2], out[3], out[1] + 2) == (0x20, 0, 0x86, len(out)), "one CONNACK and nothing after it"
    assert watcher.read() == []


@pytest.mark.mqtt("3.14.0-1")
def test_no_disconnect_comes_before_connack() -> None:
    wire = World().wire()
    wire.write(encoding.PINGREQ)
    assert not [p for p in wire.read() if isinstance(p, Disconnect)]
    assert wire.machine.closed


@pytest.mark.mqtt("3.3.2-7")
def test_an_alias_ends_with_its_connection() -> None:
    world = World()
    world.open("c").publish("t", properties={0x23: 1})
    wire = world.open("c")
    wire.publish("", properties={0x23: 1})
    assert wire.read()[-1].reason == 0x82


@pytest.mark.mqtt("3.3.4-10", "4.9.0-3")
def test_other_packets_go_on_while_the_quota_is_used_up() -> None:
    world = World()
    wire = world.open("c", properties={0x21: 1})
    subscribe(wire, "t")
    for i in range(2):
        world.open("o").publish("t", b"%d" % i, qos=1)
    assert wire.payloads() == [b"0"]
    wire.send(Pingreq())
    assert wire.read() == [Pingresp()]
    wire.send(Subscribe(5, (Filter("u", 0),)))
    assert wire.read() == [Suback(5, (0,))]
    world.open("o").publish("u", b"at most once")
    assert wire.payloads() == [b"at most once"]


@pytest.mark.mqtt("3.10.4-1", "3.10.4-2", "3.10.4-3")
def test_an_unsubscribe_is_about_that_filter_and_what_comes_after_it() -> None:
    world = World()
    wire = world.open("c", properties=KEPT)
    subscribe(wire, "a/b", "a/+", qos=1)
    world.open("o").publish("a/b", b"begun", qos=1)
    assert wire.payloads() == [b"begun"]
    wire.send(Unsubscribe(1, ("a/#", "a/+")))
    assert wire.read() == [Unsuback(1, (0x11, 0))]
    world.open("o").publish("a/c", b"nobody's", qos=1)
    world.open("o").publish("a/b", b"still", qos=1)
    assert wire.payloads() == [b"still"]
    wire.send(Unsubscribe(2, ("a/b",)))
    assert [p.payload for p in back(world, wire) if isinstance(p, Publish)] == [b"begun", b"still"]


@pytest.mark.mqtt("4.3.2-5")
@pytest.mark.mqtt3("4.3.2-2")
@BOTH
def test_an_identifier_is_free_after_puback(version: int) -> None:
    world = World()
    wire, other = world.open("c", version), world.open("o", version)
    subscribe(wire, "t", qos=0)
    for dup in (False, True):
        other.publish("t", qos=1, id=1, dup=dup)
        assert other.read() == [Ack(4, 1)]
    assert len(wire.payloads()) == 2


@pytest.mark.mqtt("4.3.3-7", "4.3.3-3")
def test_what_was_sent_does_not_expire() -> None:
    world = World()
    wire = world.open("c", properties=KEPT)
    subscribe(wire, "t")
    world.open("o").publish("t", qos=2, properties={0x02: 1})
    (first,) = wire.read()
    world.net.wall_ms += 5000
    again = [p for p in back(world, wire) if isinstance(p, Publish)]
    assert [(p.packet_id, p.dup, p.payload) for p in again] == [(first.packet_id, True, b"x")]


@pytest.mark.mqtt("4.3.3-9")
def test_an_identifier_is_free_after_a_refusal() -> None:
    world = World()
    wire = world.open("c")
    subscribe(wire, "t", qos=0)
    world.full = True
    wire.publish("t", b"refused", qos=2, id=3)
    assert wire.read() == [Ack(5, 3, 0x97)]
    world.full = False
    wire.publish("t", b"taken", qos=2, id=3)
    ack, got = sorted(wire.read(), key=lambda p: isinstance(p, Publish))
    assert (ack, got.payload) == (Ack(5, 3), b"taken")


@pytest.mark.mqtt("4.4.0-2", "4.8.2-6")
@pytest.mark.parametrize("filter", ["t", "$share/g/t"])
def test_what_a_client_refuses_is_not_sent_again_to_anybody(filter: str) -> None:
    world = World()
    wire = world.open("c", properties=KEPT)
    subscribe(wire, filter)
    for i in (1, 2):
        world.open("o").publish("t", b"%d" % i, qos=i)
    one, two = wire.read()
    other = world.open("d")
    subscribe(other, filter)
    wire.send(Ack(4, one.packet_id, 0x80))
    wire.send(Ack(5, two.packet_id, 0x80))
    assert [p for p in back(world, wire) if not isinstance(p, Connack)] == []
    assert other.read() == []


@pytest.mark.mqtt("4.8.2-3")
def test_a_member_of_a_shared_subscription_has_its_own_qos() -> None:
    world = World()
    members = [world.open(name) for name in "ab"]
    for qos, wire in enumerate(members):
        subscribe(wire, "$share/g/t", qos=qos)
    for i in range(2):
        world.open("o").publish("t", b"%d" % i, qos=2, id=1)
    assert sorted(p.qos for wire in members for p in wire.read()) == [0, 1]


def kinds(root: type[errors.HeadraceError] = errors.HeadraceError) -> Iterator[type[errors.HeadraceError]]:
    """All errors that a caller may see; what modules derive for themselves is made otherwise."""
    if root.__module__ == errors.__name__:
        yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


REASONS_OF_PUBLISH = {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}
REASONS_OF_CONNACK = {0, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F}
REASONS_OF_DISCONNECT = {0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, *range(0x93, 0xA3)}


@pytest.mark.mqtt("3.4.2-1", "3.5.2-1")
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("error", [kind for kind in kinds() if kind.definite], ids=lambda kind: kind.__name__)
def test_whatever_stops_a_publish_has_a_reason_of_its_acknowledgement(error: type[errors.HeadraceError], qos: int) -> None:
    world = World()
    wire = world.open("c")
    world.router.keep = lambda message, captures, stored: stored(error("it cannot be")) if stored is not None else None
    wire.publish("$queue/q", qos=qos, id=7)
    (ack,) = wire.read()
    assert (ack.type, ack.packet_id) == (3 + qos, 7)
    assert ack.reason in REASONS_OF_PUBLISH - {0x00, 0x10}


@pytest.mark.mqtt("3.2.2-8", "3.2.2-20")
@pytest.mark.parametrize("reason", [reason for reason in Reason if reason >= 0x80], ids=lambda reason: reason.name)
def test_a_connection_ends_with_a_reason_of_its_last_packet(reason: int) -> None:
    world = World(prompt=False)
    wire, accepted = world.wire(), world.wire()
    for name, one in (("c", wire), ("d", accepted)):
        one.connect(name, properties={0x11: 100})
    wire.machine.fail(reason, "why")
    connack = wire.read()[-1]
    assert isinstance(connack, Connack)
    assert connack.reason in REASONS_OF_CONNACK - {0}
    assert connack.reason in (reason, 0x80)
    assert connack.properties.keys() == {0x1F}
    world.sync()
    accepted.machine.fail(reason, "why")
    last = accepted.read()[-1]
    assert isinstance(last, Disconnect)
    assert last.reason in REASONS_OF_DISCONNECT
    assert last.reason in (reason, 0x80)


@pytest.mark.mqtt("3.2.2-19", "3.1.2-24")
@pytest.mark.parametrize(("packet_bytes_max", "told"), [(1000, True), (20, False), (5, False), (4, None)])
def test_a_refusal_says_what_fits(packet_bytes_max: int, told: bool | None) -> None:
    wire = World().wire()
    wire.connect("c", username="stranger", properties={0x27: packet_bytes_max})
    assert wire.machine.closed
    if told is None:
        assert wire.connack is None
    else:
        assert (wire.connack.reason, 0x1F in wire.connack.properties) == (0x86, told)


@pytest.mark.mqtt("3.1.2-24", "3.1.2-25")
def test_nothing_that_is_too_large_for_a_client_is_sent() -> None:
    world = World()
    tiny = world.wire()
    tiny.connect("tiny", properties={0x27: 10})
    assert tiny.connack == Connack(False, 0x95)
    assert not world.router.shard("tiny").sessions
    wire = world.open("c", properties={0x27: 30})
    assert subscribe(wire, *(f"t/{i}" for i in range(40)), qos=0) == []
    wire.publish("t/39", b"all the same")
    assert wire.payloads() == [b"all the same"]


@pytest.mark.mqtt("3.6.2-1", "3.7.2-1", "3.11.3-2")
def test_answers_about_what_is_not_there_say_so() -> None:
    wire = World().open("c")
    subscribe(wire, "t")
    wire.publish("t", qos=2, id=3)
    _, got = sorted(wire.read(), key=lambda p: isinstance(p, Publish))
    for packet, answer in (
        (Ack(5, 77), Ack(6, 77, 0x92)),
        (Ack(5, got.packet_id), Ack(6, got.packet_id)),
        (Ack(6, 77), Ack(7, 77, 0x92)),
        (Ack(6, 3), Ack(7, 3)),
        (Unsubscribe(5, ("t", "u")), Unsuback(5, (0, 0x11))),
    ):
        wire.send(packet)
        assert wire.read() == [answer]


@pytest.mark.mqtt("4.1.0-1")
def test_a_session_lasts_as_long_as_its_connection() -> None:
    world = World()
    brief, kept = world.open("brief"), world.open("kept", properties={0x11: 1})
    for wire in (brief, kept):
        subscribe(wire, "t")
    world.net.wall_ms += 10_000_000
    world.router.tick(world.net.wall_ms)
    world.open("o").publish("t", qos=1)
    assert [wire.payloads() for wire in (brief, kept)] == [[b"x"]] * 2


@pytest.mark.mqtt("4.3.3-13")
def test_expiry_does_not_break_an_exchange() -> None:
    world = World()
    wire, other = world.open("c", properties=KEPT), world.open("o")
    subscribe(wire, "t")
    other.publish("t", qos=2, id=5, properties={0x02: 1})
    assert other.read() == [Ack(5, 5)]
    (got,) = wire.read()
    world.net.wall_ms += 60_000
    world.router.tick(world.net.wall_ms)
    other.send(Ack(6, 5))
    assert other.read() == [Ack(7, 5)]
    wire.send(Ack(5, got.packet_id))
    assert wire.read() == [Ack(6, got.packet_id)]
    world.net.wall_ms += 60_000
    wire.send(Ack(7, got.packet_id))
    assert not wire.machine.session.in_flight


@pytest.mark.mqtt("4.8.2-4")
def test_qos_2_of_a_shared_subscription_is_finished_with_who_has_it() -> None:
    world = World()
    wire = world.open("c", properties=KEPT)
    subscribe(wire, "$share/g/t")
    world.open("o").publish("t", qos=2)
    (begun,) = wire.read()
    other = world.open("d")
    subscribe(other, "$share/g/t")
    (again,) = (p for p in back(world, wire) if isinstance(p, Publish))
    assert (again.packet_id, again.dup, again.payload) == (begun.packet_id, True, b"x")
    assert other.read() == []
