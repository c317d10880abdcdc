"""Many seeds on all cores: results as they come, and what they add up to."""

import multiprocessing
import multiprocessing.pool
import os
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from headrace.sim.run import Result, Violation, run_seed

AHEAD = 8
"""Seeds given to each worker before their results are looked at."""


class Totals(msgspec.Struct, kw_only=True):
    """What a sweep came to."""

    seeds: int = 0
    failures: int = 0
    events: int = 0
    effects: int = 0
    faults: int = 0
    messages: int = 0
    hurt: int = 0
    """Runs in which bytes on a disk were damaged."""
    virtual_s: float = 0.0
    real_s: float = 0.0
    """On all cores together."""
    broken: dict[str, int] = {}

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.failures += not result.ok
        self.events += result.events
        self.effects += result.effects
        self.faults += result.faults
        self.messages += result.messages
        self.hurt += result.damaged
        self.virtual_s += result.virtual_s
        self.real_s += result.real_s

    @property
    def events_a_second(self) -> float:
        """On one core."""
        return self.events / self.real_s if self.real_s else 0.0


def quiet(seed: int) -> Result:
    """The run of a seed in a worker process."""
    try:
        return run_seed(seed)[0]
    except Exception as e:  # a mistake in the simulator is a failure of that seed, not of the sweep
        return Result(seed=seed, violations=[Violation("simulator", "".join(traceback.format_exception(e))[-2000:])])


def sweep(seeds: Iterable[int], *, jobs: int, until: float | None = None) -> Iterator[Result]:
    """Results as they come; no new seed is begun after ``until`` (monotonic seconds)."""

    def some() -> Iterator[int]:
        for seed in seeds:
            if until is not None and time.monotonic() >= until:
                return
            yield seed

    if jobs == 1:
        yield from map(quiet, some())
        return
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=500) as pool:
        yield from _windowed(pool, some(), jobs)


def _windowed(pool: "multiprocessing.pool.Pool", seeds: Iterator[int], jobs: int) -> Iterator[Result]:
    """At most a few seeds ahead, so that a sweep by time ends in time."""
    ahead: deque[multiprocessing.pool.AsyncResult[Result]] = deque()
    for seed in seeds:
        ahead.append(pool.apply_async(quiet, (seed,)))
        while len(ahead) >= jobs * AHEAD:
            yield ahead.popleft().get()
    while ahead:
        yield ahead.popleft().get()


def seeds_of(text: str) -> list[int]:
    """``A-B``, ``A,B,C`` or a file with one seed a line (# begins a comment)."""
    if os.path.exists(text):
        lines = [line.partition("#")[0].strip() for line in Path(text).read_text().splitlines()]
        return [int(line) for line in lines if line]
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]
