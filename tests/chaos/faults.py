"""What can go wrong with a cluster of machines: each fault begins, lasts and is over; what it does is drawn from the chance that it is given.

Owns how each is done with processes, networks and disks. Does not know what must hold.
"""

import asyncio
import random
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Protocol

import httpx

from headrace.cluster.etcd.child import Child
from headrace.model.errors import HeadraceError
from tests.chaos.machines import Cluster, Machine, Way

SHORT_S: Final = (0.3, 2.0)
LONG_S: Final = (6.0, 9.0)
"""Longer than a registration lives (5 s)."""
DOWN_S: Final = (0.0, 3.0)


Deed = Callable[[], Coroutine[Any, Any, None]]


class Story(Protocol):
    """Whose faults these are."""

    def note(self, what: str, *machines: Machine) -> None:
        """What is done to whom."""

    async def calmly(self, deed: Deed) -> None:
        """Does it while nothing is published and every copy has everything."""

    async def without_etcd(self, deed: Deed) -> None:
        """Does what takes all of etcd away."""


class Faults:
    """See the module's head."""

    def __init__(self, cluster: Cluster, chance: random.Random, story: Story) -> None:
        self.cluster, self.chance, self.story, self.note = cluster, chance, story, story.note
        self.cuttable = any(m.space for m in cluster)

    # ------------------------------------------------------------ whom

    async def _owner(self) -> Machine:
        """The owner of some partition, as far as the coordinator answers; else anybody."""
        drawn = self.chance.random()
        number = self.chance.randrange(len(list(self.cluster)))
        try:
            async with asyncio.timeout(5):
                owners = [m for _, found in sorted((await self.cluster.owners()).items()) for m in found if m.up]
        except (HeadraceError, TimeoutError):
            owners = []
        return owners[int(drawn * len(owners))] if owners else self._there(number)

    def _anybody(self) -> Machine:
        return self._there(self.chance.randrange(len(list(self.cluster))))

    def _there(self, number: int) -> Machine:
        """That one, or the next whose broker runs: another fault may have taken it away."""
        machines = list(self.cluster)
        return next((m for m in (*machines[number:], *machines[:number]) if m.process is not None), machines[number])

    def _time(self, span: tuple[float, float]) -> float:
        return self.chance.uniform(*span)

    async def _back(self, *machines: Machine) -> None:
        down_s = self._time(DOWN_S)
        await asyncio.sleep(down_s)
        self.cluster.start(m.name for m in machines if m.process is None)
        if self.chance.random() < 0.15:  # killed again while it starts
            await asyncio.sleep(self._time((0.2, 3.0)))
            self.note("again", machines[0])
            await machines[0].kill()
            self.cluster.start([machines[0].name])

    # ------------------------------------------------------------ processes

    async def kill_owner(self) -> None:
        machine = await self._owner()
        self.note("kill -9", machine)
        await machine.kill()
        await self._back(machine)

    async def kill_broker(self) -> None:
        machine = self._anybody()
        self.note("kill -9", machine)
        await machine.kill()
        await self._back(machine)

    async def kill_controller(self) -> None:
        number = self.chance.randrange(len(list(self.cluster)))
        machine = None
        try:
            async with asyncio.timeout(5):
                machine = await self.cluster.controller()
        except (HeadraceError, TimeoutError):
            pass
        if machine is None or machine.process is None:
            machine = self._there(number)
        self.note("kill -9", machine)
        await machine.kill()
        await self._back(machine)

    async def kill_machine(self) -> None:
        machine = await self._owner()
        self.note("kill -9, and its etcd", machine)
        await machine.die()
        await self._back(machine)

    async def kill_two(self) -> None:
        first = await self._owner()
        second = self.chance.choice([m for m in self.cluster if m is not first])
        self.note("kill -9", first, second)
        await asyncio.gather(first.kill(), second.kill())
        await self._back(first, second)

    async def kill_all(self) -> None:
        machines = list(self.cluster)
        self.note("kill -9", *machines)
        await asyncio.gather(*(m.kill() for m in machines))
        await self._back(*machines)

    async def stop(self) -> None:
        machine = await self._owner()
        self.note("SIGTERM", machine)
        code = await machine.kill(signal.SIGTERM)
        if code not in (0, -signal.SIGKILL):  # by a fault that fell into this one
            raise AssertionError(f"{machine.name} ended with {code} after SIGTERM:\n{machine.tail()}")
        await self._back(machine)

    async def pause(self) -> None:
        await self._pause(await self._owner(), self._time(SHORT_S))

    async def pause_long(self) -> None:
        await self._pause(await self._owner(), self._time(LONG_S))

    async def _pause(self, machine: Machine, lasts_s: float) -> None:
        self.note(f"SIGSTOP for {lasts_s:.1f} s", machine)
        machine.pause()
        await asyncio.sleep(lasts_s)
        machine.resume()

    # ------------------------------------------------------------ networks

    async def cut_followers(self) -> None:
        await self._cut(await self._owner(), "peers", both=True)

    async def cut_etcd(self) -> None:
        await self._cut(await self._owner(), "etcd", both=True)

    async def cut_off(self) -> None:
        await self._cut(await self._owner(), "all", both=True)

    async def cut_one_way(self) -> None:
        way: Way = self.chance.choice(["all", "peers", "etcd"])
        await self._cut(await self._owner(), way, both=False)

    async def cut_pair(self) -> None:
        machine = self._anybody()
        other = self.chance.choice([m for m in self.cluster if m is not machine])
        way: Way = self.chance.choice(["all", "peers"])
        await self._cut(machine, way, both=True, others=[other])

    async def _cut(self, machine: Machine, way: Way, *, both: bool, others: list[Machine] | None = None) -> None:
        others = others or [m for m in self.cluster if m is not machine]
        outwards = self.chance.random() < 0.5
        lasts_s = self._time(self.chance.choice([SHORT_S, LONG_S]))
        words = "both ways" if both else "outwards" if outwards else "inwards"
        self.note(f"cut ({way}, {words}) for {lasts_s:.1f} s", machine, *others)
        for other in others:
            if both or outwards:
                self.cluster.cut(machine, other, way)
            if both or not outwards:
                self.cluster.cut(other, machine, way)
        await asyncio.sleep(lasts_s)
        self.cluster.heal()

    # ------------------------------------------------------------ disks

    async def disk_full(self) -> None:
        machine = await self._owner()
        lasts_s = self._time((1.0, 5.0))
        self.note(f"disk full for {lasts_s:.1f} s", machine)
        filler = machine.data / "filler"
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1 << 9):
                try:
                    while True:
                        if file.write(b"\1" * size) < size:
                            break
                except OSError:
                    continue
        try:
            await asyncio.sleep(lasts_s)
        finally:
            filler.unlink()

    async def damage(self) -> None:
        """Of one copy while the others hold everything; it is repaired before anything else goes wrong."""
        await self.story.calmly(self._damage)

    async def _damage(self) -> None:
        machine = self._anybody()
        await machine.kill()
        files = sorted(p for folder in ("wal", "segments") for p in (machine.data / folder).rglob("*") if p.is_file() and p.stat().st_size)
        path = self.chance.choice(files)
        self.note(f"kill -9, then {damaged(path, self.chance)} of {path.relative_to(machine.data)}", machine)
        self.cluster.start([machine.name])
        await machine.ready()

    # ------------------------------------------------------------ etcd

    async def kill_etcd(self) -> None:
        machine = self._anybody()
        self.note("kill -9 of its etcd", machine)
        found = machine.etcd_child()
        if found is not None:
            found.send(signal.SIGKILL)
        await asyncio.sleep(1.0)

    async def kill_etcd_leader(self) -> None:
        machine = await self.cluster.leader()
        self.note("kill -9 of the leading etcd", machine)
        found = machine.etcd_child()
        if found is not None:
            found.send(signal.SIGKILL)
        await asyncio.sleep(1.0)

    async def etcd_away(self) -> None:
        """All of etcd is killed, over and over as it is started again; brokers serve on."""
        lasts_s = self._time((4.0, 9.0))
        self.note(f"all of etcd killed for {lasts_s:.1f} s", *self.cluster)

        async def killing() -> None:
            loop = asyncio.get_running_loop()
            end = loop.time() + lasts_s
            while loop.time() < end:
                for found in (m.etcd_child() for m in self.cluster):
                    if found is not None:
                        _kill(found)
                await asyncio.sleep(0.05)

        await self.story.without_etcd(killing)

    def table(self) -> dict[str, tuple[int, Deed]]:
        """Name to weight and deed, of those that are possible here."""
        found: dict[str, tuple[int, Deed]] = {
            "kill_owner": (6, self.kill_owner), "kill_broker": (3, self.kill_broker), "kill_controller": (3, self.kill_controller),
            "kill_machine": (3, self.kill_machine), "kill_two": (2, self.kill_two), "kill_all": (1, self.kill_all), "stop": (3, self.stop),
            "pause": (3, self.pause), "pause_long": (3, self.pause_long), "kill_etcd": (2, self.kill_etcd),
            "kill_etcd_leader": (2, self.kill_etcd_leader), "etcd_away": (2, self.etcd_away), "damage": (3, self.damage),
        }  # fmt: skip
        if self.cuttable:
            found |= {
                "cut_followers": (3, self.cut_followers), "cut_etcd": (3, self.cut_etcd), "cut_off": (3, self.cut_off),
                "cut_one_way": (3, self.cut_one_way), "cut_pair": (2, self.cut_pair),
            }  # fmt: skip
        if all(m.quota_bytes for m in self.cluster):
            found["disk_full"] = (3, self.disk_full)
        return found


async def mended(machine: Machine) -> list[tuple[str, int]]:
    """Has it repair what it has isolated: what, why, and the status of the answer."""
    try:
        items: list[dict[str, Any]] = (await machine.get("quarantine")).json().get("items", [])
        found: list[tuple[str, int]] = []
        for item in items:
            answer = await machine.post("quarantine/repair", {"name": item["name"], "partition": item["partition"]})
            found.append((f"{item['name']}/{item['partition']} ({item['why']})", answer.status_code))
    except httpx.HTTPError:
        return []  # it is not there now
    return found


def damaged(path: Path, chance: random.Random) -> str:
    """Flips bytes of a file, or cuts it; says what was done."""
    size = path.stat().st_size
    if chance.random() < 0.3:
        at = chance.randrange(size)
        with path.open("r+b") as file:
            file.truncate(at)
        return f"a cut at {at}"
    at, count = chance.randrange(size), chance.choice([1, 16, 512])
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(count)
        file.seek(at)
        file.write(bytes(b ^ 0x55 for b in old))
    return f"{len(old)} flipped bytes at {at}"


def _kill(child: Child) -> None:
    child.send(signal.SIGKILL)
