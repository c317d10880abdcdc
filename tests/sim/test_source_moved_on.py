"""A new owner fetches what it lacks from a copy whose log has moved on since it said what it holds: then it takes a checkpoint."""

import asyncio

import pytest
from msgspec.structs import replace

import headrace
from headrace.client.lane import Receipt
from headrace.model.cluster import Assignment, BrokerId, decode, encode, partition_key
from headrace.model.ids import PartitionId
from headrace.storage.store import DiskStore
from tests.sim.test_cluster_of_three import Story
from tests.sim.test_stuck_owner import SMALL


@pytest.mark.parametrize(("name", "other"), [("orders", "events"), ("events", "orders")])
def test_an_epoch_begins_though_its_source_has_moved_its_log_while_others_were_waited_for(name: str, other: str) -> None:
    async def story(run: Story) -> None:
        owner = await run.owner(name)
        first, second = (host for host in run.hosts.values() if host is not owner)
        await run.owner(other)
        url = ",".join(host.url.removeprefix("headrace://") for host in run.hosts.values())
        client = await headrace.connect(f"headrace://{url}", wait=60.0, confirm_timeout=600.0)
        publisher, elsewhere = client.publisher(name), client.publisher(other)
        posted: list[asyncio.Future[Receipt]] = []

        async def post(count: int) -> None:
            for _ in range(count):
                posted.append(publisher.post(b"x" * 100))
                await asyncio.sleep(0.002)
            await asyncio.gather(*posted)

        await post(10)
        first.kill()
        await post(10)
        run.world.network.cut(first.name, owner.name)
        run.world.network.cut(owner.name, first.name)
        first.start()
        assert second.running is not None
        pid, store = run.copy(second, name).pid, second.running.broker.store
        assert isinstance(store, DiskStore)
        part, me = store._ground.part(pid), BrokerId(second.running.broker.id)
        async with asyncio.timeout(20):
            while not (first.serving and first.running is not None and me in first.running.broker.cluster.driver.links):  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        assert first.running is not None
        broker = first.running.broker
        coordinator, key = run.store.client("x"), partition_key(PartitionId(pid))
        while True:
            document = await coordinator.get(key)
            assert document is not None
            old = decode(Assignment, document.value)
            new = replace(
                old, version=old.version + 1, epoch=old.epoch + 1, owner=broker.id, incarnation=broker.incarnation, preferred=broker.id, reason="told"
            )
            if await coordinator.transact({key: document.version}, {key: encode(new)}):
                break
        async with asyncio.timeout(20):
            while True:
                leading = run.copy(first, name).replicated.replica.owner
                if leading is not None and leading.peers[me].answer is not None:
                    break
                await asyncio.sleep(0.01)
        assert not leading.begun_at, "it lost what it had not synced, and waits for the third as well"
        end = run.copy(first, name).replicated.replica.journal.end
        assert part.moved.moved_to < end
        while part.moved.moved_to <= end:
            await asyncio.gather(*(elsewhere.post(b"x" * 1000) for _ in range(10)))
        assert not leading.begun_at
        owner.kill()  # it need not be waited for any more
        async with asyncio.timeout(20):
            while not run.copy(first, name).serving:
                await asyncio.sleep(0.01)
            await post(10)
        assert [future.result().offset for future in posted] == list(range(30))
        assert run.copy(first, name).document.epoch == new.epoch
        await client.close()

    Story(story, level="majority_durable", floor=1, seed=SMALL).go()
