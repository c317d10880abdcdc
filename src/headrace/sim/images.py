"""Crash images of the store: ``python -m headrace.sim.images``. Every loss of power in the middle of real work, and a real recovery from each.

Owns the sweep over the points of a recorded run (``sim.storework``), the recovery of each image that a loss of power there may leave
(``sim.recording``), and what is counted. What is right is judged by ``sim.journals``.

I1 A recovery succeeds from every image and finds no damage. I2 What it finds is a prefix of what was appended, with all that was reported durable.
I3 What it found and what is appended after it survive a second loss of power, also one in the middle of the recovery itself. I4 An image is recovered
once; where it may also arise later in the run, what was found is judged again by what was promised until then.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any, Final, NamedTuple

import msgspec

from headrace.sim.chance import Chance
from headrace.sim.disk import Disk
from headrace.sim.journals import Mark, View
from headrace.sim.recording import EMPTY, Image, Media, Op, RecordedLane, Variant, variants
from headrace.sim.recovering import Outcome, Recovery, Scars, listening, recover
from headrace.sim.storework import MakeLane, Work

KEPT: Final = 400
"""Images whose findings are kept, to be judged again."""
INNER: Final = 0.004
"""How many recoveries are themselves broken off at each of their operations."""
FAILURES_MAX: Final = 20


class Totals(msgspec.Struct):
    """What was counted."""

    seeds: int = 0
    points: int = 0
    """Crash points: the states of the disk between two operations of a run."""
    images: int = 0
    """What may survive at the points, each choice counted."""
    distinct: int = 0
    """Images with different bytes, within a seed."""
    recoveries: int = 0
    """Starts of a store, second ones included."""
    inner_points: int = 0
    inner_images: int = 0
    """Of those above: inside recoveries."""
    operations: int = 0
    scars: int = 0
    """Recoveries that had to pass over something odd in the log."""
    failed: int = 0

    def add(self, other: "Totals") -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Failure(msgspec.Struct, frozen=True):
    """``inner``: the point and variant inside the recovery of the image, if it was broken off too."""

    seed: int
    point: int
    variant: int
    inner: tuple[int, int] | None
    label: str
    problems: list[str]

    def __str__(self) -> str:
        inner = f" --inner {self.inner[0]}.{self.inner[1]}" if self.inner is not None else ""
        where = f"--seed {self.seed}" + (f" --point {self.point} --variant {self.variant}{inner}" if self.point >= 0 else "")
        return f"FAILED {where} ({self.label}): {'; '.join(self.problems[:4])}"


# ------------------------------------------------------------ the sweep


class Recorded(NamedTuple):
    """A run to be broken off at each of its operations: from ``start``, under the truth of ``view``."""

    start: Image
    ops: Sequence[Op]
    marks: Sequence[tuple[int, Mark]]
    view: View


class Case(NamedTuple):
    """One image and what it is judged by. ``view`` is as of its point, and changes when the sweep goes on."""

    point: int
    number: int
    variant: Variant
    image: Image
    view: View


def cases(run: Recorded, chance: Chance, *, thin: bool = False, only: int = -1, stride: int = 1) -> Iterator[Case]:
    """Every image of a run, point by point (``only`` one; every ``stride``-th)."""
    media, view = Media(run.start), run.view.copy()
    marks, at = run.marks, 0
    for point in range(len(run.ops) + 1):
        if point:
            media.apply(point - 1, run.ops[point - 1])
        while at < len(marks) and marks[at][0] <= point:
            view.apply(marks[at][1])
            at += 1
        if only == point or (only < 0 and not point % stride):
            for number, variant in enumerate(variants(media, run.ops, point, chance.fork(f"point {point}"), thin=thin)):
                yield Case(point, number, variant, media.image(variant, run.ops), view)


class Judged:
    """What was found in the newest images of one run, with how much had been promised when it was judged."""

    def __init__(self) -> None:
        self.kept: OrderedDict[bytes, tuple[Outcome, int]] = OrderedDict()

    def keep(self, digest: bytes, outcome: Outcome, musts: int) -> None:
        self.kept[digest] = outcome, musts
        if len(self.kept) > KEPT:
            self.kept.popitem(last=False)


class Sweep:
    """All images of one seed."""

    def __init__(
        self, seed: int, *, disk: Disk | None = None, make_lane: MakeLane = RecordedLane, images_max: int = 1 << 60, failures_max: int = FAILURES_MAX,
        stride: int = 1,
    ) -> None:
        """Ends early once there are so many images or failures. ``disk`` and ``make_lane``: others than honest ones. ``stride``: only every so many
        points."""
        self.seed, self._stride = seed, stride
        self.work = Work(seed, disk=disk, make_lane=make_lane)
        self.totals = Totals(seeds=1)
        self.failures: list[Failure] = []
        self._images_max, self._failures_max = images_max, failures_max
        self._chance = Chance(seed, "images").fork("crashes")
        self._scars = Scars()
        self._judged = Judged()
        self._seen: dict[bytes, None] = {}

    def run(self) -> None:
        with listening(self._scars):
            self.work.run()
            self.totals.operations = len(self.work.recorder.ops)
            if self.work.problems:
                self._fail(-1, 0, None, "without a crash", self.work.problems)
            point = -1
            for case in cases(recorded(self.work), self._chance, stride=self._stride):
                if self.totals.images >= self._images_max or len(self.failures) >= self._failures_max:
                    break
                self.totals.points += case.point != point
                point = case.point
                first = self._one(case, self._judged, point, case.number, None)
                if first is not None and _chosen(case.image):
                    self._inside(case, first)
        self.totals.distinct = len(self._seen)
        self.totals.failed = len(self.failures)

    def _inside(self, case: Case, first: Recovery) -> None:
        point, judged = -1, Judged()
        for inner in cases(inside(case, first), self._chance.fork(f"inside {case.point} {case.number}"), thin=True):
            self.totals.inner_points += inner.point != point
            point = inner.point
            self.totals.inner_images += 1
            self._one(inner, judged, case.point, case.number, (point, inner.number))

    def _one(self, case: Case, judged: Judged, point: int, number: int, inner: tuple[int, int] | None) -> Recovery | None:
        """Recovers and judges an image; the recovery, if this image is new and nothing is wrong."""
        totals, digest, musts = self.totals, case.image.digest, case.view.musts
        totals.images += 1
        first: Recovery | None = None
        kept = judged.kept.get(digest)
        if kept is None:
            outcome, first = recover(case.image, self.work.config, case.view, self._scars)
            totals.recoveries += outcome.recoveries
            totals.scars += outcome.scarred
            if digest in self._seen:
                first = None
            self._seen[digest] = None
        else:
            outcome = kept[0]
            if kept[1] >= musts:
                return None
        judged.keep(digest, outcome, musts)
        problems = judge(outcome, case.view)
        if problems:
            self._fail(point, number, inner, case.variant.label, problems)
            return None
        return first

    def _fail(self, point: int, number: int, inner: tuple[int, int] | None, label: str, problems: Sequence[str]) -> None:
        if len(self.failures) < self._failures_max:
            self.failures.append(Failure(self.seed, point, number, inner, label, list(problems)))


def recorded(work: Work) -> Recorded:
    return Recorded(EMPTY, work.recorder.ops, work.recorder.marks, View(work.begun))


def _chosen(image: Image) -> bool:
    return int.from_bytes(image.digest[8:12], "big") < INNER * (1 << 32)


def judge(outcome: Outcome, view: View) -> list[str]:
    problems = list(outcome.problems)
    if outcome.found or not problems:
        problems += view.judge(outcome.found, outcome.values, outcome.listed)
    return problems


def inside(case: Case, first: Recovery) -> Recorded:
    """A recovery as a run of its own."""
    view = case.view.copy()
    recorder = first.recorder
    marks = []
    for at, mark in recorder.marks:
        if mark.what == "opened":
            assert isinstance(mark.value, dict)
            # what is appended later belongs to the journals that the recovery found
            mark = mark._replace(value={pid: (first.journals[pid], shown) for pid, (_, shown) in mark.value.items()})
        marks.append((at, mark))
    return Recorded(case.image, recorder.ops, marks, view)


# ------------------------------------------------------------ one of them, shown


def account(seed: int, point: int, number: int, inner: tuple[int, int] | None) -> tuple[list[str], bool]:
    """What happened before a crash point, what survives it, and what a recovery makes of that; whether all is well."""
    scars = Scars()
    chance = Chance(seed, "images").fork("crashes")
    lines: list[str] = []
    with listening(scars):
        work = Work(seed)
        work.run()
        if point < 0:
            return [f"seed {seed}: the run itself", *work.problems], not work.problems
        run = recorded(work)
        lines += [f"seed {seed}: {len(run.ops)} operations, {len(work.journals)} partitions", *_around(run, point)]
        case = _find(run, chance, point, number, thin=False)
        lines += _survivors(case)
        outcome, first = recover(case.image, work.config, case.view, scars)
        problems = judge(outcome, case.view)
        view = case.view
        if inner is not None:
            lines += ["", "the recovery of that is broken off too:"]
            run = inside(case, first)
            lines += _around(run, inner[0])
            case = _find(run, chance.fork(f"inside {point} {number}"), inner[0], inner[1], thin=True)
            lines += _survivors(case)
            outcome, first = recover(case.image, work.config, case.view, scars)
            view = case.view
            problems = judge(outcome, view)
    lines += ["", "found:"]
    for pid, shown in sorted(outcome.found.items()):
        journal = view.journals.get(pid)
        kind = "unknown" if journal is None else "stream" if journal.stream else "queue"
        state = {None: "", False: ", being deleted", True: ", deleted"}[view.deleting.get(pid)]
        lines.append(
            f"  partition {pid} ({kind}{state}): last index {shown.last_index} (durable {view.durable.get(pid, 0)}, appended "
            f"{view.appended.get(pid, 0)}), checkpoint {shown.checkpoint.index if shown.checkpoint else '-'}, {len(shown.entries)} entries after it, "
            f"{len(shown.records)} records entries from {shown.first_offset} to {shown.next_offset}, promised {shown.promised} {shown.damaged}"
        )
    lines += ["", "the store says:", *(f"  {line}" for line in scars.lines)] if scars.lines else []
    lines += ["", *(f"WRONG: {text}" for text in problems)] if problems else ["", "all is well"]
    return lines, not problems


def _find(run: Recorded, chance: Chance, point: int, number: int, *, thin: bool) -> Case:
    for case in cases(run, chance, thin=thin, only=point):
        if case.number == number:
            return case
    raise SystemExit(f"point {point} has no variant {number}")


def _around(run: Recorded, point: int) -> list[str]:
    lines = []
    for number in range(max(0, point - 12), min(len(run.ops), point + 8)):
        for at, mark in run.marks:
            if at == number and mark.what not in ("appended", "opened"):
                lines.append(f"         {mark.what} {mark.pid or ''} {mark.number}")
        if number == point:
            lines.append("  ------ the power fails")
        op = run.ops[number]
        lines.append(f"  {number:6} {op.lane or 'loop':9} {op}" + (f" (may begin at {op.began})" if op.began < number else ""))
    if point >= len(run.ops):
        lines.append("  ------ the power fails")
    return lines


def _survivors(case: Case) -> list[str]:
    variant = case.variant
    return [
        f"variant {case.number}: {variant.label}",
        f"  names {variant.names}, writes {sorted(variant.writes)}, under way and done {list(variant.others)}",
        *(f"  {path} {len(data)} bytes" for path, data in sorted(case.image.files.items())),
    ]


# ------------------------------------------------------------ the command


def swept(seed: int) -> tuple[int, Totals, list[Failure]]:
    """One seed's sweep, for a process of a pool."""
    sweep = Sweep(seed)
    sweep.run()
    return seed, sweep.totals, sweep.failures


def run_seeds(seeds: Iterator[int], jobs: int) -> Iterator[tuple[int, Totals, list[Failure]]]:
    """Results as they come. Stops asking for seeds when the caller stops."""
    if jobs <= 1:
        yield from map(swept, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        waiting = [pool.apply_async(swept, (seed,)) for seed in islice(seeds, 4 * jobs)]  # a long one must not leave the others idle
        while waiting:
            yield waiting.pop(0).get()
            waiting += [pool.apply_async(swept, (seed,)) for seed in islice(seeds, 1)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.sim.images", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", help="A-B: those")
    parser.add_argument("--images", type=int, default=0, help="seeds from 1 on until there are so many images")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end instead of text")
    parser.add_argument("--seed", type=int, help="with --point: one image, shown")
    parser.add_argument("--point", type=int)
    parser.add_argument("--variant", type=int, default=0)
    parser.add_argument("--inner", help="POINT.VARIANT inside the recovery")
    asked = parser.parse_args(argv)
    if asked.seed is not None and asked.point is not None:
        inner = tuple(int(n) for n in asked.inner.split(".")) if asked.inner else None
        lines, well = account(asked.seed, asked.point, asked.variant, (inner[0], inner[1]) if inner else None)
        print("\n".join(lines))
        return 0 if well else 1
    if asked.seed is not None:
        seeds: Iterator[int] = iter([asked.seed])
    elif asked.seeds:
        low, _, high = asked.seeds.partition("-")
        seeds = iter(range(int(low), int(high or low) + 1))
    else:
        asked.images = asked.images or 50_000
        seeds = count(1)
    return told(run_seeds(seeds, asked.jobs), images=asked.images, as_json=asked.json)


def told(results: Iterator[tuple[int, Totals, list[Failure]]], *, images: int, as_json: bool) -> int:
    """Adds up and prints results until there are so many images (0: to the end); the exit code."""
    began, total, failures = time.monotonic(), Totals(), list[Failure]()
    for seed, totals, failed in results:
        total.add(totals)
        failures += failed
        took = time.monotonic() - began
        for failure in failed:
            print(failure, file=sys.stderr, flush=True)
        if not as_json:
            print(f"\rseed {seed}: {total.images} images, {total.images / took:.0f} a second, {len(failures)} failures", end="", flush=True)
        if images and total.images >= images:
            break
    took = time.monotonic() - began
    figures: dict[str, Any] = {**msgspec.to_builtins(total), "seconds": round(took, 1), "images_per_second": round(total.images / took, 1)}
    if as_json:
        print(json.dumps({**figures, "failures": [msgspec.to_builtins(failure) for failure in failures]}))
    else:
        print()
        for name, value in figures.items():
            print(f"{name.replace('_', ' '):18} {value}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
