"""The topics that name queues and streams, what the tree captures, and the identifiers of what is lent."""

import pytest

from headrace.core.mqtt.capture import addressed
from headrace.core.mqtt.captured import Capture
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.session import PACKET_IDS, Session
from tests.unit.core.mqtt.routers import Net


@pytest.mark.parametrize(
    ("topic", "meant"),
    [
        ("$queue/q", Capture("queue", "q")),
        ("$queue/q/k/l", Capture("queue", "q", "k/l")),
        ("$queue/q/", Capture("queue", "q", "")),
        ("$queue/a%2Fb%25%2b%23/k", Capture("queue", "a/b%+#", "k")),
        ("$queue/100%/k", Capture("queue", "100%", "k")),
        ("$queue/q/$ack", Capture("queue", "q", "$ack", settles=0)),
        ("$queue/q/$retry", Capture("queue", "q", "$retry", settles=1)),
        ("$queue/q/$reject", Capture("queue", "q", "$reject", settles=2)),
        ("$stream/s/$ack", Capture("stream", "s", "$ack")),
        ("$queue/", None),
        ("$queue//k", None),
        ("$queues/q", None),
        ("$SYS/x", None),
        ("queue/q", None),
    ],
)
def test_topics_of_queues_and_streams(topic: str, meant: Capture | None) -> None:
    assert addressed(topic) == meant


def test_bindings_capture_each_publish_once() -> None:
    net = Net()
    kept: list[tuple[str, list[str]]] = []
    net.router.keep = lambda message, captures, stored: kept.append((message.topic, [c.name for c in captures]))
    net.router.bind("stream", "s", ("a/#", "a/+", "a/#"))
    net.router.bind("queue", "q", ("+/x",))

    def publish(topic: str) -> int:
        return net.router.publish(Message(topic, b"", 1, False), net.wall_ms)

    assert [publish(topic) for topic in ("a/x", "a", "b/x", "c", "$queue/other/k")] == [2, 1, 1, 0, 1]
    net.router.bind("stream", "s", ("c",))
    net.router.bind("queue", "q", ())
    assert [publish(topic) for topic in ("a/x", "c")] == [0, 1]
    assert [(topic, sorted(names)) for topic, names in kept] == [
        ("a/x", ["q", "s"]), ("a", ["s"]), ("b/x", ["q"]), ("$queue/other/k", ["other"]), ("c", ["s"])
    ]  # fmt: skip


def test_identifiers_of_what_is_lent_are_in_use_once() -> None:
    session = Session("c", 0, 0)
    session.receive_maximum = 3
    assert [session.lend("x") for _ in range(3)] == [PACKET_IDS, PACKET_IDS - 1, PACKET_IDS - 2]
    del session.lent[PACKET_IDS - 1]
    session._lent_id = PACKET_IDS
    assert session.lend("y") == PACKET_IDS - 1
    session.check()
    session.parked()
    assert not session.lent
