"""Faults of every kind in a real cluster of three brokers and three etcds under a mixed load; then the histories are checked.

python -m tests.chaos.cluster --faults 500 [--seed N] [--only kill_owner,...] [--json] [--keep FOLDER] [--write docs/reliability.md]

A run is repeated by its seed as far as processes allow: which faults, in which order, for how long is drawn from it; what was done to whom and when
is in ``timeline.jsonl``. Broken promises end it at once. R1 a fault is over, and every partition confirms again, before the next one begins, but for
those that are drawn to fall together. R2 what damages a copy begins with all copies in sync, and ends so.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import httpx

from headrace.client.client import Client
from headrace.model.errors import HeadraceError
from headrace.wire.control import PartitionInfo
from tests.chaos.clients import Consuming, Publishing, Reading, reread
from tests.chaos.faults import Deed, Faults, mended
from tests.chaos.history import Broken, History
from tests.chaos.machines import Cluster, Machine

T = TypeVar("T")

BEGIN, END = "<!-- cluster: begin (written by `make chaos-cluster`) -->", "<!-- cluster: end -->"
QUEUES: Final = {"orders": (3, "replica_durable"), "events": (2, "majority_durable")}
STREAM: Final = ("log", 2)
RECOVER_S: Final = 120.0
DRAIN_S: Final = 180.0
OUTAGE_LATE_S: Final = 2.0
"""While all of etcd is away every partition confirms something in the last so many seconds."""
MEND_EVERY_S: Final = 5.0
BEHIND_S: Final = 1.5
"""The third copy of what a majority has is with it by then."""
TOGETHER: Final = 0.25
"""How often a second fault falls into the first."""
REST_S: Final = 1.0
"""At most so long nothing happens after a fault is over."""
BESIDE: Final = ("kill_broker", "pause", "kill_etcd", "kill_machine")
ALONE: Final = ("damage", "etcd_away", "kill_all", "disk_full")
SHOWN: Final = (
    "published", "confirmed", "refused", "unknown", "delivered", "delivered_again", "settled", "stale", "stream_read_again", "cursor_commits",
    "settlements_unknown", "late",
)  # fmt: skip


class Run:
    """One run. ``tell`` gets lines of progress, ``timeline`` everything that was done. What load there is, and what must hold of it, is in
    ``begin``, ``end`` and what they need; ``tests.chaos.mqtt`` has another."""

    program: ClassVar = "tests.chaos.cluster"
    command: ClassVar = "make chaos-cluster"
    marks: ClassVar = (BEGIN, END)
    shown: ClassVar[tuple[str, ...]] = SHOWN
    faults: ClassVar = 500
    per_s: ClassVar[float] = 700
    """Messages a second, of all partitions together."""
    speaks_mqtt: ClassVar = False
    """Whether brokers listen for its clients."""
    minutes: float = 0
    """No fault begins after so long, 0 = there is no end to it."""
    settings: ClassVar[tuple[str, ...]] = ()
    """More of what brokers are set to."""

    def __init__(
        self, cluster: Cluster, *, seed: int, faults: int, per_s: float, only: Sequence[str], tell: Callable[[str], None], timeline: Path
    ) -> None:
        self.cluster, self.count, self.tell = cluster, faults, tell
        self.chance = random.Random(seed)
        self.histories = {name: History(name) for name in (*QUEUES, STREAM[0])}
        self.done: Counter[str] = Counter()
        self.recovered_s: list[float] = []
        self.gaps_s: dict[str, list[float]] = {}
        """By kind of fault: the longest wait of any partition for a confirm, from before it until all confirm again."""
        self.memory_mib = 0.0
        """The most that a broker had."""
        self._only, self._per_s = only, per_s
        self._began_s = time.monotonic()
        self._timeline = timeline
        self._publishing: list[Publishing] = []
        self._consuming: list[Consuming] = []
        self._reading: Reading
        self._tasks: list[asyncio.Task[None]] = []
        self.reread = 0
        self._client: Client
        """What looks at things in the end."""

    # ------------------------------------------------------------ the story

    def note(self, what: str, *machines: Machine, **more: Any) -> None:
        at_s = round(time.monotonic() - self._began_s, 3)
        row = {"at_s": at_s, "wall": round(time.time(), 3), "what": what, "whom": [m.name for m in machines], **more}
        with self._timeline.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def confirmed(self) -> int:
        return sum(p.confirmed for p in self._publishing)

    async def play(self) -> dict[str, Any]:
        """Everything; totals, or ``Broken``."""
        self.cluster.start()
        await self.cluster.ready()
        async with AsyncExitStack() as stack:
            await self.begin(stack)
            try:
                await self._confirming(time.monotonic(), "the beginning")
                while self.done.total() < self.count and not self._late():
                    await self._fault(self.done.total() + 1)
                await self.end()
            except (HeadraceError, AssertionError, TimeoutError) as e:
                await self._shown()
                raise e if isinstance(e, Broken) else self._broken(str(e) or repr(e)) from e
            finally:
                self.give_up()  # else the clients wait for their confirms, also when somebody ends the run
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        self._clean()
        return self.totals()

    def _late(self) -> bool:
        return bool(self.minutes) and time.monotonic() - self._began_s > self.minutes * 60

    async def begin(self, stack: AsyncExitStack) -> None:
        """The load."""
        publishing, one, other, reading, rest = [await stack.enter_async_context(self.cluster.connect()) for _ in range(5)]
        self._client = publishing
        for name, (partitions, durability) in QUEUES.items():
            await rest.declare_queue(name, partitions=partitions, replication_factor=3, durability=durability, min_in_sync_replicas=2)
            self._publishing += [Publishing(publishing, self.histories[name], p, self._per_s / 7) for p in range(partitions)]
            self._consuming += [Consuming(client, self.histories[name], self.chance.getrandbits(32)) for client in (one, other)]
        name, partitions = STREAM
        await rest.declare_stream(name, partitions=partitions, replication_factor=3, durability="replica_durable", min_in_sync_replicas=2)
        self._publishing += [Publishing(publishing, self.histories[name], p, self._per_s / 7) for p in range(partitions)]
        self._reading = Reading(reading, self.histories[name])
        workers: list[Publishing | Consuming | Reading] = [*self._publishing, *self._consuming, self._reading]
        self._tasks = [asyncio.create_task(worker.run(), name=type(worker).__name__) for worker in workers]

    async def _fault(self, number: int) -> None:
        faults = Faults(self.cluster, random.Random(self.chance.getrandbits(64)), self)
        table = {name: row for name, row in faults.table().items() if not self._only or name in self._only}
        name = self.chance.choices(list(table), [weight for weight, _ in table.values()])[0]
        beside = self.chance.choice(BESIDE) if name not in ALONE and self.chance.random() < TOGETHER and number < self.count else ""
        self.note(name, number=number, beside=beside, confirmed=self.confirmed)
        self.tell(f"{number}/{self.count} {name}{' and ' + beside if beside else ''}")
        self.gap_begins()
        try:
            async with asyncio.TaskGroup() as together:
                together.create_task(table[name][1]())
                if beside:
                    other = Faults(self.cluster, random.Random(self.chance.getrandbits(64)), self)
                    together.create_task(self._later(other.table()[beside][1], self.chance.uniform(0.0, 1.5)))
        except* (HeadraceError, AssertionError, TimeoutError) as group:
            raise self._broken(f"{name}: {'; '.join(str(e) or repr(e) for e in group.exceptions)}") from group
        self.done.update([name, beside] if beside else [name])
        self.cluster.heal()
        for machine in self.cluster:
            machine.resume()
            if machine.process is None:
                self.cluster.start([machine.name])
        await self._confirming(time.monotonic(), f"{name} ({number})")
        self._measured(name if not beside else "two at a time")
        self.check()
        if self.chance.random() < 0.3:
            await self._whole()
        else:
            await asyncio.sleep(self.chance.uniform(0.0, REST_S))

    def _measured(self, name: str) -> None:
        gap_s = self.gap_s()
        memory = {machine.name: round(machine.memory_mib()) for machine in self.cluster}
        self.gaps_s.setdefault(name, []).append(gap_s)
        self.memory_mib = max(self.memory_mib, *memory.values())
        self.note("measured", gap_s=round(gap_s, 3), memory_mib=memory)

    async def _later(self, deed: Deed, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await deed()

    async def calmly(self, deed: Deed) -> None:
        self.hold(True)
        try:
            async with asyncio.timeout(RECOVER_S):
                while self.unanswered():
                    await asyncio.sleep(0.05)
            await self._whole()
            await asyncio.sleep(BEHIND_S)
            await deed()
            await self._mend()
            await self._whole()
            await asyncio.sleep(BEHIND_S)
        finally:
            self.hold(False)

    async def without_etcd(self, deed: Deed) -> None:
        await self._whole()
        await self._confirming(time.monotonic(), "before etcd goes away")
        await deed()
        late = time.monotonic() - OUTAGE_LATE_S
        silent = self.stopped(late)
        self.note("etcd comes back", silent=silent)
        if silent:
            raise Broken(f"while all of etcd was away {', '.join(silent)} confirmed nothing")

    # ------------------------------------------------------------ the load

    def hold(self, on: bool) -> None:
        """Nothing more is published for now, or it is again."""
        for publisher in self._publishing:
            publisher.holding = on

    def unanswered(self) -> bool:
        """Whether something published is not confirmed yet."""
        return any(p.unanswered for p in self._publishing)

    def silent(self, since: float) -> list[str]:
        """Of what nothing was confirmed after ``since``."""
        return [f"{p.history.name}/{p.partition}" for p in self._publishing if p.confirmed_s < since]

    def stopped(self, since: float) -> list[str]:
        """What would have gone on although all of etcd was away, and did not."""
        return self.silent(since)

    def gap_begins(self) -> None:
        """From now on waits for confirms are measured."""
        for publisher in self._publishing:
            publisher.gap_s = 0.0

    def gap_s(self) -> float:
        """The longest one."""
        return max(publisher.gap_s for publisher in self._publishing)

    def give_up(self) -> None:
        """Nobody waits for confirms any more."""
        for publisher in self._publishing:
            publisher.give_up()

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        """``Broken`` if something is that nothing later can put right."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise self._broken(f"{task.get_name()}: {error}") from error
        for publisher in self._publishing:
            if publisher.failure is not None:
                name = f"{publisher.history.name}/{publisher.partition}"
                raise self._broken(f"a publish to {name} failed: {publisher.failure!r}") from publisher.failure
        for machine in self.cluster:
            if machine.process is not None and machine.process.poll() is not None:
                raise self._broken(f"{machine.name} ended by itself with {machine.process.returncode}:\n{machine.tail()}")

    async def _confirming(self, since: float, after: str) -> None:
        """Returns once every partition has confirmed something after ``since``."""
        looked = since
        while True:
            self.check()
            if time.monotonic() - looked > MEND_EVERY_S:
                looked = time.monotonic()
                await self._mend()
            silent = self.silent(since)
            if not silent:
                break
            if time.monotonic() - since > RECOVER_S:
                raise self._broken(f"{RECOVER_S:.0f} s after {after} nothing is confirmed of {', '.join(silent)}")
            await asyncio.sleep(0.02)
        took_s = time.monotonic() - since
        self.recovered_s.append(took_s)
        self.note("all confirm", after=after, took_s=round(took_s, 3), confirmed=self.confirmed)

    async def _whole(self) -> None:
        """Returns once every copy is in sync."""
        await self._mending(self.cluster.in_sync())

    async def _mending(self, work: Coroutine[Any, Any, T]) -> T:
        """Does it, and has repaired what shows itself meanwhile."""
        waiting = asyncio.create_task(work)
        try:
            while not (await asyncio.wait((waiting,), timeout=MEND_EVERY_S))[0]:
                await self._mend()
            return await waiting
        finally:
            waiting.cancel()

    async def _mend(self) -> None:
        """What an operator does: has what is isolated repaired. (Damage in a segment is found when that is read, long after it was done.)"""
        for machine in self.cluster:
            if machine.up:
                for where, answer in await mended(machine):
                    self.note(f"repair of {where}: {answer}", machine)

    async def _shown(self) -> None:
        """Keeps how the cluster stands now, as each broker shows it, beside the logs; and what each publisher waits for."""
        for machine in self.cluster:
            for what in ("topology", "cluster", "quarantine"):
                try:
                    text = (await machine.get(what)).text
                except httpx.HTTPError as e:
                    text = repr(e)
                (self._timeline.parent / f"{machine.name}-{what}.json").write_text(text)
        rows = [f"{p.history.name}/{p.partition}: {p.unanswered} unanswered, {p.waits()}" for p in self._publishing]
        (self._timeline.parent / "publishers.txt").write_text("\n".join(rows) + "\n")

    def _broken(self, what: str) -> Broken:
        self.note("broken", why=what)
        return Broken(what)

    async def end(self) -> None:
        """Waits until all that was sent is confirmed, delivered and settled; reads the stream once more."""
        for publisher in self._publishing:
            publisher.stopping = True
        await self.cluster.ready()
        end = time.monotonic() + DRAIN_S
        async with AsyncExitStack() as stack:
            brokers = [await stack.enter_async_context(self.cluster.connect(only=machine)) for machine in self.cluster]
            while (left := await self._left(brokers)) != "":
                self.check()
                if time.monotonic() > end:
                    raise self._broken(f"not done after {DRAIN_S:.0f} s: {left}")
                await self._mending(asyncio.sleep(0.2))
        self.check()
        for history in self.histories.values():
            history.finish()
        self.reread = await self._mending(reread(self._client, self.histories[STREAM[0]], DRAIN_S))

    async def _left(self, brokers: list[Client]) -> str:
        """What is not done yet, "" = nothing."""
        for p in self._publishing:
            if p.unanswered or p.undelivered:
                return f"{p.history.name}/{p.partition}: {p.unanswered} are not confirmed, {p.undelivered} were not delivered"
        for name, (partitions, _) in QUEUES.items():
            serving: dict[int, PartitionInfo] = {}
            for broker in brokers:
                try:
                    info = await broker.describe(name)
                except HeadraceError as e:
                    return f"{name}: {e}"
                serving |= {row.partition: row for row in info.partitions if row.state == "serving"}
            if len(serving) < partitions:
                return f"{name}: {partitions - len(serving)} partitions are not served"
            for number, row in sorted(serving.items()):
                if row.ready or row.leased or row.delayed:
                    return f"{name}/{number}: {row.ready} ready, {row.leased} leased, {row.delayed} delayed"
                found = sum(p.found for p in self._publishing if (p.history.name, p.partition) == (name, number))
                stored = len(self.histories[name].confirmed[number]) + found
                if row.settled != stored:
                    return f"{name}/{number}: the broker counts {row.settled} settled messages of {stored} that are stored"
        return ""

    def _clean(self) -> None:
        """No broker met anything that it did not expect."""
        for machine in self.cluster:
            text = machine.log.read_text(errors="replace")
            at = text.find("Traceback (most recent call last)")
            if at >= 0:
                raise self._broken(f"{machine.name} has a traceback in its log:\n{text[max(0, at - 300) : at + 3000]}")

    def totals(self) -> dict[str, Any]:
        recovered = sorted(self.recovered_s)
        gaps = {name: [round(sorted(each)[len(each) // 2], 2), round(max(each), 2)] for name, each in sorted(self.gaps_s.items())}
        return {
            "faults": self.done.total(), "by_kind": dict(sorted(self.done.items())), "lost": 0, **self.figures(),
            "gaps_s": gaps, "memory_mib_max": round(self.memory_mib),
            "recovered_s_p50": round(recovered[len(recovered) // 2], 2), "recovered_s_max": round(recovered[-1], 2),
            "seconds": round(time.monotonic() - self._began_s),
        }  # fmt: skip

    def figures(self) -> dict[str, int]:
        """How much of everything there was."""
        sums: Counter[str] = Counter()
        for history in self.histories.values():
            sums.update(history.totals())
        return {
            **sums, "refused": sum(p.refused for p in self._publishing), "unknown": sum(len(p.unknown) for p in self._publishing),
            "stream_read_again": self.reread, "cursor_commits": self._reading.commits,
            "late": sum(h.late for h in self.histories.values()), "settlements_unknown": sum(c.unknown for c in self._consuming),
        }  # fmt: skip


if __name__ == "__main__":
    from tests.chaos.command import main

    sys.exit(main(Run, __doc__))
