"""One connection in a whole cluster on virtual time, whose session loses its owner: it goes on at the next one, is not read while there is none, and
ends when that lasts too long."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from headrace.model.config import Mqtt
from headrace.sim.mqtt.client import Device, Line
from headrace.sim.mqtt.run import Run
from headrace.wire.mqtt import encoding

WAIT_S = Mqtt().owner_wait_ms / 1000


class Story(Run):
    """Nothing happens but what it tells."""

    def __init__(self, tell: Callable[["Story"], Awaitable[None]], seed: int = 3) -> None:
        super().__init__(seed)
        self.tell = tell

    async def _go(self) -> None:
        await self.begin()
        loop = self.world.loop
        await loop.spawn(self.world.machine("story"), self.tell(self), "story")  # type: ignore[arg-type]

    def owner(self, client_id: str) -> str:
        """Who serves it, by name; "" = nobody."""
        return next((name for name, hub in self.hubs().items() if self.hosts[name].alive and hub.router.serves(client_id)), "")

    async def connected(self) -> tuple[Device, Line]:
        """A client that is connected elsewhere than its session is."""
        device = self._device("kept", 2)
        await self.until(lambda: bool(self.owner("kept")))
        while not await device.connect(next(name for name in self.names if name != self.owner("kept"))):
            await asyncio.sleep(0.1)
        assert device.line is not None
        device.subscribe(["t/#"])
        await self.until(lambda: all(wanted.acked_at < 1e9 for wanted in device.kept.wanted))
        return device, device.line

    async def until(self, holds: Callable[[], bool], line: Line | None = None) -> None:
        async with asyncio.timeout(30.0):
            while not holds():
                if line is not None:
                    line.send(encoding.PINGREQ)
                await asyncio.sleep(0.2)


async def _goes_on(story: Story) -> None:
    device, line = await story.connected()
    for death in range(2):
        device.publish("t/0", 2)
        story.hosts[story.owner("kept")].kill(power=False)
        device.publish("t/0", 2)
        device.publish("t/0", 1)
        await story.until(lambda: not device.sending, line)
        await story.until(lambda death=death: len({got.number for got in device.kept.got}) == 3 * (death + 1), line)  # type: ignore[misc]
        assert not line.over
        assert device.line is line
        for host in story.hosts.values():
            if not host.alive:
                host.start()
        await story.until(lambda: all(host.serving for host in story.hosts.values()), line)
        if story.owner("kept") == line.broker:
            break  # with its broker it would die
    numbers = [got.number for got in device.kept.got if got.qos == 2]
    assert len(numbers) == len(set(numbers))


async def _ends(story: Story) -> None:
    _, line = await story.connected()
    for name, host in story.hosts.items():
        if name != line.broker:
            host.kill(power=False)
    lost_at = story.world.loop.time()
    await story.until(lambda: line.over or story.world.loop.time() > lost_at + WAIT_S - 1, line)
    assert not line.over
    await story.until(lambda: line.over, line)
    assert story.world.loop.time() < lost_at + WAIT_S + 2


@pytest.mark.parametrize("tell", [_goes_on, _ends])
def test_a_connection_whose_session_loses_its_owner(tell: Callable[[Story], Awaitable[None]]) -> None:
    Story(tell).go()
