"""What a new subscriber in a whole cluster on virtual time is told of retained messages, though its session partition moves
meanwhile, or its broker was just told to stop."""

import asyncio

import pytest

from headrace.sim.mqtt.people import told
from tests.sim.test_mqtt_kept import Story

MOVES = 2
GRACE_MS = 8_000
"""It drains for longer than it takes until all has come."""


async def _moved(story: Story, client_id: str) -> None:
    """As soon as the client is accepted another broker is to have its session."""
    number = next(iter(story.hubs().values())).router.number_of(client_id)
    while True:
        for name, hub in story.hubs().items():
            session = hub.router.shards[number].sessions.get(client_id)
            if session is not None and session.outlet is not None:
                partition = hub.partitions[number]
                story.hosts[name].call(partition.copy.hand_over)
                while hub.partitions.get(number) is partition:
                    await asyncio.sleep(0.001)
                return
        await asyncio.sleep(0.0005)


async def _comes_again(story: Story) -> None:
    device, _ = await story.connected()
    number = device.publish("r/kept", 1, retain=True).number
    await story.until(lambda: not device.sending)
    broker = story.names[0]
    asker = f"asker-{broker}-5"
    await story.until(lambda: bool(story.owner(asker)))
    answer = asyncio.create_task(told(story, broker, 5))
    async with asyncio.timeout(15.0):
        for _ in range(MOVES):
            await _moved(story, asker)
    assert await answer == {"r/kept": number}
    assert story.mqtt.sessions[asker].got[-1].session == 1 + MOVES, "its connection ended each time"
    assert not story.mqtt.broken


@pytest.mark.parametrize("seed", [3, 5])
def test_a_new_subscriber_comes_again_if_its_connection_ends(seed: int) -> None:
    Story(_comes_again, seed).go()


class Asked(Story):
    """Knows which incarnation of its brokers is asked in the end."""

    asked: dict[str, int]

    async def _judge(self) -> None:
        self.asked = {name: host.incarnation for name, host in self.hosts.items()}
        await super()._judge()


async def _drains(story: Story) -> None:
    """The last fault has a broker go away. It waits for its clients, and one comes back to it at once and stays for as long as it may."""
    name, *_ = story.names
    host = story.hosts[name]
    writer, stays = story.device("writer", 5, 1, durable=False), story.device("stays", 4, 1, durable=False)

    async def stay() -> None:
        while True:
            if stays.line is None:
                await stays.connect(name)
            stays.beat()
            await asyncio.sleep(0.005)

    story.world.loop.spawn(story.world.machine("stays"), stay(), "stays")
    await story.until(lambda: stays.line is not None)
    assert await writer.connect(name)
    writer.publish("r/kept", 1, retain=True)
    await story.until(lambda: not writer.sending)
    assert host.running is not None
    assert host.machine is not None
    story.world.loop.spawn(host.machine, host.running.stop(GRACE_MS), "drain")
    await story._heal()
    assert not story.broken


@pytest.mark.parametrize("seed", [3, 5])
def test_who_is_asked_in_the_end_is_not_about_to_go(seed: int) -> None:
    story = Asked(_drains, seed)
    story.go()
    assert story.asked == {name: 1 + (name == story.names[0]) for name in story.names}, "who was about to go had gone, and was back"
