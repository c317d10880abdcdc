"""One run of a scenario, from the first start to the verdict: faults and work, then healing, then what everybody saw is checked.

Owns the phases. What is done is the workload's, what goes wrong the faults', what is right the checks'.
"""

import asyncio
import gc
import time
from typing import Final

import msgspec

from headrace.model.config import Broker, Config, Connection, Limits, Storage
from headrace.sim import checks, swarm
from headrace.sim.chance import Chance
from headrace.sim.checks import living
from headrace.sim.faults import Faults
from headrace.sim.history import History
from headrace.sim.loop import Stuck
from headrace.sim.scenario import Scenario, Settings
from headrace.sim.trace import Row
from headrace.sim.workload import Stalled, Workload
from headrace.sim.world import SimBroker, World

HEAL_S: Final = 300.0
"""Virtual seconds within which everything must be done once it is healed."""
STEPS_MAX: Final = 400_000
LOOKS_EVERY: Final = 10
"""Fiftieths of a virtual second between two looks inside the brokers."""


class Violation(msgspec.Struct, frozen=True):
    """A promise that was broken: which (I1 to I18, ``error``: something failed that should not) and how it was seen."""

    invariant: str
    text: str


class Result(msgspec.Struct, kw_only=True):
    """What came of a run. ``events`` are callbacks of machines, ``effects`` what they did to each other and to disks."""

    seed: int
    digest: str = ""
    violations: list[Violation] = []
    events: int = 0
    effects: int = 0
    faults: int = 0
    messages: int = 0
    virtual_s: float = 0.0
    real_s: float = 0.0
    damaged: bool = False

    @property
    def ok(self) -> bool:
        return not self.violations


def config_of(settings: Settings) -> Config:
    """The broker's configuration. Some limits are below what users may set, so that a short run meets them."""
    return Config(
        broker=Broker(),
        storage=Storage(
            wal_file_bytes=settings.wal_file_bytes, wal_bytes_max=settings.wal_bytes_max, flush_bytes_max=settings.flush_bytes_max,
            tail_cache_bytes=settings.tail_cache_bytes, segment_own_bytes_min=settings.segment_own_bytes_min,
            segment_file_bytes=settings.segment_file_bytes, idle_unload_ms=settings.idle_unload_ms, disk_free_bytes_min=0, ballast_bytes=0,
        ),
        connection=Connection(reconnect_grace_ms=settings.reconnect_grace_ms, heartbeat_ms=settings.heartbeat_ms),
        limits=Limits(
            frame_bytes_max=settings.frame_bytes_max, message_bytes_max=settings.message_bytes_max,
            in_flight_bytes_max=settings.in_flight_bytes_max, write_buffer_bytes_high=settings.write_buffer_bytes_high,
            write_buffer_bytes_low=settings.write_buffer_bytes_high // 4,
        ),
    )  # fmt: skip


def run_seed(seed: int, *, rows_max: int | None = 0) -> tuple[Result, list[Row]]:
    """The run of that seed."""
    return run(swarm.draw(seed), rows_max=rows_max)


def run(scenario: Scenario, *, rows_max: int | None = 0) -> tuple[Result, list[Row]]:
    """Runs it. ``rows_max``: how many rows of the trace to keep, None = all."""
    began = time.perf_counter()
    result = Result(seed=scenario.seed)
    collecting = gc.isenabled()
    gc.disable()  # nothing of a run may depend on when garbage is found; a run is short
    try:
        with World(scenario.seed, rows_max=rows_max) as world:
            _run(world, scenario, result)
            result.digest, result.effects = world.trace.digest(), world.trace.count
            result.events, result.virtual_s = world.loop.steps, world.loop.time()
            rows = list(world.trace.rows)
    finally:
        if collecting:
            gc.enable()
    result.real_s = time.perf_counter() - began
    return result, rows


def _run(world: World, scenario: Scenario, result: Result) -> None:
    chance = Chance(scenario.seed, "run")
    world.network.shape(scenario.shape.delay, scenario.shape.spread, scenario.shape.split)
    config = config_of(scenario.settings)
    brokers = [world.broker(f"broker-{n + 1}", config) for n in range(scenario.brokers)]
    for broker in brokers:
        broker.speeds = scenario.speeds
    history = History()
    faults = Faults(world, brokers, scenario.faults, chance.fork("faults"))
    workload = Workload(world, brokers, scenario.plan, history, chance.fork("workload"))
    phase = _Phases(world, scenario, brokers, faults, workload)
    task = world.loop.spawn(world.loop.world, phase.run(), "phases")
    try:
        world.loop.run_until_complete(task, steps_max=STEPS_MAX)
    except (Stuck, Stalled) as e:
        result.violations.append(Violation("I16", f"{phase.name}: {e}"))
    result.faults, result.damaged, result.messages = faults.happened, faults.damaged, len(history.publishes)
    result.violations += [Violation(v.invariant, v.text) for v in phase.found]
    result.violations += [Violation("error", text) for text in world.errors()]
    if phase.name == "checks":
        found = checks.check(history, world, brokers, damage=phase.damaged)
        result.violations += [Violation(v.invariant, v.text) for v in found]
        if phase.damaged and not faults.damaged:
            result.violations.append(Violation("damage", f"quarantined although no byte was hurt: {sorted(phase.damaged)}"))
    for violation in result.violations:
        world.note("verdict", violation.invariant, violation.text)


class _Phases:
    """Where a run is."""

    def __init__(self, world: World, scenario: Scenario, brokers: list[SimBroker], faults: Faults, workload: Workload) -> None:
        self.world = world
        self.scenario = scenario
        self.brokers = brokers
        self.faults = faults
        self.workload = workload
        self.name = "start"
        self.damaged: frozenset[tuple[str, int]] = frozenset()
        self.found: list[checks.Violation] = []
        """What was wrong while it went on, the first time that anything was."""

    async def run(self) -> None:
        self.faults.start()
        while not all(broker.serving for broker in self.brokers):  # noqa: ASYNC110 - what ends is not of one kind
            await asyncio.sleep(0.01)
        self.name = "faults"
        self.workload.start()
        self.faults.schedule()
        until = self.world.loop.time() + self.scenario.seconds
        turn = 0
        while not self.workload.done and self.world.loop.time() < until:
            await asyncio.sleep(0.02)
            turn += 1
            if turn % LOOKS_EVERY == 0:
                self._look()
        if self.scenario.rest:
            self.name = "resting"
            until = self.world.loop.time() + self.scenario.rest
            while self.world.loop.time() < until:
                await asyncio.sleep(LOOKS_EVERY * 0.02)
                self._look()
        self.name = "healing"
        try:
            async with asyncio.timeout(HEAL_S):
                await self.faults.heal()
                self.name = "finishing"
                await self.workload.finish()
        except TimeoutError:
            why = "; ".join(f"{b.name}: {b.failure!r}" for b in self.brokers if b.failure is not None)
            raise Stalled(f"not done {HEAL_S:g} s after everything was healed {why}") from None
        self.damaged = frozenset(await self._damaged())
        self.name = "checks"

    def _look(self) -> None:
        if not self.found:
            self.found += living.alive(self.brokers, self._free())

    def _free(self) -> set[str]:
        """Queues that may hold more than they take."""
        history = self.workload.history
        names = {verb.name for verb in history.verbs if verb.verb in ("alter", "recreate")} | {spec.dead_letter for spec in history.queues()}
        return names | {verb.what for verb in history.verbs if verb.verb == "move"} | ({*history.specs} if history.asked("redrive") else set())

    async def _damaged(self) -> list[tuple[str, int]]:
        """Names and partitions that are quarantined."""
        found = []
        for broker in self.brokers:
            assert broker.running is not None
            damaged = broker.running.broker.store.damaged()
            items, _ = await broker.running.broker.catalogue.page()
            for item in items:
                found += [(item.name, number) for number, pid in enumerate(item.partitions) if pid in damaged]
        return found
