"""Schedules that a cluster must outlive and that chance rarely draws: each takes one partition and does to its copies what hurts most.

Owns what is done, and when: an act looks into the brokers and strikes at the moment in which a mistake would show. Publishers and takers go on
meanwhile. What was promised is checked as ever (``sim.clustered``, K8 and K9): an act judges nothing.

A1 An act begins while every partition is served and every copy sound. A2 It takes no disk away: with everybody back nothing may be lost. A3 It ends
within ``ACT_S``, whether or not the moment came that it waited for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from headrace.model.cluster import Assignment
from headrace.model.specs import Durability

if TYPE_CHECKING:
    from headrace.broker.cluster import Cluster
    from headrace.sim.clustered import Host
    from headrace.sim.clusters.run import Run

ACT_S: Final = 20.0
MOMENT_S: Final = 4.0
"""So long a moment is waited for."""
STEP_S: Final = 0.002
LOAD_S: Final = 0.8
"""So long there is load in a state that must not lose it."""
GONE_S: Final = 3.5
"""Longer than a registration lasts, and than a client waits for a confirm."""


class Scene:
    """One partition and its replicas' hosts."""

    def __init__(self, run: "Run", pid: int) -> None:
        self.run = run
        self.pid = pid
        self.owner = run.host_of(self.document.owner)
        self.others = [host for b in self.document.replicas if (host := run.host_of(b)) is not self.owner]

    @property
    def document(self) -> Assignment:
        """As it is recorded."""
        return next(a for a in self.run.documents() if a.partition == self.pid)

    def is_in_sync(self, host: "Host") -> bool:
        """Whether it may be elected."""
        return self.run.ids[host.name] in self.document.electable

    async def until(self, true: Callable[[], bool], seconds: float = MOMENT_S) -> bool:
        """Whether it came true in time."""
        end = self.run.world.loop.time() + seconds
        while not true():
            if self.run.world.loop.time() >= end:
                return False
            await asyncio.sleep(STEP_S)
        return True

    def deaf(self, host: "Host") -> None:
        """Hears no other broker any more."""
        for name in self.run.hosts:
            if name != host.name:
                self.run.world.network.cut(name, host.name)

    def mute(self, host: "Host") -> None:
        """Is not heard by any other broker any more."""
        for name in self.run.hosts:
            if name != host.name:
                self.run.world.network.cut(host.name, name)

    def kill(self, hosts: list["Host"], *, power: bool, gone_s: float = GONE_S) -> None:
        """All at once; they come back after so long at the earliest."""
        for host in hosts:
            self.run.totals.deaths += host.alive
            self.run.away[host.name] = self.run.world.loop.time() + gone_s
            host.kill(power=power)


async def alone(scene: Scene) -> None:
    """An owner that only its clients reach: what it decides by itself counts for nothing, also not once it owns the partition again."""
    scene.run.totals.cuts += 1
    scene.deaf(scene.owner)
    scene.mute(scene.owner)
    scene.run.store.unreachable(scene.owner.name)
    await asyncio.sleep(GONE_S)
    scene.run.mended()
    if await scene.until(lambda: scene.run.sound(scene.owner) and scene.is_in_sync(scene.owner)):
        scene.run.look_inside()
        scene.kill([host for host in scene.others if host.alive], power=False)
        await asyncio.sleep(GONE_S)


async def unanswered(scene: Scene) -> None:
    """An owner sends and hears nothing, is replaced, and learns it while nobody else can say what became of what it had sent."""
    scene.run.totals.cuts += 1
    before = scene.document.epoch
    scene.deaf(scene.owner)
    scene.run.store.unreachable(scene.owner.name)
    await scene.until(lambda: scene.document.epoch > before)
    scene.run.store.unreachable(scene.owner.name, False)
    cluster = scene.run.cluster(scene.owner)
    if cluster is not None and await scene.until(lambda: not _serves(cluster, scene.pid), 1.0):
        scene.kill([host for host in scene.run.hosts.values() if host is not scene.owner], power=False)
        await asyncio.sleep(GONE_S)


def _serves(cluster: "Cluster", pid: int) -> bool:
    copy = cluster.copies.get(pid)  # there is none if it was moved to others meanwhile, and is erased
    return copy is not None and copy.serving


async def left_behind(scene: Scene) -> None:
    """One that has fallen behind and left the isr is all that there is for a while."""
    behind = scene.run.acting.choice(scene.others)
    scene.run.totals.cuts += 1
    scene.deaf(behind)
    scene.mute(behind)
    await scene.until(lambda: not scene.is_in_sync(behind))
    await asyncio.sleep(LOAD_S)
    scene.kill([host for host in scene.run.hosts.values() if host is not behind], power=True)
    await asyncio.sleep(GONE_S)


async def only_just_back(scene: Scene) -> None:
    """One whose disk is slow comes back into the isr, and at that moment the power fails everywhere; it is the first to return."""
    back = scene.run.acting.choice(scene.others)
    scene.kill([back], power=False, gone_s=0.0)
    scene.run.away[back.name] = float("inf")
    await scene.until(lambda: not scene.is_in_sync(back))
    await asyncio.sleep(LOAD_S)
    back.speeds = replace(back.speeds, slow=0.2)
    back.start()
    await scene.until(lambda: scene.is_in_sync(back))
    scene.kill([back], power=True, gone_s=0.0)
    scene.kill([host for host in scene.run.hosts.values() if host is not back], power=True)
    scene.run.fast(back)
    back.start()
    await asyncio.sleep(GONE_S)


async def damaged_at_home(scene: Scene) -> None:
    """An owner dies and is back before anybody misses it, and its copy is damaged."""
    if await scene.until(lambda: scene.run.spoil(scene.owner, [scene.document])):
        scene.owner.start()
        await asyncio.sleep(GONE_S)


Act = Callable[[Scene], Awaitable[None]]
ALWAYS: Final[tuple[Act, ...]] = (alone, unanswered, damaged_at_home)
ACTS: Final[Mapping[Durability, tuple[Act, ...]]] = MappingProxyType(
    {"local_durable": (), "majority_durable": ALWAYS, "replica_durable": (*ALWAYS, left_behind, only_just_back)}
)
"""By the level of the partition: nobody else ever serves a local one, and only for one level it is recorded who is in sync."""
