"""A broker whose log is at its limit, whose disk is full, whose disk fails: what it refuses, what goes on, what it never confirms."""

import asyncio
import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import headrace
from headrace.errors import DiskFull, HeadraceError
from headrace.model.config import GIB, MIB, Broker, Config, Limits, Listen, LogWriting, Storage
from headrace.storage.files import Buffer, Handle, OsFiles
from headrace.storage.ring import Ring
from headrace.testing.brokers import TestBroker

pytestmark = pytest.mark.timeout(60)
KIB = 1024


def config(folder: Path, *, wal_bytes_max: int = 64 * MIB, low: int = 0, how: LogWriting = "auto") -> Config:
    return Config(
        broker=Broker(data_dir=str(folder)), listen=Listen(native="127.0.0.1:0", admin="off"),
        storage=Storage(
            wal_file_bytes=MIB, wal_bytes_max=wal_bytes_max, flush_bytes_max=512 * KIB, segment_own_bytes_min=64 * KIB, segment_file_bytes=MIB,
            tail_cache_bytes=MIB, disk_free_bytes_min=low, ballast_bytes=0, state_map_bytes=64 * MIB, log_writes=how,
        ),
        limits=Limits(frame_bytes_max=512 * KIB, message_bytes_max=448 * KIB),
    )  # fmt: skip


async def test_publishers_that_were_held_back_go_on_when_nothing_else_writes(tmp_path: Path) -> None:
    """The log at its limit was asked for room only after a flush; held back publishers cause none, so they waited for ever."""
    broker = TestBroker(config(tmp_path, wal_bytes_max=3 * MIB))
    await broker.start()
    try:
        async with headrace.connect(broker.url) as client:
            await client.declare_stream("s")
            publisher = client.publisher("s")
            for _ in range(8):
                async with asyncio.timeout(10):
                    await asyncio.gather(*[publisher.post(bytes(1000)) for _ in range(2000)])
    finally:
        await broker.stop()


async def noticed(broker: TestBroker, *, full: bool) -> None:
    """Returns once it has looked at its disk."""
    assert broker._running is not None
    async with asyncio.timeout(20):
        while broker._running.broker.disk_nearly_full != full:
            await asyncio.sleep(0.02)


async def test_a_full_disk_refuses_publishes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = [GIB]
    monkeypatch.setattr(OsFiles, "free_bytes", lambda _self, _path: room[0])
    broker = TestBroker(config(tmp_path, low=8 * MIB))
    await broker.start()
    try:
        async with headrace.connect(broker.url) as client:
            await client.declare_queue("q")
            await client.declare_queue("other")
            for i in range(10):
                await client.publish("q", str(i))
            room[0] = MIB
            await noticed(broker, full=True)
            with pytest.raises(DiskFull):
                await client.publish("q", b"refused")
            async with client.consume("q") as messages:
                for i in range(10):
                    message = await anext(aiter(messages))
                    assert message.text == str(i)
                    await message.ack(confirmed=True)
            await client.delete("other")
            room[0] = GIB
            await noticed(broker, full=False)
            await client.publish("q", b"taken")
            assert (await client.describe("q")).settled == 10
    finally:
        await broker.stop()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """While it is true, every durable write fails, whoever does it."""
    failing = [False]
    write, start = OsFiles.pwritev_durable, Ring.start

    def fail(self: OsFiles, handle: Handle, pieces: Sequence[Buffer], offset: int) -> None:
        if failing[0]:
            raise OSError(errno.EIO, "the disk is broken")
        write(self, handle, pieces, offset)

    def fail_later(self: Ring, fd: int, pieces: Sequence[Buffer], nbytes: int, offset: int, done: Callable[[int], object]) -> bool:
        return start(self, fd, pieces, nbytes, offset, lambda result: done(-errno.EIO if failing[0] else result))

    monkeypatch.setattr(OsFiles, "pwritev_durable", fail)
    monkeypatch.setattr(Ring, "start", fail_later)
    return failing


@pytest.mark.parametrize("how", ["auto", "thread"])
async def test_a_failed_sync_takes_the_broker_down_and_is_not_confirmed(tmp_path: Path, failing: list[bool], how: LogWriting) -> None:
    broker = TestBroker(config(tmp_path, how=how))
    await broker.start()
    async with headrace.connect(broker.url) as client:
        await client.declare_queue("q")
        await client.publish("q", b"kept")
        failing[0] = True
        with pytest.raises((HeadraceError, TimeoutError)):
            await asyncio.wait_for(client.publish("q", b"never confirmed"), 3)
        running = broker._running
        assert running is not None
        await asyncio.wait_for(running.stopped.wait(), 10)
        assert running.broker.store_error is not None
        assert running.broker.state == "failed"
    failing[0] = False
    await broker.stop()
    await broker.start()
    try:
        async with headrace.connect(broker.url) as client:
            assert 1 <= (await client.describe("q")).ready <= 2  # unconfirmed: may or may not be there
    finally:
        await broker.stop()


@pytest.mark.parametrize("verb", ["purge", "trim", "set_cursor", "ack"])
async def test_no_verb_is_answered_before_what_it_did_is_durable(tmp_path: Path, failing: list[bool], verb: str) -> None:
    broker = TestBroker(config(tmp_path))
    await broker.start()
    async with headrace.connect(broker.url) as client:
        await client.declare_queue("q")
        await client.declare_stream("s")
        await client.publish("q", b"a message")
        for i in range(5):
            await client.publish("s", str(i))
        async with client.consume("q") as messages:
            message = await anext(aiter(messages))
            failing[0] = True
            work = {
                "purge": lambda: client.purge("q", leased=True),
                "trim": lambda: client.trim("s", partition=0, offset=3),
                "set_cursor": lambda: client.set_cursor("s", "c", 3),
                "ack": lambda: message.ack(confirmed=True),
            }[verb]
            with pytest.raises((HeadraceError, TimeoutError)):
                await asyncio.wait_for(work(), 3)
            failing[0] = False
            await broker.stop()
    await broker.start()
    await broker.stop()
