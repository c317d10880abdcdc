"""Brokers that are killed while a process of theirs moves what leaves the log, and such processes that are: nothing that was confirmed is lost."""

import asyncio
import os
import random
import signal
from pathlib import Path

import psutil
import pytest

import headrace
from headrace.model.errors import HeadraceError
from tests.cli.conftest import Started

pytestmark = pytest.mark.timeout(240)

QUEUES = 1000
SMALL_LOG = (
    "storage.wal_file_bytes=8MiB", "storage.wal_bytes_max=64MiB", "storage.flush_bytes_max=2MiB", "limits.frame_bytes_max=1MiB",
    "limits.message_bytes_max=512KiB",
)  # fmt: skip


def started(folder: Path) -> Started:
    (folder / "ready.json").unlink(missing_ok=True)
    options = [part for setting in SMALL_LOG for part in ("--set", setting)]
    return Started(folder, "--mqtt", "off", "--mqtt-ws", "off", *options, storage="disk").ready()


class Counts:
    """What was sent to each queue, and confirmed."""

    def __init__(self) -> None:
        self.sent = [0] * QUEUES
        self.confirmed = [0] * QUEUES

    async def publish(self, publisher: headrace.Publisher, number: int) -> None:
        """One at a time, for ever: each is an entry of its own, and a pass has many."""
        while True:
            self.sent[number] += 1
            await publisher.post(bytes(100))
            self.confirmed[number] += 1

    async def check(self, url: str) -> None:
        async with headrace.connect(url) as client:
            for number in range(QUEUES):
                ready = (await client.describe(f"q{number}")).ready
                assert self.confirmed[number] <= ready <= self.sent[number], number


async def movers(broker: Started) -> list[psutil.Process]:
    """Once there is one."""
    async with asyncio.timeout(90):
        while not (found := psutil.Process(broker.process.pid).children()):
            await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize("who_first", ["broker", "mover"])
async def test_what_is_moved_meanwhile_stays(tmp_path: Path, who_first: str) -> None:
    counts, chance = Counts(), random.Random(who_first)
    for _ in range(2):
        broker = started(tmp_path)
        try:
            if any(counts.sent):
                await counts.check(broker.addresses["url"])
            async with headrace.connect(broker.addresses["url"]) as client:
                for number in range(QUEUES):
                    await client.declare_queue(f"q{number}")
                load = [asyncio.create_task(counts.publish(client.publisher(f"q{number}", idempotent=False), number)) for number in range(QUEUES)]
                [mover] = await movers(broker)
                await asyncio.sleep(chance.random() * 0.5)
                if who_first == "mover" and mover.is_running():
                    os.kill(mover.pid, signal.SIGKILL)
                    await asyncio.sleep(chance.random() * 0.5)
                broker.process.kill()
                for task in load:
                    task.cancel()
                for ended in await asyncio.gather(*load, return_exceptions=True):
                    assert isinstance(ended, asyncio.CancelledError | HeadraceError), ended
        finally:
            broker.stop()
    broker = started(tmp_path)
    try:
        await counts.check(broker.addresses["url"])
        assert sum(counts.confirmed) > 20_000
    finally:
        broker.stop()
