"""An event loop on virtual time that runs many machines: nothing waits, nothing depends on the real clock, and a machine can be killed or stopped.

Owns time, the order of callbacks and which machine each belongs to. A callback belongs to the
machine in whose context it was scheduled, a task to the one that made it, whoever wakes it. So who calls what runs on a machine from outside does it
by ``Machine.call``. Network and disks are beside it (``sim.network``, ``sim.lanes``).

I1 callbacks run one at a time, those of one moment in the order they were scheduled. I2 after ``Machine.kill`` no callback of it runs again; its
unfinished tasks are kept, unrun, until the loop is closed, so that no ``finally`` of a dead machine has an effect. I3 time moves only when nothing is
ready, to the next timer. I4 asyncio sees a loop like any other: tasks, timeouts, locks, queues work.
"""

import asyncio
import contextlib
import contextvars
import heapq
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from headrace.sim.chance import Chance
from headrace.sim.trace import Trace

if TYPE_CHECKING:
    from headrace.sim.lanes import SimLane
    from headrace.sim.network import Network

WALL_START_NS: Final = 1_700_000_000_000_000_000
SPINS_MAX: Final = 2_000_000
"""Callbacks at one moment after which the run is taken for endless."""

CLOSES_MAX: Final = 1000


_T = TypeVar("_T")
_MACHINE: "contextvars.ContextVar[Machine | None]" = contextvars.ContextVar("machine", default=None)


class Stuck(RuntimeError):
    """Nothing is scheduled and the awaited thing is not done, or time stands still for ever."""


class NotSimulated(NotImplementedError):
    """Code that runs in a simulation asked for something of the real world: a socket, a thread, a signal, a pause of the whole process."""


class Handle(asyncio.TimerHandle):
    """A callback that can be cancelled. (asyncio's own is tied to its own loops.)"""

    __slots__ = ("_at", "_dropped", "_task", "arguments", "machine", "run_in")

    def __init__(self, at: float, task: Callable[..., object], arguments: tuple[Any, ...], run_in: contextvars.Context) -> None:
        self._at = at
        self._task: Callable[..., object] | None = task
        self.arguments = arguments
        self.machine = run_in.get(_MACHINE)
        self.run_in = run_in
        self._dropped = False

    def __repr__(self) -> str:
        return f"<Handle {self._task!r} at {self._at}>"

    def cancel(self) -> None:
        self._dropped = True
        self._task = None
        self.arguments = ()

    def cancelled(self) -> bool:
        return self._dropped

    def when(self) -> float:
        return self._at


class Machine:
    """One simulated computer (or process): a name others connect to, its own clock error and numbers. It is its own ``Ambient``."""

    def __init__(self, loop: "SimLoop", name: str, chance: Chance) -> None:
        self.loop = loop
        self.name = name
        self.chance = chance
        self.alive = True
        self.paused = False
        self.wall_offset_ns = 0
        self.lanes: list[SimLane] = []
        self.fuse = 0
        """After so many more callbacks ``blow`` is called; 0 = never."""
        self.blow: Callable[[], None] = self.kill
        self._context = contextvars.copy_context()
        self._context.run(_MACHINE.set, self)
        self._waiting: deque[Handle] = deque()

    def monotonic(self) -> float:
        return self.loop._now + 1000.0

    def wall_ns(self) -> int:
        return WALL_START_NS + int(self.loop._now * 1e9) + self.wall_offset_ns

    def random(self) -> float:
        return self.chance.random()

    def bits(self, count: int) -> int:
        return self.chance.getrandbits(count)

    def token(self, nbytes: int) -> str:
        return self.chance.getrandbits(8 * nbytes).to_bytes(nbytes, "big").hex()

    def context(self) -> contextvars.Context:
        """A context in which everything belongs to it."""
        return self._context.copy()

    def call(self, what: Callable[..., _T], *arguments: Any) -> _T:
        """As if something that runs on it called ``what``: all that is scheduled for that ends with it."""
        return self.context().run(what, *arguments)

    def kill(self) -> None:
        """No callback of it runs again. What others see of it is the network's and the disk's."""
        self.alive = False
        self._waiting.clear()

    def pause(self) -> None:
        """It stands still (a stopped process, a long collection): what becomes due waits."""
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.loop.requeue(self._waiting)
        self._waiting.clear()

    def hold(self, handle: Handle) -> None:
        self._waiting.append(handle)


class SimLoop(asyncio.AbstractEventLoop):
    """See the module's head."""

    def __init__(self, chance: Chance, *, rows_max: int | None = 200) -> None:
        self.chance = chance
        self.trace = Trace(self.time, rows_max=rows_max)
        self.network: Network | None = None
        self.world = Machine(self, "world", chance.fork("world"))
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        """What reached the loop's exception handler."""
        self._now = 0.0
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._sequence = 0
        self._running = self._stopping = self._closed = False
        self._tasks: list[tuple[Machine, asyncio.Task[Any]]] = []
        self._generators: dict[int, Machine] = {}
        self._handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None
        self._factory: Any = None

    @property
    def ambient(self) -> Machine:
        return _MACHINE.get() or self.world

    # ------------------------------------------------------------ scheduling

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Handle:  # type: ignore[override]
        handle = Handle(self._now, callback, args, contextvars.copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Handle:  # type: ignore[override]
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Handle:  # type: ignore[override]
        handle = Handle(when, callback, args, contextvars.copy_context() if context is None else context)
        return self._put(when if when > self._now else self._now, handle)

    def post(self, machine: Machine | None, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Runs ``callback`` on ``machine`` (None: the world) after ``delay``: how network and disks reach a machine."""
        at = self._now + delay
        return self._put(at, Handle(at, callback, args, (machine or self.world)._context.copy()))

    def _put(self, at: float, handle: Handle) -> Handle:
        self._sequence += 1
        heapq.heappush(self._timers, (at, self._sequence, handle))
        return handle

    def requeue(self, handles: deque[Handle]) -> None:
        self._ready.extend(handles)

    # ------------------------------------------------------------ running

    def run_forever(self) -> None:
        self._run(SPINS_MAX**2)

    def _run(self, steps_max: int) -> None:
        self._check()
        self._running, self._stopping = True, False
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._generator_begins, self._generator_dropped)
        try:
            self._turn(steps_max)
        finally:
            self._running = False
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(before)

    def _turn(self, steps_max: int) -> None:
        """Runs callbacks until it is stopped, moving time whenever nothing is ready. All of a run passes here, so nothing is called in vain."""
        ready, timers, pop, next_ready = self._ready, self._timers, heapq.heappop, self._ready.popleft
        last = self.steps + steps_max
        spins = 0
        while not self._stopping:
            if ready:
                handle = next_ready()
            else:
                while timers and timers[0][2]._dropped:
                    pop(timers)
                if not timers:
                    raise Stuck(f"nothing will ever happen after {self._now:.6f} s")
                at, _, handle = pop(timers)
                if at > self._now:
                    self._now = at
                    spins = 0
            task = handle._task
            if task is None:
                continue
            machine = handle.machine
            if machine is not None:
                if not machine.alive:
                    continue
                if machine.paused:
                    machine.hold(handle)
                    continue
            self.steps += 1
            spins += 1
            if spins > SPINS_MAX:
                raise Stuck(f"{SPINS_MAX} callbacks at {self._now:.6f} s; the last one: {handle!r}")
            try:
                handle.run_in.run(task, *handle.arguments)
            except (Exception, asyncio.CancelledError) as e:  # anything else is meant for who runs the loop (a limit of time, Ctrl-C)
                self.call_exception_handler({"message": "a callback failed", "exception": e, "handle": handle})
            if machine is not None and machine.fuse:
                machine.fuse -= 1
                if not machine.fuse:
                    machine.blow()
            if self.steps > last:
                raise Stuck(f"{steps_max} callbacks were not enough; it is {self._now:.6f} s")

    def run_until_complete(self, future: Any, *, steps_max: int = SPINS_MAX**2) -> Any:
        """The result of ``future``. ``Stuck`` after so many callbacks, or when nothing can happen any more."""
        self._check()
        task = asyncio.ensure_future(future, loop=self)
        task.add_done_callback(lambda _: self.stop())
        self._run(steps_max)
        return task.result()

    def run_for(self, seconds: float) -> None:
        """Lets that much virtual time pass."""
        self.post(None, seconds, self.stop)
        self.run_forever()

    def stop(self) -> None:
        self._stopping = True

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Forgets everything. Tasks that did not end are not run again."""
        self._closed = True
        self._ready.clear()
        self._timers.clear()
        for _machine, task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine: Any = task.get_coro()
                for _ in range(CLOSES_MAX):  # each await of its cleaning up is left in turn
                    with contextlib.suppress(BaseException):
                        coroutine.close()
                    if getattr(coroutine, "cr_frame", None) is None:
                        break
        self._tasks.clear()

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("the loop is closed")

    # ------------------------------------------------------------ tasks and errors

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None, **options: Any) -> "asyncio.Task[Any]":
        if self._factory is not None:
            made: asyncio.Task[Any] = self._factory(self, coro, context=context) if context is not None else self._factory(self, coro)
        else:
            made = asyncio.Task(coro, loop=self, name=name, context=context)
        machine: Machine | None = context.get(_MACHINE) if context is not None else _MACHINE.get()
        tasks = self._tasks
        tasks.append((machine or self.world, made))
        if len(tasks) > 4096 and len(tasks) & 1023 == 0:
            self._tasks = [row for row in tasks if not row[1].done() or row[1]._log_traceback]
        return made

    def unfinished(self, machine: Machine | None = None) -> "list[tuple[Machine, asyncio.Task[Any]]]":
        """Tasks of living machines (or of one) that are not done, oldest first."""
        return [(owner, task) for owner, task in self._tasks if not task.done() and owner.alive and machine in (None, owner)]

    def unseen(self) -> "list[tuple[Machine, asyncio.Task[Any]]]":
        """Tasks that ended with an exception at which nobody has looked, oldest first."""
        return [(owner, task) for owner, task in self._tasks if task.done() and task._log_traceback]

    def spawn(self, machine: Machine, work: Coroutine[Any, Any, Any], name: str = "") -> "asyncio.Task[Any]":
        """A task of that machine."""
        return self.create_task(work, name=name or machine.name, context=machine.context())

    def get_task_factory(self) -> Any:
        return self._factory

    def set_task_factory(self, factory: Any) -> None:
        self._factory = factory

    def set_exception_handler(self, handler: Any) -> None:
        self._handler = handler

    def get_exception_handler(self) -> Any:
        return self._handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._closed:
            return
        if self._handler is not None:
            self._handler(self, context)
        else:
            self.default_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        pass

    async def shutdown_asyncgens(self) -> None:
        pass

    def _generator_begins(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators[id(generator)] = self.ambient

    def _generator_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Nobody holds it any more: its machine closes it, if that lives."""
        machine = self._generators.pop(id(generator), self.world)
        if machine.alive and not self._closed:
            self.spawn(machine, generator.aclose(), "aclose")

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncio's own signature
        pass

    # ------------------------------------------------------------ threads and the network

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        """There are no threads: ``func`` runs a moment later, by itself."""
        future = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except BaseException as e:
                future.set_exception(e)

        self.call_later(0.0001, run)
        return future

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        assert self.network is not None
        _plain(options)
        return await self.network.connect(self.ambient, protocol_factory, host, port)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        assert self.network is not None
        _plain(options)
        return self.network.listen(self.ambient, protocol_factory, host, port)


def _plain(options: dict[str, Any]) -> None:
    for name in ("ssl", "sock"):
        if options.get(name):
            raise NotSimulated(f"the simulated network carries plain TCP between its machines: {name}= is not there")


def _lacks(name: str) -> Callable[..., Any]:
    def refuse(self: SimLoop, *args: Any, **options: Any) -> Any:
        raise NotSimulated(
            f"loop.{name}() needs the real world, which a simulation does not have: in it there are asyncio's tasks and timers, TCP by "
            "asyncio.open_connection, start_server, create_connection and create_server between simulated machines, and nothing else. "
            "Put a stand-in for what needs it into the test (docs/testing-your-app.md)"
        )

    refuse.__name__ = name
    return refuse


for _name in (
    "add_reader", "remove_reader", "add_writer", "remove_writer", "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into",
    "sock_sendall", "sock_sendto", "sock_connect", "sock_accept", "sock_sendfile", "sendfile", "start_tls", "getaddrinfo", "getnameinfo",
    "create_unix_connection", "create_unix_server", "create_datagram_endpoint", "connect_accepted_socket", "connect_read_pipe", "connect_write_pipe",
    "subprocess_exec", "subprocess_shell", "add_signal_handler", "remove_signal_handler", "set_default_executor",
):  # fmt: skip
    setattr(SimLoop, _name, _lacks(_name))
