"""Machines, disks and a network put together: brokers that start, die and come back, and machines for those who use them.

Owns what a machine's death means on its disk and on the network. Does not decide when (``sim.faults``) nor what is done (``sim.workload``).
"""

import asyncio
import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar

import msgspec

from headrace.broker import run
from headrace.broker.cluster import Means
from headrace.model.config import Broker as BrokerSection
from headrace.model.config import Config, Listen
from headrace.sim.chance import Chance
from headrace.sim.disk import Disk, SimState
from headrace.sim.lanes import SimLane
from headrace.sim.loop import Machine, SimLoop
from headrace.sim.network import Network
from headrace.storage.api import Store
from headrace.storage.flusher import Work
from headrace.storage.memory import MemoryStore
from headrace.storage.store import DiskStore

PORT: Final = 7580
DATA: Final = "/data"
_T = TypeVar("_T")


class Speeds(msgspec.Struct, frozen=True, kw_only=True):
    """How long things take, in seconds."""

    flush: tuple[float, float] = (0.0002, 0.002)
    """A synced write of the log: low and high."""
    work: tuple[float, float] = (0.0001, 0.005)
    """Any other work on a disk."""
    slow: float = 0.0
    """How often one takes a hundred times as long."""


class SimBroker:
    """A broker with its disk: the process may come and go, ``disk`` stays."""

    def __init__(self, world: "World", name: str, config: Config, storage: Literal["disk", "memory"] = "disk") -> None:
        self.world = world
        self.name = name
        self.url = f"headrace://{name}:{PORT}"
        self.disk = Disk()
        self.disk.observe = self._observe
        self.config = msgspec.structs.replace(
            config,
            broker=msgspec.structs.replace(config.broker, data_dir=DATA, storage=storage),
            listen=Listen(native=f"{name}:{PORT}", admin="off", mqtt="off", mqtt_ws="off"),
        )
        self.means: Callable[[], Means] | None = None
        """What it is given to be one of a cluster, on its machine; None: it is alone."""
        self.speeds = Speeds()
        self.incarnation = 0
        self.lives: list[tuple[float, float]] = []
        """When each incarnation began to start, and when it was killed (infinite = not: it stopped itself, or runs)."""
        self.machine: Machine | None = None
        self.running: run.RunningBroker | None = None
        self.failure: BaseException | None = None
        """Why the last start did not succeed."""
        self.wall_offset_ns = 0
        self.jumps: list[float] = []
        """By how many seconds its wall clock was set, each time."""
        self.last_flushes: tuple[tuple[str, int, bytes], ...] = ()
        """The last two writes to the log: file, offset, and what was written."""
        self._chance = world.chance.fork(f"disk of {name}")
        self._starting: asyncio.Task[None] | None = None

    @property
    def serving(self) -> bool:
        return self.running is not None and self.machine is not None and self.machine.alive and not self.running.stopped.is_set()

    @property
    def alive(self) -> bool:
        return self.machine is not None and self.machine.alive

    @property
    def ending(self) -> bool:
        """It still serves, maybe, but was told to stop: it drains."""
        return self.running is not None and self.running.draining.is_set()

    def call(self, what: Callable[..., _T], *arguments: Any) -> _T:
        """``what`` of its process, which lives (``Machine.call``)."""
        assert self.machine is not None
        return self.machine.call(what, *arguments)

    def start(self) -> "asyncio.Task[None]":
        """Begins to start it; the task ends when it serves, or cannot."""
        assert not self.alive, f"{self.name} runs"
        world = self.world
        self.incarnation += 1
        self.lives.append((world.loop.time(), float("inf")))
        machine = Machine(world.loop, self.name, world.chance.fork(f"{self.name} {self.incarnation}"))
        machine.wall_offset_ns = self.wall_offset_ns
        self.machine, self.running, self.failure = machine, None, None
        world.network.machines[self.name] = machine
        world.note(self.name, "starts", f"incarnation {self.incarnation}")
        self._starting = world.loop.spawn(machine, self._run(machine), f"start {self.name}")
        return self._starting

    async def _run(self, machine: Machine) -> None:
        try:
            means = self.means() if self.means is not None else None
            running = await run.start(self.config, tune=False, make_store=lambda config, loop: self._store(machine, config, loop), means=means)
        except Exception as e:
            self.failure = e
            self.world.note(self.name, "cannot start", f"{type(e).__name__}: {e}")
            self._ended(machine)
            return
        self.running = running
        self.world.note(self.name, "serves")
        self.world.loop.spawn(machine, self._watch(machine, running), f"watch {self.name}")

    async def _watch(self, machine: Machine, running: run.RunningBroker) -> None:
        await running.stopped.wait()
        self.world.note(self.name, "stopped", running.broker.state)
        self._ended(machine)

    def _ended(self, machine: Machine) -> None:
        machine.kill()
        self.disk.kill()
        self.world.network.ended(machine, silently=False)

    def _store(self, machine: Machine, config: Config, loop: asyncio.AbstractEventLoop) -> Store:
        if config.broker.storage == "memory":
            return MemoryStore(config, loop)
        chance = self._chance

        def lane(name: str) -> SimLane:
            def delay() -> float:
                speeds = self.speeds
                low, high = speeds.flush if name == "flusher" else speeds.work
                return chance.between(low, high) * (100.0 if speeds.slow and chance.happens(speeds.slow) else 1.0)

            return SimLane(self.world.loop, machine, name, delay)

        return DiskStore(
            config.broker.data_dir, config, loop, files=self.disk, make_state=lambda path: SimState(self.disk, path), make_lane=lane,
            later=loop.call_later, wall_ms=lambda: machine.wall_ns() // 1_000_000, now_ns=lambda: int(machine.monotonic() * 1e9),
            random_u64=lambda: machine.bits(64),
        )  # fmt: skip

    def _observe(self, operation: str, path: str, offset: int, data: bytes) -> None:
        if operation == "pwritev_durable" and path.endswith(".log"):
            self.last_flushes = (*self.last_flushes[-1:], (path, offset, data))
        self.world.trace.note(self.name, operation, f"{path} at {offset}: {len(data)} bytes" if data else path, data)

    async def stop(self) -> None:
        """Cleanly, as a signal would."""
        running, machine = self.running, self.machine
        if running is not None and machine is not None and machine.alive:
            self.world.note(self.name, "is stopped")
            self.world.loop.spawn(machine, running.stop(), f"stop {self.name}")
            while machine.alive:  # noqa: ASYNC110 - the end may also be a kill, which sets no event
                await asyncio.sleep(0.001)

    def kill(self, *, power: bool = False) -> None:
        """At once: the process dies (what it wrote is there), or the machine loses its power (what it synced is there, and some of the rest)."""
        machine = self.machine
        if machine is None or not machine.alive:
            return
        self.world.note(self.name, "loses its power" if power else "is killed")
        self.lives[-1] = self.lives[-1][0], self.world.loop.time()
        for lane in machine.lanes:
            if lane.current is not None and self._chance.happens(0.6):
                self._half_done(lane.current[0], power)
        machine.kill()
        if power:
            self.disk.crash_by(self._chance)
        else:
            self.disk.kill()
        self.world.network.ended(machine, silently=power)

    def _half_done(self, work: Work, power: bool) -> None:
        """The machine dies within ``work``: what it did before is done, what it does at that moment has reached the system and, without power, may or
        may not reach the disk; the rest never happens."""
        disk, before = self.disk, self.disk.fault
        left = self._chance.randint(0, 6)

        def fault(operation: str, path: str, nbytes: int) -> int | None:
            nonlocal left
            if left < 0:
                raise OSError(errno.EIO, "the machine is dead")
            left -= 1
            if left < 0:
                disk.dying = power
            return None

        disk.fault = fault
        with suppress(Exception):
            work()
        disk.fault, disk.dying = before, False

    def pause(self) -> None:
        if self.machine is not None and self.machine.alive:
            self.world.note(self.name, "stands still")
            self.machine.pause()

    def resume(self) -> None:
        if self.machine is not None and self.machine.alive and self.machine.paused:
            self.world.note(self.name, "goes on")
            self.machine.resume()

    def jump(self, seconds: float) -> None:
        """Its wall clock is set."""
        self.wall_offset_ns += int(seconds * 1e9)
        self.jumps.append(seconds)
        if self.machine is not None:
            self.machine.wall_offset_ns = self.wall_offset_ns
        self.world.note(self.name, "clock jumps", f"{seconds:+.3f} s")


class World:
    """See the module's head. ``seed`` makes everything."""

    def __init__(self, seed: int, *, rows_max: int | None = 200) -> None:
        self.seed = seed
        self.chance = Chance(seed)
        self.loop = SimLoop(self.chance.fork("loop"), rows_max=rows_max)  # type: ignore[abstract]  # what it leaves out is not for a simulator
        self.network = Network(self.loop, self.chance.fork("network"))
        self.brokers: dict[str, SimBroker] = {}
        self.trace = self.loop.trace
        self._logged = _Logged(self)

    def __enter__(self) -> "World":
        self._logged.begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self.loop.close()
        self._logged.end()

    def note(self, machine: str, what: str, text: str = "") -> None:
        self.trace.note(machine, what, text)

    def broker(self, name: str, config: Config | None = None, *, storage: Literal["disk", "memory"] = "disk") -> SimBroker:
        """Adds a broker; it does not run yet. One in memory forgets all with each incarnation."""
        made = self.brokers[name] = SimBroker(self, name, config or Config(broker=BrokerSection()), storage)
        return made

    def machine(self, name: str) -> Machine:
        """Adds a machine for somebody who uses brokers."""
        made = self.network.machines[name] = Machine(self.loop, name, self.chance.fork(f"machine {name}"))
        return made

    def errors(self) -> list[str]:
        """What nobody expected: exceptions that reached the loop, and what brokers logged with a traceback."""
        found = [f"{e.get('message')}: {e.get('exception')!r}" for e in self.loop.errors]
        return found + self._logged.found


class _Logged(logging.Handler):
    """Brokers' log lines go into the trace; a traceback in one is an error of the run."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world
        self.found: list[str] = []
        self._before: tuple[int, bool] = (0, True)

    def begin(self) -> None:
        logger = logging.getLogger("headrace")
        self._before = (logger.level, logger.propagate)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(self)

    def end(self) -> None:
        logger = logging.getLogger("headrace")
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(f"{text}: {record.exc_info[1]!r}")
        self._world.note(self._world.loop.ambient.name, "logs", text)


