"""Queues of a simulated cluster that are used once in a while: their copies are idle on most brokers, most of the time.

Owns who declares them and publishes to them. What they hold is taken once all is healed, and missed by K1 and K5 of ``sim.clustered`` if it does not
come.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import headrace
from headrace.model.errors import HeadraceError
from headrace.sim.clustered import TRY_S, Book
from headrace.sim.loop import Machine

if TYPE_CHECKING:
    from headrace.sim.clusters.run import Run

NAMES: Final = ("rare-0", "rare-1", "rare-2")
FILLER: Final = "filler"
RESTS_S: Final = (0.2, 3.0)


def begin(run: Run) -> None:
    """Everybody goes on until all is healed and everything has come."""
    for name in NAMES:
        book = run.books[name] = Book(name, "queue")
        for what, work in (("publisher", _publish), ("taker", _take)):
            machine = run.world.machine(f"{what}-{name}")
            run.works[machine.name] = run.world.loop.spawn(machine, work(run, machine, book), machine.name)


async def _publish(run: Run, machine: Machine, book: Book) -> None:
    await _declare(run, machine, book.name)
    while not run.healing:
        await asyncio.sleep(run.load.between(*RESTS_S))
        with suppress(HeadraceError, TimeoutError):
            async with run.at(machine, book.name, 0) as client:
                await run.burst(client.publisher(book.name, confirm_timeout=TRY_S), book, 0)


async def fill(run: Run, machine: Machine) -> None:
    """So much to another queue that those who have it begin another log file."""
    await _declare(run, machine, FILLER)
    while not run.healing:
        with suppress(HeadraceError, TimeoutError):
            async with run.at(machine, FILLER, 0) as client:
                for _ in range(3):
                    await asyncio.gather(*(client.publish(FILLER, b"x" * 3000) for _ in range(10)))
                return


async def _declare(run: Run, machine: Machine, name: str) -> None:
    copies = 1 if run.level == "local_durable" else 3
    while not run.healing:
        with suppress(HeadraceError, TimeoutError):
            async with asyncio.timeout(TRY_S):
                client = await headrace.connect(run.hosts[run.load.choice(run.names)].url, name=machine.name, wait=0)
                await client.declare_queue(name, durability=run.level, min_in_sync_replicas=run.floor, replication_factor=copies)
                await client.close()
                return
        await asyncio.sleep(0.1)


async def _take(run: Run, machine: Machine, book: Book) -> None:
    while not run.over:
        await asyncio.sleep(0.1)
        if run.healing:
            await run.consume(machine, book, 0)
