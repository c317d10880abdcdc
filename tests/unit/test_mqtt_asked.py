"""What a subscription to a queue or stream asks for."""

import pytest

from headrace.core.mqtt.subscription import Subscription
from headrace.gateways.mqtt.asked import Asked, asked_of, message_id, parse_message_id
from headrace.model.errors import Invalid


def asked(path: str, qos: int = 1, **options: str) -> Asked:
    pairs = tuple((name.replace("_", "-"), value) for name, value in options.items())
    return asked_of(Subscription(path, path, "", qos, options=pairs), "me", 1000)


def test_a_queue() -> None:
    plain = Asked(kind="queue", name="a/b", acks=True, explicit=False, group="", cursor="", start="", prefetch=100)
    assert asked("$queue/a%2Fb") == plain
    full = asked("$queue/q", settle="explicit", consumer_group="team", prefetch="7", start="earliest", cursor="c", unknown="x")
    assert full == Asked(kind="queue", name="q", acks=True, explicit=True, group="team", cursor="", start="", prefetch=7)
    assert asked("$queue/q", 0, consumer_group="team").group == "team"


def test_a_stream() -> None:
    plain = Asked(kind="stream", name="s", acks=True, explicit=False, group="", cursor="me", start="cursor", prefetch=100)
    assert asked("$stream/s") == plain
    assert asked("$stream/s", consumer_group="team").cursor == "team"
    found = asked("$stream/s", consumer_group="team", cursor="c", start="last:5")
    assert (found.group, found.cursor, found.start) == ("team", "c", "last:5")
    once = asked("$stream/s", 0, consumer_group="team", cursor="c")
    assert (once.group, once.cursor, once.start) == ("", "", "latest"), "without acknowledgements there is no cursor to move"


@pytest.mark.parametrize(
    ("qos", "options"),
    [
        (1, {"settle": "never"}), (1, {"settle": ""}), (0, {"settle": "explicit"}),
        (1, {"prefetch": "0"}), (1, {"prefetch": "1001"}), (1, {"prefetch": "x"}),
    ],
)  # fmt: skip
def test_what_is_refused(qos: int, options: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        asked("$queue/q", qos, **options)


def test_message_ids() -> None:
    assert parse_message_id(message_id(3, 5, 1 << 40)) == (3, 5, 1 << 40)
    for wrong in ("", "1-2", "1-2-x", "1-2-3-4", "-1-2-3", "1-2-" + "9" * 20):
        with pytest.raises(Invalid):
            parse_message_id(wrong)
