"""The drivers one by one, on virtual time: what is written, what is refused, what is told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from headrace.cluster.control.evidence import NONE
from headrace.cluster.control.topology import Reassigned
from headrace.core.control.picture import Item, item_of
from headrace.model import config
from headrace.model.cluster import CONTROLLER_KEY, PLACEMENT_KEY, PLANNING_KEY, BrokerId, Holder, Placement, Planning, decode, encode, partition_key
from headrace.model.errors import Elsewhere, Invalid
from headrace.model.ids import PartitionId
from headrace.model.specs import QueueSpec
from headrace.sim.chance import Chance
from headrace.sim.loop import SimLoop
from tests.unit.cluster.control.places import Cluster, me

A, B, C = (BrokerId(name) for name in "abc")


def play(scenario: Callable[[Cluster], Awaitable[None]]) -> None:
    loop = SimLoop(Chance(1), rows_max=0)  # type: ignore[abstract]

    async def run() -> None:
        await scenario(Cluster())

    try:
        loop.run_until_complete(run())
        assert not loop.errors, loop.errors
        failed = [(task, task.exception()) for _, task in loop.unseen()]
        assert not failed, failed
    finally:
        loop.close()


async def three(cluster: Cluster, **settings: object) -> str:
    """Three brokers and an item of three partitions; the controller's name."""
    for name in "abc":
        cluster.start(name)
    replicated = {"durability": "replica_durable", "replication_factor": 3, "min_in_sync_replicas": 2, **settings}
    cluster.declare("orders", 1, 2, 3, **replicated)
    await cluster.until(lambda: all(cluster.assignment(p) and len(cluster.assignment(p).replicas) == 3 for p in (1, 2, 3)))  # type: ignore[union-attr]
    await cluster.until(lambda: len(cluster.elected()) == 1)
    return cluster.elected()[0]


# ------------------------------------------------------------ presence


def test_a_lost_registration_is_made_again_by_the_same_life() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = cluster.start("a")
        await a.presence.registered.wait()
        cluster.store.drop_lease("brokers/a")
        await cluster.until(lambda: a.presence.times == 2 and a.presence.alive)
        assert len(cluster.lost) == 1
        assert a.picturing.registered(A) == me("a", addresses={"native": "a:1"})
        await a.stop()
        assert cluster.store.document("brokers/a") is None

    play(scenario)


def test_of_two_processes_with_one_id_the_earlier_one_steps_back_until_the_other_is_gone() -> None:
    async def scenario(cluster: Cluster) -> None:
        earlier = cluster.start("a", 1)
        await earlier.presence.registered.wait()
        later = cluster.start("a", 2)
        await cluster.until(lambda: cluster.displaced == ["a-2"])
        assert "life a-2" in earlier.presence.trouble
        await asyncio.sleep(5)
        assert (later.presence.alive, later.presence.times) == (True, 1)
        await later.stop()
        await cluster.until(lambda: earlier.presence.alive)
        assert later.presence.times == 1

    play(scenario)


def test_who_could_not_hold_anothers_entries_is_not_registered_until_it_is_gone() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = cluster.start("a", takes_bytes_max=1000, writes_bytes_max=500)
        await a.presence.registered.wait()
        b = cluster.start("b", takes_bytes_max=5000, writes_bytes_max=2000)
        await cluster.until(lambda: "raise storage.wal_file_bytes there" in b.presence.trouble)
        assert "the log files of broker broker-a take 1000" in b.presence.trouble
        c = cluster.start("c", takes_bytes_max=400, writes_bytes_max=200)
        await cluster.until(lambda: "raise storage.wal_file_bytes here" in c.presence.trouble)
        assert a.picturing.registered(B) is None
        assert a.picturing.registered(C) is None
        await a.stop()
        await cluster.until(lambda: b.presence.alive or c.presence.alive)

    play(scenario)


def test_what_is_new_of_a_broker_is_written_under_the_same_registration() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = cluster.start("a")
        await a.presence.registered.wait()
        a.drain()
        await cluster.until(lambda: (found := a.picturing.registered(A)) is not None and found.draining)
        assert a.presence.times == 1

    play(scenario)


# ------------------------------------------------------------ election


def test_the_key_is_handed_on_and_its_version_only_grows() -> None:
    async def scenario(cluster: Cluster) -> None:
        versions = []
        for name in "abc":
            cluster.start(name)
        for _ in range(3):
            await cluster.until(lambda: len(cluster.elected()) == 1)
            [holder] = cluster.elected()
            versions.append(cluster.controls[holder].controller.election.term)
            await cluster.controls[holder].stop()
            del cluster.controls[holder]
        assert versions == sorted(set(versions))

    play(scenario)


def test_a_dead_controller_is_replaced_by_evidence_long_before_its_registration_ends() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        others = [name for name in "abc" if name != holder]
        assert all(cluster.eyes[name].closely == {BrokerId(holder)} for name in others)
        assert cluster.eyes[holder].closely == {A, B, C}
        for name in others:
            cluster.eyes[name].see(f"{holder}-1", replace(NONE, swim="dead"))
        await asyncio.sleep(0.5)
        for name in others:
            assert not cluster.controls[name].controller.election.look(), "by gossip alone"
            cluster.eyes[name].see(f"{holder}-1", replace(NONE, swim="dead", probe_failed=True))
        await cluster.until(lambda: any(cluster.controls[name].controller.election.look() for name in others), 0.3)
        document = cluster.store.document(CONTROLLER_KEY)
        assert document is not None
        assert "own probe failed" in decode(Holder, document.value).reason

    play(scenario)


def test_who_stands_again_after_an_election_that_was_lost_with_the_coordinators_leader_does_not_wait_to_see_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        others = [name for name in "abc" if name != holder]
        for name in others:
            cluster.store.lose_answers(f"{name}-1", done=False)
            cluster.eyes[name].see(f"{holder}-1", replace(NONE, swim="dead", probe_failed=True))
        await cluster.until(lambda: any(cluster.controls[name].controller.election.look() for name in others), 0.6)

    play(scenario)


def test_a_controller_that_was_replaced_writes_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        cluster.store.hold_watches(f"{holder}-1")  # it does not see that it was replaced
        cluster.store.write({}, {CONTROLLER_KEY: encode(Holder(broker=BrokerId("elsewhere")))}, 0)
        cluster.eyes[holder].see("x", NONE)
        before = [cluster.assignment(p) for p in (1, 2, 3)]
        victim = next(name for name in "abc" if name != holder)
        control = cluster.controls[holder]
        assert control.controller.election.look(), "it believes to be it"
        cluster.eyes[holder].see(f"{victim}-1", replace(NONE, swim="dead", probe_failed=True))
        plans = control.controller.plans
        await cluster.until(lambda: control.controller.plans > plans)
        assert [cluster.assignment(p) for p in (1, 2, 3)] == before

    play(scenario)


# ------------------------------------------------------------ plans


def test_a_dead_owner_is_replaced_with_a_reason_and_everybody_is_told() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        victim = next(name for name in "abc" if name != holder)
        [lost] = [p for p in (1, 2, 3) if (found := cluster.assignment(p)) is not None and found.owner == victim]
        told: list[Reassigned] = []
        cluster.controls[holder].topology.on_reassigned(told.extend)
        assert len(told) == 3
        told.clear()
        version = cluster.controls[holder].topology.version
        cluster.eyes[holder].see(f"{victim}-1", replace(NONE, swim="dead", probe_failed=True))
        await cluster.until(lambda: (found := cluster.assignment(lost)) is not None and found.owner != victim)
        await cluster.until(lambda: told)
        now = told[0].now
        assert now is not None
        assert (now.assignment.epoch, victim in now.assignment.isr) == (2, False)
        assert f"broker-{victim} is dead" in now.assignment.reason
        topology = cluster.controls[holder].topology
        assert topology.version > version
        place = next(place for place in topology.item("orders") if place.partition == lost)
        assert (place.routing_version, place.addresses) == (7, {"native": f"{now.assignment.owner}:1"})
        assert [topology.number(place.partition) for place in topology.item("orders")] == [0, 1, 2]
        assert topology.number(PartitionId(99)) is None
        decision = cluster.controls[holder].controller.view().decisions[-1]
        assert (decision.act, decision.outcome, decision.reason) == ("takeover", "applied", now.assignment.reason)

    play(scenario)


@pytest.mark.parametrize("done", [False, True])
def test_a_change_whose_answer_was_lost_is_looked_for_and_made_again_at_once(done: bool) -> None:
    """It waited a second to see it, which was most of a failover when etcd's leader died with the owner."""

    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        victim = next(name for name in "abc" if name != holder)
        [lost] = [p for p in (1, 2, 3) if (found := cluster.assignment(p)) is not None and found.owner == victim]
        cluster.store.lose_answers(f"{holder}-1", done=done)
        cluster.eyes[holder].see(f"{victim}-1", replace(NONE, swim="dead", probe_failed=True))
        await cluster.until(lambda: (found := cluster.assignment(lost)) is not None and found.owner != victim, 0.4)
        await asyncio.sleep(2)
        found = cluster.assignment(lost)
        assert found is not None
        assert found.epoch == 2
        assert cluster.controls[holder].controller.decisions.counts["takeover/unknown"] == 1

    play(scenario)


def test_a_change_that_was_overtaken_does_not_hold_up_the_others() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        victim = next(name for name in "abc" if name != holder)
        cluster.declare("more", *range(10, 40), durability="replica_durable", replication_factor=3, min_in_sync_replicas=2)
        await cluster.until(lambda: all(cluster.assignment(p) for p in range(10, 40)))
        await cluster.until(lambda: len(cluster.controls[holder].topology.places()) == 33)
        theirs = [p for p in range(10, 40) if (found := cluster.assignment(p)) is not None and found.owner == victim]
        assert len(theirs) > 3
        cluster.store.hold_watches(f"{holder}-1")
        overtaken = cluster.assignment(theirs[1])
        assert overtaken is not None
        newer = replace(overtaken, version=overtaken.version + 1, reason="by the owner")
        cluster.store.write({}, {partition_key(PartitionId(theirs[1])): encode(newer)}, 0)
        cluster.eyes[holder].see(f"{victim}-1", replace(NONE, swim="dead", probe_failed=True))
        await cluster.until(lambda: (found := cluster.assignment(theirs[-1])) is not None and found.owner != victim)
        assert cluster.assignment(theirs[1]) == newer
        cluster.store.hold_watches(f"{holder}-1", False)
        await cluster.until(lambda: all((found := cluster.assignment(p)) is not None and found.owner != victim for p in theirs))
        assert cluster.controls[holder].controller.decisions.counts["takeover/overtaken"] >= 1

    play(scenario)


def test_a_draining_broker_is_left_by_its_partitions_and_by_the_controller() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        cluster.controls[holder].drain()
        await cluster.until(lambda: cluster.elected() not in ([], [holder]))
        await cluster.until(lambda: all((found := cluster.assignment(p)) is not None and found.owner != holder for p in (1, 2, 3)))

    play(scenario)


def test_paused_nothing_is_decided_and_a_dry_run_only_tells() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        control = cluster.controls[holder]
        await control.set_planning("paused", by="an operator", reason="maintenance")
        await cluster.until(lambda: control.picturing.planning.mode == "paused")
        assert control.controller.view().alarms == ("planning is paused, dead owners are not replaced; an operator wanted it so: maintenance",)
        cluster.declare("late", 9)
        plans = control.controller.plans
        await cluster.until(lambda: control.picturing.declared.get("late"))
        assert [change.partition for change in await control.controller.rehearse()] == [9]
        await control.set_planning("dry_run", by="an operator")
        await cluster.until(lambda: control.controller.plans > plans)
        assert control.controller.view().decisions[-1].outcome == "dry_run"
        assert cluster.assignment(9) is None
        await control.set_planning("on", by="an operator")
        await cluster.until(lambda: cluster.assignment(9))
        assert control.controller.view().alarms == ()

    play(scenario)


def test_registrations_that_vanish_together_freeze_planning_with_an_alarm() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        before = [cluster.assignment(p) for p in (1, 2, 3)]
        for name in "abc":
            if name != holder:
                await cluster.controls[name].presence.stop()
        view = cluster.controls[holder].controller.view
        await cluster.until(lambda: any("planning is frozen" in alarm for alarm in view().alarms))
        assert [cluster.assignment(p) for p in (1, 2, 3)] == before

    play(scenario)


def test_a_document_that_cannot_be_read_withholds_its_item_only() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        control = cluster.controls[holder]
        told: list[Reassigned] = []
        control.topology.on_reassigned(told.extend)
        told.clear()
        cluster.store.write({}, {partition_key(PartitionId(2)): b"\xff"}, 0)
        cluster.declare("more", 9)
        await cluster.until(lambda: cluster.assignment(9))
        assert any(partition_key(PartitionId(2)) in alarm for alarm in control.controller.view().alarms)
        assert [one.partition for one in told if one.partition != 9] == []
        assert PartitionId(2) in control.topology.mine()

    play(scenario)


def test_a_recorded_deletion_removes_assignments_and_an_absent_name_does_not() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        cluster.declare("other", 9)
        await cluster.until(lambda: cluster.assignment(9))
        document = cluster.store.document("names/orders")
        assert document is not None
        told: list[Reassigned] = []
        cluster.controls[holder].topology.on_reassigned(told.extend)
        told.clear()
        cluster.store.write({}, {"names/orders": None, "deleted/id-orders": document.value, "names/other": None}, 0)
        await cluster.until(lambda: all(cluster.assignment(p) is None for p in (1, 2, 3)))
        await cluster.until(lambda: len([one for one in told if one.recorded]) == 3)
        assert cluster.assignment(9) is not None
        assert any("is in no catalogue" in finding.reason for finding in cluster.controls[holder].controller.view().findings)

    play(scenario)


# ------------------------------------------------------------ settings


def test_the_clusters_settings_begin_with_the_first_controllers_configuration() -> None:
    async def scenario(cluster: Cluster) -> None:
        a = cluster.start("a", placement=config.Placement(strategy="round_robin", copies_per_broker_max=5))
        await cluster.until(lambda: a.picturing.settings.strategy == "round_robin")
        b = cluster.start("b", placement=config.Placement(strategy="least_loaded"))
        await b.presence.registered.wait()
        await a.stop()
        await cluster.until(b.controller.election.look)
        assert b.picturing.settings == Placement(strategy="round_robin", copies_per_broker_max=5)
        assert (await b.set_placement({"moves_in_flight_max": 2})).moves_in_flight_max == 2
        for wrong in ({"moves": 2}, {"virtual_nodes": 0}, {"strategy": "best"}):
            with pytest.raises(Invalid):
                await b.set_placement(wrong)
        document = cluster.store.document(PLACEMENT_KEY)
        assert document is not None
        assert decode(Placement, document.value).moves_in_flight_max == 2
        cluster.store.write({}, {PLACEMENT_KEY: b"\x00", PLANNING_KEY: encode(Planning(mode="dry_run"))}, 0)
        await cluster.until(lambda: b.picturing.planning.mode == "dry_run")
        assert b.picturing.settings.moves_in_flight_max == 2, "an unreadable setting counts as it was"

    play(scenario)


def test_forcing_is_the_controllers() -> None:
    async def scenario(cluster: Cluster) -> None:
        holder = await three(cluster)
        other = next(name for name in "abc" if name != holder)
        with pytest.raises(Elsewhere):
            await cluster.controls[other].controller.force(None, None, ())  # type: ignore[arg-type]

    play(scenario)


def test_the_catalogues_documents_are_read_as_they_are_written() -> None:
    from headrace.broker import catalogue
    from headrace.cluster.control.declared import item, read

    spec = QueueSpec(partitions=2, durability="majority_durable", replication_factor=3)
    written = catalogue.Item(name="orders", kind="queue", id="x", partitions=(4, 5), queue=spec, routing_version=3, paused=True, created_ms=1)
    found = read(catalogue._encode(written))
    assert found.routing_version == 3
    expected: Item = item_of("x", "orders", (PartitionId(4), PartitionId(5)), spec)
    assert item(found) == expected


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "headrace")
