"""Connections whose session moves to another owner: they go on where they were, or end with the reason."""

import pytest

from headrace.core.mqtt.cluster_router import BACK_MS
from headrace.core.mqtt.held import Held, first_packet
from headrace.core.mqtt.subscription import Subscription
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Ack, Connect, Disconnect, Filter, Suback, Subscribe, Will
from headrace.wire.mqtt.publish import Publish
from headrace.wire.mqtt.reasons import Reason
from tests.unit.core.mqtt.movers import Cluster, Edge


@pytest.fixture
def world() -> Cluster:
    return Cluster()


def subscribed(world: Cluster, client_id: str = "c", qos: int = 2, **more: object) -> Edge:
    edge = world.edge(client_id, **more)
    edge.send(Subscribe(1, [Filter("#", qos)]))
    assert edge.read() == [Suback(1, (qos,))]
    return edge


@pytest.mark.mqtt("4.4.0-1")
@pytest.mark.mqtt3("4.4.0-1")
@pytest.mark.parametrize("how", ["die", "hand_over"])
def test_what_was_sent_on_a_connection_is_not_sent_on_it_again(world: Cluster, how: str) -> None:
    """It stays in flight, and its acknowledgement is understood."""
    edge, other = subscribed(world), world.edge("p")
    for n, qos in enumerate((1, 2, 2)):
        other.publish("t", b"%d" % n, qos, n + 1)
    sent = [p for p in edge.read() if isinstance(p, Publish)]
    assert [p.payload for p in sent] == [b"0", b"1", b"2"]
    edge.send(Ack(5, sent[1].packet_id))
    assert edge.read() == [Ack(6, sent[1].packet_id)]
    getattr(world, how)()
    assert edge.astray == (how == "hand_over")
    assert edge.go_on()
    assert edge.read() == []
    edge.send(Ack(4, sent[0].packet_id))
    edge.send(Ack(7, sent[1].packet_id))
    edge.send(Ack(5, sent[2].packet_id))
    assert edge.read() == [Ack(6, sent[2].packet_id)]
    edge.send(Ack(7, sent[2].packet_id))
    session = edge.machine.session
    assert session is not None
    assert not session.in_flight
    assert not session.inbox
    world.far.check()


def test_what_was_not_sent_comes_without_dup_and_once(world: Cluster) -> None:
    edge, other = subscribed(world, properties={prop.SESSION_EXPIRY_INTERVAL: 100, prop.RECEIVE_MAXIMUM: 1}), world.edge("p")
    for n in range(3):
        other.publish("t", b"%d" % n, 1, n + 1)
    (first,) = edge.read()
    world.die()
    edge.go_on()
    assert edge.read() == []
    edge.send(Ack(4, first.packet_id))
    (second,) = edge.read()
    assert (second.payload, second.dup) == (b"1", False)


def test_acknowledgements_that_the_last_owner_lost_are_given_to_the_next_one(world: Cluster) -> None:
    edge, other = subscribed(world), world.edge("p")
    other.publish("t", b"1", 1, 1)
    other.publish("t", b"2", 2, 2)
    first, second = edge.read()
    world.prompt = False
    edge.send(Ack(4, first.packet_id))
    edge.send(Ack(5, second.packet_id))
    world.die(journalled=False)
    world.prompt = True
    edge.go_on()
    assert edge.read() == [Ack(6, second.packet_id)]
    session = edge.machine.session
    assert session is not None
    assert list(session.in_flight) == [second.packet_id]


@pytest.mark.parametrize("journalled", [True, False])
def test_publishes_without_an_answer_are_taken_by_the_next_owner(world: Cluster, journalled: bool) -> None:
    edge, reader = world.edge("p"), subscribed(world)
    world.prompt = False
    edge.publish("t", b"0", 0)
    edge.publish("t", b"1", 1, 1)
    edge.publish("t", b"2", 2, 2)
    edge.publish("t", b"3", 2, 3)
    edge.send(Subscribe(4, [Filter("x", 1)]))
    world.die(journalled=journalled)
    world.prompt = True
    assert edge.go_on()
    assert reader.go_on()
    assert edge.read() == [Ack(4, 1), Ack(5, 2), Ack(5, 3), Suback(4, (1,))]
    got = [p for p in reader.read() if isinstance(p, Publish)]
    assert [p.payload for p in got if p.qos == 2] == [b"2", b"3"], "once, and in order"
    assert [p for p in got if p.qos == 0] == [], "the last owner may have given it out"
    assert {p.payload for p in got if p.qos == 1} == {b"1"}


def test_what_no_owner_had_is_taken_whatever_its_qos(world: Cluster) -> None:
    edge, reader = world.edge("p"), subscribed(world)
    world.die()
    edge.held.read(encoding.publish(5, "t", b"0"))
    reader.go_on()
    edge.go_on()
    assert [p.payload for p in reader.read()] == [b"0"]


def test_topic_aliases_of_the_client_hold_where_it_had_named_them(world: Cluster) -> None:
    edge, reader = world.edge("p"), subscribed(world)
    edge.publish("a", b"1", 1, 1, properties={prop.TOPIC_ALIAS: 1})
    assert edge.read() == [Ack(4, 1)]
    world.prompt = False
    edge.publish("", b"2", 1, 2, properties={prop.TOPIC_ALIAS: 1})
    edge.publish("b", b"3", 1, 3, properties={prop.TOPIC_ALIAS: 1})
    world.die(journalled=False)
    world.prompt = True
    edge.go_on()
    reader.go_on()
    edge.publish("", b"4", 1, 4, properties={prop.TOPIC_ALIAS: 1})
    assert edge.read() == [Ack(4, 2), Ack(4, 3), Ack(4, 4)]
    assert [(p.topic, p.payload) for p in reader.read() if p.payload > b"1"] == [("a", b"2"), ("b", b"3"), ("b", b"4")]


def test_a_connection_that_was_taken_over_meanwhile_ends(world: Cluster) -> None:
    edge = world.edge()
    world.die()
    other = world.edge()
    assert other.connack.session_present
    edge.go_on()
    (found,) = edge.read()
    assert isinstance(found, Disconnect)
    assert found.reason == Reason.SESSION_TAKEN_OVER
    assert other.machine.session is not None


@pytest.mark.parametrize("why", ["lost", "late", "served", "forced"])
def test_a_connection_whose_session_did_not_survive_ends(world: Cluster, why: str) -> None:
    edge = world.edge()
    world.die()
    shard = world.far.shard("c")
    if why == "lost":
        shard.sessions.clear()
        shard.unclosed.clear()
    elif why == "late":
        world.net.wall_ms += BACK_MS + 1
    elif why == "served":
        edge.go_on()
        assert edge.read() == []
    elif why == "forced":
        edge.held.sent = 1
    edge.go_on()
    (found,) = edge.read()
    assert isinstance(found, Disconnect)
    assert found.reason == Reason.SERVER_BUSY


def test_one_that_cannot_be_moved_ends_with_its_owner(world: Cluster) -> None:
    fleeting = world.edge("fleeting", properties={}, clean_start=True)
    consumes = world.edge("consumes")
    session = consumes.machine.session
    assert session is not None
    world.router.subscribe(session, Subscription("$queue/q", "$queue/q", "", 1))
    consumes.machine.natives.resume(session)
    world.hand_over()
    for edge in (fleeting, consumes):
        assert not edge.astray
        (found,) = edge.read()
        assert isinstance(found, Disconnect)
        assert found.reason in (Reason.SERVER_BUSY, Reason.ADMINISTRATIVE_ACTION)


def test_who_does_not_serve_the_session_says_so(world: Cluster) -> None:
    edge = world.edge()
    world.hand_over()
    world.far.drop(world.far.number_of("c"))
    assert not edge.go_on()


def test_a_will_waits_for_the_connection_to_go_on_and_is_published_when_that_is_lost(world: Cluster) -> None:
    reader = subscribed(world, "reader")
    edge = world.edge(will=Will("w", b"gone", 2))
    for _ in range(2):
        world.die()
        reader.go_on()
        edge.go_on()
        world.net.wall_ms += BACK_MS + 1
        world.far.tick(world.wall_ms)
        assert reader.read() == []
    edge.machine.lost()
    world.sync()
    assert [p.payload for p in reader.read()] == [b"gone"]


def test_what_was_given_up_before_it_was_sent_does_not_stay_in_flight(world: Cluster) -> None:
    edge, other = subscribed(world), world.edge("p")
    world.prompt = False
    edge.machine.sending.blocked = True
    other.publish("t", b"1", 1, 1, properties={prop.MESSAGE_EXPIRY_INTERVAL: 1})
    other.publish("t", b"2", 1, 2)
    world.sync()
    world.net.wall_ms += 2_000
    edge.machine.sending.blocked = False
    assert [p.payload for p in edge.read()] == [b"2"]
    world.die(journalled=False)
    world.prompt = True
    edge.go_on()
    session = edge.machine.session
    assert session is not None
    assert [d.message.payload for d in session.in_flight.values()] == [b"2"]
    assert not session.inbox


def test_held() -> None:
    connect = encoding.connect(Connect("c", 5, properties={prop.USER_PROPERTY: [("k", "v" * 200)]}))
    assert first_packet(connect + b"rest") == connect
    held = Held(connect)
    assert not held.movable
    for piece in (b"abc", b"de", b"fgh"):
        held.read(piece)
    held.accepted("c", 1, 0)
    held.progress(4, 0, [], {})
    assert held.movable
    assert (held.nbytes, held.again(), held.fresh()) == (4, b"", b"efgh")
    held.lost()
    held.read(b"ij")
    assert (held.again(), held.fresh()) == (b"efgh", b"ij")
    held.dealt_with(9)
    assert (held.again(), held.fresh()) == (b"", b"j")
    held.dealt_with(2)
    assert held.heard == 9, "never back"
