"""The simulation as a test sees it: a broker, processes of the test's own, cuts between machines, chaos, and waiting for what shall become true.

Owns the names that tests use; time, network and disks are ``headrace.sim``'s, broker and processes are in ``actors``. Invariant: the same seed gives
the same run.
"""

import asyncio
import inspect
from collections.abc import Callable, Collection
from typing import Any, Final, Literal

from headrace.client.client import connect
from headrace.model.config import KIB, MIB, Config, Limits, Storage
from headrace.model.errors import HeadraceError, NotFound
from headrace.model.relations import contradictions
from headrace.sim.chance import Chance
from headrace.sim.trace import Row
from headrace.sim.world import Speeds, World
from headrace.testing.actors import Broker, Process, Work
from headrace.testing.chaos import Chaos, Fault
from headrace.testing.timeline import NOISE

TEST: Final = "test"
"""The machine on which the test itself runs."""
POLL_S: Final = 0.01

SETTINGS: Final = Config(
    limits=Limits(frame_bytes_max=512 * KIB, message_bytes_max=448 * KIB),
    storage=Storage(wal_file_bytes=1 * MIB, flush_bytes_max=512 * KIB, disk_free_bytes_min=1 * MIB, ballast_bytes=0),
)
"""Small files, which are quick to fill with zeros; messages have to fit into them."""
assert not contradictions(SETTINGS), contradictions(SETTINGS)


class Simulation:
    """What a simulated test is given. Virtual time passes only where something waits: ``await asyncio.sleep(3600)`` takes no real time."""

    def __init__(
        self,
        seed: int,
        *,
        storage: Literal["disk", "memory"] = "disk",
        config: Config | None = None,
        rows_max: int | None = 20_000,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.seed = seed
        self.world = World(seed, rows_max=rows_max)
        chance = self.world.chance.fork("simulated")
        self.random: Chance = chance.fork("random")
        """For the test's own draws, repeated by the seed; it is a ``random.Random``."""
        delay = chance.between(0.000_05, 0.003)
        self.world.network.shape(delay, delay * chance.random(), chance.pick([(2.0, 0.0), (1.0, 0.3)]))
        flush, work = chance.between(0.000_1, 0.003), chance.between(0.000_1, 0.003)
        self._speeds = Speeds(flush=(flush, flush * 4), work=(work, work * 4))
        inner = self.world.broker("broker-1", config or SETTINGS, storage=storage)
        inner.speeds = self._speeds
        self.broker = Broker(self, inner)
        self.durable = storage == "disk"
        self.processes: dict[str, Process] = {}
        self.test = self.world.machine(TEST)
        self.error: BaseException | None = None
        self._fail_run = fail
        self._cuts: dict[tuple[str, str], int] = {}

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return self.broker.url

    @property
    def now(self) -> float:
        """Virtual seconds since the simulation began."""
        return self.world.loop.time()

    def wall_time(self) -> float:
        """As ``time.time()``: virtual seconds since 1970, of the process that asks. Hand it to code that needs a clock."""
        return self.world.loop.ambient.wall_ns() / 1e9

    @property
    def machines(self) -> list[str]:
        """The names on the network: broker, test and processes. Servers that a process opens are reached under its name."""
        return list(self.world.network.machines)

    @property
    def timeline(self) -> list[Row]:
        """What happened so far: faults, starts and ends, what was logged or noted."""
        return [row for row in self.world.trace.rows if row.what not in NOISE]

    def note(self, text: str, *, machine: str | None = None) -> None:
        """Puts a line into the timeline, which is printed when the test fails."""
        name = machine or self.world.loop.ambient.name
        if machine is None:
            self.world.trace.remark(name, "notes", text)
        else:
            self.world.note(name, text)

    def spawn(self, function: Work, *args: Any, name: str | None = None, restart_after: float | None = None) -> Process:
        """Runs ``function(*args)``, a coroutine function, as a process of its own, which can be killed, paused, cut off and restarted.

        ``name``: by default the function's, with a number. ``restart_after``: somebody (as systemd would) starts it again so many virtual seconds
        after it was killed or has failed; without it, an exception ends the test, unless something awaits the process. An ``AssertionError`` always
        does."""
        given: Any = function
        if inspect.iscoroutine(given):
            given.close()
            raise TypeError("spawn wants the function, not the coroutine: sim.spawn(work, 1), not sim.spawn(work(1)); a restart calls it again")
        if name is None:
            plain = getattr(function, "__name__", type(function).__name__).strip("_")
            count = sum(p._function == function for p in self.processes.values())
            name = next(n for n in (f"{plain}-{i}" for i in range(count + 1, 10_000)) if n not in self.world.network.machines)
        if name in self.world.network.machines:
            raise ValueError(f"there is a machine {name!r} already; give another name=")
        process = self.processes[name] = Process(self, name, function, args, restart_after)
        process.start()
        return process

    def cut(self, one: str, other: str, *, seconds: float | None = None, one_way: bool = False) -> None:
        """No byte passes between two machines (``one_way``: none from ``one`` to ``other``), for so many virtual seconds or until ``heal``.
        Connections stay, bytes wait, as with TCP; heartbeats run out after a while."""
        for name in (one, other):
            if name not in self.world.network.machines:
                raise ValueError(f"there is no machine {name!r}; there are {', '.join(self.machines)}")
        number = self._cuts[one, other] = self._cuts.get((one, other), 0) + 1
        self.world.network.cut(one, other)
        if not one_way:
            self.world.network.cut(other, one)

        def heal() -> None:
            if self._cuts[one, other] == number:  # not cut again meanwhile
                self.heal(one, other)

        if seconds is not None:
            self._later(seconds, heal)

    def heal(self, one: str = "", other: str = "") -> None:
        """Ends the cuts between two machines; without names, all."""
        if not one:
            self.world.network.heal_all()
        else:
            self.world.network.heal(one, other)
            self.world.network.heal(other, one)

    def chaos(self, seconds: float | None = None, *, every: float = 2.0, faults: Collection[Fault] | None = None) -> Chaos:
        """Faults by the seed, about one each ``every`` virtual seconds: ``await sim.chaos(60)`` for that long, or ``async with sim.chaos():`` while
        the block runs. Afterwards all is healed, and the broker and every process that chaos killed run again. ``faults``: which
        (``headrace.testing.chaos.FAULTS``), by default all but ``disk_full``, which makes publishes fail, and ``clock_jump``."""
        return Chaos(self, seconds, every, faults)

    async def until(self, condition: Callable[[], Any], *, timeout: float = 60.0, what: str = "") -> Any:  # noqa: ASYNC109 (virtual seconds, as people pass them)
        """Returns once ``condition()`` is true (it may be a coroutine function), and what it gave; ``TimeoutError`` after so many virtual seconds."""
        end = self.now + timeout
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            if self.now >= end:
                code = getattr(condition, "__code__", None)
                where = what or (f"the condition at {code.co_filename}:{code.co_firstlineno}" if code is not None else repr(condition))
                raise TimeoutError(f"{where} was not true within {timeout:g} virtual seconds")
            await asyncio.sleep(POLL_S)

    async def drained(self, *queues: str, timeout: float = 600.0) -> None:  # noqa: ASYNC109 (virtual seconds, as people pass them)
        """Returns once those queues are empty: nothing ready, leased or delayed. Waits for a broker that does not answer; ``TimeoutError`` after so
        many virtual seconds, ``NotFound`` for a queue that is not there."""
        end = self.now + timeout
        left: dict[str, str] = {}
        async with connect(self.url, wait=timeout, name="sim.drained") as client:
            while self.now < end:
                left.clear()
                for name in queues:
                    try:
                        info = await client.describe(name)
                    except NotFound:
                        raise
                    except HeadraceError as e:
                        left[name] = str(e)
                        continue
                    if info.ready or info.leased or info.delayed:
                        left[name] = f"{info.ready} ready, {info.leased} leased, {info.delayed} delayed"
                if not left:
                    return
                await asyncio.sleep(0.1)
        raise TimeoutError(f"after {timeout:g} virtual seconds there is still " + "; ".join(f"{name}: {what}" for name, what in left.items()))

    # ------------------------------------------------------------ inside

    def _later(self, seconds: float, action: Callable[[], object]) -> None:
        self.world.loop.post(None, seconds, action)

    def _soon(self, seconds: float, action: Work) -> None:
        """An action of the world's own that takes time; what it raises ends the test."""

        async def act() -> None:
            try:
                await action()
            except Exception as e:
                self._fail(e)

        self._later(seconds, lambda: self.world.loop.spawn(self.world.loop.world, act(), "world"))

    def _fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self._fail_run(error)
