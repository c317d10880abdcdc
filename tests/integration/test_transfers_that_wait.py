"""What a queue gives away, dead letters and what is moved, while a target has no room, and while the queue is deleted, or damaged and repaired."""

import asyncio

import pytest

import headrace
from headrace.broker.broker import Broker
from headrace.model.errors import Quarantined
from headrace.sim.world import DATA
from headrace.storage.index import POSITION_BITS, POSITION_MASK, Part
from headrace.storage.store import DiskStore
from headrace.storage.walfiles import name_of
from headrace.testing import Simulation, simulated

LONG_S = 20.0
"""By then a transfer that is refused again and again is tried only every few seconds."""


def _live(sim: Simulation) -> Broker:
    assert sim.broker._inner.running is not None
    return sim.broker._inner.running.broker


def _part(sim: Simulation, queue: str) -> Part:
    live = _live(sim)
    assert isinstance(live.store, DiskStore)
    return live.store._ground.part(live.catalogue.get(queue).partitions[0])


def _isolate(sim: Simulation, queue: str) -> None:
    """As if something was read that is damaged, of which nobody needs anything."""
    store, part = _live(sim).store, _part(sim, queue)
    assert isinstance(store, DiskStore)
    store._ground.isolate(part.pid, "a byte was flipped", part.last_index, part.next_offset, 0)


async def _waiting(client: headrace.Client) -> None:
    """A message of ``q`` that died, and for which ``dead`` has no room."""
    await client.declare_queue("dead", max_messages=1)
    await client.declare_queue("q", dead_letter="dead")
    await client.publish("dead", b"in the way")
    await client.publish("q", b"died", ttl=1)
    await asyncio.sleep(LONG_S)


@simulated(seeds=3)
async def test_they_end_with_their_queue_at_once(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await _waiting(client)
        outbox = _live(sim).outbox
        assert len(outbox._queued) == 1
        assert "wait for 'dead'" in outbox.attention()[0]
        await client.delete("q")
        assert (len(outbox._queued), outbox.attention()) == (0, [])


@simulated(seeds=3)
async def test_one_target_that_has_no_room_keeps_nothing_from_another(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await _waiting(client)
        await client.declare_queue("to")
        await client.publish("q", b"moved")
        job = await client.move("q", "to")
        await asyncio.sleep(1)
        assert (await client.transfer(job.id)).state == "finished"
        assert [m.value for m in await client.fetch("to", max_messages=10, wait=5)] == [b"moved"]
        await client.purge("dead")
        await asyncio.sleep(LONG_S)
        assert [m.value for m in await client.fetch("dead", max_messages=10, wait=5)] == [b"died"]


@simulated(seeds=3)
async def test_while_their_queue_is_damaged_they_wait_for_its_repair(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await _waiting(client)
        await client.publish("q", b"dies too late", ttl=LONG_S / 2)
        _isolate(sim, "q")
        await client.purge("dead")
        await asyncio.sleep(LONG_S)
        assert (len(_live(sim).outbox._queued), _live(sim).outbox.attention()) == (0, [])
        assert (await client.describe("dead")).ready == 0
        await client.repair("q")
        await asyncio.sleep(LONG_S)
        for expected in (b"died", b"dies too late"):
            [message] = await client.fetch("dead", max_messages=10, wait=5)
            assert message.value == expected
            await message.ack(confirmed=True)
            await asyncio.sleep(LONG_S)
        assert await client.fetch("dead", max_messages=10, wait=5) == []


@simulated(seeds=3)
async def test_what_is_published_after_a_repair_is_kept_whatever_waited_before_it(sim: Simulation) -> None:
    """What waited belonged to the partition as it was before; ended on that, it went on in the middle of the repaired one's journal."""
    async with headrace.connect(sim.url) as client:
        await _waiting(client)
        _isolate(sim, "q")
        await client.repair("q")
        for i in range(10):
            await client.publish("q", str(i))
        await client.purge("dead")
        await asyncio.sleep(LONG_S)
        [message] = await client.fetch("dead", max_messages=10, wait=5)
        assert message.value == b"died"
        await message.ack(confirmed=True)
        for i in range(10, 20):
            await client.publish("q", str(i))
        assert _live(sim).outbox.attention() == []
    sim.broker.kill()
    await sim.broker.start()
    async with headrace.connect(sim.url, wait=60) as client:
        assert [m.text for m in await client.fetch("q", max_messages=100, wait=5)] == [str(i) for i in range(20)]
        assert await client.fetch("dead", max_messages=10, wait=5) == []


@simulated(seeds=3)
async def test_another_dead_letter_under_the_number_of_one_that_a_repair_forgot(sim: Simulation) -> None:
    """The journal is damaged where the first one was given away; its message is back in the queue after the repair, and another one dies first."""
    async with headrace.connect(sim.url) as client:
        await client.declare_queue("dead")
        await client.declare_queue("q", dead_letter="dead")
        for value in (b"first", b"second"):
            await client.publish("q", value)
        part = _part(sim, "q")
        k = part.last_index + 1 - part.first_index
        [message] = await client.fetch("q", max_messages=1, wait=5)
        await message.reject(confirmed=True)
        [dead] = await client.fetch("dead", max_messages=1, wait=5)
        assert dead.value == b"first"
        await dead.ack(confirmed=True)
        place = part.place(k)
        await client.declare_queue("other")
        await client.publish("other", b"a flush after it")
    sim.broker.kill()
    path = f"{DATA}/wal/{name_of(place >> POSITION_BITS)}"
    sim.broker._inner.disk.flip(path, (place & POSITION_MASK) + 8, 1)
    await sim.broker.start()
    async with headrace.connect(sim.url, wait=60) as client:
        assert [row.name for row in await client.quarantine()] == ["q"]
        await client.repair("q")
        one, other = await client.fetch("q", max_messages=2, wait=5)
        assert (one.value, other.value) == (b"first", b"second")
        await one.ack(confirmed=True)
        await other.reject(confirmed=True)
        [dead] = await client.fetch("dead", max_messages=1, wait=5)
        assert dead.value == b"second"


@simulated(seeds=5)
async def test_what_is_asked_of_a_partition_while_it_is_repaired_does_not_hurt_it(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await client.declare_stream("s")
        for i in range(5):
            await client.publish("s", str(i))
        await client.set_cursor("s", "c", 1)
        _isolate(sim, "s")
        repair = asyncio.create_task(client.repair("s"))
        asked = []
        while not repair.done():
            asked.append(asyncio.create_task(client.set_cursor("s", "c", len(asked) % 5)))
            await asyncio.sleep(0.0002)
        await repair
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, Quarantined) for outcome in outcomes)
        for i in range(5, 10):
            await client.publish("s", str(i))
    sim.broker.kill()
    await sim.broker.start()
    async with headrace.connect(sim.url, wait=60) as client:
        assert await client.quarantine() == ()
        async with client.read("s", start="earliest") as reader:
            assert [(await anext(aiter(reader))).value for _ in range(10)] == [b"%d" % i for i in range(10)]


@simulated(seeds=3)
async def test_a_job_waits_for_the_repair_of_the_queue_that_it_empties(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await client.declare_queue("q")
        await client.declare_queue("to")
        for i in range(3):
            await client.publish("q", str(i))
        job = await client.move("q", "to", rate=1)
        await asyncio.sleep(0.5)
        _isolate(sim, "q")
        await asyncio.sleep(LONG_S)
        told = await client.transfer(job.id)
        assert (told.state, told.done) == ("running", 1)
        assert "'q' is quarantined" in told.why
        assert (await client.describe("to")).ready == 1
        await client.repair("q")
        await asyncio.sleep(LONG_S)
        told = await client.transfer(job.id)
        assert (told.state, told.done, told.why) == ("finished", 3, "")
        assert [m.text for m in await client.fetch("to", max_messages=10, wait=5)] == ["0", "1", "2"]


@simulated(seeds=3)
async def test_what_a_repair_may_undo_is_not_confirmed(sim: Simulation) -> None:
    async with headrace.connect(sim.url) as client:
        await client.declare_queue("q")
        await client.declare_stream("s")
        for name in ("q", "s"):
            await client.publish(name, b"kept")
            _isolate(sim, name)
        for asked in (client.purge("q"), client.trim("s", offset=1), client.set_cursor("s", "mine", 1), client.delete_cursor("s", "mine")):
            with pytest.raises(Quarantined):
                await asked
        await client.repair("q")
        assert await client.purge("q") == 1
