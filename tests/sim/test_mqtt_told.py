"""What a new subscriber in a whole cluster on virtual time is told of retained messages, though its session partition moves meanwhile."""

import asyncio

import pytest

from headrace.sim.mqtt.people import told
from tests.sim.test_mqtt_kept import Story

MOVES = 2


async def _moved(story: Story, client_id: str) -> None:
    """As soon as the client is accepted another broker is to have its session."""
    number = next(iter(story.hubs().values())).router.number_of(client_id)
    while True:
        for hub in story.hubs().values():
            session = hub.router.shards[number].sessions.get(client_id)
            if session is not None and session.outlet is not None:
                partition = hub.partitions[number]
                partition.copy.hand_over()
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
