"""What a subscription to a queue or stream asks for: its topic, and the user properties of its SUBSCRIBE that mean something here. Pure."""

import msgspec

from headrace.core.mqtt.capture import addressed
from headrace.core.mqtt.captured import Kind
from headrace.core.mqtt.subscription import Subscription
from headrace.model.errors import Invalid

PREFETCH = 100
OPTIONS = ("consumer-group", "cursor", "prefetch", "settle", "start")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """``cursor`` empty: of a queue, or of a reader that keeps none."""

    kind: Kind
    name: str
    acks: bool
    """QoS 1: what is acknowledged is settled."""
    explicit: bool
    group: str
    cursor: str
    start: str
    prefetch: int


def asked_of(subscription: Subscription, client_id: str, prefetch_max: int) -> Asked:
    """Raises ``Invalid``."""
    capture = addressed(subscription.path)
    assert capture is not None
    options = {name: value for name, value in subscription.options if name in OPTIONS}
    acks, settle, group = bool(subscription.qos), options.get("settle", ""), options.get("consumer-group", "")
    if "settle" in options and settle != "explicit":
        raise Invalid("settle is explicit, or left out")
    if settle and not acks:
        raise Invalid("QoS 0 settles by itself; subscribe with QoS 1 to settle explicitly")
    prefetch = options.get("prefetch", str(PREFETCH))
    if not prefetch.isdecimal() or not 1 <= int(prefetch[:10]) <= prefetch_max:
        raise Invalid(f"prefetch is a number in 1..{prefetch_max}, this one is {prefetch[:40]!r}")
    stream = capture.kind == "stream"
    return Asked(
        kind=capture.kind,
        name=capture.name,
        acks=acks,
        explicit=bool(settle),
        group=group if acks or not stream else "",
        cursor=options.get("cursor", group or client_id) if acks and stream else "",
        start=options.get("start", "cursor" if acks else "latest") if stream else "",
        prefetch=int(prefetch),
    )


def message_id(partition: int, epoch: int, offset: int) -> str:
    """The user property by which a delivery is settled."""
    return f"{partition}-{epoch}-{offset}"


def parse_message_id(text: str) -> tuple[int, int, int]:
    """Partition, epoch and offset. Raises ``Invalid``."""
    numbers = text.split("-")
    if len(numbers) != 3 or not all(n.isdecimal() and len(n) < 20 for n in numbers):
        raise Invalid(f"{text[:40]!r} is no message-id of a delivery")
    partition, epoch, offset = map(int, numbers)
    return partition, epoch, offset
