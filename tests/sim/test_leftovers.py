"""What a copy leaves on a broker that it was moved away from, step by step: three simulated brokers and a fourth that takes the place of one."""

import asyncio

from headrace.broker.cluster import Cluster
from headrace.model.cluster import BrokerId
from headrace.sim.clustered import Host
from tests.sim.test_cluster_faults import documents, publish, until
from tests.sim.test_cluster_of_three import Story, vanish
from tests.sim.test_cluster_shown import shown

COUNT = 50


def cluster(host: Host) -> Cluster:
    assert host.running is not None
    found = host.running.broker.cluster
    assert found is not None
    return found


def id_of(host: Host) -> BrokerId:
    assert host.running is not None
    return BrokerId(host.running.broker.id)


async def serves(host: Host) -> None:
    await until(lambda: host.serving and cluster(host).control.mirror.synced.is_set(), 30.0, "it serves")


async def replaced(run: Story, *, emptied: bool = True) -> tuple[Host, Host, int]:
    """Who is about to lose its copy of a queue with messages, who is to have it in its place, and the queue's partition."""
    owner = await run.owner()
    await run.all_follow(owner)
    await publish(run, owner, "orders", COUNT)
    pid = run.copy(owner).pid
    fourth = run.host("d")
    fourth.start()
    await serves(fourth)
    old = next(host for host in run.hosts.values() if host not in (owner, fourth))
    if emptied:
        await empty(run, old)
    return old, fourth, pid


async def empty(run: Story, *hosts: Host) -> None:
    """Everything is to be moved off these, and off nobody else."""
    asked = next(host for host in run.hosts.values() if host not in hosts and host.serving)
    await cluster(asked).control.set_placement({"emptied": tuple(sorted(map(id_of, hosts)))})


async def counted(run: Story, but: Host, count: int = COUNT) -> None:
    """Everything that was confirmed is there."""
    owner = await run.owner(but=but)
    client = await run.connect(owner)
    assert (await client.describe("orders")).ready == count
    await vanish(client)


def test_it_is_erased_once_the_others_have_everything_and_what_it_promised_stays() -> None:
    async def story(run: Story) -> None:
        old, fourth, pid = await replaced(run)
        promised = cluster(old).driver.partitions[pid].replica.journal.promised
        await until(lambda: id_of(old) not in documents(run)[pid].copies, 30.0, "it is moved")
        assert id_of(fourth) in documents(run)[pid].isr
        await until(lambda: not cluster(old).driver.keeps(pid), 20.0, "its data go")
        assert pid not in cluster(old).driver.partitions
        assert pid not in cluster(old).copies
        await until(lambda: not cluster(old).leftovers.waiting, 5.0, "nothing is left")
        assert cluster(old).driver._log.found(pid).promised >= promised > 0
        await counted(run, old)
        old.kill(power=True)
        old.start()
        await serves(old)
        assert not cluster(old).driver.keeps(pid)
        assert cluster(old).driver.unfit(pid), "an older document that calls it a member finds nothing that is believed"
        assert not cluster(old).control.presence.me.unfit, "nobody need hear of that while it has no copy"

    Story(story).go()


def test_it_stays_while_one_of_the_others_is_away_and_topology_says_why() -> None:
    async def story(run: Story) -> None:
        old, fourth, pid = await replaced(run, emptied=False)
        owner = await run.owner()
        third = next(host for host in run.hosts.values() if host not in (owner, old, fourth))
        gone = id_of(third)
        third.kill()
        await publish(run, owner, "orders", 1)
        await until(lambda: gone not in documents(run)[pid].isr, 30.0, "one is away")
        await empty(run, old)
        await until(lambda: id_of(old) not in documents(run)[pid].copies, 60.0, "it is moved")
        await asyncio.sleep(3.0)
        assert gone in documents(run)[pid].replicas
        assert cluster(old).driver.keeps(pid)
        now = await shown(owner, lambda now: any("moved to others" in b.why for b in now.brokers))
        why = {b.id: b.why for b in now.brokers if "moved to others" in b.why}
        assert list(why) == [id_of(old)]
        assert why[id_of(old)].endswith(", and erases them later: not all of its copies are in sync")
        third.start()
        await until(lambda: not cluster(old).driver.keeps(pid), 30.0, "its data go")
        await counted(run, old, COUNT + 1)

    Story(story).go()


def test_a_death_at_any_moment_leaves_all_of_it_or_nothing_and_it_goes_in_the_end() -> None:
    async def story(run: Story) -> None:
        old, _, pid = await replaced(run)
        me = id_of(old)
        await until(lambda: me not in documents(run)[pid].copies, 30.0, "it is moved")
        for n in range(12):
            await asyncio.sleep(0.0005 * n * n)
            old.kill(power=n % 2 == 0)
            old.start()
            await serves(old)
            assert pid not in old.running.broker.store.damaged()  # type: ignore[union-attr]
        await until(lambda: not cluster(old).driver.keeps(pid), 30.0, "its data go")
        await counted(run, old)

    Story(story).go()


def test_who_is_given_it_back_has_everything_again() -> None:
    async def story(run: Story) -> None:
        old, fourth, pid = await replaced(run)
        await until(lambda: id_of(old) not in documents(run)[pid].copies and not cluster(old).driver.keeps(pid), 40.0, "its data go")
        await empty(run, fourth)
        await until(lambda: id_of(old) in documents(run)[pid].isr and id_of(fourth) not in documents(run)[pid].copies, 40.0, "it is moved back")
        await until(lambda: not cluster(fourth).driver.keeps(pid), 30.0, "the fourth's data go")
        await until(lambda: not cluster(old).driver.unfit(pid), 20.0, "it counts again")
        await counted(run, fourth)
        await old.stop()
        old.start()
        await serves(old)
        assert not cluster(old).driver.unfit(pid)

    Story(story).go()


def test_who_is_given_it_back_before_its_data_could_go_says_what_it_still_has() -> None:
    async def story(run: Story) -> None:
        old, fourth, pid = await replaced(run)
        capacity = old.disk.capacity
        await until(lambda: id_of(old) not in documents(run)[pid].copies, 30.0, "it is moved")
        old.disk.capacity -= old.disk.free_bytes("/data")
        await until(lambda: "cannot grow" in cluster(old).leftovers.waiting.get(pid, ""), 20.0, "its data cannot be erased")
        await empty(run, fourth)
        await until(lambda: id_of(old) in documents(run)[pid].copies, 20.0, "it is to have a copy again")
        old.disk.capacity = capacity
        await until(lambda: id_of(old) in documents(run)[pid].isr and id_of(fourth) not in documents(run)[pid].copies, 40.0, "it is moved back")
        await counted(run, fourth)

    Story(story).go()


def test_who_was_to_have_a_copy_and_was_sent_nothing_yet_takes_nothing_once_it_is_not_to() -> None:
    async def story(run: Story) -> None:
        old, fourth, pid = await replaced(run, emptied=False)
        owner = await run.owner()
        run.world.network.cut(fourth.name, owner.name)
        await empty(run, old)
        await until(lambda: id_of(fourth) in documents(run)[pid].copies and pid in cluster(fourth).driver.partitions, 30.0, "it is to have a copy")
        await empty(run, fourth)
        await until(lambda: id_of(fourth) not in documents(run)[pid].copies, 30.0, "it is not to have one")
        assert not cluster(fourth).driver.keeps(pid)
        await until(lambda: pid not in cluster(fourth).driver.partitions, 30.0, "what it could be sent belatedly it does not take")
        await counted(run, fourth)

    Story(story).go()
