"""The rows of the table: one piece of work each, as the arguments of every target's load generator.

Rates count what arrived: receipts where there are consumers, confirms where there are none. ``both`` bounds what lies between publish and receipt,
so that the rate is what is delivered; its latency is then mostly that queue. For latency read the paced rows, timed from when a message was due.
"""

from dataclasses import dataclass, field

QUEUES = ("headrace", "redis-always", "nats-always", "nats-default", "rabbit-quorum", "rabbit-classic")
STREAMS = ("headrace", "rabbit-stream", "nats-default", "nats-always")
MQTT = ("headrace", "headrace-pure", "mosquitto", "nats-mqtt", "rabbit-mqtt", "aedes", "amqtt")
TIMES = "--secs {secs} --warm {warm}"


@dataclass(frozen=True)
class Row:
    """``work``: generator arguments by kind (headrace, amqp, nats, redis, stream; mqtt for all). ``fill``: what to run before, unmeasured."""

    key: str
    title: str
    targets: tuple[str, ...]
    work: dict[str, str]
    fill: dict[str, str] = field(default_factory=dict)
    latency: bool = False
    """Judged by its latency, not its rate."""
    memory: bool = False
    """Judged by what the server has resident at most."""

    @property
    def mqtt(self) -> bool:
        """Whether it belongs to the table of MQTT."""
        return "mqtt" in self.work


def mqtt_row(key: str, title: str, work: str, *, latency: bool = False, memory: bool = False) -> Row:
    """A row in which every target, ours too, has the same generator."""
    return Row(f"mqtt-{key}", title, MQTT, {"mqtt": f"{work} {TIMES}"}, latency=latency, memory=memory)


def queue_row(key: str, title: str, headrace: str, others: str, *, targets: tuple[str, ...] = QUEUES, latency: bool = False) -> Row:
    """A row in which all peers' generators take the same arguments."""
    work = {"headrace": f"queue {headrace} {TIMES}"} | dict.fromkeys(("amqp", "nats", "redis"), f"{others} {TIMES}")
    return Row(key, title, targets, work, latency=latency)


ROWS = [
    queue_row("publish-100", "publish, 100 B, window 1000", "publish --size 100 --window 1000", "--mode pub --window 1000 --size 100"),
    queue_row("publish-1k", "publish, 1 KiB, window 1000", "publish --size 1024 --window 1000", "--mode pub --window 1000 --size 1024"),
    Row("publish-batch", "publish, 100 B in batches of 100", ("headrace",), {"headrace": f"queue publish --batch 100 {TIMES}"}),
    queue_row(
        "both",
        "publish + consume + ack, 100 B",
        "both --window 1000 --prefetch 1000",
        "--mode both --window 1000 --prefetch 1000 --e2e 5000 --size 100",
    ),
    queue_row("queues", "1,000 queues, one message to each in turn", "publish --queues 1000 --window 1000", "--mode pub --queues 1000 --window 1000"),
    Row(
        "backlog",
        "consume + ack from a backlog, 100 B, prefetch 1000",
        QUEUES,
        {"headrace": "queue consume --prefetch 1000 --count {backlog}"}
        | dict.fromkeys(("amqp", "nats", "redis"), "--mode drain --prefetch 1000 --count {backlog} --secs 40"),
        dict.fromkeys(("amqp", "nats", "redis"), "--mode pub --window 1000 --count {backlog} --secs 60"),
    ),
    queue_row("paced", "confirms paced at 1,000/s", "publish --rate 1000", "--mode pub --window 1000 --rate 1000", latency=True),
    Row("alone", "confirms one at a time (window 1)", ("headrace",), {"headrace": f"queue publish --window 1 {TIMES}"}, latency=True),
    Row(
        "flood",
        "paced 1,000/s beside a flood of 4 connections",
        ("headrace",),
        {"headrace": f"queue publish --rate 1000 --flood 4 {TIMES}"},
        latency=True,
    ),
    Row(
        "append",
        "stream append, 100 B in batches of 100",
        STREAMS,
        {
            "headrace": f"stream append {TIMES}",
            "stream": f"--mode pub --window 10000 --batch 100 --size 100 {TIMES}",
            "nats": f"--mode pub --retention limits --window 4000 --size 100 {TIMES}",
        },
    ),
    Row(
        "replay",
        "stream replay, 100 B",
        STREAMS[:3],
        {
            "headrace": "stream replay --count {records}",
            "stream": "--mode replay --count {records} --secs 40",
            "nats": "--mode replay --retention limits --count {records} --secs 40",
        },
        {
            "stream": "--mode pub --window 10000 --batch 100 --count {records} --secs 60",
            "nats": "--mode pub --retention limits --window 4000 --count {records} --secs 60",
        },
    ),
    # Memory first, as RabbitMQ runs on through the other rows of a round.
    mqtt_row("idle", "5,000 idle connections", "--mode idle --count {clients}", memory=True),
    mqtt_row("connects", "connects (clean session, then DISCONNECT)", "--mode connects"),
    mqtt_row("qos0", "QoS 0, 1 to 1, 100 B", "--subs 1 --credit 5000"),
    mqtt_row("qos1-publish", "QoS 1 publish, window 100", "--pub-qos 1 --window 100"),
    mqtt_row("qos1", "QoS 1 to QoS 1, window 100", "--subs 1 --pub-qos 1 --sub-qos 1 --window 100 --credit 500"),
    mqtt_row("fan-out", "QoS 0, 1 to 50: deliveries", "--subs 50 --credit 100"),
    mqtt_row("fan-in", "QoS 1, 200 to 1, window 10", "--pubs 200 --subs 1 --pub-qos 1 --window 10 --credit 2000"),
    mqtt_row("filters-10", "QoS 0 beside 10 wildcard filters", "--subs 10 --filters 1 --credit 1000"),
    mqtt_row("filters-many", "QoS 0 beside 10,000 wildcard filters", "--subs 10 --filters {filters} --credit 1000"),
    mqtt_row("paced", "QoS 1 to QoS 1, paced at 1,000/s", "--subs 1 --pub-qos 1 --sub-qos 1 --window 1000 --rate 1000", latency=True),
]
