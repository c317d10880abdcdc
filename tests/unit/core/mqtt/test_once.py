"""QoS 2 and wills in a cluster are taken once by everybody, whichever owner gives them out."""

from typing import Any

import pytest
from msgspec import structs

from headrace.core.mqtt.cluster_router import DECLINED, REFUSED, TAKEN, ClusterRouter
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.origins import PUBLISHERS_MAX, TAKEN_MAX, UNFINISHED_MAX, WILL, WILLS_MAX, Origin, Origins
from headrace.core.mqtt.outward import PLAIN, RETAIN, WAIT_MS, Part
from headrace.core.mqtt.shard import Shard
from headrace.model.errors import LimitExceeded
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Ack, Disconnect, Will
from headrace.wire.mqtt.reasons import Reason
from tests.unit.core.mqtt.movers import KEPT, Cluster
from tests.unit.core.mqtt.routers import BOUNDS, SHARDS, Net, sub

FAR = 1
TEAM = "$share/team/near"


class Two(Cluster):
    """Session partition ``FAR`` is at another broker, which has a durable subscriber of everything there."""

    def __init__(self) -> None:
        super().__init__()
        self.other = ClusterRouter(BOUNDS, SHARDS, Net.shard_of)
        self.other.lead(Shard(FAR), self.wall_ms, 1)
        session, _ = self.other.connect("s", Sink(), clean=False, expiry_s=100, will=None, receive_maximum=100, wall_ms=self.wall_ms)
        assert Net.shard_of("s") == FAR
        self.other.subscribe(session, sub("far/#", 2))
        self.session = session
        self.drop_far()

    def drop_far(self) -> None:
        epoch = self.far.shards[FAR].epoch + 1
        self.far.drop(FAR)
        self.net.shards[FAR] = self.far.shards[FAR]
        self.far.told(FAR, epoch, True, {"far/#": 2})

    def die(self, *, journalled: bool = True) -> None:
        super().die(journalled=journalled)
        self.drop_far()

    def parts(self) -> list[Part]:
        return self.far.outward.flush(lambda number: "other").get("other", [])

    def give(self, parts: list[Part], life: str) -> list[int]:
        """The other broker takes them."""
        return [self.other.arrived(life, p.message, [(p.number, p.sequence, p.kind, p.group, p.after)])[0] for p in parts]

    def there(self) -> list[bytes]:
        return [d.message.payload for d in self.session.inbox]


class Sink:
    version = 5

    def send(self, message: Message, retain: bool, ids: tuple[int, ...]) -> None:
        pass

    def wake(self) -> None:
        pass

    def replaced(self, reason: int) -> None:
        pass

    moved = wake

    def skip(self, sequences: list[int]) -> None:
        pass


@pytest.fixture
def world() -> Two:
    return Two()


def test_nothing_of_qos_2_leaves_before_its_number_is_durable_and_what_follows_waits(world: Two) -> None:
    wire = world.edge("q")
    world.prompt = False
    wire.publish("far/1", b"1", 2, 1)
    wire.publish("far/1", b"2", 1, 2)
    wire.publish("far/1", b"3", 0)
    assert world.parts() == []
    world.sync()
    parts = world.parts()
    assert [p.message.payload for p in parts] == [b"1", b"2", b"3"]
    assert [p.message.origin is not None for p in parts] == [True, False, False]
    world.far.outward.acked("other", FAR, 2)
    assert wire.read() == [Ack(5, 1), Ack(4, 2)]


def test_what_follows_is_given_out_though_the_session_has_ended_and_what_has_no_room_is_not(world: Two) -> None:
    world.far.bounds = structs.replace(world.far.bounds, retained_messages_max=0)
    wire = world.edge("q")
    world.prompt = False
    wire.publish("far/1", b"1", 2, 1)
    wire.publish("r", b"2", 0, retain=True)
    wire.publish("far/1", b"3", 0)
    wire.send(Disconnect(0, {prop.SESSION_EXPIRY_INTERVAL: 0}))
    world.sync()
    assert [p.message.payload for p in world.parts()] == [b"1", b"3"]
    assert not world.far.retained.count


def test_a_publish_that_is_sent_again_to_the_next_owner_has_its_number_and_is_taken_once(world: Two) -> None:
    wire = world.edge("q")
    wire.publish("far/1", b"1", 2, 1)
    wire.publish("far/1", b"2", 2, 2)
    first = world.parts()
    assert world.give(first, "one") == [TAKEN, TAKEN]
    world.die()
    back = world.edge("q")
    back.publish("far/1", b"2", 2, 2, dup=True)
    back.publish("far/1", b"1", 2, 1, dup=True)
    again = world.parts()
    assert [p.message.origin.number for p in again if p.message.origin] == [p.message.origin.number for p in first[::-1] if p.message.origin]
    assert world.give(again, "two") == [TAKEN, TAKEN]
    assert world.there() == [b"1", b"2"]
    world.far.outward.acked("other", FAR, 2)
    assert back.read() == [Ack(5, 2), Ack(5, 1)]
    back.send(Ack(6, 1))
    assert back.read() == [Ack(7, 1)]
    back.publish("far/1", b"3", 2, 1)
    assert world.give(world.parts(), "two") == [TAKEN]
    assert world.there() == [b"1", b"2", b"3"], "the packet identifier is another one's now"


def test_who_takes_it_knows_so_after_a_restart_and_a_late_copy_of_the_last_owner_is_not_taken(world: Two) -> None:
    wire = world.edge("q")
    wire.publish("far/1", b"1", 2, 1)
    late = world.parts()
    world.die()
    back = world.edge("q")
    back.publish("far/1", b"1", 2, 1, dup=True)
    world.give(world.parts(), "two")
    shard = Shard(FAR)
    for payload in world.other.shards[FAR].take_journal():
        shard.replay(payload)
    restored = Shard(FAR)
    restored.restore(shard.snapshot())
    for made in (shard, restored):
        again = ClusterRouter(BOUNDS, SHARDS, Net.shard_of)
        again.lead(made, world.wall_ms, 2)
        (part,) = late
        assert again.arrived("one", part.message, [(FAR, 1, part.kind, "", 0)]) == [TAKEN]
        assert [d.message.payload for d in made.sessions["s"].inbox] == [b"1"]
        assert again.arrived("one", part.message, [(2, 2, part.kind, "", 0)]) == [REFUSED]


def test_a_release_is_known_to_the_next_owner(world: Two) -> None:
    wire = world.edge("q")
    wire.publish("far/1", b"1", 2, 1)
    world.parts()
    world.far.outward.acked("other", FAR, 1)
    assert wire.read() == [Ack(5, 1)]
    world.die(journalled=False)
    back = world.edge("q")
    back.send(Ack(6, 1))
    assert back.read() == [Ack(7, 1)]
    back.send(Ack(6, 1))
    assert back.read() == [Ack(7, 1, Reason.PACKET_IDENTIFIER_NOT_FOUND)]


@pytest.mark.parametrize("version", [4, 5])
def test_a_publish_that_nobody_takes(world: Two, version: int) -> None:
    """Others may have it: its connection ends, and it is sent again with the number that it had, though nothing was sent to who lacks it."""
    more = {"properties": {}} if version == 4 else {}
    reader = world.edge("r")
    assert world.far.subscribe(reader.machine.session, sub("far/#", 2)) is False  # type: ignore[arg-type]
    wire = world.edge("q", version, **more)
    wire.publish("far/1", b"1", 2, 1)
    world.far.outward.expire(WAIT_MS)
    session = world.far.shards[world.far.number_of("q")].sessions["q"]
    assert not any(isinstance(packet, Ack) for packet in wire.read())
    assert wire.machine.closed
    assert list(session.intents) == [1]
    assert not session.receiving
    back = world.edge("q", version, **more)
    back.publish("far/1", b"1", 2, 1, dup=True)
    assert world.give(world.parts(), "one") == [TAKEN]
    world.far.outward.acked("other", FAR, 2)
    assert back.read() == [Ack(5, 1)]
    assert world.there() == reader.payloads() == [b"1"]


def test_a_refusal_that_nobody_was_told_of_leaves_the_number(world: Two) -> None:
    """Others have it, and its client sends it again."""
    first = world.edge("q")
    first.publish("far/1", b"1", 2, 1)
    world.far.outward.acked("other", FAR, 0)
    number = world.far.shard("q").sessions["q"].intents[1]
    first.machine.lost()
    world.sync()
    (part,) = world.parts()
    assert part.stored is not None
    part.stored(LimitExceeded("a queue that gets it, too, is full"))
    assert world.far.shard("q").sessions["q"].intents == {1: number}


def test_who_waits_for_the_same_publish_on_the_next_connection_is_refused_with_it(world: Two) -> None:
    world.edge("q").publish("far/1", b"1", 2, 1)
    back = world.edge("q")
    back.publish("far/1", b"1", 2, 1, dup=True)
    (part,) = world.parts()
    assert part.stored is not None
    part.stored(LimitExceeded("a queue that gets it, too, is full"))
    assert back.read() == [Ack(5, 1, Reason.QUOTA_EXCEEDED)]
    assert not world.far.shard("q").sessions["q"].intents


def test_what_comes_after_a_publish_that_waits_waits_on_the_next_connection_too(world: Two) -> None:
    world.prompt = False
    first = world.wire()
    first.connect("q", **KEPT)
    world.sync()
    first.publish("far/1", b"1", 2, 1)
    back = world.wire()
    back.connect("q", **KEPT)
    back.publish("far/1", b"1", 2, 1, dup=True)
    back.publish("far/1", b"2", 1, 2)
    assert world.parts() == []
    world.sync()
    assert [p.message.payload for p in world.parts()] == [b"1", b"2"]


@pytest.mark.parametrize("qos", [1, 2])
def test_nothing_that_waits_is_given_out_before_what_was_given_up_and_comes_again(world: Two, qos: int) -> None:
    wire = world.edge("q", 4, properties={})
    wire.publish("far/1", b"1", qos, 1)
    world.prompt = False
    wire.publish("far/1", b"2", 2, 2)
    wire.publish("far/1", b"3", 1, 3)
    world.far.outward.expire(WAIT_MS)
    assert wire.machine.closed
    assert not world.far.shard("q").sessions["q"].receiving
    world.prompt = True
    world.sync()
    assert world.parts() == []
    back = world.edge("q", 4, properties={})
    for n in (1, 2, 3):
        back.publish("far/1", b"%d" % n, qos if n == 1 else 2 if n == 2 else 1, n, dup=True)
    assert [p.message.payload for p in world.parts()] == [b"1", b"2", b"3"]


def test_here_too_it_is_taken_once(world: Two) -> None:
    """The subscriber's partition has it in its journal, and the publisher's not that it was received."""
    reader = world.edge("r")
    assert world.far.subscribe(reader.machine.session, sub("t", 2)) is False  # type: ignore[arg-type]
    world.sync()
    wire = world.edge("q")
    wire.publish("t", b"1", 2, 1)
    number = world.far.number_of("q")
    journal = world.net.journals[number]
    world.net.journals[number] = [payload for payload in journal if b"\xa1i" not in payload]
    assert len(world.net.journals[number]) == len(journal) - 1, "that of Received"
    world.die(journalled=False)
    assert list(world.far.shards[number].sessions["q"].intents) == [1]
    back = world.edge("q")
    back.publish("t", b"1", 2, 1, dup=True)
    assert back.read() == [Ack(5, 1)]
    session = world.far.shard("r").sessions["r"]
    assert [d.message.payload for d in session.inbox] == [b"1"]


def test_what_a_member_of_a_shared_subscription_leaves_is_another_ones(world: Two) -> None:
    first, second = world.edge("r"), world.edge("f")
    for member in (first, second):
        assert world.far.subscribe(member.machine.session, sub("$share/g/t", 2)) is False  # type: ignore[arg-type]
    sessions = [member.machine.session for member in (first, second)]
    world.edge("q").publish("t", b"1", 2, 1)
    (has,) = [s for s in sessions if s is not None and s.inbox]
    (other,) = [s for s in sessions if s is not None and s is not has]
    has.outlet = None
    world.far.end(has, world.wall_ms)
    assert [d.message.payload for d in other.inbox] == [b"1"]


def test_a_will_that_the_next_owner_publishes_again_is_taken_once(world: Two) -> None:
    world.edge("q", will=Will("far/w", b"gone", 2)).machine.lost()
    world.sync()
    assert world.give(world.parts(), "one") == [TAKEN]
    world.die()
    world.far.tick(world.wall_ms + 20_000)
    assert world.give(world.parts(), "two") == [TAKEN]
    assert world.there() == [b"gone"]
    world.edge("q", will=Will("far/w", b"again", 2)).machine.lost()
    world.sync()
    assert world.give(world.parts(), "two") == [TAKEN]
    assert world.there() == [b"gone", b"again"], "it is of another connection"


def test_a_connection_whose_publish_may_not_be_durable_goes_on_or_ends(world: Two) -> None:
    fleeting, kept = world.edge("f", properties={}, clean_start=True), world.edge("q")
    for wire in (fleeting, kept):
        wire.machine.unsure()
    (found,) = fleeting.read()
    assert isinstance(found, Disconnect)
    assert kept.astray == 1
    kept.held.lost()
    kept.publish("far/1", b"1", 1, 1)
    assert kept.go_on()
    assert [p.message.payload for p in world.parts()] == [b"1"]


@pytest.mark.parametrize("origin", [None, Origin("q", 7, 7)])
def test_what_caused_no_entry_is_not_taken_for_the_next_owner(world: Two, origin: Origin | None) -> None:
    other, shard = world.other, world.other.shards[FAR]
    brief, _ = other.connect("v", Sink(), clean=True, expiry_s=0, will=None, receive_maximum=100, wall_ms=world.wall_ms)
    other.subscribe(brief, sub(TEAM, 2))
    world.session.outlet = None
    other.subscribe(world.session, sub(TEAM, 2))
    message = Message("near", b"x", 2, False, None, 0, "q")
    message.origin = origin
    target = (FAR, 1, PLAIN, TEAM, 0)
    journal = shard.take_journal()
    assert other.arrived("one", message, [target]) == [TAKEN]
    assert other.arrived("one", message, [target]) == [TAKEN]
    assert len(brief.inbox) == 1, "it is with a member whose session is not kept, once"
    assert not shard.take_journal()
    replayed, restored = Shard(FAR), Shard(FAR)
    for payload in journal:
        replayed.replay(payload)
    restored.restore(shard.snapshot())
    assert restored.snapshot() == shard.snapshot() == replayed.snapshot(), "P1"
    other.drop(FAR)
    other.lead(restored, world.wall_ms, 2)
    assert other.arrived("one", message, [target]) == [TAKEN]
    assert [d.message.payload for d in restored.sessions["s"].inbox] == [b"x"], "nobody else has it any more"


def flow(world: Two, wire: Any, count: int, first: int) -> None:
    """So many publishes of QoS 2, each taken by the other broker and finished."""
    for id in range(first, first + count):
        wire.publish("far/1", b"%d" % id, 2, id)
        (part,) = world.parts()
        assert world.give([part], "one") == [TAKEN]
        world.far.outward.acked("other", FAR, part.sequence)
        wire.send(Ack(6, id))
        assert wire.read() == [Ack(5, id), Ack(7, id)]


def left(world: Two) -> Any:
    """A client that has come back, and has not finished its first publish; the other broker has that."""
    wire = world.edge("q")
    wire.publish("far/1", b"1", 2, 1)
    assert world.give(parts := world.parts(), "one") == [TAKEN]
    wire.machine.lost()
    world.far.outward.expire(WAIT_MS)
    assert parts
    return world.edge("q")


def test_what_a_client_never_finishes_is_forgotten_and_with_it_what_it_published_since(world: Two) -> None:
    back = left(world)
    taken = world.other.shards[FAR].origins.publishers
    flow(world, back, UNFINISHED_MAX, 2)
    assert len(taken["q"].taken) == UNFINISHED_MAX + 1
    flow(world, back, 2, UNFINISHED_MAX + 2)
    assert len(taken["q"].taken) == 1
    assert list(world.net.replayed()[Net.shard_of("q")].sessions["q"].intents) == []
    back.send(Ack(6, 1))
    assert back.read() == [Ack(7, 1, Reason.PACKET_IDENTIFIER_NOT_FOUND)]
    back.publish("far/1", b"1", 2, 1, dup=True)
    assert world.give(world.parts(), "one") == [TAKEN]
    assert world.there()[-1] == b"1", "nobody knows any more that it was there"


@pytest.mark.parametrize("before", [0, 10])
def test_what_a_client_goes_on_with_is_not_forgotten_whatever_comes_meanwhile(world: Two, before: int) -> None:
    """``before``: some clients publish first what is new."""
    back = left(world)
    flow(world, back, before, 2)
    back.publish("far/1", b"1", 2, 1, dup=True)
    (part,) = world.parts()
    for id in range(before + 2, before + UNFINISHED_MAX + 4):
        session = back.machine.session
        session.receiving.setdefault(id, [])
        world.far.intend(session, id)
    assert 1 in session.intents
    assert world.give([part], "one") == [TAKEN]
    assert world.there().count(b"1") == 1


def test_what_is_remembered_of_a_publisher_is_bounded_whatever_it_says_of_what_is_done() -> None:
    origins = Origins()
    for n in range(1, TAKEN_MAX + 2):
        assert not origins.known(Origin("c", n, 1), "")
        origins.take(Origin("c", n, 1), "")
    assert len(origins.publishers["c"].taken) == TAKEN_MAX // 2
    assert origins.known(Origin("c", TAKEN_MAX, 1), "")
    assert not origins.known(Origin("c", 1, 1), ""), "given again it is taken again: at least once"


def test_what_is_remembered_is_bounded() -> None:
    origins = Origins()
    for n in range(PUBLISHERS_MAX + 2):
        origins.take(Origin(f"c{n}", n + 1, n + 1), "")
    for n in range(WILLS_MAX + 2):
        origins.take(Origin("w", n, WILL), "")
    assert (len(origins.publishers), len(origins.wills)) == (PUBLISHERS_MAX, WILLS_MAX)
    assert not origins.known(Origin("c0", 1, 1), "")
    assert origins.known(Origin("c9", 10, 10), "")
    assert not origins.known(Origin("c9", 10, 10), "g"), "for a shared subscription it is another one"
    origins.take(Origin("c9", 30, 20), "")
    assert origins.known(Origin("c9", 10, 10), "g"), "it is done"
    assert len(origins.publishers["c9"].taken) == 1
    assert not origins.known(Origin("w", 0, WILL), "")
    assert origins.known(Origin("w", 5, WILL), "")


@pytest.mark.parametrize("payload", [b"new", b""])
def test_what_waited_at_an_earlier_owner_does_not_replace_what_was_retained_since(world: Two, payload: bytes) -> None:
    topic = "far/4"
    assert Net.shard_of(topic) == FAR
    wire = world.edge("f", properties={}, clean_start=True)
    wire.publish(topic, b"old", 1, 1, retain=True)
    earlier = world.far
    late = [p for p in world.parts() if p.kind == RETAIN]
    world.die()
    world.edge("f", properties={}, clean_start=True).publish(topic, payload, 1, 1, retain=True)
    assert set(world.give(world.parts(), "two")) == {TAKEN}
    assert world.give(late, "one") == [DECLINED]
    shard = world.other.shards[FAR]
    assert [m.payload for m in shard.retained.values()] == [payload] * bool(payload)
    replayed, restored = Shard(FAR), Shard(FAR)
    for entry in shard.take_journal():
        replayed.replay(entry)
    restored.restore(replayed.snapshot())
    for made in (replayed, restored):
        again = ClusterRouter(BOUNDS, SHARDS, Net.shard_of)
        again.lead(made, world.wall_ms, 2)
        assert again.arrived("one", late[0].message, [(FAR, late[0].sequence, RETAIN, "", 0)]) == [DECLINED], "whoever serves the topic"
    wire.read()
    earlier.declined("other", FAR, late[0].sequence)
    (found,) = wire.read()
    assert isinstance(found, Disconnect), "it was not acknowledged"


def test_who_does_not_know_of_the_next_owner_retains_nothing_either(world: Two) -> None:
    topic = "here/c"
    assert Net.shard_of(topic) != FAR
    wire = world.edge("f")
    later = Message(topic, b"new", 1, True, None, 0, "f")
    later.epoch = world.epoch + 1
    assert world.far.arrived("another", later, [(Net.shard_of(topic), 1, RETAIN, "", 0)]) == [TAKEN]
    wire.publish(topic, b"old", 1, 1, retain=True)
    assert wire.read() == [Ack(4, 1, Reason.QUOTA_EXCEEDED)]
    assert [m.payload for m in world.far.shard(topic).retained.values()] == [b"new"]
    why = world.far.retain(Message(topic, b"old", 1, True, None, 0, "f"))
    assert "another broker has the session" in str(why)
