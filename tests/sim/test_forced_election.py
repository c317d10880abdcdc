"""A partition of which only a copy is left that may lack confirmed messages: nobody serves it until an operator accepts what would be lost."""

import asyncio

import pytest

from headrace.broker.verbs import Verbs
from headrace.model.cluster import CONTROLLER_KEY, Holder, decode
from headrace.model.errors import Conflict, HeadraceError, Invalid, NotFound
from headrace.sim.clustered import Host
from headrace.wire import control
from tests.sim.test_cluster_faults import documents, publish, until
from tests.sim.test_cluster_of_three import Story


async def asked(run: Story, host: Host, request: control.ForceElection) -> control.Election:
    """The answer of that broker's verbs."""
    assert host.running is not None
    assert host.machine is not None
    verbs: Verbs = host.running.verbs
    answer = run.world.loop.spawn(host.machine, verbs.call(request), "force")  # type: ignore[arg-type]
    found = await answer
    assert isinstance(found, control.Election)
    return found


def controller(run: Story) -> str:
    document = run.store.document(CONTROLLER_KEY)
    return "" if document is None else decode(Holder, document.value).broker


async def left_behind(run: Story) -> tuple[Host, list[Host]]:
    """Somebody who lacks what was confirmed last, and those who held it and are gone."""
    owner = await run.owner()
    await run.all_follow(owner)
    await publish(run, owner, "orders", 20)
    behind = next(host for host in run.hosts.values() if host is not owner)
    run.cut_off(behind)
    pid = run.copy(owner).pid
    await publish(run, owner, "orders", 5)
    assert len(documents(run)[pid].isr) == 2, "who is cut off has left the isr"
    gone = [host for host in run.hosts.values() if host is not behind]
    for host in gone:
        host.kill()
    run.world.network.heal_all()
    assert behind.running is not None
    await until(lambda: controller(run) == behind.running.broker.id, 20.0, "who is left is the controller")  # type: ignore[union-attr]
    await asyncio.sleep(2.0)
    return behind, gone


def test_an_operator_is_shown_the_loss_and_accepts_it_and_the_partition_goes_on() -> None:
    async def story(run: Story) -> None:
        behind, gone = await left_behind(run)
        copy = run.copy(behind)
        assert not copy.serving
        assert behind.running is not None
        me = behind.running.broker.id
        shown = await asked(run, behind, control.ForceElection(name="orders"))
        assert (shown.chosen, shown.elected, shown.epoch) == (me, False, 0)
        assert len(shown.given_up) == 2
        assert "confirmed messages too" in shown.reason
        assert "it serves once 2 copies are in sync" in shown.reason
        rows = {row.broker: row for row in shown.copies}
        assert rows[me].index == copy.replicated.replica.journal.durable_end - 1
        assert rows[me].next_offset == 20
        assert not rows[me].in_sync
        assert all(rows[id].state == "dead" and rows[id].in_sync and rows[id].index == -1 for id in shown.given_up)
        assert documents(run)[copy.pid].owner != me, "it was only shown"
        with pytest.raises(Conflict, match="has changed since"):
            await asked(run, behind, control.ForceElection(name="orders", accept_data_loss=True, version=shown.version + 1))
        with pytest.raises(Invalid):
            await asked(run, behind, control.ForceElection(name="orders", accept_data_loss=True))
        with pytest.raises(NotFound):
            await asked(run, behind, control.ForceElection(name="orders", partition=7))
        done = await asked(run, behind, control.ForceElection(name="orders", accept_data_loss=True, version=shown.version, by="ann"))
        assert done.elected
        await asyncio.sleep(2.0)
        assert not run.copy(behind).serving, "its queue asks for two copies that are in sync"
        client = await run.connect(behind)
        await client.alter_queue("orders", min_in_sync_replicas=1)
        await client.close()
        await until(lambda: run.copy(behind).serving, 10.0, "it serves")
        document = documents(run)[copy.pid]
        assert (document.owner, document.epoch, document.forced[-1].accepted_by) == (me, done.epoch, "ann")
        partition = run.copy(behind).partition
        assert partition is not None
        assert partition.next_offset == 20
        for host in gone:
            host.start()
        await until(lambda: len(documents(run)[copy.pid].isr) == 3, 60.0, "those who come back follow it, without what was given up")
        serving = await run.owner()
        await publish(run, serving, "orders", 3)
        assert run.copy(serving).partition.next_offset == 23  # type: ignore[union-attr]

    Story(story).go()


def test_it_is_refused_while_somebody_can_serve_and_any_broker_passes_it_on() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        for host in run.hosts.values():
            with pytest.raises(HeadraceError, match="can serve partition 0 of orders without loss"):
                await asked(run, host, control.ForceElection(name="orders"))

    Story(story).go()
