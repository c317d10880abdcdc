"""The clients of a run from beginning to end: names declared, programs started, and after the faults everything brought to rest.

Owns the tasks of all client machines. Phase 1 is what the plan says; phase 2 (``finish``) is what must succeed once everything is healed: publishers
are told what became of their messages, queues are emptied, streams are read from start to end. Decides nothing about what was seen (``sim.checks``).

I16 phase 2 ends within bounded virtual time, else it raises ``Stalled`` and says what did not get on.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from headrace.broker.outbox import Outbox
from headrace.broker.partition import Partition
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.client.client import Client as Connected
from headrace.client.consumer import Consumer
from headrace.model.errors import Conflict, HeadraceError
from headrace.model.specs import QueueSpec
from headrace.sim.chance import Chance
from headrace.sim.history import UNSEEN, History, Leased, value_of
from headrace.sim.loop import Machine
from headrace.sim.plan import Client, Name, Plan, draw, smaller
from headrace.sim.programs import PROGRAMS, Hand, Stage, declare, note_read, told
from headrace.sim.world import SimBroker, World

__all__ = ["Client", "Name", "Plan", "Stalled", "Workload", "draw", "smaller"]

PROGRAMS_S: Final = 60.0
"""Once all is healed programs end within this: confirm timeouts, requests and closing have bounds of their own."""
DRAIN_S: Final = 60.0
"""Beyond the longest lease, delay, back-off and grace, queues are empty within this."""
READ_S: Final = 30.0
MARK_S: Final = 1.0
"""A reader that waits so long for its mark asks whether retention has taken it."""
QUIET_S: Final = 0.1
SETTLER: Final = "drain"


class Stalled(RuntimeError):
    """Healed, and yet something does not get on (I16)."""


class Workload:
    """See the module's head."""

    def __init__(self, world: World, brokers: Sequence[SimBroker], plan: Plan, history: History, chance: Chance) -> None:
        self.world = world
        self.brokers = brokers
        self.plan = plan
        self.history = history
        self.chance = chance
        history.now = world.loop.time
        history.broker_life = lambda: sum(broker.incarnation for broker in brokers)
        history.watermark, history.keeps, history.leased = self._watermark, self._keeps, self._leased
        self.stage = Stage(world, "headrace://" + ",".join(broker.url.removeprefix("headrace://") for broker in brokers), plan, history)
        self._programs: list[tuple[Machine, asyncio.Task[None]]] = []
        self._began = False

    def _loaded(self, name: str, number: int) -> Partition | None:
        """A partition as its broker has it in memory."""
        for broker in self.brokers:
            if broker.running is not None and broker.serving:
                live = broker.running.broker
                item = live.catalogue.find(name)
                found = live.partitions.get(item.partitions[number]) if item is not None and number < len(item.partitions) else None
                return found if found is not None and not found.quarantined else None
        return None

    def _watermark(self, name: str, partition: int) -> int:
        found = self._loaded(name, partition)
        return UNSEEN if found is None else found.high_watermark

    def _keeps(self, name: str, partition: int, epoch: int) -> bool:
        found = self._loaded(name, partition)
        if found is None or not found.broker.durable:
            return True
        return epoch < found.epoch or (epoch == found.epoch and (found.epoch_kept or not found.active))

    def _leased(self, name: str, partition: int, offset: int) -> Leased | None:
        found = self._loaded(name, partition)
        if not isinstance(found, QueuePartition):
            return None
        for _, _, lease in found.machine._state.leases.pieces(offset, offset + 1):
            left_s = lease.deadline_ms / 1000 - found.broker.ambient.monotonic()
            return Leased(lease.attempt, found.epoch, self.world.loop.time() + left_s)
        return None

    # ------------------------------------------------------------ phase 1

    def start(self) -> None:
        """Spawns every program."""
        self._began = True
        self.stage.until = self.world.loop.time() + self.plan.seconds + 60.0  # until the names are declared
        self._spawn("setup-0", self._declare_all)
        for number, client in enumerate(self.plan.clients):
            self._spawn(f"{client.kind}-{number}", partial(self._run, client, number))

    def _spawn(self, name: str, work: Callable[[Machine], Coroutine[Any, Any, None]]) -> None:
        machine = self.world.machine(name)
        self._programs.append((machine, self.world.loop.spawn(machine, work(machine), name)))

    async def _declare_all(self, machine: Machine) -> None:
        connected = await self.stage.connect(machine, Client(kind="admin", name=""))
        for name in self.plan.names:
            self.history.declared(name.name, name.spec)
            await declare(self.stage, connected, name.name)
        self.stage.until = self.world.loop.time() + self.plan.seconds
        self.stage.declared.set()
        await connected.close()

    async def _run(self, client: Client, number: int, machine: Machine) -> None:
        await self.stage.declared.wait()
        await asyncio.sleep(client.begin_ms / 1000)
        await PROGRAMS[client.kind](self.stage, machine, client, self.chance.fork(f"program {number}"))

    @property
    def done(self) -> bool:
        """Whether all programs have ended (or their machines died)."""
        return self._began and all(task.done() or not machine.alive for machine, task in self._programs)

    # ------------------------------------------------------------ phase 2

    async def finish(self) -> None:
        """Brings everything to rest, with all brokers running and all faults healed."""
        stage, loop = self.stage, self.world.loop
        stage.stopping = True
        stage.until = loop.time()
        stage.declared.set()
        until = loop.time() + PROGRAMS_S
        while not self.done:
            if loop.time() > until:
                raise Stalled("I16: these clients do not end: " + ", ".join(m.name for m, task in self._programs if m.alive and not task.done()))
            await asyncio.sleep(QUIET_S)
        for machine, task in self._programs:
            if machine.alive and not task.cancelled() and task.exception() is not None:
                self.history.odd(machine.name, f"the program failed: {task.exception()!r}")
        machine = self.world.machine(SETTLER)
        bound = DRAIN_S + self._patience_s() + READ_S * (1 + len(self.plan.names))
        try:
            async with asyncio.timeout(bound):
                await loop.spawn(machine, self._settle(machine), SETTLER)
        except TimeoutError:
            raise Stalled(f"I16: {bound:.0f} s after all was healed queues are not empty or streams not read: {self.figures()}") from None
        self.history.finished = loop.time()

    async def _settle(self, machine: Machine) -> None:
        stage = self.stage
        stage.stopping = False
        connected = await stage.connect(machine, Client(kind="admin", name=""))
        for name in self.plan.names:
            if name.name not in self.history.specs:
                self.history.declared(name.name, name.spec)
            await declare(stage, connected, name.name)
        queues = [n.name for n in self.plan.names if n.queue is not None]
        for queue in queues:
            await self._resume(connected, queue)
        await self._empty(machine, connected, queues)
        for name in self.plan.names:
            if name.stream is not None:
                await self._read_all(connected, machine, name.name)
        await connected.close()
        await asyncio.sleep(QUIET_S)

    def _paused(self, queue: str) -> bool:
        found = [p for p in self._queue_partitions() if p.item.name == queue]
        return any(p.item.paused for p in found)

    @staticmethod
    async def _resume(connected: Connected, queue: str) -> None:
        """However often others are changing it."""
        while True:
            try:
                await connected.resume(queue)
                return
            except HeadraceError as e:
                if not e.retriable:
                    raise
            await asyncio.sleep(QUIET_S)

    # ------------------------------------------------------------ queues

    async def _empty(self, machine: Machine, connected: Connected, queues: list[str]) -> None:
        loop = self.world.loop
        until = loop.time() + DRAIN_S + self._patience_s()
        work = [asyncio.create_task(self._drain(machine, connected, queue, until)) for queue in queues]
        calm = 0
        while calm < 2:
            if loop.time() > until:
                raise Stalled("I16: queues do not become empty: " + self.figures())
            await asyncio.sleep(QUIET_S)
            for queue in queues:
                if self._paused(queue):  # by what was asked for and never answered: it may take effect late
                    await self._resume(connected, queue)
            calm = calm + 1 if self._empty_now(queues) and all(task.done() or task.get_name() == "attached" for task in work) else 0
        self.history.emptied = loop.time()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    async def _drain(self, machine: Machine, connected: Connected, queue: str, until: float) -> None:
        """Takes and acks everything until cancelled."""
        task = asyncio.current_task()
        assert task is not None
        client = Client(kind="consumer", name=queue, confirmed=1.0)
        prefetch = self.chance.fork(f"window {queue}").choice([8, 1000])
        while self.world.loop.time() < until:
            attached = self.history.attach(machine.name, "final", queue)
            consumer: Consumer = connected.consume(queue, prefetch=prefetch)
            hand = Hand(self.stage, attached, consumer, client, self.chance.fork(queue))
            try:
                await consumer.start()
                task.set_name("attached")
                try:
                    while True:
                        hand.handle(await consumer.__anext__())
                finally:
                    attached.leaving = self.world.loop.time()
                    await consumer.close()
                    attached.how, attached.until = "left", self.world.loop.time()
            except HeadraceError as e:
                task.set_name(f"{type(e).__name__}: {e}")  # a cohort whose members are away for their grace; a quarantined partition
                if queue in self._quarantined() and not isinstance(e, Conflict):
                    return
                await asyncio.sleep(QUIET_S)

    def _patience_s(self) -> float:
        """The longest anything may rightly be kept from being delivered."""
        longest = max((c.delay_ms + c.retry_delay_ms for c in self.plan.clients), default=0)
        for _, specs in sorted(self.history.specs.items()):
            for _, spec in specs:
                if isinstance(spec, QueueSpec):
                    longest = max(longest, spec.lease_ms + max(spec.backoff_ms, default=0))
        lease_ms = max((c.lease_ms for c in self.plan.clients), default=0)
        clock_ms = int(sum(abs(jump) for broker in self.brokers for jump in broker.jumps) * 1000)
        grace_ms = max(broker.config.connection.reconnect_grace_ms for broker in self.brokers)
        return 2 * (longest + lease_ms + clock_ms + grace_ms) / 1000

    def _queue_partitions(self) -> list[QueuePartition]:
        found = []
        for broker in self.brokers:
            if broker.running is not None:
                found += [p for p in broker.running.broker.partitions.values() if isinstance(p, QueuePartition) and not p.quarantined]
        return found

    def _quarantined(self) -> set[str]:
        found: set[str] = set()
        for broker in self.brokers:
            if broker.running is not None:
                found |= {p.item.name for p in broker.running.broker.partitions.values() if p.quarantined}
        return found

    def _empty_now(self, queues: list[str]) -> bool:
        stuck = self._quarantined()  # what dies waits for a target that is isolated
        for partition in self._queue_partitions():
            machine = partition.machine
            waits = machine.held_count if partition.item.name in stuck else 0  # for what is behind in a partition that is isolated
            held = machine.ready_count or machine.leased_count or machine.delayed_count > waits or partition.high_watermark != partition.next_offset
            held = held or (machine.holding.mask and partition.item.name not in stuck)
            if partition.item.name in queues and (held or any(t.target not in stuck for t in machine.pending_transfers())):
                return False
        return not any(self._works(broker.running.broker.outbox, stuck) for broker in self.brokers if broker.running is not None)

    @staticmethod
    def _works(outbox: Outbox, stuck: set[str]) -> bool:
        """Whether a job runs but those whose transfer waits for an isolated target, or that wait for an isolated source."""
        waiting = sum("cannot be moved now" in j.why and "is quarantined" in j.why for j in outbox._jobs.values() if j.state == "running")
        for pid, number in outbox._done:
            source = outbox.broker.partitions[pid]
            assert isinstance(source, QueuePartition)
            waiting += any(t.number == number and t.target in stuck for t in source.machine.pending_transfers())
        return len(outbox._tasks) > waiting

    def figures(self) -> str:
        """What the queues still hold."""
        rows = [f"{p.item.name}/{p.number} {p.machine.view()}" for p in self._queue_partitions() if p.machine.settled_count < p.machine.end]
        attention = [text for broker in self.brokers if broker.running is not None for text in broker.running.broker.outbox.attention()]
        return "; ".join(rows + attention) or "no queue that is in memory holds anything"

    # ------------------------------------------------------------ streams

    async def _read_all(self, connected: Connected, machine: Machine, stream: str) -> None:
        """Reads a stream to marks that are appended now."""
        until = self.world.loop.time() + READ_S
        if stream in self._quarantined():
            return
        try:
            async with asyncio.timeout_at(until):
                partitions = len((await connected.describe(stream)).partitions)
                marks: dict[int, int] = {}
                for partition in range(partitions):
                    note = self.history.publish(stream, len(self.plan.clients) + 1000, key=f"end {partition}", nbytes=20)
                    receipt = await connected.publish(stream, value_of(note.id, 20), key=note.key, partition=partition)
                    note.set_result(receipt)
                    marks[partition] = receipt.offset
                attached = self.history.attach(machine.name, "final", stream)
                async with connected.read(stream, start="earliest", on_event=told(self.stage, attached)) as reader:
                    while marks:
                        try:
                            async with asyncio.timeout(MARK_S):
                                record = await reader.__anext__()
                        except TimeoutError:
                            parts = (await connected.describe(stream)).partitions
                            marks = {n: mark for n, mark in marks.items() if parts[n].start_offset <= mark}  # retention took the others
                            continue
                        note_read(self.stage, attached, record)
                        if record.offset >= marks.get(record.partition, 1 << 62):
                            del marks[record.partition]
                attached.how, attached.until = "left", self.world.loop.time()
        except TimeoutError:
            if stream not in self._quarantined():  # damage may be found by this very reading, and the reader waits for what is isolated
                raise Stalled(f"I16: stream {stream!r} cannot be read to its end: {self._stream_figures(stream)}") from None
        except HeadraceError as e:
            if stream not in self._quarantined():
                raise Stalled(f"I16: stream {stream!r} cannot be read to its end: {type(e).__name__}: {e}") from None

    def _stream_figures(self, stream: str) -> str:
        rows = []
        for broker in self.brokers:
            if broker.running is not None:
                for p in broker.running.broker.partitions.values():
                    if isinstance(p, StreamPartition) and p.item.name == stream:
                        rows.append(f"{p.number}: {p.machine.start_offset}..{p.high_watermark}")
        return ", ".join(rows)
