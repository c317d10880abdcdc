"""A session partition that is handed over again and again in a whole cluster on virtual time, while messages are on their way to it: what was
acknowledged comes to the member of a shared subscription who has it, and to who subscribes by itself."""

import asyncio

import pytest

from headrace.sim.mqtt import checks
from headrace.sim.mqtt.books import NEVER
from headrace.sim.mqtt.client import Device
from tests.sim.test_mqtt_kept import Story

DELAY_S = 0.015
"""Between machines: as long a refusal is on its way while the next messages are sent."""
EVERY_S = 0.2
LASTS_S = 5.0
IN_FLIGHT = 40


async def _stays(story: Story, device: Device, broker: str) -> None:
    """Is connected, whatever becomes of its connections."""
    while True:
        device.beat()
        if device.line is None:
            await device.connect(broker)
        await asyncio.sleep(0.05)


async def _handed_over(story: Story) -> None:
    story.world.network.shape(DELAY_S, DELAY_S, 0.0)
    member, listener, talker = (story._device(name, qos) for name, qos in (("member", 2), ("listener", 1), ("talker", 1)))
    await story.until(lambda: bool(story.owner("member")))
    there = [asyncio.create_task(_stays(story, device, broker)) for device, broker in zip((member, listener, talker), story.names, strict=False)]
    await story.until(lambda: all(device.line is not None for device in (member, listener, talker)))
    member.subscribe(["$share/team/t/#"])
    listener.subscribe(["t/#"])
    wanted = [*member.kept.wanted, *listener.kept.wanted]
    await story.until(lambda: all(one.acked_at != NEVER for one in wanted))
    for one in wanted:
        one.known_at = one.acked_at
    number = next(iter(story.hubs().values())).router.number_of("member")
    epochs = set()
    end = talker.now + LASTS_S
    at = talker.now
    while talker.now < end:
        while talker.line is not None and len(talker.sending) < IN_FLIGHT:
            talker.publish("t/0", 1 + len(story.mqtt.messages) % 2)
        if talker.now >= at and (owner := story.owner("member")):
            partition = story.hubs()[owner].partitions[number]
            epochs.add(partition.epoch)
            story.hosts[owner].call(partition.copy.hand_over)
            at = talker.now + EVERY_S
        await asyncio.sleep(0.003)
    await story.until(lambda: not talker.sending)
    await asyncio.sleep(5.0)
    for task in there:
        task.cancel()
    assert len(epochs) > 3, "it had other owners"
    assert not list(checks.missing(story.mqtt))
    assert not list(checks.wrong(story.mqtt))


@pytest.mark.parametrize("seed", [3, 5])
def test_what_is_acknowledged_comes(seed: int) -> None:
    Story(_handed_over, seed).go()


async def _given_back(story: Story) -> None:
    await story.until(lambda: bool(story.owner("member")))
    first = story.owner("member")
    story.hosts[first].kill(power=False)
    await story.until(lambda: story.owner("member") not in ("", first))
    story.hosts[first].start()
    await story.until(lambda: story.owner("member") == first)
    hub = story.hubs()[first]
    assert not hub.spreading.holders[hub.router.number_of("member")][1], "who served it in between has to say so again"


def test_who_served_a_partition_once_is_sent_nothing_before_it_does_so_again() -> None:
    Story(_given_back).go()
