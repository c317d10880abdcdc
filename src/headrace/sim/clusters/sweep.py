"""Many clusters on some cores: results as they come, and what they add up to."""

import gc
import multiprocessing
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from headrace.sim.clusters.run import Run, Totals

AHEAD = 8
"""Seeds given to each worker before their results are looked at."""
SEEDS_A_WORKER = 200


class Result(msgspec.Struct):
    """Of one seed; ``wrong`` is empty if every promise was kept."""

    seed: int
    totals: Totals
    wrong: str = ""


def one(seed: int) -> Result:
    """Runs a seed."""
    return carried_out(Run, seed)


def carried_out(make: Callable[[int], Run], seed: int) -> Result:
    """Runs a seed of that kind of cluster."""
    began = time.process_time()
    run: Run | None = None
    wrong = ""
    try:
        run = make(seed)
        run.go()
    except Exception as e:  # a mistake of the simulator is a failure of that seed, not of the sweep
        wrong = f"{type(e).__name__}: {e}" if type(e).__name__ == "Broken" else "".join(traceback.format_exception(e))[-2000:]
    totals = run.totals if run is not None else Totals(seeds=1)
    totals.failed = int(bool(wrong))
    totals.real_s = time.process_time() - began
    return Result(seed, totals, wrong)


def sweep(seeds: Iterable[int], *, jobs: int, until: float | None = None, work: Callable[[int], Result] = one) -> Iterator[Result]:
    """Results in the order of the seeds; no new one is begun after ``until`` (monotonic seconds). ``work`` runs a seed, in any process."""

    def some() -> Iterator[int]:
        for seed in seeds:
            if until is not None and time.monotonic() >= until:
                return
            yield seed

    if jobs == 1:
        for seed in some():
            yield work(seed)
        return
    ahead: deque[multiprocessing.pool.AsyncResult[Result]] = deque()
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_begin, maxtasksperchild=SEEDS_A_WORKER) as pool:
        for seed in some():
            ahead.append(pool.apply_async(work, (seed,)))
            while len(ahead) >= jobs * AHEAD:
                yield ahead.popleft().get()
        while ahead:
            yield ahead.popleft().get()


def _begin() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
