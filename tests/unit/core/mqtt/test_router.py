"""Who gets what, and what survives whom."""

import msgspec
import pytest

from headrace.core.mqtt.shard import Shard
from headrace.core.mqtt.topics import filter_fault, matches, split_shared
from headrace.model.errors import HeadraceError
from tests.unit.core.mqtt.routers import BOUNDS, Net, sub, will


@pytest.mark.mqtt("4.7.1-1", "4.7.1-2", "4.7.3-1", "4.7.3-2")
@pytest.mark.mqtt3("4.7.1-2", "4.7.1-3", "4.7.3-1", "4.7.3-2")
@pytest.mark.parametrize("filter", ["", "a#", "a/#/b", "#/", "+a", "a/b+", "a/+b/c", "a\0", "/".join("a" * 129)])
def test_what_is_no_filter(filter: str) -> None:
    assert filter_fault(filter)


@pytest.mark.parametrize("filter", ["#", "+", "/", "a", "/+", "+/+", "a//b", "+/#", "$SYS/#", "a b"])
def test_what_is_a_filter(filter: str) -> None:
    assert not filter_fault(filter)


@pytest.mark.mqtt("4.8.2-1", "4.8.2-2")
def test_shared_filters() -> None:
    assert split_shared("$share/g/a/#") == ("g", "a/#")
    assert split_shared("a") == ("", "a")
    for bad in ("$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/g#/a"):
        group, path = split_shared(bad)
        assert group
        assert not path


@pytest.mark.mqtt("4.7.2-1")
@pytest.mark.mqtt3("4.7.2-1")
def test_examples_of_the_specification() -> None:
    for filter, topic, expected in (
        ("sport/tennis/player1/#", "sport/tennis/player1", True), ("sport/#", "sport", True), ("sport/+", "sport", False), ("+/+", "/finance", True),
        ("/+", "/finance", True), ("+", "/finance", False), ("#", "$SYS/a", False), ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/a", True), ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
    ):  # fmt: skip
        assert matches(filter, topic) is expected, (filter, topic)


@pytest.mark.mqtt("3.3.4-2", "3.3.4-3", "3.3.4-4", "3.8.4-8")
@pytest.mark.mqtt3("3.3.5-1")
def test_one_copy_for_overlapping_filters_with_all_identifiers_and_the_highest_qos() -> None:
    net = Net()
    session, client, _ = net.connect("c")
    for filter, qos, identifier in (("a/#", 0, 7), ("a/+", 2, 8), ("b", 1, 9)):
        net.router.subscribe(session, sub(filter, qos, identifier=identifier))
    assert net.publish("a/b", b"1", qos=2) == 1
    (delivery,) = net.pump(session)
    assert (delivery.qos, sorted(delivery.ids)) == (2, [7, 8])
    net.publish("a/b", b"0", qos=0)
    assert [(p, sorted(ids)) for _, p, _, ids in client.now] == [(b"0", [7, 8])]


@pytest.mark.mqtt("3.3.1-12", "3.3.1-13", "3.8.3-3")
def test_no_local_and_retain_as_published() -> None:
    net = Net()
    session, _, _ = net.connect("c")
    net.router.subscribe(session, sub("a", no_local=True, retain_as_published=True))
    assert net.publish("a", publisher="c") == 0
    net.router.subscribe(session, sub("+", retain_as_published=False))
    assert net.publish("a", publisher="c", retain=True) == 1
    assert net.publish("a", publisher="other", retain=True) == 1
    assert [d.retain for d in net.pump(session)] == [False, True]


@pytest.mark.mqtt("3.3.1-5", "3.3.1-6", "3.3.1-7")
def test_retained_messages() -> None:
    net = Net()
    net.publish("a/b", b"old", retain=True)
    net.publish("a/b", b"new", retain=True)
    net.publish("$SYS/x", b"hidden", retain=True)
    net.publish("gone", b"1", retain=True)
    net.publish("gone", b"", retain=True)
    net.publish("late", b"1", retain=True, expires_ms=net.wall_ms + 5)
    net.restart()
    session, _, _ = net.connect("c")
    net.wall_ms += 5
    net.router.send_retained(session, sub("#"), net.wall_ms)
    net.router.send_retained(session, sub("$share/g/#"), net.wall_ms)
    assert [(d.message.payload, d.retain) for d in net.pump(session)] == [(b"new", True)]
    net.router.tick(net.wall_ms)
    assert net.router.retained.count == 2
    net.router.check()


def test_retained_messages_are_bounded() -> None:
    net = Net(msgspec.structs.replace(BOUNDS, retained_messages_max=1))
    net.publish("a", b"1", retain=True)
    net.publish("b", b"2", retain=True)
    net.publish("a", b"3", retain=True)
    assert [m.payload for m in net.router.retained.match("#")] == [b"3"]


@pytest.mark.mqtt("3.1.2-23", "4.5.0-1", "4.6.0-6")
def test_a_session_waits_for_its_client_through_a_restart() -> None:
    net = Net()
    session, _, present = net.connect("c")
    assert not present
    net.router.subscribe(session, sub("a", 2))
    net.lose(session)
    for i in range(3):
        net.publish("a", b"%d" % i, qos=1 + i % 2)
    net.snapshot()
    net.publish("a", b"3")
    net.restart()
    session, _, present = net.connect("c")
    assert present
    assert net.got(session) == [b"0", b"1", b"2", b"3"]
    net.restart()
    session, _, _ = net.connect("c")
    assert net.got(session) == []


def test_the_order_of_a_session_is_kept_when_a_message_comes_to_it_twice() -> None:
    net = Net()
    session, _, _ = net.connect("c")
    net.router.subscribe(session, sub("#"))
    net.publish("a", b"1", retain=True)
    net.publish("b", b"2")
    net.router.send_retained(session, sub("a"), net.wall_ms)
    net.restart()
    assert net.got(net.connect("c")[0]) == [b"1", b"2", b"1"]


def test_entries_of_the_journal_are_bounded() -> None:
    net = Net(msgspec.structs.replace(BOUNDS, inbox_bytes_max=1 << 30))
    session, _, _ = net.connect("c")
    net.router.subscribe(session, sub("#"))
    sent = [bytes([i]) * (100_000 if i != 7 else 3_000_000) for i in range(40)]
    for payload in sent:
        net.publish("t", payload)
    net.write()
    journal = net.journals[net.shard_of("c")]
    assert len(journal) > 4
    assert [len(payload) > 1_100_000 for payload in journal].count(True) == 1
    net.restart()
    assert net.got(net.connect("c")[0]) == sent


@pytest.mark.mqtt("4.3.3-6", "4.4.0-1")
def test_what_is_in_flight_keeps_its_identifier_and_its_phase() -> None:
    net = Net()
    session, _, _ = net.connect("c")
    net.router.subscribe(session, sub("a", 2))
    for i in range(4):
        net.publish("a", b"%d" % i, qos=2)
    due = net.pump(session)
    assert session.released(due[1].packet_id) is due[1]
    net.router.released(session, due[1])
    net.ack(session, due[0])
    net.restart()
    session, _, _ = net.connect("c")
    assert [(p, d.message.payload, d.released) for p, d in session.in_flight.items()] == [(due[1].packet_id, b"1", True)]
    again = net.pump(session)
    assert [(d.packet_id, d.message.payload, d.sent) for d in again] == [(due[2].packet_id, b"2", True), (due[3].packet_id, b"3", True)]


def test_sessions_without_expiry_leave_nothing() -> None:
    net = Net()
    session, _, _ = net.connect("c", expiry_s=0)
    net.router.subscribe(session, sub("a"))
    net.publish("a")
    net.write()
    assert net.journals == [[], [], []]
    net.lose(session)
    net.router.check()
    assert net.router.subscriptions == 0
    _, _, present = net.connect("c", expiry_s=0)
    assert not present


@pytest.mark.mqtt("4.1.0-2")
def test_sessions_expire_while_their_clients_are_away_and_the_broker_is_down() -> None:
    net = Net()
    for name, expiry_s in (("a", 10), ("b", 0xFFFF_FFFF)):
        session, _, _ = net.connect(name, expiry_s=expiry_s)
        net.router.subscribe(session, sub("t"))
        net.lose(session)
    net.restart()
    net.wall_ms += 9_999
    net.router.tick(net.wall_ms)
    assert net.publish("t") == 2
    net.wall_ms += 1
    net.router.tick(net.wall_ms)
    assert net.publish("t") == 1
    assert not net.connect("a")[2]
    assert net.connect("b")[2]


def test_a_takeover_moves_the_session_and_closes_the_other_connection() -> None:
    net = Net()
    session, first, _ = net.connect("c")
    net.router.subscribe(session, sub("a"))
    net.publish("a", b"1")
    assert len(net.pump(session)) == 1
    session, _, present = net.connect("c")
    assert present
    assert first.was_replaced
    assert [(d.message.payload, d.packet_id) for d in net.pump(session)] == [(b"1", 1)]


@pytest.mark.mqtt("3.3.4-9", "4.9.0-1", "4.9.0-2")
def test_the_receive_maximum_is_kept() -> None:
    net = Net()
    session, _, _ = net.connect("c", receive_maximum=2)
    net.router.subscribe(session, sub("a"))
    for i in range(5):
        net.publish("a", b"%d" % i)
    due = net.pump(session)
    assert [d.message.payload for d in due] == [b"0", b"1"]
    assert net.pump(session) == []
    net.ack(session, due[1])
    assert [d.message.payload for d in net.pump(session)] == [b"2"]


def test_a_client_that_comes_back_may_take_less_than_it_has_in_flight() -> None:
    net = Net()
    session, _, _ = net.connect("c")
    net.router.subscribe(session, sub("a", 2))
    for i in range(4):
        net.publish("a", b"%d" % i, qos=2)
    due = net.pump(session)
    for delivery in due[:2]:
        assert session.released(delivery.packet_id) is delivery
    session, _, _ = net.connect("c", receive_maximum=1)
    assert net.pump(session) == []
    for delivery, then in zip(due[:2], ([], [b"2"]), strict=True):
        assert session.completed(delivery.packet_id) is delivery
        net.router.done(session, [delivery.sequence])
        assert [d.message.payload for d in net.pump(session)] == then
    net.router.check()


@pytest.mark.mqtt("2.2.1-4", "4.3.2-1", "4.3.3-1")
@pytest.mark.mqtt3("2.3.1-4")
@pytest.mark.parametrize("qos", [1, 2])
def test_identifiers_go_round_and_are_never_in_use_twice(qos: int) -> None:
    net = Net()
    session, _, _ = net.connect("c")
    net.router.subscribe(session, sub("a", qos))
    net.publish("a", b"stays", qos)
    (oldest,) = net.pump(session)
    for _ in range(65_534):
        net.publish("a", b"-", qos)
        for delivery in net.pump(session):
            net.ack(session, delivery)
    net.publish("a", b"waits", qos)
    assert net.pump(session) == []
    net.ack(session, oldest)
    assert [(d.packet_id, d.message.payload) for d in net.pump(session)] == [(1, b"waits")]


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", [b"2", b"3"]), ("drop_newest", [b"0", b"1"])])
def test_the_inbox_is_bounded(overflow: str, kept: list[bytes]) -> None:
    net = Net(msgspec.structs.replace(BOUNDS, inbox_messages_max=2, inbox_overflow=overflow))
    session, _, _ = net.connect("c")
    net.router.subscribe(session, sub("a"))
    net.lose(session)
    for i in range(4):
        net.publish("a", b"%d" % i)
    assert net.router.dropped == 2
    net.restart()
    session, _, _ = net.connect("c")
    assert net.got(session) == kept


@pytest.mark.mqtt("3.3.2-5")
def test_messages_expire_in_the_inbox() -> None:
    net = Net()
    session, _, _ = net.connect("c")
    net.router.subscribe(session, sub("a"))
    net.lose(session)
    net.publish("a", b"1", expires_ms=net.wall_ms + 10)
    net.publish("a", b"2")
    net.wall_ms += 10
    session, _, _ = net.connect("c")
    assert net.got(session) == [b"2"]
    net.restart()
    session, _, _ = net.connect("c")
    assert net.got(session) == []


@pytest.mark.mqtt("3.1.2-8", "3.1.2-10", "3.1.3-9")
def test_wills() -> None:
    net = Net()
    watcher, _, _ = net.connect("watcher")
    net.router.subscribe(watcher, sub("will/#"))
    for name, delay_s, expiry_s in (("now", 0, 100), ("later", 5, 100), ("ends", 50, 10), ("none", 0, 100), ("returns", 5, 100), ("brief", 9, 0)):
        session, _, _ = net.connect(name, expiry_s=expiry_s, will=will(f"will/{name}", delay_s))
        net.lose(session, with_will=name != "none")
    assert [d.message.topic for d in net.pump(watcher)] == ["will/now", "will/brief"]
    net.connect("returns", will=None)
    net.wall_ms += 5_000
    net.router.tick(net.wall_ms)
    assert [d.message.topic for d in net.pump(watcher)] == ["will/later"]
    net.wall_ms += 5_000
    net.router.tick(net.wall_ms)
    assert [d.message.topic for d in net.pump(watcher)] == ["will/ends"]
    net.wall_ms += 1_000_000
    net.router.tick(net.wall_ms)
    assert net.pump(watcher) == []
    net.router.check()


def test_wills_of_a_broker_that_dies() -> None:
    net = Net()
    watcher, _, _ = net.connect("watcher", expiry_s=1000)
    net.router.subscribe(watcher, sub("will/#"))
    net.connect("durable", will=will("will/durable", 5))
    net.connect("brief", expiry_s=0, will=will("will/brief", 5))
    net.restart()
    assert [d.message.topic for d in net.pump(net.connect("watcher")[0])] == ["will/brief"]
    net.wall_ms += 5_000
    net.restart()
    net.router.tick(net.wall_ms)
    topics = [d.message.topic for d in net.pump(net.connect("watcher")[0])]
    assert topics == ["will/brief", "will/durable"]
    net.restart()
    net.router.tick(net.wall_ms + 50_000)
    assert len(net.connect("watcher")[0].inbox) == 2


@pytest.mark.mqtt("3.1.3-9")
def test_wills_wait_for_clients_whose_sessions_have_moved() -> None:
    net = Net()
    watcher, _, _ = net.connect("watcher", expiry_s=1000)
    net.router.subscribe(watcher, sub("will/#"))
    for name, delay_s, expiry_s in (("kept", 0, 100), ("brief", 0, 0), ("short", 0, 3), ("later", 30, 100)):
        for what in ("stays", "returns"):
            net.connect(f"{name}-{what}", expiry_s=expiry_s, will=will(f"will/{name}", delay_s))
    net.restart(back_ms=10_000)
    net.wall_ms += 6_000
    net.router.tick(net.wall_ms)
    net.restart(back_ms=10_000)  # moved again: they have no longer for that
    for name, expiry_s in (("kept", 100), ("brief", 0), ("short", 3), ("later", 100)):
        _, _, present = net.connect(f"{name}-returns", expiry_s=expiry_s, clean=not expiry_s)
        assert present is bool(expiry_s), "a session of 3 s has not ended while its client could not be there"
    assert net.got(net.connect("watcher")[0]) == []
    net.wall_ms += 4_000
    net.router.tick(net.wall_ms)
    watcher, _, _ = net.connect("watcher")
    assert sorted(d.message.topic for d in net.pump(watcher)) == ["will/brief", "will/kept", "will/short"]
    net.wall_ms += 20_000
    net.router.tick(net.wall_ms)
    assert [d.message.topic for d in net.pump(watcher)] == ["will/later"]
    assert sorted(s for shard in net.shards for s in shard.sessions if "brief" in s or "short" in s) == ["brief-returns", "short-returns"]
    net.restart()
    net.router.check()


@pytest.mark.mqtt("4.8.2-5")
def test_shared_subscriptions_take_turns_and_move_on() -> None:
    net = Net()
    sessions = []
    for name in "abc":
        session, _, _ = net.connect(name, expiry_s=0)
        net.router.subscribe(session, sub("$share/g/t", 2))
        sessions.append(session)
    for i in range(6):
        assert net.publish("t", b"%d" % i, qos=1 + i % 2) == 1
    assert [len(s.inbox) for s in sessions] == [2, 2, 2]
    due = net.pump(sessions[0])
    assert [d.qos for d in due] == [1, 2]
    for delivery in due:
        delivery.sent = True
    net.lose(sessions[0])  # its QoS 1 goes to another, its QoS 2 that was sent to nobody
    rest = sorted(p for s in sessions[1:] for p in net.got(s))
    assert rest == [b"0", b"1", b"2", b"4", b"5"]
    net.router.check()


def test_a_shared_subscription_prefers_who_is_there() -> None:
    net = Net()
    away, _, _ = net.connect("away")
    net.router.subscribe(away, sub("$share/g/t"))
    net.lose(away)
    net.publish("t", b"1")
    here, _, _ = net.connect("here")
    net.router.subscribe(here, sub("$share/g/t"))
    net.publish("t", b"2")
    net.publish("t", b"3")
    assert net.got(here) == [b"2", b"3"]
    assert net.got(net.connect("away")[0]) == [b"1"]


def test_subscriptions_are_bounded() -> None:
    net = Net(msgspec.structs.replace(BOUNDS, subscriptions_max=1))
    session, _, _ = net.connect("c")
    assert net.router.subscribe(session, sub("a")) is False
    assert net.router.subscribe(session, sub("a")) is True
    assert net.router.subscribe(session, sub("b")) is None


@pytest.mark.parametrize("payload", [b"", b"\x91", b"\x91\xa1x", b"\x91\x92\xa1e\xa1c", b"\x91\x93\xa1d\xa1c\x91\x01", b"\xff" * 10])
def test_a_damaged_journal_raises_nothing_untyped(payload: bytes) -> None:
    try:
        Shard(0).replay(payload)
    except HeadraceError:
        return
    assert payload == b"\x91\x92\xa1e\xa1c"  # a session that is not there has ended
