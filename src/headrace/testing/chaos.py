"""Random faults while a test runs: which, when and for how long comes from the seed; afterwards everything is whole again.

Owns only what it broke: I1 when it ends, every link is whole, the broker serves and each process that chaos killed or paused runs. I2 a process that
has ended by itself is left alone.
"""

import asyncio
from collections.abc import Callable, Collection, Generator
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    from headrace.testing.actors import Process
    from headrace.testing.simulation import Simulation

Fault = Literal[
    "kill_process", "pause_process", "cut_process", "disconnect",
    "kill_broker", "power_loss", "pause_broker", "restart_broker", "slow_disk", "disk_full", "clock_jump",
]  # fmt: skip
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
DEFAULT: Final[tuple[Fault, ...]] = tuple(f for f in FAULTS if f not in ("disk_full", "clock_jump"))
STEPS_MAX: Final = 400
"""A process dies within so many callbacks of its loop, at a step drawn evenly over magnitudes."""


class Chaos:
    """See the module's head. Made by ``Simulation.chaos``."""

    def __init__(self, sim: "Simulation", seconds: float | None, every: float, faults: Collection[Fault] | None) -> None:
        wrong = sorted(set(faults or ()) - set(FAULTS))
        if wrong:
            raise ValueError(f"chaos knows no {', '.join(wrong)}; it knows {', '.join(FAULTS)}")
        if every <= 0:
            raise ValueError(f"every is {every}; it is a number of virtual seconds above 0")
        self.count = 0
        """Faults so far."""
        self._sim = sim
        self._seconds = seconds
        self._every = every
        self._chance = sim.world.chance.fork(f"chaos at {sim.now:.6f}")
        chosen: Collection[str] = DEFAULT if faults is None else faults
        self._faults = [fault for fault in FAULTS if fault in chosen and (sim.durable or fault not in _LOSES_MEMORY)]
        self._task: asyncio.Task[None] | None = None

    def __await__(self) -> Generator[Any, None, None]:
        return self._for_a_while().__await__()

    async def _for_a_while(self) -> None:
        if self._seconds is None:
            raise TypeError("say how long: await sim.chaos(60); without a time it is used as async with sim.chaos():")
        async with self:
            await asyncio.sleep(self._seconds)

    async def __aenter__(self) -> "Chaos":
        loop = self._sim.world.loop
        self._task = loop.spawn(loop.world, self._rage(), "chaos")
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        if self._task.done():
            self._task.result()
        self._task.cancel()
        await self.heal()

    async def heal(self) -> None:
        """Everything is whole again; returns once the broker serves."""
        sim = self._sim
        sim.note("ends, all is healed", machine="chaos")
        broker = sim.broker
        broker.resume()
        broker.unfuse()
        broker.disk_freed()
        if "slow_disk" in self._faults:
            broker.disk_slow(1)
        sim.heal()
        loop = sim.world.loop
        await loop.spawn(loop.world, broker.start(), "start the broker")
        for process in sim.processes.values():
            if process.alive:
                process.resume()
                process.unfuse()
            elif process.killed:
                process.start()

    async def _rage(self) -> None:
        while self._faults:
            await asyncio.sleep(self._chance.between(0.02, 2.0) * self._every)
            fault = self._chance.choice(self._faults)
            if await _ACTIONS[fault](self):
                self.count += 1

    # ------------------------------------------------------------ faults: False = not possible now

    def _process(self) -> "Process | None":
        running = [p for p in self._sim.processes.values() if p.alive]
        return self._chance.choice(running) if running else None

    def _time(self) -> float:
        """From a moment to longer than heartbeats and leases usually are."""
        return self._chance.between(0.05, 40.0)

    async def _kill_process(self) -> bool:
        process = self._process()
        if process is None:
            return False
        steps = int(self._chance.between(1, STEPS_MAX))
        process.kill(after_steps=steps, restart_after=self._chance.between(0.01, 5.0), silently=self._chance.happens(0.3))
        return True

    async def _pause_process(self) -> bool:
        process = self._process()
        if process is not None:
            process.pause(self._time())
        return process is not None

    async def _cut_process(self) -> bool:
        process = self._process()
        names = process.name if process is not None else "test", self._sim.broker.name
        one, other = names if self._chance.happens(0.5) else names[::-1]
        self._sim.cut(one, other, seconds=self._time(), one_way=self._chance.happens(0.4))
        return True

    async def _disconnect(self) -> bool:
        process = self._process()
        if process is not None and self._chance.happens(0.7):
            process.disconnect()
        else:
            self._sim.broker.disconnect()
        return True

    async def _kill_broker(self) -> bool:
        return self._broker_dies(self._sim.broker.kill)

    async def _power_loss(self) -> bool:
        return self._broker_dies(self._sim.broker.power_loss)

    def _broker_dies(self, kill: Callable[..., None]) -> bool:
        if not self._sim.broker.alive:
            return False
        kill(after_steps=int(self._chance.between(1, STEPS_MAX)), restart_after=self._chance.between(0.01, 5.0))
        return True

    async def _pause_broker(self) -> bool:
        if not self._sim.broker.serving:
            return False
        self._sim.broker.pause(self._time())
        return True

    async def _restart_broker(self) -> bool:
        if not self._sim.broker.serving:
            return False
        await self._sim.broker.stop()
        await self._sim.broker.revive()
        return True

    async def _slow_disk(self) -> bool:
        self._sim.broker.disk_slow(self._chance.choice([1.0, 10.0, 100.0]))
        return True

    async def _disk_full(self) -> bool:
        self._sim.broker.disk_full(self._time())
        return True

    async def _clock_jump(self) -> bool:
        self._sim.broker.clock_jump(self._chance.choice([-1, 1]) * self._chance.between(0.1, 7200.0))
        return True


_ACTIONS: Final = {
    "kill_process": Chaos._kill_process,
    "pause_process": Chaos._pause_process,
    "cut_process": Chaos._cut_process,
    "disconnect": Chaos._disconnect,
    "kill_broker": Chaos._kill_broker,
    "power_loss": Chaos._power_loss,
    "pause_broker": Chaos._pause_broker,
    "restart_broker": Chaos._restart_broker,
    "slow_disk": Chaos._slow_disk,
    "disk_full": Chaos._disk_full,
    "clock_jump": Chaos._clock_jump,
}
_LOSES_MEMORY: Final = ("kill_broker", "power_loss", "restart_broker", "slow_disk", "disk_full")
assert set(_ACTIONS) == set(FAULTS)
