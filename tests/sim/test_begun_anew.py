"""An owner begins another epoch of its partition while publishes for it are gathered: they are refused, and whoever sent them offers them again."""

import asyncio
from typing import Any

import pytest

from headrace.broker.partition import Partition
from headrace.client.lane_user import AGAIN_S
from headrace.sim.clustered import Host
from tests.sim.test_cluster_of_three import Story


def begins_anew(run: Story, owner: Host) -> None:
    """As if its members had been changed by another."""
    replicated = run.copy(owner).replicated
    replica = replicated.replica
    assert replica.owner is not None
    replica.owner.stop("its members were changed by another")
    replica._ended()
    replicated.activate()


@pytest.mark.parametrize("tells", [True, False])
def test_a_publish_that_was_gathered_when_its_owner_began_anew_is_confirmed(tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the only one: nothing that follows it has the broker look at the channel again, nor does the owner change."""

    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        epoch = run.copy(owner).document.epoch
        client = await run.connect(owner)
        publisher = client.publisher("orders", confirm_timeout=60.0)
        await publisher.send(b"0")
        publish, refused = Partition.publish, []

        def fenced(partition: Partition, *args: Any) -> Any:
            taken = publish(partition, *args)
            if not refused and partition.item.name == "orders":
                refused.append(args)
                begins_anew(run, owner)
            return taken

        monkeypatch.setattr(Partition, "publish", fenced)
        if not tells:  # an older broker did not say that the channel is closed
            monkeypatch.setattr(Partition, "close_channel", lambda *_: None)
        began = run.world.loop.time()
        async with asyncio.timeout(10):
            receipt = await publisher.send(b"1")
        took = run.world.loop.time() - began
        assert (took < AGAIN_S) is tells, f"its sender offered it again after {took:.3f} s"
        assert receipt.offset == 1
        assert not receipt.duplicate
        assert run.copy(owner).document.owner == run.copy(owner).broker.id
        assert run.copy(owner).document.epoch > epoch
        await client.close()

    Story(story).go()


def test_what_follows_a_gathered_publish_does_not_overtake_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        publisher = client.publisher("orders", confirm_timeout=60.0)
        await publisher.send(b"0")
        publish, refused = Partition.publish, []

        def fenced(partition: Partition, *args: Any) -> Any:
            taken = publish(partition, *args)
            if not refused and partition.item.name == "orders":
                refused.append(args)
                begins_anew(run, owner)
            return taken

        monkeypatch.setattr(Partition, "publish", fenced)
        posted = []
        for number in range(1, 40):
            posted.append(publisher.post(b"%d" % number))
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            assert [(await future).offset for future in posted] == list(range(1, 40))
        await client.close()

    Story(story).go()
