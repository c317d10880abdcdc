"""An owner that stood still while another was elected: what lay in its sockets meanwhile does not make it deliver what the other has given away."""

import asyncio

import pytest

from headrace.broker.queue_partition import QueuePartition
from headrace.core.queue import Grant
from tests.sim.test_cluster_faults import publish, until
from tests.sim.test_cluster_of_three import Story


@pytest.mark.parametrize("seconds", [1.5, 2.1])
def test_an_owner_that_stood_still_grants_nothing_before_it_surely_hears_the_others(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[tuple[float, str, Grant]] = []
    send = QueuePartition._send

    async def story(run: Story) -> None:
        loop = run.world.loop
        owner = await run.owner()
        await run.all_follow(owner)
        await publish(run, owner, "orders", 50)
        machine = run.world.machine("taker")
        took = asyncio.Event()

        async def take() -> None:
            consumer = (await run.connect(owner)).consume("orders", prefetch=5)
            await consumer.start()
            messages = [await consumer.__anext__() for _ in range(5)]
            took.set()
            await asyncio.sleep(0.05)  # until its broker stands still
            for message in messages:
                message.ack()
            await asyncio.sleep(60)

        loop.spawn(machine, take(), "take")
        await took.wait()
        owner.pause()
        await asyncio.sleep(0.1)
        machine.pause()
        loop.post(None, seconds, owner.resume)
        loop.post(None, seconds, machine.resume)

        def sent(at: QueuePartition, grant: Grant) -> None:
            granted.append((loop.time(), at.broker.config.listen.native, grant))
            send(at, grant)

        monkeypatch.setattr(QueuePartition, "_send", sent)
        new = await run.owner(but=owner)
        consumer = (await run.connect(new)).consume("orders", prefetch=100)
        await consumer.start()
        await until(lambda: owner.machine is not None and not owner.machine.paused, 10.0, "it goes on")
        await asyncio.sleep(3.0)
        stale = [(at, grant) for at, name, grant in granted if name.startswith(f"{owner.name}:") and at < loop.time() - 2.0]
        assert not stale, f"{owner.name} has granted what {new.name} gives away: {stale}"

    Story(story).go()
