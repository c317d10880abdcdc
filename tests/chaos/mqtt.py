"""Faults of every kind in a real cluster of three brokers and three etcds, with MQTT clients at all of them; then I12 is checked.

python -m tests.chaos.mqtt --faults 200 [--seed N] [--only kill_owner,...] [--json] [--keep FOLDER] [--write docs/reliability.md]

Clients, their programs and what is judged are those of the simulation (``headrace.sim.mqtt``), over real sockets: persistent sessions that are at one
broker for a while, then at another, and leave by DISCONNECT, without a word, or by being taken over; publishers of all QoS and of retained messages;
members of a shared subscription; clients that die and leave a will. Faults are those of ``cluster``.
"""

import asyncio
import sys
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, ClassVar, Final

import httpx
import msgspec

from headrace.broker.catalogue import MQTT
from headrace.model import limits
from headrace.model.errors import HeadraceError
from headrace.sim.chance import Chance
from headrace.sim.mqtt import checks
from headrace.sim.mqtt.books import NEVER, Books, Published
from headrace.sim.mqtt.client import Device
from headrace.sim.mqtt.people import TOPICS, Listener, Stays, Talker, mortal, mortals, told
from headrace.wire.mqtt.packets import Ack
from headrace.wire.mqtt.reasons import Type
from tests.chaos import cluster
from tests.chaos.excuses import CALM_S, Excuses
from tests.chaos.machines import Cluster

LOOK_S: Final = 0.1
ASK_S: Final = 2.0
REST: Final = 0.25
"""How often faults are left alone until nothing is wrong."""
STRAY_S: Final = 3.0
"""What comes twice may come so much later."""
OWNED_S: Final = 120.0
"""After so long each client has one connection, and each session partition one owner."""
TALKERS: Final = 3
EAGER_PER_S: Final = 75.0
"""What three talkers publish a second that are as eager to go on as to stop."""
SHOWN: Final = (
    "published", "confirmed", "delivered", "sessions_resumed", "taken_over", "wills", "owners_changed", "came_twice",
)  # fmt: skip


class Client(Device):
    """One at a real broker."""

    keep_alive_s = 5
    silent_s = 4.0

    def __init__(self, cluster: Cluster, books: Books, client_id: str, version: int, qos: int, *, durable: bool) -> None:
        super().__init__(books, client_id, version, qos, durable=durable)
        self.answered_s = 0.0
        """When a publish of it was acknowledged last, monotonic."""
        self.gap_s = self._waits_s = 0.0
        self._cluster = cluster

    def address(self, broker: str) -> tuple[str, int]:
        host, _, port = self._cluster[broker].mqtt.rpartition(":")
        return host, int(port)

    def take(self, packet: Any) -> None:
        if isinstance(packet, Ack) and packet.type != Type.PUBREL and packet.reason < 0x80:
            self.answered_s = time.monotonic()
            self.gap_s = max(self.gap_s, self.answered_s - self._waits_s)
            self._waits_s = self.answered_s
        super().take(packet)

    def publish(self, topic: str, qos: int, *, retain: bool = False, clears: bool = False) -> Published:
        if not self.sending:
            self._waits_s = time.monotonic()
        return super().publish(topic, qos, retain=retain, clears=clears)


class Run(cluster.Run):
    """See the module's head."""

    program: ClassVar = "tests.chaos.mqtt"
    command: ClassVar = "make chaos-mqtt"
    marks: ClassVar = ("<!-- mqtt: begin (written by `make chaos-mqtt`) -->", "<!-- mqtt: end -->")
    shown: ClassVar[tuple[str, ...]] = SHOWN
    faults: ClassVar = 200
    per_s: ClassVar[float] = 20
    speaks_mqtt: ClassVar = True
    settings: ClassVar = ("mqtt.packet_bytes_max=128KiB",)

    def __init__(self, *arguments: Any, seed: int, per_s: float, **more: Any) -> None:
        super().__init__(*arguments, seed=seed, per_s=per_s, **more)
        self.mqtt = Books()
        self.excuses = Excuses()
        self.over = False
        self._holding = self._ending = False
        self._people = Chance(seed, "mqtt")
        self._eager = per_s / (per_s + EAGER_PER_S)
        self._devices: list[Client] = []
        self._talking: list[Client] = []

    # ------------------------------------------------------------ what clients ask

    @property
    def healing(self) -> bool:
        """Whether clients that are there stay, and begin nothing new."""
        return self._holding or self._ending

    @property
    def calm(self) -> bool:
        """Whether nothing is wrong, nor was lately."""
        return self.excuses.calm(time.monotonic())

    def somewhere(self, chance: Chance) -> str:
        """A broker."""
        return chance.choice([machine.name for machine in self.cluster])

    def device(self, client_id: str, version: int, qos: int, *, durable: bool) -> Client:
        """A client."""
        return Client(self.cluster, self.mqtt, client_id, version, qos, durable=durable)

    # ------------------------------------------------------------ the load

    async def begin(self, stack: AsyncExitStack) -> None:
        stack.callback(self._close)
        first = self.device("first", 5, 1, durable=False)
        async with asyncio.timeout(cluster.RECOVER_S):
            while not await first.connect("a"):
                await asyncio.sleep(LOOK_S)
        first.goodbye()  # it had the session partitions made
        await self.cluster.placed(MQTT)
        await self.cluster.in_sync()
        await asyncio.sleep(1.0)
        chance = self._people
        for i, filters in enumerate((["#"], [*TOPICS, "w/#"], ["t/+", "t/1", "r/#"], ["w/all", "t/2/#"])):
            self._settle(Listener(self, chance.fork(f"l{i}"), self._kept(f"listener-{i}", 1 + i % 2), filters))
        for i in range(2):
            self._settle(Listener(self, chance.fork(f"m{i}"), self._kept(f"member-{i}", 1 + i % 2), ["$share/team/t/#"]))
        for i in range(2):
            self._settle(Listener(self, chance.fork(f"c{i}"), self._kept(f"clean-{i}", 2, durable=False), ["t/#", "r/#"]))
        for i in range(TALKERS):
            talker = Talker(self, chance.fork(f"t{i}"), device := self._kept(f"talker-{i}", 1, durable=i != 2))
            talker.eager = self._eager
            self._talking.append(device)
            self._settle(talker)
        for i in range(2):
            self._employ(f"mortals-{i}", self._dying(chance.fork(f"mortals-{i}"), f"mortal-{i}", 4 + i % 2))
        self._employ("looking", self._looking())

    def _kept(self, client_id: str, qos: int, *, durable: bool = True) -> Client:
        made = self.device(client_id, self._people.choice([4, 5]), qos, durable=durable)
        self._devices.append(made)
        return made

    def _settle(self, who: Stays) -> None:
        if isinstance(who, Listener):
            who.fickle = 0.002
        self._employ(who.device.client_id, who.live())

    def _employ(self, name: str, work: Any) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _dying(self, chance: Chance, name: str, version: int) -> None:
        times = 0
        while not self.over:
            if not self.healing:
                times += 1
                await mortals(self, chance.fork(str(times)), f"{name}-{times}", version)
            await asyncio.sleep(LOOK_S)

    async def _looking(self) -> None:
        """Which owners have changed, and which subscriptions are known."""
        while True:
            asked = time.monotonic()
            with suppress(HeadraceError, TimeoutError):
                async with asyncio.timeout(ASK_S):
                    rows = sorted((a.partition, a.epoch) for a in await self.cluster.assignments() if a.item == MQTT)
                self.excuses.saw({number: epoch for number, (_, epoch) in enumerate(rows)}, asked, time.monotonic())
            self.excuses.know(self.mqtt, time.monotonic())
            await asyncio.sleep(LOOK_S)

    def _close(self) -> None:
        self.over = True
        for device in self._devices:
            device.goodbye()
            for line in device.deserted:
                line.end()

    def hold(self, on: bool) -> None:
        self._holding = on

    def unanswered(self) -> bool:
        return any(device.sending for device in self._devices)

    def silent(self, since: float) -> list[str]:
        return [device.client_id for device in self._talking if device.answered_s < since]

    def stopped(self, since: float) -> list[str]:
        silent = self.silent(since)  # one may just be on its way to another broker
        return silent if len(silent) == len(self._talking) else []

    def gap_begins(self) -> None:
        for device in self._talking:
            device.gap_s = 0.0

    def gap_s(self) -> float:
        return max(device.gap_s for device in self._talking)

    @property
    def confirmed(self) -> int:
        return sum(m.acked_at != NEVER for m in self.mqtt.messages.values())

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        super().check()
        if self.mqtt.broken:
            raise self._broken("; ".join(self.mqtt.broken))

    async def _fault(self, number: int) -> None:
        self.excuses.fault(time.monotonic())
        await super()._fault(number)
        self.excuses.over(time.monotonic())
        if self.chance.random() < REST:
            await asyncio.sleep(2 * CALM_S)

    async def end(self) -> None:
        self._ending = True
        self.note("the end begins", confirmed=self.confirmed)
        await self.cluster.ready()
        await self._whole()
        await self._all_come()
        await asyncio.sleep(CALM_S)
        await self._each(partial(self._farewell, "goodbye"))
        await self._each(partial(self._farewell, "vanish"))
        await self._all_come()
        await asyncio.sleep(STRAY_S)
        found = await self._each(partial(told, self, version=5))
        self.check()
        self.excuses.apply(self.mqtt)
        wrong = [*checks.missing(self.mqtt), *checks.wrong(self.mqtt)]
        for topic in dict.fromkeys(m.topic for m in self.mqtt.messages.values() if m.retain):
            wrong += checks.retained(self.mqtt, topic, {name: here.get(topic, 0) for name, here in found.items()})
        wrong += await self._owned()
        if wrong:
            raise self._broken(f"{len(wrong)} broken promises: " + "; ".join(wrong[:20]))

    async def _farewell(self, how: str, name: str) -> None:
        await mortal(self, self._people.fork(f"{how} {name}"), f"last-{how}-{name}", 4, how, broker=name)

    async def _each(self, work: Any) -> dict[str, Any]:
        """Does it at each broker; what came of it."""
        names = [machine.name for machine in self.cluster]
        return dict(zip(names, await asyncio.gather(*(work(name) for name in names)), strict=True))

    async def _all_come(self) -> None:
        """Returns once everything has come that has to, or it is too late for that."""
        end = time.monotonic() + cluster.DRAIN_S
        while time.monotonic() < end and (self.unanswered() or any(checks.missing(self.mqtt))):
            self.check()
            await self._mending(asyncio.sleep(1.0))
        missing = list(checks.missing(self.mqtt))
        self.note("all has come", missing=len(missing), such_as=missing[:5], unanswered=self.unanswered())
        if self.unanswered():
            some = [f"{len(d.sending)} of {d.client_id}" for d in self._devices if d.sending]
            raise self._broken(f"M1 not acknowledged {cluster.DRAIN_S:.0f} s after all: {', '.join(some)}")

    async def _owned(self) -> list[str]:
        """M8: one owner of each session partition, one connection of each client, whichever broker is asked."""
        end = time.monotonic() + OWNED_S
        wrong = ["M8 nobody was asked"]
        while wrong and time.monotonic() < end:
            wrong = []
            for machine in self.cluster:
                try:
                    rows = (await machine.get("mqtt/sessions?limit=10000")).json()["items"]
                    parts = (await machine.get(f"topology?name={MQTT}")).json()["partitions"]
                except httpx.HTTPError as e:
                    wrong.append(f"M8 {machine.name} does not answer: {e!r}")
                    continue
                served = [row["client_id"] for row in rows if row["connected"]]
                wrong += [f"M8 {machine.name}: {d.client_id} has {n} connections" for d in self._devices if (n := served.count(d.client_id)) != 1]
                serving = sorted(part["partition"] for part in parts if part["state"] == "serving")
                if serving != list(range(limits.MQTT_SESSION_PARTITIONS)):
                    wrong.append(f"M8 {machine.name}: session partitions {serving} are served")
            await asyncio.sleep(LOOK_S)
        return wrong + [f"M8 {d.client_id} has another connection at {line.broker}" for d in self._devices for line in d.deserted if not line.over]

    async def _shown(self) -> None:
        """And what clients saw, with the owners that changed."""
        await super()._shown()
        kept = {"messages": self.mqtt.messages, "sessions": self.mqtt.sessions, "moves": self.excuses.moves, "faults": self.excuses.faults}
        (self._timeline.parent / "books.json").write_bytes(msgspec.json.encode(kept))

    def figures(self) -> dict[str, int]:
        books = self.mqtt
        twice = sum(len(kept.got) - len({got.number for got in kept.got}) for kept in books.sessions.values())
        return {
            "published": len(books.messages), "confirmed": self.confirmed, "delivered": sum(len(kept.got) for kept in books.sessions.values()),
            "sessions_resumed": sum(d.resumed for d in self._devices), "taken_over": sum(d.taken_over for d in self._devices),
            "wills": sum(m.due for m in books.messages.values()), "came_twice": twice,
            "owners_changed": sum(move.count for some in self.excuses.moves.values() for move in some),
        }  # fmt: skip


if __name__ == "__main__":
    from tests.chaos.command import main

    sys.exit(main(Run, __doc__))
