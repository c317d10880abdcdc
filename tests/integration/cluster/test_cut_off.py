"""An owner that is cut off confirms nothing, and one that lacks its copies says on what it waits; with real processes in networks of their own."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.cli.perf_link import Link
from headrace.model.errors import HeadraceError
from headrace.wire import control, frames
from headrace.wire.batch import Record, encode_batch, encode_publish
from headrace.wire.frames import Level, Op
from tests.chaos.machines import WAIT_S, Cluster, Machine, declared, why_no_network
from tests.today import TODAY

WHY = why_no_network()
pytestmark = [pytest.mark.skipif(bool(WHY), reason=WHY), pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "orders"
LATE = 1_000_000
"""Correlations of what is sent after the cut are above this."""
AFTER = 200_000


@pytest.fixture
async def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path, networks=True)
    try:
        made.start()
        if (name := getattr(request, "param", "")):
            await cut_while_it_forms(made, made[name])
        await made.ready()
        yield made
    finally:
        await made.close()


async def prepared(cluster: Cluster) -> Machine:
    """The owner of a queue whose copies are all in sync."""
    async with cluster.connect() as client:
        await declared(client, NAME)
        await client.publish(NAME, b"before")
    async with asyncio.timeout(WAIT_S):
        while True:
            assignments = await cluster.assignments()
            if assignments and all(len(a.isr) == 3 for a in assignments):
                return (await cluster.owners())[NAME][0]
            await asyncio.sleep(0.05)


def cut_off(cluster: Cluster, machine: Machine) -> list[Machine]:
    others = [m for m in cluster if m is not machine]
    for other in others:
        cluster.cut(machine, other)
        cluster.cut(other, machine)
    return others


async def standing(machine: Machine) -> dict[str, Any]:
    """What its formation says, once its admin interface listens."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(httpx.TransportError):
                found: dict[str, Any] = (await machine.get("cluster")).json()
                return found
            await asyncio.sleep(0.02)


async def cut_while_it_forms(cluster: Cluster, machine: Machine) -> None:
    """Until both sides have noticed."""
    async with asyncio.timeout(WAIT_S):
        while not (await standing(machine)).get("peers"):
            await asyncio.sleep(0.02)
        others = cut_off(cluster, machine)
        for one, other in ((machine, others[0]), (others[0], machine)):
            while (await standing(one)).get("peers", {}).get(other.name, {}).get("reachable", True):
                await asyncio.sleep(0.02)
    cluster.heal()


def answers(url: str, begun: threading.Event, cut: threading.Event, over: threading.Event) -> tuple[int, int]:
    """Publishes before and after the cut over one connection that follows nobody: how many of each were confirmed."""
    link = Link(url)
    link.call(control.OpenPublisher(channel=1, name=NAME, partition=0, producer_id=7), control.PublisherOpened)
    link.socket.settimeout(0.2)
    confirmed = [0, 0]
    sent = 0
    while not over.is_set() and not (link.closed and "timed out" not in link.closed):
        late = cut.is_set()
        if not late or sent < AFTER:
            value = [Record(key=None, value=b"late" if late else b"early", headers=(), timestamp_ms=0, offset_delta=0)]
            data = encode_batch(value, base_timestamp_ms=0, producer_id=7, producer_epoch=0, base_sequence=sent)
            link.socket.sendall(encode_publish(data, channel=1, correlation=sent + (LATE if late else 0), flags=int(Level.QUEUE)))
            sent += 1
        link.receive()
        for op, _flags, _channel, correlation, begin, _end in link.frames():
            if op == Op.CONFIRM:
                count = frames.CONFIRM.unpack_from(link.view, begin - 12)[5]
                confirmed[correlation >= LATE] += count
                begun.set()
    link.close()
    return confirmed[0], confirmed[1]


@pytest.mark.parametrize("cluster", ["abc"[TODAY % 3]], indirect=True)
async def test_an_owner_that_is_cut_off_confirms_nothing_to_clients_that_reach_it(cluster: Cluster) -> None:
    """In a cluster of which one broker, another one each day, was cut off while it was formed (scenario 15)."""
    assert len({(await standing(machine))["cluster_id"] for machine in cluster}) == 1
    owner = await prepared(cluster)
    (before,) = await cluster.assignments()
    begun, cut, over = threading.Event(), threading.Event(), threading.Event()
    publishing = asyncio.create_task(asyncio.to_thread(answers, owner.url, begun, cut, over))
    try:
        assert await asyncio.to_thread(begun.wait, WAIT_S)
        others = cut_off(cluster, owner)
        cut.set()
        async with asyncio.timeout(WAIT_S), cluster.connect(only=others[0]) as far:
            await far.publisher(NAME, confirm_timeout=WAIT_S).send(b"far")
        cluster.heal()
        async with asyncio.timeout(WAIT_S):
            while (now := (await cluster.assignments())[0]).epoch == before.epoch or len(now.isr) < 3:
                await asyncio.sleep(0.05)
    finally:
        over.set()
    early, late = await publishing
    assert early > 0
    assert late == 0
    async with cluster.connect() as client:
        got: list[bytes] = []
        async with asyncio.timeout(WAIT_S), client.consume(NAME, prefetch=1000) as consumer:
            async for message in consumer:
                got.append(message.value)
                if message.value == b"far":
                    break
                await message.ack()
    assert got.count(b"early") >= early
    assert b"late" not in got


async def test_a_partition_without_a_live_copy_in_sync_waits_for_one_by_name_and_is_never_begun_anew(cluster: Cluster) -> None:
    owner = await prepared(cluster)
    others = [m for m in cluster if m is not owner]
    async with cluster.connect() as client:
        await client.alter_queue(NAME, min_in_sync_replicas=1)
        for other in others:
            await other.kill()
        async with asyncio.timeout(WAIT_S):
            await client.publisher(NAME, confirm_timeout=WAIT_S).send(b"alone")
        await owner.kill()
        cluster.start(m.name for m in others)
        await cluster.ready(m.name for m in others)
        (was,) = await cluster.assignments()
        waits = [f"no live replica is in sync, so it waits for one of {known}" for known in (was.owner, owner.name)]
        async with asyncio.timeout(WAIT_S):
            while not any(sentence in m.log.read_text() for m in others for sentence in waits):
                await asyncio.sleep(0.1)
        with pytest.raises(HeadraceError, match=f"nobody serves partition 0 of 'orders' now: its owner, broker {was.owner}, is away"):
            await client.publisher(NAME, confirm_timeout=5.0).send(b"never")
        (now,) = await cluster.assignments()
        assert (now.owner, now.epoch, now.isr) == (was.owner, was.epoch, (was.owner,))
        cluster.start([owner.name])
        async with asyncio.timeout(WAIT_S), client.consume(NAME) as consumer:
            assert [(await anext(consumer)).value for _ in range(2)] == [b"before", b"alone"]
