"""Publishes to session partitions that another broker serves: what is acknowledged when, and what becomes of it where nobody serves them."""

from collections.abc import Callable

import pytest

from headrace.core.mqtt.cluster_router import TAKEN, ClusterRouter
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.origins import Origin
from headrace.core.mqtt.outward import PLAIN, WAIT_MS, Outward, Pledge
from headrace.core.mqtt.shard import Shard
from headrace.model.errors import HeadraceError, Unavailable, UnknownOutcome
from headrace.wire.mqtt.packets import Ack, Disconnect, Will
from headrace.wire.mqtt.reasons import Reason
from tests.unit.core.mqtt.routers import BOUNDS, SHARDS, Client, Net, sub
from tests.unit.core.mqtt.wires import World

FAR = 0
TOPIC = "c"
"""Of another partition than ``FAR``."""


class FarWorld(World):
    """One session partition is another broker's, and wants ``far``."""

    def __init__(self) -> None:
        super().__init__()
        self.far = ClusterRouter(BOUNDS, SHARDS, Net.shard_of)
        self.net.router = self.far
        self.net.shards = [Shard(number) for number in range(SHARDS)]
        for number in range(SHARDS):
            self.far.lead(self.net.shards[number], self.wall_ms)
        self.far.drop(FAR)
        self.net.shards[FAR] = self.far.shards[FAR]
        self.far.told(FAR, 1, True, {"far": 2})

    def sent(self) -> list[tuple[bytes, int]]:
        """What is sent to the other broker now: payloads and their numbers there."""
        found = self.far.outward.flush(lambda number: "other")
        return [(part.message.payload, part.sequence) for part in found.get("other", ())]


@pytest.fixture
def world() -> FarWorld:
    return FarWorld()


def client(n: int) -> str:
    """A client id whose session is here."""
    return next(id for id in (f"c{k}" for k in range(n * 10, 1000)) if Net.shard_of(id) != FAR)


@pytest.mark.parametrize("version", [4, 5])
def test_who_is_connected_is_so_at_the_owner_of_its_session(world: FarWorld, version: int) -> None:
    world.prompt = False
    wire = world.wire()
    wire.connect(client(0), version)
    assert wire.connack is None, "a broker that was cut off cannot write this, and another may serve the session by now"
    shard = world.far.shard(client(0))
    assert world.far.changed == {shard.number: None}
    world.sync()
    assert [packet.reason for packet in wire.read()] == [0]
    assert len(world.net.journals[shard.number]) == 1
    replayed = world.net.replayed()[shard.number]
    assert not replayed.sessions, "and it left nothing"
    assert not shard.take_journal()


def test_a_publish_is_acknowledged_once_the_other_broker_has_it(world: FarWorld) -> None:
    wire = world.open(client(0))
    wire.publish("far", b"1", 1, 1)
    wire.publish("far", b"2", 1, 2)
    wire.publish("here", b"3", 1, 3)
    assert wire.read() == [], "acknowledged in order"
    assert world.sent() == [(b"1", 1), (b"2", 2)]
    world.far.outward.acked("other", FAR, 1)
    assert wire.read() == [Ack(4, 1)]
    world.far.outward.acked("other", FAR, 2)
    assert wire.read() == [Ack(4, 2), Ack(4, 3, Reason.NO_MATCHING_SUBSCRIBERS)]


def test_qos_2_is_taken_here_after_the_other_broker_has_it_and_once(world: FarWorld) -> None:
    wire = world.open(client(0), clean_start=False, properties={0x11: 100})
    session = wire.machine.session
    assert session is not None
    wire.publish("far", b"1", 2, 7)
    assert world.sent() == [(b"1", 1)]
    assert not session.received
    again = world.open(client(0), clean_start=False, properties={0x11: 100})
    assert again.machine.session is session
    again.publish("far", b"1", 2, 7, dup=True)
    assert again.read() == []
    assert world.sent() == [], "it is under way already"
    world.far.outward.acked("other", FAR, 1)
    assert again.read() == [Ack(5, 7)]
    assert list(session.received) == [7]


@pytest.mark.parametrize("reachable", [True, False])
def test_a_partition_that_nobody_serves_is_not_waited_for_for_ever(world: FarWorld, reachable: bool) -> None:
    five, three = world.open(client(0)), world.open(client(20), 4)
    for wire in (five, three):
        wire.publish("far", b"x", 1, 1)
    if reachable:
        assert len(world.sent()) == 2
    world.far.outward.expire(WAIT_MS - 1)
    assert five.read() == three.read() == []
    world.far.outward.expire(WAIT_MS)
    assert three.read() == []
    assert three.machine.closed, "3.1.1 cannot say it"
    (found,) = five.read()
    if reachable:
        assert isinstance(found, Disconnect), "nobody knows whether it is there"
    else:
        assert found.reason == Reason.QUOTA_EXCEEDED
    world.far.outward.check()


def test_what_is_sent_again_and_what_is_dropped() -> None:
    outward, told = Outward(), list[HeadraceError | None]()
    message, fleeting = Message("t", b"kept", 1, False), Message("t", b"fleeting", 0, False)
    outward.give(fleeting, [(FAR, PLAIN, "")], None, 0)
    pledge = Pledge(told.append)
    outward.give(message, [(FAR, PLAIN, ""), (FAR + 1, PLAIN, "")], pledge, 0)
    pledge.done()
    assert outward.flush(lambda number: "") == {}
    assert outward.dropped == 1
    first = outward.flush(lambda number: "one")["one"]
    assert [(p.message, p.number) for p in first] == [(message, FAR), (message, FAR + 1)]
    assert not outward.flush(lambda number: "one"), "sent once to the same owner"
    outward.refused("one", FAR)
    assert not outward.flush(lambda number: "two"), "not before it is released"
    outward.release()
    assert [p.number for p in outward.flush(lambda number: "two")["two"]] == [FAR]
    outward.acked("one", FAR, 1)
    assert outward.nbytes, "who is not the owner has nothing to say"
    outward.acked("two", FAR, 1)
    outward.expire(WAIT_MS)
    assert [type(why) for why in told] == [UnknownOutcome]
    never = Outward()
    pledge = Pledge(told.append)
    never.give(message, [(FAR, PLAIN, "")], pledge, 0)
    pledge.done()
    never.expire(WAIT_MS)
    assert [type(why) for why in told[1:]] == [Unavailable]
    outward.check()


def test_what_is_given_up_takes_with_it_what_its_publisher_gave_after_it() -> None:
    """The publisher sends it again, behind what it has given since (O4); others, wills and what nobody is told of are not concerned."""
    outward, told = Outward(), list[bytes]()

    def give(payload: bytes, publisher: str, now_ms: int, *, number: int = FAR, lasting: bool = False, pledged: bool = True) -> None:
        def stored(why: HeadraceError | None) -> None:
            assert isinstance(why, Unavailable)
            told.append(payload)

        pledge = Pledge(stored, lasting=lasting) if pledged else None
        outward.give(Message("t", payload, 1, False, None, 0, publisher), [(number, PLAIN, "")], pledge, now_ms)
        if pledge is not None:
            pledge.done()

    give(b"will", "p", 0, lasting=True)
    give(b"p1", "p", 0)
    give(b"q1", "q", 1)
    give(b"p2", "p", 1000)
    give(b"p will", "p", 1000, lasting=True)
    give(b"p left", "p", 1000, pledged=False)
    give(b"p elsewhere", "p", 1000, number=FAR + 1)
    outward.expire(WAIT_MS)
    assert told == [b"p1", b"p2"]
    give(b"p1 again", "p", WAIT_MS)
    outward.check()
    sent = outward.flush(lambda number: "one")["one"]
    assert [p.message.payload for p in sent] == [b"will", b"q1", b"p will", b"p left", b"p elsewhere", b"p1 again"]


def test_a_publish_has_failed_once_one_partition_is_given_up_whatever_else_it_waits_for() -> None:
    """Else its connection would go on, and what it publishes meanwhile come before it."""
    told = list[HeadraceError | None]()
    pledge = Pledge(told.append)
    first, second = pledge.more(), pledge.more()
    first(Unavailable("x"))
    assert told == [], "not before all are named"
    pledge.done()
    assert [type(why) for why in told] == [Unavailable]
    second(UnknownOutcome("y"))
    assert len(told) == 1


def test_who_is_told_that_its_publish_was_given_up_may_leave_a_will(world: FarWorld) -> None:
    id = client(0)
    other = next(number for number in range(SHARDS) if number not in (FAR, Net.shard_of(id)))
    world.far.drop(other)
    world.net.shards[other] = world.far.shards[other]
    world.far.told(other, 1, True, {"will": 2})
    wire = world.open(id, 4, will=Will("will", b"dead", 1))
    wire.publish("far", b"1", 1, 1)
    world.far.outward.expire(WAIT_MS)
    assert wire.machine.closed
    assert [payload for payload, _ in world.sent()] == [b"dead"]


def test_a_will_waits_for_a_partition_as_long_as_nobody_serves_it_and_holds_up_no_refusal(world: FarWorld) -> None:
    id = client(0)
    world.open(id, will=Will("far", b"dead", 1)).machine.lost()
    wire = world.open(client(1))
    wire.publish("far", b"1", 1, 1)
    world.far.outward.expire(WAIT_MS)
    assert [packet.reason for packet in wire.read()] == [Reason.QUOTA_EXCEEDED], "who publishes is told"
    world.far.outward.check()
    assert id in world.far.shard(id).wills, "nobody is told of a will"
    assert world.sent() == [(b"dead", 1)]
    world.far.outward.acked("other", FAR, 1)
    world.sync()
    assert not world.far.shard(id).wills


class Later:
    """Says when all that has changed is durable, or that nobody will know."""

    def __init__(self, world: FarWorld) -> None:
        self.waiting: list[tuple[Callable[[], None], Callable[[], None]]] = []
        world.far.durable = lambda then, unsure: self.waiting.append((then, unsure))

    def say(self, *, known: bool) -> None:
        waiting, self.waiting = self.waiting, []
        for then, unsure in waiting:
            (then if known else unsure)()


def test_a_will_is_published_again_if_a_partition_here_that_was_given_it_has_moved(world: FarWorld) -> None:
    later = Later(world)
    id = client(0)
    shard = world.far.shard(id)
    number = next(number for number in range(SHARDS) if number not in (FAR, shard.number))
    name = next(id for id in (f"l{k}" for k in range(100)) if Net.shard_of(id) == number)
    listener = world.open(name, clean_start=False, properties={0x11: 100})
    assert listener.machine.session is not None
    world.far.subscribe(listener.machine.session, sub("here"))
    wire = world.open(id, will=Will("here", b"dead", 1))
    world.prompt = False
    wire.machine.lost()
    world.far.tick(world.wall_ms)
    assert [d.message.payload for d in listener.machine.session.inbox] == [b"dead"]
    world.far.drop(number)
    later.say(known=False)
    assert id in shard.wills
    world.far.tick(world.wall_ms)
    assert [part.number for part in world.far.outward.flush(lambda number: "other")["other"]] == [number], "its next owner gets it"
    world.far.outward.acked("other", number, 1)
    later.say(known=True)
    assert id not in shard.wills


def test_a_message_that_another_member_gets_is_acknowledged_once_that_is_durable(world: FarWorld) -> None:
    later, told = Later(world), list[HeadraceError | None]()
    world.far.told(FAR, 1, True, {"$share/g/t": 2})
    member = world.open(client(0), clean_start=False, properties={0x11: 100})
    assert member.machine.session is not None
    world.far.subscribe(member.machine.session, sub("$share/g/t"))
    member.machine.lost()
    for known in (True, False):
        world.far.publish(Message("t", b"1", 1, False), world.wall_ms, told.append)
        (part,) = world.far.outward.flush(lambda number: "other")["other"]
        declined = world.far.outward.declined("other", FAR, part.sequence)
        assert declined is part
        world.far.told(FAR, 1, True, {"$share/g/t": 0})
        world.far.again(part.group, part.message, part.stored)
        world.far.told(FAR, 1, True, {"$share/g/t": 2})
        assert len(told) == (not known)
        later.say(known=known)
    assert [type(why) for why in told] == [type(None), UnknownOutcome], "its client sends it again"


def test_what_another_partition_here_has_given_to_a_member_counts_for_that_one_alone(world: FarWorld) -> None:
    """It may be somebody else's before that is durable, and with it the message gone."""
    others = [number for number in range(SHARDS) if number != FAR]
    names = [next(id for id in (f"m{k}" for k in range(100)) if Net.shard_of(id) == number) for number in others]
    for name in names:
        member = world.open(name, clean_start=False, properties={0x11: 100})
        assert member.machine.session is not None
        world.far.subscribe(member.machine.session, sub("$share/g/t", 2))
    message = Message("t", b"1", 2, False)
    message.origin = Origin("p", 1, 1)
    for sequence, number in enumerate(others, 1):
        assert world.far.arrived("life", message, [(number, sequence, PLAIN, "$share/g/t", 0)]) == [TAKEN]
        assert world.far.arrived("another life", message, [(number, sequence, PLAIN, "$share/g/t", 0)]) == [TAKEN]
    got = {name: len(world.far.shard(name).sessions[name].inbox) + len(world.far.shard(name).sessions[name].in_flight) for name in names}
    assert got == dict.fromkeys(names, 1)


def test_what_an_older_owner_has_said_of_a_partition_is_not_taken_for_what_the_last_one_knew(world: FarWorld) -> None:
    shard = Shard(FAR)
    world.far.lead(shard, world.wall_ms, 5)
    session, _ = world.far.connect(
        next(id for id in (f"m{k}" for k in range(100)) if Net.shard_of(id) == FAR), Client(), clean=False, expiry_s=100, will=None,
        receive_maximum=10, wall_ms=world.wall_ms,
    )  # fmt: skip
    world.far.subscribe(session, sub("new"))
    world.far.drop(FAR)
    world.far.told(FAR, 4, True, {})
    assert not world.far.unheard("new")
    world.far.told(FAR, 6, True, {})
    assert world.far.unheard("new")


def test_a_will_is_done_once_the_other_broker_has_it(world: FarWorld) -> None:
    """Whoever has its session next publishes it otherwise."""
    id = client(0)
    shard = world.far.shard(id)
    will = Will("far", b"dead", 1)
    world.open(id, will=will).machine.lost()
    assert world.sent() == [(b"dead", 1)]
    assert id in shard.wills
    assert id in shard.sessions, "the session ends with its will"
    world.far.tick(world.wall_ms)
    assert world.sent() == [], "it is under way already"
    world.far.check()
    world.far.outward.acked("other", FAR, 1)
    assert not shard.wills
    assert not shard.sessions
    world.far.check()


@pytest.mark.parametrize("acked_late", [True, False])
def test_who_comes_back_while_its_will_is_under_way_has_a_session_of_its_own(world: FarWorld, acked_late: bool) -> None:
    id = client(0)
    world.open(id, will=Will("far", b"dead", 1)).machine.lost()
    assert world.sent() == [(b"dead", 1)]
    back = world.open(id, will=Will("far", b"again", 1))
    if acked_late:
        world.far.outward.acked("other", FAR, 1)
    assert back.machine.session is world.far.shard(id).sessions[id]
    assert world.far.shard(id).wills[id].message.payload == b"again"
    back.machine.lost()
    assert [payload for payload, _ in world.sent()] == [b"again"]
    world.far.check()


def test_a_shared_subscription_that_is_heard_of_late_gets_what_was_published_before(world: FarWorld) -> None:
    """A broker that has just started thinks that partitions want everything; it learns of their shared subscriptions with the rest."""
    far = world.far = ClusterRouter(BOUNDS, SHARDS, Net.shard_of)
    world.net.router, world.net.shards = far, far.shards
    for number in range(SHARDS):
        if number != FAR:
            far.lead(Shard(number), world.wall_ms)
    wire = world.open(client(0))
    wire.publish("t", b"1", 1, 1)
    assert not far.outward.flush(lambda number: ""), "nobody serves that partition yet"
    far.told(FAR, 1, True, {"$share/g/t": 2, "$share/h/t": 2, "$share/g/other": 2})
    parts = far.outward.flush(lambda number: "other")["other"]
    assert [(part.group, part.message.payload) for part in parts] == [("", b"1"), ("$share/g/t", b"1"), ("$share/h/t", b"1")]
    far.outward.acked("other", FAR, 1)
    assert wire.read() == [], "a member has to have it, too"
    far.outward.acked("other", FAR, 3)
    assert wire.read() == [Ack(4, 1)]
    far.told(FAR, 2, True, {"$share/g/t": 2, "$share/late/t": 2})
    assert not far.outward.flush(lambda number: "other"), "who subscribes later gets what is published later"
    wire.publish("t", b"2", 1, 2)
    assert [part.group for part in far.outward.flush(lambda number: "other")["other"]] == ["$share/g/t", "$share/late/t"]


@pytest.mark.parametrize("declined", [False, True])
def test_who_comes_here_with_a_message_of_a_shared_subscription_is_not_given_it_again(world: FarWorld, declined: bool) -> None:
    """An earlier owner of the publisher's session gave it to a member. It is sent again to a broker that does not know of the members of that
    partition, or has chosen another partition's; then it serves the partition itself."""
    group, number = "$share/g/t", next(number for number in range(SHARDS) if number != FAR)
    message = Message("t", b"1", 2, False)
    message.origin = Origin("p", 1, 1)
    member = next(id for id in (f"m{k}" for k in range(100)) if Net.shard_of(id) == FAR)
    world.far.lead(Shard(FAR), world.wall_ms)
    session, _ = world.far.connect(member, Client(), clean=False, expiry_s=100, will=None, receive_maximum=10, wall_ms=world.wall_ms)
    world.far.subscribe(session, sub(group, 2))
    world.far.publish(message, world.wall_ms)
    world.far.disconnected(session, with_will=False, wall_ms=world.wall_ms)
    moved = Shard(FAR)
    for payload in world.far.shards[FAR].take_journal():
        moved.replay(payload)

    world.far = ClusterRouter(BOUNDS, SHARDS, Net.shard_of)
    later, told = Later(world), list[HeadraceError | None]()
    if declined:
        for other in range(SHARDS):
            world.far.told(other, 1, True, {group: 2} if other == number else {})
    world.far.publish(message, world.wall_ms, told.append)
    parts = world.far.outward.flush(lambda number: "other")["other"]
    world.far.lead(moved, world.wall_ms, 2)
    if declined:
        assert [part.number for part in parts] == [number]
        world.far.told(number, 1, False, {group: 0})
        world.far.declined("other", number, parts[0].sequence)
    else:
        world.far.outward.flush(lambda number: "other")
        for part in parts:
            world.far.outward.acked("other", part.number, part.sequence)
    assert [d.message.payload for d in moved.sessions[member].inbox] == [b"1"]
    assert told == [], "what the member has must be durable, too"
    assert FAR in world.far.changed
    later.say(known=True)
    assert told == [None]


@pytest.mark.parametrize("why", ["not known", "not known for long", "declined"])
def test_a_will_for_a_shared_subscription_waits_as_any_other(world: FarWorld, why: str) -> None:
    """Its members were not known when it was published, or the one that was chosen was gone: it was given up after a while, and counted as done."""
    group, id = "$share/g/t", client(0)
    far = world.far = ClusterRouter(BOUNDS, SHARDS, Net.shard_of)
    world.net.router, world.net.shards = far, far.shards
    for number in range(SHARDS):
        if number != FAR:
            far.lead(Shard(number), world.wall_ms)
    if why == "declined":
        far.told(FAR, 1, True, {group: 2})
    world.open(id, will=Will("t", b"dead", 1)).machine.lost()
    if why == "declined":
        [(_, sequence)] = world.sent()
        far.declined("other", FAR, sequence)
    else:
        far.now_ms = lambda: WAIT_MS if why == "not known for long" else 0
        far.told(FAR, 1, True, {group: 2})
    far.outward.expire(2 * WAIT_MS)
    parts = far.outward.flush(lambda number: "other")["other"]
    assert (parts[-1].message.payload, parts[-1].group) == (b"dead", group)
    assert id in far.shard(id).wills
    far.outward.acked("other", FAR, parts[-1].sequence)
    world.sync()
    assert id not in far.shard(id).wills
