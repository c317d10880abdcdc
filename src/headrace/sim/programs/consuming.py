"""Who takes messages of a queue: subscriptions that come and go, and pulls of a few messages at a time."""

import asyncio

from headrace.client.consumer import Consumer
from headrace.model import limits
from headrace.model.errors import HeadraceError
from headrace.sim.chance import Chance
from headrace.sim.loop import Machine
from headrace.sim.plan import Client
from headrace.sim.programs.hand import Hand
from headrace.sim.programs.stage import Stage


async def consume(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Comes for its rounds; in each it takes messages until it had its share."""
    connected = await stage.connect(machine, client)
    for number in range(client.rounds):
        if stage.over:
            break
        attached = stage.history.attach(machine.name, "consumer", client.name)
        consumer = connected.consume(
            client.name, prefetch=client.prefetch, auto_ack=client.auto_ack, lease=client.lease_ms / 1000 if client.lease_ms else None,
            filter=client.filter or None, cohort=client.cohort, member=client.member, auto_extend=client.auto_extend,
            prefetch_bytes=client.prefetch_bytes or limits.PREFETCH_BYTES,
        )  # fmt: skip
        attached.lease_ms, attached.auto_ack, attached.filter, attached.group = client.lease_ms, client.auto_ack, client.filter, client.cohort
        hand = Hand(stage, attached, consumer, client, chance)
        try:
            await consumer.start()
            await _take(stage, consumer, hand, client, client.operations // client.rounds + 1)
        except HeadraceError:
            attached.how = "ended"  # deleted, taken by a cohort, quarantined
        attached.leaving = stage.loop.time()
        if chance.happens(client.abandon):
            stage.world.network.break_connections(machine.name)
            await asyncio.sleep(0.01)
            attached.how, attached.until = "abandoned", stage.loop.time()
            await connected.close()
            if number + 1 == client.rounds or stage.over:
                return
            connected = await stage.connect(machine, client)
            continue
        await consumer.close()
        attached.how, attached.until = attached.how or "left", stage.loop.time()
        await asyncio.sleep(client.pause_ms / 1000)
    await connected.close()


async def _take(stage: Stage, consumer: Consumer, hand: Hand, client: Client, share: int) -> None:
    try:
        async with asyncio.timeout_at(stage.until):
            while hand.taken < share and not stage.stopping:
                due = hand.settle_late()
                if due:
                    try:
                        async with asyncio.timeout_at(due):
                            hand.handle(await consumer.__anext__())
                    except TimeoutError:
                        continue
                else:
                    hand.handle(await consumer.__anext__())
                while hand.taken < share and (message := consumer.next_ready()) is not None:
                    hand.handle(message)
                await asyncio.sleep(client.pause_ms * hand.chance.random() / 500)
    except (TimeoutError, StopAsyncIteration):
        pass
    while hand.late and not stage.stopping:  # noqa: ASYNC110 - waits for times, not for others
        await asyncio.sleep(max(0.0, hand.settle_late() - stage.loop.time()))
    hand.settle_late(everything=True)


async def pull(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Asks for a few messages at a time."""
    connected = await stage.connect(machine, client)
    attached = stage.history.attach(machine.name, "puller", client.name)
    consumer = connected.consume(client.name, pull=True)
    hand = Hand(stage, attached, consumer, client, chance)
    try:
        await consumer.start()
        while hand.taken < client.operations and not stage.over:
            wanted, before, since = chance.randint(1, client.prefetch), hand.arrived, stage.loop.time()
            for message in await consumer.fetch(wanted, wait_ms=client.pause_ms):
                hand.handle(message)
            broken = any(link.client == machine.name and link.at >= since for link in stage.history.links)
            if hand.arrived - before > wanted and not broken:
                stage.history.odd(client.name, f"a pull for {wanted} messages was sent {hand.arrived - before}")
            await asyncio.sleep(client.pause_ms * chance.random() / 500)
        hand.settle_late(everything=True)
    except HeadraceError:
        attached.how = "ended"
    attached.leaving = stage.loop.time()
    await consumer.close()
    attached.how, attached.until = attached.how or "left", stage.loop.time()
    await connected.close()
