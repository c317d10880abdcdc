"""What clients do: one coroutine per kind of client of a plan, run on a machine of its own with the real client, everything it sees noted.

Owns no truth and checks nothing. A program ends when it has done what its plan says, when the time for that is over, or when it is told to stop; it
never fails for what a broker may answer. What it does not expect is noted as strange.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, cast

from msgspec.structs import replace

import headrace
from headrace.client.client import Client as Connected
from headrace.client.consumer import Consumer
from headrace.client.message import Message
from headrace.client.reader import Reader, Record
from headrace.model import limits
from headrace.model.errors import HeadraceError, NotFound, StaleSettle
from headrace.model.specs import QueueSpec, StreamSpec
from headrace.sim.chance import Chance
from headrace.sim.history import (
    DONE,
    ID_HEADER,
    MARK,
    REFUSED,
    STALE,
    UNKNOWN,
    Arrival,
    Attached,
    Commit,
    Delivery,
    Event,
    History,
    Link,
    Publish,
    Settle,
    id_of,
    value_of,
)
from headrace.sim.history import Read as ReadNote
from headrace.sim.loop import Machine
from headrace.sim.plan import DEAD, Client, Plan
from headrace.sim.world import World
from headrace.wire import control
from headrace.wire.frames import DeliverFlag

AUTO_ACK: Final = int(DeliverFlag.AUTO_ACK)
WAIT_S: Final = 3600.0
MARKS: Final = ("a", "b", "")


class Stage:
    """What all programs of a run share."""

    def __init__(self, world: World, urls: str, plan: Plan, history: History) -> None:
        self.world = world
        self.loop = world.loop
        self.url = urls
        self.plan = plan
        self.history = history
        self.declared = asyncio.Event()
        self.stopping = False
        self.until = 0.0
        """Nothing is begun after this time."""

    @property
    def over(self) -> bool:
        return self.stopping or self.loop.time() >= self.until

    async def connect(self, machine: Machine, client: Client) -> Connected:
        while True:
            try:
                made = await headrace.connect(
                    self.url, name=machine.name, wait=WAIT_S, heartbeat=client.heartbeat_ms / 1000, confirm_timeout=client.confirm_timeout_ms / 1000
                )
                break
            except HeadraceError:  # a broker that goes down for its disk says so to whoever says hello
                await asyncio.sleep(0.05)
        links, now = self.history.links, self.loop.time
        links.append(Link(now(), machine.name, True))
        made.on_connection(lambda up: links.append(Link(now(), machine.name, up)))
        return made


Program = Callable[["Stage", Machine, Client, Chance], Coroutine[Any, Any, None]]


# ---------------------------------------------------------------- publishing


async def publish(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Posts its bursts, then waits for what became of them (or not, if it is hasty)."""
    connected = await stage.connect(machine, client)
    number = int(machine.name.rsplit("-", 1)[1])
    publisher = connected.publisher(
        client.name, confirm=cast(Any, client.level), compression=cast(Any, client.compression), idempotent=client.idempotent,
        max_in_flight=client.in_flight_max,
    )  # fmt: skip
    for _ in range(client.operations):
        for _ in range(chance.randint(1, client.batch)):
            if stage.stopping or publisher.closed:
                break
            note, value, options = _message(stage.history, client, number, chance)
            try:
                if client.awaited:
                    note.set_result(await publisher.send(value, **options))
                    continue
                if publisher.full:
                    await publisher.room()
                publisher.post_to(note, value, **options)
            except HeadraceError as e:
                note.set_exception(e)
        if stage.over:
            break
        await asyncio.sleep(client.pause_ms * chance.random() / 500)
    if not client.hasty:
        await publisher.flush()
    await connected.close()


def _message(history: History, client: Client, number: int, chance: Chance) -> tuple[Publish, bytes | None, dict[str, Any]]:
    options: dict[str, Any] = {}
    key = f"k{chance.randrange(client.keys)}" if client.keys else None
    mark = chance.choice(MARKS)
    null = client.tombstones > 0 and key is not None and chance.happens(client.tombstones)
    delay_ms = client.delay_ms if chance.happens(client.delay) else 0
    ttl_ms = client.ttl_ms if chance.happens(client.ttl) else 0
    priority = chance.randrange(client.priorities) if client.priorities else 0
    nbytes = int(chance.between(20, max(21, client.bytes_max)))
    note = history.publish(
        client.name, number, order=1 if client.level == "none" else 0, level=client.level, key=key, mark=mark, delay_ms=delay_ms, ttl_ms=ttl_ms,
        priority=priority, idempotent=client.idempotent and client.level != "none", null=null, nbytes=nbytes,
    )  # fmt: skip
    if key is not None:
        options["key"] = key
    if delay_ms:
        options["delay"] = delay_ms / 1000
    if ttl_ms:
        options["ttl"] = ttl_ms / 1000
    if priority:
        options["priority"] = priority
    if mark or null:
        options["headers"] = ({MARK: mark} if mark else {}) | ({ID_HEADER: str(note.id)} if null else {})
    return note, None if null else value_of(note.id, nbytes), options


# ---------------------------------------------------------------- consuming


class Hand:
    """A consumer's hand: takes messages, settles them, notes both."""

    def __init__(self, stage: Stage, attached: Attached, consumer: Consumer, client: Client, chance: Chance) -> None:
        self.history = stage.history
        self.now = stage.loop.time
        self.attached = attached
        self.consumer = consumer
        self.client = client
        self.chance = chance
        self.late: list[tuple[float, Message, int]] = []
        self.taken = 0
        self.arrived = 0
        self._epochs: dict[tuple[int, int, int], int] = {}
        """Partition, offset, attempt: under which epoch it came."""
        consumer.delivered = self._arrived(consumer.delivered)  # type: ignore[method-assign]  # everything that reaches the client is noted

    def _arrived(self, deliver: Callable[..., None]) -> Callable[..., None]:
        arrivals, epochs, now, number, name = self.history.arrivals, self._epochs, self.now, self.attached.number, self.attached.name

        def delivered(partition: int, epoch: int, attempt: int, first: int, count: int, base: int, blob: bytes, flags: int) -> None:
            arrivals.append(Arrival(now(), number, name, partition, first, count, attempt, epoch, bool(flags & AUTO_ACK)))
            self.arrived += count
            for offset in range(first, first + count):
                epochs[partition, offset, attempt] = epoch
            deliver(partition, epoch, attempt, first, count, base, blob, flags)

        return delivered

    def take(self, message: Message) -> int:
        """Notes what was handed out, and says which message it is."""
        id = id_of(message)
        reason = origin = ""
        for name, text in message.raw_headers:
            if name == "headrace.reason":
                reason = text.decode()
            elif name == "headrace.origin":
                origin = text.decode()
        self.history.deliveries.append(
            Delivery(
                self.now(), self.attached.number, self.attached.name, message.partition, message.offset, message.attempt,
                self._epochs.get((message.partition, message.offset, message.attempt), 0), id, message.auto_acked, reason, origin,
            )
        )  # fmt: skip
        self.taken += 1
        return id

    def handle(self, message: Message) -> None:
        """Decides what becomes of a message."""
        id = self.take(message)
        if message.auto_acked:
            return
        client, chance = self.client, self.chance
        others = (
            (client.forget, "forget"), (client.late, "late"), (client.retry, "retry"), (client.reject, "reject"), (client.drop, "drop"),
            (client.extend, "extend"),
        )  # fmt: skip
        what = chance.pick([*others, (max(0.0, 1.0 - sum(share for share, _ in others)), "ack")])
        if what == "late":
            self.late.append((self.now() + client.late_ms / 1000, message, id))
        elif what == "extend":
            self.settle(message, id, "extend")
            self.late.append((self.now() + client.pause_ms / 500, message, id))
        elif what != "forget":
            self.settle(message, id, what)

    def settle(self, message: Message, id: int, action: str, *, confirmed: bool | None = None) -> None:
        client = self.client
        delay_ms = client.retry_delay_ms if action == "retry" else -1
        note = Settle(
            self.now(), self.attached.number, self.attached.name, message.partition, message.offset, message.attempt, id, action, delay_ms
        )
        self.history.settles.append(note)
        asked = self.chance.happens(client.confirmed) if confirmed is None else confirmed
        if action == "ack":
            answer = message.ack(confirmed=asked)
        elif action == "retry":
            answer = message.retry(None if delay_ms < 0 else delay_ms / 1000, confirmed=asked)
        elif action == "extend":
            answer, asked = message.extend(), True
        else:
            answer = message.reject(drop=action == "drop", confirmed=asked)
        if asked:
            _noted(note, answer, self.now)

    def settle_late(self, everything: bool = False) -> float:
        """Settles what is due and says when the next is (0 = nothing waits)."""
        now, waiting = self.now(), []
        for due, message, id in self.late:
            if everything or due <= now:
                self.settle(message, id, "ack", confirmed=True)
            else:
                waiting.append((due, message, id))
        self.late = waiting
        return min((due for due, _, _ in waiting), default=0.0)


def _noted(note: Settle | Commit, answer: Awaitable[None], now: Callable[[], float]) -> None:
    """Has the answer of a settlement noted when it comes."""

    def answered(future: "asyncio.Future[None]") -> None:
        note.told_at = now()
        error = None if future.cancelled() else future.exception()
        note.result = UNKNOWN if future.cancelled() else DONE if error is None else STALE if isinstance(error, StaleSettle) else UNKNOWN

    cast("asyncio.Future[None]", answer).add_done_callback(answered)


async def consume(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Comes for its rounds; in each it takes messages until it had its share."""
    connected = await stage.connect(machine, client)
    for number in range(client.rounds):
        if stage.over:
            break
        attached = stage.history.attach(machine.name, "consumer", client.name)
        consumer = connected.consume(
            client.name, prefetch=client.prefetch, auto_ack=client.auto_ack, lease=client.lease_ms / 1000 if client.lease_ms else None,
            filter=client.filter or None, cohort=client.cohort, member=client.member, auto_extend=client.auto_extend,
            prefetch_bytes=client.prefetch_bytes or limits.PREFETCH_BYTES,
        )  # fmt: skip
        attached.lease_ms, attached.auto_ack, attached.filter, attached.group = client.lease_ms, client.auto_ack, client.filter, client.cohort
        hand = Hand(stage, attached, consumer, client, chance)
        try:
            await consumer.start()
            await _take(stage, consumer, hand, client, client.operations // client.rounds + 1)
        except HeadraceError:
            attached.how = "ended"  # deleted, taken by a cohort, quarantined
        attached.leaving = stage.loop.time()
        if chance.happens(client.abandon):
            stage.world.network.break_connections(machine.name)
            await asyncio.sleep(0.01)
            attached.how, attached.until = "abandoned", stage.loop.time()
            await connected.close()
            if number + 1 == client.rounds or stage.over:
                return
            connected = await stage.connect(machine, client)
            continue
        await consumer.close()
        attached.how, attached.until = attached.how or "left", stage.loop.time()
        await asyncio.sleep(client.pause_ms / 1000)
    await connected.close()


async def _take(stage: Stage, consumer: Consumer, hand: Hand, client: Client, share: int) -> None:
    try:
        async with asyncio.timeout_at(stage.until):
            while hand.taken < share and not stage.stopping:
                due = hand.settle_late()
                if due:
                    try:
                        async with asyncio.timeout_at(due):
                            hand.handle(await consumer.__anext__())
                    except TimeoutError:
                        continue
                else:
                    hand.handle(await consumer.__anext__())
                while hand.taken < share and (message := consumer.next_ready()) is not None:
                    hand.handle(message)
                await asyncio.sleep(client.pause_ms * hand.chance.random() / 500)
    except (TimeoutError, StopAsyncIteration):
        pass
    while hand.late and not stage.stopping:  # noqa: ASYNC110 - waits for times, not for others
        await asyncio.sleep(max(0.0, hand.settle_late() - stage.loop.time()))
    hand.settle_late(everything=True)


async def pull(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Asks for a few messages at a time."""
    connected = await stage.connect(machine, client)
    attached = stage.history.attach(machine.name, "puller", client.name)
    consumer = connected.consume(client.name, pull=True)
    hand = Hand(stage, attached, consumer, client, chance)
    try:
        await consumer.start()
        while hand.taken < client.operations and not stage.over:
            wanted, before, since = chance.randint(1, client.prefetch), hand.arrived, stage.loop.time()
            for message in await consumer.fetch(wanted, wait_ms=client.pause_ms):
                hand.handle(message)
            broken = any(link.client == machine.name and link.at >= since for link in stage.history.links)
            if hand.arrived - before > wanted and not broken:
                stage.history.odd(client.name, f"a pull for {wanted} messages was sent {hand.arrived - before}")
            await asyncio.sleep(client.pause_ms * chance.random() / 500)
        hand.settle_late(everything=True)
    except HeadraceError:
        attached.how = "ended"
    attached.leaving = stage.loop.time()
    await consumer.close()
    attached.how, attached.until = attached.how or "left", stage.loop.time()
    await connected.close()


# ---------------------------------------------------------------- reading


def told(stage: Stage, attached: Attached) -> Callable[[control.Event], None]:
    """What a reader is told goes into the history."""
    events, now = stage.history.events, stage.loop.time

    def hear(event: control.Event) -> None:
        if isinstance(event, control.Retracted):
            events.append(Event(now(), attached.number, attached.name, "retracted", event.partition, event.from_offset))
        elif isinstance(event, control.CursorMoved):
            events.append(Event(now(), attached.number, attached.name, "moved", event.partition, event.to_offset))
        elif isinstance(event, control.Assigned):
            for partition in event.revoked:
                events.append(Event(now(), attached.number, attached.name, "revoked", partition, -1))
            for partition, offset in sorted(event.starts.items()):
                events.append(Event(now(), attached.number, attached.name, "assigned", partition, offset))

    return hear


def note_read(stage: Stage, attached: Attached, record: Record) -> int:
    id = id_of(record)
    stage.history.reads.append(
        ReadNote(stage.loop.time(), attached.number, attached.name, record.partition, record.offset, record.epoch, id, record.speculative)
    )
    return id


async def read(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Reads for its rounds; with a cursor each goes on where the last one stopped."""
    connected = await stage.connect(machine, client)
    for _ in range(client.rounds):
        if stage.over:
            break
        attached = stage.history.attach(machine.name, "reader", client.name)
        attached.cursor, attached.filter, attached.start, attached.group = client.cursor or client.group, client.filter, client.start, client.group
        reader = connected.read(
            client.name, start=client.start, cursor=client.cursor, group=client.group, commit="explicit" if client.explicit else "auto",
            prefetch=client.prefetch, filter=client.filter or None, on_event=told(stage, attached),
            prefetch_bytes=client.prefetch_bytes or limits.PREFETCH_BYTES,
        )  # fmt: skip
        try:
            await reader.start()
            await _follow(stage, attached, reader, client, chance)
        except HeadraceError:
            attached.how = "ended"  # deleted, fenced by another reader of its cursor, quarantined
        attached.leaving = stage.loop.time()
        await reader.close()
        attached.how, attached.until = attached.how or "left", stage.loop.time()
        await asyncio.sleep(client.pause_ms / 1000)
    await connected.close()


async def _follow(stage: Stage, attached: Attached, reader: Reader, client: Client, chance: Chance) -> None:
    count, share = 0, client.operations // client.rounds + 1
    try:
        async with asyncio.timeout_at(stage.until):
            while count < share and not stage.stopping:
                record: Record | None = await reader.__anext__()
                while record is not None:
                    note_read(stage, attached, record)
                    count += 1
                    if client.explicit and chance.happens(0.3):
                        _commit(stage, attached, record, confirmed=chance.happens(client.confirmed))
                    record = reader.next_ready() if count < share else None
                await asyncio.sleep(client.pause_ms * chance.random() / 500)
    except (TimeoutError, StopAsyncIteration):
        pass


def _commit(stage: Stage, attached: Attached, record: Record, *, confirmed: bool) -> None:
    note = Commit(stage.loop.time(), attached.number, attached.name, attached.cursor, record.partition, record.offset)
    stage.history.commits.append(note)
    answer = record.commit(confirmed=confirmed)
    if confirmed:
        _noted(note, answer, stage.loop.time)


# ---------------------------------------------------------------- operating


async def administer(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Asks for one verb after the other."""
    connected = await stage.connect(machine, client)
    for verb in client.verbs[: client.operations]:
        if stage.over:
            break
        await ask(stage, connected, client, verb, chance)
        await asyncio.sleep(client.pause_ms * chance.random() / 500)
    await connected.close()


async def ask(stage: Stage, connected: Connected, client: Client, verb: str, chance: Chance) -> None:
    """One verb and its outcome."""
    history, name = stage.history, client.name
    others = [n.name for n in stage.plan.names if n.queue is not None and n.name != name]
    target = chance.choice(others) if others else ""
    if verb == "move" and not target:
        return
    note = history.verb(verb, name, target if verb == "move" else None)
    try:
        if verb in ("purge", "purge_leased"):
            note.count = await connected.purge(name, leased=verb == "purge_leased")
        elif verb == "pause":
            await connected.pause(name)
            begun = stage.loop.time()
            await asyncio.sleep(client.pause_ms * chance.random() / 1000)
            note.rows = (begun, stage.loop.time())
            await connected.resume(name)
        elif verb == "move":
            note.rows = (await connected.move(name, target, limit=chance.choice([0, 3]))).id
        elif verb == "redrive":
            # out of the dead letters, if there are any, and back to where they came from
            dead = DEAD if DEAD in others else name
            note.name, note.what = dead, ""
            note.rows = (await connected.redrive(dead)).id
        elif verb == "alter":
            await _alter(stage, connected, name, note, chance)
        elif verb == "alter_stream":
            changes = {"retention_records": int(chance.between(20, 2000))}
            note.what = changes
            history.declared(name, cast(StreamSpec, _with(stage, name, changes)))
            await connected.alter_stream(name, **changes)
        elif verb == "recreate":
            await _recreate(stage, connected, name)
        elif verb == "trim":
            await connected.trim(name, before_ms=machine_ms(stage) - chance.randint(0, 2000))
        elif verb == "set_cursor":
            note.what = chance.choice(["c0", "c1", "readers"])
            await connected.set_cursor(name, note.what, chance.choice(["earliest", "latest"]))
        elif verb == "cursors":
            note.rows = await connected.cursors(name)
        elif verb == "inspect":
            note.rows = await connected.inspect(name, state="any", limit=20)
        else:
            note.rows = (await connected.describe(name)).partitions
        note.outcome = DONE
    except HeadraceError as e:
        note.outcome = REFUSED if e.definite else UNKNOWN
        if verb == "pause":
            note.outcome = UNKNOWN
    note.told_at = stage.loop.time()


def machine_ms(stage: Stage) -> int:
    return stage.loop.ambient.wall_ns() // 1_000_000


def _with(stage: Stage, name: str, changes: dict[str, Any]) -> QueueSpec | StreamSpec:
    return replace(stage.history.specs[name][-1][1], **changes)


async def _alter(stage: Stage, connected: Connected, name: str, note: Any, chance: Chance) -> None:
    changes: dict[str, Any] = chance.choice(
        [{"lease_ms": int(chance.between(150, 3000))}, {"max_deliveries": chance.randint(0, 6)}, {"backoff_ms": [20]}, {"max_messages": 500}]
    )
    note.what = changes
    held = {field: tuple(value) if isinstance(value, list) else value for field, value in changes.items()}
    stage.history.declared(name, cast(QueueSpec, _with(stage, name, held)))
    await connected.alter_queue(name, **changes)


async def _recreate(stage: Stage, connected: Connected, name: str) -> None:
    try:
        await connected.delete(name)
    finally:
        await declare(stage, connected, name)


async def declare(stage: Stage, connected: Connected, name: str) -> None:
    """Declares a name of the plan, however long that takes."""
    spec = stage.plan.spec(name)
    while not stage.stopping:
        try:
            if isinstance(spec, QueueSpec):
                await connected.declare_queue(name, spec)
            else:
                await connected.declare_stream(name, spec)
            return
        except NotFound:
            pass
        except HeadraceError as e:
            if e.definite and not e.retriable:
                return
        await asyncio.sleep(0.1)


PROGRAMS: Final[dict[str, Program]] = {"publisher": publish, "consumer": consume, "puller": pull, "reader": read, "admin": administer}
