"""Cohorts and groups whose partitions three simulated brokers serve, step by step, and verbs about all of them asked of any broker."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import headrace
from headrace.broker import forwarding
from headrace.broker.queue_partition import QueuePartition
from headrace.client.client import Client
from headrace.client.consumer import Consumer
from headrace.client.reader import Reader
from headrace.core.group_records import home
from headrace.model.errors import Conflict, Elsewhere, Fenced, HeadraceError, Invalid, Malformed, NotFound, Refused, StaleSettle
from headrace.sim.clustered import Host
from headrace.wire import control
from tests.sim.test_cluster_of_three import Story, vanish

Tell = Callable[[Story], Awaitable[None]]
EVERYTHING = {0, 1, 2}


def told(tell: Tell) -> None:
    """Runs a story of a queue and a stream of three partitions."""
    run = Story(tell)
    run.partitions = 3
    run.go()


async def ready(run: Story, name: str = "orders") -> list[Host]:
    """Everybody follows every partition; who serves each."""
    async with asyncio.timeout(30):
        while True:
            for host in run.hosts.values():
                item = host.running.broker.catalogue.find(name) if host.serving and host.running is not None else None
                if item is not None and host.running is not None:
                    await host.running.broker.loading.awake(item)  # as if it were used
            owners = [_owner(run, name, number) for number in range(3)]
            found = [owner for owner in owners if owner is not None]
            if len(found) == 3 and all(len(_copy(run, host, name, n).document.isr) == 3 for n, host in enumerate(found)):
                return found
            await asyncio.sleep(0.02)


def _copy(run: Story, host: Host, name: str, number: int):  # type: ignore[no-untyped-def]
    assert host.running is not None
    broker = host.running.broker
    assert broker.cluster is not None
    item = broker.catalogue.find(name)
    return None if item is None else broker.cluster.copies.get(item.partitions[number])


def _owner(run: Story, name: str, number: int) -> Host | None:
    for host in run.hosts.values():
        copy = _copy(run, host, name, number) if host.serving else None
        if copy is not None and copy.serving:
            return host
    return None


def partition(run: Story, number: int) -> QueuePartition:
    owner = _owner(run, "orders", number)
    assert owner is not None
    found = _copy(run, owner, "orders", number).partition
    assert isinstance(found, QueuePartition)
    return found


async def any_broker(run: Story) -> Client:
    """A client of all of them, that carries on."""
    urls = ",".join(host.url.removeprefix("headrace://") for host in run.hosts.values() if host.serving)
    return await headrace.connect(f"headrace://{urls}", wait=20.0, confirm_timeout=60.0, request_timeout=30.0)


async def member(client: Client, **options: str) -> Consumer:
    made = client.consume("orders", cohort="team", prefetch=6, **options)
    await made.start()
    return made


async def divided(*members: Consumer | Reader) -> None:
    """Returns once each partition is assigned to exactly one of them, and each has some."""
    async with asyncio.timeout(60):
        while sorted(n for m in members for n in m.assigned) != [0, 1, 2] or not all(m.assigned for m in members):
            await asyncio.sleep(0.02)


async def fill(client: Client, count: int, name: str = "orders") -> None:
    publisher = client.publisher(name, confirm_timeout=60.0)
    await asyncio.gather(*(publisher.post(b"%d" % n, partition=n % 3) for n in range(count)))


async def take(consumer: Consumer, got: list[tuple[int, int]], until: Callable[[], bool]) -> None:
    """Acks what comes; (partition, number) of each."""
    while not until():
        try:
            async with asyncio.timeout(0.2):
                message = await consumer.__anext__()
        except TimeoutError:
            continue
        try:
            await message.ack(confirmed=True)
            got.append((message.partition, int(message.value)))
        except StaleSettle:
            pass


def test_members_share_all_partitions_whoever_serves_them() -> None:
    async def story(run: Story) -> None:
        owners = await ready(run)
        assert len({owner.name for owner in owners}) == 3, "each partition is served by another broker"
        one, two = await any_broker(run), await any_broker(run)
        await fill(one, 60)
        events: list[control.Assigned] = []
        first = one.consume("orders", cohort="team", prefetch=6, on_event=lambda e: events.append(e) if isinstance(e, control.Assigned) else None)
        await first.start()
        assert first.assigned == (0, 1, 2)
        held = [await first.__anext__() for _ in range(6)]
        assert {message.partition for message in held} == EVERYTHING
        second = await member(two)
        await asyncio.sleep(0.5)
        assert second.assigned == (), "what the first works on is not given to another"
        for message in held:
            await message.ack(confirmed=True)
        await divided(first, second)
        assert len(second.assigned) == 1
        assert events[-1].generation == first.generation
        assert events[-1].revoked == second.assigned
        got: list[tuple[int, int]] = []
        counts: list[tuple[int, int]] = []
        await asyncio.gather(
            take(first, got, lambda: len(got) + len(counts) == 54), take(second, counts, lambda: len(got) + len(counts) == 54)
        )
        assert {p for p, _ in counts} == set(second.assigned)
        assert len({n for _, n in got + counts}) == 54
        await first.close()
        await divided(second)
        await second.close()

    told(story)


def test_who_vanishes_loses_its_partitions_after_the_grace_and_its_leases_with_them() -> None:
    async def story(run: Story) -> None:
        await ready(run)
        one, two = await any_broker(run), await any_broker(run)
        first, second = await member(one), await member(two)
        await divided(first, second)
        await fill(one, 30)
        late = [await first.__anext__() for _ in range(2)]
        before = set(first.assigned)
        began = run.world.loop.time()
        await vanish(one)
        await divided(second)
        assert 4.5 < run.world.loop.time() - began < 10, "the grace of a session"
        got: list[tuple[int, int]] = []
        async with asyncio.timeout(20):
            await take(second, got, lambda: len(got) == 30)
        assert {(m.partition, int(m.value)) for m in late} <= set(got)
        assert run.world.loop.time() - began < 25, "nobody waits for the leases of who has gone"
        assert before < EVERYTHING

    told(story)


@pytest.mark.parametrize("what", ["home", "other"])
def test_a_group_survives_its_brokers(what: str) -> None:
    async def story(run: Story) -> None:
        await ready(run)
        one, two = await any_broker(run), await any_broker(run)
        first, second = await member(one), await member(two)
        await divided(first, second)
        seats, generation = (first.assigned, second.assigned), max(first.generation, second.generation)
        await fill(one, 30)
        at = home("orders", 3)
        victim = _owner(run, "orders", at if what == "home" else (at + 1) % 3)
        assert victim is not None
        victim.kill()
        got: list[tuple[int, int]] = []
        async with asyncio.timeout(60):
            await asyncio.gather(*(take(m, got, lambda: len({n for _, n in got}) == 30) for m in (first, second)))
        await asyncio.sleep(8)  # longer than any grace
        assert (first.assigned, second.assigned) == seats, "nothing moves"
        assert max(first.generation, second.generation) == generation
        await second.close()
        await divided(first)
        assert first.generation > generation

    told(story)


def test_seats_survive_a_stop_of_everybody() -> None:
    async def story(run: Story) -> None:
        await ready(run)
        one, two = await any_broker(run), await any_broker(run)
        first, second = await member(one, member="left"), await member(two)
        await divided(first, second)
        seats, generation = (first.assigned, second.assigned), max(first.generation, second.generation)
        for host in run.hosts.values():
            host.kill(power=True)
        for host in run.hosts.values():
            host.start()
        await ready(run)
        await fill(one, 30)
        got: list[tuple[int, int]] = []
        async with asyncio.timeout(60):
            await asyncio.gather(*(take(m, got, lambda: len(got) >= 30) for m in (first, second)))
        await asyncio.sleep(8)
        assert (first.assigned, second.assigned) == seats
        assert max(first.generation, second.generation) == generation

    told(story)


def test_a_static_member_that_comes_back_moves_nothing() -> None:
    async def story(run: Story) -> None:
        await ready(run)
        one, two = await any_broker(run), await any_broker(run)
        first, second = await member(one, member="left"), await member(two)
        await divided(first, second)
        seats = first.assigned, second.assigned
        generation = second.generation
        await vanish(one)
        await asyncio.sleep(7)  # its session has ended, its own grace is 10 s
        assert (second.assigned, second.generation) == (seats[1], generation)
        again = await member(await any_broker(run), member="left")
        await asyncio.sleep(1)
        assert (again.assigned, second.assigned) == seats
        assert second.generation == generation

    told(story)


def test_a_partition_is_given_to_the_newest_generation_only() -> None:
    async def story(run: Story) -> None:
        await ready(run)
        client = await any_broker(run)
        await fill(client, 9)
        number = 1
        owner = _owner(run, "orders", number)
        assert owner is not None
        old, new = await run.connect(owner), await run.connect(owner)

        def asked(generation: int, seat: int) -> control.Subscribe:
            return control.Subscribe(channel=9, name="orders", cohort="team", partitions=(number,), seat=seat, generation=generation, token=seat)

        await old._connection.request(asked(3, 5), control.Subscribed)
        async with asyncio.timeout(5):
            while partition(run, number).machine.leased_count != 3:
                await asyncio.sleep(0.01)
        with pytest.raises(Fenced):
            await new._connection.request(asked(3, 6), control.Subscribed)
        with pytest.raises(Fenced):
            await new._connection.request(asked(2, 5), control.Subscribed)
        assert len(partition(run, number).subscriptions) == 1
        await new._connection.request(asked(4, 6), control.Subscribed)
        (subscription,) = partition(run, number).subscriptions.values()
        assert subscription.session.token == new._connection.session
        async with asyncio.timeout(5):
            while partition(run, number).machine.leased_count != 3:
                await asyncio.sleep(0.01)
        holders = [h for h in partition(run, number).machine._state.leases.holders.values() if h.leases]
        assert [h.consumer.id for h in holders if h.consumer is not None] == [subscription.id], "what the old one had is leased to the new"
        with pytest.raises(Fenced):
            await old._connection.request(asked(3, 5), control.Subscribed)
        await run.all_follow(owner)
        await asyncio.sleep(0.5)
        owner.kill()
        async with asyncio.timeout(20):
            while (other := _owner(run, "orders", number)) is None or other is owner:
                await asyncio.sleep(0.02)
        with pytest.raises(Fenced):  # the next owner knows it, too
            await (await run.connect(other))._connection.request(asked(3, 5), control.Subscribed)

    told(story)


def test_who_is_in_no_cohort_and_who_is_in_another_are_refused() -> None:
    async def story(run: Story) -> None:
        await ready(run)
        client = await any_broker(run)
        first = await member(client)
        with pytest.raises(Conflict):
            await client.consume("orders", cohort="others").start()
        with pytest.raises(Conflict):
            await client.consume("orders").start()
        await first.close()
        alone = client.consume("orders")
        await alone.start()
        with pytest.raises(Conflict):
            await member(client)
        await alone.close()
        again = await member(client)
        assert again.assigned == (0, 1, 2)

    told(story)


def test_a_subscription_without_a_seat_and_a_home_elsewhere_say_what_to_do() -> None:
    async def story(run: Story) -> None:
        owners = await ready(run)
        client = await run.connect(owners[0])
        ask = client._connection.request
        with pytest.raises(Invalid, match="join"):
            await ask(control.Subscribe(channel=1, name="orders", cohort="team"), control.Subscribed)
        with pytest.raises(Invalid):
            await ask(control.Subscribe(channel=1, name="orders", partitions=(0,), seat=3), control.Subscribed)
        with pytest.raises(Invalid):
            await ask(control.Join(channel=1, name="orders", group="team"), control.Subscribed)
        with pytest.raises(NotFound):
            await ask(control.Released(channel=7, generation=1), control.Done)
        at = home("orders", 3)
        other = next(owner for owner in owners if owner is not owners[at])
        with pytest.raises(Elsewhere) as refused:
            await (await run.connect(other))._connection.request(control.Join(channel=1, name="orders", group="team", token=1), control.Subscribed)
        assert refused.value.detail["partitions"][0]["partition"] == at

    told(story)


@pytest.mark.parametrize("strategy", ["sticky", "range", "cooperative"])
def test_readers_of_a_group_read_everything_once(strategy: str) -> None:
    async def story(run: Story) -> None:
        await ready(run, "events")
        one, two = await any_broker(run), await any_broker(run)
        first = one.read("events", group="billing", strategy=strategy)  # type: ignore[arg-type]
        await first.start()
        await fill(one, 60, "events")
        got: list[tuple[int, int]] = []

        async def read(reader: Reader, count: int) -> None:
            while len(got) < count:
                try:
                    async with asyncio.timeout(0.2):
                        record = await reader.__anext__()
                except TimeoutError:
                    continue
                got.append((record.partition, record.offset))

        await read(first, 30)
        second = two.read("events", group="billing", strategy=strategy)  # type: ignore[arg-type]
        await second.start()
        await asyncio.gather(read(first, 60), read(second, 60), divided(first, second))
        await fill(one, 60, "events")
        await asyncio.gather(read(first, 120), read(second, 120))
        assert len(set(got)) == 120, "each once, as nothing has failed"
        with pytest.raises(Conflict):
            await two.read("events", group="billing", strategy="round_robin").start()
        await first.close()
        await divided(second)
        await second.close()

    told(story)


# ---------------------------------------------------------------- verbs


def test_verbs_are_carried_out_by_all_owners_whichever_broker_is_asked() -> None:
    async def story(run: Story) -> None:
        owners = await ready(run)
        await ready(run, "events")
        client = await any_broker(run)
        await fill(client, 30)
        await fill(client, 30, "events")
        for owner in owners:
            asked = await run.connect(owner)
            info = await asked.describe("orders")
            assert [(p.partition, p.state, p.ready) for p in info.partitions] == [(n, "serving", 10) for n in range(3)]
            assert info.ready == 30
            assert {i.name: i.records for i in await asked.list()}["events"] == 30
            peeked = await asked.inspect("orders", limit=25)
            assert [(m.partition, m.offset) for m in peeked] == [(n // 10, n % 10) for n in range(25)]
            await asked.set_cursor("events", f"of {owner.name}", to="offset:4")
            assert sorted((c.cursor, c.partition, c.offset) for c in await asked.cursors("events") if c.cursor == f"of {owner.name}") == [
                (f"of {owner.name}", n, 4) for n in range(3)
            ]
            await asked.delete_cursor("events", f"of {owner.name}")
            assert not await asked.cursors("events")
            with pytest.raises(NotFound):
                await asked.delete_cursor("events", f"of {owner.name}")
            with pytest.raises(Conflict):
                await asked.delete("orders", if_empty=True)
        asked = await run.connect(owners[0])
        await asked.pause("orders")
        await asyncio.sleep(0.5)
        assert {p.state for p in (await (await run.connect(owners[1])).describe("orders")).partitions} == {"paused"}
        await asked.resume("orders")
        assert await asked.purge("orders") == 30
        assert await asked.purge("orders") == 0

    told(story)


def test_describe_says_which_partition_nobody_serves() -> None:
    async def story(run: Story) -> None:
        owners = await ready(run)
        client = await run.connect(owners[0])
        for host in owners[1:]:
            host.kill()
        info = await client.describe("orders")
        assert len(info.partitions) == 3
        assert {p.partition for p in info.partitions if p.state == "unavailable"} >= {1, 2}
        assert all(p.why for p in info.partitions if p.state == "unavailable")
        assert len(info.attention) >= 2
        with pytest.raises(HeadraceError):
            await client.purge("orders")

    told(story)


def test_a_move_goes_on_over_the_death_of_an_owner_and_each_message_arrives_once() -> None:
    async def story(run: Story) -> None:
        owners = await ready(run)
        client = await any_broker(run)
        await client.declare_queue("archive", partitions=3, durability="replica_durable", replication_factor=3, min_in_sync_replicas=1)
        await ready(run, "archive")
        await fill(client, 300)
        asked = await run.connect(owners[0])
        begun = await asked._connection.request(control.Move(name="orders", to="archive", rate=100), control.Progress)
        assert begun.total == 300
        other = await run.connect(owners[2])
        async with asyncio.timeout(30):
            while (await other._connection.request(control.TransferStatus(id=begun.id), control.Progress)).done < 50:
                await asyncio.sleep(0.05)
        owners[1].kill()
        async with asyncio.timeout(120):
            while (status := await asked._connection.request(control.TransferStatus(id=begun.id), control.Progress)).state == "running":
                await asyncio.sleep(0.2)
        assert status.state == "finished", status
        got: list[int] = []
        consumer = client.consume("archive")
        await consumer.start()
        async with asyncio.timeout(60):
            while len(got) < 300:
                message = await consumer.__anext__()
                got.append(int(message.value))
                await message.ack(confirmed=True)
        assert sorted(got) == list(range(300))
        assert (await client.describe("orders")).ready == 0
        with pytest.raises(NotFound):
            await other._connection.request(control.TransferStatus(id=begun.id + 1), control.Progress)

    told(story)


def test_dead_letters_of_all_partitions_are_redriven() -> None:
    async def story(run: Story) -> None:
        owners = await ready(run)
        client = await any_broker(run)
        await fill(client, 30)
        async with client.consume("orders") as consumer:
            for _ in range(30):
                await (await consumer.__anext__()).reject(confirmed=True)
        async with asyncio.timeout(30):
            while (await client.list("dead")) == [] or (await client.describe("dead")).ready < 30:
                await asyncio.sleep(0.1)
        begun = await (await run.connect(owners[0]))._connection.request(control.Redrive(name="dead", limit=20), control.Progress)
        async with asyncio.timeout(30):
            while (await client._connection.request(control.TransferStatus(id=begun.id), control.Progress)).state == "running":
                await asyncio.sleep(0.1)
        assert (await client.describe("dead")).ready == 10
        assert (await client.describe("orders")).ready == 20

    told(story)


def test_what_a_peer_asks_of_partitions_that_are_not_there_is_refused() -> None:
    async def story(run: Story) -> None:
        owners = await ready(run)
        first, second = owners[0].running, owners[1].running
        assert first is not None
        assert second is not None
        for request, partitions in (
            (control.Purge(name="orders"), (3,)),
            (control.Purge(name="orders"), ()),
            (control.TransferStatus(id=1), (0,)),
            (control.Status(), ()),
            (control.Describe(name="nothing"), (0,)),
        ):
            with pytest.raises((Malformed, Refused, NotFound)):
                await forwarding.ask(first.broker, second.broker.id, request, partitions)
        with pytest.raises(Elsewhere):
            await forwarding.ask(first.broker, second.broker.id, control.Purge(name="orders"), (0,))

    told(story)
