"""What a partition of a cluster promises, step by step: three simulated brokers and one who looks."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import headrace
from headrace.broker.copies import Copy
from headrace.client.client import Client
from headrace.model.errors import Elsewhere, HeadraceError, Unavailable, UnknownOutcome
from headrace.sim.clustered import Host, Run
from headrace.storage.store import DiskStore
from headrace.wire import control
from headrace.wire.frames import Level


async def vanish(client: Client) -> None:
    """Its connections end without a goodbye, and it does not come back."""
    await client._router.close()
    await client._connection.close()


Tell = Callable[["Story"], Awaitable[None]]


class Story(Run):
    """A run in which nothing happens but what is told."""

    def __init__(self, tell: Tell, *, level: str = "replica_durable", floor: int = 2, seed: int = 1) -> None:
        super().__init__(seed)
        self.tell = tell
        self.level, self.floor, self.partitions = level, floor, 1  # type: ignore[assignment]

    async def _go(self) -> None:
        await self.begin()
        await self.world.loop.spawn(self.world.machine("user"), self._story(), "story")  # type: ignore[func-returns-value]

    async def _story(self) -> None:
        await self.tell(self)

    def copy(self, host: Host, name: str = "orders") -> Copy:
        assert host.running is not None
        cluster = host.running.broker.cluster
        assert cluster is not None
        return next(c for c in cluster.copies.values() if c.document.item == name)

    async def owner(self, name: str = "orders", *, seconds: float = 20.0, but: Host | None = None) -> Host:
        async with asyncio.timeout(seconds):
            while True:
                for host in self.hosts.values():
                    if host.serving and host is not but:
                        assert host.running is not None
                        item = host.running.broker.catalogue.find(name)
                        if item is not None:
                            await host.running.broker.loading.awake(item)  # as if it were used
                        try:
                            if self.copy(host, name).serving:
                                return host
                        except StopIteration:
                            continue
                await asyncio.sleep(0.02)

    async def all_follow(self, owner: Host, name: str = "orders") -> None:
        """Everybody has a copy and it is in sync."""
        async with asyncio.timeout(20):
            while not all(host.serving and self.follows(host, owner, name) for host in self.hosts.values()):
                await asyncio.sleep(0.02)

    def follows(self, host: Host, owner: Host, name: str) -> bool:
        try:
            copy, owners = self.copy(host, name), self.copy(owner, name)
        except StopIteration:
            return False
        return copy.applied >= owners.applied and len(owners.document.isr) == 3

    def cut_off(self, host: Host) -> None:
        for other in self.hosts.values():
            if other is not host:
                self.world.network.cut(host.name, other.name)
                self.world.network.cut(other.name, host.name)

    async def connect(self, host: Host) -> Client:
        return await headrace.connect(host.url, wait=0, confirm_timeout=4.0)


def test_a_confirm_names_what_it_promises() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        assert (await client.publish("orders", b"all", confirm="queue")).level == Level.REPLICA
        run.cut_off(owner)
        run.store.unreachable(owner.name)  # else it would go on alone, were there no floor
        assert (await client.publish("orders", b"here", confirm="local")).level == Level.LOCAL
        assert (await client.publish("orders", b"heard", confirm="accepted")).level == Level.ACCEPTED
        held = run.copy(owner).partition
        assert (await client.publish("orders", b"nobody there has it", confirm="queue")).level == Level.REPLICA
        assert await run.owner() is not owner
        assert held is None or held.high_watermark == 1

    Story(story).go()


def test_below_the_floor_nothing_is_stored_that_asks_for_more() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        for host in run.hosts.values():
            if host is not owner:
                host.kill()
        await client.publish("orders", b"somebody owes an acknowledgement", confirm="local")
        async with asyncio.timeout(20):
            while len(run.copy(owner).document.isr) > 1:
                await asyncio.sleep(0.05)
        copy = run.copy(owner)
        before = copy.partition.next_offset if copy.partition is not None else -1
        with pytest.raises(Unavailable):
            await client.publish("orders", b"x", confirm="queue")
        assert copy.partition is not None
        assert copy.partition.next_offset == before
        assert (await client.publish("orders", b"x", confirm="local")).level == Level.LOCAL

    Story(story).go()


def test_a_follower_takes_over_without_reading_its_disk() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        client = await run.connect(owner)
        publisher = client.publisher("orders")
        for number in range(100):
            await publisher.send(b"%d" % number)
        consumer = client.consume("orders", prefetch=10)
        await consumer.start()
        for _ in range(40):
            await (await consumer.__anext__()).ack(confirmed=True)
        await run.all_follow(owner)
        others = [host for host in run.hosts.values() if host is not owner]
        before = {host.name: run.copy(host).partition for host in others}
        await vanish(client)
        owner.kill()
        new = await run.owner(but=owner)
        partition = run.copy(new).partition
        assert partition is not None
        assert partition is before[new.name]
        other = await run.connect(new)
        left = other.consume("orders")
        await left.start()
        got: list[int] = []
        began = run.world.loop.time()
        async with asyncio.timeout(60):
            while len(got) < 60:
                message = await left.__anext__()
                got.append(int(message.value))
                await message.ack(confirmed=True)
        assert got == [*range(50, 100), *range(40, 50)]
        assert run.world.loop.time() - began == pytest.approx(30, abs=2), "what the dead broker's consumer had is leased to it for the whole time"

    Story(story).go()


def test_who_does_not_serve_says_who_does() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        other = next(host for host in run.hosts.values() if host is not owner)
        client = await run.connect(other)
        for asked in (control.OpenPublisher(channel=1, name="orders"), control.Subscribe(channel=1, name="orders")):
            with pytest.raises(Elsewhere) as told:
                await client._connection.request(asked, control.Message)
            assert owner.url in told.value.hint
            assert told.value.detail["partitions"][0]["owner"] in told.value.detail["brokers"]
            assert [owner.url] in told.value.detail["brokers"].values()

    Story(story).go()


def test_a_client_of_any_broker_follows_its_partition() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        other = next(host for host in run.hosts.values() if host is not owner)
        client = await run.connect(other)
        publisher = client.publisher("orders", confirm_timeout=60.0)
        consumer = client.consume("orders", prefetch=10)
        await consumer.start()
        waiting = [publisher.post(b"%d" % number) for number in range(50)]
        got: list[int] = []
        held = []
        async with asyncio.timeout(60):
            while len(got) < 20:
                message = await consumer.__anext__()
                got.append(int(message.value))
                if len(got) > 15:
                    held.append(message)
                else:
                    await message.ack(confirmed=True)
            waiting += [publisher.post(b"%d" % number) for number in range(50, 100)]
            await asyncio.sleep(0.001)
            owner.kill()
            waiting += [publisher.post(b"%d" % number) for number in range(100, 150)]
            assert sorted({(await receipt).offset for receipt in waiting}) == list(range(150)), "stored once each, in order"
            for message in held:
                await message.ack(confirmed=True)  # the new owner knows whose they are
            while len(got) < 150:
                message = await consumer.__anext__()
                assert not message.redelivered
                got.append(int(message.value))
                await message.ack(confirmed=True)
        assert sorted(got) == list(range(150))
        assert got == list(range(150))

    Story(story).go()


def test_who_is_idle_is_told_where_its_partition_has_gone() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        other = next(host for host in run.hosts.values() if host is not owner)
        client = await run.connect(other)
        await client.publish("orders", b"x")
        assert owner.running is not None
        assert owner.machine is not None
        run.world.loop.spawn(owner.machine, owner.running.stop(3_000), "drain")
        new = await run.owner(but=owner, seconds=2.0)
        assert new.running is not None
        async with asyncio.timeout(2):
            while client._router.owners("orders") != {new.running.broker.id}:
                await asyncio.sleep(0.01)

    Story(story).go()


def test_a_fenced_owner_gives_up_what_only_it_decided() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        assert (await client.publish("orders", b"kept")).level == Level.REPLICA
        consumer = client.consume("orders")
        await consumer.start()
        message = await consumer.__anext__()
        run.cut_off(owner)
        run.store.unreachable(owner.name)
        with pytest.raises((UnknownOutcome, asyncio.TimeoutError)):
            async with asyncio.timeout(0.5):  # later it would ask others who serves its partition
                await message.ack(confirmed=True)  # decided here, and committed nowhere
        await vanish(client)
        old = run.copy(owner).partition
        await run.owner(but=owner)
        run.world.network.heal_all()
        run.store.unreachable(owner.name, False)
        async with asyncio.timeout(20):
            while run.copy(owner).serving or run.copy(owner).partition is old:
                await asyncio.sleep(0.05)
        async with asyncio.timeout(60):
            while True:  # who serves it may change once more, now that all see each other again
                try:
                    other = await run.connect(await run.owner())
                    again = other.consume("orders")
                    await again.start()
                    assert (await again.__anext__()).value == b"kept"
                    return
                except HeadraceError:
                    await asyncio.sleep(0.2)

    Story(story).go()


def test_a_drained_owner_hands_over_before_it_stops() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        assert owner.running is not None
        assert owner.machine is not None
        began = run.world.loop.time()
        run.world.loop.spawn(owner.machine, owner.running.stop(10_000), "drain")
        new = await run.owner(but=owner, seconds=2.0)
        assert owner.alive
        client = await run.connect(new)
        assert (await client.publish("orders", b"x")).level == Level.REPLICA
        assert run.world.loop.time() - began < 2.0

    Story(story).go()


def test_who_leads_again_has_what_it_settled_alone_and_goes_on_without_a_gap() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        publisher = client.publisher("orders", confirm_timeout=1.0)
        for number in range(5):
            assert (await publisher.send(b"%d" % number)).offset == number
        consumer = client.consume("orders")
        await consumer.start()
        messages = [await consumer.__anext__() for _ in range(5)]
        await run.all_follow(owner)
        run.cut_off(owner)
        run.store.unreachable(owner.name)
        for message in messages:
            message.ack()  # committed nowhere
        with pytest.raises(UnknownOutcome):
            await publisher.send(b"nobody else has it")
        await vanish(client)  # else it tells the next owner what it settled
        copy = run.copy(owner)
        assert owner.running is not None
        shown = owner.running.broker.checkpoint(copy.pid)
        assert shown is None or shown.index < copy.end
        assert copy.serving
        await run.owner(but=owner)
        run.world.network.heal_all()
        run.store.unreachable(owner.name, False)
        async with asyncio.timeout(40):
            while copy.serving:
                await asyncio.sleep(0.02)
            while not copy.serving:  # it is the preferred owner
                await asyncio.sleep(0.02)
        other = await run.connect(owner)
        assert (await other.publish("orders", b"5")).offset == 5
        again = other.consume("orders")
        await again.start()
        got: list[int] = []
        async with asyncio.timeout(60):
            while len(got) < 6:
                message = await again.__anext__()
                got.append(int(message.value))
                await message.ack(confirmed=True)
        assert sorted(got) == list(range(6))

    Story(story).go()


def test_who_hears_nobody_delivers_nothing() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        await client.publish("orders", b"for whoever may give it")
        run.cut_off(owner)
        run.store.unreachable(owner.name)
        await asyncio.sleep(1.5)
        assert run.copy(owner).serving, "nobody has told it"
        consumer = client.consume("orders")
        await consumer.start()
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(2):
                await consumer.__anext__()

    Story(story).go()


def test_what_an_owner_alone_settled_is_not_erased() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        publisher = client.publisher("orders")
        for number in range(60):
            await publisher.send((b"%d " % number).ljust(3000, b"."))
        copy = run.copy(owner)
        assert owner.running is not None
        store = owner.running.broker.store
        assert isinstance(store, DiskStore)
        async with store._ground.moving:
            await store._mover.evacuate(store._ground.part(copy.pid))
        assert store._ground.part(copy.pid).moved.refs, "it is in a segment now"
        consumer = client.consume("orders")
        await consumer.start()
        messages = [await consumer.__anext__() for _ in range(60)]
        await run.all_follow(owner)
        run.cut_off(owner)
        run.store.unreachable(owner.name)
        for message in messages:
            message.ack()  # committed nowhere
        await asyncio.sleep(0.05)
        await vanish(client)  # else it tells the next owner
        await run.owner(but=owner)
        for _ in range(20):
            await store.maintenance()
            await asyncio.sleep(0.1)
        run.world.network.heal_all()
        run.store.unreachable(owner.name, False)
        async with asyncio.timeout(40):
            while copy.serving:
                await asyncio.sleep(0.02)
            while not copy.serving:  # it is the preferred owner
                await asyncio.sleep(0.02)
        again = (await run.connect(owner)).consume("orders")
        await again.start()
        got: dict[int, bool] = {}
        async with asyncio.timeout(60):
            while len(got) < 60:
                message = await again.__anext__()
                got[int(message.value.split()[0])] = True
                await message.ack(confirmed=True)

    Story(story).go()


def test_what_says_nothing_of_its_copies_has_three_and_what_says_one_has_one() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        client = await run.connect(owner)
        for _ in range(2):  # the second time nothing happens
            plain = await client.declare_queue("plain", partitions=2)
            stream = await client.declare_stream("log")
            alone = await client.declare_queue("alone", replication_factor=1)
        found = [
            (info.spec["replication_factor"], info.spec["durability"], info.spec["min_in_sync_replicas"]) for info in (plain, stream, alone)
        ]
        assert found == [(3, "replica_durable", 2), (3, "replica_durable", 2), (1, "local_durable", 1)]
        assert (await client.publish("plain", b"safe", confirm="queue")).level == Level.REPLICA
        assert (await client.publish("alone", b"here", confirm="queue")).level == Level.LOCAL

    Story(story).go()


def test_what_nobody_uses_is_looked_after_by_nobody() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        client = await run.connect(owner)
        names = {f"idle-{n}": True for n in range(20)}
        for name in names:
            await client.declare_queue(name)

        def used() -> set[str]:
            brokers = [host.running.broker for host in run.hosts.values() if host.serving and host.running is not None]
            loaded = {p.item.name for broker in brokers for p in broker.partitions.values()}
            copied = {c.document.item for broker in brokers if broker.cluster is not None for c in broker.cluster.copies.values()}
            assert loaded <= copied
            return {name for name in copied if name in names}

        assert not used()
        await client.publish("idle-3", b"one", confirm="queue")
        assert used() == {"idle-3"}
        await vanish(client)
        for host in run.hosts.values():
            host.kill()
        for host in run.hosts.values():
            host.start()
        async with asyncio.timeout(60):
            while not all(host.serving for host in run.hosts.values()) or "idle-3" not in used():
                await asyncio.sleep(0.02)
        again = await run.connect(await run.owner("idle-3"))
        assert (await again.describe("idle-3")).ready == 1
        await again.publish("idle-7", b"two", confirm="queue")
        await asyncio.sleep(5)
        assert used() >= {"idle-3", "idle-7"}
        assert len(used()) <= 4

    Story(story).go()
