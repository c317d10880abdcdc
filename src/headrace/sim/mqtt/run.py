"""One short run of a cluster of three or five brokers with MQTT clients, under faults; judged by ``checks``.

Owns who the clients are, when a subscription counts as known, and the questions that are asked in the end. Faults are those of ``sim.clusters``, less
those of single disks and of who is a member.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from msgspec.structs import replace

from headrace.broker.catalogue import MQTT
from headrace.sim import clustered
from headrace.sim.chance import Chance
from headrace.sim.clustered import Host
from headrace.sim.clusters import run as clusters_run
from headrace.sim.clusters.sweep import Result, carried_out
from headrace.sim.mqtt import checks
from headrace.sim.mqtt.books import NEVER, Books
from headrace.sim.mqtt.client import PORT, Device
from headrace.sim.mqtt.people import TOPICS, Listener, Stays, Talker, mortal, mortals, told

KINDS: Final = (*clustered.KINDS, "away", "pause", "power-all", "etcd", "lease", "answers", "watch")
CALM_S: Final = 3.0
"""So long after the last fault a subscription that is acknowledged counts as known, whoever has heard of it."""
LONG: Final = 0.25
"""How often two brokers are cut off from each other, or one from the coordinator, for longer than a publish waits for a partition."""
LONG_S: Final = (6.0, 9.0)
LONG_AT_S: Final = 4.0
"""When everybody is there and publishes."""
LASTS_LONG_S: Final = (12.0, 14.0)
STEADY: Final = 0.15
"""How eager talkers are to go on in such a run, so that not all has been given up when the partition is back; ``MANY``: what they have in flight."""
MANY: Final = 25
GIVING: Final = 0.25
"""How often, of runs without a long cut, session partitions are handed over all the time, between machines that are ``FAR_S`` apart."""
FAR_S: Final = 0.015
GIVE_S: Final = (0.05, 0.5)
LATE_S: Final = 40.0
"""What was promised has come so long after all is healed."""
OWNED_S: Final = 15.0
"""After so long each client has one connection."""
STRAY_S: Final = 2.0
"""What comes twice may come so much later."""
NAME: Final = MQTT


class Totals(clusters_run.Totals):
    """What runs were."""

    published: int = 0
    taken: int = 0
    """Messages that came."""
    resumed: int = 0
    """Connections that found their session."""
    takeovers: int = 0
    wills: int = 0


class Run(clusters_run.Run):
    """See the module's head."""

    all_kinds = KINDS
    lasts_s = (3.0, 8.0)
    first_fault_s = 1.5

    def __init__(self, seed: int, *, rows_max: int | None = 0) -> None:
        super().__init__(seed, rows_max=rows_max)
        self.totals: Totals = Totals(seeds=1)
        self.acts = False
        self.books = {}
        self.mqtt = Books()
        self.people = Chance(seed, "mqtt")
        self.faulty_at = -NEVER
        """When something was wrong last."""
        self.devices: list[Device] = []
        self._long = self.people.fork("long")
        self._cut = self._long.happens(LONG)
        """A long cut is still to come."""
        if self._cut:
            self.lasts_s = LASTS_LONG_S
        self._cut_until = 0.0
        """Nothing else goes wrong before: a broker that dies takes what waits with it."""
        self._giving = self.people.fork("giving")
        self._gives = not self._cut and self._giving.happens(GIVING)
        if self._gives:
            self.world.network.shape(FAR_S, FAR_S, 0.0)

    def host(self, name: str) -> Host:
        host = super().host(name)
        host.config = replace(host.config, listen=replace(host.config.listen, mqtt=f"{name}:{PORT}"))
        return host

    # ------------------------------------------------------------ what clients ask

    def somewhere(self, chance: Chance) -> str:
        """A broker, by name."""
        return chance.choice(self.names)

    def device(self, client_id: str, version: int, qos: int, *, durable: bool) -> Device:
        """A client."""
        return Device(self.mqtt, client_id, version, qos, durable=durable)

    @property
    def calm(self) -> bool:
        """Whether nothing is wrong, nor was lately."""
        return self.world.loop.time() - self.faulty_at > CALM_S

    # ------------------------------------------------------------ who is there

    async def begin(self) -> None:
        await clustered.Run.begin(self)

    async def _declare(self) -> None:
        """The first client has the session partitions made."""
        machine = self.world.machine("first")
        device = self.device("first", 5, 1, durable=False)

        async def first() -> None:
            while not await device.connect("a"):  # noqa: ASYNC110 - it tries again
                await asyncio.sleep(0.1)
            device.goodbye()

        await self.world.loop.spawn(machine, first(), "declare")

    def employ(self) -> None:
        chance = self.people
        for i, filters in enumerate((["#"], [*TOPICS, "w/#"], ["t/+", "t/1", "r/#"], ["w/all", "t/2/#"])):
            self._settle(Listener(self, chance.fork(f"l{i}"), self._device(f"listener-{i}", 1 + i % 2), filters))
        for i in range(2):
            self._settle(Listener(self, chance.fork(f"m{i}"), self._device(f"member-{i}", 1 + i % 2), ["$share/team/t/#"]))
        for i in range(2):
            self._settle(Listener(self, chance.fork(f"c{i}"), self._device(f"clean-{i}", 2, durable=False), ["t/#", "r/#"]))
        for i in range(3):
            talker = Talker(self, chance.fork(f"t{i}"), self._device(f"talker-{i}", 1, durable=i != 2))
            if self._cut:
                talker.eager, talker.window = STEADY, MANY
            elif self._gives:
                talker.window = MANY
            self._settle(talker)
        for i in range(2):
            self._spawn(f"mortals-{i}", mortals(self, chance.fork(f"mortals-{i}"), f"mortal-{i}", 4 + i % 2))
        if self._gives:
            self._spawn("giving", self._give())

    async def _give(self) -> None:
        """Has the session partitions of clients handed over, as owners do when they go away or another is preferred."""
        chance = self._giving
        while not self.healing:
            self._disturbed()
            client_id = chance.choice(self.devices).client_id
            for name, hub in self.hubs().items():
                partition = hub.partitions.get(hub.router.number_of(client_id))
                if partition is not None:
                    self.hosts[name].call(partition.copy.hand_over)
            await asyncio.sleep(chance.between(*GIVE_S))

    def _device(self, client_id: str, qos: int, *, durable: bool = True) -> Device:
        device = self.device(client_id, self.people.choice([4, 5]), qos, durable=durable)
        self.devices.append(device)
        return device

    def _settle(self, who: Stays) -> None:
        self._spawn(who.device.client_id, who.live())

    def _spawn(self, name: str, work: Any) -> None:
        machine = self.world.machine(name)
        self.works[name] = self.world.loop.spawn(machine, work, name)

    # ------------------------------------------------------------ what is known

    def fault(self) -> None:
        if self._cut and self.world.loop.time() >= LONG_AT_S:
            self._cut = False
            self._cut_off()
        elif self.world.loop.time() >= self._cut_until:
            super().fault()
        self._disturbed()

    def _disturbed(self) -> None:
        """Something is wrong now."""
        self.faulty_at = self.world.loop.time()
        self.mqtt.disturbed(self.faulty_at)

    def _cut_off(self) -> None:
        """What waits for a partition is given up, and the partition is there again."""
        chance, world = self._long, self.world
        name, lasts = chance.choice(self.names), chance.between(*LONG_S)
        self._cut_until = world.loop.time() + lasts + CALM_S
        if chance.happens(0.2):
            self.store.unreachable(name)
            world.loop.post(None, lasts, self.store.unreachable, name, False)
            return
        other = chance.choice([n for n in self.names if n != name])
        self.totals.cuts += 1
        for one, another in ((name, other), (other, name)):
            world.network.cut(one, another)
            world.loop.post(None, lasts, world.network.heal, one, another)

    def _start_some(self, often: float) -> None:
        super()._start_some(often)
        self.broken += self.mqtt.broken
        self.mqtt.broken = []
        self._look()

    def _look(self) -> None:
        """Which subscriptions are known by now."""
        now = self.world.loop.time()
        down = any(not host.serving or (host.machine is not None and host.machine.paused) for host in self._there())
        if down or not self.world.network.whole:
            self._disturbed()
        for kept in self.mqtt.sessions.values():
            for wanted in kept.wanted:
                if wanted.known_at == NEVER and wanted.acked_at != NEVER and (self.calm or self._known(kept.client_id, wanted.filter, wanted.path)):
                    wanted.known_at = wanted.acked_at if self.calm else now

    def _there(self) -> list[Host]:
        return [host for name, host in self.hosts.items() if name not in self.gone]

    def hubs(self) -> dict[str, Any]:
        """What MQTT is at each broker that serves."""
        found = {}
        for name, host in self.hosts.items():
            cluster = self.cluster(host)
            make: Any = cluster.broker.makers.get(NAME) if cluster is not None else None
            if make is not None:
                found[name] = make.__self__
        return found

    def _known(self, client_id: str, filter: str, path: str) -> bool:
        for hub in self.hubs().values():
            router = hub.router
            number = router.number_of(client_id)
            if number in router.led:
                session = router.shards[number].sessions.get(client_id)
                if session is None or filter not in session.subscriptions:
                    return False
            elif not {"#", path, filter} & router.others.wants.get(number, {}).keys():
                return False
        return True

    # ------------------------------------------------------------ the end

    async def _heal(self) -> None:
        await super()._heal()
        await self._all_come()
        if not self.broken:
            await self._as(self.hosts, "farewell", self._farewells)
            await self._all_come()
        await asyncio.sleep(STRAY_S)
        await self._all_there()
        await self._judge()

    async def _all_come(self) -> None:
        loop = self.world.loop
        end = loop.time() + LATE_S
        while loop.time() < end and not self.broken and (any(d.sending for d in self.devices) or any(checks.missing(self.mqtt))):
            self._start_some(1.0)
            await asyncio.sleep(0.2)

    async def _all_there(self) -> None:
        """Everybody serves and goes on doing so: a broker that began to drain before all was healed ends seconds later, and is started again."""
        loop = self.world.loop
        end = loop.time() + LATE_S
        self._start_some(1.0)
        while not self.broken and (absent := [host.name for host in self._there() if host.ending or not host.serving]):
            if loop.time() >= end:
                self.broken.append(f"{', '.join(absent)} did not come back within {LATE_S:g} s after all was healed")
            await asyncio.sleep(0.2)
            self._start_some(1.0)

    async def _as(self, names: Any, prefix: str, work: Any) -> None:
        tasks = []
        for name in names:
            machine = self.world.machine(f"{prefix}-{name}")
            tasks.append(self.world.loop.spawn(machine, work(name), machine.name))
        await asyncio.gather(*tasks)

    async def _farewells(self, name: str) -> None:
        for how in ("goodbye", "vanish"):
            await mortal(self, self.people.fork(f"{how} {name}"), f"last-{how}-{name}", 4, how, broker=name)

    async def _judge(self) -> None:
        books = self.mqtt
        found: dict[str, dict[str, int]] = {}

        async def ask(name: str) -> None:
            found[name] = await told(self, name, 5)

        if not self.broken:
            await self._as([h.name for h in self._there()], "asker", ask)
        self.broken += books.broken
        self.broken += checks.missing(books)
        self.broken += checks.wrong(books)
        if found:
            for topic in dict.fromkeys(m.topic for m in books.messages.values() if m.retain):
                self.broken += checks.retained(books, topic, {name: here.get(topic, 0) for name, here in found.items()})
            end = self.world.loop.time() + OWNED_S
            while (wrong := self._owners()) and self.world.loop.time() < end:  # noqa: ASYNC110 - a partition may just go back to who is preferred
                await asyncio.sleep(0.2)
            self.broken += wrong
        for device in self.devices:
            if device.sending and not self.broken:
                self.broken.append(f"M1 {len(device.sending)} of {device.client_id} are not acknowledged {LATE_S:g} s after all")
        totals = self.totals
        totals.published = len(books.messages)
        totals.confirmed = sum(m.acked_at != NEVER for m in books.messages.values())
        totals.wills = sum(m.due for m in books.messages.values())
        totals.taken = sum(len(kept.got) for kept in books.sessions.values())
        totals.resumed = sum(d.resumed for d in self.devices)
        totals.takeovers = sum(d.taken_over for d in self.devices)

    def _owners(self) -> list[str]:
        """M8, seen from inside: one owner of each session partition, one connection of each client."""
        wrong = []
        owners: dict[int, list[str]] = {}
        served: dict[str, list[str]] = {}
        for name, hub in self.hubs().items():
            hub.router.check()
            for number in hub.router.led:
                owners.setdefault(number, []).append(name)
                for session in hub.router.shards[number].sessions.values():
                    if session.outlet is not None:
                        served.setdefault(session.client_id, []).append(name)
        wrong += [f"M8 session partition {number} is served by {', '.join(some)}" for number, some in owners.items() if len(some) > 1]
        for device in self.devices:
            some = served.get(device.client_id, [])
            open_ones = [line for line in [*device.deserted, *([device.line] if device.line is not None else [])] if not line.over]
            if len(some) != 1 or len(open_ones) != 1:
                wrong.append(f"M8 {device.client_id} is served by {some or 'nobody'} and has {len(open_ones)} connections")
        return wrong


def one(seed: int) -> Result:
    """Runs a seed."""
    return carried_out(Run, seed)
