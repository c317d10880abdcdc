"""How long nothing is confirmed when an owner is lost: python -m bench.failover [--kinds ...] [--times N]; figures go to docs/performance.md.

Three brokers with their etcds on this machine, a paced publisher on a queue of three copies (replica_durable). What is lost is its owner, in one of
the parts that it can play besides. The gap is the longest silence between two confirms from just before the loss until all is well again.
"""

import argparse
import asyncio
import itertools
import json
import logging
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from bench import machine, table
from headrace.client.client import Client
from headrace.client.publisher import Publisher
from headrace.model.errors import ConfirmTimeout, HeadraceError, Unavailable
from tests.chaos.machines import CONFIRM_FOREVER_S, Cluster, Machine, declared, why_no_network

BEGIN, END = "<!-- failover: begin (written by `make bench-failover`) -->", "<!-- failover: end -->"
EVERY_S: Final = 0.002
"""Between two publishes."""
BEFORE_S: Final = 1.0
"""Publishing so long before anything happens."""
PAUSED_S: Final = 8.0
"""A pause or cut: longer than the registration (5 s)."""
NEW_OWNER_S: Final = 30.0
SETTLED_S: Final = 0.5


class Kind:
    """One way to lose an owner. ``chosen`` says whether a broker plays the part; ``lose`` begins it, ``restore`` ends it."""

    def __init__(
        self,
        title: str,
        target: str,
        chosen: Callable[["Parts", Machine], bool],
        lose: Callable[[Cluster, Machine], Awaitable[None]],
        *,
        lasts_s: float = 0.0,
        networks: bool = False,
    ) -> None:
        self.title, self.target, self.chosen, self.lose, self.lasts_s, self.networks = title, target, chosen, lose, lasts_s, networks


class Parts:
    """Who plays what at a moment."""

    def __init__(self, controller: Machine, leader: Machine) -> None:
        self.controller, self.leader = controller, leader


async def kill(cluster: Cluster, owner: Machine) -> None:
    process = owner.process
    assert process is not None
    process.send_signal(signal.SIGKILL)


async def die(cluster: Cluster, owner: Machine) -> None:
    child = owner.etcd_child()
    await kill(cluster, owner)
    if child is not None:
        child.send(signal.SIGKILL)


async def pause(cluster: Cluster, owner: Machine) -> None:
    owner.pause()


async def cut(cluster: Cluster, owner: Machine) -> None:
    for other in cluster:
        if other is not owner:
            cluster.cut(owner, other)
            cluster.cut(other, owner)


KINDS: Final = {
    "owner": Kind("owner: kill -9", "p50 0.4, p99 1.5", lambda p, m: m not in (p.controller, p.leader), kill),
    "controller": Kind("owner that is the controller: kill -9", "p50 1", lambda p, m: m is p.controller and m is not p.leader, kill),
    "machine": Kind("machine: owner and etcd's leader, kill -9 of both", "max 2.5", lambda p, m: m is p.leader, die),
    "paused": Kind("owner: stands still for 8 s", "p99 3", lambda p, m: m not in (p.controller, p.leader), pause, lasts_s=PAUSED_S),
    "cut": Kind(
        "owner: cut off from the others for 8 s", "p99 3", lambda p, m: m not in (p.controller, p.leader), cut, lasts_s=PAUSED_S, networks=True
    ),
}


class Pace:
    """A paced publisher and the moments of its confirms."""

    def __init__(self, client: Client, name: str) -> None:
        self.publisher: Publisher = client.publisher(name, confirm_timeout=CONFIRM_FOREVER_S)
        self.confirmed: list[float] = []
        self.failures: list[str] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            due += EVERY_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not self.publisher.full:
                self.publisher.post(b"x" * 100).add_done_callback(self._done)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self.confirmed.append(time.monotonic())
            self._news.set()
        elif not isinstance(error, ConfirmTimeout):
            self.failures.append(str(error))

    async def first_after(self, moment: float, wait_s: float) -> None:
        async with asyncio.timeout(wait_s):
            while not self.confirmed or self.confirmed[-1] < moment:
                self._news.clear()
                await self._news.wait()

    def gap_s(self, begin: float, end: float) -> float:
        """The longest silence that touches the span."""
        times = [begin, *(t for t in self.confirmed if begin <= t <= end), end]
        return max(b - a for a, b in itertools.pairwise(times))

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.publisher.close()


class Bench:
    def __init__(self, cluster: Cluster, client: Client, tell: Callable[[str], None]) -> None:
        self.cluster, self.client, self.tell = cluster, client, tell
        self.made = 0

    async def parts(self) -> Parts:
        async with asyncio.timeout(NEW_OWNER_S):
            while True:
                controller = await self.cluster.controller()
                if controller is not None:
                    return Parts(controller, await self.cluster.leader())
                await asyncio.sleep(0.1)

    async def fitting(self, kind: Kind) -> tuple[str, Machine]:
        """A queue whose owner plays the part: one that is there, or a new one, until there is one."""
        while True:
            await self.cluster.in_sync()
            parts = await self.parts()
            if not any(kind.chosen(parts, m) for m in self.cluster):  # the controller leads etcd: its etcd's end parts the two
                child = parts.leader.etcd_child()
                if child is not None:
                    child.send(signal.SIGKILL)
                await asyncio.sleep(2.0)
                continue
            for name, owners in (await self.cluster.owners()).items():
                if kind.chosen(parts, owners[0]):
                    return name, owners[0]
            if self.made >= 12:  # owners go back to where they belong within a minute
                await asyncio.sleep(2.0)
                continue
            self.made += 1
            await declared(self.client, f"q{self.made}")
            await self.cluster.placed(f"q{self.made}")  # so that its copies are waited for

    async def emptied(self, name: str) -> None:
        """So that what earlier losses left costs nothing in this one."""
        async with asyncio.timeout(NEW_OWNER_S):
            while True:
                try:
                    await self.client.purge(name)
                    return
                except Unavailable:
                    await asyncio.sleep(0.1)

    async def once(self, kind: Kind) -> dict[str, Any]:
        name, owner = await self.fitting(kind)
        await self.emptied(name)
        pace = Pace(self.client, name)
        try:
            await pace.first_after(0, NEW_OWNER_S)
            await asyncio.sleep(BEFORE_S)
            began, wall = time.monotonic(), time.time()
            await kind.lose(self.cluster, owner)
            await pace.first_after(began + 0.05, NEW_OWNER_S)
            await asyncio.sleep(max(SETTLED_S, kind.lasts_s - (time.monotonic() - began)))
            gap_s = pace.gap_s(began - 0.1, time.monotonic())
            self.cluster.heal()
            owner.resume()
            if not kind.lasts_s:
                await owner.reap()
                self.cluster.start([owner.name])
                await owner.ready()
            await self.cluster.in_sync()
        finally:
            await pace.stop()
        return {"queue": name, "owner": owner.name, "at": wall, "gap_s": round(gap_s, 3), "failures": pace.failures[:3]}


async def measured(kinds: list[str], times: int, folder: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cluster = Cluster(folder, networks=any(KINDS[k].networks for k in kinds))
    try:
        cluster.start()
        await cluster.ready()
        async with cluster.connect() as client:
            bench = Bench(cluster, client, tell)
            for kind in kinds:
                for number in range(1, times + 1):
                    load = os.getloadavg()[0]
                    found = await bench.once(KINDS[kind])
                    rows.append({"kind": kind, "load": round(load, 2), **found})
                    tell(f"{kind} {number}/{times}: {found['gap_s']:.3f} s, owner {found['owner']}, load {load:.1f}")
    finally:
        await cluster.close()
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    lines = ["| lost | times | gap in confirms, s: p50 | p99 | max | target |", "|---|--:|--:|--:|--:|---|"]
    for key, kind in KINDS.items():
        gaps = sorted(r["gap_s"] for r in rows if r["kind"] == key)
        if gaps:
            p99 = gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))]
            lines.append(f"| {kind.title} | {len(gaps)} | {statistics.median(gaps):.2f} | {p99:.2f} | {gaps[-1]:.2f} | {kind.target} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    logging.getLogger("headrace.client").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="one line a loss and a summary, on standard output")
    parser.add_argument("--keep", type=Path, help="keep data and logs in this folder")
    parser.add_argument("--write", action="store_true", help="the table into docs/performance.md")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    for kind in kinds:
        if kind not in KINDS:
            parser.error(f"--kinds: {kind!r} is none of {', '.join(KINDS)}")
        if KINDS[kind].networks and (why := why_no_network()):
            parser.error(f"--kinds: {kind} needs networks of their own: {why}")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="headrace-failover-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        rows = asyncio.run(measured(kinds, options.times, folder, lambda text: print(text, file=sys.stderr, flush=True)))
    except (HeadraceError, TimeoutError, AssertionError) as e:
        print(f"ended early: {e!r}", file=sys.stderr)
        return 1
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        for row in rows:
            print(json.dumps(row))
    loads = sorted(r["load"] for r in rows)
    command = f"python -m bench.failover {' '.join(sys.argv[1:])}".strip()
    text = f"{time.strftime('%Y-%m-%d')}, {machine.description()}; `{command}`; load before each loss {loads[0]} to {loads[-1]}\n\n{summary(rows)}"
    print(text)
    if options.write:
        table.insert(Path(__file__).resolve().parent.parent / "docs" / "performance.md", text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
