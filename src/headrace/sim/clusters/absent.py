"""A queue that is deleted while a broker that has a copy of it is away: it has to erase what it comes back with, though nobody assigns it any more.

Owns that queue, and how long that broker stays away: until nobody is assigned any of it, or all is healed. Few seeds have it, by numbers of their own
stream, so that the others are what they were. That everything is erased in the end is K8 of ``clusters.run``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import headrace
from headrace.client.client import Client
from headrace.model.errors import HeadraceError, NotFound
from headrace.sim.chance import Chance
from headrace.sim.clustered import TRY_S, Host

if TYPE_CHECKING:
    from headrace.sim.clusters.run import Run

NAME: Final = "brief"
SHARE: Final = 0.25
"""Of the seeds."""
LOOK_S: Final = 0.05


def begin(run: Run, chance: Chance) -> None:
    """Has it happen in this run, if it is one of those."""
    if chance.happens(SHARE):
        run.world.loop.spawn(run.world.loop.world, _come_to_pass(run, chance), "absent")


async def _come_to_pass(run: Run, chance: Chance) -> None:
    await asyncio.sleep(chance.between(0.01, 1.0))
    await _ask(run, chance, _declare)
    partitions = [int(a.partition) for a in run.documents() if a.item == NAME]
    held = [host for host in run.hosts.values() if _may_go(run, host) and any(_holds(run, host, pid) for pid in partitions)]
    if held and not run.healing:
        await _miss(run, chance, chance.choice(held), partitions)


async def _miss(run: Run, chance: Chance, host: Host, partitions: list[int]) -> None:
    run.away[host.name] = float("inf")
    run.totals.deaths += 1
    host.kill(power=chance.happens(0.5))
    await _ask(run, chance, _delete)
    while not run.healing:
        if not any(a.partition in partitions for a in run.documents()):
            run.totals.absent += not host.alive
            run.away.pop(host.name, None)
            return
        await asyncio.sleep(LOOK_S)


def _may_go(run: Run, host: Host) -> bool:
    return host.name not in run.gone and host.name not in run.going and host.name != run.hurt


def _holds(run: Run, host: Host, pid: int) -> bool:
    cluster = run.cluster(host)
    return cluster is not None and cluster.driver.holds(pid)


async def _ask(run: Run, chance: Chance, what: Callable[[Run, Client], Awaitable[None]]) -> None:
    """An operator asks one broker after the other until one has done it, or all is healed."""
    machine = run.world.machine(f"operator-{run.world.loop.steps}")

    async def ask() -> None:
        while not run.healing:
            serving = [host for host in run.hosts.values() if host.serving]
            try:
                async with asyncio.timeout(TRY_S):
                    if serving:
                        async with headrace.connect(chance.choice(serving).url, name="operator", wait=0) as client:
                            await what(run, client)
                            return
            except (HeadraceError, TimeoutError):
                pass
            await asyncio.sleep(LOOK_S)

    await run.world.loop.spawn(machine, ask(), "ask")


async def _declare(run: Run, client: Client) -> None:
    copies = 1 if run.level == "local_durable" else 3
    await client.declare_queue(NAME, durability=run.level, replication_factor=copies)
    await client.publish(NAME, b"x" * 1000)


async def _delete(run: Run, client: Client) -> None:
    try:
        await client.delete(NAME)
    except NotFound:
        return  # an answer was lost
