"""A publish that was refused for lack of room is not stored behind later ones of its publisher: three simulated brokers whose answers get lost."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import headrace
from headrace.client.client import Client
from headrace.client.lane import Receipt
from headrace.model.errors import QueueFull
from headrace.sim.clustered import Host
from tests.sim.test_cluster_of_three import Story

Change = Callable[[Story, Host], Awaitable[None]]


async def stays(run: Story, owner: Host) -> None:
    """Its answers are lost with the connection, and it serves on."""
    run.world.network.break_connections("user")
    await asyncio.sleep(0.1)  # what is on the way is lost before the cut is healed


async def dies(run: Story, owner: Host) -> None:
    owner.kill()
    await run.owner("tight", but=owner)


async def hands_over(run: Story, owner: Host) -> None:
    await owner.stop()
    await run.owner("tight", but=owner)


async def all_lose_power(run: Story, owner: Host) -> None:
    for host in run.hosts.values():
        host.kill(power=True)
    for host in run.hosts.values():
        host.start()
    await run.owner("tight")


async def connect(run: Story, name: str) -> Client:
    url = ",".join(host.url.removeprefix("headrace://") for host in run.hosts.values())
    return await headrace.connect(f"headrace://{url}", name=name, wait=60.0, confirm_timeout=600.0, request_timeout=60.0)


async def taken(run: Story, count: int) -> list[bytes]:
    """What somebody else gets, until there is no more."""

    async def take() -> list[bytes]:
        client = await connect(run, "taker")
        got: list[bytes] = []
        async with client.consume("tight", prefetch=1) as consumer:
            async with asyncio.timeout(60):
                while len(got) < count:
                    message = await consumer.__anext__()
                    got.append(message.value)
                    await message.ack(confirmed=True)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3):
                    got.append((await consumer.__anext__()).value)
        await client.close()
        return got

    return await run.world.loop.spawn(run.world.machine("taker"), take(), "taker")


@pytest.mark.parametrize("change", [stays, dies, hands_over, all_lose_power])
def test_what_was_refused_is_refused_again_behind_later_ones(change: Change) -> None:
    async def story(run: Story) -> None:
        client = await connect(run, "user")
        await client.declare_queue("tight", max_messages=3, replication_factor=3, durability="replica_durable", min_in_sync_replicas=2)
        publisher = client.publisher("tight")
        await publisher.send(b"0")
        await publisher.send(b"1")
        owner = await run.owner("tight")
        await run.all_follow(owner, "tight")
        run.world.network.cut(owner.name, "user")
        assert owner.running is not None
        refused = owner.running.broker.counters.refused
        late: list[asyncio.Future[Receipt]] = [publisher.post(b"no room"), publisher.post(b"for both")]
        await asyncio.sleep(0.5)
        assert owner.running.broker.counters.refused == refused + 2
        later = publisher.post(b"2")
        await asyncio.sleep(0.5)
        assert not any(future.done() for future in [*late, later]), "the answers are lost"
        await run.all_follow(owner, "tight")
        assert await taken(run, 3) == [b"0", b"1", b"2"]
        await change(run, owner)
        run.world.network.heal_all()
        async with asyncio.timeout(120):
            for future in late:
                with pytest.raises(QueueFull, match="later messages of its publisher are stored"):
                    await future
            assert (await later).duplicate
            await publisher.send(b"3")
        assert await taken(run, 1) == [b"3"]
        await client.close()

    Story(story).go()
