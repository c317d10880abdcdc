"""What the clients of a run do: some listen, some publish, some live shortly and leave a will. They come, go, and come back at another broker.

Owns the programs; what a client knows of the protocol is ``client``'s, what goes wrong ``run``'s.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from headrace.sim.chance import Chance
from headrace.sim.mqtt.books import NEVER, Books
from headrace.sim.mqtt.client import Device

BEAT_S: Final = 0.1
TOPICS: Final = ("t/0", "t/1", "t/2/x")
TOGGLED: Final = "t/1"
WINDOW: Final = 5
WILL_DELAY_S: Final = 1
TOLD_S: Final = 20.0
"""So long a new subscriber tries to be told of retained messages; all have come when it has heard nothing for ``QUIET_S``."""
QUIET_S: Final = 1.0


class Run(Protocol):
    """Whose clients these are."""

    mqtt: Books

    @property
    def over(self) -> bool:
        """Nobody does anything any more."""

    @property
    def healing(self) -> bool:
        """Those who are there stay, and begin nothing new."""

    @property
    def calm(self) -> bool:
        """Nothing is wrong, nor was lately."""

    def somewhere(self, chance: Chance) -> str:
        """A broker."""

    def device(self, client_id: str, version: int, qos: int, *, durable: bool) -> Device:
        """A client that connects to brokers of this run."""


class Stays:
    """A client that keeps its session: it is at one broker for a while, then at another."""

    def __init__(self, run: Run, chance: Chance, device: Device) -> None:
        self.run = run
        self.chance = chance
        self.device = device

    async def live(self) -> None:
        run, device, chance = self.run, self.device, self.chance
        while not run.over:
            device.beat()
            if device.line is None and not await device.connect(run.somewhere(chance)):
                await asyncio.sleep(chance.between(0.02, 0.3))
                continue
            until = device.now + chance.between(0.2, 4.0)
            while self._stays(until):
                device.beat()
                self.work()
                await asyncio.sleep(chance.between(0.01, BEAT_S))
            if not run.healing:
                await self._leave()

    def _stays(self, until: float) -> bool:
        run = self.run
        return not run.over and self.device.line is not None and (run.healing or self.device.now < until)

    async def _leave(self) -> None:
        device, chance = self.device, self.chance
        how = chance.choice(["goodbye", "vanish", "move", "desert"])
        if how == "goodbye":
            device.goodbye()
        elif how == "vanish":
            device.vanish()
        elif device.line is not None:
            await device.connect(self.run.somewhere(chance), desert=how == "desert")
            return
        await asyncio.sleep(chance.between(0.0, 1.0))

    def work(self) -> None:
        """Several times a second, while it is connected."""


class Listener(Stays):
    """Subscribes, and now and then not for a while."""

    fickle = 0.02

    def __init__(self, run: Run, chance: Chance, device: Device, filters: list[str]) -> None:
        super().__init__(run, chance, device)
        self.filters = filters

    def work(self) -> None:
        device = self.device
        if not self.run.healing and self.chance.happens(self.fickle) and TOGGLED in self.filters:
            device.unsubscribe(TOGGLED)
        else:
            device.subscribe(self.filters)


class Talker(Stays):
    """Publishes, to topics that others publish to and to one that is retained and its own."""

    eager = 0.5
    window = WINDOW
    """How many it has in flight at most."""

    def work(self) -> None:
        device, chance = self.device, self.chance
        while not self.run.healing and device.line is not None and len(device.sending) < self.window and chance.happens(self.eager):
            own = f"r/{device.client_id}"
            if chance.happens(0.25) and not any(sent.message.topic == own for sent in device.sending.values()):
                device.publish(own, chance.choice([1, 2]), retain=True, clears=chance.happens(0.1))
            else:
                device.publish(chance.choice(TOPICS), chance.choice([0, 1, 1, 2, 2]))


async def mortals(run: Run, chance: Chance, name: str, version: int) -> None:
    """Clients that come once, with a will, and are gone soon."""
    count = 0
    while not run.healing:
        count += 1
        await mortal(run, chance, f"{name}-{count}", version, chance.choice(["vanish", "vanish", "goodbye", "regret"]))
        await asyncio.sleep(chance.between(0.05, 0.5))


async def mortal(run: Run, chance: Chance, client_id: str, version: int, how: str, *, broker: str = "") -> None:
    """One of them. ``how``: it vanishes, says goodbye, or (5.0) has its will published although it says goodbye."""
    device = run.device(client_id, version, 1, durable=False)
    del run.mqtt.sessions[client_id]  # it listens to nothing
    will = run.mqtt.message(client_id, "w/all", 2, will=True)
    will.most = 0  # until it was asked for
    will.at = device.now
    delay_s = chance.choice([0, WILL_DELAY_S]) if version == 5 else 0
    if not await device.connect(broker or run.somewhere(chance), will=will, will_delay_s=delay_s):
        return
    until = device.now + chance.between(0.05, 1.5)
    while device.now < until and device.line is not None:
        device.beat()
        await asyncio.sleep(BEAT_S / 2)
    if device.line is None or how == "vanish":
        will.due = 1
        device.vanish()
    elif how == "regret" and version == 5:
        device.goodbye(4)
    else:
        will.most = int(not run.calm)  # where something is wrong its goodbye may be lost
        device.goodbye()
    will.died_at = device.now


async def told(run: Run, broker: str, version: int) -> dict[str, int]:
    """What a new subscriber at that broker gets of retained messages. Its session ends with its connection, which ends when the session moves:
    then it comes again and begins anew."""
    device = run.device(f"asker-{broker}-{version}", version, 1, durable=False)
    end = device.now + TOLD_S
    while device.now < end:
        if await device.connect(broker):
            found = await _subscribed(run, device, end)
            if found is not None:
                device.goodbye()
                return found
        await asyncio.sleep(0.2)
    return {}


async def _subscribed(run: Run, device: Device, end: float) -> dict[str, int] | None:
    """What it is told of retained messages on the connection that it has; None = that was lost first."""
    device.subscribe(["r/#"], retained=True)
    kept, first = device.kept, len(device.kept.got)
    heard = NEVER
    while device.line is not None and device.now < end and device.now < heard + QUIET_S:
        count = len(kept.got)
        await asyncio.sleep(BEAT_S)
        device.beat()
        if (kept.wanted[-1].acked_at != NEVER and heard == NEVER) or len(kept.got) > count:
            heard = device.now
    if device.line is None:
        return None
    return {run.mqtt.messages[got.number].topic: got.number for got in kept.got[first:] if got.number in run.mqtt.messages}
