"""The hunt: seeds are run with a bug planted until a promise is seen to be broken, and without it, so that being broken means something.

Owns the rounds and what is counted. A round is a few seeds: first without any bug, then with each that is not caught yet. A seed that is not clean
without a bug is told of and proves nothing about one.

I1 A mutant is caught only by a seed that the sound product passes under the same faults. I2 A seed that executes no line of a mutant is not run with
it: nothing could differ. I3 A run that does not end is broken off, and caught.
"""

import multiprocessing
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Final

import msgspec

from headrace.sim import images, swarm
from headrace.sim.chance import Chance
from headrace.sim.clusters import sweep as clusters
from headrace.sim.mqtt import run as mqtt
from headrace.sim.mutants import MUTANTS
from headrace.sim.mutants.planting import Mutant, Net, compiled
from headrace.sim.mutants.touching import lines_of, watching
from headrace.sim.run import run
from headrace.sim.scenario import DAMAGE, Fault, FaultKind, Scenario

ROUND: Final[Mapping[Net, int]] = {"runs": 10, "images": 1, "clusters": 5, "mqtt": 5}
"""Seeds a round. A seed of the images is some thousand images."""
RUN_S_MAX: Final[Mapping[Net, int]] = {"runs": 60, "images": 600, "clusters": 300, "mqtt": 300}
"""Real seconds after which a run counts as one that does not end; clean ones take less than one, and a minute."""

CLUSTERS_MAX: Final = 60
PROMISE: Final = re.compile(r"\b([KFM]\d) ")

Ground = tuple[Net, tuple[FaultKind, ...], tuple[str, ...]]
"""What a mutant is run on, which others share: the net, and the faults and features that every run gets."""
Seeds = tuple[int, ...]


class Task(msgspec.Struct, frozen=True):
    """Some seeds, with a bug or ("") without. One that is caught ends with the seed that caught it. ``wanted``: without a bug, the mutants of which
    each seed is to say whether it can show them."""

    mutant: str
    ground: Ground
    seeds: Seeds
    wanted: tuple[str, ...] = ()


class Seen(msgspec.Struct, frozen=True):
    """A promise that was broken in the run of that seed under those faults."""

    seed: int
    invariant: str
    text: str
    stir: tuple[FaultKind, ...] = ()


class Trial(msgspec.Struct, frozen=True):
    """What came of a task: everything seen, in the order of the seeds. ``shows``: by wanted mutant, the seeds that execute a line of it."""

    task: Task
    seen: tuple[Seen, ...]
    seconds: float
    shows: dict[str, Seeds] = {}


class Row(msgspec.Struct):
    """What is known of a mutant."""

    name: str
    net: Net
    wrong: str
    caught_by: list[str] = []
    """The promises seen broken in the run that caught it; [] = not caught."""
    seed: int = 0
    seeds: int = 0
    """How many were run, that one included."""
    seconds: float = 0.0
    text: str = ""
    expected: bool = True
    """Whether one of the promises that it was written to break is among those."""


class Hunt:
    """See the module's head. ``told`` is called with each row as soon as it is final, ``unclean`` with what is wrong without any bug;
    ``carry_out`` does a task (``attempt``)."""

    def __init__(
        self,
        mutants: Sequence[Mutant],
        *,
        seeds_max: int,
        images_max: int,
        clusters_max: int = CLUSTERS_MAX,
        jobs: int,
        told: Callable[[Row], None],
        unclean: Callable[[Seen], None],
        carry_out: "Callable[[Task], Trial] | None" = None,
    ) -> None:
        self.rows = {mutant.name: Row(mutant.name, mutant.net, mutant.wrong) for mutant in mutants}
        self.unclean: list[Seen] = []
        self._mutants = list(mutants)
        self._seeds_max: dict[Net, int] = {"runs": seeds_max, "images": images_max, "clusters": clusters_max, "mqtt": clusters_max}
        self._jobs = jobs
        self._told = told
        self._tell_unclean = unclean
        self._attempt = carry_out or attempt

    def run(self) -> list[Row]:
        """All rows, in the order of the mutants."""
        _prepare(list(self.rows))
        if self._jobs <= 1:
            self._rounds(lambda tasks: map(self._attempt, tasks))
        else:
            with multiprocessing.get_context("spawn").Pool(self._jobs, _prepare, ([mutant.name for mutant in self._mutants],)) as pool:
                self._rounds(lambda tasks: pool.imap_unordered(self._attempt, tasks))
        return list(self.rows.values())

    def _rounds(self, attempts: Callable[[list[Task]], Iterator[Trial]]) -> None:
        for net in ROUND:
            left = [mutant for mutant in self._mutants if mutant.net == net]
            for first in range(1, self._seeds_max[net] + 1, ROUND[net]):
                if not left:
                    break
                seeds = tuple(range(first, min(first + ROUND[net], self._seeds_max[net] + 1)))
                shows = self._clean(attempts, left, seeds)
                for trial in attempts([Task(mutant.name, ground(mutant), some) for mutant in left if (some := shows[mutant.name])]):
                    self._take(trial)
                for mutant in left:
                    row = self.rows[mutant.name]
                    row.seeds += seeds.index(row.seed) + 1 if row.seed else len(seeds)
                    if row.caught_by:
                        self._told(row)
                left = [mutant for mutant in left if not self.rows[mutant.name].caught_by]
            for mutant in left:
                self._told(self.rows[mutant.name])

    def _clean(self, attempts: Callable[[list[Task]], Iterator[Trial]], left: list[Mutant], seeds: Seeds) -> dict[str, Seeds]:
        """By mutant, the seeds that the sound product passes and that can show it."""
        grounds: dict[Ground, list[str]] = {}
        for mutant in left:
            grounds.setdefault(ground(mutant), []).append(mutant.name)
        shows: dict[str, Seeds] = {}
        for trial in attempts([Task("", of, seeds, tuple(names)) for of, names in grounds.items()]):
            first = {seen.seed: seen for seen in reversed(trial.seen)}
            self.unclean += first.values()
            for seen in first.values():
                self._tell_unclean(seen)
            for name in trial.task.wanted:
                shows[name] = tuple(seed for seed in trial.shows.get(name, seeds) if seed not in first)
        return shows

    def _take(self, trial: Trial) -> None:
        row, mutant = self.rows[trial.task.mutant], MUTANTS[trial.task.mutant]
        row.seconds += trial.seconds
        if trial.seen:
            row.seed = trial.seen[0].seed
            row.caught_by = list(dict.fromkeys(seen.invariant for seen in trial.seen))
            row.text = trial.seen[0].text
            row.expected = not {*row.caught_by}.isdisjoint(mutant.notices)


def ground(mutant: Mutant) -> Ground:
    return mutant.net, mutant.stir, mutant.wants


def _prepare(names: list[str]) -> None:
    """Compiles them, before anything takes time: ``Unplantable`` comes at once."""
    for name in names:
        compiled(MUTANTS[name])
        lines_of(MUTANTS[name])


def attempt(task: Task) -> Trial:
    """Carries out a task, in whatever process it is called."""
    began = time.perf_counter()
    seen: list[Seen] = []
    net, stir, features = task.ground
    wanted = [MUTANTS[name] for name in task.wanted]
    shows: dict[str, list[int]] = {name: [] for name in task.wanted}
    with MUTANTS[task.mutant].plant() if task.mutant else nullcontext():
        for seed in task.seeds:
            if wanted and net != "images":
                with watching(wanted) as watched:
                    seen += broken(seed, net, stir, features)
            else:
                watched = None
                seen += broken(seed, net, stir, features)
            for mutant in wanted:
                if watched is None or watched.touches(mutant):
                    shows[mutant.name].append(seed)
            if seen and task.mutant:
                break
    return Trial(task, tuple(seen), time.perf_counter() - began, {name: tuple(seeds) for name, seeds in shows.items()})


def broken(seed: int, net: Net, stir: tuple[FaultKind, ...] = (), wants: tuple[str, ...] = ()) -> list[Seen]:
    """The promises that the run of a seed breaks."""
    try:
        with limited(RUN_S_MAX[net]):
            if net == "images":
                sweep = FirstFailure(seed)
                sweep.run()
                return [Seen(seed, "images", str(failure)) for failure in sweep.failures]
            if net == "clusters":
                return list(_of_clusters(seed, clusters.one(seed).wrong))
            if net == "mqtt":
                return list(_of_clusters(seed, mqtt.one(seed).wrong))
            result, _ = run(stirred(swarm.draw(seed, wants), stir))
            return [Seen(seed, violation.invariant, violation.text, stir) for violation in result.violations]
    except TooLong:
        return [Seen(seed, "I16", f"the run did not end within {RUN_S_MAX[net]} s of real time", stir)]
    except Exception as e:  # a bug may break what runs it: that is noticed too
        return [Seen(seed, "error", "".join(traceback.format_exception(e))[-1000:], stir)]


def _of_clusters(seed: int, wrong: str) -> Iterator[Seen]:
    for line in wrong.splitlines():
        found = PROMISE.search(line)
        yield Seen(seed, found[1] if found is not None else "error", line)


class _Enough(Exception):
    pass


class FirstFailure(images.Sweep):
    """The images of a seed up to the first that is not recovered as it should."""

    def run(self) -> None:
        with suppress(_Enough):
            super().run()

    def _fail(self, point: int, number: int, inner: tuple[int, int] | None, label: str, problems: Sequence[str]) -> None:
        super()._fail(point, number, inner, label, problems)
        raise _Enough


def stirred(scenario: Scenario, stir: tuple[FaultKind, ...]) -> Scenario:
    """The scenario with those faults besides its own, while its programs are at work. Damage of its own is left out: an old file that was put back
    cannot always be told from the right one."""
    if not stir:
        return scenario
    seconds = max(scenario.seconds, min(2.0, scenario.plan.seconds))
    chance = Chance(scenario.seed, "stir")
    more = [
        Fault(
            at=round(chance.random() * min(seconds, scenario.plan.seconds), 6), kind=kind, number=chance.randrange(1 << 16),
            seconds=round(chance.between(0.001, 1.0), 6),
        )
        for kind in stir
    ]  # fmt: skip
    kept = [fault for fault in scenario.faults if fault.kind not in DAMAGE]
    return msgspec.structs.replace(scenario, seconds=seconds, faults=tuple(sorted((*kept, *more), key=lambda fault: fault.at)))


# ------------------------------------------------------------ runs that do not end


class TooLong(BaseException):
    """Not an ``Exception``: nothing in the product may take it for an error of its own."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Breaks off what takes longer. Only in a process's main thread."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
