"""The broker and the processes of a simulation, with the faults that can befall them.

What happens at once is a plain method, what takes virtual time is awaited. I1 A process that was killed runs no further line, not even a ``finally``.
I2 An exception that nobody waits for ends the test.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from headrace.model.errors import StorageError
from headrace.sim.loop import Machine
from headrace.sim.world import SimBroker, World

if TYPE_CHECKING:
    from headrace.testing.simulation import Simulation

Work = Callable[..., Coroutine[Any, Any, Any]]

DISK_BYTES: Final = 1 << 40
END_TIMEOUT_S: Final = 60.0
"""Tasks that are cancelled at the end of a process have so long."""
FIRST_LOOK_S: Final = 0.001


class Broker:
    """The broker of a simulation, already running. ``url`` is what clients connect to."""

    def __init__(self, sim: "Simulation", inner: SimBroker) -> None:
        self._sim = sim
        self._inner = inner
        self.name = inner.name
        self.url = inner.url
        self.starts = 0
        self._slowness = 1.0

    def __repr__(self) -> str:
        return f"<Broker {self.name} {'serves' if self.serving else 'does not serve'}>"

    @property
    def alive(self) -> bool:
        """Whether its process is there: starting, serving or stopping."""
        return self._inner.alive

    @property
    def serving(self) -> bool:
        return self._inner.serving

    async def start(self) -> None:
        """Starts it on what its disk holds; returns once it serves, and raises why it cannot. Nothing happens if it serves already."""
        running = self._inner.running
        if self.alive and running is not None and running.draining.is_set():
            await _poll(lambda: not self.alive)
        if not self.alive:
            self.starts += 1
            self._inner.start()
        await _poll(lambda: self.serving or not self.alive)
        if self._inner.failure is not None:
            raise self._inner.failure

    async def revive(self) -> None:
        """As ``start``, again each second while its disk does not let it start: what a supervisor does."""
        while True:
            try:
                return await self.start()
            except StorageError:
                await asyncio.sleep(1.0)

    async def stop(self) -> None:
        """Stops it as a signal would: clients are told, what was accepted is durable."""
        if not self.alive:
            return
        await self.start()
        machine, running = self._inner.machine, self._inner.running
        if machine is not None and running is not None and machine.alive:
            self._sim.note("is stopped", machine=self.name)
            self._sim.world.loop.spawn(machine, running.stop(), f"stop {self.name}")
            await _poll(lambda: not machine.alive)

    async def restart(self) -> None:
        """Stops it cleanly if it runs, and starts it. After ``kill`` or ``power_loss``: starts it again."""
        await self.stop()
        await self.start()

    def kill(self, *, after_steps: int | None = None, restart_after: float | None = None) -> None:
        """Its process dies at once, as by kill -9: what it wrote is on the disk, its connections are reset.

        ``after_steps``: not now, but when it has run so many more callbacks of its event loop, so in the middle of something. ``restart_after``:
        starts it again so many virtual seconds later (again and again, while its disk is full); else ``restart`` does."""
        self._die(power=False, after_steps=after_steps, restart_after=restart_after)

    def power_loss(self, *, after_steps: int | None = None, restart_after: float | None = None) -> None:
        """Its machine loses its power: of what was written and not synced, some survives, drawn by the seed; its peers hear nothing more."""
        self._die(power=True, after_steps=after_steps, restart_after=restart_after)

    def unfuse(self) -> None:
        """Takes back a death ``after_steps`` that has not happened yet."""
        if self._inner.machine is not None:
            self._inner.machine.fuse = 0

    def _die(self, *, power: bool, after_steps: int | None, restart_after: float | None) -> None:
        machine = self._inner.machine

        def die() -> None:
            if self._inner.machine is machine and self._inner.alive:
                self._inner.kill(power=power)
                if restart_after is not None:
                    self._sim._soon(restart_after, self.revive)

        _at_step(machine, after_steps, die)

    def pause(self, seconds: float | None = None) -> None:
        """Its process stands still (a stopped process, a machine that swaps), for so many virtual seconds or until ``resume``."""
        self._inner.pause()
        machine = self._inner.machine
        if seconds is not None:
            self._sim._later(seconds, lambda: self._inner.resume() if self._inner.machine is machine else None)

    def resume(self) -> None:
        self._inner.resume()

    def cut(self, seconds: float | None = None) -> None:
        """No byte passes between it and anybody, for so many virtual seconds or until ``heal``. Connections stay: bytes wait, as with TCP."""
        for name in self._sim.machines:
            if name != self.name:
                self._sim.cut(name, self.name, seconds=seconds)

    def heal(self) -> None:
        for name in self._sim.machines:
            if name != self.name:
                self._sim.heal(name, self.name)

    def disconnect(self) -> None:
        """Every connection of a client breaks; clients may come back at once."""
        self._sim.note("connections are reset", machine=self.name)
        self._sim.world.network.break_connections(self.name)

    def disk_full(self, seconds: float | None = None) -> None:
        """No byte is free on its disk, for so many virtual seconds or until ``disk_freed``. It notices within a second."""
        disk = self._inner.disk
        disk.capacity -= disk.free_bytes("/")
        self._sim.note("the disk is full", machine=self.name)
        if seconds is not None:
            self._sim._later(seconds, self.disk_freed)

    def disk_freed(self) -> None:
        if self._inner.disk.capacity != DISK_BYTES:
            self._inner.disk.capacity = DISK_BYTES
            self._sim.note("the disk has room", machine=self.name)

    def disk_slow(self, factor: float = 100.0) -> None:
        """Its disk takes so many times as long as at first; 1 = as at first."""
        if factor != self._slowness:
            self._slowness = factor
            speeds = self._sim._speeds
            flush, work = ((low * factor, high * factor) for low, high in (speeds.flush, speeds.work))
            self._inner.speeds = msgspec.structs.replace(speeds, flush=flush, work=work)
            self._sim.note(f"the disk takes {factor:g} times as long as at first", machine=self.name)

    def clock_jump(self, seconds: float) -> None:
        """Its wall clock is set forward, or back."""
        self._inner.jump(seconds)


class Process:
    """A process of the user's that runs one coroutine function on a machine of its own. ``await process`` gives what the function returns."""

    def __init__(self, sim: "Simulation", name: str, function: Work, args: tuple[Any, ...], restart_after: float | None) -> None:
        self._sim = sim
        self.name = name
        self.starts = 0
        self.kills = 0
        self._killed = False
        self._function = function
        self._args = args
        self._restart_after = restart_after
        self._machine: Machine | None = None
        self._main: asyncio.Task[None] | None = None
        self._stopping = False
        self._offset_ns = 0
        self._done: asyncio.Future[Any] = sim.world.loop.create_future()
        self._waiters = 0

    def __repr__(self) -> str:
        return f"<Process {self.name} {'runs' if self.alive else 'does not run'}>"

    @property
    def alive(self) -> bool:
        return self._machine is not None and self._machine.alive

    @property
    def done(self) -> bool:
        """Whether the function returned (or raised to somebody who waited for it)."""
        return self._done.done()

    @property
    def killed(self) -> bool:
        """Whether it was killed and not started again."""
        return not self.alive and not self._done.done() and self._killed

    def __await__(self) -> Generator[Any, None, Any]:
        """What the function returns, whichever start of it gets there; raises what it raises."""
        self._waiters += 1
        try:
            return (yield from asyncio.shield(self._done).__await__())
        finally:
            self._waiters -= 1

    def start(self) -> None:
        """Runs the function from its beginning, in a new process of that name. Nothing happens if it runs."""
        if self.alive:
            return
        sim, world = self._sim, self._sim.world
        self.starts += 1
        self._stopping = self._killed = False
        if self._done.done():
            self._done = world.loop.create_future()
        machine = self._machine = Machine(world.loop, self.name, world.chance.fork(f"process {self.name} {self.starts}"))
        machine.wall_offset_ns = self._offset_ns
        world.network.machines[self.name] = machine
        sim.note("starts" if self.starts == 1 else f"starts for the {self.starts}. time", machine=self.name)
        self._main = world.loop.spawn(machine, self._run(machine), self.name)

    def kill(self, *, after_steps: int | None = None, restart_after: float | None = None, silently: bool = False) -> None:
        """It dies at once, as by kill -9: no ``except``, no ``finally``. A process that kills itself runs on to its next ``await``; better
        ``await process.die()``.

        ``after_steps``: not now, but when it has run so many more callbacks of its event loop, so in the middle of something. ``restart_after``:
        starts it again so many virtual seconds later (else what ``spawn`` was told holds, or ``restart`` does). ``silently``: its machine lost its
        power, so that the broker hears nothing of it."""
        machine = self._machine
        delay = self._restart_after if restart_after is None else restart_after

        def die() -> None:
            if self._machine is not machine or machine is None or not machine.alive:
                return
            self.kills += 1
            self._killed = True
            self._sim.note("is killed" if not silently else "loses its power", machine=self.name)
            self._gone(machine, silently=silently)
            if delay is not None:
                self._sim._later(delay, self.start)

        _at_step(machine, after_steps, die)

    def unfuse(self) -> None:
        """Takes back a ``kill(after_steps=...)`` that has not happened yet."""
        if self._machine is not None:
            self._machine.fuse = 0

    async def die(self, *, restart_after: float | None = None, silently: bool = False) -> None:
        """``kill`` for code that runs in the process itself: it ends in this very line."""
        self.kill(restart_after=restart_after, silently=silently)
        await asyncio.Future()

    def restart(self) -> None:
        """Kills it if it runs, and starts it."""
        self.kill()
        self.start()

    async def stop(self) -> None:
        """As Ctrl-C under ``asyncio.run``: cancels the function, waits until it has ended. Its result is then None."""
        machine, main = self._machine, self._main
        if machine is None or not machine.alive or main is None:
            return
        self._sim.note("is stopped", machine=self.name)
        self._stopping = True
        main.cancel()
        await _poll(lambda: not machine.alive)

    def pause(self, seconds: float | None = None) -> None:
        """It stands still, for so many virtual seconds or until ``resume``: time passes, its leases and heartbeats run out."""
        machine = self._machine
        if machine is None or not machine.alive or machine.paused:
            return
        self._sim.note("stands still", machine=self.name)
        machine.pause()
        if seconds is not None:
            self._sim._later(seconds, lambda: self._resume(machine))

    def resume(self) -> None:
        if self._machine is not None:
            self._resume(self._machine)

    def _resume(self, machine: Machine) -> None:
        if machine.alive and machine.paused:
            self._sim.note("goes on", machine=self.name)
            machine.resume()

    def cut(self, seconds: float | None = None) -> None:
        """No byte passes between it and the broker, for so many virtual seconds or until ``heal``."""
        self._sim.cut(self.name, self._sim.broker.name, seconds=seconds)

    def heal(self) -> None:
        self._sim.heal(self.name, self._sim.broker.name)

    def disconnect(self) -> None:
        """Its connections to the broker break; it may come back at once."""
        self._sim.note("connections are reset", machine=self.name)
        self._sim.world.network.break_connections(self.name, self._sim.broker.name)

    def clock_jump(self, seconds: float) -> None:
        """Its wall clock (``sim.wall_time()``) is set forward, or back."""
        self._offset_ns += int(seconds * 1e9)
        if self._machine is not None:
            self._machine.wall_offset_ns = self._offset_ns

    async def _run(self, machine: Machine) -> None:
        result, error = None, None
        try:
            result = await self._function(*self._args)
        except BaseException as e:
            error = e
        await end_tasks(self._sim.world, machine)
        await asyncio.sleep(1e-6)  # connections that were closed end as such, not by the end of the process
        self._gone(machine, silently=False)
        if error is None or (self._stopping and isinstance(error, asyncio.CancelledError)):
            self._sim.note("ends", machine=self.name)
            self._done.set_result(result)
            return
        self._sim.note(f"fails: {type(error).__name__}: {error}", machine=self.name)
        if self._restart_after is not None and isinstance(error, Exception) and not isinstance(error, AssertionError):
            self._sim._later(self._restart_after, self.start)
        elif self._waiters and isinstance(error, (Exception, asyncio.CancelledError)):
            self._done.set_exception(error)
        else:
            self._sim._fail(error)

    def _gone(self, machine: Machine, *, silently: bool) -> None:
        machine.kill()
        self._sim.world.network.ended(machine, silently=silently)


async def _poll(condition: Callable[[], bool]) -> None:
    """Waits for what may also come by a kill, which sets no event: looks often at first."""
    pause = FIRST_LOOK_S
    while not condition():
        await asyncio.sleep(pause)
        pause = min(pause * 1.2, 0.5)


def _at_step(machine: Machine | None, after_steps: int | None, action: Callable[[], None]) -> None:
    if after_steps is None or after_steps <= 0 or machine is None:
        action()
    else:
        machine.fuse, machine.blow = after_steps, action


async def end_tasks(world: World, machine: Machine) -> None:
    """Cancels what else runs on a machine, as ``asyncio.run`` does at its end."""
    mine = asyncio.current_task()
    tasks = [task for _, task in world.loop.unfinished(machine) if task is not mine]
    for task in tasks:
        task.cancel()
    if tasks:
        with suppress(TimeoutError):
            await asyncio.wait(tasks, timeout=END_TIMEOUT_S)
