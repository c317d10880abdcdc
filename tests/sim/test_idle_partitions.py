"""What becomes of copies that nobody uses while they hold something: shown, in doubt, damaged. Three simulated brokers, and one who looks."""

import asyncio
from typing import Any

from headrace.broker.cluster import Cluster
from headrace.client.client import Client
from headrace.cluster.replication.driver import Driver
from headrace.model.config import KIB
from headrace.sim.clustered import Host
from headrace.wire import control
from tests.sim.test_cluster_faults import documents, ground, publish, until
from tests.sim.test_cluster_of_three import Story, Tell, vanish
from tests.sim.test_cluster_shown import row, shown

COUNT = 20


def cluster(host: Host) -> Cluster:
    assert host.running is not None
    found = host.running.broker.cluster
    assert found is not None
    return found


async def again(run: Story, *, power: bool) -> None:
    """All brokers die and start."""
    for host in run.hosts.values():
        host.kill(power=power)
    for host in run.hosts.values():
        host.start()
    await until(lambda: all(host.serving and cluster(host).control.mirror.synced.is_set() for host in run.hosts.values()), 60.0, "all serve")


def small() -> int:
    """A seed with small log files."""
    return next(n for n in range(20) if Story(_nothing, seed=n).hosts["a"].config.storage.wal_file_bytes == 64 * KIB)


async def _nothing(run: Story) -> None:
    """Nothing is told."""


def story_of(tell: Tell) -> None:
    """Runs a story."""
    Story(tell, seed=small()).go()


async def idle(run: Story, *, power: bool = False) -> int:
    """A queue holds messages of which no log has anything, and nobody has used it since all have started; its partition."""
    owner = await run.owner()
    await run.all_follow(owner)
    await publish(run, owner, "orders", COUNT)
    pid = run.copy(owner).pid
    client = await run.connect(owner)
    await client.declare_queue("filler")
    await vanish(client)
    other = await run.connect(await run.owner("filler"))
    for _ in range(4):  # begins other log files
        await asyncio.gather(*(other.publish("filler", b"x" * 3000) for _ in range(20)))
    await vanish(other)

    def moved() -> bool:
        for host in run.hosts.values():
            assert host.running is not None
            store: Any = host.running.broker.store
            store._mover.wake(force=True)
        return not any(pid in host.running.broker.store.busy() for host in run.hosts.values() if host.running is not None)  # type: ignore[attr-defined]

    await until(moved, 30.0, "it is moved out of the logs")
    await again(run, power=power)
    await until(lambda: all(cluster(host).dormant.document(pid) is not None for host in run.hosts.values()), 20.0, "its copies are idle")
    assert all(ground(host).part(pid).last_index > 0 for host in run.hosts.values())
    return pid


def who(run: Story, id: str) -> Host:
    return next(host for host in run.hosts.values() if host.running is not None and host.running.broker.id == id)


def test_it_is_shown_without_being_loaded_and_given_when_it_is_asked_for() -> None:
    async def story(run: Story) -> None:
        pid = await idle(run)
        for host in run.hosts.values():
            now = await shown(host, lambda now: not now.attention)
            found = row(now)
            assert (found.state, found.why, found.owner) == ("idle", "", documents(run)[pid].owner)
        assert all(cluster(host).dormant.document(pid) is not None for host in run.hosts.values())
        assert not any(pid in host.running.broker.partitions for host in run.hosts.values() if host.running is not None)
        owner = who(run, documents(run)[pid].owner)
        other = next(host for host in run.hosts.values() if host is not owner)
        listed: Any = await other.running.verbs.call(control.List())  # type: ignore[union-attr]
        assert [info.ready for info in listed.items if info.name == "orders"] == [COUNT]
        client: Client = await run.connect(other)
        described = await client.describe("orders")
        assert (described.ready, described.partitions[0].state) == (COUNT, "serving")
        assert row(await shown(other)).state == "serving"
        await vanish(client)

    story_of(story)


def test_a_queue_that_was_only_declared_is_whole() -> None:
    levels = ("replica_durable", "majority_durable")

    async def story(run: Story) -> None:
        client = await run.connect(await run.owner())
        for level in levels:
            await client.declare_queue(level, durability=level, replication_factor=3, min_in_sync_replicas=2)
        await vanish(client)
        for host in run.hosts.values():
            now = await shown(host, lambda now: {r.name for r in now.partitions} >= {*levels} and not now.attention)
            for level in levels:
                found = row(now, level)
                assert found.state == "idle"
                assert [f.in_sync for f in found.followers] == [True, True]

    Story(story).go()


def test_who_fails_finds_another_that_takes_an_idle_one_up() -> None:
    async def story(run: Story) -> None:
        pid = await idle(run, power=True)
        before = documents(run)[pid].owner
        owner = who(run, before)
        owner.kill(power=True)
        await until(lambda: documents(run)[pid].owner != before, 20.0, "another owns it")
        after = await run.owner(but=owner)
        client = await run.connect(after)
        assert (await client.describe("orders")).ready == COUNT
        await vanish(client)

    story_of(story)


def test_a_damaged_copy_is_made_good_although_nobody_uses_it() -> None:
    async def story(run: Story) -> None:
        pid = await idle(run)
        follower = who(run, next(id for id in documents(run)[pid].replicas if id != documents(run)[pid].owner))
        ground(follower).isolate(pid, "a byte went bad", 10, 0, 5)
        await until(lambda: not ground(follower).damaged, 20.0, "the copy begins anew")
        await until(lambda: not run.copy(follower).replicated.replica.journal.suspect, 20.0, "the copy is whole again")
        await until(lambda: not cluster(follower).control.presence.me.unfit, 5.0, "it calls nothing unfit")
        await until(lambda: len(documents(run)[pid].isr) == 3, 20.0, "it is in sync")
        owner = await run.owner()
        client = await run.connect(owner)
        assert (await client.describe("orders")).ready == COUNT
        await vanish(client)

    story_of(story)


def test_a_copy_in_doubt_stays_so_over_a_clean_stop_until_it_is_used() -> None:
    async def story(run: Story) -> None:
        pid = await idle(run, power=True)
        one = run.hosts["a"]
        assert not _driver(one)._marks.clean
        await one.stop()
        one.start()
        await until(lambda: one.serving and cluster(one).dormant.document(pid) is not None, 30.0, "it serves")
        marks = _driver(one)._marks
        assert marks.clean
        assert pid in marks.unclean
        one.call(cluster(one).take_up, pid)
        assert run.copy(one).replicated.replica.journal.unclean
        owner = await run.owner()
        await run.all_follow(owner)
        await until(lambda: not run.copy(one).replicated.replica.journal.unclean, 20.0, "nothing of it is missing")
        await one.stop()
        one.start()
        await until(lambda: one.serving, 30.0, "it serves")
        assert pid not in _driver(one)._marks.unclean

    story_of(story)


def _driver(host: Host) -> Driver:
    return cluster(host).driver
