"""Running tests on virtual time: the decorator ``simulated``, its plain form ``run_simulated``, seeds, and what a failed run says.

Owns the choice of seeds, the end of a run (done, failed, stuck, over its limit) and the words on how to repeat it. The simulator is imported when
the first test runs, so that naming the decorator costs nothing.

I1 A run leaves nothing behind: no task, no thread, no handler, and Python's own ``random`` as it was. I2 Whatever ends a run in failure carries its
seed, its timeline and how to repeat it, as notes on the exception.
"""

import asyncio
import functools
import gc
import inspect
import os
import random
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, overload

if TYPE_CHECKING:
    from headrace.model.config import Config
    from headrace.sim.trace import Row
    from headrace.testing.guard import Real
    from headrace.testing.simulation import Simulation

T = TypeVar("T")
Test = Callable[..., Coroutine[Any, Any, T]]

LIMIT_S: Final = 3600.0
ROWS_SHOWN: Final = 40
SEED, SEEDS = "HEADRACE_SEED", "HEADRACE_SEEDS"


class SimulationTimeout(TimeoutError):
    """The test did not end within its virtual seconds, or nothing could ever happen any more. The message names what each task waits for."""


class NotRepeatable(AssertionError):
    """Two runs of one seed differ: the test depends on something that the seed does not make."""


class BrokerError(AssertionError):
    """The broker logged a traceback: a bug in it. Please report the seed with the test."""


@dataclass(frozen=True)
class Run(Generic[T]):
    """What came of one run."""

    seed: int
    result: T
    digest: str
    """A hash over all that happened; the same for each run of a seed."""
    virtual_s: float
    real_s: float
    steps: int
    """Callbacks of the event loop."""
    timeline: "tuple[Row, ...]"


def run_simulated(
    test: Test[T],
    *args: Any,
    seed: int = 0,
    storage: Literal["disk", "memory"] = "disk",
    limit: float = LIMIT_S,
    config: "Config | None" = None,
    allow: "Collection[Real]" = (),
    **options: Any,
) -> Run[T]:
    """Runs ``test(*args, sim=..., **options)`` once on virtual time. See ``simulated`` for the arguments; whatever the test raises is raised."""
    __tracebackhide__ = True
    return _run(test, args, options, seed=seed, storage=storage, limit=limit, config=config, allow=allow, rows_max=20_000)[0]


@overload
def simulated(test: Test[Any], /) -> Callable[..., None]: ...
@overload
def simulated(
    *,
    seed: int = 0,
    seeds: int | Iterable[int] | None = None,
    storage: Literal["disk", "memory"] = "disk",
    limit: float = LIMIT_S,
    config: "Config | None" = None,
    allow: "Collection[Real]" = (),
    twice: bool = False,
) -> Callable[[Test[Any]], Callable[..., None]]: ...
def simulated(
    test: Test[Any] | None = None,
    /,
    *,
    seed: int = 0,
    seeds: int | Iterable[int] | None = None,
    storage: Literal["disk", "memory"] = "disk",
    limit: float = LIMIT_S,
    config: "Config | None" = None,
    allow: "Collection[Real]" = (),
    twice: bool = False,
) -> Any:
    """Makes a plain test function of a coroutine function with a parameter ``sim``: it runs on virtual time, with a broker that already serves.

    For pytest (fixtures and ``parametrize`` work as ever, async fixtures do not), ``unittest`` and anything that calls functions.

    ``seeds``: how many (0, 1, 2 ...) or which seeds to run it under, one after another; the first that fails ends it. ``HEADRACE_SEED=17`` in the
    environment (with pytest ``--headrace-seed=17``) runs that one only, ``HEADRACE_SEEDS=1000`` or ``500-999`` others than those here.
    ``storage``: the broker's; one in memory has lost everything when it was killed. ``limit``: virtual seconds after which the test fails with
    ``SimulationTimeout``. ``config``: the broker's, but for addresses, directory and storage. ``allow``: of "sleep", "sockets" and "threads" what is
    let through to the real world. ``twice``: each seed runs twice, and two runs that differ fail with ``NotRepeatable``.
    """

    def decorate(test: Test[Any]) -> Callable[..., None]:
        if not inspect.iscoroutinefunction(test):
            raise TypeError(f"simulated() wants a coroutine function; {getattr(test, '__qualname__', test)!r} is none: write async def")
        signature = inspect.signature(test)
        if "sim" not in signature.parameters:
            raise TypeError(f"{test.__qualname__} has no parameter sim: the simulation is handed in by that name")
        fixed = [seed] if seeds is None else list(range(seeds)) if isinstance(seeds, int) else list(seeds)

        @functools.wraps(test)
        def run(*args: Any, **options: Any) -> None:
            __tracebackhide__ = True
            chosen = _chosen(fixed)
            for done, number in enumerate(chosen):
                once = functools.partial(
                    _run, test, args, options, seed=number, storage=storage, limit=limit, config=config, allow=allow, before=done, of=len(chosen)
                )
                first, rows = once(rows_max=None if twice else 20_000)
                if twice:
                    _compare(number, first, rows, *once(rows_max=None))

        parameters = [p for p in signature.parameters.values() if p.name != "sim"]
        run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
        return run

    return decorate if test is None else decorate(test)


def _chosen(fixed: list[int]) -> list[int]:
    """The environment's seeds, or the test's own."""
    one, many = os.environ.get(SEED, ""), os.environ.get(SEEDS, "")
    try:
        if one:
            return [int(one)]
        if many:
            low, dash, high = many.partition("-")
            return list(range(int(low), int(high) + 1)) if dash else list(range(int(low)))
    except ValueError:
        raise ValueError(f"{SEED} is a number and {SEEDS} a count or a range such as 500-999; they are {one!r} and {many!r}") from None
    return fixed


def _run(
    test: Test[T],
    args: tuple[Any, ...],
    options: dict[str, Any],
    *,
    seed: int,
    storage: Literal["disk", "memory"],
    limit: float,
    config: "Config | None",
    allow: "Collection[Real]",
    rows_max: int | None,
    before: int = 0,
    of: int = 1,
) -> "tuple[Run[T], list[Row]]":
    """One run, and all its rows."""
    __tracebackhide__ = True
    from headrace.testing.guard import REAL, guarded
    from headrace.testing.simulation import Simulation
    from headrace.testing.timeline import logged

    if unknown := sorted(set(allow) - set(REAL)):
        raise ValueError(f"allow knows no {', '.join(unknown)}; it knows {', '.join(REAL)}")
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("an event loop is running: a simulated test has a loop of its own, so it is called from plain code (def, not async def)")
    began = time.perf_counter()
    with ExitStack() as stack:
        sim = Simulation(seed, storage=storage, config=config, rows_max=rows_max, fail=lambda _error: sim.world.loop.stop())
        world, loop = sim.world, sim.world.loop
        stack.enter_context(world)
        stack.enter_context(_steady(seed))
        broken = stack.enter_context(logged(sim))
        try:
            with guarded(allow, lambda why: world.trace.remark(loop.ambient.name, "was refused", why.strip())):
                result = _drive(sim, functools.partial(test, *args, **options), limit)
            _check(sim, broken)
        except BaseException as e:
            if not isinstance(e, (KeyboardInterrupt, GeneratorExit)):
                _annotate(e, sim, test, before=before, of=of)
            raise
        run = Run(seed, result, world.trace.digest(), sim.now, time.perf_counter() - began, loop.steps, tuple(sim.timeline))
        return run, list(world.trace.rows)


@contextmanager
def _steady(seed: int) -> Iterator[None]:
    """Python's own ``random`` follows the seed, and objects are not collected at moments that depend on what ran before."""
    state, collects = random.getstate(), gc.isenabled()
    random.seed(seed)
    gc.disable()
    try:
        yield
    finally:
        random.setstate(state)
        if collects:
            gc.enable()


def _drive(sim: "Simulation", test: Test[T], limit: float) -> T:
    """Runs the test to its end, whichever that is."""
    __tracebackhide__ = True
    from headrace.sim.loop import Stuck
    from headrace.testing.actors import end_tasks

    loop = sim.world.loop
    over = False

    async def main() -> T:
        try:
            await loop.spawn(loop.world, sim.broker.start(), "start the broker")
            return await test(sim=sim)
        finally:
            if not over:
                await end_tasks(sim.world, sim.test)

    def too_long() -> None:
        nonlocal over
        over = True
        loop.stop()

    task = loop.spawn(sim.test, main(), "test")
    task.add_done_callback(lambda _: loop.stop())
    loop.post(None, limit, too_long)
    try:
        loop.run_forever()
    except Stuck as e:
        raise SimulationTimeout(_stalled(sim, str(e))) from None
    if sim.error is not None:
        if task.done() and not task.cancelled():
            task.exception()  # looked at
        raise sim.error
    if not task.done():
        raise SimulationTimeout(
            _stalled(sim, f"the test has not ended within {limit:g} virtual seconds (simulated(limit=...) allows more)")
        ) from next((t.exception() for _, t in loop.unseen()), None)
    result: T = task.result()
    return result


def _stalled(sim: "Simulation", why: str) -> str:
    from headrace.testing.stalls import all_waiting

    lines = [why + "; what waits:", *all_waiting(sim.world.loop)]
    if not sim.broker.serving:
        lines.append(f"  {sim.broker.name} does not run")
    lines += [f"  {p.name} was killed and not restarted" for p in sim.processes.values() if p.killed]
    return "\n".join(lines)


def _check(sim: "Simulation", broken: list[str]) -> None:
    """Raises what nobody has looked at."""
    __tracebackhide__ = True
    loop = sim.world.loop
    unseen: list[BaseException] = []
    for _machine, task in loop.unseen():
        error = task.exception()
        assert error is not None
        error.add_note(f"This is what the task {task.get_name()!r} raised; nobody awaited it.")
        unseen.append(error)
    for context in loop.errors:
        error = context.get("exception")
        if isinstance(error, BaseException) and error not in unseen:
            error.add_note(f"This reached the event loop: {context.get('message')}.")
            unseen.append(error)
    if unseen:
        for other in unseen[1:]:
            unseen[0].add_note(f"And so did: {type(other).__name__}: {other}")
        raise unseen[0]
    if broken:
        raise BrokerError("the broker logged a traceback, which is a bug in it: " + "; ".join(broken))


def _annotate(error: BaseException, sim: "Simulation", test: Test[Any], *, before: int, of: int) -> None:
    from headrace.testing.timeline import shown

    rows = sim.timeline
    passed = f", after {before} of {of} seeds had passed" if before else ""
    current = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    again = f"pytest '{current}' --headrace-seed={sim.seed}" if current else f"{SEED}={sim.seed} in the environment, or simulated(seed={sim.seed})"
    cut = f" (the last {ROWS_SHOWN} of {len(rows)} lines)" if len(rows) > ROWS_SHOWN else ""
    with suppress(AttributeError, TypeError):
        error.add_note(
            f"\nSimulation with seed {sim.seed}{passed}; it failed after {sim.now:.3f} virtual seconds.\nAgain: {again}\n"
            f"Timeline{cut}:\n{shown(rows[-ROWS_SHOWN:])}"
        )


def _compare(seed: int, first: Run[Any], rows: "list[Row]", second: Run[Any], others: "list[Row]") -> None:
    __tracebackhide__ = True
    if first.digest == second.digest:
        return
    from headrace.testing.timeline import shown

    at = next((i for i, (one, other) in enumerate(zip(rows, others, strict=False)) if one != other), min(len(rows), len(others)))
    raise NotRepeatable(
        f"two runs of seed {seed} differ: the test depends on something that the seed does not make (the real clock, uuid4, the order of a set of "
        f"strings, a file or an object that the first run left changed). First difference:\n{shown(rows[at : at + 3])}\nthe second time:\n"
        f"{shown(others[at : at + 3])}"
    )
