"""What is done in a run: names, clients, how much of everything. Values only; ``sim.programs`` carries them out.

``draw`` gives each seed its own subset of the features, so that some runs do little but that often, and others mix what nobody would mix by hand.
``smaller`` says how a plan that fails may be made smaller.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from headrace.model.specs import QueueSpec, Spec, StreamSpec, check_queue, check_stream
from headrace.sim.chance import Chance

VERSION: Final = 1
DEAD: Final = "dead"


class Name(msgspec.Struct, frozen=True, omit_defaults=True):
    """A queue or a stream: one of the two is given."""

    name: str
    queue: QueueSpec | None = None
    stream: StreamSpec | None = None

    @property
    def spec(self) -> Spec:
        spec = self.queue if self.queue is not None else self.stream
        assert spec is not None
        return spec


class Client(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One program on a machine of its own. Fields that its kind does not use are ignored. Chances lie in 0..1, times are milliseconds."""

    kind: str
    """publisher, consumer, puller, reader or admin."""
    name: str
    """What it works on."""
    operations: int = 10
    """Bursts posted; messages or records handled; verbs asked for."""
    begin_ms: int = 0
    pause_ms: int = 0
    """Between bursts, takes, verbs: up to twice that."""
    heartbeat_ms: int = 10_000

    # publishers
    batch: int = 1
    """Messages of a burst, at most."""
    awaited: bool = False
    """One message at a time, each awaited."""
    level: str = "queue"
    idempotent: bool = True
    compression: str = "none"
    confirm_timeout_ms: int = 5_000
    in_flight_max: int = 10_000
    keys: int = 0
    """Size of the key space, 0 = no keys."""
    bytes_max: int = 40
    delay: float = 0.0
    delay_ms: int = 0
    ttl: float = 0.0
    ttl_ms: int = 0
    priorities: int = 0
    tombstones: float = 0.0
    hasty: bool = False
    """Leaves without waiting for its confirms."""

    # consumers and pullers
    rounds: int = 1
    """How often it comes, each time with a new subscription."""
    prefetch: int = 100
    prefetch_bytes: int = 0
    """0 = the client's own."""
    auto_ack: bool = False
    auto_extend: bool = False
    lease_ms: int = 0
    filter: str = ""
    cohort: str = ""
    member: str = ""
    confirmed: float = 0.0
    """How often a settlement's answer is waited for."""
    retry: float = 0.0
    retry_delay_ms: int = -1
    """-1 = the queue's back-off."""
    reject: float = 0.0
    drop: float = 0.0
    extend: float = 0.0
    """Kept: its lease is extended after ``extend_ms``, and it is acked after as long again."""
    extend_ms: int = 0
    late: float = 0.0
    """Settled only after ``late_ms``."""
    late_ms: int = 0
    forget: float = 0.0
    """Never settled."""
    abandon: float = 0.0
    """How often a round ends with the connection cut, not closed."""

    # readers
    start: str = "earliest"
    cursor: str = ""
    group: str = ""
    explicit: bool = False
    singly: bool = False
    """With ``explicit``: records are acked one by one, out of order, and some never."""

    # admin
    verbs: tuple[str, ...] = ()
    probes: bool = False
    """Comes as a consumer to a queue that it has paused."""
    impatient: float = 0.0
    """How often the connection breaks while a verb is under way, which is then asked for again on the next one."""


class Plan(msgspec.Struct, frozen=True):
    """Everything that is done. As JSON and back it is the same."""

    names: tuple[Name, ...]
    clients: tuple[Client, ...]
    seconds: float = 4.0
    """Programs begin nothing more after so long."""
    version: int = VERSION

    def spec(self, name: str) -> Spec:
        return next(n.spec for n in self.names if n.name == name)


# ---------------------------------------------------------------- drawing


def draw(chance: Chance, wants: Sequence[str] = ()) -> Plan:
    """A plan of about 2,000 to 5,000 callbacks of the loop. ``wants``: features that it is to have in any case."""
    features = _Features(chance.fork("features"), wants)
    names: list[Name] = []
    clients: list[Client] = []
    seconds = features.chance.between(1.0, 5.0)
    if features("steady groups", 0.04):
        seconds = max(seconds, 4.0)
    queues = features.chance.pick([(1.0, 0), (6.0, 1), (2.0, 2)])
    streams = features.chance.pick([(3.0, 0), (3.0, 1), (1.0, 2)]) if queues else features.chance.randint(1, 2)
    if not streams and (features("speculative readers", 0.04) or features("steady groups", 0.04)):
        streams = 1
    for number in range(queues):
        spec = _queue(features, chance.fork(f"queue {number}"))
        names.append(Name(f"q{number}", queue=spec))
        clients += _queue_clients(features, chance.fork(f"clients of queue {number}"), f"q{number}", spec, seconds)
    if any(n.queue is not None and n.queue.dead_letter for n in names):
        room = chance.fork("room for the dead").randint(2, 20) if features("little room for the dead", 0.25) else 0
        names.append(Name(DEAD, queue=QueueSpec(lease_ms=1000, max_messages=room)))
        if features("read dead letters", 0.5):
            clients.append(Client(kind="consumer", name=DEAD, operations=60, begin_ms=100, confirmed=0.5))
    if features("late consumers", 0.06):
        clients = [_late(client, seconds) for client in clients]
    for number in range(streams):
        stream = _stream(features, chance.fork(f"stream {number}"))
        names.append(Name(f"s{number}", stream=stream))
        clients += _stream_clients(features, chance.fork(f"clients of stream {number}"), f"s{number}", seconds)
        if features("overseers", 0.06):
            looks = 40
            clients.append(
                Client(kind="admin", name=f"s{number}", operations=looks, pause_ms=int(seconds * 900 / looks), verbs=("describe",) * looks)
            )
    if features("impatient operators", 0.1):
        clients = [replace(client, impatient=0.5) if client.kind == "admin" else client for client in clients]
    return Plan(tuple(names), tuple(clients), seconds)


def _late(client: Client, seconds: float) -> Client:
    """Who takes messages comes when all are there."""
    if client.kind == "publisher":
        return replace(client, pause_ms=client.pause_ms // 3)
    return replace(client, begin_ms=int(seconds * 600)) if client.kind in ("consumer", "puller") else client


class _Features:
    """Which features this seed has: each is drawn once, when first asked for."""

    def __init__(self, chance: Chance, wants: Sequence[str]) -> None:
        self.chance = chance
        self._drawn: dict[str, bool] = dict.fromkeys(wants, True)

    def __call__(self, name: str, probability: float) -> bool:
        if name not in self._drawn:
            self._drawn[name] = self.chance.fork(name).happens(probability)
        return self._drawn[name]


def _queue(has: _Features, chance: Chance) -> QueueSpec:
    changes: dict[str, Any] = {"lease_ms": int(chance.between(150, 3000)), "partitions": chance.pick([(5.0, 1), (2.0, 2), (1.0, 3)])}
    if has("dead letters", 0.4):
        changes["dead_letter"] = DEAD
    if has("max deliveries", 0.35):
        changes["max_deliveries"] = chance.randint(1, 5)
    if has("back-off", 0.3):
        changes["backoff_ms"] = tuple(int(chance.between(1, 800)) for _ in range(chance.randint(1, 3)))
    if has("ttl of the queue", 0.15):
        changes["ttl_ms"] = int(chance.between(100, 4000))
    if has("max age", 0.08):
        changes["max_age_ms"] = int(chance.between(300, 6000))
    if has("limits", 0.25):
        changes["max_messages" if chance.happens(0.8) else "max_bytes"] = int(chance.between(3, 100))
        changes["overflow"] = chance.pick([(1.0, "refuse"), (1.0, "drop_oldest"), (1.0, "dead_letter_oldest")])
        if changes["overflow"] == "dead_letter_oldest":
            changes["dead_letter"] = DEAD
    if has("order by key", 0.25):
        changes["ordered_by_key"] = True
    spec = QueueSpec(**changes)
    check_queue(spec)
    return spec


def _queue_clients(has: _Features, chance: Chance, name: str, spec: QueueSpec, seconds: float) -> list[Client]:
    clients = [_publisher(has, chance.fork(f"publisher {i}"), name, seconds, stream=False) for i in range(chance.randint(1, 2))]
    cohort = has("cohorts", 0.25)
    for i in range(chance.randint(2, 3) if cohort else chance.randint(1, 3)):
        clients.append(_consumer(has, chance.fork(f"consumer {i}"), name, spec, cohort="team" if cohort else "", auto_ack=i == 0))
    if has("repartitions", 0.08):
        count = chance.fork("repartitions").randint(1, 3)
        begin_ms = int(chance.fork("first repartition").between(50, seconds * 400))
        clients.append(
            Client(kind="admin", name=name, operations=count, begin_ms=begin_ms, pause_ms=int(seconds * 300 / count), verbs=("repartition",) * count)
        )
    if not cohort and has("pull", 0.3):
        clients.append(_puller(has, chance.fork("puller"), name))
    if has("administration", 0.4):
        verbs = ["describe", "inspect"]
        verbs += [verb for verb in ("purge", "purge_leased", "alter", "move", "redrive", "recreate") if has(f"verb {verb}", 0.2)]
        verbs += ["pause"] * 3 if has("verb pause", 0.3) else []
        count, probes = chance.randint(1, 6), False
        if has("pausing operators", 0.1):
            verbs, count = ["pause"], 8
            probes = not cohort
        clients.append(
            Client(
                kind="admin", name=name, operations=count, begin_ms=chance.randint(0, 1000), pause_ms=int(seconds * 500 / count),
                verbs=tuple(chance.choice(verbs) for _ in range(count)), probes=probes,
            )
        )  # fmt: skip
    return clients


def _publisher(has: _Features, chance: Chance, name: str, seconds: float, *, stream: bool) -> Client:
    bursts = int(chance.between(3, 30))
    options: dict[str, Any] = {
        "operations": bursts, "batch": int(chance.between(1, 25)), "begin_ms": chance.randint(0, 200), "pause_ms": int(seconds * 700 / bursts),
        "awaited": chance.happens(0.15), "bytes_max": int(chance.between(20, 1500)),
    }  # fmt: skip
    if has("much data", 0.08):
        options |= {"bytes_max": 1500, "batch": max(12, options["batch"])}
    if has("plain publishers", 0.15):
        options["idempotent"] = chance.happens(0.5)
    if has("levels", 0.25):
        options["level"] = chance.pick([(3.0, "queue"), (1.0, "accepted"), (1.0, "none"), (1.0, "local")])
    if has("compression", 0.2):
        options["compression"] = chance.choice(["gzip", "snappy", "lz4", "zstd"])
    if has("short confirm timeout", 0.15):
        options["confirm_timeout_ms"] = int(chance.between(50, 2000))
    if has("small windows", 0.15):
        options["in_flight_max"] = chance.randint(1, 20)
    if has("keys", 0.5) or has("order by key", 0.25) or has("compaction", 0.2) or has("repartitions", 0.08):
        options["keys"] = chance.randint(1, 8)
    if has("hasty publishers", 0.1):
        options["hasty"] = chance.happens(0.5)
    if has("short heartbeats", 0.2):
        options["heartbeat_ms"] = 500
    if stream:
        if has("compaction", 0.2):
            options["tombstones"] = 0.1
            if chance.happens(0.3):
                options |= {"operations": 6, "batch": 400, "bytes_max": 20, "pause_ms": 100}
    else:
        if has("delay", 0.25):
            options |= {"delay": 0.3, "delay_ms": int(chance.between(5, 2000))}
        if has("ttl", 0.2):
            options |= {"ttl": 0.3, "ttl_ms": int(chance.between(50, 3000))}
        if has("priorities", 0.25):
            options["priorities"] = 3
    return Client(kind="publisher", name=name, **options)


def _consumer(has: _Features, chance: Chance, name: str, spec: QueueSpec, *, cohort: str, auto_ack: bool) -> Client:
    options: dict[str, Any] = {
        "operations": int(chance.between(5, 150)), "begin_ms": chance.randint(0, 600), "pause_ms": int(chance.between(1, 60)),
        "prefetch": int(chance.between(1, 100)), "rounds": chance.pick([(3.0, 1), (1.0, 2), (1.0, 3)]), "cohort": cohort,
        "confirmed": chance.choice([0.0, 0.3, 1.0]),
    }  # fmt: skip
    if cohort and chance.happens(0.4):
        options["member"] = f"m{chance.randint(0, 3)}"
    if has("slow consumers", 0.15):
        options["pause_ms"] = int(chance.between(50, 600))
    if has("retry", 0.5):
        options |= {"retry": chance.choice([0.05, 0.3]), "retry_delay_ms": chance.choice([-1, -1, 0, 20, 300])}
    if has("reject", 0.3):
        options["reject"] = 0.1
    if has("drop", 0.1):
        options["drop"] = 0.05
    if has("extend", 0.2):
        options["extend"] = 0.15
    if has("late settlements", 0.25):
        options |= {"late": 0.2, "late_ms": int(spec.lease_ms * chance.between(0.5, 2.0))}
    if has("always late", 0.05):
        options |= {"late": 0.7, "late_ms": int(spec.lease_ms * chance.between(1.1, 1.6))}
    if has("confirmed settlements", 0.15):
        options["confirmed"] = 1.0
    if has("forgotten messages", 0.2):
        options["forget"] = 0.05
    if has("abandoned connections", 0.2):
        options["abandon"] = 0.4
    if has("leases of a subscription", 0.2):
        options["lease_ms"] = int(chance.between(100, 2000))
    if "extend" in options:
        options["extend_ms"] = int((options.get("lease_ms") or spec.lease_ms) * chance.between(0.3, 0.9))
    if has("automatic extension", 0.15):
        options["auto_extend"] = chance.happens(0.5)
    if has("filters", 0.2) and not cohort:
        options["filter"] = chance.choice(["kind = a", "kind = b", "not exists kind", ""])
    if has("small windows in bytes", 0.2):
        options["prefetch_bytes"] = int(chance.between(100, 5000))
    if auto_ack and has("auto-ack", 0.12):
        options["auto_ack"] = True
    if has("short heartbeats", 0.2):
        options["heartbeat_ms"] = 500
    return Client(kind="consumer", name=name, **options)


def _puller(has: _Features, chance: Chance, name: str) -> Client:
    return Client(
        kind="puller", name=name, operations=int(chance.between(5, 60)), begin_ms=chance.randint(0, 600), pause_ms=int(chance.between(1, 100)),
        prefetch=chance.randint(1, 20), confirmed=chance.choice([0.0, 1.0]), retry=0.1 if has("retry", 0.5) else 0.0,
    )  # fmt: skip


def _stream(has: _Features, chance: Chance) -> StreamSpec:
    changes: dict[str, Any] = {
        "partitions": chance.pick([(3.0, 1), (1.0, 2), (1.0, 3)]),
        "tier": chance.pick([(3.0, "durable"), (2.0, "speculative"), (1.0, "ephemeral")]) if has("tiers", 0.5) else "durable",
    }
    if has("speculative readers", 0.04):
        changes["tier"] = "speculative"
    if has("retention", 0.2):
        kind = chance.choice(["retention_records", "retention_bytes", "retention_ms"])
        changes[kind] = int(chance.between(20, 4000))
    if has("compaction", 0.2) and changes["tier"] != "ephemeral":
        changes |= {"compaction": True, "tombstone_ms": int(chance.between(1, 3000))}
    spec = StreamSpec(**changes)
    check_stream(spec)
    return spec


def _stream_clients(has: _Features, chance: Chance, name: str, seconds: float) -> list[Client]:
    clients = [_publisher(has, chance.fork(f"publisher {i}"), name, seconds, stream=True) for i in range(chance.randint(1, 2))]
    steady = has("steady groups", 0.04)
    group = steady or has("groups of readers", 0.2)
    for i in range(chance.randint(2, 3) if steady else chance.randint(1, 3) if group else chance.randint(1, 2)):
        draw = chance.fork(f"reader {i}")
        options: dict[str, Any] = {
            "operations": int(draw.between(10, 200)), "begin_ms": draw.randint(0, 800), "pause_ms": int(draw.between(1, 60)),
            "prefetch": int(draw.between(1, 1000)), "rounds": draw.randint(1, 3), "confirmed": draw.choice([0.0, 0.5]),
            "start": draw.choice(["earliest", "earliest", "latest", "last:5"]),
        }  # fmt: skip
        if group:
            options |= {"group": "readers", "start": "", "explicit": has("acks one by one", 0.3) or draw.happens(0.5)}
        elif has("cursors", 0.6) and draw.happens(0.7):
            options |= {"cursor": f"c{i}", "start": "", "explicit": has("acks one by one", 0.3) or draw.happens(0.5)}
        if options.get("explicit") and has("acks one by one", 0.3):
            options |= {"singly": True, "rounds": 3, "operations": int(draw.between(10, 60))}
        if has("filters", 0.2) and draw.happens(0.5):
            options["filter"] = "kind = a"
        if has("speculative readers", 0.04):
            options |= {
                "cursor": "", "group": "", "explicit": False, "singly": False, "start": "earliest", "rounds": 1, "operations": 1_000_000,
                "begin_ms": 0, "pause_ms": min(options["pause_ms"], 10),
            }  # fmt: skip
        elif steady:
            options |= {"rounds": 1, "operations": 1_000_000, "singly": False}
        if has("small windows in bytes", 0.2):
            options["prefetch_bytes"] = int(draw.between(100, 5000))
        clients.append(Client(kind="reader", name=name, **options))
    if has("administration", 0.4):
        verbs = ["describe", "cursors"]
        verbs += [verb for verb in ("set_cursor", "alter_stream", "recreate") if has(f"verb {verb}", 0.2)]
        verbs += ["trim"] * 2 if has("verb trim", 0.3) else []
        count = chance.randint(1, 4)
        clients.append(
            Client(
                kind="admin", name=name, operations=count, begin_ms=chance.randint(0, 1000), pause_ms=int(seconds * 500 / count),
                verbs=tuple(chance.choice(verbs) for _ in range(count)),
            )
        )  # fmt: skip
    return clients


# ---------------------------------------------------------------- making smaller


def smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with less in them, the boldest first. Each is valid: who uses a name keeps it."""
    clients = plan.clients
    if len(clients) > 2:
        half = len(clients) // 2
        yield from _valid(plan, clients[:half])
        yield from _valid(plan, clients[half:])
    for i in range(len(clients)):
        yield from _valid(plan, clients[:i] + clients[i + 1 :])
    for divisor in (4, 2):
        if any(c.operations > 1 for c in clients):
            yield replace(plan, clients=tuple(_divided(c, divisor) for c in clients))
    for i, client in enumerate(clients):
        for changed in _simpler(client):
            yield replace(plan, clients=(*clients[:i], changed, *clients[i + 1 :]))
    for i, name in enumerate(plan.names):
        for changed_name in _plainer(name):
            yield replace(plan, names=(*plan.names[:i], changed_name, *plan.names[i + 1 :]))
    if plan.seconds > 1.0:
        yield replace(plan, seconds=plan.seconds / 2)


def _valid(plan: Plan, clients: tuple[Client, ...]) -> Iterator[Plan]:
    """With those clients, and only the names that they or other names' settings need."""
    if not clients:
        return
    needed = {c.name for c in clients}
    needed |= {n.queue.dead_letter for n in plan.names if n.queue is not None and n.name in needed}
    yield replace(plan, clients=clients, names=tuple(n for n in plan.names if n.name in needed))


def _divided(client: Client, divisor: int) -> Client:
    return replace(client, operations=max(1, client.operations // divisor), verbs=client.verbs[: max(1, len(client.verbs) // divisor)])


def _simpler(client: Client) -> Iterator[Client]:
    if client.operations > 1:
        yield _divided(client, 4)
        yield _divided(client, 2)
    if client.kind == "admin":
        for i in range(len(client.verbs)):
            if len(client.verbs) > 1:
                yield replace(client, verbs=client.verbs[:i] + client.verbs[i + 1 :], operations=len(client.verbs) - 1)
        return
    if client.batch > 1:
        yield replace(client, batch=max(1, client.batch // 4))
    plain = Client(kind=client.kind, name=client.name)
    for field in (
        "rounds", "awaited", "level", "idempotent", "compression", "confirm_timeout_ms", "in_flight_max", "keys", "bytes_max", "delay", "ttl",
        "priorities", "tombstones", "hasty", "auto_ack", "auto_extend", "lease_ms", "filter", "member", "confirmed", "retry", "reject", "drop",
        "extend", "late", "forget", "abandon", "heartbeat_ms", "begin_ms",
    ):  # fmt: skip
        if getattr(client, field) != getattr(plain, field):
            yield replace(client, **{field: getattr(plain, field)})


def _plainer(name: Name) -> Iterator[Name]:
    spec = name.spec
    sound: Callable[[Any], None] = check_queue if name.queue is not None else check_stream
    plain: Spec = QueueSpec() if name.queue is not None else StreamSpec()
    for field in spec.__struct_fields__:
        if field != "lease_ms" and getattr(spec, field) != getattr(plain, field):
            changed: Any = replace(spec, **{field: getattr(plain, field)})
            try:
                sound(changed)
            except Exception:
                continue
            yield replace(name, queue=changed) if name.queue is not None else replace(name, stream=changed)
