"""What a simulated cluster shows of itself, whichever broker is asked: cut off, without a quorum, with answers that cannot be read."""

import asyncio
from collections.abc import Callable

import pytest

from headrace.sim.clustered import Host
from headrace.wire import control
from headrace.wire.peer import Service
from headrace.wire.topology import UNKNOWN, PartitionRow
from tests.sim.test_cluster_of_three import Story, vanish

Shown = control.ClusterTopologyInfo


async def shown(host: Host, until: Callable[[Shown], bool] = lambda now: True, *, seconds: float = 20.0) -> Shown:
    """What it shows, once it is so; every answer comes in time."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds):
        while True:
            assert host.running is not None
            began = loop.time()
            now = await host.running.verbs.call(control.ClusterTopology())
            assert loop.time() - began < 1.2
            assert isinstance(now, Shown)
            if until(now):
                return now
            await asyncio.sleep(0.05)


def row(now: Shown, name: str = "orders") -> PartitionRow:
    return next(r for r in now.partitions if r.name == name)


def others(run: Story, host: Host) -> list[Host]:
    return [h for h in run.hosts.values() if h is not host]


def ids(*hosts: Host) -> list[str]:
    """Nobody has a name in a simulation, so all go by their ids."""
    return sorted(host.running.broker.id for host in hosts if host.running is not None)


def test_all_show_the_same_while_all_is_well() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        for n in range(20):
            await client.publish("orders", b"%d" % n)
        for host in run.hosts.values():
            now = await shown(host, lambda now: not now.attention and all(f.lag == 0 for f in row(now).followers))
            assert {b.state for b in now.brokers} == {"alive"}
            one = row(now)
            assert (one.state, one.why, one.waits_for) == ("serving", "", ())
            assert [one.owner] == ids(owner)
            assert sorted([one.owner, *(f.broker for f in one.followers)]) == sorted(one.replicas) == sorted(one.isr)
            assert one.high_watermark == one.end > 20
            assert now.unanswered == {}
        await vanish(client)

    Story(story).go()


@pytest.mark.parametrize("level", ["replica_durable", "majority_durable"])
def test_an_owner_that_is_cut_off_says_whom_it_misses_and_the_others_who_serves_instead(level: str) -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        if level == "replica_durable":
            await run.all_follow(owner)
        (me,), rest = ids(owner), ids(*others(run, owner))
        client = await run.connect(owner)
        await client.publish("orders", b"one")
        run.cut_off(owner)
        run.store.unreachable(owner.name)
        await client.publish("orders", b"here", confirm="local")
        now = await shown(owner, lambda now: row(now).state == "isolated")
        assert sorted(row(now).waits_for) == rest
        assert now.attention
        for host in others(run, owner):
            now = await shown(host, lambda now: row(now).state == "serving" and row(now).owner in rest)
            assert {b.id: b.state for b in now.brokers}[me] in ("suspect", "dead")
            (behind,) = (f for f in row(now).followers if f.broker == me)
            assert (behind.in_sync, behind.lag) == (False, UNKNOWN)
        await vanish(client)

    Story(story, level=level).go()


def test_what_waits_is_delivered_though_a_copy_died_while_nothing_was_done() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        await client.publish("orders", b"waits")
        (lost,) = ids(others(run, owner)[0])
        others(run, owner)[0].kill()
        await shown(owner, lambda now: {b.id: b.state for b in now.brokers}[lost] == "dead")
        await asyncio.sleep(3)
        now = await shown(owner)
        assert (row(now).state, len(row(now).isr)) == ("serving", 3), "an idle partition costs nothing"
        assert row(now).waits_for == (lost,)
        assert "out of sync with the next message" in " ".join(now.attention)
        async with asyncio.timeout(5), client.consume("orders") as messages:
            message = await messages.__anext__()
            assert message.value == b"waits"
            await message.ack(confirmed=True)
        now = await shown(owner)
        assert len(row(now).isr) == 2
        assert f"not fully copied: {lost} not in sync" in " ".join(now.attention)
        await vanish(client)

    Story(story).go()


def test_an_answer_that_cannot_be_read_is_shown_as_such() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)

        async def junk(peer: str, body: bytes) -> bytes:
            return b"\xc1 is no message"

        owner._transport.on_request(Service.SURVEY, junk)
        now = await shown(others(run, owner)[0])
        one = row(now)
        assert (one.state, one.high_watermark, {f.lag for f in one.followers}) == ("unknown", UNKNOWN, {UNKNOWN})
        assert "cannot be read" in now.unanswered[one.owner]
        assert one.waits_for == (one.owner,)

    Story(story).go()
