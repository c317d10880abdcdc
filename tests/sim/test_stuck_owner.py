"""An owner with entries that nobody else has, and a follower that needs a checkpoint before it can take them: one of them does not wait for ever."""

import asyncio

import pytest

import headrace
from headrace.broker.copies import Copy
from headrace.client.lane import Receipt
from headrace.model.config import KIB
from headrace.storage.api import Checkpoint
from headrace.storage.store import DiskStore
from tests.sim.test_cluster_of_three import Story


async def _nothing(run: Story) -> None:
    pass


SMALL = next(seed for seed in range(40) if Story(_nothing, seed=seed).hosts["a"].config.storage.wal_file_bytes == 64 * KIB)


@pytest.mark.parametrize("name", ["orders", "events"])
def test_two_copies_of_three_confirm_again_though_one_was_away_for_longer_than_the_log(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third one, which has more than that one, does not come back."""

    async def story(run: Story) -> None:
        owner = await run.owner(name)
        await run.all_follow(owner, name)
        first, second = (host for host in run.hosts.values() if host is not owner)
        url = ",".join(host.url.removeprefix("headrace://") for host in run.hosts.values())
        client = await headrace.connect(f"headrace://{url}", wait=60.0, confirm_timeout=600.0)
        publisher = client.publisher(name)
        posted: list[asyncio.Future[Receipt]] = []

        async def post(count: int) -> None:
            for _ in range(count):
                posted.append(publisher.post(b"x" * 1000))
                await asyncio.sleep(0.001)

        assert owner.running is not None
        store, pid = owner.running.broker.store, run.copy(owner, name).pid
        assert isinstance(store, DiskStore)
        part = store._ground.part(pid)
        checkpoint = Copy.checkpoint

        def never(copy: Copy) -> Checkpoint | None:
            """As if something of it were on its way whenever the owner is asked."""
            return None if copy.serving else checkpoint(copy)

        monkeypatch.setattr(Copy, "checkpoint", never)
        first.kill()
        behind = part.last_index
        while part.moved.moved_to <= behind:
            await post(20)
        second.kill()
        await post(50)
        await asyncio.sleep(3.0)
        monkeypatch.setattr(Copy, "checkpoint", checkpoint)
        assert any(not future.done() for future in posted)
        assert len(run.copy(owner, name).document.isr) == 1
        first.start()
        async with asyncio.timeout(30):
            receipts = await asyncio.gather(*posted)
        assert [r.offset for r in receipts] == list(range(len(receipts)))
        offsets: list[int] = []
        async with asyncio.timeout(30):
            if name == "orders":
                async with client.consume(name) as consumer:
                    while len(offsets) < len(posted):
                        message = await consumer.__anext__()
                        message.ack()
                        offsets.append(message.offset)
            else:
                async with client.read(name, start="earliest") as reader:
                    offsets += [(await reader.__anext__()).offset for _ in posted]
        assert offsets == list(range(len(posted)))
        await client.close()

    Story(story, seed=SMALL).go()
